"""The exact natural gradient by the Gram matrix: a system of the size of the batch, not of the network."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from tf_natgrad import _checks, _replicas
from tf_natgrad._conditions import Condition
from tf_natgrad.errors import GramMismatchError
from tf_natgrad.layers import CAUSE
from tf_natgrad.operators import FactoredOperator, FactoredRhs
from tf_natgrad.solvers._base import Algorithm, flat_rhs, undamped
from tf_natgrad.solvers._gram_system import GramSystem
from tf_natgrad.solvers.svd import check_rcond

# The share of the gradient that may be cut off without a log message.
_NOTABLE_ENERGY = 0.01
# Roundings by which `x^T K x` and `|A^T x|^2` may differ, relative to `|x|^2 |K|_F`. Relative to `|A^T x|^2` alone
# correct systems that are singular would be refused. Relative to it they may differ as well: what sums over many
# positions rounds at each of them (60 were seen with a depthwise convolution), and the gradient through a softmax is a
# difference that cancels where a class is nearly certain (3,500 in the blog's runs, about to explode). In half
# precision that would be any difference at all.
_ROUNDINGS, _ROUNDINGS_OF_VALUE, _MOST = 10.0, 1e5, 0.1
_MISMATCH = (
    f"The Gram matrix of this batch does not give the direction that it stands for: {CAUSE}. The step was not taken. "
    "Use `solver='auto'`, `'cg'` or, for few weights, `'svd'`."
)


class GramInfo(NamedTuple):
    """Report of `Gram`.

    Attributes:
        solver: its name.
        rows: m, the size of the Gram matrix.
        rank: the number of eigenvalues used (with damping, or with Cholesky: all rows of non-zero weight).
        condition_number: of the (damped) Gram matrix on the span used. After an undamped Cholesky decomposition it is
            an estimate from below by the power method; after a damped one a lower bound, the squared ratio of the
            extreme pivots. If the damping differs by variable it is the condition number of `A D^-1 A^T + I`.
        discarded_gradient_energy: without damping, the share of the gradient's squared norm outside of the span used:
            the part that `rcond` cut off, and of a plain vector also the part outside of the range of `A^T`.
        quadratic_form: `x^T F x` of the solution, `F` without its damping.
        used_eigh: whether an eigendecomposition was used because Cholesky failed (or was not safe at `rcond`).
        used_float64: whether that was done in float64, because the damping is below the rounding of the Gram matrix.
        why: the reason for this solver, if it was chosen automatically.
    """

    solver: str
    rows: tf.Tensor
    rank: tf.Tensor
    condition_number: tf.Tensor
    discarded_gradient_energy: tf.Tensor
    quadratic_form: tf.Tensor
    used_eigh: tf.Tensor
    used_float64: tf.Tensor
    why: str = ""

    def finish(self) -> GramInfo:
        """Logs the use of float64, and a large part of the gradient that was cut off."""
        if self.used_float64:
            _checks.log_once(
                "Gram: Cholesky failed, the damping being below the rounding of the Gram matrix; an "
                "eigendecomposition in float64 was used."
            )
        if self.used_eigh and self.discarded_gradient_energy > _NOTABLE_ENERGY:
            _checks.log_once(
                f"Gram left out what carried {self.discarded_gradient_energy:.1%} of the gradient's squared "
                "norm, in eigenvalues below rcond or outside of the range of A^T; a damping above zero keeps it."
            )
        return self


@dataclasses.dataclass(frozen=True)
class Gram(Algorithm):
    """Computes `(A^T A + damping I)^-1 rhs` exactly, by a system with `K = A A^T` `[m, m]`.

    For a right-hand side `A^T u + damping * d0`, the form in which `operator.loss_gradient` returns the gradient,
    the solution is `d0 + A^T (K + damping I)^-1 (u - A d0)`; without damping it is the pseudo-inverse,
    `A^T K^+ u`. Neither formula subtracts large numbers. A plain vector `g` is taken as `d0 = g / damping`; this
    formula does, and its error grows like `1 / damping`.

    If the damping differs by variable (`operator.damping_by_variable`, one positive number for each), a diagonal `D`
    replaces `damping I`: the solution is `d0 + D^-1 A^T (A D^-1 A^T + I)^-1 (u - A d0)`.

    Each solution `d = A^T x` is checked: if `K` is `A A^T`, then `x^T K x` and `|d|^2` are the same number. A
    difference that rounding does not explain is a `GramMismatchError`.

    The system is solved by Cholesky where that is safe: with damping if it succeeds, without damping if a bound on the
    condition number shows that no eigenvalue is below `rcond` times the largest. Otherwise the eigendecomposition is
    used, and `info.used_eigh` is true.

    >>> import keras, tensorflow as tf
    >>> from tf_natgrad.operators import Fisher
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    >>> fisher = Fisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), tf.ones([5, 3]))
    >>> solution = Gram().solve(fisher.damped(0.1), fisher.loss_gradient([0, 1, 2, 3, 0]))
    >>> solution.value.shape, int(solution.info.rows)
    (TensorShape([16]), 15)

    Args:
        rcond: without damping, eigenvalues up to `rcond` times the largest count as zero. `SVDPseudoInverse(rcond)`
            with the same number gives the same answer.

    Raises:
        ValueError: if `rcond` is not in [0, 1); on solving, if the operator has no Gram matrix, or a wrong one.

    References:
        Y. Ren, D. Goldfarb, "Efficient subsampled Gauss-Newton and natural gradient methods for training neural
        networks", arXiv:1906.02353 (2019), section 3.
    """

    rcond: float = 1e-6
    supports_jit = False
    takes_products = False

    def __post_init__(self):
        check_rcond(self.rcond)

    def check(self, operator: Any) -> None:
        base, _, _ = undamped(operator)
        if not isinstance(base, FactoredOperator):
            raise TypeError(
                _checks.message(
                    "operator",
                    type(base).__name__,
                    "an operator with a factor A, such as `operators.Fisher`",
                    "Use `solvers.ConjugateGradient()`.",
                )
            )
        if base.gram_refusal is not None:
            raise ValueError(base.gram_refusal)

    def compute(self, operator: Any, rhs: Any, x0: tf.Tensor | None) -> tuple[tf.Tensor, tuple]:
        del x0
        base, damping, static = undamped(operator)
        rhs = rhs if isinstance(rhs, FactoredRhs) else FactoredRhs(None, rest=rhs)
        metric = _Metric.of(operator, base)
        if metric is None:
            gram = base.gram_matrix()
        else:
            # `A D^-1 A^T + I`, whatever D is.
            gram, damping, static = base.gram_matrix(metric.scales), tf.ones([], base.dtype), 1.0
        start = _start(damping, static, rhs, metric)
        u = tf.zeros_like(gram[0]) if rhs.u is None else rhs.u
        start_image = tf.zeros_like(u) if start is None else base.factor_product(start)
        image, whole = None, None
        if rhs.rest is not None and not static:
            # `A rest`, and the squared norm of a gradient that is not in the range of A^T alone: without damping only.
            image, whole = _replicas.cond(
                damping > 0,
                lambda: (tf.zeros_like(u), tf.zeros([], gram.dtype)),
                lambda: (base.factor_product(rhs.rest), tf.reduce_sum(tf.square(_gradient(base, rhs)))),
            )
        system = GramSystem(gram, damping, static, self.rcond, u, image, whole)
        c, rank, condition, discarded, safe = system.solve(u - start_image)
        # Not b - damping c: where K is small that is the difference of two large numbers.
        image_of_c = tf.linalg.matvec(gram, c)
        value = base.factor_transpose_product(tf.ensure_shape(c, gram.shape[:1]))
        value = value if metric is None else metric.roots * value
        consistent = is_consistent(gram, c, image_of_c, value, base.rounding)
        value = value if metric is None else metric.roots * value
        value = value if start is None else value + start
        quadratic_form = tf.reduce_sum(tf.square(image_of_c + start_image))
        used_float64 = ~safe & (damping > 0)
        numbers = (tf.shape(gram)[0], rank, condition, discarded, quadratic_form, ~safe, used_float64)
        return value, (*numbers, consistent)

    def conditions(self, numbers: tuple) -> list[Condition]:
        return [Condition(numbers[-1], _MISMATCH, GramMismatchError)]

    def report(self, numbers: tuple) -> GramInfo:
        return GramInfo(type(self).__name__, *numbers[:-1])


class _Metric(NamedTuple):
    """`D^-1` for a damping `D` that is constant within each variable.

    Attributes:
        scales: `1 / D_v` by the id of the variable.
        roots: `D^(-1/2)` as a vector `[n]`.
    """

    scales: dict[int, tf.Tensor]
    roots: tf.Tensor

    @classmethod
    def of(cls, operator: Any, base: FactoredOperator) -> _Metric | None:
        """That of a damped operator, or `None` where one number damps all variables alike."""
        dampings = getattr(operator, "damping_by_variable", None)
        if dampings is None:
            return None
        flat = base.flat_parameters
        inverses = [1.0 / tf.cast(d, flat.dtype) for d in dampings]
        scales = {id(v): s for v, s in zip(flat.variables, inverses, strict=True)}
        roots = [tf.fill([size], tf.sqrt(s)) for size, s in zip(flat.sizes, inverses, strict=True)]
        return cls(scales, tf.concat(roots, 0))


def _start(damping: tf.Tensor, static: float | None, rhs: FactoredRhs, metric: _Metric | None) -> tf.Tensor | None:
    """`d0 = shift + D^-1 rest`; zero without damping."""
    start = rhs.shift
    if rhs.rest is not None and static != 0.0:
        scaled = tf.math.divide_no_nan(rhs.rest, damping)
        scaled = scaled if metric is None else tf.square(metric.roots) * scaled
        start = scaled if start is None else start + scaled
    if start is not None and not static:
        start = tf.where(damping > 0, start, tf.zeros_like(start))
    return start


def _gradient(base: FactoredOperator, rhs: FactoredRhs) -> tf.Tensor:
    return flat_rhs(base, rhs._replace(shift=None))


def is_consistent(gram: tf.Tensor, x: tf.Tensor, image: tf.Tensor, value: tf.Tensor, rounding: float) -> tf.Tensor:
    """Computes whether `x^T K x` and `|A^T x|^2` are the same but for rounding.

    Args:
        gram: `K` `[m, m]`.
        x: `[m]`.
        image: `K x` `[m]`.
        value: `A^T x` `[n]`.
        rounding: the spacing of the numbers above one, in the arithmetic that formed `K`.

    Returns:
        A scalar boolean.
    """
    # `l2_loss` is half of the sum of squares, without a copy.
    square = 2.0 * tf.nn.l2_loss(value)
    difference = tf.abs(tf.reduce_sum(x * image) - square)
    # The norm of K, also where the squares of its entries underflow.
    norm = tf.maximum(tf.sqrt(2.0 * tf.nn.l2_loss(gram)), tf.reduce_max(tf.linalg.diag_part(gram)))
    allowed = (
        _ROUNDINGS * rounding * 2.0 * tf.nn.l2_loss(x) * norm + min(_ROUNDINGS_OF_VALUE * rounding, _MOST) * square
    )
    # What is not finite is found out elsewhere, under its own name.
    return (difference <= allowed) | ~tf.math.is_finite(difference - allowed)


__all__ = ["Gram", "GramInfo", "is_consistent"]
