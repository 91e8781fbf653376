"""Kronecker factors of all layers of a matrix, and the inverse of what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import ModelLike
from tf_natgrad.layers.kronecker import Block, Layout, kronecker_sums
from tf_natgrad.operators._base import CurvatureOperator
from tf_natgrad.operators._batch import Batch
from tf_natgrad.operators._factored_model import FactoredModelOperator
from tf_natgrad.operators.damped import Damped

# The size up to which a matrix is inverted as a whole.
_SMALL = 160


class KroneckerBlock(NamedTuple):
    """The block of a layer: `A (x) G` over the layer's matrix `[d_in, d_out]` in row-major order, or a diagonal.

    Attributes:
        variables: the layer's variables; a bias is the last row of the matrix. The kernel of a transposed convolution,
            `[..., out, in]`, enters with its last two axes exchanged.
        inputs: `A`, `[d_in, d_in]`; of an embedding its diagonal `[d_in]`; `None` for a diagonal block.
        gradients: `G`, `[d_out, d_out]`; `None` for a diagonal block.
        diagonal: the diagonal of a block that is no product, `[n_layer]`; else `None`.
    """

    variables: list[keras.Variable]
    inputs: tf.Tensor | None
    gradients: tf.Tensor | None
    diagonal: tf.Tensor | None


class Factors(NamedTuple):
    """The blocks of a matrix.

    Attributes:
        layout: their shapes, and where their variables are in a vector.
        blocks: the blocks.
    """

    layout: Layout
    blocks: list[KroneckerBlock]

    @classmethod
    def of(cls, base: FactoredModelOperator, model: ModelLike, approximation: str) -> Factors:
        """Computes the factors of a matrix.

        Args:
            base: the matrix, whose factor gives the gradients at the outputs.
            model: the model.
            approximation: `"expand"` or `"reduce"`.

        Returns:
            The `Factors`.
        """
        layout = Layout.of(model, base.flat_parameters)
        sizes = [size for block in layout.blocks for size in block.sizes]

        def of_batch(batch: Batch) -> tf.Tensor:
            # Made before the linearization is read: a second pass brings one of its own.
            record, columns = batch.record, base.columns_of(batch)
            sums = kronecker_sums(layout.blocks, record, batch.linearization, columns, batch.weights, approximation)
            return tf.concat([tf.reshape(part, [-1]) for part in sums], 0)

        sums = base.total(f"kronecker_{approximation}", of_batch, tf.zeros([sum(sizes)], base.dtype), record_calls=True)
        parts = iter(tf.split(sums, sizes))
        return cls(layout, [made_block(block, parts) for block in layout.blocks])

    def map(
        self,
        vector: tf.Tensor,
        of_matrix: Callable[[KroneckerBlock, tf.Tensor], tf.Tensor],
        of_diagonal: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    ) -> tf.Tensor:
        """Applies a function to the part of each block in a vector.

        Args:
            vector: `[n]`.
            of_matrix: of a block and its part as a matrix `[d_in, d_out]`.
            of_diagonal: of a diagonal and its part.

        Returns:
            `[n]`.
        """
        parts = zip(self.blocks, self.layout.split(vector), strict=True)
        return self.layout.join(
            [of_matrix(b, part) if b.diagonal is None else of_diagonal(b.diagonal, part) for b, part in parts]
        )


class KroneckerInverse(CurvatureOperator):
    """The inverse of a damped Kronecker-factored matrix, see `KroneckerFisher.inverse`.

    Args:
        factors: of the matrix.
        damping: a positive scalar.
        split: `"exact"` or `"pi"`.
    """

    def __init__(self, factors: Factors, damping: tf.Tensor, split: str):
        super().__init__(factors.layout.flat, name="KroneckerInverse")
        self._factors = _keras.Untracked(factors)
        self.damping = damping
        make = _exact_inverse if split == "exact" else _split_inverse
        inverses = {id(b): make(b, damping) for b in factors.blocks if b.diagonal is None}
        self._inverses = _keras.Untracked(inverses)

    def prepare(self) -> None:
        """Does nothing: the factors were inverted on construction."""

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        inverses = self._inverses.value
        return self._factors.value.map(
            vector, lambda block, v: inverses[id(block)](v), lambda diagonal, v: v / (diagonal + self.damping)
        )


def preconditioner_for(operator: CurvatureOperator) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the inverse of the Kronecker-factored approximation of a damped matrix, as graph code.

    Args:
        operator: a damped Fisher or Gauss-Newton matrix of a model on one batch.

    Returns:
        A function `[n] -> [n]`.

    Raises:
        ValueError: if there is no such approximation, or no damping.
    """
    base = operator.base if isinstance(operator, Damped) else operator
    fits = isinstance(base, FactoredModelOperator) and base.is_one_batch
    if not fits or not isinstance(operator, Damped) or operator.static_damping == 0.0:
        raise ValueError(
            _checks.message(
                "preconditioner",
                "'kfac' for " + ("a matrix without damping" if fits else f"{type(base).__name__}"),
                "a damped matrix with a factor, of a model on one batch",
                "Damp it, or use 'jacobi' or no preconditioner.",
            )
        )
    factors = Factors.of(base, base.batch.model, "expand")
    return KroneckerInverse(factors, operator.damping, "pi").product


def made_block(block: Block, parts: Iterator[tf.Tensor]) -> KroneckerBlock:
    """Makes a block of its sums over a batch.

    Args:
        block: its shape.
        parts: the sums, see `kronecker_sums`; those of this block come next.

    Returns:
        A `KroneckerBlock`.
    """
    if block.matrix is None:
        return KroneckerBlock(block.variables, None, None, next(parts))
    rows, columns = block.matrix.rows, block.matrix.columns
    inputs, mass, gradients = next(parts), next(parts), next(parts)
    inputs = tf.math.divide_no_nan(inputs, tf.reshape(mass, []))
    if not block.matrix.is_table:
        inputs = tf.reshape(inputs, [rows, rows])
    return KroneckerBlock(block.variables, inputs, tf.reshape(gradients, [columns, columns]), None)


def times_inputs(factor: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """`factor matrix`; a factor of rank one is a diagonal."""
    return factor[:, None] * matrix if factor.shape.rank == 1 else tf.linalg.matmul(factor, matrix)


def diagonal_of(factor: tf.Tensor) -> tf.Tensor:
    return factor if factor.shape.rank == 1 else tf.linalg.diag_part(factor)


def eigenvalues_of(factor: tf.Tensor) -> tf.Tensor:
    return factor if factor.shape.rank == 1 else tf.linalg.eigvalsh(factor)


def _exact_inverse(block: KroneckerBlock, damping: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    bases, products = eigenpairs_of(block.inputs, block.gradients)
    return lambda v: from_basis(to_basis(v, bases) / (products + damping), bases)


def eigenpairs_of(inputs: tf.Tensor, gradients: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Computes the eigenvectors of both factors, and the products of their eigenvalues.

    Args:
        inputs: `A`, or its diagonal.
        gradients: `G`.

    Returns:
        `[U_A, U_G]`, or `[U_G]` where `A` is a diagonal; and `[d_in, d_out]`.
    """
    values, right = tf.linalg.eigh(gradients)
    left = []
    if inputs.shape.rank == 2:
        inputs, vectors = tf.linalg.eigh(inputs)
        left = [vectors]
    # Rounding may give a small negative eigenvalue.
    return [*left, right], tf.nn.relu(inputs)[:, None] * tf.nn.relu(values)


def to_basis(v: tf.Tensor, bases: list[tf.Tensor]) -> tf.Tensor:
    """Computes `U_A^T v U_G`, with the bases of `eigenpairs_of`."""
    *left, right = bases
    v = tf.linalg.matmul(v, right)
    return tf.linalg.matmul(left[0], v, transpose_a=True) if left else v


def from_basis(v: tf.Tensor, bases: list[tf.Tensor]) -> tf.Tensor:
    """Computes `U_A v U_G^T`, with the bases of `eigenpairs_of`."""
    *left, right = bases
    v = tf.linalg.matmul(v, right, transpose_b=True)
    return tf.linalg.matmul(left[0], v) if left else v


def _split_inverse(block: KroneckerBlock, damping: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    a, g = block.inputs, block.gradients
    of_inputs, of_gradients = split_damping(a, g, damping)
    right = inverse_of(g, of_gradients)
    # Products with inverses cost half of what triangular solves do.
    if a.shape.rank == 1:
        return lambda v: tf.linalg.matmul(v / (a + of_inputs)[:, None], right)
    left = inverse_of(a, of_inputs)
    return lambda v: tf.linalg.matmul(tf.linalg.matmul(left, v), right)


def split_damping(inputs: tf.Tensor, gradients: tf.Tensor, damping: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits a damping between two factors, `pi sqrt(damping)` and `sqrt(damping) / pi`.

    Args:
        inputs: `A`, or its diagonal.
        gradients: `G`.
        damping: a scalar.

    Returns:
        Two scalars, with `pi^2 = (tr A / d_in) / (tr G / d_out)`.

    References:
        J. Martens, R. Grosse (2015), section 6.3.
    """
    tiny = tf.constant(np.finfo(inputs.dtype.as_numpy_dtype).tiny, inputs.dtype)
    means = [tf.maximum(tf.reduce_mean(diagonal_of(factor)), tiny) for factor in (inputs, gradients)]
    pi, root = tf.sqrt(means[0] / means[1]), tf.sqrt(damping)
    return root * pi, root / pi


def inverse_of(factor: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
    """Computes `(factor + damping I)^-1`, `[d, d]`; it has entries that are NaN if that is not positive definite."""
    damped = factor + damping * tf.eye(factor.shape[0], dtype=factor.dtype)
    # The inverse by halves loses more digits: no more than three of them here.
    well = tf.linalg.trace(factor) <= damping * (1e-3 / np.finfo(factor.dtype.as_numpy_dtype).eps)
    return tf.cond(well, lambda: _by_halves(damped), lambda: _by_cholesky(damped))


def _by_cholesky(matrix: tf.Tensor) -> tf.Tensor:
    inverse = tf.linalg.cholesky_solve(tf.linalg.cholesky(matrix), tf.eye(matrix.shape[0], dtype=matrix.dtype))
    return 0.5 * (inverse + tf.transpose(inverse))


def _by_halves(matrix: tf.Tensor) -> tf.Tensor:
    """By matrix products, in half the time of triangular solves with the identity."""
    size = matrix.shape[0]
    if size <= _SMALL:
        return _by_cholesky(matrix)
    cut = size // 2
    first, beside = _by_halves(matrix[:cut, :cut]), matrix[:cut, cut:]
    image = tf.linalg.matmul(first, beside)
    # The Schur complement is positive definite where the matrix is.
    second = _by_halves(matrix[cut:, cut:] - tf.linalg.matmul(beside, image, transpose_a=True))
    corner = -tf.linalg.matmul(image, second)
    first -= tf.linalg.matmul(corner, image, transpose_b=True)
    return tf.concat([tf.concat([first, corner], 1), tf.concat([tf.transpose(corner), second], 1)], 0)


__all__ = [
    "Factors",
    "KroneckerBlock",
    "KroneckerInverse",
    "diagonal_of",
    "eigenpairs_of",
    "eigenvalues_of",
    "from_basis",
    "inverse_of",
    "made_block",
    "preconditioner_for",
    "split_damping",
    "times_inputs",
    "to_basis",
]
