"""What is done with a direction: how far to go, whether to keep the step, and what damping to use the next time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._typing import TensorLike

# Units in the last place of a loss that a difference of two losses is not worth.
_ROUNDINGS = 10


class Objective(Protocol):
    """What a step is judged by. The weights are moved by others; these are read at the weights of the moment."""

    def loss(self) -> tf.Tensor:
        """What is to be lowered, a scalar."""

    def kl(self) -> tf.Tensor:
        """The mean KL divergence from the model before the step to that of the moment, `KL(before || now)`, in nats.

        It is asked for right after `loss`, at the same weights: the two may share a forward pass.
        """

    def predicted(self, scale: tf.Tensor) -> tf.Tensor:
        """The decrease of the loss that the quadratic model of it predicts for `scale` times the step."""


class StepReport(NamedTuple):
    """What became of a step; scalar tensors.

    Attributes:
        accepted: whether the weights moved.
        scale: the multiple of the step that was taken, 0 where it was rejected.
        backtracks: how often the step was shortened.
        predicted_decrease: of the loss, for the step that was taken, or tried last.
        actual_decrease: of the loss, for the same step.
        reduction_ratio: actual over predicted decrease.
        kl: measured `KL(before || now)` of the step taken, in nats; 0 where it was rejected.
    """

    accepted: tf.Tensor
    scale: tf.Tensor
    backtracks: tf.Tensor
    predicted_decrease: tf.Tensor
    actual_decrease: tf.Tensor
    reduction_ratio: tf.Tensor
    kl: tf.Tensor


@dataclasses.dataclass(frozen=True)
class LineSearch:
    """Tries a step, shortens it while it does not hold what it promised, and takes it back if nothing helps.

    A step holds if the loss falls by more than `min_ratio` times the predicted decrease, and the measured KL divergence
    stays within the limit, if there is one. Where the predicted decrease is below the rounding of the loss (ten units
    in its last place) it cannot be told from noise, and the loss must only not rise by more than that. Weights that
    were moved in vain are restored bit for bit.

    >>> weight = keras.Variable(4.0)
    >>> class Parabola:
    ...     def loss(self):
    ...         return tf.square(weight.value)
    ...     def kl(self):
    ...         return tf.zeros([])
    ...     def predicted(self, scale):
    ...         return 8.0 * scale
    >>> report = LineSearch(shrink=0.5).run(Parabola(), lambda scale: weight.assign(4.0 - 10.0 * scale), [weight])
    >>> float(weight), int(report.backtracks)
    (-1.0, 1)

    Args:
        max_backtracks: how often a step may be shortened; with 0 it is taken or left.
        shrink: the factor by which it is.
        min_ratio: the share of the predicted decrease that a step must exceed; 0 asks for any decrease.

    Raises:
        ValueError: if a number is out of its range.

    References:
        J. Schulman, S. Levine, P. Moritz, M. Jordan, P. Abbeel, "Trust region policy optimization", ICML (2015),
        appendix C.
        J. Nocedal, S. Wright, "Numerical optimization" (2006), algorithm 3.1.
    """

    max_backtracks: int = 10
    shrink: float = 0.8
    min_ratio: float = 0.0

    def __post_init__(self):
        _checks.check_number("max_backtracks", self.max_backtracks, minimum=0, integer=True)
        for name in ("shrink", "min_ratio"):
            value = getattr(self, name)
            _checks.check_number(name, value, minimum=0.0, exclusive=name == "shrink")
            if value >= 1.0:
                raise ValueError(_checks.message(name, value, "a number below 1"))

    def run(
        self,
        objective: Objective,
        move: Callable[[tf.Tensor], None],
        variables: Sequence[keras.Variable | tf.Variable],
        max_kl: TensorLike | None = None,
        start: tf.Tensor | None = None,
    ) -> StepReport:
        """Searches along one step, eagerly or inside a trace.

        Args:
            objective: what the step is judged by.
            move: moves the weights by a given multiple of the step from where they stood, a scalar tensor.
            variables: all that `move` changes. They are put back before each further try.
            max_kl: the KL divergence, in nats, that the step must not exceed, or `None`.
            start: the loss before the step, where it is known.

        Returns:
            A `StepReport`.
        """
        before = [tf.identity(tf.convert_to_tensor(variable)) for variable in variables]
        start = tf.identity(objective.loss() if start is None else start)

        def attempt(scale: tf.Tensor) -> _Trial:
            trial = _try(objective, move, start, scale)
            holds = self._holds(trial, start, max_kl)
            tf.cond(holds, lambda: None, lambda: restore(variables, before))
            return trial._replace(holds=holds)

        def again(backtracks: tf.Tensor, trial: _Trial) -> tuple[tf.Tensor, _Trial]:
            return backtracks + 1, attempt(trial.scale * self.shrink)

        backtracks, trial = tf.while_loop(
            lambda backtracks, trial: ~trial.holds & (backtracks < self.max_backtracks),
            again,
            (tf.constant(0), attempt(tf.ones([], start.dtype))),
            parallel_iterations=1,
        )
        return trial.report(backtracks)

    def _holds(self, trial: _Trial, start: tf.Tensor, max_kl: TensorLike | None) -> tf.Tensor:
        rounding = _ROUNDINGS * np.finfo(start.dtype.as_numpy_dtype).eps * tf.abs(start)
        falls = (trial.actual > 0) & (trial.actual > self.min_ratio * trial.predicted)
        holds = tf.where(trial.predicted > rounding, falls, trial.actual >= -rounding)
        if max_kl is not None:
            holds &= trial.kl <= _like(start, max_kl)
        return holds & tf.math.is_finite(trial.actual) & tf.math.is_finite(trial.kl)


def take(objective: Objective, move: Callable[[tf.Tensor], None], start: tf.Tensor | None = None) -> StepReport:
    """Takes a step whatever comes of it, and reports how well it was predicted.

    >>> weight = keras.Variable(4.0)
    >>> class Parabola:
    ...     def loss(self):
    ...         return tf.square(weight.value)
    ...     def kl(self):
    ...         return tf.zeros([])
    ...     def predicted(self, scale):
    ...         return 15.0 * scale
    >>> float(take(Parabola(), lambda scale: weight.assign(4.0 - 3.0 * scale)).reduction_ratio)
    1.0

    Args:
        objective: what the step is judged by.
        move: moves the weights by a given multiple of the step, a scalar tensor.
        start: the loss before the step, where it is known.

    Returns:
        A `StepReport`.
    """
    start = tf.identity(objective.loss() if start is None else start)
    return _try(objective, move, start, tf.ones([], start.dtype)).report(tf.constant(0))


class _Trial(NamedTuple):
    holds: tf.Tensor
    scale: tf.Tensor
    predicted: tf.Tensor
    actual: tf.Tensor
    kl: tf.Tensor

    def report(self, backtracks: tf.Tensor) -> StepReport:
        zero = tf.zeros_like(self.scale)
        return StepReport(
            accepted=self.holds,
            scale=tf.where(self.holds, self.scale, zero),
            backtracks=backtracks,
            predicted_decrease=self.predicted,
            actual_decrease=self.actual,
            reduction_ratio=tf.math.divide_no_nan(self.actual, self.predicted),
            kl=tf.where(self.holds, self.kl, zero),
        )


def _try(objective: Objective, move: Callable[[tf.Tensor], None], start: tf.Tensor, scale: tf.Tensor) -> _Trial:
    move(scale)
    actual = start - tf.cast(objective.loss(), start.dtype)
    kl = tf.cast(objective.kl(), start.dtype)
    return _Trial(tf.constant(True), scale, tf.cast(objective.predicted(scale), start.dtype), actual, kl)


@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt:
    """Damping that follows how well the quadratic model of the loss predicts what a step does.

    Every `period` steps the reduction ratio (actual over predicted decrease of the loss, on the batch of the step) is
    looked at: above `high` the damping is multiplied by `decay ** period`, below `low` it is divided by that. The
    predicted decrease is that of the model without damping, `g^T d - 1/2 d^T F d` for a step of `-d`: of a damped one
    the ratio would say little where momentum bends the step. A step that had to be shortened or taken back raises the
    damping at once.

    >>> adapted = LevenbergMarquardt(decay=0.5, period=1)
    >>> [float(adapted.adapted(tf.constant(0.25), tf.constant(ratio))) for ratio in (0.9, 0.5, 0.0)]
    [0.125, 0.25, 0.5]

    Args:
        initial: the damping at first, in the scale of the loss.
        decay: the factor of one step.
        period: steps between two looks.
        low: the ratio below which the damping grows.
        high: the ratio above which it falls.
        minimum: the least damping.
        maximum: the largest.

    Raises:
        ValueError: if a number is out of its range.

    References:
        J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML (2015),
        section 6.5: 19/20, 5 steps, 1/4 and 3/4.
    """

    initial: float = 0.1
    decay: float = 0.95
    period: int = 5
    low: float = 0.25
    high: float = 0.75
    minimum: float = 1e-8
    maximum: float = 1e4

    def __post_init__(self):
        for name in ("initial", "decay", "minimum", "maximum"):
            _checks.check_number(name, getattr(self, name), minimum=0.0, exclusive=True)
        _checks.check_number("period", self.period, minimum=1, integer=True)
        for name in ("low", "high"):
            _checks.check_number(name, getattr(self, name))
        if self.decay >= 1.0:
            raise ValueError(_checks.message("decay", self.decay, "a number below 1"))
        if not self.low < self.high:
            raise ValueError(_checks.message("low", self.low, f"a number below `high`, {self.high}"))
        if not self.minimum <= self.initial <= self.maximum:
            raise ValueError(
                _checks.message("initial", self.initial, f"a number from {self.minimum} to {self.maximum}")
            )

    def after(self, damping: tf.Tensor, step: tf.Tensor, report: StepReport) -> tf.Tensor:
        """The damping after a step: one that was shortened or taken back, or promised a rise, makes it grow at once.

        Args:
            damping: a scalar.
            step: the number of the step, from 0.
            report: what became of it.

        Returns:
            A scalar like `damping`.
        """
        failed = ~report.accepted | (report.backtracks > 0) | (report.predicted_decrease < 0)
        ratio = tf.where(failed, tf.constant(-float("inf"), report.reduction_ratio.dtype), report.reduction_ratio)
        return tf.where(failed | tf.equal((step + 1) % self.period, 0), self.adapted(damping, ratio), damping)

    def adapted(self, damping: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
        """The damping after a look at this reduction ratio. A ratio that is not a number makes it grow.

        Args:
            damping: a scalar.
            ratio: actual over predicted decrease, a scalar.

        Returns:
            A scalar like `damping`.
        """
        factor = self.decay**self.period
        changed = tf.where(ratio >= self.low, damping, damping / factor)
        changed = tf.where(ratio > self.high, damping * factor, changed)
        return tf.clip_by_value(changed, self.minimum, self.maximum)


def kl_radius(quadratic_form: tf.Tensor, max_kl: TensorLike) -> tf.Tensor:
    """The multiple of a direction `d` at which the quadratic model of the KL divergence, `1/2 d^T F d`, meets a limit.

    >>> float(kl_radius(tf.constant(2.0), 0.01))  # doctest: +ELLIPSIS
    0.1...

    Args:
        quadratic_form: `d^T F d`, a scalar, `F` without damping.
        max_kl: the limit, in nats.

    Returns:
        A scalar; infinite where `d^T F d` is not positive.
    """
    return tf.where(
        quadratic_form > 0,
        tf.sqrt(2.0 * _like(quadratic_form, max_kl) / quadratic_form),
        tf.constant(float("inf"), quadratic_form.dtype),
    )


def _like(tensor: tf.Tensor, value: TensorLike) -> tf.Tensor:
    """A number or tensor in the dtype of another. `tf.cast` would take a Python number through float32."""
    return tf.cast(value, tensor.dtype) if tf.is_tensor(value) else tf.convert_to_tensor(value, tensor.dtype)


def restore(variables: Sequence[Any], values: Sequence[tf.Tensor]) -> None:
    """Puts variables back to earlier values, bit for bit.

    Args:
        variables: Keras or TensorFlow variables.
        values: one tensor each.
    """
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


__all__ = ["LevenbergMarquardt", "LineSearch", "Objective", "StepReport", "kl_radius", "restore", "take"]
