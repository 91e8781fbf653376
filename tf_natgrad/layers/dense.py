"""Dense layers: products of inputs times products of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_natgrad.layers._base import (
    LayerCall,
    Rule,
    Scales,
    owns_exactly,
    with_ones,
    with_positions,
)
from tf_natgrad.layers._matrix import MatrixShape
from tf_natgrad.layers._products import products, sum_of_products, symmetric_product


class DenseRule(Rule):
    """`K[(q,i),(r,j)] = (h_i . h_j + [bias]) (d_qi . d_rj)`, `d` the gradient at the pre-activation.

    With positions t (inputs `[N, T, D]`, or a layer that is called several times) the sum runs over pairs of
    positions: `sum_tt' (h_it . h_jt' + [bias]) (d_qit . d_rjt')`, cross terms included.
    """

    pre_activation = True

    def supports(self, layer: keras.layers.Layer) -> bool:
        plain = not getattr(layer, "lora_enabled", False) and getattr(layer, "quantization_mode", None) is None
        return plain and owns_exactly(layer, layer.kernel, layer.bias)

    def matrix_shape(self, layer: keras.layers.Layer) -> MatrixShape:
        own = [v for v in (layer.kernel, layer.bias) if v is not None]
        return MatrixShape(own, layer.kernel.shape[0] + len(own) - 1, layer.kernel.shape[1], has_plain_inputs=True)

    def matrix_inputs(self, calls: Sequence[LayerCall], dtype: tf.DType) -> tf.Tensor:
        h = self.kernel_inputs(calls, dtype)
        if calls[0].layer.bias is None:
            return h
        if all(call.biased is None for call in calls):
            return with_ones(h)
        ones = tf.concat([_ones_of(call, self.kernel_inputs([call], dtype)) for call in calls], 1)
        return tf.concat([h, ones], -1)

    def kernel_inputs(self, calls: Sequence[LayerCall], dtype: tf.DType) -> tf.Tensor:
        """Computes the inputs of all calls, `[N, T, D]`, without the bias.

        Args:
            calls: every call of the layer within one forward pass of the model.
            dtype: in which sums are taken.

        Returns:
            `[N, T, D]`.
        """
        return tf.concat([with_positions(tf.cast(call.inputs, dtype), 1) for call in calls], 1)

    def gram(
        self,
        calls: Sequence[LayerCall],
        summaries: Sequence[tf.Tensor],
        dtype: tf.DType,
        scales: Scales | None = None,
    ) -> tf.Tensor:
        layer = calls[0].layer
        h, d = self.matrix_inputs(calls, dtype), self.matrix_gradients(calls, summaries, dtype)
        if scales is not None:
            own = [scales[id(v)] for v in (layer.kernel, layer.bias) if v is not None]
            sizes = [h.shape[-1] - len(own) + 1, 1][: len(own)]
            h *= tf.concat([tf.fill([size], tf.sqrt(s)) for size, s in zip(sizes, own, strict=True)], 0)
        if h.shape[1] == 1:
            columns, count = tf.shape(d)[0], d.shape[:2].num_elements()
            h = tf.reshape(h, [-1, h.shape[-1]])
            # Rows are (q, i) with q major, so the products of inputs repeat as whole blocks.
            d = tf.reshape(d, [-1 if count is None else count, d.shape[-1]])
            return symmetric_product(d) * tf.tile(tf.linalg.matmul(h, h, transpose_b=True), [columns, columns])
        return _sum_over_positions(h, d)


def _ones_of(call: LayerCall, h: tf.Tensor) -> tf.Tensor:
    """What the bias is multiplied by at each position of a call, `[N, T, 1]`: one, or zero where it does not act."""
    ones = tf.ones_like(h[..., :1])
    if call.biased is None:
        return ones
    return tf.concat([ones[:, : call.biased], tf.zeros_like(ones[:, call.biased :])], 1)


def _sum_over_positions(h: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """The double sum over positions, for inputs `[N, T, D]` and gradients `[Q, N, T, U]`.

    Few positions: the products of all pairs, `(Q N)^2` numbers at a time. Many: the per-example weight gradients,
    `Q N D U` numbers, whose products are the sums.
    """
    positions, units, features = d.shape[2], d.shape[3], h.shape[2]
    if positions is None or positions**2 * (units + features) > units * features:
        return products(tf.einsum("ntf,qntu->qnfu", h, d))
    columns, rows = tf.shape(d)[0], d.shape[:2].num_elements()
    d = tf.reshape(d, [-1 if rows is None else rows, positions, units])
    h = tf.ensure_shape(tf.tile(h, [columns, 1, 1]), [rows, positions, features])
    return sum_of_products(tf.unstack(h, axis=1), tf.unstack(d, axis=1))


__all__ = ["DenseRule"]
