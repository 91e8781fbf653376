"""Separable convolutions: one that keeps channels apart, then a dense layer on the channels of each position."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_natgrad.layers._base import (
    LayerCall,
    Squares,
    WeightGradientRule,
    owns_exactly,
    with_positions,
)
from tf_natgrad.layers._matrix import MatrixShape, with_ones
from tf_natgrad.layers.convolution import patches_of
from tf_natgrad.layers.work import Work, by_channels, positions_of


class SeparableConvolutionRule(WeightGradientRule):
    """`SeparableConv1D` and `SeparableConv2D`: `y_t = W^T z_t + b`, `z_tcm = sum_k p_tck V_kcm`.

    `p` are patches of the input, `V` `[taps, C, m]` the depthwise and `W` `[C m, out]` the pointwise kernel. With `d`
    the gradients at `y`, those of the kernels are `sum_t z_t (x) d_t` and `sum_t p_tck (W d_t)_cm`. The matrix is that
    of `W` and `b`, on `z`; of `V` K-FAC keeps the diagonal.
    """

    pre_activation = True

    def supports(self, layer: keras.layers.Layer) -> bool:
        plain = layer.data_format == "channels_last"
        return plain and owns_exactly(layer, layer.depthwise_kernel, layer.pointwise_kernel, layer.bias)

    def matrix_shape(self, layer: keras.layers.Layer) -> MatrixShape:
        own = [v for v in (layer.pointwise_kernel, layer.bias) if v is not None]
        *_, channels, columns = layer.pointwise_kernel.shape
        return MatrixShape(own, channels + len(own) - 1, columns)

    def matrix_inputs(self, calls: Sequence[LayerCall], dtype: tf.DType) -> tf.Tensor:
        h = tf.concat([_between(call, dtype) for call in calls], 1)
        return h if calls[0].layer.bias is None else with_ones(h)

    def part_variables(self, calls: Sequence[LayerCall]) -> list[keras.Variable]:
        layer = calls[0].layer
        return [v for v in (layer.depthwise_kernel, layer.pointwise_kernel, layer.bias) if v is not None]

    def weight_gradients(
        self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType
    ) -> list[tf.Tensor]:
        layer = calls[0].layer
        depthwise, pointwise, bias = 0.0, 0.0, 0.0
        for call, d in zip(calls, gradients, strict=True):
            d, (_, kernel) = with_positions(tf.cast(d, dtype), 2), _kernels(call, dtype)
            channels = call.inputs.shape[-1]
            before = tf.einsum("qntu,fu->qntf", d, tf.reshape(kernel, kernel.shape[-2:]))
            before = tf.reshape(before, [*tf.unstack(tf.shape(d)[:3]), channels, layer.depth_multiplier])
            patches = patches_of(layer, tf.cast(call.inputs, dtype), channels)
            depthwise += tf.einsum("ntck,qntcm->qnkcm", patches, before)
            pointwise += tf.einsum("ntf,qntu->qnfu", _between(call, dtype), d)
            bias += tf.reduce_sum(d, 2)
        return [depthwise, pointwise] if layer.bias is None else [depthwise, pointwise, bias]

    def gram_work(self, calls: Sequence[LayerCall], columns: int, examples: int, itemsize: int) -> Work:
        layer, positions = calls[0].layer, sum(map(positions_of, calls))
        numbers = columns * examples * layer.depthwise_kernel.shape.num_elements()
        return super().gram_work(calls, columns, examples, itemsize).plus(by_channels(numbers * positions))

    def squares(self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType) -> Squares:
        parts = zip(self.part_variables(calls), self.weight_gradients(calls, gradients, dtype), strict=True)
        return [(v, tf.reshape(tf.reduce_sum(part**2, [0, 1]), v.shape)) for v, part in parts]


def _kernels(call: LayerCall, dtype: tf.DType) -> list[tf.Tensor]:
    """The depthwise and the pointwise kernel at the time of the call."""
    layer = call.layer
    values = dict(zip(map(id, layer.trainable_variables), call.values, strict=True))
    return [tf.cast(values[id(v)], dtype) for v in (layer.depthwise_kernel, layer.pointwise_kernel)]


def _between(call: LayerCall, dtype: tf.DType) -> tf.Tensor:
    """What the pointwise kernel acts on, `[N, T, C m]`."""
    layer, (kernel, _) = call.layer, _kernels(call, dtype)
    h = keras.ops.depthwise_conv(
        tf.cast(call.inputs, dtype),
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
    )
    return with_positions(h, 1)


__all__ = ["SeparableConvolutionRule"]
