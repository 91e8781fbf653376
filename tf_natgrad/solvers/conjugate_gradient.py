"""Conjugate gradients, with a report that can be believed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_natgrad import _checks, _replicas
from tf_natgrad.operators._base import product_of
from tf_natgrad.operators._kronecker import preconditioner_for
from tf_natgrad.solvers._base import Algorithm, flat_rhs, undamped
from tf_natgrad.solvers._cg_info import CGInfo, StopReason

_RUNNING = -1


class _State(NamedTuple):
    iteration: tf.Tensor
    x: tf.Tensor
    residual: tf.Tensor
    direction: tf.Tensor
    inner: tf.Tensor
    best_x: tf.Tensor
    best: tf.Tensor
    least_residual: tf.Tensor
    settled: tf.Tensor
    least_curvature: tf.Tensor
    reason: tf.Tensor
    history: tf.Tensor


@dataclasses.dataclass(frozen=True)
class ConjugateGradient(Algorithm):
    """Solves `operator x = rhs` by products alone, for a symmetric positive semi-definite operator.

    Differences from the textbook: inner products are accumulated in float64; a residual that the recursion calls
    converged is computed anew, and the iteration restarted from it where it is not; the best iterate is returned, not
    the last; and the iteration stops where rounding keeps the residual from falling.

    The norm of the residual is not monotone: on a matrix with small eigenvalues it may rise for hundreds of iterations
    before it falls below its first value, so that a rise is no sign of stagnation. Rounding is: the residual of the
    recursion drifts away from the true one, and hardly ever comes back. After `patience` iterations without a new best,
    the true residual is computed, by one product. Where its distance from the recursion's has reached the least
    residual so far, later iterates are not expected to do better, and the iteration stops; otherwise it goes on.

    With `stopping="progress"` it also stops at iteration i where the quadratic `phi(x) = x^T A x / 2 - b^T x` is
    negative and fell by less than the fraction `k progress_tolerance` in the last `k = max(10, ceil(i / 10)) < i`
    iterations. What is best is then measured by phi too: it falls at each iteration, though the residual need not, so
    that the last iterate is returned unless rounding or a NaN spoilt it.

    >>> import tensorflow as tf
    >>> matrix = tf.linalg.LinearOperatorFullMatrix(tf.constant([[2.0, 0.0], [0.0, 4.0]]), is_self_adjoint=True)
    >>> solution = ConjugateGradient(rtol=1e-6).solve(matrix, tf.constant([1.0, 1.0]))
    >>> [round(float(v), 4) for v in solution.value], solution.info.reason.split(":")[0]
    ([0.5, 0.25], 'converged')

    Args:
        rtol: the residual may be this fraction of the right-hand side.
        atol: or this large, whichever allows more.
        max_iterations: iterations at most, of one product each; by default `min(2 n, 1000)`. On several replicas it
            must be given: so many are part of the graph, as no loop may contain a sum over replicas; rounding is then
            measured at the end alone.
        preconditioner: an approximate inverse, as a function `[n] -> [n]` that is symmetric and positive definite; or
            `"jacobi"`, the inverse of the diagonal, which costs a product for each row or column of the factor; or
            `"kfac"`, that of the Kronecker factors of each layer, for a damped matrix of a model on one batch.
        patience: iterations without a new best residual (or phi) after which rounding errors are measured, by one
            product, and again after as many; the iteration stops where they rule a better iterate out.
        stopping: `"residual"`, or `"progress"` for Martens's rule; the tolerances stop it either way.
        progress_tolerance: for that rule.

    Raises:
        ValueError: if a number is out of its range, or `stopping` is unknown.
        TypeError: if `preconditioner` is not callable.

    References:
        M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems" (1952).
        A. Greenbaum, "Estimating the attainable accuracy of recursively computed residual methods" (1997).
        J. Martens, "Deep learning via Hessian-free optimization", ICML (2010), section 4.4.
    """

    rtol: float = 1e-5
    atol: float = 0.0
    max_iterations: int | None = None
    preconditioner: Callable[[tf.Tensor], tf.Tensor] | str | None = None
    patience: int = 50
    stopping: str = "residual"
    progress_tolerance: float = 5e-4

    def __post_init__(self):
        _checks.check_number("rtol", self.rtol, minimum=0.0)
        _checks.check_number("atol", self.atol, minimum=0.0)
        _checks.check_number("patience", self.patience, minimum=1, integer=True)
        _checks.check_choice("stopping", self.stopping, ("residual", "progress"))
        _checks.check_number("progress_tolerance", self.progress_tolerance, minimum=0.0, exclusive=True)
        if self.max_iterations is not None:
            _checks.check_number("max_iterations", self.max_iterations, minimum=1, integer=True)
        known = isinstance(self.preconditioner, str) and self.preconditioner in ("jacobi", "kfac")
        if not known and self.preconditioner is not None and not callable(self.preconditioner):
            expected = "'jacobi', 'kfac' or a function from [n] to [n]"
            raise TypeError(_checks.message("preconditioner", repr(self.preconditioner), expected))

    def check(self, operator: Any) -> None:
        if operator.is_self_adjoint is False:
            raise ValueError(
                _checks.message("operator", f"{type(operator).__name__}, not self-adjoint", "a symmetric operator")
            )
        if self.max_iterations is None and _replicas.several():
            raise ValueError(
                _checks.message(
                    "solver",
                    f"conjugate gradients until a tolerance is met, on {_replicas.count()} replicas",
                    "a fixed number of iterations",
                    "Pass `solver=ng.solvers.ConjugateGradient(max_iterations=20)`, say: each is one exchange.",
                )
            )

    def compute(self, operator: Any, rhs: Any, x0: tf.Tensor | None) -> tuple[tf.Tensor, tuple]:
        run = _Run(self, operator, flat_rhs(operator, rhs))
        if _replicas.several():
            return run.finish(run.unrolled(run.start(x0), self.limit(operator.shape[-1])))
        (state,) = tf.while_loop(lambda s: s.reason == _RUNNING, run.step, (run.start(x0),), parallel_iterations=1)
        return run.finish(state)

    def limit(self, size: int) -> int:
        """The number of iterations at most, for a system of this size."""
        return self.max_iterations or min(2 * size, 1000)

    def is_slow(self, history: tf.Tensor, iteration: tf.Tensor) -> tf.Tensor:
        """Martens's rule, from phi of all iterates so far."""
        span = tf.maximum(10, (iteration + 9) // 10)
        now, before = history[iteration], history[tf.maximum(iteration - span, 0)]
        least = self.progress_tolerance * tf.cast(span, tf.float64)
        return (iteration > span) & (now < 0) & (tf.math.divide_no_nan(now - before, now) < least)

    def report(self, numbers: tuple) -> CGInfo:
        return CGInfo(type(self).__name__, *numbers)


def _inverse(preconditioner: Any, operator: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """The preconditioner for an operator, as a function `[n] -> [n]`."""
    if preconditioner == "kfac":
        return preconditioner_for(operator)
    if preconditioner != "jacobi":
        return preconditioner or tf.identity
    diagonal = operator.diag_part()
    # A zero on the diagonal of a semi-definite matrix is a zero row.
    return lambda r: tf.where(diagonal > 0, tf.math.divide_no_nan(r, diagonal), r)


def _verified(truth: tf.Tensor, r: tf.Tensor, replace: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The residual to go on with and its norm, and the distance of the recursion's from the true one."""
    kept = tf.where(replace, truth, r)
    return kept, _norm(kept), _norm(truth - r)


def _dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return tf.tensordot(tf.cast(a, tf.float64), tf.cast(b, tf.float64), 1)


def _norm(a: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(_dot(a, a))


class _Run:
    """One solve: what stays the same through its iterations.

    Args:
        solver: the options.
        operator: the matrix.
        b: the right-hand side `[n]`.
    """

    def __init__(self, solver: ConjugateGradient, operator: Any, b: tf.Tensor):
        self._solver, self._operator, self._b = solver, operator, b
        self._multiply, self._precondition = product_of(operator), _inverse(solver.preconditioner, operator)
        self._limit = solver.limit(operator.shape[-1])
        self._scale = _norm(b)
        self._tolerance = tf.maximum(tf.constant(solver.atol, tf.float64), solver.rtol * self._scale)
        self._by_progress = solver.stopping == "progress"
        self._measures = not _replicas.several()

    def _measure(self, x: tf.Tensor, r: tf.Tensor, norm: tf.Tensor) -> tf.Tensor:
        """What is to fall: phi, or the norm of the residual."""
        return -0.5 * _dot(x, self._b + r) if self._by_progress else norm

    def start(self, x0: tf.Tensor | None) -> _State:
        """The state before the first iteration, from `x0` or from zero."""
        b = self._b
        # A right-hand side of zero has the solution zero; no tolerance relative to it would be reached from elsewhere.
        x = tf.zeros_like(b) if x0 is None else tf.where(self._scale > 0, x0, tf.zeros_like(x0))
        r = b if x0 is None else b - self._multiply(x)
        z = self._precondition(r)
        norm = _norm(r)
        return _State(
            iteration=tf.constant(0),
            x=x,
            residual=r,
            direction=z,
            inner=_dot(r, z),
            best_x=x,
            best=self._measure(x, r, norm),
            least_residual=norm,
            settled=tf.constant(0),
            least_curvature=tf.constant(float("inf"), tf.float64),
            reason=tf.where(norm <= self._tolerance, int(StopReason.CONVERGED), _RUNNING),
            # phi of each iterate: of a fixed shape, for XLA.
            history=tf.zeros([self._limit + 1 if self._by_progress else 0], tf.float64),
        )

    def unrolled(self, state: _State, iterations: int) -> _State:
        """The state after so many iterations, without a loop; once it has stopped it stays as it is."""
        for _ in range(iterations):
            (new,), running = self.step(state), tf.equal(state.reason, _RUNNING)
            state = _State(*(tf.where(running, a, b) for a, b in zip(new, state, strict=True)))
        return state

    def step(self, state: _State) -> tuple[_State]:
        """One iteration: one product, and one more where the residual is measured."""
        p, b = state.direction, self._b
        image = self._multiply(p)
        curvature = _dot(p, image)
        bad = curvature <= 0
        alpha = tf.cast(tf.where(bad, tf.zeros_like(curvature), state.inner / curvature), b.dtype)
        x = state.x + alpha * p
        r = state.residual - alpha * image
        iteration = state.iteration + 1
        norm = _norm(r)
        # The recursion drifts from the truth: what it calls converged is checked, and so is a long wait.
        claims = (norm <= self._tolerance) & ~bad
        waited, gap = tf.constant(False), tf.zeros_like(norm)
        if self._measures:
            waited = (iteration - state.settled >= self._solver.patience) & ~bad
            r, norm, gap = tf.cond(
                claims | waited, lambda: _verified(b - self._multiply(x), r, claims), lambda: (r, norm, gap)
            )
        lost = (claims | waited) & (gap >= state.least_residual)
        z = self._precondition(r)
        inner = _dot(r, z)
        beta = tf.cast(tf.where(claims, tf.zeros_like(inner), inner / state.inner), b.dtype)
        measure = self._measure(x, r, norm)
        # What is within the tolerance is best, also where rounding lets phi rise; and where the iteration begins
        # anew, later residuals are to be compared with the true one.
        better = (measure < state.best) | claims
        history = state.history
        if self._by_progress:
            history = tf.tensor_scatter_nd_update(history, [[iteration]], [measure])
        return (
            _State(
                iteration=iteration,
                x=x,
                residual=r,
                direction=z + beta * p,
                inner=inner,
                best_x=tf.where(better, x, state.best_x),
                best=tf.where(better, measure, state.best),
                least_residual=tf.where(claims, norm, tf.minimum(norm, state.least_residual)),
                settled=tf.where(better | waited, iteration, state.settled),
                least_curvature=tf.minimum(state.least_curvature, tf.math.divide_no_nan(curvature, _dot(p, p))),
                reason=self._reason(iteration, norm, curvature, lost, history),
                history=history,
            ),
        )

    def _reason(
        self, iteration: tf.Tensor, norm: tf.Tensor, curvature: tf.Tensor, lost: tf.Tensor, history: tf.Tensor
    ) -> tf.Tensor:
        """Why to stop after an iteration, or that the iteration goes on; of several reasons the last one here."""
        reason = tf.where(iteration >= self._limit, int(StopReason.MAX_ITERATIONS), _RUNNING)
        reason = tf.where(lost, int(StopReason.STAGNATION), reason)
        if self._by_progress:
            reason = tf.where(self._solver.is_slow(history, iteration), int(StopReason.PROGRESS), reason)
        reason = tf.where(norm <= self._tolerance, int(StopReason.CONVERGED), reason)
        reason = tf.where(tf.math.is_finite(norm), reason, int(StopReason.NOT_FINITE))
        reason = tf.where(curvature <= 0, int(StopReason.NON_POSITIVE_CURVATURE), reason)
        return tf.where(tf.math.is_finite(curvature), reason, int(StopReason.NOT_FINITE))

    def finish(self, state: _State) -> tuple[tf.Tensor, tuple]:
        """The best iterate, and the numbers of the report, its residual measured."""
        b, scale = self._b, self._scale
        image = self._multiply(state.best_x)
        remainder = b - image
        residual = _norm(remainder)
        _, damping, _ = undamped(self._operator)
        # Where nothing is finite there is no best iterate either.
        unusable = (state.reason == int(StopReason.NOT_FINITE)) & ~tf.math.is_finite(scale)
        reason = state.reason
        if not self._measures:
            # What the recursion calls converged was not looked at yet.
            reason = tf.where(tf.equal(reason, int(StopReason.CONVERGED)), int(StopReason.STAGNATION), reason)
        # The recursion may have missed it.
        reason = tf.where(residual <= self._tolerance, int(StopReason.CONVERGED), reason)
        value = tf.where(unusable, b * tf.constant(float("nan"), b.dtype), state.best_x)
        numbers = (
            state.iteration,
            residual,
            tf.math.divide_no_nan(residual, scale),
            reason == int(StopReason.CONVERGED),
            _dot(state.best_x, image - damping * state.best_x),
            _dot(state.best_x, remainder),
            state.least_curvature,
            reason,
        )
        return value, numbers


__all__ = ["CGInfo", "ConjugateGradient", "StopReason"]
