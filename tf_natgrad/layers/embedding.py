"""Embeddings: gradients of the rows that the batch looks up, and of no others."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_natgrad.layers._base import LayerCall, WeightGradientRule


class EmbeddingRule(WeightGradientRule):
    """The gradient of a row of the table is the sum of `d_qit` over the positions that look it up.

    Rows are numbered anew within the batch, so memory grows with the tokens of the batch, not with the vocabulary.
    """

    def supports(self, layer: keras.layers.Layer) -> bool:
        plain = not getattr(layer, "lora_enabled", False) and getattr(layer, "quantization_mode", None) is None
        return plain and len(layer.trainable_variables) == 1

    def weight_gradients(
        self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType
    ) -> list[tf.Tensor]:
        examples = tf.shape(gradients[0])[1]
        tokens = tf.concat([tf.reshape(tf.cast(call.inputs, tf.int64), [examples, -1]) for call in calls], 1)
        d = tf.concat([_positions(tf.cast(g, dtype)) for g in gradients], 2)
        columns, width = tf.shape(d)[0], d.shape[-1]
        distinct, numbers = tf.unique(tf.reshape(tokens, [-1]))
        count = tf.size(distinct)
        rows = tf.range(columns * examples)[:, None] * count
        segments = rows + tf.tile(tf.reshape(numbers, [examples, -1]), [columns, 1])
        sums = tf.math.unsorted_segment_sum(
            tf.reshape(d, [-1, width]), tf.reshape(segments, [-1]), columns * examples * count
        )
        return [tf.reshape(sums, [columns, examples, count * width])]


def _positions(d: tf.Tensor) -> tf.Tensor:
    """`[Q, N, ..., D] -> [Q, N, T, D]`."""
    shape = tf.shape(d)
    return tf.reshape(d, [shape[0], shape[1], -1, d.shape[-1]])


__all__ = ["EmbeddingRule"]
