"""Dense layers: products of inputs times products of gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad.layers._base import (
    LayerCall,
    Rule,
    Scales,
    owns_exactly,
    with_positions,
)
from tf_natgrad.layers._matrix import MatrixShape, with_ones
from tf_natgrad.layers._products import Part, products, sum_of_products, symmetric_product
from tf_natgrad.layers.work import Work, positions_of, product_of_rows


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
        ranges = _ranges(calls, h)
        if h.shape[1] == 1 and ranges is None:
            columns, count = tf.shape(d)[0], d.shape[:2].num_elements()
            h = tf.reshape(h, [-1, h.shape[-1]])
            # Rows are (q, i) with q major, so the products of inputs repeat as whole blocks.
            d = tf.reshape(d, [-1 if count is None else count, d.shape[-1]])
            return symmetric_product(d) * tf.tile(tf.linalg.matmul(h, h, transpose_b=True), [columns, columns])
        return _sum_over_positions(h, d, ranges)

    def gram_work(self, calls: Sequence[LayerCall], columns: int, examples: int, itemsize: int) -> Work:
        shape, rows = self.matrix_shape(calls[0].layer), columns * examples
        positions = sum(map(positions_of, calls))
        if _forms_gradients(positions, shape.columns, shape.rows):
            return super().gram_work(calls, columns, examples, itemsize)
        pairs, size = positions**2, rows * rows
        if positions == 1:
            # The products of inputs are those of examples, and repeat for each column.
            return product_of_rows(rows, shape.columns, itemsize).plus(
                product_of_rows(examples, shape.rows, itemsize), Work(bytes=2.0 * itemsize * size)
            )
        products = 1.1 * pairs * size * (shape.columns + shape.rows)
        return Work(products, itemsize * size, 6.0 * pairs, itemsize * rows * positions * (shape.columns + shape.rows))


def _forms_gradients(positions: int, units: int, features: int) -> bool:
    """Whether the gradients of the weights cost less than the products of all pairs of positions."""
    return positions > 1 and positions**2 * (units + features) > units * features


def _ones_of(call: LayerCall, h: tf.Tensor) -> tf.Tensor:
    """What the bias is multiplied by at each position of a call, `[N, T, 1]`: one, or zero where it does not act."""
    ones = tf.ones_like(h[..., :1])
    if call.biased is None:
        return ones
    return tf.concat([ones[:, : call.biased], tf.zeros_like(ones[:, call.biased :])], 1)


def _ranges(calls: Sequence[LayerCall], h: tf.Tensor) -> list[tuple[int, int]] | None:
    """The examples from start to stop that each position has, or `None` where each has all or they are not known."""
    if all(call.rows is None for call in calls) or h.shape[0] is None or h.shape[1] is None:
        return None
    found: list[tuple[int, int]] = []
    for call in calls:
        if call.rows is not None and not call.rows.is_static:
            return None
        own = (0, h.shape[0]) if call.rows is None else (call.rows.start, call.rows.stop)
        found += [own] * math.prod(call.inputs.shape[1:-1])
    return found


def _sum_over_positions(h: tf.Tensor, d: tf.Tensor, ranges: list[tuple[int, int]] | None) -> tf.Tensor:
    """The double sum over positions, for inputs `[N, T, D]` and gradients `[Q, N, T, U]`.

    Few positions: the products of all pairs, `(Q N)^2` numbers at a time, or as many as there are rows with these
    positions. Many: the per-example weight gradients, `Q N D U` numbers, whose products are the sums.
    """
    units, features = d.shape[3], h.shape[2]
    if ranges is None or d.shape[0] is None:
        cuts, present = [0, h.shape[0]], None if d.shape[2] is None else [list(range(d.shape[2]))]
    else:
        cuts = sorted({0, h.shape[0], *itertools.chain(*ranges)})
        present = [[t for t, (a, b) in enumerate(ranges) if a <= cut < b] for cut in cuts[:-1]]
    if present is None or _forms_gradients(max(map(len, present)), units, features):
        return products(tf.einsum("ntf,qntu->qnfu", h, d))
    columns = tf.shape(d)[0] if d.shape[0] is None else d.shape[0]
    parts = []
    for (start, end), positions in zip(itertools.pairwise(cuts), present, strict=True):
        own, size = d[:, start:end], d[:, start:end].shape[:2].num_elements()
        rows = -1 if size is None else size
        left = [tf.ensure_shape(tf.tile(h[start:end, t], [columns, 1]), [size, features]) for t in positions]
        right = [tf.reshape(own[:, :, t], [rows, units]) for t in positions]
        parts.append(Part(size, left, right))
    gram = sum_of_products(parts)
    if len(parts) == 1 or columns == 1:
        return gram
    # The rows are those of the first part for all columns, and so on; they are to have the columns major.
    numbers = [columns * a + np.arange(columns * (b - a)).reshape(columns, -1) for a, b in itertools.pairwise(cuts)]
    order = np.concatenate(numbers, 1).reshape(-1)
    return tf.gather(tf.gather(gram, order), order, axis=1)


__all__ = ["DenseRule"]
