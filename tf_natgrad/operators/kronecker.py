"""The Kronecker-factored approximation of the Fisher matrix: block by layer, each a product of two small matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _conditions, _keras
from tf_natgrad._typing import LossLike, ModelLike, TensorLike, plain_python
from tf_natgrad.layers.kronecker import APPROXIMATIONS, Block, blocks_of, kronecker_sums
from tf_natgrad.operators._base import CurvatureOperator
from tf_natgrad.operators._batch import Batch
from tf_natgrad.operators._factored_model import FactoredModelOperator
from tf_natgrad.operators.damped import Damped
from tf_natgrad.operators.fisher import EmpiricalFisher, Fisher
from tf_natgrad.parameters import FlatParameters

SPLITS = ("pi", "exact")
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


class KroneckerFisher(CurvatureOperator):
    """Approximates the Fisher by `A_l (x) G_l` for each layer l, and zero between layers, `[n, n]`.

    `A` is the weighted mean of `h h^T` over the layer's inputs `h` (with a 1 for the bias), `G` the sum of
    `w_i E[d d^T]` over the gradients `d` of the log-likelihood at its outputs, for labels drawn from the model. It is
    exact for one example at one position, and for deep linear networks with squared error; elsewhere an approximation.

    Dense, Conv1D, Conv2D and Embedding layers have such a product (that of an Embedding has a diagonal `A`). Of other
    layers (normalisation, depthwise and grouped convolutions, recurrent layers, one's own) only the exact diagonal is
    kept; `blocks` tells. A layer that is called several times has all of its calls as positions.

    >>> import keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    >>> fisher = KroneckerFisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), tf.ones([5, 3]))
    >>> [(block.inputs.shape[0], block.gradients.shape[0]) for block in fisher.blocks]
    [(4, 4), (5, 2)]
    >>> fisher.inverse(0.1).matvec(tf.ones([26])).shape
    TensorShape([26])

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a `Distribution` subclass; for several outputs a list or dictionary of losses.
        data: one batch, or a `tf.data.Dataset`, which is read once; see `Fisher`.
        approximation: `"expand"` (positions count as examples) or `"reduce"` (`h` is averaged, and `d` summed, over
            the positions of an example). Without positions they are the same.
        fisher: the labels: `"exact"` (the expectation in closed form), `"mc"` (drawn from the model) or `"empirical"`
            (those of the data).
        seed: of the labels of `"mc"`.
        mc_samples: the number of draws per example, for `"mc"`.
        **options: `sample_weight`, `training`, `variables`, `progress`, `micro_batch_size`; see `Fisher`.

    Raises:
        ValueError: if an argument is out of its range, or a variable belongs to no layer of its own.

    References:
        J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML (2015),
        section 3. R. Grosse, J. Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", ICML
        (2016). R. Eschenhagen et al., "Kronecker-factored approximate curvature for modern neural network
        architectures", NeurIPS (2023), for the names of the approximations.
    """

    def __init__(
        self,
        model: ModelLike,
        loss: LossLike,
        data: Any,
        *,
        approximation: str = "expand",
        fisher: str = "exact",
        seed: int | tf.Tensor = 0,
        mc_samples: int = 1,
        **options: Any,
    ):
        _checks.check_choice("approximation", approximation, APPROXIMATIONS)
        _checks.check_choice("fisher", fisher, ("exact", "mc", "empirical"))
        if fisher == "empirical":
            base: Fisher | EmpiricalFisher = EmpiricalFisher(model, loss, data, record_calls=True, **options)
        else:
            drawn = {"seed": seed, "mc_samples": mc_samples}
            base = Fisher(model, loss, data, kind=fisher, record_calls=True, **drawn, **options)
        super().__init__(base.flat_parameters, name="KroneckerFisher")
        self._factors = _keras.Untracked(Factors.of(base, model, approximation))

    @property
    def blocks(self) -> list[KroneckerBlock]:
        """The blocks, one per layer."""
        return self._factors.value.blocks

    def prepare(self) -> None:
        """Does nothing: the factors were computed on construction."""

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        def of_block(block: KroneckerBlock, v: tf.Tensor) -> tf.Tensor:
            return tf.linalg.matmul(_times_inputs(block.inputs, v), block.gradients)

        return self._factors.value.map(vector, of_block, lambda diagonal, v: diagonal * v)

    def diagonal(self) -> tf.Tensor:
        def of_block(block: KroneckerBlock, ones: tf.Tensor) -> tf.Tensor:
            return ones * _diagonal(block.inputs)[:, None] * tf.linalg.diag_part(block.gradients)

        ones = tf.ones([self._flat.size], self.dtype)
        return self._factors.value.map(ones, of_block, lambda diagonal, v: diagonal * v)

    def inverse(self, damping: TensorLike, split: str = "exact") -> CurvatureOperator:
        """Returns the inverse of the damped matrix, as an operator.

        Args:
            damping: a number > 0, or a scalar tensor.
            split: `"exact"`: `(A (x) G + damping I)^-1`, by the eigenvalues of the factors; `"pi"`:
                `(A + pi sqrt(damping) I)^-1 (x) (G + sqrt(damping) / pi I)^-1`, by Cholesky, with
                `pi^2 = (tr A / d_in) / (tr G / d_out)`, which is cheaper and damps more.

        Returns:
            An operator whose products are those of the inverse.

        Raises:
            ValueError: if `damping` is not positive, or `split` unknown.

        References:
            J. Martens, R. Grosse (2015), section 6.3, for the split.
        """
        _checks.check_choice("split", split, SPLITS)
        return KroneckerInverse(self._factors.value, _checked_damping(damping, self.dtype), split)

    @plain_python
    def eigenvalues(self) -> tf.Tensor:
        """Computes all eigenvalues, from those of the factors, in ascending order, `[n]`."""
        found = []
        for block in self.blocks:
            if block.diagonal is not None:
                found.append(block.diagonal)
            else:
                a, g = _eigenvalues(block.inputs), tf.linalg.eigvalsh(block.gradients)
                found.append(tf.reshape(a[:, None] * g, [-1]))
        return tf.sort(tf.concat(found, 0))

    @plain_python
    def log_determinant(self, damping: TensorLike) -> tf.Tensor:
        """Computes the logarithm of the determinant of `self + damping I`, from the eigenvalues of the factors.

        Args:
            damping: a number > 0, or a scalar tensor.

        Returns:
            A scalar.

        Raises:
            ValueError: if `damping` is not positive.
        """
        damping = _checked_damping(damping, self.dtype)
        return tf.reduce_sum(tf.math.log(tf.nn.relu(self.eigenvalues()) + damping))


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


def _times_inputs(factor: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """`factor matrix`; a factor of rank one is a diagonal."""
    return factor[:, None] * matrix if factor.shape.rank == 1 else tf.linalg.matmul(factor, matrix)


def _diagonal(factor: tf.Tensor) -> tf.Tensor:
    return factor if factor.shape.rank == 1 else tf.linalg.diag_part(factor)


def _eigenvalues(factor: tf.Tensor) -> tf.Tensor:
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
    means = [tf.maximum(tf.reduce_mean(_diagonal(factor)), tiny) for factor in (a, g)]
    pi, root = tf.sqrt(means[0] / means[1]), tf.sqrt(damping)
    g_root = tf.linalg.cholesky(g + root / pi * tf.eye(g.shape[0], dtype=g.dtype))
    a_root = None if a.shape.rank == 1 else tf.linalg.cholesky(a + root * pi * tf.eye(a.shape[0], dtype=a.dtype))

    def apply(v: tf.Tensor) -> tf.Tensor:
        v = v / (a + root * pi)[:, None] if a_root is None else tf.linalg.cholesky_solve(a_root, v)
        return tf.transpose(tf.linalg.cholesky_solve(g_root, tf.transpose(v)))

    return apply


def _checked_damping(damping: TensorLike, dtype: tf.DType) -> tf.Tensor:
    if not tf.is_tensor(damping) and not hasattr(damping, "assign"):
        _checks.check_number("damping", damping, minimum=0.0, exclusive=True)
        return tf.constant(damping, dtype)
    value = tf.convert_to_tensor(damping)
    _checks.check_scalar("damping", value)
    text = _checks.message("damping", "a number that is not positive, or NaN", "a scalar > 0")
    _conditions.require(value > 0, text)
    return tf.cast(value, dtype)


__all__ = ["KroneckerBlock", "KroneckerFisher", "preconditioner_for"]
