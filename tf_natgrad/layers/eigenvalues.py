"""Second moments of the gradients of layers in a Kronecker-factored basis: the eigenvalues of EKFAC."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_natgrad.layers._base import LayerCall
from tf_natgrad.layers.capture import Record, over_columns, rule_for_group
from tf_natgrad.layers.kronecker import Block, calls_of_blocks
from tf_natgrad.linearize import Linearization

Bases = tuple[tf.Tensor, tf.Tensor]


def second_moments(
    blocks: Sequence[Block],
    bases: Sequence[Bases],
    record: Record,
    linearization: Linearization,
    columns: tf.Tensor,
) -> list[tf.Tensor]:
    """Computes `sum_qi (U_A^T V_qi U_G)^2` for blocks, `V_qi` the gradient of column q of example i.

    Args:
        blocks: with a matrix that acts on inputs, not on row numbers.
        bases: of each block, `U_A` `[d_in, d_in]` and `U_G` `[d_out, d_out]`.
        record: the recorded calls of one forward pass.
        linearization: of that pass.
        columns: `[Q, N, ..., C]`, the factor of the output space times the roots of the weights.

    Returns:
        One `[d_in, d_out]` per block.

    References:
        T. George, C. Laurent, X. Bouthillier, N. Ballas, P. Vincent, "Fast approximate natural gradient descent in a
        Kronecker-factored eigenbasis", NeurIPS (2018), equation 12.
    """
    calls_of = calls_of_blocks(blocks, record, linearization)
    dtype = linearization.flat_parameters.dtype

    def of_gradients(gradients: list[list[tf.Tensor]]) -> list[tf.Tensor]:
        given = zip(bases, calls_of, gradients, strict=True)
        return [_moments(basis, calls, some, dtype) for basis, calls, some in given]

    return over_columns(of_gradients, linearization, columns, calls_of, tf.add_n)


def _moments(bases: Bases, calls: list[LayerCall], gradients: list[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    rule = rule_for_group(calls)
    h = tf.linalg.matmul(rule.matrix_inputs(calls, dtype), bases[0])
    d = tf.linalg.matmul(rule.matrix_gradients(calls, gradients, dtype), bases[1])
    if h.shape[1] == 1:
        return tf.einsum("na,qnb->ab", tf.square(h[:, 0]), tf.square(d[:, :, 0]))

    def add(total: tf.Tensor, one: Bases) -> tf.Tensor:
        return total + tf.reduce_sum(tf.square(tf.einsum("ta,qtb->qab", *one)), 0)

    # The gradients of one example at a time: those of all would take as much memory as so many layers.
    zeros = tf.zeros([h.shape[-1], d.shape[-1]], dtype)
    return tf.foldl(add, (h, tf.transpose(d, [1, 0, 2, 3])), zeros, parallel_iterations=1)


__all__ = ["Bases", "second_moments"]
