"""The interface of a solver: an operator with its damping and a right-hand side in, a value and a report out."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._conditions import Condition, check_collector, note
from tf_natgrad._typing import TensorLike, plain_python
from tf_natgrad.operators import CurvatureOperator, Damped, FactoredRhs
from tf_natgrad.operators.sum import factored_part


class Solution(NamedTuple):
    """The solution of a system, with the solver's report.

    Attributes:
        value: `[n]`, the solution.
        info: the report, a named tuple whose class depends on the solver; its first field is the solver's name.
    """

    value: tf.Tensor
    info: Any


class Solver(abc.ABC):
    """Solves `operator x = rhs`. Damping belongs to the operator: pass `operator.damped(damping)`."""

    # Whether XLA compiles everything this solver may need into something usable.
    supports_jit: bool = True

    @abc.abstractmethod
    def choose(self, operator: tf.linalg.LinearOperator) -> tuple[Algorithm, str]:
        """Chooses the algorithm for this operator.

        Args:
            operator: damped or not.

        Returns:
            `(algorithm, why)`; `why` is the reason, empty if there was no choice.
        """

    @plain_python
    def solve(
        self,
        operator: tf.linalg.LinearOperator,
        rhs: TensorLike | FactoredRhs,
        x0: TensorLike | None = None,
        conditions: list[Condition] | None = None,
    ) -> Solution:
        """Solves one system.

        Args:
            operator: a curvature operator `[n, n]`, damped or not.
            rhs: `[n]`, or what `operator.loss_gradient` returned.
            x0: `[n]`, the start of iterative solvers, or `None` for zero. Other solvers ignore it.
            conditions: a list to which the conditions on the solution are added; the caller judges them. By default
                they are judged at once.

        Returns:
            A `Solution`.

        Raises:
            ValueError: if a shape does not fit, or the operator lacks what the solver needs.
            TypeError: if `operator` is not of a kind that the solver can use.
        """
        _checks.check_operator("operator", operator)
        check_collector("conditions", conditions)
        rhs = _checked_rhs(operator, rhs)
        if x0 is not None:
            x0 = _vector("x0", x0, operator.dtype, operator.shape[-1])
        algorithm, why = self.choose(operator)
        algorithm.check(operator)

        def run(b: tf.Tensor | FactoredRhs, x: tf.Tensor | None) -> tuple[tf.Tensor, tuple]:
            return algorithm.compute(operator, b, x)

        if isinstance(operator, CurvatureOperator):
            if algorithm.takes_products:
                operator.prepare()
            run = operator.compiled(("solve", algorithm), run)
        value, numbers = run(rhs, x0)
        note(algorithm.conditions(numbers), conditions)
        info = algorithm.report(numbers)._replace(why=why)
        return Solution(value, readable(info) if tf.executing_eagerly() else info)


def _vector(argument: str, value: TensorLike, dtype: tf.DType, size: int | None) -> tf.Tensor:
    vector = _checks.as_tensor(argument, value, dtype, f"a vector of {dtype.name} numbers")
    _checks.check_rank_one(argument, vector, size)
    return vector


def _checked_rhs(operator: tf.linalg.LinearOperator, rhs: TensorLike | FactoredRhs) -> tf.Tensor | FactoredRhs:
    """A right-hand side as tensors, looked at."""
    n = operator.shape[-1]
    if not isinstance(rhs, FactoredRhs):
        return _vector("rhs", rhs, operator.dtype, n)
    base, _, _ = undamped(operator)
    factored = factored_part(base)
    if rhs.u is not None and factored is None:
        raise TypeError(_checks.message("rhs", "FactoredRhs", f"a vector [n] for {type(base).__name__}"))
    if all(part is None for part in rhs):
        raise ValueError(_checks.message("rhs", "FactoredRhs without parts", "`u`, `shift` or `rest`"))
    sizes = FactoredRhs(factored.rows if rhs.u is not None else None, n, n)
    parts = [None if p is None else _vector("rhs", p, operator.dtype, size) for p, size in zip(rhs, sizes, strict=True)]
    return FactoredRhs(*parts)


class Algorithm(Solver):
    """A solver that does the work itself.

    Attributes:
        takes_products: whether it takes products with the operator, in a loop perhaps.
    """

    takes_products = True

    def choose(self, operator: tf.linalg.LinearOperator) -> tuple[Algorithm, str]:
        """Returns itself; there is no choice."""
        return self, ""

    def check(self, operator: tf.linalg.LinearOperator) -> None:
        """Raises an error for an operator that this solver cannot use."""

    @abc.abstractmethod
    def compute(self, operator: tf.linalg.LinearOperator, rhs: Any, x0: tf.Tensor | None) -> tuple[tf.Tensor, tuple]:
        """Computes the value and the numbers of the report, as graph code."""

    def conditions(self, numbers: tuple) -> list[Condition]:
        """Returns the conditions under which the value is a solution, from the numbers of the report."""
        return []

    @abc.abstractmethod
    def report(self, numbers: tuple) -> NamedTuple:
        """Makes the report from its numbers."""


def readable(info: Any) -> Any:
    """A report that came out of a graph, with Python's numbers and strings in place of tensors.

    Unusual outcomes are logged, once each.

    Args:
        info: a named tuple of a solver.

    Returns:
        A named tuple of the same type.
    """
    fields = {}
    for name, value in info._asdict().items():
        if tf.is_tensor(value):
            value = value.numpy()
            value = value.decode() if isinstance(value, bytes) else value.item()
        fields[name] = value
    info = type(info)(**fields)
    if hasattr(info, "finish"):
        info = info.finish()
    return info


def undamped(operator: tf.linalg.LinearOperator) -> tuple[tf.linalg.LinearOperator, tf.Tensor, float | None]:
    """The operator without its damping, the damping, and its static value where known.

    Args:
        operator: damped or not.

    Returns:
        `(base, damping, static_damping)`; zero where the operator is not damped.
    """
    if isinstance(operator, Damped):
        return operator.base, operator.damping, operator.static_damping
    return operator, tf.zeros([], operator.dtype), 0.0


def flat_rhs(operator: tf.linalg.LinearOperator, rhs: tf.Tensor | FactoredRhs) -> tf.Tensor:
    """A right-hand side as one vector `[n]`.

    Args:
        operator: the operator that it belongs to.
        rhs: `[n]`, or its parts.

    Returns:
        `[n]`.
    """
    if not isinstance(rhs, FactoredRhs):
        return rhs
    base, damping, _ = undamped(operator)
    parts = [] if rhs.rest is None else [rhs.rest]
    if rhs.u is not None:
        factored = factored_part(base)
        if factored is None:
            raise TypeError(_checks.message("rhs", "FactoredRhs", f"a vector [n] for {type(base).__name__}"))
        parts.append(factored.factor_transpose_product(rhs.u))
    if rhs.shift is not None:
        parts.append(damping * rhs.shift)
    return tf.add_n(parts)


__all__ = ["Algorithm", "Solution", "Solver", "flat_rhs", "readable", "undamped"]
