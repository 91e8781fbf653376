"""Cholesky decomposition of the dense matrix."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _conditions
from tf_natgrad._conditions import Condition
from tf_natgrad.errors import NonFiniteError
from tf_natgrad.operators import CurvatureOperator
from tf_natgrad.operators._dense import DENSE_MEMORY_LIMIT, check_dense_memory
from tf_natgrad.solvers._base import Algorithm, flat_rhs, undamped
from tf_natgrad.solvers._gram_system import condition_number

# The share of the digits of a precision that a condition number may take without a log message.
_NOTABLE_LOSS = 0.1


class CholeskyInfo(NamedTuple):
    """Report of `Cholesky`.

    Attributes:
        solver: its name.
        condition_number: of the matrix with its damping, an estimate from below by the power method for each end of the
            spectrum; it is close unless the random start is almost orthogonal to an extreme eigenvector.
        relative_residual: norm of `rhs - operator x`, relative to that of `rhs`.
        quadratic_form: `x^T F x` of the solution, `F` without its damping.
        rounding: the spacing of floating-point numbers above one, in the precision of the matrix.
        why: the reason for this solver, if it was chosen automatically.
    """

    solver: str
    condition_number: tf.Tensor
    relative_residual: tf.Tensor
    quadratic_form: tf.Tensor
    rounding: tf.Tensor
    why: str = ""

    def finish(self) -> CholeskyInfo:
        """Logs a warning if the matrix is singular up to rounding."""
        if self.condition_number * self.rounding > _NOTABLE_LOSS:
            _checks.log_once(
                "Cholesky: the matrix is singular but for rounding (estimated condition number "
                f"{self.condition_number:.0e}); its solution has few digits. Raise the damping, or use `solver='svd'`."
            )
        return self


@dataclasses.dataclass(frozen=True)
class Cholesky(Algorithm):
    """Computes `(F + damping I)^-1 g` by the Cholesky decomposition of the dense matrix: `n^3 / 3` operations.

    The matrix must be positive definite: no eigenvalue is cut off, and nothing is added to the diagonal.

    >>> import tensorflow as tf
    >>> matrix = tf.linalg.LinearOperatorFullMatrix(tf.constant([[4.0, 0.0], [0.0, 16.0]]), is_self_adjoint=True)
    >>> solution = Cholesky().solve(matrix, tf.constant([1.0, 1.0]))
    >>> solution.value.numpy().tolist(), round(float(solution.info.condition_number), 2)
    ([0.25, 0.0625], 4.0)

    Args:
        memory_limit: bytes that the dense matrix may take.

    Raises:
        ValueError: if `memory_limit` is negative; on solving, if the matrix takes more, is not finite, or is not
            positive definite (an assertion in a graph).
    """

    memory_limit: int = DENSE_MEMORY_LIMIT
    # On a CPU XLA's takes twenty times as long.
    supports_jit = False

    def __post_init__(self):
        _checks.check_number("memory_limit", self.memory_limit, minimum=0)

    def check(self, operator: Any) -> None:
        check_dense_memory(operator.shape[-1], operator.dtype, self.memory_limit)
        if operator.is_self_adjoint is False:
            raise ValueError(
                _checks.message("operator", f"{type(operator).__name__}, not self-adjoint", "a symmetric operator")
            )

    def compute(self, operator: Any, rhs: Any, x0: tf.Tensor | None) -> tuple[tf.Tensor, tuple]:
        del x0
        _, damping, _ = undamped(operator)
        limited = {"memory_limit": self.memory_limit} if isinstance(operator, CurvatureOperator) else {}
        dense = operator.to_dense(**limited)
        b = flat_rhs(operator, rhs)
        finite = _conditions.is_finite(dense)
        factor = tf.linalg.cholesky(tf.where(finite, dense, tf.eye(tf.shape(dense)[0], dtype=dense.dtype)))
        value = tf.linalg.cholesky_solve(factor, b[:, None])[:, 0]
        image = tf.linalg.matvec(dense, value)
        numbers = (
            condition_number(dense, factor),
            tf.math.divide_no_nan(tf.norm(b - image), tf.norm(b)),
            tf.reduce_sum(value * (image - damping * value)),
            tf.constant(np.finfo(dense.dtype.as_numpy_dtype).eps, dense.dtype),
        )
        return value, (*numbers, finite, _conditions.is_finite(factor))

    def conditions(self, numbers: tuple) -> list[Condition]:
        *_, finite, positive = numbers
        not_finite = _checks.message(
            "operator", "a matrix with NaN or infinite entries", "finite ones", "Look at the data."
        )
        not_positive = _checks.message(
            "operator",
            "a matrix that is not positive definite in this precision",
            "a positive definite one",
            "Raise `damping`, or use `solvers.SVDPseudoInverse()`, which takes singular matrices.",
        )
        return [Condition(finite, not_finite, NonFiniteError, finite=True), Condition(positive, not_positive)]

    def report(self, numbers: tuple) -> CholeskyInfo:
        return CholeskyInfo(type(self).__name__, *numbers[:-2])


__all__ = ["Cholesky", "CholeskyInfo"]
