"""Activations with their first two derivatives: closed forms, and nested tapes for any other function of an entry."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks

# `s(v)`, `s'(v)` and `s''(v)`; `None` for a derivative that is zero.
Derivatives = tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]

# Beyond the kinks of the usual functions of straight pieces, and on none of them.
_SAMPLES = np.linspace(-7.03, 7.01, 97)
_SMOOTH = "Use one with a second derivative, such as `tanh`, `sin`, `softplus`, `swish` or `gelu`."


def _linear(v: tf.Tensor) -> Derivatives:
    return v, tf.ones_like(v), None


def _tanh(v: tf.Tensor) -> Derivatives:
    y = tf.tanh(v)
    slope = 1.0 - y * y
    return y, slope, -2.0 * y * slope


def _sigmoid(v: tf.Tensor) -> Derivatives:
    y = tf.sigmoid(v)
    slope = y * (1.0 - y)
    return y, slope, slope * (1.0 - 2.0 * y)


def _softplus(v: tf.Tensor) -> Derivatives:
    return tf.math.softplus(v), *_sigmoid(v)[:2]


def _swish(v: tf.Tensor) -> Derivatives:
    y, slope, bend = _sigmoid(v)
    return v * y, y + v * slope, 2.0 * slope + v * bend


def _sin(v: tf.Tensor) -> Derivatives:
    y = tf.sin(v)
    return y, tf.cos(v), -y


def _cos(v: tf.Tensor) -> Derivatives:
    y = tf.cos(v)
    return y, -tf.sin(v), -y


def _exp(v: tf.Tensor) -> Derivatives:
    y = tf.exp(v)
    return y, y, y


_CLOSED: dict[Callable, Callable[[tf.Tensor], Derivatives]] = {
    keras.activations.linear: _linear,
    keras.activations.tanh: _tanh,
    keras.ops.tanh: _tanh,
    tf.tanh: _tanh,
    keras.activations.sigmoid: _sigmoid,
    keras.ops.sigmoid: _sigmoid,
    tf.sigmoid: _sigmoid,
    keras.activations.softplus: _softplus,
    keras.ops.softplus: _softplus,
    keras.activations.silu: _swish,
    keras.ops.silu: _swish,
    keras.ops.sin: _sin,
    tf.sin: _sin,
    keras.ops.cos: _cos,
    tf.cos: _cos,
    keras.activations.exponential: _exp,
    keras.ops.exp: _exp,
    tf.exp: _exp,
}
# Their second derivative is zero but for points where there is none: what a residual is made of would be missing.
_PIECEWISE = {
    getattr(keras.activations, name)
    for name in ("relu", "relu6", "leaky_relu", "hard_sigmoid", "hard_silu", "hard_tanh", "hard_shrink", "soft_shrink")
} | {keras.ops.relu, keras.ops.leaky_relu, tf.nn.relu, tf.nn.leaky_relu, tf.nn.relu6}


def with_derivatives(activation: Callable, v: tf.Tensor, owner: str) -> Derivatives:
    """Computes an activation and its first two derivatives.

    Args:
        activation: a function of each entry of a tensor.
        v: where.
        owner: the layer's name, for the message.

    Returns:
        `s(v)`, `s'(v)`, `s''(v)`; `None` for a derivative that is zero.

    Raises:
        ValueError: if the activation has no second derivative, or is no function of each entry.
    """
    if activation is None:
        return _linear(v)
    closed = _CLOSED.get(activation)
    if closed is not None:
        return closed(v)
    name = getattr(activation, "__name__", type(activation).__name__)
    bent = f"layer {owner!r} with the activation `{name}`, whose second derivative is zero or missing"
    if activation in _PIECEWISE:
        raise ValueError(_checks.message("network", bent, "smooth activations", _SMOOTH))
    if not _acts_by_entry(activation, v.dtype):
        received = f"layer {owner!r} with the activation `{name}`, which mixes the entries of a row"
        raise ValueError(_checks.message("network", received, "activations of each entry", _SMOOTH))
    if not _bends(activation, v.dtype):
        raise ValueError(_checks.message("network", bent, "smooth activations", _SMOOTH))
    return _by_tapes(activation, v)


def _by_tapes(activation: Callable, v: tf.Tensor) -> Derivatives:
    with tf.GradientTape() as outer:
        outer.watch(v)
        with tf.GradientTape() as inner:
            inner.watch(v)
            y = activation(v)
        slope = inner.gradient(y, v)
    return y, slope, None if slope is None else outer.gradient(slope, v)


def _bends(activation: Callable, dtype: tf.DType) -> bool:
    """Whether a function is affine or has a second derivative, by samples; not for one of straight pieces."""

    def sample() -> bool:
        try:
            _, slope, bend = _by_tapes(activation, tf.constant(_SAMPLES[None], dtype))
        except LookupError:
            # TensorFlow has no gradient of the gradient, such as that of `softsign`.
            return False
        if slope is None or np.ptp(slope) <= 1e-6 * np.max(np.abs(slope)):
            return True
        return bend is not None and bool(np.any(np.asarray(bend) != 0.0))

    # Eager code, also while a graph is traced. Another thread, because no tape records within `tf.init_scope`, and
    # tapes that are open here are not to record this.
    with futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(sample).result()


def _acts_by_entry(activation: Callable, dtype: tf.DType) -> bool:
    """Whether what a function makes of an entry is the same beside other entries."""
    one, other = np.array([[0.3, -0.8, 1.1], [0.5, -0.2, 0.9]]), np.array([[0.3, 0.6, -1.4], [-0.1, 0.7, 0.2]])
    # Eager code, also while a graph is traced; no tape that is open records it.
    with tf.init_scope():
        images = [tf.convert_to_tensor(activation(tf.constant(m, dtype))) for m in (one, other)]
        same_shape = all(image.shape == one.shape for image in images)
        return same_shape and np.allclose(images[0][0, 0], images[1][0, 0], rtol=1e-3, atol=1e-3)


__all__ = ["Derivatives", "with_derivatives"]
