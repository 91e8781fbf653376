"""The loss of a compiled model, read as a likelihood."""

from __future__ import annotations

import keras

from tf_natgrad import _checks, _keras
from tf_natgrad.distributions import Likelihood, joint_likelihood, likelihood_of


def likelihood_of_model(model: keras.Model) -> Likelihood:
    """Reads the loss of a compiled model as a likelihood; of several outputs, all losses as one.

    Args:
        model: a compiled model.

    Returns:
        A `Likelihood`.

    Raises:
        ValueError: if a loss is missing, unknown, or not that of `compile`.
    """
    if type(model).compute_loss is not keras.Model.compute_loss:
        raise ValueError(
            _checks.message(
                "model",
                f"{type(model).__name__} with a `compute_loss` of its own",
                "the loss in `compile`",
                "Write a `tf_natgrad.distributions.Distribution` for a loss of your own.",
            )
        )
    loss, weights = getattr(model, "loss", None), _keras.loss_weights_of(model)
    if loss is None:
        raise ValueError(_checks.message("loss", "none", "one loss for each output in `compile`"))
    if isinstance(loss, dict | list | tuple) and len(loss) > 1:
        return joint_likelihood(loss, weights).for_model(model)
    if weights is not None:
        raise ValueError(
            _checks.message("loss_weights", weights, "None", "Scale `damping` and `learning_rate` instead.")
        )
    return likelihood_of(loss)


__all__ = ["likelihood_of_model"]
