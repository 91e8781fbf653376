"""The Hessian of weight regularisers."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import ModelLike
from tf_natgrad.operators._base import CurvatureOperator
from tf_natgrad.parameters import FlatParameters

# Weights of a variable up to which the positive part of its block is formed.
LARGEST_BLOCK = 500


class Penalty(CurvatureOperator):
    """The Hessian `R` of a model's weight regularisers, `[n, n]`, one block per variable.

    Each product uses the current weights. For Keras's `L2(c)` a block is `2 c I`; for `L1` it is zero, as the kink at
    zero is ignored; any other regulariser is differentiated twice. `R` need not be positive semi-definite. The
    curvature of a loss with penalties is `fisher + Penalty(model)`.

    >>> import keras, tensorflow as tf
    >>> layer = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.5))
    >>> model = keras.Sequential([keras.Input((2,)), layer])
    >>> Penalty(model).matvec(tf.ones([3])).numpy().tolist()
    [1.0, 1.0, 0.0]

    Args:
        parameters: the variables, as `FlatParameters`, or a built Keras model for all trainable ones.

    Raises:
        TypeError: if it is neither.
        ValueError: if the model has no trainable weights.
    """

    def __init__(self, parameters: FlatParameters | ModelLike):
        if not isinstance(parameters, FlatParameters):
            _checks.check_model("parameters", parameters)
            parameters = FlatParameters(parameters.trainable_variables)
        super().__init__(parameters, name="Penalty")

    @property
    def is_zero(self) -> bool:
        """Whether no variable is regularised."""
        return all(_regularizer(v) is None for v in self._flat.variables)

    @property
    def is_positive_semi_definite(self) -> bool:
        constants = self.diagonal_by_variable()
        return constants is not None and min(constants) >= 0.0

    def diagonal_by_variable(self) -> list[float] | None:
        """Returns the diagonal of each block, if every block is a constant times the identity, whatever the weights.

        Returns:
            `2 c` for each variable with Keras's `L2(c)` or `L1L2(l2=c)`, zero for a variable with `L1` or without
            regulariser; `None` if any variable has another regulariser.
        """
        constants = [_constant(v) for v in self._flat.variables]
        return None if None in constants else constants

    def value(self) -> tf.Tensor:
        """Computes the sum of the penalties at the current weights, a scalar."""
        terms = [tf.cast(r(v), self.dtype) for v in self._flat.variables if (r := _regularizer(v)) is not None]
        return tf.add_n(terms) if terms else tf.zeros([], self.dtype)

    def gradient(self) -> tf.Tensor:
        """Computes the gradient of the penalties at the current weights, `[n]`."""
        with tf.GradientTape() as tape:
            value = self.value()
        gradients = tape.gradient(value, self._flat.tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return self._flat.flatten([tf.convert_to_tensor(g) for g in gradients])

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        parts = []
        for variable, tensor, part in zip(
            self._flat.variables, self._flat.tensors, self._flat.unflatten(vector), strict=True
        ):
            c = _constant(variable)
            parts.append(_second_derivative(variable, tensor, part) if c is None else tf.constant(c, part.dtype) * part)
        return self._flat.flatten(parts)

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        constants = self.diagonal_by_variable()
        if constants is None:
            return tf.map_fn(self.product, rows, parallel_iterations=1)
        return rows * self._spread(constants)

    def diagonal(self) -> tf.Tensor:
        constants = self.diagonal_by_variable()
        return super().diagonal() if constants is None else self._spread(constants)

    def dense_matrix(self) -> tf.Tensor:
        blocks = []
        for variable, tensor, size in zip(self._flat.variables, self._flat.tensors, self._flat.sizes, strict=True):
            constant = _constant(variable)
            if constant is None:
                block = tf.cast(tf.reshape(_block(variable, tensor), [size, size]), self.dtype)
                blocks.append(tf.linalg.LinearOperatorFullMatrix(block))
            else:
                multiplier = tf.constant(constant, self.dtype)
                blocks.append(tf.linalg.LinearOperatorScaledIdentity(size, multiplier))
        return tf.linalg.LinearOperatorBlockDiag(blocks).to_dense()

    def _spread(self, constants: list[float]) -> tf.Tensor:
        """One number per variable -> `[n]`."""
        return tf.constant(np.repeat(constants, self._flat.sizes), self.dtype)


class PositivePenalty(CurvatureOperator):
    """The positive part of a `Penalty`, block by block, at the weights of its construction.

    Args:
        penalty: the matrix. The block of a variable with more than `LARGEST_BLOCK` weights is taken as zero, unless it
            is a constant.
    """

    def __init__(self, penalty: Penalty):
        super().__init__(penalty.flat_parameters, name="PositivePenalty")
        flat = self._flat
        self._blocks = _keras.Untracked(
            [_positive_block(*each, flat.dtype) for each in zip(flat.variables, flat.tensors, flat.sizes, strict=True)]
        )
        self.left_out = [
            v.path
            for v, size in zip(flat.variables, flat.sizes, strict=True)
            if _constant(v) is None and size > LARGEST_BLOCK
        ]

    @property
    def is_positive_semi_definite(self) -> bool:
        return True

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        return self._operator().matvec(vector)

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.transpose(self._operator().matmul(tf.transpose(rows)))

    def dense_matrix(self) -> tf.Tensor:
        return self._operator().to_dense()

    def _operator(self) -> tf.linalg.LinearOperator:
        return tf.linalg.LinearOperatorBlockDiag(self._blocks.value)


def _positive_block(
    variable: keras.Variable, tensor: tf.Tensor, size: int, dtype: tf.DType
) -> tf.linalg.LinearOperator:
    constant = _constant(variable)
    if constant is None and size <= LARGEST_BLOCK:
        values, vectors = tf.linalg.eigh(tf.cast(tf.reshape(_block(variable, tensor), [size, size]), dtype))
        return tf.linalg.LinearOperatorFullMatrix(
            tf.linalg.matmul(vectors * tf.maximum(values, 0.0), vectors, transpose_b=True)
        )
    return tf.linalg.LinearOperatorScaledIdentity(size, tf.constant(constant or 0.0, dtype))


def _regularizer(variable: keras.Variable) -> Callable | None:
    return getattr(variable, "regularizer", None)


def _constant(variable: keras.Variable) -> float | None:
    """`2 c` of Keras's own quadratic penalties (a subclass may do anything), or `None`."""
    regularizer = _regularizer(variable)
    if regularizer is None or type(regularizer) is keras.regularizers.L1:
        return 0.0
    if type(regularizer) is keras.regularizers.L1L2:
        regularizer = keras.regularizers.L1L2(0.0, regularizer.l2)
    elif type(regularizer) is not keras.regularizers.L2:
        return None
    # Asked for its value at one, in eager code: Keras takes a number through float32.
    with tf.init_scope():
        return 2.0 * float(regularizer(tf.ones([1], variable.dtype)))


def _gradient(variable: keras.Variable, tensor: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        value = _regularizer(variable)(variable)
    return tf.convert_to_tensor(tape.gradient(value, tensor, unconnected_gradients=tf.UnconnectedGradients.ZERO))


def _second_derivative(variable: keras.Variable, tensor: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        slope = tf.reduce_sum(_gradient(variable, tensor) * tf.cast(vector, tensor.dtype))
    second = tape.gradient(slope, tensor, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tf.cast(tf.convert_to_tensor(second), vector.dtype)


def _block(variable: keras.Variable, tensor: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        gradient = tf.reshape(_gradient(variable, tensor), [-1])
    return tape.jacobian(gradient, tensor, unconnected_gradients=tf.UnconnectedGradients.ZERO)


__all__ = ["LARGEST_BLOCK", "Penalty", "PositivePenalty"]
