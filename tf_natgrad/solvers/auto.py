"""The choice of a solver by size, with its reason."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.operators import FactoredOperator
from tf_natgrad.solvers._base import Algorithm, Solver, undamped
from tf_natgrad.solvers.conjugate_gradient import ConjugateGradient
from tf_natgrad.solvers.gram import Gram
from tf_natgrad.solvers.svd import SVDPseudoInverse

# Rows beyond which the Gram matrix is not formed, and parameters up to which a dense matrix is cheaper than it.
GRAM_ROWS_LIMIT = 20_000
DENSE_SIZE_LIMIT = 500


@dataclasses.dataclass(frozen=True)
class Auto(Solver):
    """Picks `Gram`, `SVDPseudoInverse` or `ConjugateGradient` by the sizes of the problem; `info.why` says why.

    * `SVDPseudoInverse` where the network has fewer parameters than the Gram matrix rows, and at most 500;
    * `Gram` up to 20,000 rows;
    * `ConjugateGradient` beyond that, or where the Gram matrix does not exist.

    Args:
        rcond: passed on to `Gram` and `SVDPseudoInverse`.
        rtol: passed on to `ConjugateGradient`.
        max_iterations: passed on to `ConjugateGradient`.
    """

    rcond: float = 1e-6
    rtol: float = 1e-3
    max_iterations: int | None = None
    supports_jit = False

    def __post_init__(self):
        self._gram, self._cg  # noqa: B018  (their constructors check the numbers)

    @property
    def _gram(self) -> Gram:
        return Gram(self.rcond)

    @property
    def _cg(self) -> ConjugateGradient:
        return ConjugateGradient(rtol=self.rtol, max_iterations=self.max_iterations)

    def choose(self, operator: tf.linalg.LinearOperator) -> tuple[Algorithm, str]:
        """The algorithm for this operator by its sizes, and the reason; see `Solver.choose`."""
        _checks.check_operator("operator", operator)
        base, _, _ = undamped(operator)
        n = base.shape[-1]
        if not isinstance(base, FactoredOperator):
            return self._cg, f"{type(base).__name__} has no factor A"
        rows = base.rows
        if rows is not None and n < rows and n <= DENSE_SIZE_LIMIT:
            return SVDPseudoInverse(self.rcond), f"{n} parameters are fewer than {rows} rows of the Gram matrix"
        if base.gram_refusal is not None:
            return self._cg, base.gram_refusal
        if rows is None:
            return self._gram, "the batch size is not known while tracing"
        if rows > GRAM_ROWS_LIMIT:
            return self._cg, (
                f"the Gram matrix would have {rows:,} rows, more than {GRAM_ROWS_LIMIT:,}; a Monte-Carlo Fisher or a "
                "smaller batch would have fewer"
            )
        return self._gram, f"{rows} rows of the Gram matrix, at most {GRAM_ROWS_LIMIT:,}"


__all__ = ["Auto"]
