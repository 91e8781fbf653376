"""A loss as a likelihood: the distribution of the outputs, the weights of the positions, and the labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_natgrad import _checks, _conditions, _keras, _replicas
from tf_natgrad._conditions import Checked, Condition, judge
from tf_natgrad._typing import LossLike, ModelLike, TensorLike
from tf_natgrad.distributions._base import Distribution
from tf_natgrad.distributions.bernoulli import BernoulliProbabilitiesPd
from tf_natgrad.distributions.categorical import ProbabilitiesPd

# Keras's names of the reductions that are a mean over all positions.
MEAN_REDUCTIONS = ("sum_over_batch_size", "mean")
_HALF = (tf.float16, tf.bfloat16)

# How far outputs that are taken as probabilities may be from [0, 1], and their sum from one. In half precision the
# sum over many classes is rounded at each class, whoever takes it.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 3e-2


class Reading(NamedTuple):
    """The distribution of a batch's outputs, with the weights of its positions.

    Attributes:
        pd: the distribution of the outputs.
        weights: `w` of each position, `[N, ...]`.
        conditions: on outputs and sample weights, not yet judged.
    """

    pd: Distribution
    weights: tf.Tensor
    conditions: list[Condition]


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """A loss in the form `sum_i w_i (-log p(y_i | z_i))`, up to a constant.

    Attributes:
        loss: the loss that the user passed (a Keras loss, its name, or a distribution class).
        make_distribution: a function from network outputs `[N, ..., C]` to the distribution. Its `parameters` are
            differentiated: they are the logits if the outputs come directly from a softmax or sigmoid.
        make_targets: a function from the user's `y` and the distribution to a `Checked` with the labels that
            `log_prob` takes.
        reduction: Keras's name of the reduction of the batch's losses.
        mean_over_outputs: whether the loss is a mean over the C outputs too (binary cross-entropy).
    """

    loss: LossLike
    make_distribution: Callable[[tf.Tensor], Distribution] | None = None
    make_targets: Callable[[TensorLike, Distribution], Checked] | None = None
    reduction: str = "sum_over_batch_size"
    mean_over_outputs: bool = False

    def distribution(self, outputs: tf.Tensor) -> Distribution:
        """Makes the distribution of the network's outputs `[N, ..., C]`.

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
                    "For several outputs give one loss each, as a list or dictionary like the outputs.",
                )
            )
        outputs = outputs if tf.is_tensor(outputs) else _checks.as_tensor("outputs", outputs)
        if outputs.shape.rank is None or outputs.shape.rank < 2 or outputs.shape[-1] is None:
            raise ValueError(
                _checks.message("model", f"outputs of shape {outputs.shape}", "outputs of shape [batch, ..., C]")
            )
        return self.make_distribution(outputs)

    def parameters(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns the parameters of that distribution.

        Args:
            outputs: the network's outputs `[N, ..., C]`.

        Returns:
            A tensor.
        """
        return self.distribution(outputs).parameters

    def read(self, outputs: tf.Tensor, sample_weight: TensorLike | None) -> Reading:
        """Computes the distribution of a batch's outputs and the weights of its positions.

        In a replica of several the weights are those of the global batch.

        Args:
            outputs: the network's outputs `[N, ..., C]`.
            sample_weight: see `weights`.

        Returns:
            A `Reading`.

        Raises:
            ValueError: if shapes are known not to fit.
        """
        pd = self.distribution(outputs)
        weights, conditions = self.checked_weights(outputs, pd, sample_weight)
        return Reading(pd, weights, [*conditions, *self.output_conditions(outputs, pd, weights)])

    def for_model(self, model: ModelLike) -> Likelihood:
        """Returns the same likelihood with its parts in the order of a model's outputs.

        Args:
            model: a Keras model.

        Returns:
            A `Likelihood`.
        """
        del model
        return self

    def targets(self, y: TensorLike, pd: Distribution) -> tf.Tensor:
        """Converts `y` to the form that `pd.log_prob` takes, and checks it.

        Raises:
            ValueError: if its shape or its labels do not fit the distribution.
        """
        return self.checked_targets(y, pd).judged()

    def checked_targets(self, y: TensorLike, pd: Distribution) -> Checked:
        """Converts `y` to the form that `pd.log_prob` takes; returns the conditions on it without judging them.

        Raises:
            ValueError: if its shape is known not to fit.
        """
        _checks.check_instance("pd", pd, Distribution, "a `Distribution`")
        targets, conditions = self.make_targets(_checks.as_tensor("y", y), pd)
        return Checked(targets, [*conditions, *same_batch("y", targets, pd)])

    def check_outputs(self, outputs: tf.Tensor, pd: Distribution, weights: tf.Tensor) -> None:
        """Raises an error if outputs that should be probabilities are not, such as logits.

        Args:
            outputs: the network's outputs.
            pd: the distribution of the outputs.
            weights: of the positions; positions of weight zero are not checked.

        Raises:
            ValueError: if an output lies outside [0, 1] or, for a categorical, a row does not sum to one.
        """
        judge(self.output_conditions(outputs, pd, weights))

    def output_conditions(self, outputs: tf.Tensor, pd: Distribution, weights: tf.Tensor) -> list[Condition]:
        """Returns the condition that outputs are probabilities, if the loss takes them as such.

        Args:
            outputs: the network's outputs.
            pd: the distribution of the outputs.
            weights: of the positions; positions of weight zero are not checked.

        Returns:
            One condition, or an empty list.
        """
        if not isinstance(pd, ProbabilitiesPd | BernoulliProbabilitiesPd):
            return []
        p = pd.parameters
        tolerance = _HALF_TOLERANCE if outputs.dtype in _HALF else _TOLERANCE
        sound = (tf.reduce_min(p, -1) >= -tolerance) & (tf.reduce_max(p, -1) <= 1.0 + tolerance)
        total = tf.reduce_sum(p, -1)
        expected, layer = "outputs in [0, 1]", "sigmoid"
        if isinstance(pd, ProbabilitiesPd):
            sound &= tf.abs(total - 1.0) <= tolerance
            expected, layer = "outputs in [0, 1] that sum to 1", "softmax"
        # What is not finite is found out by those who look for it.
        sound = tf.reduce_all(sound | ~tf.math.is_finite(total) | tf.equal(weights, 0))
        text = _checks.message(
            "loss",
            "outputs that are no probabilities, with from_logits=False",
            expected,
            f"For logits pass `from_logits=True` to the loss, or end the model in a {layer}.",
        )
        return [Condition(sound, text)]

    def weights(self, outputs: tf.Tensor, pd: Distribution, sample_weight: TensorLike | None) -> tf.Tensor:
        """Computes `w`, the weight of each position `[N, ...]`, by the rule of Keras's reduction.

        Args:
            outputs: the network's outputs (they may carry a Keras mask).
            pd: their distribution.
            sample_weight: `[N]`, `[N, 1]` or one weight per position, or `None`.

        Returns:
            Non-negative weights, `1 / N` each for a plain mean.

        Raises:
            ValueError: if the weights have a wrong shape, or one is negative.
        """
        return self.checked_weights(outputs, pd, sample_weight).judged()

    def checked_weights(self, outputs: tf.Tensor, pd: Distribution, sample_weight: TensorLike | None) -> Checked:
        """Computes `w` as `weights` does; returns the conditions on `sample_weight` without judging them.

        Args:
            outputs: the network's outputs (they may carry a Keras mask).
            pd: their distribution.
            sample_weight: `[N]`, `[N, 1]` or one weight per position, or `None`.

        Returns:
            Weights `[N, ...]`, with the condition that the sample weights are finite and not negative.

        Raises:
            ValueError: if the shape is known not to fit.
        """
        _checks.check_instance("pd", pd, Distribution, "a `Distribution`")
        conditions = []
        dtype = pd.parameters.dtype
        shape = tf.shape(pd.parameters)[:-1]
        weights = tf.ones(shape, dtype)
        count = tf.cast(tf.reduce_prod(shape), dtype)
        mask = _keras.mask_of(outputs)
        if mask is not None:
            weights *= tf.cast(mask, dtype)
            if self.reduction in MEAN_REDUCTIONS:
                count = tf.reduce_sum(weights)
        if sample_weight is not None:
            given = self._per_position(tf.cast(_checks.as_tensor("sample_weight", sample_weight), dtype), pd)
            conditions = [
                *same_batch("sample_weight", given, pd),
                _conditions.finite("sample_weight", "finite weights >= 0", given),
                Condition(
                    tf.reduce_all((given >= 0) | ~tf.math.is_finite(given)),
                    _checks.message("sample_weight", "a negative weight", "finite weights >= 0"),
                ),
            ]
            weights *= given
            if self.reduction == "mean_with_sample_weight":
                # Keras divides by the sum of the weights as they were given: one per example counts once, not once
                # for each position, unless a mask has made it one per position.
                count = tf.reduce_sum(given if mask is None else weights)
        elif self.reduction == "mean_with_sample_weight":
            count = tf.reduce_sum(weights)
        count = tf.ones([], dtype) if self.reduction == "sum" else _replicas.total(count)
        if self.mean_over_outputs:
            count *= pd.parameters.shape[-1]
        return Checked(tf.math.divide_no_nan(weights, count), conditions)

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


def at_least_single(outputs: tf.Tensor) -> tf.Tensor:
    """Returns outputs of half precision in float32, others as they are."""
    return tf.cast(outputs, tf.float32) if outputs.dtype in _HALF else outputs


def same_batch(argument: str, tensor: tf.Tensor, pd: Distribution) -> list[Condition]:
    """The condition that the parts of a batch have the same number of examples; none where that is known."""
    static, expected = tensor.shape[0], pd.parameters.shape[0]
    text = _checks.message(
        argument,
        "another number of examples" if static is None else f"{static} examples",
        "as many as there are inputs" if expected is None else f"{expected}, as many as there are inputs",
    )
    if static is None or expected is None:
        return [Condition(tf.equal(tf.shape(tensor)[0], tf.shape(pd.parameters)[0]), text)]
    if static != expected:
        raise ValueError(text)
    return []


__all__ = ["MEAN_REDUCTIONS", "Likelihood", "Reading", "at_least_single", "same_batch"]
