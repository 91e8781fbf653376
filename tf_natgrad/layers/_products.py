"""Products of matrices of which the Gram matrix is made: symmetric ones, in blocks where they are large."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import tensorflow as tf

# Rows from which on a product with the transpose is formed in blocks, and their number: smaller ones are faster whole.
_MANY_ROWS, _BLOCKS = 512, 3
# Rows of a strip of a sum of products, and the most strips.
_ROWS_OF_STRIP, _STRIPS = 64, 16


def products(parts: tf.Tensor) -> tf.Tensor:
    """Computes all inner products between rows, `[Q, N, ...] -> [Q N, Q N]`.

    Args:
        parts: one array per column and example.

    Returns:
        A symmetric matrix, rows with q major.
    """
    # The static shape, where there is one, outlives the reshaping.
    count = parts.shape[:2].num_elements()
    shape = tf.shape(parts)
    rows = tf.reshape(parts, [shape[0] * shape[1] if count is None else count, -1])
    return symmetric_product(rows)


def symmetric_product(rows: tf.Tensor) -> tf.Tensor:
    """Computes `rows rows^T` of a matrix; of a large one only the blocks on and below the diagonal.

    Args:
        rows: `[m, k]`.

    Returns:
        `[m, m]`.
    """
    count = rows.shape[0]
    if count is None or count < _MANY_ROWS:
        return tf.linalg.matmul(rows, rows, transpose_b=True)
    cuts = [count * i // _BLOCKS for i in range(_BLOCKS + 1)]
    lower: list[tf.Tensor] = []
    for start, end in itertools.pairwise(cuts):
        # One after the other: each of these products keeps all cores busy.
        with tf.control_dependencies(lower[-1:]):
            lower.append(tf.linalg.matmul(rows[start:end], rows[:end], transpose_b=True))
    return symmetric_of_strips(lower, cuts)


def symmetric_of_strips(lower: Sequence[tf.Tensor], cuts: Sequence[int]) -> tf.Tensor:
    """Completes a symmetric matrix of which the strips of rows up to the diagonal are known.

    Args:
        lower: for each strip `[end - start, end]`.
        cuts: where strips begin, and where the last one ends.

    Returns:
        `[m, m]`.
    """
    strips = []
    for i, (start, end) in enumerate(itertools.pairwise(cuts)):
        mirrored = [tf.transpose(below[:, start:end]) for below in lower[i + 1 :]]
        strips.append(tf.concat([lower[i], *mirrored], 1))
    return tf.concat(strips, 0)


def sum_of_products(left: Sequence[tf.Tensor], right: Sequence[tf.Tensor]) -> tf.Tensor:
    """Computes `sum_tt' (a_t a_t'^T) * (b_t b_t'^T)`, products of matrices by entry; strips on and below the diagonal.

    A strip of a few rows stays in the processor's cache from its products to their sum.

    Args:
        left: `a_t` `[m, k]`.
        right: `b_t` `[m, l]`, as many.

    Returns:
        `[m, m]`.
    """
    count = left[0].shape[0]
    strips = 1 if count is None else max(1, min(_STRIPS, count // _ROWS_OF_STRIP))

    def strip(start: int | None, end: int | None) -> tf.Tensor:
        pairs = list(zip(left, right, strict=True))
        return tf.add_n(
            [
                tf.linalg.matmul(a[start:end], c[:end], transpose_b=True)
                * tf.linalg.matmul(b[start:end], d[:end], transpose_b=True)
                for a, b in pairs
                for c, d in pairs
            ]
        )

    if strips == 1:
        return strip(None, None)
    cuts = [count * i // strips for i in range(strips + 1)]
    return symmetric_of_strips([strip(*ends) for ends in itertools.pairwise(cuts)], cuts)


__all__ = ["products", "sum_of_products", "symmetric_of_strips", "symmetric_product"]
