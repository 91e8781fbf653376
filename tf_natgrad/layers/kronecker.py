"""Kronecker factors of the layers: moments of their inputs, and of the gradients at their outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad.layers._base import LayerCall, sharing_variables
from tf_natgrad.layers._matrix import MatrixShape
from tf_natgrad.layers.capture import Record, over_columns, rule_for_group, units
from tf_natgrad.layers.registry import FALLBACK, rule_for
from tf_natgrad.linearize import Linearization
from tf_natgrad.parameters import FlatParameters

APPROXIMATIONS = ("expand", "reduce")
_DIAGONAL = (
    "The Kronecker-factored matrix keeps the diagonal alone of weights that have no Kronecker factors, those of: {}."
)


@dataclasses.dataclass(frozen=True)
class Block:
    """The share of one layer, or of layers that share variables, in a curvature matrix.

    Attributes:
        variables: trainable variables of the layer: those of the matrix, or those that are in none.
        matrix: how they are one matrix; `None` where only the diagonal of the block is kept.
    """

    variables: list[keras.Variable]
    matrix: MatrixShape | None

    @property
    def sizes(self) -> list[int]:
        """How many numbers the sums of the block have: inputs, mass, gradients; or the diagonal alone."""
        if self.matrix is None:
            return [sum(math.prod(v.shape) for v in self.variables)]
        rows, columns = self.matrix.rows, self.matrix.columns
        return [rows if self.matrix.is_table else rows**2, 1, columns**2]

    def joined(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Makes one tensor per variable a matrix `[d_in, d_out]`, or a vector where there is a diagonal."""
        if self.matrix is not None:
            return self.matrix.joined(tensors)
        return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)

    def pieces(self, part: tf.Tensor) -> list[tf.Tensor]:
        """The inverse of `joined`: one tensor per variable, in the variables' shapes."""
        if self.matrix is not None:
            return self.matrix.pieces(part)
        parts = tf.split(part, [math.prod(v.shape) for v in self.variables])
        return [tf.reshape(p, v.shape) for v, p in zip(self.variables, parts, strict=True)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The blocks of a matrix, and where their variables are in a vector.

    Attributes:
        flat: the layout of the vector.
        blocks: the blocks, which cover its variables.
    """

    flat: FlatParameters
    blocks: list[Block]

    @classmethod
    def of(cls, model: keras.layers.Layer, flat_parameters: FlatParameters) -> Layout:
        """Returns the layout of a model's blocks, see `blocks_of`; says once where only a diagonal is kept."""
        blocks = blocks_of(model, flat_parameters)
        without = [block.variables[0].path for block in blocks if block.matrix is None]
        if without:
            text = _DIAGONAL.format(", ".join(without))
            _checks.log_once(text, key=text)
        return cls(flat_parameters, blocks)

    def split(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Splits `[n]` into one part per block: a matrix `[d_in, d_out]`, or a vector where there is a diagonal."""
        parts = dict(zip(map(id, self.flat.variables), self.flat.unflatten(vector), strict=True))
        return [block.joined([parts[id(v)] for v in block.variables]) for block in self.blocks]

    def pieces(self, parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Splits the parts of blocks into one tensor per variable, in the variables' shapes."""
        found = {}
        for block, part in zip(self.blocks, parts, strict=True):
            found |= {id(v): piece for v, piece in zip(block.variables, block.pieces(part), strict=True)}
        return [found[id(v)] for v in self.flat.variables]

    def join(self, parts: Sequence[tf.Tensor]) -> tf.Tensor:
        """The inverse of `split`."""
        return self.flat.flatten(self.pieces(parts))


def blocks_of(model: keras.layers.Layer, flat_parameters: FlatParameters) -> list[Block]:
    """Returns the blocks of a model, which cover these variables.

    Args:
        model: a built Keras model.
        flat_parameters: the variables of the matrix.

    Returns:
        One block per layer with such variables, and a diagonal one beside it where the layer's matrix leaves some out;
        one for all layers that share variables.

    Raises:
        ValueError: if a variable belongs to no layer of its own, or a layer's variables are not taken together.
    """
    wanted = {id(v): v for v in flat_parameters.variables}
    groups = sharing_variables(units(model), lambda layer: layer, flat_parameters)
    found = [block for group in groups for block in _blocks(group)]
    seen = {id(v): v for block in found for v in block.variables}
    odd = [v.path for key, v in {**seen, **wanted}.items() if (key in seen) != (key in wanted)]
    if odd:
        raise ValueError(
            _checks.message(
                "model",
                f"{', '.join(odd)}, apart from the other variables of a layer",
                "layers whose trainable variables are taken together",
                "Use `operators.Fisher` for such a model.",
            )
        )
    return found


def _blocks(group: list[keras.layers.Layer]) -> list[Block]:
    own = list({id(v): v for layer in group for v in layer.trainable_variables}.values())
    matrix = rule_for(group[0]).matrix_shape(group[0]) if len(group) == 1 else None
    if matrix is None:
        return [Block(own, None)]
    inside = {id(v) for v in matrix.variables}
    rest = [v for v in own if id(v) not in inside]
    return [*([Block(rest, None)] if rest else []), Block(matrix.variables, matrix)]


def kronecker_sums(
    blocks: Sequence[Block],
    record: Record,
    linearization: Linearization,
    columns: tf.Tensor,
    weights: tf.Tensor,
    approximation: str,
    enough: Callable[[int], int] | None = None,
) -> list[tf.Tensor]:
    """Computes the sums over one batch that Kronecker factors are made of; they add up over batches.

    With `h_it` the inputs of a layer at position t of example i, `d_qit` the gradients of column q at its outputs and
    `w_it` the weight of the position, they are for `"expand"` `sum_it w_it h_it h_it^T`, `sum_it w_it` and
    `sum_qit d_qit d_qit^T`; for `"reduce"` the same of `sum_t w_it h_it / w_i` and `sum_t d_qit`. A layer without
    matrix has `sum_qi G_qi^2`, the squares of its per-example gradients.

    Args:
        blocks: of the model, see `blocks_of`.
        record: the recorded calls of one forward pass.
        linearization: of that pass.
        columns: `[Q, N, ..., C]`, the factor of the output space times the roots of the weights.
        weights: of the positions of the outputs, `[N, ...]`.
        approximation: `"expand"` or `"reduce"`.
        enough: from `d_in` to the number of rows that are enough for the sum over the inputs of a layer on patches:
            the first examples that have so many are taken. `None`: all of them.

    Returns:
        For each block a sum over inputs, a mass and a sum over gradients; or a diagonal.

    Raises:
        ValueError: if the pass has no per-example gradients.
    """
    flat = linearization.flat_parameters
    calls_of = calls_of_blocks(blocks, record, linearization)
    dtype = flat.dtype

    def of_gradients(gradients: list[list[tf.Tensor]]) -> list[tf.Tensor]:
        given = zip(blocks, calls_of, gradients, strict=True)
        return [_sum_of_gradients(block, calls, some, approximation, dtype) for block, calls, some in given]

    sums = over_columns(of_gradients, linearization, columns, calls_of, tf.add_n)
    parts = []
    for block, calls, of_block in zip(blocks, calls_of, sums, strict=True):
        if block.matrix is not None:
            patches = not block.matrix.has_plain_inputs and not block.matrix.is_table
            # The first examples may be none that the layer sees.
            whole = all(call.rows is None for call in calls)
            rows = enough(block.matrix.rows) if enough is not None and patches and whole else None
            parts += _sums_of_inputs(block.matrix, calls, tf.cast(weights, dtype), approximation, rows)
        parts.append(of_block)
    return parts


def calls_of_blocks(blocks: Sequence[Block], record: Record, linearization: Linearization) -> list[list[LayerCall]]:
    """Returns the recorded calls of each block.

    Args:
        blocks: of the model.
        record: of one forward pass.
        linearization: of that pass.

    Returns:
        One list of calls per block.

    Raises:
        ValueError: if the calls do not tell the gradients of the blocks' variables.
    """
    flat = linearization.flat_parameters
    refusal = record.refusal_for(flat, linearization.outputs.shape[0], per_example=False)
    if refusal is not None:
        raise ValueError(refusal)
    groups = {id(v): calls for calls in record.groups(flat) for call in calls for v in call.layer.trainable_variables}
    return [groups[id(block.variables[0])] for block in blocks]


def _sums_of_inputs(
    matrix: MatrixShape, calls: list[LayerCall], weights: tf.Tensor, approximation: str, rows: int | None
) -> list[tf.Tensor]:
    """The sum over the inputs of a block, and its mass; of the first examples that have so many rows, if given."""
    by_position = tf.concat([_weights_of(call, weights) for call in calls], 1)
    if rows is not None and by_position.shape[1]:
        count = -(-rows // by_position.shape[1])
        by_position = by_position[:count]
        calls = [dataclasses.replace(call, args=(call.inputs[:count],), kwargs={}) for call in calls]
    h = rule_for(calls[0].layer).matrix_inputs(calls, weights.dtype)
    mass = tf.reduce_sum(by_position)
    if matrix.is_table:
        return [_diagonal_of_table(h, by_position, matrix.rows, approximation), mass]
    if approximation == "reduce":
        by_example = tf.reduce_sum(by_position, 1)[:, None]
        h = tf.einsum("nt,nta->na", by_position, h) * tf.math.reciprocal_no_nan(by_example)
        return [tf.linalg.matmul(h, by_example * h, transpose_a=True), mass]
    h = tf.reshape(h, [-1, matrix.rows])
    return [tf.linalg.matmul(h, tf.reshape(by_position, [-1, 1]) * h, transpose_a=True), mass]


def _weights_of(call: LayerCall, weights: tf.Tensor) -> tf.Tensor:
    """The weight of each position of a call, `[N, T]`: that of the same position of the outputs, or of the example.

    It is zero at examples that the call did not see.
    """
    axes = rule_for(call.layer).position_axes(call)
    if tf.TensorShape([call.output.shape[axis] for axis in axes]) == weights.shape[1:]:
        found = weights
    else:
        by_example = tf.reduce_sum(tf.reshape(weights, [tf.shape(weights)[0], -1]), 1)
        sizes = tf.gather(tf.shape(call.output), tf.constant(axes, tf.int32))
        found = tf.reshape(by_example, tf.concat([tf.shape(by_example), tf.ones_like(sizes)], 0))
        found = tf.broadcast_to(found, tf.concat([tf.shape(by_example), sizes], 0))
    # That of an embedding is on its outputs.
    masks = [_keras.mask_of(tensor) for tensor in (call.inputs, call.output)]
    mask = next((m for m in masks if m is not None), None)
    if mask is not None and mask.shape.is_compatible_with(found.shape):
        found = tf.where(mask, found, tf.zeros_like(found))
    if call.rows is not None:
        seen = call.rows.indicator(found.dtype)
        found *= tf.reshape(seen, tf.concat([tf.shape(seen), tf.ones_like(tf.shape(found)[1:])], 0))
    sizes = [call.output.shape[axis] for axis in axes]
    return tf.reshape(found, [tf.shape(weights)[0], -1 if None in sizes else math.prod(sizes)])


def _diagonal_of_table(tokens: tf.Tensor, by_position: tf.Tensor, rows: int, approximation: str) -> tf.Tensor:
    """The diagonal of the sum over one-hot inputs, or over their mean in each example, `[rows]`."""
    if approximation == "expand":
        return tf.math.unsorted_segment_sum(tf.reshape(by_position, [-1]), tf.reshape(tokens, [-1]), rows)
    examples = tf.range(tf.shape(tokens, tf.int64)[0], dtype=tf.int64)[:, None]
    pairs, places = tf.unique(tf.reshape(examples * rows + tokens, [-1]))
    shares = tf.math.unsorted_segment_sum(tf.reshape(by_position, [-1]), places, tf.size(pairs))
    by_example = tf.gather(tf.reduce_sum(by_position, 1), pairs // rows)
    return tf.math.unsorted_segment_sum(tf.math.divide_no_nan(shares**2, by_example), pairs % rows, rows)


def _sum_of_gradients(
    block: Block, calls: list[LayerCall], gradients: list[tf.Tensor], approximation: str, dtype: tf.DType
) -> tf.Tensor:
    """The sum over the gradients at the outputs of a block; without a matrix, over squares of those of its weights."""
    rule = rule_for_group(calls)
    if block.matrix is None:
        squares = rule.squares(calls, gradients, dtype) or FALLBACK.squares(calls, gradients, dtype)
        by_variable = {id(v): tf.reshape(total, [-1]) for v, total in squares}
        return tf.concat([by_variable[id(v)] for v in block.variables], 0)
    d = rule.matrix_gradients(calls, gradients, dtype)
    d = tf.reduce_sum(d, 2) if approximation == "reduce" else d
    d = tf.reshape(d, [-1, block.matrix.columns])
    return tf.linalg.matmul(d, d, transpose_a=True)


__all__ = ["APPROXIMATIONS", "Block", "Layout", "blocks_of", "calls_of_blocks", "kronecker_sums"]
