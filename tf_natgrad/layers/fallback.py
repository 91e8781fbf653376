"""Any layer without a rule of its own: per-example gradients, in chunks under a memory limit."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_natgrad.layers._base import LayerCall, Rule, Scales, Squares
from tf_natgrad.layers._products import symmetric_product
from tf_natgrad.layers.work import Work, product_of_rows

# Bytes of per-example gradients held at once.
MEMORY_LIMIT = 1 << 30


class FallbackRule(Rule):
    """Forms `G[q, i]` itself: a vector-Jacobian product of the layer alone, for each example and column.

    The layer is called again, on one example at a time and at the weights that were captured, so its output must
    be a function of that example only: what draws random numbers or mixes examples is refused by `capture`.

    Args:
        memory_limit: bytes of per-example gradients that may be held at once; beyond it rows are formed in
            chunks, and formed again for each pair of chunks.
    """

    def __init__(self, memory_limit: int | None = None):
        self.memory_limit = memory_limit

    def gram(
        self,
        calls: Sequence[LayerCall],
        summaries: Sequence[tf.Tensor],
        dtype: tf.DType,
        scales: Scales | None = None,
    ) -> tf.Tensor:
        gradients, roots = summaries, _roots(calls, scales)

        def scaled_rows(chosen: tf.Tensor) -> tf.Tensor:
            found = self._rows(calls, gradients, chosen, dtype)
            return found if roots is None else found * roots

        columns, examples = tf.shape(gradients[0])[0], tf.shape(gradients[0])[1]
        rows = columns * examples
        size = sum(v.shape.num_elements() for v in _variables(calls))
        most = max(1, (self.memory_limit or MEMORY_LIMIT) // (2 * size * dtype.size))
        static_rows = gradients[0].shape[:2].num_elements()
        if static_rows is not None and static_rows <= most:
            block = scaled_rows(tf.range(rows))
            return symmetric_product(block)

        chunk = tf.minimum(most, rows)
        chunks = (rows + chunk - 1) // chunk

        def rows_of(index: tf.Tensor) -> tf.Tensor:
            # The last chunk repeats the last row; what is too much is cut off below.
            return scaled_rows(tf.minimum(tf.range(chunk) + index * chunk, rows - 1))

        def strip(index: tf.Tensor) -> tf.Tensor:
            left = rows_of(index)
            blocks = tf.map_fn(
                lambda other: tf.linalg.matmul(left, rows_of(other), transpose_b=True),
                tf.range(chunks),
                fn_output_signature=tf.TensorSpec([None, None], dtype),
                parallel_iterations=1,
            )
            return tf.reshape(tf.transpose(blocks, [1, 0, 2]), [chunk, -1])

        strips = tf.map_fn(
            strip, tf.range(chunks), fn_output_signature=tf.TensorSpec([None, None], dtype), parallel_iterations=1
        )
        return tf.reshape(strips, [-1, chunks * chunk])[:rows, :rows]

    def gram_work(self, calls: Sequence[LayerCall], columns: int, examples: int, itemsize: int) -> Work:
        # Each row is a forward and a backward pass through the layer of its own.
        size = sum(v.shape.num_elements() for v in _variables(calls))
        rows, positions = columns * examples, sum(_positions_inside(call) for call in calls)
        passes = Work(6.0 * rows * positions * size, 20.0 * itemsize * rows * size, 600.0 * positions)
        return passes.plus(product_of_rows(rows, size, itemsize))

    def squares(self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType) -> Squares:
        variables = _variables(calls)
        rows = tf.shape(gradients[0])[0] * tf.shape(gradients[0])[1]
        sizes = [v.shape.num_elements() for v in variables]
        chunk = tf.minimum(max(1, (self.memory_limit or MEMORY_LIMIT) // (2 * sum(sizes) * dtype.size)), rows)

        def body(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # The last chunk repeats the last row, which counts once.
            chosen = start + tf.range(chunk)
            found = self._rows(calls, gradients, tf.minimum(chosen, rows - 1), dtype)
            found = tf.where((chosen < rows)[:, None], found, tf.zeros_like(found))
            return start + chunk, total + tf.reduce_sum(found**2, 0)

        total = tf.zeros([sum(sizes)], dtype)
        _, total = tf.while_loop(lambda start, _: start < rows, body, (tf.constant(0), total), parallel_iterations=1)
        parts = zip(variables, tf.split(total, sizes), strict=True)
        return [(v, tf.reshape(part, v.shape)) for v, part in parts]

    def _rows(
        self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], rows: tf.Tensor, dtype: tf.DType
    ) -> tf.Tensor:
        """The gradients `G` `[len(rows), n_layer]` of these rows."""
        example = rows % tf.shape(gradients[0])[1]
        cotangents = [tf.gather(tf.reshape(g, tf.concat([[-1], tf.shape(g)[2:]], 0)), rows) for g in gradients]
        arguments = [[tf.gather(a, example) for a in _batched_arguments(call)] for call in calls]
        variables = _variables(calls)

        def one_row(elements):
            parts = [
                _layer_vjp(call, [a[None] for a in single], cotangent[None], variables)
                for call, single, cotangent in zip(calls, *elements, strict=True)
            ]
            return tf.concat([tf.reshape(tf.cast(sum(p), dtype), [-1]) for p in zip(*parts, strict=True)], 0)

        return tf.vectorized_map(one_row, (arguments, cotangents))


def _variables(calls: Sequence[LayerCall]) -> list[keras.Variable]:
    """The trainable variables of all layers called, each once."""
    return list({id(v): v for call in calls for v in call.layer.trainable_variables}.values())


def _roots(calls: Sequence[LayerCall], scales: Scales | None) -> tf.Tensor | None:
    """The square root of its variable's scale for each column of the rows `[n_layer]`, or `None`."""
    if scales is None:
        return None
    variables = _variables(calls)
    return tf.concat([tf.fill([v.shape.num_elements()], tf.sqrt(scales[id(v)])) for v in variables], 0)


def _positions_inside(call: LayerCall) -> int:
    """About how many times a layer uses its weights for one example: the positions, or steps, of its inputs."""
    return call.inputs.shape[1:-1].num_elements() or 1


def _is_batched(argument: object) -> bool:
    return tf.is_tensor(argument) and bool(argument.shape.rank)


def _batched_arguments(call: LayerCall) -> list[tf.Tensor]:
    """Those arguments of the call that have one entry per example."""
    return [a for a in tf.nest.flatten((call.args, call.kwargs)) if _is_batched(a)]


def _layer_vjp(
    call: LayerCall, arguments: list[tf.Tensor], cotangent: tf.Tensor, variables: list[keras.Variable]
) -> list[tf.Tensor]:
    """The gradient of the layer's output on these arguments, with respect to each of `variables`."""
    given = iter(arguments)
    structure = (call.args, call.kwargs)
    args, kwargs = tf.nest.pack_sequence_as(
        structure, [next(given) if _is_batched(a) else a for a in tf.nest.flatten(structure)]
    )
    values = [tf.identity(value) for value in call.values]
    own = call.layer.trainable_variables
    with tf.GradientTape() as tape:
        tape.watch(values)
        with keras.StatelessScope(state_mapping=list(zip(own, values, strict=True))):
            output = (call.function or call.layer)(*args, **kwargs)
    scale = tf.ones([], cotangent.dtype)
    if output.dtype == tf.float16:
        # It underflows at 6e-8: what goes through it is of order one.
        largest = tf.reduce_max(tf.abs(cotangent))
        scale = tf.where(largest > 0, largest, scale)
    gradients = tape.gradient(
        output,
        values,
        output_gradients=tf.cast(cotangent / scale, output.dtype),
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    found = {id(v): tf.cast(g, cotangent.dtype) * scale for v, g in zip(own, gradients, strict=True)}
    return [found[id(v)] if id(v) in found else tf.zeros(v.shape, v.dtype) for v in variables]


__all__ = ["MEMORY_LIMIT", "FallbackRule"]
