"""A backtracking line search: it tries scales of a step and judges them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._typing import TensorLike
from tf_natgrad.steps.report import StepReport, Trial
from tf_natgrad.steps.trust_region import in_dtype_of

# Units in the last place of a loss that a difference of two losses is not worth.
_ROUNDINGS = 10

# From the scale of a step to its trial.
Evaluate = Callable[[tf.Tensor], Trial]


class Objective(Protocol):
    """The loss, KL divergence and predicted decrease at the current weights, for a caller that moves the weights."""

    def loss(self) -> tf.Tensor:
        """Returns the loss to be lowered, a scalar."""

    def kl(self) -> tf.Tensor:
        """Returns the mean of `KL(before the step || now)`, in nats.

        It is called right after `loss`, at the same weights: the two may share a forward pass.
        """

    def predicted(self, scale: tf.Tensor) -> tf.Tensor:
        """Returns the decrease of the loss that the quadratic model of it predicts for `scale` times the step."""


@dataclasses.dataclass(frozen=True)
class LineSearch:
    """Tries a step, shortens it until the loss falls enough, and rejects it if no scale is accepted.

    A scale is accepted if the loss falls by more than `min_ratio` times the predicted decrease, and the measured KL
    divergence stays within the limit, if there is one. If the predicted decrease is below the rounding of the loss (ten
    units in its last place), a scale is accepted if the loss does not rise by more than that.

    >>> import tensorflow as tf
    >>> from tf_natgrad.steps import Trial
    >>> def evaluate(scale):  # the parabola w^2, from w = 4 to 4 - 10 scale
    ...     return Trial(tf.square(4.0 - 10.0 * scale), tf.zeros([]), 8.0 * scale)
    >>> report = LineSearch(shrink=0.5).search(evaluate, start=tf.constant(16.0))
    >>> float(report.scale), int(report.backtracks)
    (0.5, 1)

    Args:
        max_backtracks: the largest number of backtracking steps; with 0 the whole step is accepted or rejected.
        shrink: the factor by which each backtracking step multiplies the scale.
        min_ratio: the share of the predicted decrease that the decrease must exceed; 0 asks for any decrease.

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

    def search(self, evaluate: Evaluate, start: tf.Tensor, max_kl: TensorLike | None = None) -> StepReport:
        """Searches along one step without moving weights, eagerly or inside a trace.

        Args:
            evaluate: computes the `Trial` of a scale, a scalar tensor.
            start: the loss before the step.
            max_kl: the largest KL divergence, in nats, or `None` for no limit.

        Returns:
            A `StepReport`.
        """

        def tried(scale: tf.Tensor) -> tuple[tf.Tensor, Trial, tf.Tensor]:
            trial = Trial(*(tf.cast(value, start.dtype) for value in evaluate(scale)))
            return scale, trial, self._holds(trial, start, max_kl)

        def again(backtracks: tf.Tensor, scale: tf.Tensor, trial: Trial, holds: tf.Tensor) -> tuple:
            return backtracks + 1, *tried(scale * self.shrink)

        backtracks, scale, trial, holds = tf.while_loop(
            lambda backtracks, scale, trial, holds: ~holds & (backtracks < self.max_backtracks),
            again,
            (tf.constant(0), *tried(tf.ones([], start.dtype))),
            parallel_iterations=1,
        )
        return StepReport.of(scale, trial, start, backtracks, holds)

    def search_at_once(
        self,
        trials: Callable[[tf.Tensor, tf.Tensor], Trial],
        start: tf.Tensor,
        go_on: tf.Tensor,
        max_kl: TensorLike | None = None,
    ) -> StepReport:
        """Searches like `search`, where a trial is a sum over replicas, which no loop may contain.

        The whole step is tried first; where it fails, all shorter ones are tried at once.

        >>> import tensorflow as tf
        >>> from tf_natgrad.steps import Trial
        >>> def trials(scales, wanted):  # the parabola w^2, from w = 4 to 4 - 10 scale
        ...     return Trial(tf.square(4.0 - 10.0 * scales), tf.zeros_like(scales), 8.0 * scales)
        >>> report = LineSearch(shrink=0.5).search_at_once(trials, tf.constant(16.0), tf.constant(True))
        >>> float(report.scale), int(report.backtracks)
        (0.5, 1)

        Args:
            trials: computes the trials of scales `[k]` where a condition holds; where not, anything.
            start: the loss before the step.
            go_on: whether there is anything to search.
            max_kl: the largest KL divergence, in nats, or `None` for no limit.

        Returns:
            A `StepReport`.
        """
        scales = [tf.ones([], start.dtype)]
        for _ in range(self.max_backtracks):
            scales.append(scales[-1] * self.shrink)
        tried, found = [], tf.constant(False)
        for some in (scales[:1], scales[1:]):
            if some:
                tried.append(Trial(*(tf.cast(v, start.dtype) for v in trials(tf.stack(some), go_on & ~found))))
                found |= tf.reduce_any(self._holds(tried[-1], start, max_kl))
        every = Trial(*(tf.concat(values, 0) for values in zip(*tried, strict=True)))
        # Shorter steps count only where the whole one failed; they were not computed elsewhere.
        holds = self._holds(every, start, max_kl)
        last = tf.where(found, tf.argmax(holds, output_type=tf.int32), len(scales) - 1)
        trial = Trial(*(values[last] for values in every))
        return StepReport.of(tf.stack(scales)[last], trial, start, last, found)

    def run(
        self,
        objective: Objective,
        move: Callable[[tf.Tensor], None],
        variables: Sequence[keras.Variable | tf.Variable],
        max_kl: TensorLike | None = None,
        start: tf.Tensor | None = None,
    ) -> StepReport:
        """Searches along one step by moving the weights; afterwards they are those of the accepted step.

        If the step is rejected, the weights are restored bit for bit.

        Args:
            objective: computes loss, KL divergence and predicted decrease.
            move: moves the weights by a scale times the step, from their values before the search.
            variables: all variables that `move` changes. They are restored before each further trial.
            max_kl: the largest KL divergence, in nats, or `None` for no limit.
            start: the loss before the step, if it is known.

        Returns:
            A `StepReport`.
        """
        before = [tf.identity(tf.convert_to_tensor(variable)) for variable in variables]
        start = tf.identity(objective.loss() if start is None else start)

        def evaluate(scale: tf.Tensor) -> Trial:
            restore(variables, before)
            return _moved(objective, move, scale)

        report = self.search(evaluate, start, max_kl)
        tf.cond(report.accepted, lambda: None, lambda: restore(variables, before))
        return report

    def _holds(self, trial: Trial, start: tf.Tensor, max_kl: TensorLike | None) -> tf.Tensor:
        actual = start - trial.loss
        rounding = _ROUNDINGS * np.finfo(start.dtype.as_numpy_dtype).eps * tf.abs(start)
        falls = (actual > 0) & (actual > self.min_ratio * trial.predicted)
        holds = tf.where(trial.predicted > rounding, falls, actual >= -rounding)
        if max_kl is not None:
            holds &= trial.kl <= in_dtype_of(start, max_kl)
        return holds & tf.math.is_finite(actual) & tf.math.is_finite(trial.kl)


def accept(evaluate: Evaluate, start: tf.Tensor) -> StepReport:
    """Makes the report of a whole step that is accepted in any case.

    Args:
        evaluate: see `LineSearch.search`.
        start: the loss before the step.

    Returns:
        A `StepReport` with predicted and actual decrease.
    """
    one = tf.ones([], start.dtype)
    trial = Trial(*(tf.cast(value, start.dtype) for value in evaluate(one)))
    return StepReport.of(one, trial, start, tf.constant(0), tf.constant(True))


def take(objective: Objective, move: Callable[[tf.Tensor], None], start: tf.Tensor | None = None) -> StepReport:
    """Takes a step without a search, and reports how well the model predicted it.

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
        objective: computes loss, KL divergence and predicted decrease.
        move: moves the weights by a scale times the step.
        start: the loss before the step, if it is known.

    Returns:
        A `StepReport`.
    """
    start = tf.identity(objective.loss() if start is None else start)
    return accept(lambda scale: _moved(objective, move, scale), start)


def _moved(objective: Objective, move: Callable[[tf.Tensor], None], scale: tf.Tensor) -> Trial:
    move(scale)
    # In this order: the KL may use the forward pass of the loss.
    loss = objective.loss()
    return Trial(loss, objective.kl(), objective.predicted(scale))


def restore(variables: Sequence[Any], values: Sequence[tf.Tensor]) -> None:
    """Restores earlier values of variables, bit for bit.

    Args:
        variables: Keras or TensorFlow variables.
        values: one tensor each.
    """
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


__all__ = ["Evaluate", "LineSearch", "Objective", "accept", "restore", "take"]
