"""The small system of the Gram form: `(K + damping I) c = b` `[m, m]`, by Cholesky where that is safe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_natgrad import _conditions
from tf_natgrad.solvers.svd import poison_unless

# Steps of the power method for each end of the spectrum.
_POWER_STEPS = 12


class Coefficients(NamedTuple):
    """What `GramSystem.solve` returns.

    Attributes:
        value: `c` `[m]`.
        rank: number of eigenvalues used.
        condition_number: of the matrix on the span used.
        discarded: share of the gradient's squared norm that lies outside of it.
        by_cholesky: whether the eigendecomposition was not needed.
    """

    value: tf.Tensor
    rank: tf.Tensor
    condition_number: tf.Tensor
    discarded: tf.Tensor
    by_cholesky: tf.Tensor


@dataclasses.dataclass(frozen=True)
class GramSystem:
    """`(K + damping I) c = b`; without damping `c = K^+ b + (K^+)^2 image`.

    Args:
        gram: `K` `[m, m]`.
        damping: a scalar >= 0.
        static: its value where it is known while tracing, or `None`.
        rcond: without damping, eigenvalues up to `rcond` times the largest count as zero.
        u: `[m]`, the part of the right-hand side that is `A^T u`.
        image: `A rest` `[m]` for what is not in the range of `A^T`, where the damping may be zero; or `None`.
        whole: with `image`, the squared norm of the gradient where there is no damping.
    """

    gram: tf.Tensor
    damping: tf.Tensor
    static: float | None
    rcond: float
    u: tf.Tensor
    image: tf.Tensor | None = None
    whole: tf.Tensor | None = None

    def solve(self, b: tf.Tensor) -> Coefficients:
        """The coefficients `c` for the right-hand side `b` `[m]`."""
        pivots = tf.linalg.diag_part(self.gram)
        live = pivots > 0
        # Rows of weight zero stay out of the solution; any positive pivot will do for them.
        diagonal = tf.where(live, pivots, tf.reduce_max(pivots)) + self.damping
        regular = tf.linalg.set_diag(self.gram, diagonal)
        cholesky = tf.linalg.cholesky(regular)
        finite = _conditions.is_finite(tf.linalg.diag_part(cholesky))
        damped = self.damping > 0
        safe = finite & (damped if self.static else tf.cond(damped, lambda: True, lambda: self._is_regular(cholesky)))

        def without_cholesky():
            # With damping Cholesky fails only where rounding is larger than the damping: more digits are needed.
            if self.static == 0.0:
                return self._by_eigh(b, self.gram.dtype)
            return tf.cond(damped, lambda: self._by_eigh(b, tf.float64), lambda: self._by_eigh(b, self.gram.dtype))

        found = tf.cond(safe, lambda: self._by_cholesky(b, live, regular, cholesky), without_cholesky)
        return Coefficients(*found, safe)

    def _finish(self, apply: Callable[[tf.Tensor], tf.Tensor], b: tf.Tensor) -> tf.Tensor:
        c = apply(b)
        if self.image is None:
            return c
        return c + self._if_undamped(lambda: apply(apply(self.image)), tf.zeros_like(c))

    def _if_undamped(self, value: Callable[[], tf.Tensor], otherwise: tf.Tensor) -> tf.Tensor:
        """`value()`, which with damping is not computed: in a branch TensorFlow prunes nothing."""
        return tf.cond(self.damping > 0, lambda: otherwise, value)

    def _by_cholesky(self, b: tf.Tensor, live: tf.Tensor, regular: tf.Tensor, cholesky: tf.Tensor) -> tuple:
        def apply(x: tf.Tensor) -> tf.Tensor:
            return tf.linalg.cholesky_solve(cholesky, x[:, None])[:, 0]

        def share_left() -> tf.Tensor:
            kept = self.u + apply(self.image)
            return _share_left(tf.reduce_sum(kept * tf.linalg.matvec(self.gram, kept)), self.whole)

        diagonal, discarded = tf.linalg.diag_part(cholesky), tf.zeros([], self.gram.dtype)
        condition = tf.square(tf.reduce_max(diagonal) / tf.reduce_min(diagonal))
        if not self.static:
            condition = self._if_undamped(lambda: condition_number(regular, cholesky), condition)
        if self.image is not None:
            discarded = self._if_undamped(share_left, discarded)
        return self._finish(apply, b), tf.reduce_sum(tf.cast(live, tf.int32)), condition, discarded

    def _by_eigh(self, b: tf.Tensor, dtype: tf.DType) -> tuple:
        gram = self.gram
        finite = _conditions.is_finite(gram)
        matrix, shift, along = (tf.cast(t, dtype) for t in (gram, self.damping, self.u))
        values, vectors = tf.linalg.eigh(tf.where(finite, matrix, tf.eye(tf.shape(matrix)[0], dtype=dtype)))
        values = tf.maximum(values, 0.0)
        keep = (values > self.rcond * values[-1]) | (shift > 0)
        inverse = tf.where(keep, tf.math.divide_no_nan(tf.ones_like(values), values + shift), 0.0 * values)

        def apply(x: tf.Tensor) -> tf.Tensor:
            coordinates = tf.linalg.matvec(vectors, tf.cast(x, dtype), transpose_a=True)
            return tf.cast(tf.linalg.matvec(vectors, inverse * coordinates), gram.dtype)

        coordinates = tf.linalg.matvec(vectors, along, transpose_a=True)
        if self.image is not None:
            # Of `rest`, A rest = K w has the coordinates w in the range of A^T.
            coordinates += inverse * tf.linalg.matvec(vectors, tf.cast(self.image, dtype), transpose_a=True)
        energy = tf.where(keep, values, tf.zeros_like(values)) * tf.square(coordinates)
        total = tf.reduce_sum(values * tf.square(coordinates)) if self.image is None else tf.cast(self.whole, dtype)
        discarded = tf.where(shift > 0, 0.0 * total, _share_left(tf.reduce_sum(energy), total))
        used = tf.where(keep, values, values[-1]) + shift
        condition = tf.math.divide_no_nan(values[-1] + shift, tf.reduce_min(used))
        rank = tf.reduce_sum(tf.cast(keep, tf.int32))
        c = poison_unless(finite, self._finish(apply, b))
        return c, rank, tf.cast(condition, gram.dtype), tf.cast(discarded, gram.dtype)

    def _is_regular(self, cholesky: tf.Tensor) -> tf.Tensor:
        """Whether surely no eigenvalue of `K` is below `rcond` times the largest.

        `||K||_F ||L^-1||_F^2` bounds the condition number of `K = L L^T` from above.
        """
        inverse = tf.linalg.triangular_solve(cholesky, tf.eye(tf.shape(self.gram)[0], dtype=self.gram.dtype))
        return tf.norm(self.gram) * tf.reduce_sum(tf.square(inverse)) * self.rcond < 1.0


def condition_number(matrix: tf.Tensor, cholesky: tf.Tensor) -> tf.Tensor:
    """The condition number of a positive definite matrix, by a few steps of the power method for each end of it.

    The estimate is from below, and close unless a start at random has next to no share in an extreme eigenvector.

    Args:
        matrix: `[m, m]`.
        cholesky: its lower triangular factor.

    Returns:
        A scalar.
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


__all__ = ["Coefficients", "GramSystem", "condition_number"]
