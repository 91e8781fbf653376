"""Kronecker factors of all layers of a matrix, and the inverse of what they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import ModelLike
from tf_natgrad.layers.kronecker import Block, blocks_of, kronecker_sums
from tf_natgrad.operators._base import CurvatureOperator
from tf_natgrad.operators._batch import Batch
from tf_natgrad.operators._factored_model import FactoredModelOperator
from tf_natgrad.operators.damped import Damped
from tf_natgrad.parameters import FlatParameters

_DIAGONAL = (
    "The Kronecker-factored matrix keeps the diagonal alone of layers that have no Kronecker factors, those of: {}."
)


class KroneckerBlock(NamedTuple):
    """The block of one layer: `A (x) G` over the layer's matrix `[d_in, d_out]` in row-major order, or a diagonal.

    Attributes:
        variables: the layer's variables; a bias is the last row of the matrix.
        inputs: `A`, `[d_in, d_in]`; of an embedding its diagonal `[d_in]`; `None` for a diagonal block.
        gradients: `G`, `[d_out, d_out]`; `None` for a diagonal block.
        diagonal: the diagonal of a block that is no product, `[n_layer]`; else `None`.
    """

    variables: list[keras.Variable]
    inputs: tf.Tensor | None
    gradients: tf.Tensor | None
    diagonal: tf.Tensor | None


class Factors(NamedTuple):
    """The blocks of a matrix, and where their variables are in a vector.

    Attributes:
        flat: the layout of the vector.
        layout: the shapes of the blocks.
        blocks: the blocks.
    """

    flat: FlatParameters
    layout: list[Block]
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
        layout = blocks_of(model, base.flat_parameters)
        without = [block.variables[0].path for block in layout if block.matrix is None]
        if without:
            text = _DIAGONAL.format(", ".join(without))
            _checks.log_once(text, key=text)
        sizes = [size for block in layout for size in block.sizes]

        def of_batch(batch: Batch) -> tf.Tensor:
            # Made before the linearization is read: a second pass brings one of its own.
            record, columns = batch.record, base.columns_of(batch)
            return kronecker_sums(layout, record, batch.linearization, columns, batch.weights, approximation)

        sums = base.total(f"kronecker_{approximation}", of_batch, tf.zeros([sum(sizes)], base.dtype), record_calls=True)
        parts = iter(tf.split(sums, sizes))
        return cls(base.flat_parameters, layout, [_made(block, parts) for block in layout])

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
        variables = self.flat.variables
        parts = {id(v): tf.reshape(t, [-1]) for v, t in zip(variables, self.flat.unflatten(vector), strict=True)}
        found = {}
        for shape, block in zip(self.layout, self.blocks, strict=True):
            part = tf.concat([parts[id(v)] for v in shape.variables], 0)
            if shape.matrix is None:
                image = of_diagonal(block.diagonal, part)
            else:
                image = of_matrix(block, tf.reshape(part, [shape.matrix.rows, shape.matrix.columns]))
            pieces = tf.split(tf.reshape(image, [-1]), [math.prod(v.shape) for v in shape.variables])
            found |= {id(v): piece for v, piece in zip(shape.variables, pieces, strict=True)}
        return tf.concat([found[id(v)] for v in variables], 0)


class KroneckerInverse(CurvatureOperator):
    """The inverse of a damped Kronecker-factored matrix, see `KroneckerFisher.inverse`.

    Args:
        factors: of the matrix.
        damping: a positive scalar.
        split: `"exact"` or `"pi"`.
    """

    def __init__(self, factors: Factors, damping: tf.Tensor, split: str):
        super().__init__(factors.flat, name="KroneckerInverse")
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


def _made(block: Block, parts: Any) -> KroneckerBlock:
    """The block of these sums."""
    if block.matrix is None:
        return KroneckerBlock(block.variables, None, None, next(parts))
    rows, columns = block.matrix.rows, block.matrix.columns
    inputs, mass, gradients = next(parts), next(parts), next(parts)
    inputs = tf.math.divide_no_nan(inputs, mass[0])
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
    g_values, g_vectors = tf.linalg.eigh(block.gradients)
    if block.inputs.shape.rank == 1:
        values = tf.nn.relu(block.inputs)[:, None] * tf.nn.relu(g_values) + damping
        return lambda v: tf.linalg.matmul(tf.linalg.matmul(v, g_vectors) / values, g_vectors, transpose_b=True)
    a_values, a_vectors = tf.linalg.eigh(block.inputs)
    # Rounding may give a small negative eigenvalue.
    values = tf.nn.relu(a_values)[:, None] * tf.nn.relu(g_values) + damping

    def apply(v: tf.Tensor) -> tf.Tensor:
        rotated = tf.linalg.matmul(tf.linalg.matmul(a_vectors, v, transpose_a=True), g_vectors) / values
        return tf.linalg.matmul(tf.linalg.matmul(a_vectors, rotated), g_vectors, transpose_b=True)

    return apply


def _split_inverse(block: KroneckerBlock, damping: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    a, g = block.inputs, block.gradients
    tiny = tf.constant(np.finfo(a.dtype.as_numpy_dtype).tiny, a.dtype)
    means = [tf.maximum(tf.reduce_mean(diagonal_of(factor)), tiny) for factor in (a, g)]
    pi, root = tf.sqrt(means[0] / means[1]), tf.sqrt(damping)
    right = _inverse(g, root / pi)
    # Products with inverses cost half of what triangular solves do.
    if a.shape.rank == 1:
        return lambda v: tf.linalg.matmul(v / (a + root * pi)[:, None], right)
    left = _inverse(a, root * pi)
    return lambda v: tf.linalg.matmul(tf.linalg.matmul(left, v), right)


def _inverse(factor: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
    """`(factor + damping I)^-1`."""
    unit = tf.eye(factor.shape[0], dtype=factor.dtype)
    inverse = tf.linalg.cholesky_solve(tf.linalg.cholesky(factor + damping * unit), unit)
    return 0.5 * (inverse + tf.transpose(inverse))


__all__ = [
    "Factors",
    "KroneckerBlock",
    "KroneckerInverse",
    "diagonal_of",
    "eigenvalues_of",
    "preconditioner_for",
    "times_inputs",
]
