"""A backtracking line search: it tries scales of a step and judges them; moving the weights is its caller's affair."""

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

# What a step comes to, from the multiple of it that is tried.
Evaluate = Callable[[tf.Tensor], Trial]


class Objective(Protocol):
    """What a step is judged by where its caller moves the weights; read at the weights of the moment."""

    def loss(self) -> tf.Tensor:
        """Returns what is to be lowered, a scalar."""

    def kl(self) -> tf.Tensor:
        """Returns the mean KL divergence from the model before the step to that of the moment, in nats.

        It is asked for right after `loss`, at the same weights: the two may share a forward pass.
        """

    def predicted(self, scale: tf.Tensor) -> tf.Tensor:
        """Returns the decrease of the loss that the quadratic model of it predicts for `scale` times the step."""


@dataclasses.dataclass(frozen=True)
class LineSearch:
    """Tries a step, and shortens it while the loss does not fall as it should; rejects it if nothing helps.

    A scale is accepted if the loss falls by more than `min_ratio` times the predicted decrease, and the measured KL
    divergence stays within the limit, if there is one. Where the predicted decrease is below the rounding of the loss
    (ten units in its last place) it cannot be told from noise, and the loss must only not rise by more than that.

    >>> import tensorflow as tf
    >>> from tf_natgrad.steps import Trial
    >>> def evaluate(scale):  # the parabola w^2, from w = 4 to 4 - 10 scale
    ...     return Trial(tf.square(4.0 - 10.0 * scale), tf.zeros([]), 8.0 * scale)
    >>> report = LineSearch(shrink=0.5).search(evaluate, start=tf.constant(16.0))
    >>> float(report.scale), int(report.backtracks)
    (0.5, 1)

    Args:
        max_backtracks: the number of times a step may be shortened; with 0 it is accepted whole or rejected.
        shrink: the factor by which it is shortened.
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
        """Searches along one step, eagerly or inside a trace. It changes nothing itself.

        Args:
            evaluate: what the step comes to, from a scalar tensor, the multiple of it that is tried.
            start: the loss before the step.
            max_kl: the KL divergence, in nats, that the step must not exceed, or `None`.

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

    def run(
        self,
        objective: Objective,
        move: Callable[[tf.Tensor], None],
        variables: Sequence[keras.Variable | tf.Variable],
        max_kl: TensorLike | None = None,
        start: tf.Tensor | None = None,
    ) -> StepReport:
        """Searches along one step by moving the weights, and leaves them where the search ends.

        Weights that were moved in vain are restored bit for bit.

        Args:
            objective: what the step is judged by.
            move: moves the weights by a given multiple of the step from where they stood, a scalar tensor.
            variables: all that `move` changes. They are restored before each further try.
            max_kl: the KL divergence, in nats, that the step must not exceed, or `None`.
            start: the loss before the step, where it is known.

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
    """Reports on a whole step that is to be taken whatever comes of it.

    Args:
        evaluate: see `LineSearch.search`.
        start: the loss before the step.

    Returns:
        A `StepReport` that says how well the step was predicted.
    """
    one = tf.ones([], start.dtype)
    trial = Trial(*(tf.cast(value, start.dtype) for value in evaluate(one)))
    return StepReport.of(one, trial, start, tf.constant(0), tf.constant(True))


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
    return accept(lambda scale: _moved(objective, move, scale), start)


def _moved(objective: Objective, move: Callable[[tf.Tensor], None], scale: tf.Tensor) -> Trial:
    move(scale)
    # In this order: the KL may use the forward pass of the loss.
    loss = objective.loss()
    return Trial(loss, objective.kl(), objective.predicted(scale))


def restore(variables: Sequence[Any], values: Sequence[tf.Tensor]) -> None:
    """Sets variables back to earlier values, bit for bit.

    Args:
        variables: Keras or TensorFlow variables.
        values: one tensor each.
    """
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


__all__ = ["Evaluate", "LineSearch", "Objective", "accept", "restore", "take"]
