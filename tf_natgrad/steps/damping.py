"""Damping that follows how well the quadratic model of the loss predicts what a step does."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.steps.report import StepReport


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


__all__ = ["LevenbergMarquardt"]
