"""Why conjugate gradients stopped, and their report."""

from __future__ import annotations

import enum
from typing import NamedTuple

import tensorflow as tf

from tf_natgrad import _checks


class StopReason(enum.IntEnum):
    """Why conjugate gradients stopped."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    STAGNATION = 2
    NON_POSITIVE_CURVATURE = 3
    NOT_FINITE = 4
    PROGRESS = 5

    @property
    def text(self) -> str:
        """The reason in words."""
        return _TEXTS[self]


_BEST = "the best iterate is returned"
_TEXTS = {
    StopReason.CONVERGED: "converged: the true residual is within the tolerance",
    StopReason.MAX_ITERATIONS: f"stopped at max_iterations, before the tolerance was reached; {_BEST}",
    StopReason.STAGNATION: "stopped: the residual no longer falls in this precision, because rounding errors have "
    f"reached its least value; {_BEST}",
    StopReason.NON_POSITIVE_CURVATURE: f"stopped at a direction of non-positive curvature; {_BEST}",
    StopReason.NOT_FINITE: "stopped: the right-hand side, a product or the preconditioner was not finite; the best "
    "iterate before that is returned, if there was one",
    StopReason.PROGRESS: "stopped by the progress rule: the quadratic hardly falls any more",
}


class CGInfo(NamedTuple):
    """Report of `ConjugateGradient`.

    Attributes:
        solver: its name.
        iterations: products spent on iterations; those that compute a residual anew are not counted.
        residual: norm of the true residual `rhs - operator x`, recomputed at the end.
        relative_residual: the same, relative to the right-hand side.
        converged: whether that residual is within the tolerance.
        quadratic_form: `x^T F x` of the solution, `F` without its damping.
        residual_product: `x^T r` with that residual `r`, so that `rhs^T x = x^T operator x + x^T r` exactly; zero but
            for rounding where the iteration started from zero.
        least_curvature: the least `p^T F p / p^T p` met; not positive where the matrix is not positive definite
            in this precision, infinite where there was no iteration.
        reason: a `StopReason` as text; inside a graph its integer code.
        why: why this solver was chosen, where it was chosen automatically.
    """

    solver: str
    iterations: tf.Tensor
    residual: tf.Tensor
    relative_residual: tf.Tensor
    converged: tf.Tensor
    quadratic_form: tf.Tensor
    residual_product: tf.Tensor
    least_curvature: tf.Tensor
    reason: str | tf.Tensor
    why: str = ""

    def finish(self) -> CGInfo:
        """Puts the reason into words, and logs an end that no rule asked for."""
        reason = StopReason(self.reason)
        if not self.converged and reason != StopReason.PROGRESS:
            # Short enough that each reason is logged once.
            _checks.log_once(f"CG {reason.text}")
        return self._replace(reason=reason.text)


__all__ = ["CGInfo", "StopReason"]
