"""How each kind of layer acts on streams of derivatives, and how a network of them does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad.layers.streams import activation_of, map_streams, maps_streams
from tf_natgrad.pde._activations import with_derivatives
from tf_natgrad.pde._streams import Streams, joined

# Of a layer and what stands for its inputs, to what stands for its outputs.
StreamRule = Callable[[Any, Any], Streams]

_GENERAL_WAY = (
    "For such a network take the derivatives with `tf.GradientTape` inside the `call` of the model. That is right as "
    "well, but slower: the natural gradient then takes `solver='cg'` or, for few weights, `'svd'`."
)


def _dense(layer: keras.layers.Dense, streams: Streams) -> Streams:
    if not maps_streams(layer):
        raise ValueError(_refusal(layer, "with LoRA, quantisation or variables of its own"))
    images = tf.unstack(map_streams(layer, tf.stack(streams.present, 1)), axis=1)
    return _activated(activation_of(layer), streams.with_present(images), layer.name)


def _activated(activation: Callable | None, streams: Streams, owner: str) -> Streams:
    if activation is None or activation is keras.activations.linear:
        return streams
    if isinstance(activation, keras.layers.Layer):
        return of_layer(activation, streams)
    return streams.composed(with_derivatives(activation, streams.value, owner))


def _activation(layer: keras.layers.Activation, streams: Streams) -> Streams:
    return _activated(layer.activation, streams, layer.name)


def _elu(layer: keras.layers.ELU, streams: Streams) -> Streams:
    return _activated(layer.call, streams, layer.name)


def _rescaling(layer: keras.layers.Rescaling, streams: Streams) -> Streams:
    scale, offset = (tf.cast(tf.convert_to_tensor(n), streams.value.dtype) for n in (layer.scale, layer.offset))
    scaled = streams.mapped(lambda s: s * scale)
    return scaled.with_value(scaled.value + offset)


def _add(layer: keras.layers.Add, parts: list[Streams]) -> Streams:
    del layer
    return functools.reduce(Streams.plus, parts)


def _subtract(layer: keras.layers.Subtract, parts: list[Streams]) -> Streams:
    del layer
    return parts[0].plus(parts[1], -1)


def _multiply(layer: keras.layers.Multiply, parts: list[Streams]) -> Streams:
    del layer
    return functools.reduce(Streams.times, parts)


def _concatenate(layer: keras.layers.Concatenate, parts: list[Streams]) -> Streams:
    if layer.axis not in (-1, 1):
        raise ValueError(_refusal(layer, f"along axis {layer.axis}"))
    return joined(parts)


def _identity(layer: keras.layers.Layer, streams: Streams) -> Streams:
    del layer
    return streams


_RULES: dict[type, StreamRule] = {
    keras.layers.Dense: _dense,
    keras.layers.Activation: _activation,
    keras.layers.ELU: _elu,
    keras.layers.Rescaling: _rescaling,
    keras.layers.Add: _add,
    keras.layers.Subtract: _subtract,
    keras.layers.Multiply: _multiply,
    keras.layers.Concatenate: _concatenate,
    keras.layers.Identity: _identity,
    keras.layers.InputLayer: _identity,
}


def register(layer_class: type, rule: StreamRule) -> None:
    """Registers how a layer class acts on streams (exactly that class: a subclass may compute something else).

    Args:
        layer_class: a subclass of `keras.layers.Layer`.
        rule: of a layer, and streams in place of its inputs, to streams.
    """
    _RULES[layer_class] = rule


def of_layer(layer: Any, inputs: Any, *others: Any, **options: Any) -> Streams:
    """Computes the streams of a layer's outputs.

    Args:
        layer: a layer, a network, or an operation of a Functional model.
        inputs: streams, or a list of them.
        *others: further arguments of its call, which no rule takes.
        **options: keyword arguments of its call.

    Returns:
        Streams.

    Raises:
        ValueError: if there is no rule for it.
    """
    if _keras.is_graph(layer):
        return of_network(layer, inputs)
    _refuse_activity_regularizer(layer)
    rule = _RULES.get(type(layer))
    if rule is None or others or any(v is not None for k, v in options.items() if k not in ("training", "mask")):
        raise ValueError(_refusal(layer))
    if isinstance(layer, keras.layers.Layer) and layer.autocast:
        # As `Layer.__call__` does.
        inputs = tf.nest.map_structure(lambda streams: streams.cast(layer.compute_dtype), inputs)
    return rule(layer, inputs)


def of_network(network: keras.Model, inputs: Streams) -> Streams:
    """Computes the streams of a network's output from those of its input.

    Args:
        network: a built Sequential or Functional model with one input and one output.
        inputs: streams.

    Returns:
        Streams.

    Raises:
        ValueError: if a layer has no rule, or the network several outputs.
    """
    _refuse_activity_regularizer(network)
    if len(network.outputs) != 1:
        raise ValueError(_refusal(network, "with several outputs"))
    # As `Functional.call` does.
    given = [s.cast(i.dtype) for s, i in zip(tf.nest.flatten(inputs), network.inputs, strict=True)]
    outputs = tf.nest.flatten(_keras.run_graph(network, given, of_layer))
    return outputs[0]


def _refuse_activity_regularizer(layer: Any) -> None:
    # Its penalty is added by `Layer.__call__`, which streams do not pass through.
    if getattr(layer, "activity_regularizer", None) is not None:
        raise ValueError(_refusal(layer, "with an `activity_regularizer`, whose penalty would be missing"))


def _refusal(layer: Any, why: str = "") -> str:
    name = getattr(layer, "name", "") or type(layer).__name__
    return _checks.message(
        "network",
        f"layer {name!r} ({type(layer).__name__}){' ' + why if why else ''}",
        f"layers with a rule for derivatives carried forward: {', '.join(sorted(c.__name__ for c in _RULES))}",
        _GENERAL_WAY,
    )


__all__ = ["StreamRule", "of_layer", "of_network", "register"]
