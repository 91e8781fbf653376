"""The interface of an output distribution: log-probabilities, samples, divergences and the factor of the Fisher."""

from __future__ import annotations

import abc

import tensorflow as tf

from tf_natgrad import _checks, _conditions
from tf_natgrad._conditions import Checked, Condition
from tf_natgrad._typing import TensorLike


class Distribution(abc.ABC):
    """A batch of distributions whose parameters `[..., C]` are the outputs of a network.

    The Fisher of the distribution in these parameters is `L = S S^T`, `[C, C]` for each entry of the batch. The package
    uses the factor `S` (`[C, R]`) only, so a subclass defines `fisher_rank`, `log_prob`, `sample`, `kl`,
    `fisher_factor_columns` and `score_factor`; all other methods are computed from these.

    If a subclass also defines `event_size`, the numbers in a single draw, the shape of its labels is checked.

    Args:
        parameters: floating-point tensor `[..., C]`.
    """

    # D, where a value is `[..., D]`; `None` where that is not said.
    event_size: int | None = None
    # What the constructor's argument is called, for messages.
    _argument = "parameters"

    def __init__(self, parameters: TensorLike):
        expected = "a floating-point tensor [..., C]"
        self.parameters = _checks.as_tensor(self._argument, parameters, expected=expected)
        if not self.parameters.dtype.is_floating:
            raise TypeError(_checks.message(self._argument, _checks.described(self.parameters), expected))
        if self.parameters.shape.rank == 0:
            raise ValueError(_checks.message(self._argument, "a scalar", expected))

    @property
    @abc.abstractmethod
    def fisher_rank(self) -> int:
        """The number of columns of the factor `S`, R."""

    @abc.abstractmethod
    def log_prob(self, value: TensorLike) -> tf.Tensor:
        """Computes the log-probability of `value`, `[...]`."""

    @abc.abstractmethod
    def sample(self, seed: TensorLike) -> tf.Tensor:
        """Draws one value per distribution; the draw depends on the `[2]` integer `seed` only."""

    @abc.abstractmethod
    def kl(self, other: Distribution) -> tf.Tensor:
        """Computes `KL(self || other)`, `[...]`, in nats."""

    @abc.abstractmethod
    def fisher_factor_columns(self) -> tf.Tensor:
        """Computes the columns of `S`, as `[R, ..., C]`."""

    @abc.abstractmethod
    def score_factor(self, value: TensorLike) -> tf.Tensor:
        """Computes `u` `[..., R]` such that `S u` is the gradient of `-log_prob(value)` in the parameters."""

    def targets(self, value: TensorLike) -> tf.Tensor:
        """Converts `value` to the form that `log_prob` takes, and checks it. `log_prob` itself checks nothing.

        With an `event_size` D that form is `[..., D]`. If D = 1, the last axis may be missing; a last axis of length 1
        that is one too many is removed. Without an `event_size` the value is returned unchanged.

        Args:
            value: labels, one or D numbers for each distribution.

        Returns:
            A tensor.

        Raises:
            ValueError: if the shape or the values do not fit.
        """
        return self.checked_targets(value).judged()

    def checked_targets(self, value: TensorLike) -> Checked:
        """Converts `value` to the form that `log_prob` takes; returns the conditions on it without judging them.

        Distributions whose labels need other checks override this method. `targets` calls it and judges the conditions.

        Args:
            value: labels, one or D numbers for each distribution.

        Returns:
            A tensor with its conditions.

        Raises:
            ValueError: if the shape is known not to fit.
        """
        value = tf.convert_to_tensor(value)
        if self.event_size is None:
            return Checked(value, [])
        return event_targets(value, self.parameters, self.event_size)

    def mode(self) -> tf.Tensor:
        """Returns the most probable value."""
        raise NotImplementedError(f"{type(self).__name__} defines no mode")

    def entropy(self) -> tf.Tensor:
        """Computes the entropy, `[...]`, in nats."""
        raise NotImplementedError(f"{type(self).__name__} defines no entropy")

    def self_kl(self) -> tf.Tensor:
        """Computes `KL(self || stop_gradient(self))`, `[...]`, whose value is zero and whose Hessian is the Fisher.

        Without `stop_gradient` the value would be identically zero, and its Hessian the zero matrix.
        """
        return self.kl(self.with_parameters(tf.stop_gradient(self.parameters)))

    def with_parameters(self, parameters: tf.Tensor) -> Distribution:
        """Returns a distribution of the same kind with other parameters."""
        return type(self)(parameters)

    def fisher_factor(self, vector: TensorLike) -> tf.Tensor:
        """Computes `S v`: `[..., R] -> [..., C]`."""
        vector = self._operand(vector, self.fisher_rank)
        return tf.einsum("...r,r...c->...c", vector, self.fisher_factor_columns())

    def fisher_factor_transpose(self, vector: TensorLike) -> tf.Tensor:
        """Computes `S^T v`: `[..., C] -> [..., R]`."""
        vector = self._operand(vector, self.parameters.shape[-1])
        return tf.einsum("...c,r...c->...r", vector, self.fisher_factor_columns())

    def sampled_score(self, seed: TensorLike) -> tf.Tensor:
        """Computes the gradient of `-log_prob` of a label drawn from the distribution itself, `[..., C]`.

        The mean of its outer product over seeds is the Fisher `L`.

        Args:
            seed: two integers.

        Returns:
            A tensor like the parameters.
        """
        return self.score_of_drawn(self.sample(seed))

    def score_of_drawn(self, value: TensorLike) -> tf.Tensor:
        """Computes what `sampled_score` returns, from labels that were drawn already.

        Args:
            value: what `sample` returned.

        Returns:
            A tensor like the parameters.
        """
        return self.fisher_factor(self.score_factor(value))

    def fisher_matvec(self, vector: TensorLike) -> tf.Tensor:
        """Computes `L v = S S^T v`: `[..., C] -> [..., C]`."""
        return self.fisher_factor(self.fisher_factor_transpose(vector))

    def _operand(self, vector: TensorLike, size: int) -> tf.Tensor:
        """Converts a vector for each distribution, `[..., size]`, and checks its shape."""
        vector = _checks.as_tensor("vector", vector, self.parameters.dtype)
        expected = [*self.parameters.shape[:-1], size]
        if vector.shape.rank is None or list(vector.shape) == expected:
            return vector
        try:
            tf.broadcast_static_shape(vector.shape, tf.TensorShape(expected))
            vector.shape[-1:].assert_is_compatible_with([size])
        except ValueError:
            raise ValueError(_checks.message("vector", f"shape {vector.shape}", f"shape {expected}")) from None
        return vector

    def _value(self, value: TensorLike) -> tf.Tensor:
        """Labels as numbers; whether they fit is for losses to look at."""
        return _checks.as_tensor("value", value)

    def _same_kind(self, other: Distribution, kind: type[Distribution]) -> None:
        """Refuses what a divergence cannot be taken to."""
        _checks.check_instance("other", other, kind, f"a `{kind.__name__}`")


def checked_targets_of(pd: Distribution, value: TensorLike) -> Checked:
    """Labels in the form that a distribution takes, also of a class that overrides `targets` and judges itself.

    Args:
        pd: a distribution.
        value: labels.

    Returns:
        A tensor with its conditions.
    """
    judges_itself = type(pd).targets is not Distribution.targets
    return Checked(pd.targets(value), []) if judges_itself else pd.checked_targets(value)


def event_targets(value: TensorLike, parameters: tf.Tensor, size: int) -> Checked:
    """Targets `[..., size]` for distributions with these parameters `[..., C]`, in the dtype of the parameters.

    Args:
        value: labels of that shape, without a last axis of length one, or with one too many.
        parameters: of the distributions.
        size: the numbers that one draw has.

    Returns:
        A tensor, on condition that its shape fits and that it is finite.

    Raises:
        ValueError: if the shape is known to be another one.
    """
    value = tf.cast(value, parameters.dtype)
    y, rank = value, parameters.shape.rank
    if y.shape.rank == rank - 1 and size == 1:
        y = y[..., None]
    elif y.shape.rank == rank + 1 and y.shape[-1] == 1:
        y = tf.squeeze(y, -1)
    y, conditions = of_shape(
        y, parameters, [size], f"shape {tuple(value.shape)}" if value.shape.rank else "other targets"
    )
    return Checked(y, [*conditions, _conditions.finite("y", "finite targets", y)])


def of_shape(
    y: tf.Tensor, parameters: tf.Tensor, event: list[int], received: str, noun: str = "targets", remedy: str = ""
) -> Checked:
    """Targets on condition that they are `[..., *event]` for parameters `[..., C]`.

    Args:
        y: the targets.
        parameters: of the distributions.
        event: the shape of one draw.
        received: a description of the argument, for the message.
        noun: what the targets are, for the message.
        remedy: what the user can do, for the message.

    Returns:
        `y` with its rank known; zeros of the right shape where the condition does not hold.

    Raises:
        ValueError: if the shape is known to be another one.
    """
    expected = parameters.shape[:-1].concatenate(event)
    text = _checks.message("y", received, f"{noun} of shape {tuple(expected)}", remedy)
    if not y.shape.is_compatible_with(expected):
        raise ValueError(text)
    if y.shape[1:].is_fully_defined() and expected[1:].is_fully_defined():
        # Only the numbers of examples may differ, of which `Likelihood.targets` says more.
        return Checked(y, [])
    shape = tf.concat([tf.shape(parameters)[:-1], event], 0)
    same = tf.constant(True) if y.shape.rank is not None else tf.equal(tf.rank(y), expected.rank)
    same = tf.cond(same, lambda: tf.reduce_all(tf.equal(tf.shape(y), shape)), lambda: False)
    # Nothing else fails before the condition is judged.
    safe = tf.ensure_shape(tf.cond(same, lambda: y, lambda: tf.zeros(shape, y.dtype)), expected)
    return Checked(safe, [Condition(same, text)])


def unit_columns(parameters: tf.Tensor) -> tf.Tensor:
    """The unit vectors of the last axis, `[C, 1, ..., 1, C]`, to be broadcast against `parameters` `[..., C]`."""
    size = parameters.shape[-1]
    return tf.reshape(tf.eye(size, dtype=parameters.dtype), [size] + [1] * (parameters.shape.rank - 1) + [size])


__all__ = ["Distribution", "checked_targets_of", "event_targets", "of_shape", "unit_columns"]
