"""The length of a step at which the quadratic model of the KL divergence meets a limit."""

from __future__ import annotations

import tensorflow as tf

from tf_natgrad._typing import TensorLike


def kl_radius(quadratic_form: tf.Tensor, max_kl: TensorLike) -> tf.Tensor:
    """Computes the multiple of a direction `d` at which `1/2 d^T F d`, the quadratic model of the KL, meets a limit.

    >>> float(kl_radius(tf.constant(2.0), 0.01))  # doctest: +ELLIPSIS
    0.1...

    Args:
        quadratic_form: `d^T F d`, a scalar, `F` without damping.
        max_kl: the limit, in nats.

    Returns:
        A scalar; infinite if `d^T F d` is not positive.
    """
    return tf.where(
        quadratic_form > 0,
        tf.sqrt(2.0 * in_dtype_of(quadratic_form, max_kl) / quadratic_form),
        tf.constant(float("inf"), quadratic_form.dtype),
    )


def kl_shrink(quadratic_form: tf.Tensor, rate: tf.Tensor, max_kl: TensorLike | None) -> tf.Tensor:
    """Computes the factor, at most one, by which a step of `rate d` is shortened to a limit of the KL divergence.

    >>> float(kl_shrink(tf.constant(2.0), tf.constant(0.4), 0.01))  # doctest: +ELLIPSIS
    0.25...

    Args:
        quadratic_form: `d^T F d`, a scalar.
        rate: a scalar.
        max_kl: the limit, in nats, or `None`.

    Returns:
        A scalar.
    """
    one = tf.ones([], quadratic_form.dtype)
    if max_kl is None:
        return one
    return tf.minimum(one, tf.math.divide_no_nan(kl_radius(quadratic_form, max_kl), in_dtype_of(one, rate)))


def in_dtype_of(tensor: tf.Tensor, value: TensorLike) -> tf.Tensor:
    """A number or tensor in the dtype of another. `tf.cast` would take a Python number through float32."""
    return tf.cast(value, tensor.dtype) if tf.is_tensor(value) else tf.convert_to_tensor(value, tensor.dtype)


__all__ = ["in_dtype_of", "kl_radius", "kl_shrink"]
