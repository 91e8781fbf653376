"""The table from Keras losses to the distributions whose negative log-likelihood they are."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._conditions import Checked
from tf_natgrad._typing import LossLike, TensorLike
from tf_natgrad.distributions._base import Distribution, checked_targets_of
from tf_natgrad.distributions.bernoulli import BernoulliPd
from tf_natgrad.distributions.categorical import CategoricalPd, class_indices, soft_targets
from tf_natgrad.distributions.gaussian import DiagGaussianPd
from tf_natgrad.distributions.joint import JointLikelihood
from tf_natgrad.distributions.likelihood import MEAN_REDUCTIONS, Likelihood, at_least_single, same_batch


@keras.saving.register_keras_serializable(package="tf_natgrad")
class NegativeLogLikelihood(keras.losses.Loss):
    """The negative log-likelihood of a distribution class, as a Keras loss for `compile` and `fit`.

    The network's outputs are the parameters of the distribution. A saved model holds the name of the class:
    define or import the class before `keras.saving.load_model`, or pass it in `custom_objects`.

    >>> import keras, numpy as np
    >>> from tf_natgrad.distributions import DiagGaussianPd
    >>> loss = NegativeLogLikelihood(DiagGaussianPd)  # mean and log standard deviation, both learned
    >>> round(float(loss(np.zeros((4, 1), "float32"), np.zeros((4, 2), "float32"))), 4)
    0.9189

    Args:
        distribution: a subclass of `Distribution` whose constructor takes the outputs `[N, ..., C]` only.
        reduction: as for every Keras loss.
        name: the loss's name.

    Raises:
        TypeError: if `distribution` is not such a class.
    """

    def __init__(
        self,
        distribution: type[Distribution],
        reduction: str = "sum_over_batch_size",
        name: str = "negative_log_likelihood",
    ):
        if not (isinstance(distribution, type) and issubclass(distribution, Distribution)):
            raise TypeError(_checks.message("distribution", repr(distribution), "a subclass of `Distribution`"))
        super().__init__(name=name, reduction=reduction)
        self.distribution = distribution

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Computes `-log p(y | z)` of each position.

        Args:
            y_true: the labels, as `Distribution.targets` takes them.
            y_pred: the parameters `[N, ..., C]`.

        Returns:
            `[N, ...]`.

        Raises:
            ValueError: if labels and parameters do not fit (in a graph, TensorFlow's own error with that message).
        """
        pd = self.distribution(at_least_single(y_pred))
        targets, conditions = checked_targets_of(pd, y_true)
        # Labels that are not finite make the loss so, as in Keras's losses: whether such a batch is left out is not
        # known here. In a graph the assertions come before whatever is made of the loss, an update of weights for one.
        conditions = [c for c in [*conditions, *same_batch("y", targets, pd)] if not c.finite]
        return -pd.log_prob(Checked(targets, conditions).judged())

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return super().get_config() | {"distribution": self.distribution.__name__}

    @classmethod
    def from_config(cls, config: dict) -> NegativeLogLikelihood:
        """Makes a loss from what `get_config` returned."""
        name = config["distribution"]
        found = keras.saving.get_registered_object(name, module_objects=_subclasses(Distribution))
        if found is None:
            raise ValueError(
                _checks.message(
                    "distribution",
                    repr(name),
                    "the name of a subclass of `Distribution`",
                    "Import the module that defines it before `load_model`, or pass it in `custom_objects`.",
                )
            )
        return cls(**config | {"distribution": found})


def _subclasses(cls: type) -> dict[str, type]:
    """All subclasses that exist, by name; of several the one defined last."""
    found = {}
    for child in cls.__subclasses__():
        found |= {child.__name__: child} | _subclasses(child)
    return found


def likelihood_of(loss: LossLike) -> Likelihood:
    """Finds the likelihood of a loss in the table below.

    | loss | distribution |
    |---|---|
    | `SparseCategoricalCrossentropy`, `CategoricalCrossentropy` | `CategoricalPd` |
    | `BinaryCrossentropy` | `BernoulliPd` |
    | `MeanSquaredError` | `DiagGaussianPd.with_fixed_std(z, sqrt(D / 2))` |
    | a `Distribution` subclass | itself; the loss is its mean negative log-likelihood |

    >>> likelihood_of("mse").reduction
    'sum_over_batch_size'

    Args:
        loss: a Keras loss object or function, its name, or a subclass of `Distribution`. An unknown loss is an
            error. For a model with several outputs, a list or dictionary of losses; see `joint_likelihood`.

    Returns:
        A `Likelihood`.

    Raises:
        ValueError: if the loss is unknown, or has an option with which it is no likelihood.
    """
    if isinstance(loss, Likelihood):
        return loss
    if isinstance(loss, dict | list | tuple) and loss:
        alone = isinstance(loss, list | tuple) and len(loss) == 1
        return likelihood_of(loss[0]) if alone else joint_likelihood(loss)
    if isinstance(loss, type) and issubclass(loss, Distribution):
        return likelihood_of(NegativeLogLikelihood(loss))
    found = loss
    if isinstance(loss, str):
        try:
            found = keras.losses.get(loss)
        except ValueError:
            found = None
    if callable(found) and found in _FUNCTIONS:
        found = _FUNCTIONS[found]()
    make = _TABLE.get(type(found))
    if make is None:
        raise ValueError(
            _checks.message(
                "loss",
                repr(loss),
                "one of " + ", ".join(cls.__name__ for cls in _TABLE) + ", its name, or a `Distribution` subclass",
                "The Fisher needs to know the distribution of which the loss is the negative log-likelihood; write "
                "a `tf_natgrad.distributions.Distribution` for a loss of your own.",
            )
        )
    config = {"axis": -1, "ignore_class": None, "label_smoothing": 0.0, "from_logits": False}
    config |= _keras.options_of(found)
    for option, allowed in (("axis", (-1,)), ("ignore_class", (None,))):
        if config[option] not in allowed:
            raise ValueError(
                _checks.message(
                    "loss",
                    f"{type(found).__name__}({option}={config[option]!r})",
                    f"{option}={allowed[0]!r}",
                    "Use a `sample_weight` of zero to leave positions out." if option == "ignore_class" else "",
                )
            )
    if found.reduction not in (*MEAN_REDUCTIONS, "sum", "mean_with_sample_weight"):
        raise ValueError(
            _checks.message("loss", f"reduction={found.reduction!r}", "a loss that is reduced to a scalar")
        )
    return dataclasses.replace(make(found, config), loss=loss, reduction=found.reduction)


def joint_likelihood(losses: Any, loss_weights: Any = None) -> Likelihood:
    """Combines the losses of several outputs into one likelihood, which can be passed in place of a loss.

    >>> joint_likelihood(["mse", "mse"], loss_weights=[1.0, 0.5]).reduction
    'sum_over_batch_size'

    Args:
        losses: a list in the order of the model's outputs, or a dictionary by their names, of losses or `None`; see
            `likelihood_of`.
        loss_weights: a number >= 0 for each loss, in a list or dictionary like `losses`; by default 1.

    Returns:
        A likelihood whose loss is the weighted sum of the losses, as in Keras.

    Raises:
        ValueError: if the structures differ, a loss weight is negative, no output has a loss, or the losses have
            different reductions.
        TypeError: if a loss or weight is of the wrong type.
    """
    expected = "a list or dictionary of losses, one for each output"
    if not isinstance(losses, dict | list | tuple):
        raise TypeError(_checks.message("losses", _checks.described(losses), expected))
    names = tuple(losses) if isinstance(losses, dict) else None
    flat = list(losses.values()) if isinstance(losses, dict) else list(losses)
    weights = loss_weights
    if weights is None:
        weights = [1.0] * len(flat)
    elif isinstance(weights, dict) and names is not None and set(weights) <= set(names):
        weights = [weights.get(name, 1.0) for name in names]
    if not isinstance(weights, list | tuple) or len(weights) != len(flat):
        raise ValueError(
            _checks.message("loss_weights", repr(loss_weights), f"{len(flat)} numbers, given as the losses are")
        )
    parts = []
    for loss, weight in zip(flat, weights, strict=True):
        weight = 1.0 if weight is None else weight
        _checks.check_number("loss_weights", weight, minimum=0.0)
        parts.append(None if loss is None else (likelihood_of(loss), float(weight)))
    reductions = sorted({part[0].reduction for part in parts if part is not None})
    if len(reductions) != 1:
        raise ValueError(
            _checks.message(
                "losses",
                f"losses with the reductions {', '.join(reductions)}" if reductions else "no loss at all",
                "losses that are all reduced in the same way" if reductions else "a loss for one output at least",
            )
        )
    return JointLikelihood(losses, reduction=reductions[0], parts=tuple(parts), names=names)


def _cross_entropy(loss: keras.losses.Loss, config: dict, *, sparse: bool) -> Likelihood:
    smoothing = 0.0 if sparse else config["label_smoothing"]

    def make(outputs: tf.Tensor) -> Distribution:
        logits = _keras.logits_behind(outputs, "Softmax")
        if logits is None and not config["from_logits"]:
            return CategoricalPd.from_probabilities(at_least_single(outputs))
        return CategoricalPd(at_least_single(outputs if logits is None else logits))

    def targets(y: TensorLike, pd: Distribution) -> Checked:
        if sparse:
            return class_indices(y, pd, "For one-hot targets use `CategoricalCrossentropy`.")
        y, conditions = soft_targets(y, pd)
        return Checked(y * (1.0 - smoothing) + smoothing / y.shape[-1] if smoothing else y, conditions)

    return Likelihood(None, make, targets)


def _binary(loss: keras.losses.Loss, config: dict) -> Likelihood:
    smoothing = config["label_smoothing"]

    def make(outputs: tf.Tensor) -> Distribution:
        logits = _keras.logits_behind(outputs, "Sigmoid")
        if logits is None and not config["from_logits"]:
            return BernoulliPd.from_probabilities(at_least_single(outputs))
        return BernoulliPd(at_least_single(outputs if logits is None else logits))

    def targets(y: TensorLike, pd: Distribution) -> Checked:
        y, conditions = pd.checked_targets(y)
        return Checked(y * (1.0 - smoothing) + 0.5 * smoothing if smoothing else y, conditions)

    return Likelihood(None, make, targets, mean_over_outputs=True)


def _squared_error(loss: keras.losses.Loss, config: dict) -> Likelihood:
    def make(outputs: tf.Tensor) -> Distribution:
        return DiagGaussianPd.with_fixed_std(at_least_single(outputs), math.sqrt(outputs.shape[-1] / 2.0))

    return Likelihood(None, make, _own_targets)


def _own(loss: NegativeLogLikelihood, config: dict) -> Likelihood:
    def make(outputs: tf.Tensor) -> Distribution:
        return loss.distribution(at_least_single(outputs))

    return Likelihood(None, make, _own_targets)


def _own_targets(y: TensorLike, pd: Distribution) -> Checked:
    return checked_targets_of(pd, y)


_TABLE: dict[type, Callable[[keras.losses.Loss, dict], Likelihood]] = {
    keras.losses.SparseCategoricalCrossentropy: functools.partial(_cross_entropy, sparse=True),
    keras.losses.CategoricalCrossentropy: functools.partial(_cross_entropy, sparse=False),
    keras.losses.BinaryCrossentropy: _binary,
    keras.losses.MeanSquaredError: _squared_error,
    NegativeLogLikelihood: _own,
}
_FUNCTIONS: dict[Callable, type] = {
    keras.losses.sparse_categorical_crossentropy: keras.losses.SparseCategoricalCrossentropy,
    keras.losses.categorical_crossentropy: keras.losses.CategoricalCrossentropy,
    keras.losses.binary_crossentropy: keras.losses.BinaryCrossentropy,
    keras.losses.mean_squared_error: keras.losses.MeanSquaredError,
}

__all__ = ["NegativeLogLikelihood", "joint_likelihood", "likelihood_of"]
