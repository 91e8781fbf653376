"""Embeddings: gradients of the rows that the batch looks up, and of no others."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_natgrad import _replicas
from tf_natgrad.layers._base import LayerCall, Rule, Scales, WeightGradientRule
from tf_natgrad.layers._matrix import MatrixShape


class EmbeddingRule(WeightGradientRule):
    """The gradient of a row of the table is the sum of `d_qit` over the positions that look it up.

    Rows are numbered anew within the batch, so memory grows with the tokens of the batch, not with the vocabulary.
    """

    def supports(self, layer: keras.layers.Layer) -> bool:
        plain = not getattr(layer, "lora_enabled", False) and getattr(layer, "quantization_mode", None) is None
        return plain and len(layer.trainable_variables) == 1

    def matrix_shape(self, layer: keras.layers.Layer) -> MatrixShape:
        (table,) = layer.trainable_variables
        return MatrixShape([table], *table.shape, is_table=True)

    def matrix_inputs(self, calls: Sequence[LayerCall], dtype: tf.DType) -> tf.Tensor:
        del dtype
        shapes = [tf.shape(call.inputs) for call in calls]
        tokens = [tf.reshape(tf.cast(c.inputs, tf.int64), [s[0], -1]) for c, s in zip(calls, shapes, strict=True)]
        return tf.concat(tokens, 1)

    def summarise(self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType) -> list[tf.Tensor]:
        # Replicas would number the rows each in its own way, and exchange more than the gradients.
        return list(gradients) if _replicas.several() else super().summarise(calls, gradients, dtype)

    def of_all_replicas(
        self, calls: Sequence[LayerCall], summaries: Sequence[tf.Tensor]
    ) -> tuple[Sequence[LayerCall], list[tf.Tensor]]:
        return Rule.of_all_replicas(self, calls, summaries)

    def gram(
        self,
        calls: Sequence[LayerCall],
        summaries: Sequence[tf.Tensor],
        dtype: tf.DType,
        scales: Scales | None = None,
    ) -> tf.Tensor:
        parts = self.weight_gradients(calls, summaries, dtype) if _replicas.several() else summaries
        return super().gram(calls, parts, dtype, scales)

    def weight_gradients(
        self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType
    ) -> list[tf.Tensor]:
        examples = tf.shape(gradients[0])[1]
        tokens, d = self.matrix_inputs(calls, dtype), self.matrix_gradients(calls, gradients, dtype)
        columns, width = tf.shape(d)[0], d.shape[-1]
        distinct, numbers = tf.unique(tf.reshape(tokens, [-1]))
        count = tf.size(distinct)
        rows = tf.range(columns * examples)[:, None] * count
        segments = rows + tf.tile(tf.reshape(numbers, [examples, -1]), [columns, 1])
        sums = tf.math.unsorted_segment_sum(
            tf.reshape(d, [-1, width]), tf.reshape(segments, [-1]), columns * examples * count
        )
        return [tf.reshape(sums, [columns, examples, count * width])]


__all__ = ["EmbeddingRule"]
