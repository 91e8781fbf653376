"""The choice of a solver by size, with its reason."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._conditions import Condition, note
from tf_natgrad.operators import Damped, Sum
from tf_natgrad.operators.sum import factored_part
from tf_natgrad.solvers._base import Algorithm, Solver, undamped
from tf_natgrad.solvers.conjugate_gradient import ConjugateGradient
from tf_natgrad.solvers.gram import Gram
from tf_natgrad.solvers.svd import SVDPseudoInverse

# Rows beyond which the Gram matrix is not formed, and parameters up to which a dense matrix is cheaper than it.
GRAM_ROWS_LIMIT = 20_000
DENSE_SIZE_LIMIT = 500

NO_GRAM_OF_A_SUM = (
    "The Gram form takes what is added to a Fisher only where that is a positive number for each variable: a damping, "
    "or penalties such as `L2` on every variable. Use a positive `damping`, `solver='auto'` or `'cg'`."
)


@dataclasses.dataclass(frozen=True)
class Auto(Solver):
    """Picks `Gram`, `SVDPseudoInverse` or `ConjugateGradient` by the sizes of the problem; `info.why` says why.

    * `SVDPseudoInverse` if the network has fewer parameters than the Gram matrix has rows, and at most 500;
    * `Gram` up to 20,000 rows;
    * `ConjugateGradient` beyond that;
    * if the Gram matrix does not exist, or would be wrong: `SVDPseudoInverse` for at most 500 parameters and one batch,
      else `ConjugateGradient` with the relative residual `rtol`.

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
        """Chooses the algorithm for this operator by its sizes; see `Solver.choose`."""
        _checks.check_operator("operator", operator)
        base, _, _ = undamped(operator)
        n = base.shape[-1]
        if factored_part(base) is None:
            return self._cg, f"{type(base).__name__} has no factor A"
        if isinstance(base, Sum):
            return self.without_gram(n if base.is_one_batch else None, NO_GRAM_OF_A_SUM)
        rows = base.rows
        if rows is not None and n < rows and n <= DENSE_SIZE_LIMIT:
            return SVDPseudoInverse(self.rcond), f"{n} parameters are fewer than {rows} rows of the Gram matrix"
        if base.gram_refusal is not None:
            return self.without_gram(n if base.is_one_batch else None, base.gram_refusal)
        if rows is None:
            return self._gram, "the batch size is not known while tracing"
        if rows > GRAM_ROWS_LIMIT:
            return self._cg, (
                f"the Gram matrix would have {rows:,} rows, more than {GRAM_ROWS_LIMIT:,}; a Monte-Carlo Fisher or a "
                "smaller batch would have fewer"
            )
        return self._gram, f"{rows} rows of the Gram matrix, at most {GRAM_ROWS_LIMIT:,}"

    def without_gram(self, size: int | None, refusal: str) -> tuple[Algorithm, str]:
        """Chooses the algorithm for an operator whose Gram matrix does not exist, or would be wrong.

        Args:
            size: the number of parameters, or `None` if the dense matrix would take a pass over the data per column.
            refusal: the reason why there is no Gram matrix.

        Returns:
            `(algorithm, why)`.
        """
        if size is not None and size <= DENSE_SIZE_LIMIT:
            return SVDPseudoInverse(self.rcond), f"{size} parameters allow for the dense matrix. {refusal}"
        return self._cg, f"conjugate gradients, to a relative residual of {self.rtol:g}. {refusal}"


@dataclasses.dataclass(frozen=True)
class Planned(Solver):
    """A solver that was chosen on a real batch in eager code, to be used for the operators of a trace.

    Args:
        algorithm: the solver that was chosen.
        why: the reason.
        otherwise: the solver that chooses again if an operator in the trace has no Gram matrix for that algorithm.
    """

    algorithm: Algorithm
    why: str
    otherwise: Solver

    @property
    def supports_jit(self) -> bool:
        return self.algorithm.supports_jit

    def choose(self, operator: tf.linalg.LinearOperator) -> tuple[Algorithm, str]:
        """Returns the algorithm that was chosen, unless it needs a Gram matrix that this operator does not have."""
        base, _, _ = undamped(operator)
        if isinstance(self.algorithm, Gram) and (isinstance(base, Sum) or base.gram_refusal is not None):
            return self.otherwise.choose(operator)
        return self.algorithm, self.why


def refuse_gram_of_a_sum(
    solver: Solver, operator: tf.linalg.LinearOperator, conditions: list[Condition] | None = None
) -> None:
    """Refuses the Gram solver where penalties are neither zero nor a positive damping for each variable.

    Where the damping is not known while tracing, that it is large enough is a condition.

    Args:
        solver: any solver.
        operator: what it is to solve for.
        conditions: a list to which the condition on such a damping is added; by default it is judged at once.

    Raises:
        ValueError: naming `solver`.
    """
    if isinstance(solver, Planned):
        # Elsewhere a plan goes another way by itself.
        gram = isinstance(solver.algorithm, Gram) and isinstance(solver.otherwise, Gram)
        may = isinstance(solver.algorithm, Gram)
    else:
        gram, may = isinstance(solver, Gram), isinstance(solver, Auto | Gram)
    text = _checks.message(
        "solver",
        "the Gram solver, for weight regularisers that are not a positive damping for each variable",
        "a positive `damping` and penalties of Keras's `L2` (or `L1`)",
        "Use `solver='auto'`, `'cg'` or, for few weights, `'svd'`.",
    )
    base, _, static = undamped(operator)
    if gram and isinstance(base, Sum):
        raise ValueError(text)
    if may and static is None and isinstance(operator, Damped) and operator.damping_by_variable is not None:
        note([Condition(operator.is_positive, text)], conditions)


def may_take_gram(solver: Solver) -> bool:
    """Whether a solver may ask for the Gram matrix, so that the forward pass is to record what it needs.

    Args:
        solver: any solver.

    Returns:
        `True` for `Gram`, for a plan of it, and for `Auto`, which decides by the batch.
    """
    return isinstance(solver.algorithm if isinstance(solver, Planned) else solver, Auto | Gram)


__all__ = ["Auto", "Planned", "may_take_gram", "refuse_gram_of_a_sum"]
