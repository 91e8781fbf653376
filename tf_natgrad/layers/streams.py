"""A dense layer's action on streams: a value and its derivatives, which share the kernel but not the bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad.layers.dense import DenseRule
from tf_natgrad.layers.registry import rule_for

# Attributes that `capture` sets: of a layer, what records its action on streams; of a recording activation, the
# layer's own one.
RECORDING, ORIGINAL = "_tf_natgrad_stream_map", "_tf_natgrad_activation"


def maps_streams(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer is a `Dense` one whose kernel and bias are all that acts on its inputs."""
    return type(layer) is keras.layers.Dense and layer.built and isinstance(rule_for(layer), DenseRule)


def map_streams(layer: keras.layers.Layer, streams: tf.Tensor, biased: int = 1) -> tf.Tensor:
    """Applies a dense layer to several streams, the bias to the first ones only, and not the activation.

    Within `capture` this is recorded as one call of the layer, with the streams as its positions.

    Args:
        layer: one that `maps_streams`.
        streams: `[N, T, d_in]`.
        biased: the number of streams, from the first, that the bias acts on.

    Returns:
        `[N, T, d_out]`, in the compute dtype of the layer.
    """
    recording = getattr(layer, RECORDING, None)
    return apply_kernel(layer, streams, biased) if recording is None else recording(streams, biased)


def apply_kernel(layer: keras.layers.Layer, streams: tf.Tensor, biased: int) -> tf.Tensor:
    """What `map_streams` does, without a record.

    Args:
        layer: one that `maps_streams`.
        streams: `[N, T, d_in]`.
        biased: the number of streams that the bias acts on.

    Returns:
        `[N, T, d_out]`.
    """
    dtype = tf.as_dtype(layer.compute_dtype)
    kernel = tf.cast(tf.convert_to_tensor(layer.kernel.value), dtype)
    count, (features, units) = streams.shape[1], kernel.shape
    rows = tf.reshape(tf.cast(streams, dtype), [-1, features])
    images = tf.reshape(tf.linalg.matmul(rows, kernel), [-1, count, units])
    if layer.bias is not None:
        bias = tf.cast(tf.convert_to_tensor(layer.bias.value), dtype)
        images += tf.concat([tf.tile(bias[None], [biased, 1]), tf.zeros([count - biased, units], dtype)], 0)
    return tf.ensure_shape(images, [streams.shape[0], count, units])


def activation_of(layer: keras.layers.Layer) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the activation of a layer, that of the layer itself within `capture` too."""
    activation: Any = layer.activation
    return getattr(activation, ORIGINAL, activation)


__all__ = ["ORIGINAL", "RECORDING", "activation_of", "apply_kernel", "map_streams", "maps_streams"]
