"""Damping that adapts to how well the quadratic model predicts the decrease of the loss."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.steps.report import StepReport


@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt:
    """Adapts the damping to how well the quadratic model predicts the decrease of the loss.

    The reduction ratio is the actual over the predicted decrease of the loss, on the batch of the step. Every `period`
    steps, if the ratio is above `high` the damping is multiplied by `decay ** period`; if it is below `low` the damping
    is divided by that. The predicted decrease is that of the model without damping, `g^T d - 1/2 d^T F d` for a step of
    `-d`; with momentum, the ratio of the damped model would say little. If the line search shortened or rejected the
    step, the damping grows at once.

    >>> adapted = LevenbergMarquardt(decay=0.5, period=1)
    >>> [float(adapted.adapted(tf.constant(0.25), tf.constant(ratio))) for ratio in (0.9, 0.5, 0.0)]
    [0.125, 0.25, 0.5]

    Args:
        initial: the damping at the start, in the scale of the loss; or, if `relative`, a multiple.
        decay: the factor per step, below 1.
        period: the number of steps between two changes.
        low: the ratio below which the damping grows.
        high: the ratio above which the damping falls.
        minimum: the smallest damping.
        maximum: the largest damping.
        relative: whether the damping at the start is `initial` times the mean eigenvalue of the Fisher of the first
            batch, as a preconditioner (`NaturalGradient(fisher="kfac")`) estimates it.

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
    relative: bool = False

    def __post_init__(self):
        for name in ("initial", "decay", "minimum", "maximum"):
            _checks.check_number(name, getattr(self, name), minimum=0.0, exclusive=True)
        _checks.check_number("period", self.period, minimum=1, integer=True)
        for name in ("low", "high"):
            _checks.check_number(name, getattr(self, name))
        _checks.check_flag("relative", self.relative)
        if self.decay >= 1.0:
            raise ValueError(_checks.message("decay", self.decay, "a number below 1"))
        if not self.low < self.high:
            raise ValueError(_checks.message("low", self.low, f"a number below `high`, {self.high}"))
        if not self.minimum <= self.initial <= self.maximum:
            raise ValueError(
                _checks.message("initial", self.initial, f"a number from {self.minimum} to {self.maximum}")
            )

    def after(self, damping: tf.Tensor, step: tf.Tensor, report: StepReport) -> tf.Tensor:
        """Computes the damping after a step. It grows at once if the search shortened or rejected the step.

        It also grows at once if the predicted decrease is negative.

        Args:
            damping: a scalar.
            step: the number of the step, from 0.
            report: the report of the step.

        Returns:
            A scalar like `damping`.
        """
        failed = ~report.accepted | (report.backtracks > 0) | (report.predicted_decrease < 0)
        ratio = tf.where(failed, tf.constant(-float("inf"), report.reduction_ratio.dtype), report.reduction_ratio)
        return tf.where(failed | tf.equal((step + 1) % self.period, 0), self.adapted(damping, ratio), damping)

    def adapted(self, damping: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
        """Computes the damping from a reduction ratio. It grows if the ratio is NaN.

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
