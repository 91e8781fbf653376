"""Normalisation layers: gradients of scale and offset."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_natgrad.layers._base import LayerCall, Squares, WeightGradientRule


class NormalizationRule(WeightGradientRule):
    """`y = gamma * xhat + beta`: the gradients are `sum_t xhat_it d_qit` and `sum_t d_qit`.

    `xhat` is the layer's own output at `gamma = 1, beta = 0`. BatchNormalization is treated in inference mode only;
    in training mode `capture` refuses it.
    """

    def supports(self, layer: keras.layers.Layer) -> bool:
        return layer.axis in (-1, [-1])

    def part_variables(self, calls: Sequence[LayerCall]) -> list[keras.Variable]:
        scales, offsets = _scales_and_offsets(calls[0].layer)
        return [*scales, *offsets]

    def weight_gradients(
        self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType
    ) -> list[tf.Tensor]:
        layer = calls[0].layer
        scales, offsets = _scales_and_offsets(layer)
        neutral = [(v, tf.zeros(v.shape, v.dtype)) for v in offsets] + [(v, tf.ones(v.shape, v.dtype)) for v in scales]
        scale, offset = 0.0, 0.0
        for call, d in zip(calls, gradients, strict=True):
            with keras.StatelessScope(state_mapping=neutral):
                normalised = layer(*call.args, **call.kwargs)
            d = tf.cast(d, dtype)
            positions = list(range(2, d.shape.rank - 1))
            scale += tf.reduce_sum(d * tf.cast(normalised, dtype), positions)
            offset += tf.reduce_sum(d, positions)
        return [scale] * len(scales) + [offset] * len(offsets)

    def squares(self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType) -> Squares:
        parts = self.weight_gradients(calls, gradients, dtype)
        sums = [tf.reduce_sum(part**2, [0, 1]) for part in parts]
        return [(v, tf.reshape(s, v.shape)) for v, s in zip(self.part_variables(calls), sums, strict=True)]


def _scales_and_offsets(layer: keras.layers.Layer) -> tuple[list[keras.Variable], list[keras.Variable]]:
    offset = getattr(layer, "beta", None)
    own = layer.trainable_variables
    return [v for v in own if v is not offset], [v for v in own if v is offset]


__all__ = ["NormalizationRule"]
