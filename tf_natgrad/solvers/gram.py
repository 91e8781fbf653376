"""The exact natural gradient through the Gram matrix: a system of the size of the batch instead of the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.errors import GramMismatchError
from tf_natgrad.gram import CAUSE
from tf_natgrad.operators import FactoredOperator, FactoredRhs
from tf_natgrad.solvers._base import Algorithm, flat_rhs, undamped
from tf_natgrad.solvers.svd import check_rcond, poison_unless

# Share of the gradient that may be cut off without a word.
_NOTABLE_ENERGY = 0.01
# Roundings by which `x^T K x` and `|A^T x|^2` may differ, relative to `|x|^2 |K|_F`. Relative to `|A^T x|^2` alone
# correct systems that are singular would be refused.
_ROUNDINGS = 10.0
# Steps of the power method for each end of the spectrum.
_POWER_STEPS = 12
_MISMATCH = (
    f"The Gram matrix of this batch does not give the direction that it stands for: {CAUSE}. The step was not taken. "
    "Use `solver='auto'`, `'cg'` or, for few weights, `'svd'`."
)


class GramInfo(NamedTuple):
    """Report of `Gram`.

    Attributes:
        solver: its name.
        rows: m, the size of the Gram matrix.
        rank: number of eigenvalues used (with damping, or with Cholesky: all rows of non-zero weight).
        condition_number: of the (damped) Gram matrix on the span used; after an undamped Cholesky estimated by the
            power method, from below; after a damped one only a lower bound, the squared ratio of the extreme pivots.
        discarded_gradient_energy: without damping, the share of the gradient's squared norm outside of the span used:
            what `rcond` cut off, and of a plain vector also what is not in the range of `A^T`.
        quadratic_form: `x^T F x` of the solution, `F` without its damping.
        used_eigh: whether the eigendecomposition was needed, Cholesky being impossible (or not safe at `rcond`).
        used_float64: whether it was done in float64, the damping being below float32's rounding of the Gram matrix.
        why: why this solver was chosen, where it was chosen automatically.
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
        """Logs what is out of the ordinary."""
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
    """`(A^T A + damping I)^-1 rhs` by way of `K = A A^T` `[m, m]`, exact.

    For a right-hand side `A^T u + damping * d0`, the form in which `operator.loss_gradient` gives the gradient,
    the solution is `d0 + A^T (K + damping I)^-1 (u - A d0)`; without damping it is the pseudo-inverse,
    `A^T K^+ u`. Neither subtracts large numbers. A plain vector `g` is taken as `d0 = g / damping`, which does: its
    error grows like `1 / damping`.

    Each solution `d = A^T x` is checked: `x^T K x` and `|d|^2` are the same number where `K` is `A A^T`. Where they
    differ by more than rounding the step is refused, as a `GramMismatchError`.

    Cholesky is used where it is safe: with damping wherever it succeeds, without damping where a bound on the
    condition number shows that no eigenvalue lies below `rcond` times the largest. Elsewhere the
    eigendecomposition is, and `info.used_eigh` says so.

    >>> import keras, tensorflow as tf
    >>> from tf_natgrad.operators import Fisher
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    >>> fisher = Fisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), tf.ones([5, 3]))
    >>> solution = Gram().solve(fisher.damped(0.1), fisher.loss_gradient([0, 1, 2, 3, 0]))
    >>> solution.value.shape, int(solution.info.rows)
    (TensorShape([16]), 15)

    Args:
        rcond: without damping, eigenvalues up to `rcond` times the largest count as zero. The same number as in
            `SVDPseudoInverse(rcond)` gives the same answer.

    Raises:
        ValueError: if `rcond` is not in [0, 1); on solving, if the operator has no Gram matrix, or a wrong one.

    References:
        Y. Ren, D. Goldfarb, "Efficient subsampled Gauss-Newton and natural gradient methods for training neural
        networks", arXiv:1906.02353 (2019), section 3.
    """

    rcond: float = 1e-6
    supports_jit = False

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
        gram = base.gram_matrix()
        zero = tf.zeros([], gram.dtype)
        start, image = self._start(base, damping, static, rhs)
        u = tf.zeros_like(gram[0]) if rhs.u is None else rhs.u
        start_image = tf.zeros_like(u) if start is None else base.factor_product(start)
        b = u - start_image

        def finish(apply: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
            """The coefficients c of the solution `start + A^T c`."""
            c = apply(b)
            return c if image is None else c + tf.where(damping > 0, tf.zeros_like(c), apply(apply(image)))

        # The squared norm of a gradient that is not in the range of A^T alone, where it is asked for.
        whole = None
        if image is not None:
            whole = tf.cond(damping > 0, lambda: zero, lambda: tf.reduce_sum(tf.square(_gradient(base, rhs))))
        pivots = tf.linalg.diag_part(gram)
        live = pivots > 0
        # Rows of weight zero stay out of the solution; any positive pivot will do for them.
        regular = tf.linalg.set_diag(gram, tf.where(live, pivots, tf.reduce_max(pivots)) + damping)
        cholesky = tf.linalg.cholesky(regular)
        diagonal = tf.linalg.diag_part(cholesky)
        safe = _checks.is_finite(diagonal) & (
            (damping > 0) if static else tf.cond(damping > 0, lambda: True, lambda: self._regular(gram, cholesky))
        )

        def by_cholesky():
            c = finish(lambda x: tf.linalg.cholesky_solve(cholesky, x[:, None])[:, 0])
            condition = tf.square(tf.reduce_max(diagonal) / tf.reduce_min(diagonal))
            discarded = zero
            if not static:
                condition = tf.cond(damping > 0, lambda: condition, lambda: _condition_number(regular, cholesky))
            if image is not None:
                kept = u + tf.linalg.cholesky_solve(cholesky, image[:, None])[:, 0]
                energy = tf.reduce_sum(kept * tf.linalg.matvec(gram, kept))
                discarded = tf.where(damping > 0, zero, _share_left(energy, whole))
            return c, tf.reduce_sum(tf.cast(live, tf.int32)), condition, discarded

        def by_eigh(dtype: tf.DType):
            finite = _checks.is_finite(gram)
            matrix, shift, along = (tf.cast(t, dtype) for t in (gram, damping, u))
            values, vectors = tf.linalg.eigh(tf.where(finite, matrix, tf.eye(tf.shape(matrix)[0], dtype=dtype)))
            values = tf.maximum(values, 0.0)
            keep = (values > self.rcond * values[-1]) | (shift > 0)
            inverse = tf.where(keep, tf.math.divide_no_nan(tf.ones_like(values), values + shift), 0.0 * values)

            def apply(x: tf.Tensor) -> tf.Tensor:
                coordinates = tf.linalg.matvec(vectors, tf.cast(x, dtype), transpose_a=True)
                return tf.cast(tf.linalg.matvec(vectors, inverse * coordinates), gram.dtype)

            coordinates = tf.linalg.matvec(vectors, along, transpose_a=True)
            if image is not None:
                # Of `rest`, A rest = K w has the coordinates w in the range of A^T.
                coordinates += inverse * tf.linalg.matvec(vectors, tf.cast(image, dtype), transpose_a=True)
            energy = tf.where(keep, values, tf.zeros_like(values)) * tf.square(coordinates)
            total = tf.reduce_sum(values * tf.square(coordinates)) if image is None else tf.cast(whole, dtype)
            discarded = tf.where(shift > 0, 0.0 * total, _share_left(tf.reduce_sum(energy), total))
            used = tf.where(keep, values, values[-1]) + shift
            condition = tf.math.divide_no_nan(values[-1] + shift, tf.reduce_min(used))
            rank = tf.reduce_sum(tf.cast(keep, tf.int32))
            c = poison_unless(finite, finish(apply))
            return c, rank, tf.cast(condition, gram.dtype), tf.cast(discarded, gram.dtype)

        def without_cholesky():
            # With damping Cholesky fails only where rounding is larger than the damping: more digits are needed.
            if static == 0.0:
                return by_eigh(gram.dtype)
            return tf.cond(damping > 0, lambda: by_eigh(tf.float64), lambda: by_eigh(gram.dtype))

        c, rank, condition, discarded = tf.cond(safe, by_cholesky, without_cholesky)
        # Not b - damping c: where K is small that is the difference of two large numbers.
        image_of_c = tf.linalg.matvec(gram, c)
        value = base.factor_transpose_product(tf.ensure_shape(c, gram.shape[:1]))
        require_consistent(gram, c, image_of_c, value, base.rounding)
        value = value if start is None else value + start
        quadratic_form = tf.reduce_sum(tf.square(image_of_c + start_image))
        return value, (tf.shape(gram)[0], rank, condition, discarded, quadratic_form, ~safe, ~safe & (damping > 0))

    @staticmethod
    def _start(
        base: FactoredOperator, damping: tf.Tensor, static: float | None, rhs: FactoredRhs
    ) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """`d0 = shift + rest / damping`, and `A rest` where the damping may be zero."""
        start, image = rhs.shift, None
        if rhs.rest is not None:
            if static != 0.0:
                scaled = tf.math.divide_no_nan(rhs.rest, damping)
                start = scaled if start is None else start + scaled
            if not static:
                image = base.factor_product(rhs.rest)
        if start is not None and not static:
            start = tf.where(damping > 0, start, tf.zeros_like(start))
        return start, image

    def _regular(self, gram: tf.Tensor, cholesky: tf.Tensor) -> tf.Tensor:
        """Whether surely no eigenvalue of `gram` is below `rcond` times the largest.

        `||K||_F ||L^-1||_F^2` bounds the condition number of `K = L L^T` from above.
        """
        inverse = tf.linalg.triangular_solve(cholesky, tf.eye(tf.shape(gram)[0], dtype=gram.dtype))
        return tf.norm(gram) * tf.reduce_sum(tf.square(inverse)) * self.rcond < 1.0

    def report(self, numbers: tuple) -> GramInfo:
        return GramInfo(type(self).__name__, *numbers)


def _gradient(base: FactoredOperator, rhs: FactoredRhs) -> tf.Tensor:
    return flat_rhs(base, rhs._replace(shift=None))


def require_consistent(gram: tf.Tensor, x: tf.Tensor, image: tf.Tensor, value: tf.Tensor, rounding: float) -> None:
    """Refuses coefficients for which `x^T K x` and `|A^T x|^2` are not the same but for rounding.

    Args:
        gram: `K` `[m, m]`.
        x: `[m]`.
        image: `K x` `[m]`.
        value: `A^T x` `[n]`.
        rounding: the spacing of the numbers above one, in the arithmetic that formed `K`.

    Raises:
        GramMismatchError: where they differ; in a graph as an assertion.
    """
    # `l2_loss` is half of the sum of squares, without a copy.
    difference = tf.abs(tf.reduce_sum(x * image) - 2.0 * tf.nn.l2_loss(value))
    # The norm of K, also where the squares of its entries underflow.
    norm = tf.maximum(tf.sqrt(2.0 * tf.nn.l2_loss(gram)), tf.reduce_max(tf.linalg.diag_part(gram)))
    allowed = _ROUNDINGS * rounding * 2.0 * tf.nn.l2_loss(x) * norm
    # What is not finite is found out elsewhere, under its own name.
    consistent = (difference <= allowed) | ~tf.math.is_finite(difference - allowed)
    _checks.require(consistent, _MISMATCH, GramMismatchError)


def _condition_number(matrix: tf.Tensor, cholesky: tf.Tensor) -> tf.Tensor:
    """The condition number of a positive definite matrix, by a few steps of the power method for each end of it.

    The estimate is from below, and close unless a start at random has next to no share in an extreme eigenvector.
    """
    start = tf.random.stateless_normal([tf.shape(matrix)[0], 1], (1, 2), dtype=matrix.dtype)

    def largest(product: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        vector, norm = start / tf.norm(start), tf.ones([], matrix.dtype)
        for _ in range(_POWER_STEPS):
            image = product(vector)
            norm = tf.norm(image)
            vector = image / norm
        return norm

    return largest(lambda v: tf.linalg.matmul(matrix, v)) * largest(lambda v: tf.linalg.cholesky_solve(cholesky, v))


def _share_left(part: tf.Tensor, whole: tf.Tensor) -> tf.Tensor:
    return tf.maximum(tf.math.divide_no_nan(whole - part, whole), 0.0)


__all__ = ["Gram", "GramInfo", "require_consistent"]
