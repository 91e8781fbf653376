"""Products of matrices of which the Gram matrix is made: symmetric ones, in blocks where they are large."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

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


class Part(NamedTuple):
    """Rows of a sum of products that have the same terms; none where nothing acts on these rows.

    Attributes:
        size: the number of rows `m`, `None` where it is not known.
        left: `a_t` `[m, k]` for each term.
        right: `b_t` `[m, l]`, as many.
    """

    size: int | None
    left: Sequence[tf.Tensor]
    right: Sequence[tf.Tensor]


def sum_of_products(parts: Sequence[Part]) -> tf.Tensor:
    """Computes `sum_tt' (a_t a_t'^T) * (b_t b_t'^T)`, products of matrices by entry; strips on and below the diagonal.

    A strip of a few rows stays in the processor's cache from its products to their sum.

    Args:
        parts: one below the other. `t` runs over the terms of the rows' part, `t'` over those of the columns' part. The
            size of a part must be known where there are several.

    Returns:
        `[m, m]`, `m` the rows of all parts.
    """
    if len(parts) == 1 and parts[0].size is None:
        return _block(parts[0], parts[0])
    dtype = next(tensor.dtype for part in parts for tensor in part.left)
    lower, cuts = [], [0]
    for number, part in enumerate(parts):
        size = part.size or 0
        strips = max(1, min(_STRIPS, size // _ROWS_OF_STRIP))
        for start, end in itertools.pairwise(size * i // strips for i in range(strips + 1)):
            columns = [(other, other.size) for other in parts[:number]] + [(part, end)]
            blocks = [
                _block(part, other, start, end, last)
                if part.left and other.left
                else tf.zeros([end - start, last], dtype)
                for other, last in columns
            ]
            lower.append(blocks[0] if len(blocks) == 1 else tf.concat(blocks, 1))
            cuts.append(cuts[-1] + end - start)
    return lower[0] if len(lower) == 1 else symmetric_of_strips(lower, cuts)


def _block(
    part: Part, other: Part, start: int | None = None, end: int | None = None, last: int | None = None
) -> tf.Tensor:
    """The rows from `start` to `end` of a part, and the columns of another one up to `last`."""
    # Cut once for all pairs: a graph of many slices takes its time to build.
    rows = [(a[start:end], b[start:end]) for a, b in zip(part.left, part.right, strict=True)]
    columns = [(c[:last], d[:last]) for c, d in zip(other.left, other.right, strict=True)]
    return tf.add_n(
        [
            tf.linalg.matmul(a, c, transpose_b=True) * tf.linalg.matmul(b, d, transpose_b=True)
            for a, b in rows
            for c, d in columns
        ]
    )


__all__ = ["Part", "products", "sum_of_products", "symmetric_of_strips", "symmetric_product"]
