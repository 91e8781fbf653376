"""Compares the Gram matrix of the recorded calls with the Jacobian, by computing one quadratic form in two ways."""

from __future__ import annotations

import tensorflow as tf

from tf_natgrad.layers.capture import Record
from tf_natgrad.linearize import Linearization

# Roundings by which the two ways may differ, relative to the trace; and the most that any precision excuses.
_ROUNDINGS, _MOST = 100.0, 0.1
_SEED = (20, 11)

CAUSE = (
    "a weight acts otherwise than through the calls of its layer (a gradient taken inside `call`, say), or a layer "
    "mixes the examples of the batch"
)


def gram_mismatch(record: Record, linearization: Linearization, live: tf.Tensor) -> tf.Tensor:
    """Computes the difference of `v^T K v` and `|A^T v|^2`, relative to the trace of `K`, for random rows and `v`.

    The rows are two random combinations of the outputs of each example, not those of an output factor: this checks the
    Jacobian at the cost of three backward passes, whatever the number of outputs.

    Args:
        record: the calls of one forward pass.
        linearization: of the same pass.
        live: `[N, ..., 1]`, zero at positions of weight zero, one elsewhere.

    Returns:
        A scalar in the dtype of the variables; NaN if the batch is not finite.

    Raises:
        ValueError: if `record.refusal_for` returns a reason why there is no Gram matrix.
    """
    z, dtype = linearization.outputs, linearization.flat_parameters.dtype
    columns = tf.random.stateless_normal(tf.concat([[2], tf.shape(z)], 0), _SEED, dtype=z.dtype) * live
    columns = tf.ensure_shape(columns, [2, *z.shape])
    v = tf.random.stateless_normal(tf.shape(columns)[:2], _SEED[::-1], dtype=dtype)
    gram = record.gram(linearization, columns)
    rows = tf.reshape(v, [-1])
    form = tf.reduce_sum(rows * tf.linalg.matvec(gram, rows))
    along = tf.reshape(tf.cast(v, z.dtype), tf.concat([tf.shape(v), tf.ones([tf.rank(z) - 1], tf.int32)], 0))
    image = linearization.flat_parameters.flatten(linearization.vjp(tf.reduce_sum(along * columns, 0)))
    square = tf.reduce_sum(tf.square(image))
    # Not relative to the form itself, which may come out near zero where few eigenvalues rule.
    scale = tf.maximum(tf.maximum(form, square), tf.linalg.trace(gram))
    return tf.where(scale > 0, tf.abs(form - square) / scale, 0.0 * scale)


def tolerated_mismatch(linearization: Linearization) -> float:
    """Returns the largest mismatch that rounding explains.

    Args:
        linearization: of the pass that is checked.

    Returns:
        A number.
    """
    return min(_ROUNDINGS * linearization.rounding, _MOST)


__all__ = ["CAUSE", "gram_mismatch", "tolerated_mismatch"]
