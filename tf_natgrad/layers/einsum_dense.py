"""`EinsumDense`, of which attention is made: a dense layer on inputs and outputs of several axes."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_natgrad.layers._base import LayerCall
from tf_natgrad.layers._matrix import MatrixShape
from tf_natgrad.layers.dense import DenseRule


class _Letters(NamedTuple):
    """The axes of an equation by what they are, as letters.

    Attributes:
        inputs: all axes of the input, the batch first.
        outputs: all axes of the output.
        positions: of input and output, but not of the kernel, the batch left out.
        summed: of input and kernel alone.
        made: of kernel and output alone.
    """

    inputs: str
    outputs: str
    positions: str
    summed: str
    made: str


class EinsumDenseRule(DenseRule):
    """The rule of `Dense`, with the kernel's summed axes as features and its other axes as units.

    It is right for equations such as `"abc,cde->abde"`, whose kernel has no axis in common with both input and output,
    and whose bias, if there is one, has exactly the kernel's output axes.
    """

    def supports(self, layer: keras.layers.Layer) -> bool:
        if not super().supports(layer):
            return False
        letters = _letters(layer)
        if letters is None:
            return False
        units = [layer.kernel.shape[i] for i in range(len(letters.summed), len(layer.kernel.shape))]
        return layer.bias is None or [size for size in layer.bias.shape if size != 1] == [u for u in units if u != 1]

    def matrix_shape(self, layer: keras.layers.Layer) -> MatrixShape:
        own = [v for v in (layer.kernel, layer.bias) if v is not None]
        split = len(_letters(layer).summed)
        rows, columns = (math.prod(sizes) for sizes in (layer.kernel.shape[:split], layer.kernel.shape[split:]))
        return MatrixShape(own, rows + len(own) - 1, columns, has_plain_inputs=True)

    def position_axes(self, call: LayerCall) -> list[int]:
        letters = _letters_of(call)
        return [letters.outputs.index(axis) for axis in letters.positions]

    def kernel_inputs(self, calls: Sequence[LayerCall], dtype: tf.DType) -> tf.Tensor:
        return tf.concat([_ordered(tf.cast(c.inputs, dtype), _letters_of(c), False) for c in calls], 1)

    def matrix_gradients(
        self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType
    ) -> tf.Tensor:
        pairs = zip(calls, gradients, strict=True)
        return tf.concat([_ordered(tf.cast(g, dtype), _letters_of(call), True) for call, g in pairs], 2)


def _letters_of(call: LayerCall) -> Any:
    return _letters(call.layer, call.inputs.shape.rank)


def _letters(layer: keras.layers.Layer, input_rank: int | None = None) -> _Letters | None:
    """The axes of a layer's equation; `None` if it is not that of a dense layer."""
    given, result = layer.equation.replace(" ", "").split("->")
    inputs, kernel = given.split(",")
    if "..." in layer.equation:
        used = set(inputs + kernel + result)
        rank = len(inputs.replace("...", "")) + 1 if input_rank is None else input_rank
        free = [c for c in string.ascii_letters if c not in used][: rank - len(inputs.replace("...", ""))]
        inputs, result = (text.replace("...", "".join(free)) for text in (inputs, result))
    batch = inputs[0]
    positions = "".join(c for c in result if c in inputs and c not in kernel and c != batch)
    summed = "".join(c for c in kernel if c in inputs and c not in result)
    made = "".join(c for c in kernel if c in result and c not in inputs)
    plain = (
        result[0] == batch
        and kernel == summed + made
        and len(kernel) == len(layer.kernel.shape)
        and set(inputs) == {batch, *positions, *summed}
        and set(result) == {batch, *positions, *made}
        and all(len(set(text)) == len(text) for text in (inputs, kernel, result))
        # A bias is added along the units in their order.
        and [c for c in result if c in made] == list(made)
    )
    return _Letters(inputs, result, positions, summed, made) if plain else None


def _ordered(tensor: tf.Tensor, letters: _Letters, of_outputs: bool) -> tf.Tensor:
    """`[N, T, features]` of an input, or `[Q, N, T, units]` of gradients at an output."""
    axes, last = (letters.outputs, letters.made) if of_outputs else (letters.inputs, letters.summed)
    lead = int(of_outputs)
    order = [*range(lead), *(lead + axes.index(c) for c in (axes[0], *letters.positions, *last))]
    ordered = tf.transpose(tensor, order) if order != sorted(order) else tensor
    shape, first = tf.shape(ordered), lead + 1
    sizes = [ordered.shape[first : first + len(letters.positions)], ordered.shape[first + len(letters.positions) :]]
    counts = [size.num_elements() for size in sizes]
    flat = tf.concat([shape[:first], [-1 if count is None else count for count in counts]], 0)
    return tf.reshape(ordered, flat)


__all__ = ["EinsumDenseRule"]
