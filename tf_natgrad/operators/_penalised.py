"""The curvature of a loss with weight regularisers, damped: the matrix of the system that a step solves."""

from __future__ import annotations

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._conditions import Condition
from tf_natgrad._typing import TensorLike
from tf_natgrad.operators._base import CurvatureOperator
from tf_natgrad.operators.damped import Damped
from tf_natgrad.operators.penalty import Penalty, PositivePenalty


def penalised(
    fisher: CurvatureOperator, damping: TensorLike, conditions: list[Condition] | None = None
) -> tuple[CurvatureOperator, CurvatureOperator | None]:
    """Adds the curvature of the weight regularisers and the damping to a Fisher.

    If the curvature of a penalty may be negative, its positive part is used, so that a step goes downhill.

    Args:
        fisher: the Fisher of the loss without its penalties.
        damping: a number >= 0 or a scalar tensor; the number 0 means no damping.
        conditions: a list to which the condition on the damping is added; by default it is judged at once.

    Returns:
        `(F + R + damping I, R)`, or `(F + damping I, None)` where `R` is zero.
    """
    penalty: CurvatureOperator = Penalty(fisher.flat_parameters)
    constants = penalty.diagonal_by_variable()
    if constants is None:
        penalty = PositivePenalty(penalty)
        _checks.log_once(_text(penalty.left_out))
    is_zero = not tf.is_tensor(damping) and not hasattr(damping, "assign") and damping == 0
    if constants is not None and max(constants) == 0.0:
        return (fisher if is_zero else Damped(fisher, damping, conditions)), None
    # Where a constant joins the damping the matrix is positive definite also without any.
    total = Damped(fisher + penalty, damping, conditions)
    return (fisher + penalty if is_zero and total.damping_by_variable is None else total), penalty


def _text(left_out: list[str]) -> str:
    text = "The curvature of a weight regulariser hangs on the weights, and may be negative: its positive part is used"
    if not left_out:
        return f"{text}."
    return f"{text}, and none for {', '.join(left_out)}, which would be too large a matrix."


__all__ = ["penalised"]
