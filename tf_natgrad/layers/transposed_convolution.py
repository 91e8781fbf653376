"""Transposed convolutions: ordinary ones on an input between whose positions there are zeros."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_natgrad.layers._base import LayerCall, Squares, with_positions
from tf_natgrad.layers._matrix import MatrixShape
from tf_natgrad.layers.convolution import ConvolutionRule


class TransposedConvolutionRule(ConvolutionRule):
    """`Conv1DTranspose`, `Conv2DTranspose`, `Conv3DTranspose`, with strides, padding, output padding and dilation.

    Along each axis, output position `o` is the sum of `W[k] x[i]` over taps `k` and input positions `i` with
    `i * stride + k * dilation = o + cut`, where `cut` is what "same" takes off the beginning. So each output position
    has a patch of the input, with zeros for the taps that no `i` fits. The rest is as for a convolution, but the kernel
    is `[*kernel_size, out, in]`.
    """

    def matrix_shape(self, layer: keras.layers.Layer) -> MatrixShape:
        own = [v for v in (layer.kernel, layer.bias) if v is not None]
        *size, columns, channels = layer.kernel.shape
        axes = (*range(len(size)), len(size) + 1, len(size))
        return MatrixShape(own, math.prod(size) * channels + len(own) - 1, columns, kernel_axes=axes)

    def patches(self, call: LayerCall, dtype: tf.DType) -> tf.Tensor:
        taps = [list(range(size)) for size in call.layer.kernel_size]
        return _seen(call, dtype, [tf.range(length) for length in _lengths(call.output)], taps)[:, :, None]

    def squares(self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType) -> Squares | None:
        # Its parts are in another order than those of a convolution.
        del calls, gradients, dtype
        return None

    def weight_gradients(
        self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType
    ) -> list[tf.Tensor]:
        layer = calls[0].layer
        cuts = _cuts(layer)
        kernel, bias = 0.0, 0.0
        for call, d in zip(calls, gradients, strict=True):
            d, parts = tf.cast(d, dtype), []
            # Every stride-th position sees the same taps: in groups of them, nothing is multiplied by the zeros.
            for phases in itertools.product(*map(range, layer.strides)):
                axes = list(zip(phases, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True))
                taps = [[k for k in range(size) if k * rate % stride == p] for p, size, stride, rate in axes]
                if not all(taps):
                    continue
                starts = [(p - cut) % stride for p, cut, stride in zip(phases, cuts, layer.strides, strict=True)]
                steps = zip(starts, _lengths(call.output), layer.strides, strict=True)
                positions = [tf.range(*step) for step in steps]
                some = d
                for axis, chosen in enumerate(positions, 2):
                    # Slices with a step take ten times as long.
                    some = tf.gather(some, chosen, axis=axis)
                h = _seen(call, dtype, positions, taps)
                parts.append(tf.einsum("ntk,qntc->qnkc", h, with_positions(some, 2)))
            kernel += tf.concat(parts, 2)
            bias += tf.reduce_sum(with_positions(d, 2), 2)
        return [kernel] if layer.bias is None else [kernel, bias]


def _lengths(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    """The sizes of all axes but the first and the last."""
    return [tensor.shape[axis] or tf.shape(tensor)[axis] for axis in range(1, tensor.shape.rank - 1)]


def _cuts(layer: keras.layers.Layer) -> list[int]:
    """How many positions are taken off the beginning of each axis, of those that all taps of all inputs reach."""
    if layer.padding == "valid":
        return [0] * len(layer.kernel_size)
    added = layer.output_padding or [None] * len(layer.kernel_size)
    cuts = []
    for size, stride, rate, more in zip(layer.kernel_size, layer.strides, layer.dilation_rate, added, strict=True):
        span = (size - 1) * rate + 1
        # The output of `n` inputs has n stride positions, or (n - 1) stride + span % 2 + output_padding.
        cuts.append(max(span - (stride if more is None else span % 2 + more), 0) // 2)
    return cuts


def _seen(call: LayerCall, dtype: tf.DType, positions: Sequence[tf.Tensor], taps: Sequence[list[int]]) -> tf.Tensor:
    """What positions of the output see through taps, both given for each axis: `[N, T, taps * C]`."""
    layer, found = call.layer, tf.cast(call.inputs, dtype)
    axes = zip(positions, taps, _lengths(call.inputs), layer.strides, layer.dilation_rate, _cuts(layer), strict=True)
    for axis, (outputs, kernel, length, stride, rate, cut) in enumerate(axes):
        spread = outputs[:, None] + (cut - rate * tf.constant(kernel))
        places = spread // stride
        sees = (spread % stride == 0) & (places >= 0) & (places < length)
        # Of each axis before this one there are two by now. One more position, of zeros, is for what sees nothing.
        here = 1 + 2 * axis
        padded = tf.pad(found, [[0, int(i == here)] for i in range(found.shape.rank)])
        found = tf.gather(padded, tf.where(sees, places, length), axis=here)
    rank = len(positions)
    found = tf.transpose(found, [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1])
    count = math.prod(p.shape[0] or tf.size(p) for p in positions)
    return tf.reshape(found, [-1, count, math.prod(map(len, taps)) * found.shape[-1]])


__all__ = ["TransposedConvolutionRule"]
