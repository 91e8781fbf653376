"""The one door to private names of Keras and TensorFlow; a long file, because no other may use any.

Each function states what it reads, so that a new version of Keras or TensorFlow is checked in one place.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import keras
import tensorflow as tf
from keras.src.models import functional

# Versions with which tests/house/test_keras.py was run.
CHECKED = {"keras": ("3.15",), "tensorflow": ("2.20", "2.21")}

T = TypeVar("T")

_TF_MOMENTS = tf.nn.moments
_MOMENTS_LOCK = threading.RLock()
_NOTE = "_tf_natgrad_note"


# Attributes that escape tracking.


class Untracked(Generic[T]):
    """A plain object that holds a value, out of sight of the attribute tracking of Keras and TensorFlow.

    Keras layers and TensorFlow modules wrap lists and dictionaries that are assigned to them and search them, and each
    other, for variables.

    >>> holder = Untracked({})
    >>> holder.value["function"] = len

    Attributes:
        value: what is held.

    Args:
        value: what to hold.
    """

    __slots__ = ("value",)

    def __init__(self, value: T):
        self.value = value


def attach(owner: Any, name: str, value: Any) -> None:
    """Sets an attribute of a Keras object without its tracking, also where tracking has not begun or is locked.

    Args:
        owner: a layer or model.
        name: of the attribute.
        value: its value.
    """
    object.__setattr__(owner, name, value)


def kept_with(owner: Any, name: str, make: Callable[[], T]) -> T:
    """Returns what `make()` returned when this was first asked for; it lives as long as its owner, untracked.

    Args:
        owner: a layer or model.
        name: of the attribute that holds it.
        make: makes it.

    Returns:
        The one object of that name.
    """
    if not hasattr(owner, name):
        attach(owner, name, make())
    return getattr(owner, name)


def replace_attribute(stack: contextlib.ExitStack, layer: keras.layers.Layer, name: str, value: Any) -> None:
    """Replaces an attribute or method of one layer, without tracking, until `stack` is closed.

    Args:
        stack: on closing it, the layer is as it was.
        layer: the layer.
        name: of the attribute.
        value: the replacement.
    """
    had = name in vars(layer)
    before = vars(layer).get(name)

    def restore() -> None:
        if had:
            object.__setattr__(layer, name, before)
        else:
            object.__delattr__(layer, name)

    stack.callback(restore)
    attach(layer, name, value)


# Layers and models.


def all_layers(model: Any, *, include_self: bool = True, recursive: bool = True) -> list[keras.layers.Layer]:
    """Lists the layers inside a model, those inside of layers too (`Layer._flatten_layers`).

    >>> import keras
    >>> model = keras.Sequential([keras.Input((3,)), keras.Sequential([keras.layers.Dense(2, name="inner")])])
    >>> "inner" in [layer.name for layer in all_layers(model)]
    True

    Args:
        model: a Keras model or layer.
        include_self: whether the model itself comes first.
        recursive: whether layers inside of layers are listed.

    Returns:
        The layers, each once.
    """
    return list(model._flatten_layers(include_self=include_self, recursive=recursive))


def is_graph(model: Any) -> bool:
    """Whether a model is Sequential or Functional and computes no more than its layers (`Functional.call`)."""
    plain = (keras.Sequential.call, functional.Functional.call)
    return isinstance(model, keras.Model) and any(type(model).call is call for call in plain)


def run_graph(model: keras.Model, inputs: Any, call: Callable[..., Any]) -> Any:
    """Runs the graph of a model on any objects in place of tensors (`Functional._run_through_graph`).

    Args:
        model: a built model that `is_graph`.
        inputs: in place of the model's inputs.
        call: of an operation (a layer, say), and what stands for its arguments; to what stands for its outputs.

    Returns:
        What stands for the model's outputs, in their structure.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    return graph._run_through_graph(inputs, operation_fn=lambda operation: functools.partial(call, operation))


def takes_training(model: Any) -> bool:
    """Whether a model's `call` takes `training` (`Layer._call_has_training_arg`); `True` for what is no Keras layer."""
    return getattr(model, "_call_has_training_arg", True)


def state_of_layer(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Lists the statistics that a layer itself holds, such as moving averages (`Layer._non_trainable_variables`).

    The public list has frozen weights, seeds of dropout and what the layers inside it hold, too.

    Args:
        layer: a Keras layer.

    Returns:
        Its variables.
    """
    return list(layer._non_trainable_variables)


def draws_random_numbers(layer: keras.layers.Layer) -> bool:
    """Whether a layer, or one inside it, has a dropout rate above 0 (`MultiHeadAttention._dropout` among them)."""
    rates = ("dropout", "recurrent_dropout", "rate", "_dropout")
    return any(
        isinstance(getattr(node, name, None), float) and getattr(node, name) > 0
        for node in all_layers(layer)
        for name in rates
    )


def loss_weights_of(model: keras.Model) -> Any:
    """Returns the `loss_weights` of `compile` (`Model._compile_config`).

    The public `get_compile_config` reads variables, which a trace cannot.

    Args:
        model: a compiled model.

    Returns:
        What was passed, or `None`.
    """
    return model._compile_config.config.get("loss_weights")


def on_several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy spans processes (`StrategyExtended._in_multi_worker_mode`)."""
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return several and strategy.extended._in_multi_worker_mode()


class UnderStrategies:
    """For Keras models under a `tf.distribute` strategy of several replicas; on one device it changes nothing.

    Put it before the Keras class. `fit` of Keras 3.15 fails on several workers in two places, which are mended here:
    `_maybe_symbolic_build` reduces a tuple of values, and the function of `_make_function` reduces scalars by an axis.
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Builds what is not yet built, from the first batch; on several workers from this worker's share of it."""
        if iterator is None or not on_several_workers(self.distribute_strategy):
            super()._maybe_symbolic_build(iterator, data_batch)
            return
        shares_of = self.distribute_strategy.experimental_local_results
        batch = next(next(iter(iterator))[-1])
        super()._maybe_symbolic_build(data_batch=tf.nest.map_structure(lambda value: shares_of(value)[0], batch))

    def _make_function(self, step_function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Keras's, of a step whose logs have an axis to reduce where there are several workers."""

        def step(data: Any) -> Any:
            return tf.nest.map_structure(lambda value: tf.reshape(value, [1]), step_function(data))

        return super()._make_function(step if on_several_workers(self.distribute_strategy) else step_function)

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        """The logs of an epoch: Keras would take the last batch's where a step returns more than metrics.

        Those are a mean over the replicas, whatever the number of their examples.
        """
        found = super()._get_metrics_result_or_logs(logs)
        several = self.distribute_strategy.num_replicas_in_sync > 1
        return {**found, **self.get_metrics_result()} if several else found


# Outputs and losses.


def mask_of(outputs: tf.Tensor) -> tf.Tensor | None:
    """Returns the Keras mask that a model's outputs carry (`_keras_mask`), or `None`."""
    return getattr(outputs, "_keras_mask", None)


def logits_behind(outputs: tf.Tensor, op_type: str) -> tf.Tensor | None:
    """Returns the logits behind a softmax or sigmoid that made `outputs`, found the way Keras's losses find them.

    Keras's activations leave them in `_keras_logits`; in a graph the input of the operation will do.

    Args:
        outputs: the outputs of a model.
        op_type: `"Softmax"` or `"Sigmoid"`, as TensorFlow names operations.

    Returns:
        The logits, or `None`.
    """
    logits = getattr(outputs, "_keras_logits", None)
    if logits is not None or tf.executing_eagerly():
        return logits
    return outputs.op.inputs[0] if outputs.op.type == op_type else None


def options_of(loss: keras.losses.Loss) -> dict[str, Any]:
    """Returns the options of a loss by name, those that its class does not save (`_fn_kwargs`) included."""
    return getattr(loss, "_fn_kwargs", {}) | loss.get_config()


# Optimizers.


def optimized_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Lists the variables that an optimizer was built for (`Optimizer._trainable_variables`)."""
    return list(optimizer._trainable_variables)


def slot_of(
    optimizer: keras.optimizers.Optimizer, slots: Sequence[keras.Variable], variable: keras.Variable
) -> keras.Variable | None:
    """Returns what an optimizer keeps for a variable, out of one kind of state (`Optimizer._get_variable_index`).

    Args:
        optimizer: a built optimizer.
        slots: one state variable for each variable that it was built for.
        variable: a trainable variable.

    Returns:
        A state variable, or `None` where another optimizer has the variable.
    """
    if optimizer._var_key(variable) not in optimizer._trainable_variables_indices:
        return None
    return slots[optimizer._get_variable_index(variable)]


def clip(optimizer: keras.optimizers.Optimizer, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Clips gradients as `clipnorm`, `clipvalue` and `global_clipnorm` say (`Optimizer._clip_gradients`)."""
    return optimizer._clip_gradients(gradients)


class SeparateWeightDecay:
    """For Keras optimizers whose weight decay is a step of its own (`_apply_weight_decay`, `_use_weight_decay`).

    Put it before the Keras class.
    """

    def decay(self, variables: Sequence[keras.Variable]) -> None:
        """Applies the weight decay of one step."""
        super()._apply_weight_decay(variables)

    def decayed(self, variable: keras.Variable) -> tf.Tensor:
        """Returns what `decay` would make of a variable."""
        value = tf.convert_to_tensor(variable.value)
        if self.weight_decay is None or not self._use_weight_decay(variable):
            return value
        rate, share = (tf.cast(x, value.dtype) for x in (self.learning_rate, self.weight_decay))
        return value - value * share * rate

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        """Nothing: the decay was applied, or is not wanted."""


class SameOnAllReplicas:
    """For Keras optimizers that are given the same direction on all replicas (`_all_reduce_sum_gradients`).

    Put it before the Keras class, which would add up what the replicas have.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars: list) -> list:
        """Returns what it was given."""
        return list(grads_and_vars)


def count_step(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises the number of steps of an optimizer that delegates them (`MultiOptimizer._iterations`)."""
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        optimizer._iterations.assign_add(1)


# TensorFlow.


class SquareOperator(tf.linalg.LinearOperator):
    """A linear operator `[n, n]` whose subclass gives `matmul`; the hooks that TensorFlow asks for are made of it.

    Args:
        size: n.
        **options: what `tf.linalg.LinearOperator` takes.
    """

    def __init__(self, size: int, **options: Any):
        self._order = size
        super().__init__(is_square=True, **options)

    def _shape(self) -> tf.TensorShape:
        return tf.TensorShape([self._order, self._order])

    def _shape_tensor(self) -> tf.Tensor:
        return tf.constant([self._order, self._order], tf.int32)

    def _matmul(self, x: tf.Tensor, adjoint: bool = False, adjoint_arg: bool = False) -> tf.Tensor:
        return self.matmul(x, adjoint, adjoint_arg)


def graph_now() -> Any:
    """Returns the graph that is being traced, or `None` in eager code: its identity tells a loop's body from the rest.

    Returns:
        A `tf.Graph` or `None`.
    """
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def seldom(where: tf.Tensor, function: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """`tf.cond` for a large branch that is seldom taken (`_noinline`, an attribute of functions).

    TensorFlow puts the operations of both branches into the graph around them, and goes through those of the branch
    that is not taken as well: thousands of them took longer than many a step.

    Args:
        where: a scalar boolean.
        function: the branch that is seldom taken.
        otherwise: the other one, which should be small.

    Returns:
        What the one or the other returned.
    """
    if not tf.executing_eagerly():
        function = tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
    return tf.cond(where, function, otherwise)


def scalar_summary_metadata() -> Any:
    """Returns the metadata that `tf.summary.scalar` writes; that function itself asks for TensorBoard."""
    plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    return tf.compat.v1.SummaryMetadata(plugin_data=plugin)


@contextlib.contextmanager
def twice_differentiable_moments() -> Iterator[None]:
    """Replaces `tf.nn.moments`, on which normalisation layers build, for a while.

    Its variance holds the mean constant. That leaves the first derivative as it is, and makes the second one wrong.
    """
    with _MOMENTS_LOCK:
        tf.nn.moments = _moments
        try:
            yield
        finally:
            tf.nn.moments = _TF_MOMENTS


def _moments(x, axes, shift=None, keepdims=False, name=None):
    """`tf.nn.moments`, with all its derivatives."""
    del shift
    with tf.name_scope(name or "moments"):
        y = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
        mean = tf.reduce_mean(y, axes, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(y, mean), axes, keepdims=True)
        if not keepdims:
            mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
        return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


# Reads of variables.


def watch_reads(
    stack: contextlib.ExitStack, variables: Sequence[keras.Variable], note: Callable[[keras.Variable], None]
) -> None:
    """Calls `note(variable)` at each read of these variables, until `stack` is closed.

    Args:
        stack: on closing it, the variables are as they were.
        variables: Keras variables.
        note: what to call.
    """
    for variable in variables:
        stack.callback(_stop_watching, variable, type(variable))
        variable.__dict__[_NOTE] = note
        # The variable stays the same object; only the property through which Keras reads it is another one.
        variable.__class__ = _watched(type(variable))


def _stop_watching(variable: keras.Variable, own_class: type) -> None:
    variable.__class__ = own_class
    variable.__dict__.pop(_NOTE, None)


@functools.cache
def _watched(own_class: type) -> type:
    def value(self: keras.Variable) -> tf.Tensor:
        self.__dict__[_NOTE](self)
        return own_class.value.fget(self)

    return type(own_class.__name__, (own_class,), {"value": property(value)})


__all__ = [
    "CHECKED",
    "SameOnAllReplicas",
    "SeparateWeightDecay",
    "SquareOperator",
    "UnderStrategies",
    "Untracked",
    "all_layers",
    "attach",
    "clip",
    "count_step",
    "draws_random_numbers",
    "graph_now",
    "is_graph",
    "kept_with",
    "logits_behind",
    "loss_weights_of",
    "mask_of",
    "on_several_workers",
    "optimized_variables",
    "options_of",
    "replace_attribute",
    "run_graph",
    "scalar_summary_metadata",
    "seldom",
    "slot_of",
    "state_of_layer",
    "takes_training",
    "twice_differentiable_moments",
    "watch_reads",
]
