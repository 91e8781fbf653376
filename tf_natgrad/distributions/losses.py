"""The one table from Keras losses to the distributions of which they are the negative log-likelihood."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import LossLike, TensorLike
from tf_natgrad.distributions._base import Distribution
from tf_natgrad.distributions.bernoulli import BernoulliPd, BernoulliProbabilitiesPd
from tf_natgrad.distributions.categorical import CategoricalPd, ProbabilitiesPd, class_indices, soft_targets
from tf_natgrad.distributions.gaussian import DiagGaussianPd

_MEAN_REDUCTIONS = ("sum_over_batch_size", "mean")
_HALF = (tf.float16, tf.bfloat16)

# How far outputs that are taken as probabilities may be from [0, 1], and their sum from one. In half precision the
# sum over many classes is rounded at each class, whoever takes it.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 3e-2


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """A loss read as `sum_i w_i (-log p(y_i | z_i))`, up to a constant.

    Attributes:
        loss: what the user gave (a Keras loss, its name, or a distribution class).
        make_distribution: from network outputs `[N, ..., C]` to the distribution, whose `parameters` are what is
            to be differentiated (the logits, where the outputs come straight from a softmax or sigmoid).
        make_targets: from the user's `y` and the distribution to what `log_prob` takes, checked.
        reduction: Keras's name of how the losses of the batch are summed up.
        mean_over_outputs: whether the loss is a mean over the C outputs too (binary cross-entropy).
    """

    loss: LossLike
    make_distribution: Callable[[tf.Tensor], Distribution]
    make_targets: Callable[[TensorLike, Distribution], tf.Tensor]
    reduction: str = "sum_over_batch_size"
    mean_over_outputs: bool = False

    def distribution(self, outputs: tf.Tensor) -> Distribution:
        """The distribution that the network's outputs `[N, ..., C]` stand for.

        Raises:
            TypeError: if the model has several outputs.
            ValueError: if there is no axis of outputs.
        """
        if isinstance(outputs, dict | list | tuple):
            raise TypeError(
                _checks.message(
                    "model",
                    f"{len(outputs)} outputs",
                    "one output tensor",
                    "Concatenate the outputs, or train the heads one by one.",
                )
            )
        outputs = outputs if tf.is_tensor(outputs) else _checks.as_tensor("outputs", outputs)
        if outputs.shape.rank is None or outputs.shape.rank < 2 or outputs.shape[-1] is None:
            raise ValueError(
                _checks.message("model", f"outputs of shape {outputs.shape}", "outputs of shape [batch, ..., C]")
            )
        return self.make_distribution(outputs)

    def targets(self, y: TensorLike, pd: Distribution) -> tf.Tensor:
        """`y` in the form that `pd.log_prob` takes.

        Raises:
            ValueError: if its shape or its labels do not fit the distribution.
        """
        _checks.check_instance("pd", pd, Distribution, "a `Distribution`")
        targets = self.make_targets(_checks.as_tensor("y", y), pd)
        _require_same_batch("y", targets, pd)
        return targets

    def check_outputs(self, outputs: tf.Tensor, pd: Distribution, weights: tf.Tensor) -> None:
        """Refuses outputs that are taken as probabilities and are none, such as logits.

        Args:
            outputs: the network's outputs.
            pd: their distribution.
            weights: of the positions; those of weight zero are left out.

        Raises:
            ValueError: if an output lies outside [0, 1] or, for a categorical, a row does not sum to one.
        """
        if not isinstance(pd, ProbabilitiesPd | BernoulliProbabilitiesPd):
            return
        p = pd.parameters
        tolerance = _HALF_TOLERANCE if outputs.dtype in _HALF else _TOLERANCE
        sound = (tf.reduce_min(p, -1) >= -tolerance) & (tf.reduce_max(p, -1) <= 1.0 + tolerance)
        total = tf.reduce_sum(p, -1)
        expected, layer = "outputs in [0, 1]", "sigmoid"
        if isinstance(pd, ProbabilitiesPd):
            sound &= tf.abs(total - 1.0) <= tolerance
            expected, layer = "outputs in [0, 1] that sum to 1", "softmax"
        _checks.require(
            # What is not finite is found out by those who look for it.
            tf.reduce_all(sound | ~tf.math.is_finite(total) | tf.equal(weights, 0)),
            _checks.message(
                "loss",
                "outputs that are no probabilities, with from_logits=False",
                expected,
                f"For logits pass `from_logits=True` to the loss, or end the model in a {layer}.",
            ),
        )

    def weights(self, outputs: tf.Tensor, pd: Distribution, sample_weight: TensorLike | None) -> tf.Tensor:
        """`w`, the weight of each position `[N, ...]`, as Keras's reduction has it.

        Args:
            outputs: the network's outputs (they may carry a Keras mask).
            pd: their distribution.
            sample_weight: `[N]`, `[N, 1]` or one weight per position, or `None`.

        Returns:
            Non-negative weights, `1 / N` each for a plain mean.

        Raises:
            ValueError: if the weights have a wrong shape, or one is negative.
        """
        _checks.check_instance("pd", pd, Distribution, "a `Distribution`")
        dtype = pd.parameters.dtype
        shape = tf.shape(pd.parameters)[:-1]
        weights = tf.ones(shape, dtype)
        count = tf.cast(tf.reduce_prod(shape), dtype)
        mask = _keras.mask_of(outputs)
        if mask is not None:
            weights *= tf.cast(mask, dtype)
            if self.reduction in _MEAN_REDUCTIONS:
                count = tf.reduce_sum(weights)
        if sample_weight is not None:
            given = self._per_position(tf.cast(_checks.as_tensor("sample_weight", sample_weight), dtype), pd)
            _require_same_batch("sample_weight", given, pd)
            _checks.require_finite("sample_weight", "finite weights >= 0", given)
            # What is not finite was seen to, or the batch is to be left out.
            _checks.require(
                tf.reduce_all((given >= 0) | ~tf.math.is_finite(given)),
                _checks.message("sample_weight", "a negative weight", "finite weights >= 0"),
            )
            weights *= given
            if self.reduction == "mean_with_sample_weight":
                # Keras divides by the sum of the weights as they were given: one per example counts once, not once
                # for each position, unless a mask has made it one per position.
                count = tf.reduce_sum(given if mask is None else weights)
        elif self.reduction == "mean_with_sample_weight":
            count = tf.reduce_sum(weights)
        if self.reduction == "sum":
            count = tf.ones([], dtype)
        if self.mean_over_outputs:
            count *= pd.parameters.shape[-1]
        return tf.math.divide_no_nan(weights, count)

    def _per_position(self, sample_weight: tf.Tensor, pd: Distribution) -> tf.Tensor:
        target = pd.parameters.shape[:-1]
        given = sample_weight
        if given.shape.rank == target.rank + 1 and given.shape[-1] == 1:
            given = tf.squeeze(given, -1)
        if given.shape.rank is not None and given.shape.rank < target.rank:
            given = tf.reshape(given, tf.concat([tf.shape(given), [1] * (target.rank - given.shape.rank)], 0))
        fits = given.shape.rank == target.rank and all(
            a is None or b is None or a == b or (a == 1 and axis > 0)
            for axis, (a, b) in enumerate(zip(given.shape, target, strict=True))
        )
        if not fits:
            raise ValueError(
                _checks.message(
                    "sample_weight",
                    f"shape {tuple(sample_weight.shape)}",
                    f"one weight per example, or shape {tuple(target)}",
                )
            )
        return given


@keras.saving.register_keras_serializable(package="tf_natgrad")
class NegativeLogLikelihood(keras.losses.Loss):
    """The negative log-likelihood of a distribution class, as a Keras loss: how a loss of one's own reaches `fit`.

    The network's outputs are the parameters of the distribution. It is saved by the name of the class: define or
    import the class before `keras.saving.load_model`, or pass it in `custom_objects`.

    >>> import keras, numpy as np
    >>> from tf_natgrad.distributions import DiagGaussianPd
    >>> loss = NegativeLogLikelihood(DiagGaussianPd)  # mean and log standard deviation, both learned
    >>> round(float(loss(np.zeros((4, 1), "float32"), np.zeros((4, 2), "float32"))), 4)
    0.9189

    Args:
        distribution: a subclass of `Distribution` that is made from the outputs `[N, ..., C]` alone.
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
        """`-log p(y | z)` of each position.

        Args:
            y_true: the labels, as `Distribution.targets` takes them.
            y_pred: the parameters `[N, ..., C]`.

        Returns:
            `[N, ...]`.

        Raises:
            ValueError: if labels and parameters do not fit (in a graph, TensorFlow's own error with that message).
        """
        pd = self.distribution(_at_least_single(y_pred))
        # Labels that are not finite make the loss so, as in Keras's losses: whether such a batch is left out is not
        # known here.
        with _checks.collected(finite_only_collected=True) as conditions:
            targets = pd.targets(y_true)
            _require_same_batch("y", targets, pd)
        # In a graph the assertions come before whatever is made of the loss, an update of weights for one.
        with tf.control_dependencies(conditions):
            return -pd.log_prob(tf.identity(targets))

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return super().get_config() | {"distribution": self.distribution.__name__}

    @classmethod
    def from_config(cls, config: dict) -> NegativeLogLikelihood:
        """A loss from what `get_config` returned."""
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
    """Reads a loss as a likelihood.

    | loss | distribution |
    |---|---|
    | `SparseCategoricalCrossentropy`, `CategoricalCrossentropy` | `CategoricalPd` |
    | `BinaryCrossentropy` | `BernoulliPd` |
    | `MeanSquaredError` | `DiagGaussianPd.with_fixed_std(z, sqrt(D / 2))` |
    | a `Distribution` subclass | itself; the loss is its mean negative log-likelihood |

    >>> likelihood_of("mse").reduction
    'sum_over_batch_size'

    Args:
        loss: a Keras loss object or function, its name, or a subclass of `Distribution`. It is never guessed.

    Returns:
        A `Likelihood`.

    Raises:
        ValueError: if the loss is unknown, or has an option that is not a likelihood.
    """
    if isinstance(loss, Likelihood):
        return loss
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
    if found.reduction not in (*_MEAN_REDUCTIONS, "sum", "mean_with_sample_weight"):
        raise ValueError(
            _checks.message("loss", f"reduction={found.reduction!r}", "a loss that is reduced to a scalar")
        )
    return dataclasses.replace(make(found, config), loss=loss, reduction=found.reduction)


def _cross_entropy(loss: keras.losses.Loss, config: dict, *, sparse: bool) -> Likelihood:
    smoothing = 0.0 if sparse else config["label_smoothing"]

    def make(outputs: tf.Tensor) -> Distribution:
        logits = _keras.logits_behind(outputs, "Softmax")
        if logits is None and not config["from_logits"]:
            return CategoricalPd.from_probabilities(_at_least_single(outputs))
        return CategoricalPd(_at_least_single(outputs if logits is None else logits))

    def targets(y: TensorLike, pd: Distribution) -> tf.Tensor:
        if sparse:
            return class_indices(y, pd, "For one-hot targets use `CategoricalCrossentropy`.")
        y = soft_targets(y, pd)
        return y * (1.0 - smoothing) + smoothing / y.shape[-1] if smoothing else y

    return Likelihood(None, make, targets)


def _binary(loss: keras.losses.Loss, config: dict) -> Likelihood:
    smoothing = config["label_smoothing"]

    def make(outputs: tf.Tensor) -> Distribution:
        logits = _keras.logits_behind(outputs, "Sigmoid")
        if logits is None and not config["from_logits"]:
            return BernoulliPd.from_probabilities(_at_least_single(outputs))
        return BernoulliPd(_at_least_single(outputs if logits is None else logits))

    def targets(y: TensorLike, pd: Distribution) -> tf.Tensor:
        y = pd.targets(y)
        return y * (1.0 - smoothing) + 0.5 * smoothing if smoothing else y

    return Likelihood(None, make, targets, mean_over_outputs=True)


def _squared_error(loss: keras.losses.Loss, config: dict) -> Likelihood:
    def make(outputs: tf.Tensor) -> Distribution:
        return DiagGaussianPd.with_fixed_std(_at_least_single(outputs), math.sqrt(outputs.shape[-1] / 2.0))

    return Likelihood(None, make, _own_targets)


def _own(loss: NegativeLogLikelihood, config: dict) -> Likelihood:
    def make(outputs: tf.Tensor) -> Distribution:
        return loss.distribution(_at_least_single(outputs))

    return Likelihood(None, make, _own_targets)


def _own_targets(y: TensorLike, pd: Distribution) -> tf.Tensor:
    return pd.targets(y)


def _at_least_single(outputs: tf.Tensor) -> tf.Tensor:
    return tf.cast(outputs, tf.float32) if outputs.dtype in _HALF else outputs


def _require_same_batch(argument: str, tensor: tf.Tensor, pd: Distribution) -> None:
    """Refuses a batch whose parts have different numbers of examples."""
    static, expected = tensor.shape[0], pd.parameters.shape[0]
    text = _checks.message(
        argument,
        "another number of examples" if static is None else f"{static} examples",
        "as many as there are inputs" if expected is None else f"{expected}, as many as there are inputs",
    )
    same = tf.equal(tf.shape(tensor)[0], tf.shape(pd.parameters)[0])
    _checks.require(same if static is None or expected is None else tf.constant(static == expected), text)


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

__all__ = ["Likelihood", "likelihood_of"]
