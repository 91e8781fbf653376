"""Keras models that train by natural gradient where their optimizer is `NaturalGradient`, and as ever otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._direction import batch_direction
from tf_natgrad.distributions import Likelihood, likelihood_of
from tf_natgrad.optimizers import NaturalGradient


class NaturalGradientMixin:
    """Gives a Keras model class the training step of natural gradient descent.

    Put it before the Keras class. With a `NaturalGradient` optimizer `fit`, `train_on_batch` and the like take
    natural-gradient steps; with any other optimizer the model is stock Keras.

    >>> import keras
    >>> class MyModel(NaturalGradientMixin, keras.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.head = keras.layers.Dense(3)
    ...     def call(self, x):
    ...         return self.head(x)
    >>> MyModel().compile("adam", "mse")
    """

    @property
    def supports_jit(self) -> bool:
        """Whether `jit_compile="auto"` may compile this model: not with a solver that needs SVD or eigh."""
        natural = natural_gradient_optimizer(self)
        return self.__dict__.get("_supports_jit", True) and (natural is None or natural.solver.supports_jit)

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:
        self.__dict__["_supports_jit"] = value

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step: the natural gradient of the batch, or stock Keras's step with another optimizer.

        Args:
            data: a batch as Keras gives it.

        Returns:
            The metrics.
        """
        optimizer = natural_gradient_optimizer(self)
        if optimizer is None:
            return super().train_step(data)
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        result = batch_direction(
            self,
            self._likelihood(),
            x,
            y,
            sample_weight,
            damping=optimizer.damping.value,
            solver=optimizer.solver,
            training=True,
        )
        outputs = result.fisher.outputs
        loss = self.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True)
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(loss, sample_weight=tf.shape(outputs)[0])
        flat = result.fisher.flat_parameters
        _take_step(optimizer, flat.unflatten(result.value), flat.variables, loss)
        return self.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def make_train_function(self, force: bool = False) -> Callable | None:
        """Stock Keras's, with this package's refusals turned into `ValueError`s.

        Args:
            force: whether to make it anew.

        Returns:
            The function, where it existed already.
        """
        if self.train_function is not None and not force:
            return self.train_function
        super().make_train_function(force)
        if natural_gradient_optimizer(self) is not None:
            step = self.train_function

            def train_function(iterator: Any) -> Any:
                with _checks.as_value_error():
                    return step(iterator)

            self.train_function = train_function
        return None

    def _likelihood(self) -> Likelihood:
        loss = getattr(self, "loss", None)
        if loss is None or isinstance(loss, dict | list | tuple):
            raise ValueError(
                _checks.message(
                    "loss",
                    "none" if loss is None else f"{len(loss)} losses",
                    "one loss in `compile`",
                    "See the README.",
                )
            )
        return likelihood_of(loss)


@keras.saving.register_keras_serializable(package="tf_natgrad")
class NaturalGradientModel(NaturalGradientMixin, keras.Model):
    """`keras.Model` with natural-gradient training: `NaturalGradientModel(inputs, outputs)`, or subclass it."""


@keras.saving.register_keras_serializable(package="tf_natgrad")
class NaturalGradientSequential(NaturalGradientMixin, keras.Sequential):
    """`keras.Sequential` with natural-gradient training."""


def natural_gradient_model(model: keras.Model) -> NaturalGradientModel:
    """A model that shares layers and weights with `model` and can train by natural gradient.

    >>> import keras
    >>> base = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> natural_gradient_model(base).layers[-1] is base.layers[-1]
    True

    Args:
        model: a Functional or built Sequential model.

    Returns:
        A `NaturalGradientModel`; training it trains `model`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if it has no inputs and outputs to share (a subclassed model: use `NaturalGradientMixin`).
    """
    if isinstance(model, NaturalGradientMixin):
        return model
    if not isinstance(model, keras.Model):
        raise TypeError(_checks.message("model", type(model).__name__, "a `keras.Model`"))
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            _checks.message(
                "model", "a Sequential model without weights", "a built one", "Begin it with `keras.Input(shape)`."
            )
        )
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise ValueError(
            _checks.message(
                "model",
                f"the subclassed model {type(model).__name__}",
                "a Functional or Sequential model",
                f"Derive it with the mixin: `class {type(model).__name__}(ng.NaturalGradientMixin, keras.Model)`.",
            )
        )

    def single(tensors: list) -> Any:
        return tensors[0] if len(tensors) == 1 else tensors

    return NaturalGradientModel(single(inputs), single(outputs), name=model.name)


def _take_step(
    optimizer: NaturalGradient, direction: list[tf.Tensor], variables: Sequence[keras.Variable], loss: tf.Tensor
) -> None:
    """Applies the direction if it and the loss are finite; else raises, or skips and counts."""
    finite = _checks.is_finite(loss, *direction)
    if optimizer.on_nonfinite == "raise":
        _checks.require(
            finite,
            "The loss or the natural-gradient direction of this batch is not finite; the weights were left as they "
            "were. Lower the learning rate or raise `damping`; or pass `on_nonfinite='skip'` to leave such batches "
            "out.",
        )

    def apply() -> None:
        optimizer.apply_direction(direction, variables)

    def skip() -> None:
        optimizer.skipped_steps.assign_add(1)

    tf.cond(finite, apply, skip)


def natural_gradient_optimizer(model: keras.Model) -> NaturalGradient | None:
    """The model's `NaturalGradient`, out of a loss-scale wrapper if need be, or `None`.

    Args:
        model: a Keras model, compiled or not.

    Returns:
        The optimizer or `None`.
    """
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return optimizer if isinstance(optimizer, NaturalGradient) else None


__all__ = [
    "NaturalGradientMixin",
    "NaturalGradientModel",
    "NaturalGradientSequential",
    "natural_gradient_model",
]
