"""The gradient of a batch, block by block, and a check that the layers' calls give it."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_natgrad import _replicas
from tf_natgrad._typing import TensorLike
from tf_natgrad.layers import LayerCall
from tf_natgrad.layers.kronecker import Block, Layout, calls_of_blocks
from tf_natgrad.layers.registry import rule_for
from tf_natgrad.operators import Fisher, Penalty
from tf_natgrad.preconditioners._blocks import BlockState, Gradient

# Roundings by which two ways to the same derivative may differ, relative to the norms of their factors.
_TOLERANCE = 1e3
_SEED = (7, 11)


def gradients_of(fisher: Fisher, layout: Layout, states: Sequence[BlockState], y: TensorLike) -> list[Gradient]:
    """Computes the gradient of a batch's loss, penalties included, by one backward pass.

    Args:
        fisher: of the batch, with its calls recorded.
        layout: of the blocks.
        states: of the blocks, which say whether they take rows.
        y: the labels.

    Returns:
        One `Gradient` per block: rows where they are wanted, the layer's inputs are at hand as they are, and no penalty
        joins them.
    """
    batch, dtype = fisher.batch, fisher.dtype
    calls_of = calls_of_blocks(layout.blocks, batch.record, batch.linearization)
    pairs = list(zip(layout.blocks, calls_of, strict=True))
    # Elsewhere the tape has the matrix for less than the rows would take.
    by_rows = [
        _has_rows(block) and state.takes_rows(_count(block, calls))
        for (block, calls), state in zip(pairs, states, strict=True)
    ]
    outputs = [call.output for calls, takes in zip(calls_of, by_rows, strict=True) if takes for call in calls]
    plain = [v for block, takes in zip(layout.blocks, by_rows, strict=True) if not takes for v in block.variables]
    pulled = batch.gradient([*outputs, *(v.value for v in plain)], y, batch.weights)
    at_outputs = iter(pulled[: len(outputs)])
    of_variables = dict(zip(map(id, plain), _replicas.total(pulled[len(outputs) :]), strict=True))
    penalty = Penalty(layout.flat)
    if not penalty.is_zero:
        for v, more in zip(layout.flat.variables, layout.flat.unflatten(penalty.gradient()), strict=True):
            if id(v) in of_variables:
                of_variables[id(v)] += more
    found = []
    for (block, calls), takes in zip(pairs, by_rows, strict=True):
        if takes:
            found.append(Gradient(None, *_rows(block, calls, [next(at_outputs) for _ in calls], dtype)))
        else:
            found.append(Gradient(block.joined([of_variables[id(v)] for v in block.variables])))
    if not _replicas.several():
        return found
    # The rows are those of this replica's examples; of all of them the sum is wanted.
    own = [k for k, gradient in enumerate(found) if gradient.matrix is None]
    for k, matrix in zip(own, _replicas.total([found[k].as_matrix() for k in own]), strict=True):
        found[k] = Gradient(matrix)
    return found


def calls_agree(fisher: Fisher, layout: Layout) -> tf.Tensor:
    """Compares the derivative of a sum of the outputs along one direction: by the layers' rows, and by the Jacobian.

    Args:
        fisher: of the batch, with its calls recorded.
        layout: of the blocks.

    Returns:
        A scalar boolean. It is true where something is not finite: that is refused elsewhere.
    """
    batch, dtype = fisher.batch, fisher.dtype
    linear = batch.linearization
    calls_of = calls_of_blocks(layout.blocks, batch.record, linear)
    pairs = zip(layout.blocks, calls_of, strict=True)
    outputs = [call.output for block, calls in pairs if _has_rows(block) for call in calls]
    if not outputs:
        return tf.constant(True)
    # At random: what BatchNormalization gives sums to the same number whatever the weights before it are.
    score = tf.random.stateless_normal(tf.shape(linear.outputs), _SEED, dtype=linear.outputs.dtype)
    score = tf.ensure_shape(score, linear.outputs.shape) * tf.sign(batch.output_weights)
    at_outputs = iter(linear.pullback_to(outputs, score))
    by_rows, direction = tf.zeros([], dtype), []
    for block, calls, zeros in zip(
        layout.blocks, calls_of, layout.split(tf.zeros([layout.flat.size], dtype)), strict=True
    ):
        if _has_rows(block):
            h, e = _rows(block, calls, [next(at_outputs) for _ in calls], dtype)
            a, b = tf.reduce_sum(h, 0), tf.reduce_sum(e, 0)
            by_rows += tf.reduce_sum(tf.linalg.matvec(h, a) * tf.linalg.matvec(e, b))
            direction.append(a[:, None] * b)
        else:
            direction.append(zeros)
    image = linear.jvp(layout.flat.unflatten(layout.join(direction)))
    by_jacobian = tf.cast(tf.reduce_sum(score * image), dtype)
    scale = tf.cast(tf.norm(score) * tf.norm(image), dtype) + tf.abs(by_rows)
    return ~(tf.abs(by_rows - by_jacobian) > _TOLERANCE * linear.rounding * scale)


def _has_rows(block: Block) -> bool:
    plain = block.matrix is not None and block.matrix.has_plain_inputs
    return plain and all(getattr(v, "regularizer", None) is None for v in block.variables)


def _count(block: Block, calls: list[LayerCall]) -> int | None:
    """How many rows there are, over all examples and positions; `None` where that is not known."""
    sizes = [call.output.shape.num_elements() for call in calls]
    if any(size is None for size in sizes) or any(call.rows is not None for call in calls):
        return None
    return sum(sizes) // block.matrix.columns


def _rows(
    block: Block, calls: list[LayerCall], gradients: list[tf.Tensor], dtype: tf.DType
) -> tuple[tf.Tensor, tf.Tensor]:
    """`h` `[M, d_in]` and `e` `[M, d_out]` over all examples and positions."""
    rule = rule_for(calls[0].layer)
    h = rule.matrix_inputs(calls, dtype)
    e = rule.matrix_gradients(calls, [c.padded(g[None]) for c, g in zip(calls, gradients, strict=True)], dtype)
    return tf.reshape(h, [-1, block.matrix.rows]), tf.reshape(e, [-1, block.matrix.columns])


__all__ = ["calls_agree", "gradients_of"]
