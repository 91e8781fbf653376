"""Other optimizers beside `NaturalGradient`: wrappers around it, and those that share a `MultiOptimizer` with it."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_natgrad import _keras


def without_loss_scale(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer inside a `LossScaleOptimizer`, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def apply_beside(
    natural: keras.optimizers.Optimizer,
    through: keras.optimizers.Optimizer,
    gradients: Sequence[tuple[tf.Tensor, keras.Variable]],
) -> None:
    """Lets the optimizers beside `NaturalGradient` in a `MultiOptimizer` take their part of a step.

    Args:
        natural: the one that is left out.
        through: the optimizer of the model.
        gradients: with their variables.
    """
    by_variable = {id(v): g for g, v in gradients}
    for optimizer in getattr(through, "optimizers", ()):
        mine = [v for v in _keras.optimized_variables(optimizer) if id(v) in by_variable]
        if optimizer is not natural and mine:
            optimizer.apply([optimizer.scale_loss(by_variable[id(v)]) for v in mine], mine)


__all__ = ["apply_beside", "without_loss_scale"]
