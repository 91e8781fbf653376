"""Inverses of damped Kronecker factors: dense, diagonal, or of low rank plus a multiple of the identity."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import tensorflow as tf

from tf_natgrad._conditions import is_finite
from tf_natgrad.operators._kronecker import inverse_of

# What a factor that is not positive definite in its precision is damped more by, and how often.
_MORE, _TRIES = 10.0, 6


class Part(NamedTuple):
    """One tensor of a state: its shape, and whether it starts as random orthonormal columns instead of zeros."""

    name: str
    shape: tuple[int, ...]
    is_basis: bool = False


class Inverse(Protocol):
    """How the inverse of one damped factor is kept, as tensors of fixed shapes.

    Attributes:
        cost: multiplications for the product with one row.
        form: in words.
    """

    cost: int
    form: str

    def parts(self) -> list[Part]:
        """Returns the tensors that the inverse consists of."""

    def of(self, factor: tf.Tensor, damping: tf.Tensor, last: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Computes the inverse of `factor + damping I`.

        Args:
            factor: symmetric, `[d, d]`, or a diagonal `[d]`.
            damping: a scalar.
            last: the inverse before.

        Returns:
            The tensors of `parts`, and by how many powers of ten the damping had to be raised.
        """

    def times(self, rows: tf.Tensor, parts: list[tf.Tensor]) -> tf.Tensor:
        """Computes products of rows `[k, d]` with the inverse."""

    def times_columns(self, columns: tf.Tensor, parts: list[tf.Tensor]) -> tf.Tensor:
        """Computes products of the inverse with columns `[d, k]`, without transposing them."""


class Dense:
    """The inverse as a matrix, by Cholesky; where that fails, of the factor with ten times the damping.

    Args:
        size: d.
    """

    form = "dense"

    def __init__(self, size: int):
        self._size = size
        self.cost = size**2

    def parts(self) -> list[Part]:
        return [Part("inverse", (self._size, self._size))]

    def of(self, factor: tf.Tensor, damping: tf.Tensor, last: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        del last

        def fails(inverse: tf.Tensor, tries: tf.Tensor) -> tf.Tensor:
            return ~is_finite(inverse) & (tries < _TRIES)

        def again(inverse: tf.Tensor, tries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            del inverse
            return inverse_of(factor, damping * _MORE ** tf.cast(tries + 1, damping.dtype)), tries + 1

        start = inverse_of(factor, damping)
        inverse, tries = tf.while_loop(fails, again, (start, tf.constant(0)), parallel_iterations=1)
        return [inverse], tries

    def times(self, rows: tf.Tensor, parts: list[tf.Tensor]) -> tf.Tensor:
        return tf.linalg.matmul(rows, parts[0])

    def times_columns(self, columns: tf.Tensor, parts: list[tf.Tensor]) -> tf.Tensor:
        return tf.linalg.matmul(parts[0], columns)


class Diagonal:
    """The inverse of a diagonal factor, that of an embedding's inputs.

    Args:
        size: d.
    """

    form = "diagonal"

    def __init__(self, size: int):
        self._size = self.cost = size

    def parts(self) -> list[Part]:
        return [Part("inverse", (self._size,))]

    def of(self, factor: tf.Tensor, damping: tf.Tensor, last: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        del last
        return [1.0 / (factor + damping)], tf.constant(0)

    def times(self, rows: tf.Tensor, parts: list[tf.Tensor]) -> tf.Tensor:
        return rows * parts[0]

    def times_columns(self, columns: tf.Tensor, parts: list[tf.Tensor]) -> tf.Tensor:
        return parts[0][:, None] * columns


class LowRank:
    """The inverse of the leading eigenpairs and, for the rest, of the mean of the other eigenvalues.

    The eigenvectors are those of one step of subspace iteration from the last ones.

    Args:
        size: d.
        rank: the number of eigenpairs.
    """

    def __init__(self, size: int, rank: int):
        self._size, self._rank = size, rank
        self.cost = 2 * size * rank
        self.form = f"rank {rank}"

    def parts(self) -> list[Part]:
        return [
            Part("eigenvectors", (self._size, self._rank), is_basis=True),
            Part("eigenvalues", (self._rank,)),
            Part("rest", ()),
        ]

    def of(self, factor: tf.Tensor, damping: tf.Tensor, last: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        basis, _ = tf.linalg.qr(tf.linalg.matmul(factor, last[0]))
        small = tf.linalg.matmul(basis, tf.linalg.matmul(factor, basis), transpose_a=True)
        values, vectors = tf.linalg.eigh(0.5 * (small + tf.transpose(small)))
        values = tf.nn.relu(values)
        others = tf.nn.relu(tf.linalg.trace(factor) - tf.reduce_sum(values)) / (self._size - self._rank)
        # Once the subspace has settled, what is left lies below the smallest of them: no direction there is lengthened
        # more than twice too much.
        rest = 1.0 / tf.maximum(others + damping, 0.5 * (values[0] + damping))
        return [tf.linalg.matmul(basis, vectors), 1.0 / (values + damping) - rest, rest], tf.constant(0)

    def times(self, rows: tf.Tensor, parts: list[tf.Tensor]) -> tf.Tensor:
        vectors, values, rest = parts
        return rows * rest + tf.linalg.matmul(tf.linalg.matmul(rows, vectors) * values, vectors, transpose_b=True)

    def times_columns(self, columns: tf.Tensor, parts: list[tf.Tensor]) -> tf.Tensor:
        vectors, values, rest = parts
        image = values[:, None] * tf.linalg.matmul(vectors, columns, transpose_a=True)
        return rest * columns + tf.linalg.matmul(vectors, image)


__all__ = ["Dense", "Diagonal", "Inverse", "LowRank", "Part"]
