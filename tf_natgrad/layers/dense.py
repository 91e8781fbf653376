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
    products,
    symmetric_product,
    with_ones,
    with_positions,
)
from tf_natgrad.layers._matrix import MatrixShape


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
        return h if calls[0].layer.bias is None else with_ones(h)

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
        kernel, bias = None, None if layer.bias is None else 1.0
        if scales is not None:
            kernel = scales[id(layer.kernel)]
            bias = None if layer.bias is None else scales[id(layer.bias)]
        h, d = self.kernel_inputs(calls, dtype), self.matrix_gradients(calls, summaries, dtype)
        if h.shape[1] == 1:
            columns, count = tf.shape(d)[0], d.shape[:2].num_elements()
            inner = _inner(tf.reshape(h, [-1, h.shape[-1]]), kernel, bias)
            # Rows are (q, i) with q major, so the products of inputs repeat as whole blocks.
            d = tf.reshape(d, [-1 if count is None else count, d.shape[-1]])
            return symmetric_product(d) * tf.tile(inner, [columns, columns])
        return _sum_over_positions(h, d, kernel, bias)


# One, or the scale of the bias; `None` without bias.
_Bias = tf.Tensor | float | None


def _inner(h: tf.Tensor, kernel: tf.Tensor | None, bias: _Bias) -> tf.Tensor:
    """`kernel * h h^T + bias` of rows `h`."""
    inner = tf.linalg.matmul(h, h, transpose_b=True)
    inner = inner if kernel is None else kernel * inner
    return inner if bias is None else inner + bias


def _sum_over_positions(h: tf.Tensor, d: tf.Tensor, kernel: tf.Tensor | None, bias: _Bias) -> tf.Tensor:
    """The double sum over positions, for inputs `[N, T, D]` and gradients `[Q, N, T, U]`.

    Few positions: the products of all pairs, `(Q N T)^2` numbers. Many: the per-example weight gradients,
    `Q N D U` numbers, whose products are the sums.
    """
    shape = tf.shape(d)
    columns, examples, positions = shape[0], shape[1], d.shape[2]
    rows, units, features = columns * examples, d.shape[3], h.shape[2]
    if positions is not None and positions**2 * (units + features) <= units * features:
        d = tf.reshape(tf.transpose(d, [2, 0, 1, 3]), [-1, units])
        h = tf.reshape(tf.transpose(h, [1, 0, 2]), [-1, features])
        inner = tf.reshape(_inner(h, kernel, bias), [positions, 1, examples, positions, 1, examples])
        inner = tf.reshape(tf.tile(inner, [1, columns, 1, 1, columns, 1]), [positions, rows, positions, rows])
        outer = tf.reshape(tf.linalg.matmul(d, d, transpose_b=True), [positions, rows, positions, rows])
        return tf.reduce_sum(inner * outer, [0, 2])
    if kernel is not None:
        h *= tf.sqrt(kernel)
    if bias is not None:
        h = tf.concat([h, tf.ones_like(h[..., :1]) * tf.sqrt(tf.cast(bias, h.dtype))], -1)
    return products(tf.einsum("ntf,qntu->qnfu", h, d))


__all__ = ["DenseRule"]
