"""Records the calls of layers with trainable weights during one forward pass, and restores the model afterwards."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad.layers._base import LayerCall, Rule, Scales, sharing_variables
from tf_natgrad.layers._refusals import WAY_OUT, call_refusal, folding_refusal, mixing_refusal, rows_refusal
from tf_natgrad.layers.registry import FALLBACK, has_rule, registered_rule, rule_for
from tf_natgrad.layers.rows import current_rows
from tf_natgrad.layers.streams import ORIGINAL, RECORDING, apply_kernel
from tf_natgrad.linearize import Linearization
from tf_natgrad.parameters import FlatParameters

# Layers that are taken as a whole although they contain others: those run inside a loop of the outer layer.
_WHOLE = (keras.layers.RNN, keras.layers.Bidirectional, keras.layers.TimeDistributed)

# Bytes of gradients with respect to the layers' outputs that are held at once.
MEMORY_LIMIT = 1 << 30


class Record:
    """The captured calls of one forward pass.

    Attributes:
        calls: of layers with trainable weights, in the order in which they happened.
        refusal: the reason why these calls do not tell the gradients of their layers' weights, or `None`.
        mixing: the reason why per-example gradients do not exist for this pass, or `None`.
    """

    def __init__(self):
        self.calls: list[LayerCall] = []
        self.refusal: str | None = None
        self.mixing: str | None = None
        self._inside: list[set[int]] = []

    @contextlib.contextmanager
    def inside(self, layer: keras.layers.Layer) -> Iterator[None]:
        """Allows reads of a layer's variables while the layer is called.

        Args:
            layer: the layer.

        Yields:
            Nothing.
        """
        self._inside.append({id(v) for v in layer.trainable_variables})
        try:
            yield
        finally:
            self._inside.pop()

    def add(self, call: LayerCall) -> None:
        """Adds a call to those that are recorded, and which examples it saw.

        Args:
            call: with its arguments and its output.
        """
        call.rows = current_rows()
        if call.rows is not None:
            call.refusal = call.refusal or rows_refusal(call)
            count, pad = call.rows.count, call.rows.repeated

            def padded(a: Any) -> Any:
                batched = tf.is_tensor(a) and a.shape.rank and (count is None or a.shape[0] == count)
                return pad(a) if batched else a

            call.args, call.kwargs = tf.nest.map_structure(padded, (call.args, call.kwargs))
        self.calls.append(call)

    def note_read(self, variable: keras.Variable) -> None:
        """Notes a refusal of the Gram matrix if a variable is read outside of the recorded calls of its layers.

        Args:
            variable: the variable that is read.
        """
        if not any(id(variable) in own for own in self._inside):
            self.refusal = self.refusal or (
                f"{variable.path!r} is used outside of its layer's own call (tied weights), where the Gram solver "
                f"cannot see it. {WAY_OUT}."
            )

    def groups(self, flat_parameters: FlatParameters) -> list[list[LayerCall]]:
        """Groups the calls that use these variables; calls that share variables are in one group.

        Calls share variables if a layer is called twice, or if weights are tied between layers.

        Args:
            flat_parameters: the variables of the Gram matrix.

        Returns:
            One list of calls per group.
        """
        return sharing_variables(self.calls, lambda call: call.layer, flat_parameters)

    def gram(
        self, linearization: Linearization, columns: tf.Tensor, scales: Scales | None = None, exchanges: bool = False
    ) -> tf.Tensor:
        """Computes `K = A A^T` for the rows whose output gradients are `columns`, or `A diag(scales) A^T`.

        Args:
            linearization: of the pass that was recorded.
            columns: `[Q, N, ..., C]`; row (q, i) of `A` is the gradient of `<columns[q, i], z[i]>`.
            scales: a positive scalar for each variable of the linearization, by the `id` of the variable, or `None`
                for all ones: `K` is then `sum_v scales[id(v)] K_v`, `K_v` being that of the columns of `v`.
            exchanges: whether the rows are those of all replicas, `columns` being those of this one's examples.

        Returns:
            `[Q N, Q N]`, rows with q major, in the dtype of the variables.

        Raises:
            ValueError: if `refusal_for` returns a reason, a scale is missing, or a rule takes no scales.
        """
        refusal = self.refusal_for(linearization.flat_parameters, linearization.outputs.shape[0])
        if refusal is not None:
            raise ValueError(refusal)
        dtype = linearization.flat_parameters.dtype
        extra = () if scales is None else (_checked_scales(linearization.flat_parameters, scales),)
        groups = self.groups(linearization.flat_parameters)
        rules = [rule_for_group(calls) for calls in groups]
        if extra:
            _require_rules_with_scales(rules)

        def summaries_of(gradients: list[list[tf.Tensor]]) -> list[list[tf.Tensor]]:
            return [r.summarise(c, g, dtype) for r, c, g in zip(rules, groups, gradients, strict=True)]

        summaries = over_columns(summaries_of, linearization, columns, groups, lambda parts: tf.concat(parts, 0))
        given = zip(rules, groups, summaries, strict=True)
        if exchanges:
            # Each replica forms the whole matrix, of the inputs and gradients of all.
            given = [(rule, *rule.of_all_replicas(calls, parts)) for rule, calls, parts in given]
        return tf.add_n([rule.gram(calls, parts, dtype, *extra) for rule, calls, parts in given])

    def refusal_for(
        self, flat_parameters: FlatParameters, examples: int | None = None, per_example: bool = True
    ) -> str | None:
        """Returns the reason why these variables have no Gram matrix for this pass, and what to do; or `None`.

        Args:
            flat_parameters: the variables of the Gram matrix.
            examples: the number of examples in the batch, if known.
            per_example: whether the gradients of each example apart are needed.

        Returns:
            The reason in words.
        """
        calls = [call for group in self.groups(flat_parameters) for call in group]
        seen = {id(v): v for call in calls for v in call.layer.trainable_variables}
        wanted = {id(v): v for v in flat_parameters.variables}
        odd = [v.path for key, v in {**seen, **wanted}.items() if (key in seen) != (key in wanted)]
        if self.refusal is None and odd:
            return (
                "The Gram solver takes the trainable variables of a layer together, and each of them must belong to a "
                f"layer that the model calls; here this fails for: {', '.join(odd)}. Use `solver=ConjugateGradient()`."
            )
        found = self.refusal or (self.mixing if per_example else None)
        found = found or next((call.refusal for call in calls if call.refusal), None)
        if found is None and examples is not None:
            found = next((text for call in calls if (text := folding_refusal(call, examples))), None)
        return found


def rule_for_group(calls: list[LayerCall]) -> Rule:
    """Returns the rule of calls that share variables: the fallback, if they are of several layers."""
    same_layer = all(call.layer is calls[0].layer for call in calls)
    return rule_for(calls[0].layer) if same_layer else FALLBACK


def _checked_scales(flat_parameters: FlatParameters, scales: Scales) -> dict[int, tf.Tensor]:
    missing = [
        name for v, name in zip(flat_parameters.variables, flat_parameters.names, strict=True) if id(v) not in scales
    ]
    if missing:
        raise ValueError(_checks.message("scales", f"none for {', '.join(missing)}", "one scalar for each variable"))
    return {id(v): tf.cast(scales[id(v)], flat_parameters.dtype) for v in flat_parameters.variables}


def _require_rules_with_scales(rules: list[Rule]) -> None:
    """Refuses rules that were written before there were scales."""
    for rule in rules:
        if "scales" not in inspect.signature(rule.gram).parameters:
            raise ValueError(
                _checks.message(
                    "scales",
                    f"the rule {type(rule).__name__}, whose `gram` takes no scales",
                    "`gram(calls, summaries, dtype, scales=None)`",
                    "Add the argument to the rule, or damp all variables alike.",
                )
            )


def over_columns(
    function: Callable[[list[list[tf.Tensor]]], Any],
    linearization: Linearization,
    columns: tf.Tensor,
    groups: list[list[LayerCall]],
    join: Callable[[Sequence[tf.Tensor]], tf.Tensor],
) -> Any:
    """Computes a function of the gradients of output columns at the layers' outputs, in chunks of columns if need be.

    Args:
        function: of the gradients `[Q, N, ...]`, one list of them per group, to a structure of tensors; those of a
            call on some of the examples are zero at the others.
        linearization: of the pass that was recorded.
        columns: `[Q, N, ..., C]`.
        groups: lists of calls.
        join: of what the function gave for the parts of the columns, to that for all of them.

    Returns:
        What the function returned, joined.
    """
    outputs = [call.output for calls in groups for call in calls]

    def of_some(some: tf.Tensor) -> Any:
        dtypes = [some.dtype if output.dtype == tf.float16 else output.dtype for output in outputs]
        specs = [tf.TensorSpec(o.shape, d) for o, d in zip(outputs, dtypes, strict=True)]
        gradients = linearization.map_rows(lambda c: linearization.pullback_to(outputs, c), some, specs)
        for gradient, output in zip(gradients, outputs, strict=True):
            gradient.set_shape([some.shape[0], *output.shape])
        given = iter(gradients)
        return function([[call.padded(next(given)) for call in calls] for calls in groups])

    at_once = _columns_at_once(columns, outputs)
    if at_once is None:
        return of_some(columns)
    chunks: list[Any] = []
    for start in range(0, columns.shape[0], at_once):
        with tf.control_dependencies(tf.nest.flatten(chunks[-1:])):
            chunks.append(of_some(tf.identity(columns[start : start + at_once])))
    return tf.nest.map_structure(lambda *parts: join(parts), *chunks)


def _columns_at_once(columns: tf.Tensor, outputs: list[tf.Tensor]) -> int | None:
    """How many columns to differentiate together so that their gradients keep within the limit; `None`: all."""
    sizes = [output.shape.num_elements() for output in outputs]
    if columns.shape[0] is None or any(size is None for size in sizes):
        return None
    # The backward pass holds a few tensors of that size at a time.
    bytes_per_column = 4 * sum(size * output.dtype.size for size, output in zip(sizes, outputs, strict=True))
    at_once = max(1, MEMORY_LIMIT // max(1, bytes_per_column))
    return None if at_once >= columns.shape[0] else at_once


@contextlib.contextmanager
def capture(model: keras.layers.Layer) -> Iterator[Record]:
    """Records the layer calls of the model's next call, for the rules of the Gram matrix.

    Within the context, the `call` (and for some layers the `activation`) of every layer with trainable weights is
    replaced by a recording one; on leaving the context, the model is restored.

    >>> import keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> with capture(model) as record:
    ...     _ = model(tf.ones([4, 3]))
    >>> [call.layer.units for call in record.calls]
    [2]

    Args:
        model: a Keras model, built or not.

    Yields:
        The `Record`, which is filled while the model is called.
    """
    record = Record()
    graph = _keras.graph_now()
    with contextlib.ExitStack() as stack:
        for layer in units(model):
            _record_layer(stack, layer, record, graph)
        _keras.watch_reads(stack, model.trainable_variables, record.note_read)
        yield record


def units(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yields the layers of a model that are recorded: the outermost ones that own weights or have a rule, each once."""
    seen: set[int] = set()

    def walk(node: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
        if id(node) in seen:
            return
        seen.add(id(node))
        is_unit = has_rule(node) or isinstance(node, (*_WHOLE, keras.layers.BatchNormalization))
        if is_unit or _owns_weights(node):
            yield node
        else:
            for child in _keras.all_layers(node, include_self=False, recursive=False):
                yield from walk(child)

    yield from walk(layer)


def _owns_weights(layer: keras.layers.Layer) -> bool:
    inner = {id(v) for child in _keras.all_layers(layer, include_self=False) for v in child.variables}
    return any(id(v) not in inner for v in layer.trainable_variables)


def _record_layer(stack: contextlib.ExitStack, layer: keras.layers.Layer, record: Record, graph: object) -> None:
    rule = None
    pending: list[LayerCall] = []
    original_call = layer.call

    def recording_call(*args, **kwargs):
        nonlocal rule
        rule = rule_for(layer)
        call = LayerCall(layer, args, kwargs)
        pending.append(call)
        with record.inside(layer):
            call.values = [tf.convert_to_tensor(v.value) for v in layer.trainable_variables]
            output = original_call(*args, **kwargs)
        pending.pop()
        record.mixing = record.mixing or mixing_refusal(layer, call)
        if layer.trainable_variables:
            call.refusal = call_refusal(layer, call, graph)
            if call.output is None:
                call.output = output
            record.add(call)
        return output

    def recording_map(streams: tf.Tensor, biased: int) -> tf.Tensor:
        call = LayerCall(layer, (streams,), {}, function=lambda x: apply_kernel(layer, x, biased), biased=biased)
        with record.inside(layer):
            call.values = [tf.convert_to_tensor(v.value) for v in layer.trainable_variables]
            call.output = call.function(streams)
        if layer.trainable_variables:
            call.refusal = call_refusal(layer, call, graph)
            record.add(call)
        return call.output

    _keras.replace_attribute(stack, layer, "call", recording_call)
    if type(layer) is keras.layers.Dense:
        _keras.replace_attribute(stack, layer, RECORDING, recording_map)
    if registered_rule(layer).pre_activation:
        activation = layer.activation

        def recording_activation(x, *args, **kwargs):
            if pending and rule is not None and rule.pre_activation:
                pending[-1].output = x
            return activation(x, *args, **kwargs)

        setattr(recording_activation, ORIGINAL, activation)
        _keras.replace_attribute(stack, layer, "activation", recording_activation)


__all__ = ["MEMORY_LIMIT", "Record", "capture", "over_columns", "rule_for_group", "units"]
