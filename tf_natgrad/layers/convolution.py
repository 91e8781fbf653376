"""Convolutions: per-example kernel gradients, from patches of the input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_natgrad.layers._base import (
    LayerCall,
    Squares,
    WeightGradientRule,
    owns_exactly,
)
from tf_natgrad.layers._matrix import MatrixShape, with_ones
from tf_natgrad.layers.work import Work, by_channels, positions_of


class ConvolutionRule(WeightGradientRule):
    """`Conv1D`, `Conv2D`, `Conv3D` and depthwise forms, with strides, padding, dilation and groups.

    With `h_it` the patch of the input that position t of the output sees, the kernel's gradient of column q of
    example i is `sum_t h_it (x) d_qit`, one batched matrix product over all examples. Depthwise and grouped ones have
    no Kronecker factors.
    """

    pre_activation = True

    def supports(self, layer: keras.layers.Layer) -> bool:
        plain = layer.data_format == "channels_last" and not getattr(layer, "lora_enabled", False)
        return plain and owns_exactly(layer, layer.kernel, layer.bias)

    def matrix_shape(self, layer: keras.layers.Layer) -> MatrixShape | None:
        if _groups(layer) > 1:
            return None
        own = [v for v in (layer.kernel, layer.bias) if v is not None]
        columns = layer.kernel.shape[-1]
        return MatrixShape(own, math.prod(layer.kernel.shape[:-1]) + len(own) - 1, columns)

    def patches(self, call: LayerCall, dtype: tf.DType) -> tf.Tensor:
        """Computes what each output position sees of each group of channels.

        Args:
            call: of the layer.
            dtype: in which sums are taken.

        Returns:
            `[N, T, groups, kernel size * channels]`.
        """
        return patches_of(call.layer, tf.cast(call.inputs, dtype), _groups(call.layer))

    def matrix_inputs(self, calls: Sequence[LayerCall], dtype: tf.DType) -> tf.Tensor:
        layer = calls[0].layer
        h = tf.concat([self.patches(call, dtype)[:, :, 0] for call in calls], 1)
        return h if layer.bias is None else with_ones(h)

    def squares(self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType) -> Squares:
        kernel, *bias = self.weight_gradients(calls, gradients, dtype)
        # The kernel has its groups next to its output channels.
        sums = [tf.transpose(tf.reduce_sum(kernel**2, [0, 1]), [1, 0, 2]), *(tf.reduce_sum(b**2, [0, 1]) for b in bias)]
        matrix = self.matrix_shape(calls[0].layer)
        if matrix is not None:
            sums = matrix.pieces(tf.concat([tf.reshape(s, [-1, matrix.columns]) for s in sums], 0))
        return [(v, tf.reshape(s, v.shape)) for v, s in zip(self.part_variables(calls), sums, strict=True)]

    def gram_work(self, calls: Sequence[LayerCall], columns: int, examples: int, itemsize: int) -> Work:
        layer, positions = calls[0].layer, sum(map(positions_of, calls))
        work = super().gram_work(calls, columns, examples, itemsize)
        numbers = columns * examples * layer.kernel.shape.num_elements() * positions
        return work if _groups(layer) == 1 else work.plus(by_channels(numbers))

    def part_variables(self, calls: Sequence[LayerCall]) -> list[keras.Variable]:
        layer = calls[0].layer
        return [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]

    def weight_gradients(
        self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType
    ) -> list[tf.Tensor]:
        layer = calls[0].layer
        groups = _groups(layer)
        kernel, bias = 0.0, 0.0
        for call, d in zip(calls, gradients, strict=True):
            patches = self.patches(call, dtype)
            shape = tf.shape(d)
            d = tf.reshape(tf.cast(d, dtype), [shape[0], shape[1], -1, groups, d.shape[-1] // groups])
            # Columns beside channels: one matrix product per example and group.
            kernel += tf.einsum("ntgk,qntgc->qngkc", patches, d)
            bias += tf.reduce_sum(d, 2)
        return [kernel] if layer.bias is None else [kernel, bias]


def _groups(layer: keras.layers.Layer) -> int:
    if hasattr(layer, "depth_multiplier"):
        return layer.kernel.shape[-2]
    return getattr(layer, "groups", 1)


def patches_of(layer: keras.layers.Layer, inputs: tf.Tensor, groups: int) -> tf.Tensor:
    """Computes what each output position of a convolution sees of each group of channels.

    Args:
        layer: has the size, strides, padding and dilation.
        inputs: `[N, ..., C]`.
        groups: into which the channels are split.

    Returns:
        `[N, T, groups, kernel size * C / groups]`.
    """
    size, strides, rates = (list(v) for v in (layer.kernel_size, layer.strides, layer.dilation_rate))
    padding = layer.padding
    if padding == "causal":
        inputs = tf.pad(inputs, [[0, 0], [rates[0] * (size[0] - 1), 0], [0, 0]])
        padding = "valid"
    if len(size) == 1:
        inputs = inputs[:, None]
        size, strides, rates = ([1, *v] for v in (size, strides, rates))
    if len(size) == 3:
        patches = _volume_patches(inputs, size, strides, rates, padding)
    else:
        patches = tf.image.extract_patches(inputs, [1, *size, 1], [1, *strides, 1], [1, *rates, 1], padding.upper())
    taps, channels = math.prod(size), inputs.shape[-1]
    patches = tf.reshape(patches, [tf.shape(inputs)[0], -1, taps, groups, channels // groups])
    return tf.reshape(
        tf.transpose(patches, [0, 1, 3, 2, 4]), [tf.shape(inputs)[0], -1, groups, taps * channels // groups]
    )


def _volume_patches(
    inputs: tf.Tensor, size: list[int], strides: list[int], rates: list[int], padding: str
) -> tf.Tensor:
    """`[N, D, H, W, C] -> [N, D', H', W', taps C]`, one slice for each tap: TensorFlow's own has no dilation."""
    spans = [(k - 1) * rate + 1 for k, rate in zip(size, rates, strict=True)]
    lengths = list(tf.unstack(tf.shape(inputs)[1:4]))
    if padding == "same":
        pads = []
        for length, span, stride in zip(lengths, spans, strides, strict=True):
            missing = tf.maximum((-(-length // stride) - 1) * stride + span - length, 0)
            pads.append([missing // 2, missing - missing // 2])
        inputs = tf.pad(inputs, [[0, 0], *pads, [0, 0]])
        lengths = list(tf.unstack(tf.shape(inputs)[1:4]))
    counts = [(length - span) // stride for length, span, stride in zip(lengths, spans, strides, strict=True)]
    slices = []
    for tap in itertools.product(*map(range, size)):
        starts = [i * rate for i, rate in zip(tap, rates, strict=True)]
        ends = [start + n * stride + 1 for start, n, stride in zip(starts, counts, strides, strict=True)]
        d, h, w = (slice(*ends_of) for ends_of in zip(starts, ends, strides, strict=True))
        slices.append(inputs[:, d, h, w])
    return tf.concat(slices, -1)


__all__ = ["ConvolutionRule", "patches_of"]
