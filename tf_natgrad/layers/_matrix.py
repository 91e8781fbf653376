"""A layer's variables as one matrix, which is what Kronecker factors are of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf


class MatrixShape(NamedTuple):
    """A layer's variables as one matrix: the first axes of each are rows, the last ones columns.

    Attributes:
        variables: the kernel, and the bias as a last row; of other variables of the layer the diagonal is kept.
        rows, columns: `d_in` and `d_out`.
        is_table: whether an input is a row number.
        has_plain_inputs: whether it acts on the inputs as they are, not on patches of them.
        kernel_axes: the kernel's axes in the order rows, then columns; `None` where that is their own order.
    """

    variables: list[keras.Variable]
    rows: int
    columns: int
    is_table: bool = False
    has_plain_inputs: bool = False
    kernel_axes: tuple[int, ...] | None = None

    def joined(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Makes one tensor per variable, in the variables' shapes, the matrix `[d_in, d_out]`."""
        kernel, *bias = tensors
        if self.kernel_axes is not None:
            kernel = tf.transpose(kernel, self.kernel_axes)
        vector = tf.concat([tf.reshape(t, [-1]) for t in (kernel, *bias)], 0)
        return tf.reshape(vector, [self.rows, self.columns])

    def pieces(self, matrix: tf.Tensor) -> list[tf.Tensor]:
        """The inverse of `joined`."""
        shapes = [list(v.shape) for v in self.variables]
        axes = self.kernel_axes
        if axes is not None:
            shapes[0] = [shapes[0][axis] for axis in axes]
        parts = tf.split(tf.reshape(matrix, [-1]), [math.prod(shape) for shape in shapes])
        kernel, *bias = (tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True))
        if axes is not None:
            kernel = tf.transpose(kernel, [axes.index(axis) for axis in range(len(axes))])
        return [kernel, *bias]


def with_ones(inputs: tf.Tensor) -> tf.Tensor:
    """Appends a 1 to each row, which stands for the bias.

    Args:
        inputs: `[..., d]`.

    Returns:
        `[..., d + 1]`.
    """
    return tf.concat([inputs, tf.ones_like(inputs[..., :1])], -1)


__all__ = ["MatrixShape", "with_ones"]
