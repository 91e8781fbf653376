"""What a model's passes cost, from the shapes of one trace of its forward pass: nothing is computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad._typing import LossLike, ModelLike
from tf_natgrad.distributions import Distribution, likelihood_of
from tf_natgrad.layers._base import LayerCall, Rule
from tf_natgrad.layers.capture import Record, capture, rule_for_group
from tf_natgrad.layers.work import Work
from tf_natgrad.linearize import call_model
from tf_natgrad.parameters import FlatParameters

# Calls that share variables, with their rule.
Ruled = Sequence[tuple[Rule, list[LayerCall]]]
# Nodes that cost nothing to speak of: they hold, name or route tensors.
_FREE = {
    *("Const", "Identity", "NoOp", "Placeholder", "ReadVariableOp", "Shape", "StopGradient", "StridedSlice"),
    *("Pack", "Prod", "Reshape", "ExpandDims", "Squeeze", "PreventGradient", "IdentityN"),
}
# How many times as long an operation takes in a convolution of one channel at a time as in a product of matrices.
_DEPTHWISE = 8.0
# Nodes of one step of a recurrent layer's loop.
_NODES_OF_STEP = 27.0


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and a batch, as shapes.

    Attributes:
        forward: the work of one forward pass.
        examples: `N`.
        size: `n`, the number of weights.
        variables: the number of variables.
        columns: `Q`, for each kind of Fisher: the rows of `A` of one example.
        gram: for each kind, the work of the Gram matrix from gradients at the layers' outputs.
        refusals: for each kind, why there is no Gram matrix, or `None`.
        itemsize: bytes of a number.
        dtype: the name of the variables' dtype.
        factors: for each layer with Kronecker factors, `(d_in, d_out, positions, is_table)`.
        diagonal_work: of the squares of per-example gradients of weights without Kronecker factors.
        diagonal: the number of weights of which a Kronecker factorisation keeps the diagonal alone.
        refusal: why the Kronecker factors of a batch do not exist, or `None`.
    """

    forward: Work
    examples: int
    size: int
    variables: int
    columns: dict[str, int]
    gram: dict[str, Work]
    refusals: dict[str, str | None]
    itemsize: int
    dtype: str
    factors: list[tuple[int, int, int, bool]]
    diagonal: int
    diagonal_work: Work
    refusal: str | None


def network_of(
    model: ModelLike,
    loss: LossLike,
    data: tuple,
    *,
    training: bool = True,
    variables: Sequence[keras.Variable] | None = None,
) -> Network:
    """Traces a model's forward pass on a batch's shapes.

    Args:
        model: a built Keras model.
        loss: see `likelihood_of`.
        data: `(x, y, ...)`; of `x` the shapes are used.
        training: the mode in which the model is called.
        variables: those of the matrix; by default all trainable ones.

    Returns:
        A `Network`.

    Raises:
        ValueError: if the batch does not fit.
    """
    likelihood = likelihood_of(loss).for_model(model)
    flat = FlatParameters(model.trainable_variables if variables is None else variables)
    found: list[tuple[Record, Distribution]] = []

    def trace(x: Any) -> None:
        with capture(model) as record:
            outputs = call_model(model, x, training)
        found.append((record, likelihood.distribution(outputs)))

    with keras.StatelessScope():
        graph = tf.function(trace, autograph=False).get_concrete_function(_shapes(data[0])).graph
    record, pd = found[-1]
    examples, groups = pd.parameters.shape[0], record.groups(flat)
    refusal = record.refusal_for(flat, examples)
    columns = {"exact": (pd.parameters.shape[1:-1].num_elements() or 1) * pd.fisher_rank, "mc": 1}

    ruled = [(rule_for_group(calls), calls) for calls in groups]

    def gram_work(count: int, some: Ruled = ruled) -> Work:
        if refusal is not None:
            return Work()
        return Work().plus(*(rule.gram_work(calls, count, examples, flat.dtype.size) for rule, calls in some))

    factors, diagonal = _factors(ruled, flat)
    nodes = [_node(op) for op in graph.get_operations() if op.type not in _FREE]
    loops = [_recurrence(call) for calls in groups for call in calls if isinstance(call.layer, keras.layers.RNN)]
    return Network(
        forward=Work().plus(*nodes, *loops),
        examples=examples,
        size=flat.size,
        variables=len(flat.variables),
        columns=columns,
        gram={kind: gram_work(count) for kind, count in columns.items()},
        refusals=dict.fromkeys(columns, refusal),
        itemsize=flat.dtype.size,
        dtype=flat.dtype.name,
        factors=factors,
        diagonal=diagonal,
        diagonal_work=gram_work(
            1, [(rule, calls) for rule, calls in ruled if rule.matrix_shape(calls[0].layer) is None]
        ),
        refusal=record.refusal_for(flat, per_example=False),
    )


def _shapes(x: Any) -> Any:
    def spec(tensor: Any) -> tf.TypeSpec:
        if isinstance(tensor, tf.RaggedTensor | tf.SparseTensor):
            return tf.type_spec_from_value(tensor)
        tensor = tf.convert_to_tensor(tensor)
        return tf.TensorSpec(tensor.shape, tensor.dtype)

    return tf.nest.map_structure(spec, x)


def _elements(tensor: tf.Tensor) -> int:
    return tensor.shape.num_elements() or 1 if tensor.shape.rank is not None else 1


def _node(op: tf.Operation) -> Work:
    """One node of a graph, with the size of its first output."""
    outputs, inputs = op.outputs, op.inputs
    if not outputs:
        return Work()
    size = sum(map(_elements, outputs))
    written = Work(bytes=float(size * outputs[0].dtype.size), nodes=1.0)
    counted = _FLOPS.get(op.type)
    if counted is None or any(t.shape.rank is None for t in inputs):
        return written
    return written._replace(flops=float(counted(op)))


def _product(op: tf.Operation) -> float:
    transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    inner = op.inputs[0].shape[-2 if transposed else -1] or 1
    return 2.0 * _elements(op.outputs[0]) * inner


def _einsum(op: tf.Operation) -> float:
    left = op.get_attr("equation").decode().split("->")[0].replace("...", "").split(",")
    sizes = {}
    for labels, tensor in zip(left, op.inputs, strict=True):
        sizes |= dict(zip(reversed(labels), reversed([d or 1 for d in tensor.shape]), strict=False))
    return 2.0 * math.prod(sizes.values())


def _convolution(op: tf.Operation) -> float:
    return 2.0 * _elements(op.outputs[0]) * math.prod(d or 1 for d in op.inputs[1].shape[:-1])


def _depthwise(op: tf.Operation) -> float:
    return _DEPTHWISE * 2.0 * _elements(op.outputs[0]) * math.prod(d or 1 for d in op.inputs[1].shape[:2])


def _transposed_convolution(op: tf.Operation) -> float:
    return 2.0 * _elements(op.inputs[2]) * math.prod(d or 1 for d in op.inputs[1].shape[:-1])


_FLOPS: dict[str, Callable[[tf.Operation], float]] = {
    **dict.fromkeys(("MatMul", "BatchMatMulV2", "BatchMatMulV3"), _product),
    "Einsum": _einsum,
    **dict.fromkeys(("Conv2D", "Conv3D"), _convolution),
    "DepthwiseConv2dNative": _depthwise,
    **dict.fromkeys(("Conv2DBackpropInput", "Conv3DBackpropInputV2"), _transposed_convolution),
}


def _recurrence(call: Any) -> Work:
    """The loop of a recurrent layer, whose nodes are in a function of their own."""
    examples, steps = (d or 1 for d in call.inputs.shape[:2])
    size = sum(v.shape.num_elements() for v in call.layer.trainable_variables)
    return Work(2.0 * examples * steps * size, 0.0, _NODES_OF_STEP * steps)


def _factors(ruled: Ruled, flat: FlatParameters) -> tuple[list[tuple[int, int, int, bool]], int]:
    """The sizes of the layers' Kronecker factors, and the number of weights without."""
    found, inside = [], 0
    for rule, calls in ruled:
        shape = rule.matrix_shape(calls[0].layer)
        if shape is None:
            continue
        positions = sum(max(1, _elements(c.output) // (c.output.shape[0] or 1) // shape.columns) for c in calls)
        found.append((shape.rows, shape.columns, positions, shape.is_table))
        inside += sum(v.shape.num_elements() for v in shape.variables)
    return found, flat.size - inside


__all__ = ["Network", "network_of"]
