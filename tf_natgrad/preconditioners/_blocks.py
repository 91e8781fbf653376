"""The state of one block of a preconditioner: running averages of its factors, and what inverts them."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from tf_natgrad.layers.kronecker import Block
from tf_natgrad.operators._kronecker import diagonal_of, eigenpairs_of, from_basis, made_block, split_damping, to_basis
from tf_natgrad.preconditioners._inverses import Dense, Diagonal, Inverse, LowRank, Part


class Gradient(NamedTuple):
    """The gradient of one block: a matrix (of a diagonal block, a vector), or rows whose product it is.

    Attributes:
        matrix: `[d_in, d_out]` or `[n]`, or `None`.
        inputs: `h`, `[M, d_in]`, or `None`.
        outputs: `e`, `[M, d_out]`: the gradient is `h^T e`.
    """

    matrix: tf.Tensor | None
    inputs: tf.Tensor | None = None
    outputs: tf.Tensor | None = None

    def as_matrix(self) -> tf.Tensor:
        """Returns the gradient itself."""
        return self.matrix if self.inputs is None else tf.linalg.matmul(self.inputs, self.outputs, transpose_a=True)


class BlockState(abc.ABC):
    """How the state of a block is updated and used.

    Args:
        block: the shape of the block.
    """

    def __init__(self, block: Block):
        self.block = block

    @abc.abstractmethod
    def averages(self) -> list[Part]:
        """Returns the tensors that are running averages."""

    @abc.abstractmethod
    def inverses(self) -> list[Part]:
        """Returns the tensors that are made of them every now and then."""

    @abc.abstractmethod
    def of_sums(self, sums: Iterator[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the value of a batch that enters each average, of its sums (see `kronecker_sums`)."""

    @abc.abstractmethod
    def trace(self, averages: list[tf.Tensor]) -> tf.Tensor:
        """Computes the trace of the block, a scalar."""

    @abc.abstractmethod
    def inverted(
        self, averages: list[tf.Tensor], damping: tf.Tensor, last: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Computes the inverses of averages with this damping, and how often it had to be raised tenfold."""

    @abc.abstractmethod
    def solve(
        self, gradient: Gradient, averages: list[tf.Tensor], inverses: list[tf.Tensor], damping: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes `d`, the preconditioned gradient `g`, and the scalar `g^T d`."""

    def takes_rows(self, count: int | None) -> bool:
        """Whether `solve` is given the rows of a gradient, as the product with their matrix would take longer.

        Args:
            count: of the rows; `None` where it is not known.
        """
        del count
        return False

    def describe(self) -> str:
        """Returns the form of the inverse, in words."""
        return "diagonal"


class DiagonalState(BlockState):
    """A block of which the diagonal alone is kept."""

    def averages(self) -> list[Part]:
        return [Part("diagonal", (self.block.sizes[0],))]

    def inverses(self) -> list[Part]:
        return []

    def of_sums(self, sums: Iterator[tf.Tensor]) -> list[tf.Tensor]:
        return [made_block(self.block, sums).diagonal]

    def trace(self, averages: list[tf.Tensor]) -> tf.Tensor:
        return tf.reduce_sum(averages[0])

    def inverted(
        self, averages: list[tf.Tensor], damping: tf.Tensor, last: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        return [], tf.constant(0)

    def solve(
        self, gradient: Gradient, averages: list[tf.Tensor], inverses: list[tf.Tensor], damping: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        d = gradient.matrix / (averages[0] + damping)
        return d, tf.reduce_sum(d * gradient.matrix)


class ProductState(BlockState):
    """A block that is a Kronecker product."""

    def averages(self) -> list[Part]:
        rows, columns = self.block.matrix.rows, self.block.matrix.columns
        return [
            Part("inputs", (rows,) if self.block.matrix.is_table else (rows, rows)),
            Part("gradients", (columns, columns)),
        ]

    def of_sums(self, sums: Iterator[tf.Tensor]) -> list[tf.Tensor]:
        made = made_block(self.block, sums)
        return [made.inputs, made.gradients]

    def trace(self, averages: list[tf.Tensor]) -> tf.Tensor:
        return tf.reduce_sum(diagonal_of(averages[0])) * tf.linalg.trace(averages[1])


class SplitState(ProductState):
    """`(A + pi sqrt(damping) I)^-1 (x) (G + sqrt(damping) / pi I)^-1`.

    Args:
        block: the shape of the block.
        rank: of the inverse of factors that are larger than `largest`.
        largest: see `rank`.
    """

    def __init__(self, block: Block, rank: int, largest: int):
        super().__init__(block)

        def side(size: int, is_table: bool) -> Inverse:
            if is_table:
                return Diagonal(size)
            return LowRank(size, rank) if size > largest and size > 2 * rank else Dense(size)

        self._left = side(block.matrix.rows, block.matrix.is_table)
        self._right = side(block.matrix.columns, False)
        left, right = self._left.cost, self._right.cost
        # The number of rows up to which products with them take less time than products with their matrix.
        self._most = (block.matrix.columns * left + block.matrix.rows * right) // (left + right)

    def inverses(self) -> list[Part]:
        left = [part._replace(name=f"inputs_{part.name}") for part in self._left.parts()]
        return left + [part._replace(name=f"gradients_{part.name}") for part in self._right.parts()]

    def inverted(
        self, averages: list[tf.Tensor], damping: tf.Tensor, last: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        of_inputs, of_gradients = split_damping(*averages, damping)
        cut = len(self._left.parts())
        left, raised = self._left.of(averages[0], of_inputs, last[:cut])
        right, more = self._right.of(averages[1], of_gradients, last[cut:])
        return left + right, tf.maximum(raised, more)

    def solve(
        self, gradient: Gradient, averages: list[tf.Tensor], inverses: list[tf.Tensor], damping: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        cut = len(self._left.parts())
        left, right = inverses[:cut], inverses[cut:]
        h, e = gradient.inputs, gradient.outputs
        rows, columns = self.block.matrix.rows, self.block.matrix.columns

        def by_rows() -> tuple[tf.Tensor, tf.Tensor]:
            a, b = self._left.times(h, left), self._right.times(e, right)
            d = tf.linalg.matmul(a, b, transpose_a=True)
            # Both are g^T d; what they cost depends on the number of rows.
            if h.shape[0] is None or h.shape[0] * (rows + columns) > rows * columns:
                return d, tf.reduce_sum(tf.linalg.matmul(h, d) * e)
            products = tf.linalg.matmul(a, h, transpose_b=True) * tf.linalg.matmul(b, e, transpose_b=True)
            return d, tf.reduce_sum(products)

        def by_matrix() -> tuple[tf.Tensor, tf.Tensor]:
            v = gradient.as_matrix()
            d = self._left.times_columns(self._right.times(v, right), left)
            return d, tf.reduce_sum(v * d)

        if h is None:
            return by_matrix()
        # Both forms are exact, too.
        if h.shape[0] is not None:
            return by_rows() if self.takes_rows(h.shape[0]) else by_matrix()
        return tf.cond(tf.shape(h)[0] <= self._most, by_rows, by_matrix)

    def takes_rows(self, count: int | None) -> bool:
        return count is None or count <= self._most

    def describe(self) -> str:
        return f"{self._left.form} x {self._right.form}"


class EigenState(ProductState):
    """`U_A ((U_A^T V U_G) / (s + damping)) U_G^T`: K-FAC with exact damping, or EKFAC where `s` is estimated.

    Args:
        block: the shape of the block.
    """

    def inverses(self) -> list[Part]:
        rows, columns = self.block.matrix.rows, self.block.matrix.columns
        bases = [] if self.block.matrix.is_table else [Part("inputs_eigenvectors", (rows, rows))]
        return [*bases, Part("gradients_eigenvectors", (columns, columns)), Part("eigenvalues", (rows, columns))]

    def inverted(
        self, averages: list[tf.Tensor], damping: tf.Tensor, last: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        bases, products = eigenpairs_of(*averages)
        return [*bases, products], tf.constant(0)

    def solve(
        self, gradient: Gradient, averages: list[tf.Tensor], inverses: list[tf.Tensor], damping: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        *bases, values = inverses
        v = self._in_basis(gradient, bases)
        d = v / (values + damping)
        return from_basis(d, bases), tf.reduce_sum(v * d)

    def _in_basis(self, gradient: Gradient, bases: list[tf.Tensor]) -> tf.Tensor:
        if gradient.inputs is None:
            return to_basis(gradient.matrix, bases)
        left, right = bases
        h, e = tf.linalg.matmul(gradient.inputs, left), tf.linalg.matmul(gradient.outputs, right)
        return tf.linalg.matmul(h, e, transpose_a=True)

    def takes_rows(self, count: int | None) -> bool:
        rows, columns = self.block.matrix.rows, self.block.matrix.columns
        return count is not None and count * (rows + columns) <= rows * columns

    def describe(self) -> str:
        return "eigenvectors"


__all__ = ["BlockState", "DiagonalState", "EigenState", "Gradient", "SplitState"]
