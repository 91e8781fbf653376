"""Why the recorded calls of a layer do not tell the gradients of each example, in words."""

from __future__ import annotations

import keras

from tf_natgrad import _keras
from tf_natgrad.layers._base import LayerCall
from tf_natgrad.layers.registry import FALLBACK, rule_for

WAY_OUT = "Use `solver=ConjugateGradient()`"


def folding_refusal(call: LayerCall, examples: int) -> str | None:
    """Why a call does not tell which of its rows belongs to which example, if so."""
    expected, total = examples, None
    if call.rows is not None:
        expected, total = call.rows.count, call.rows.total if call.rows.is_static else None
    found = call.output.shape[0]
    if (found is None or expected is None or found == expected) and total in (None, examples):
        return None
    if total is not None and total != examples:
        return (
            f"Layer {call.layer.name!r} sees some of {total} examples, where the outputs have {examples}: the Gram "
            f"solver cannot tell which row belongs to which example. {WAY_OUT}."
        )
    return (
        f"Layer {call.layer.name!r} is called on {found} rows where the batch has {expected} examples: "
        f"the Gram solver cannot tell which row belongs to which example. {WAY_OUT}, or keep the examples in the "
        "first axis (Dense and most other layers take inputs `[N, T, D]`)."
    )


def rows_refusal(call: LayerCall) -> str | None:
    """Why a call on some of the examples cannot be padded to all of them, if so."""
    if all(_keras.mask_of(tensor) is None for tensor in (call.inputs, call.output)):
        return None
    return (
        f"Layer {call.layer.name!r} is called on some of the examples, with a mask, which its padded inputs would "
        f"lose. {WAY_OUT}."
    )


def mixing_refusal(layer: keras.layers.Layer, call: LayerCall) -> str | None:
    """Why no per-example gradient exists anywhere below this call, if so."""
    if isinstance(layer, keras.layers.BatchNormalization) and call.kwargs.get("training") and layer.trainable:
        return (
            f"Layer {layer.name!r}: with BatchNormalization in training mode every output depends on the whole "
            "batch, so the per-example gradients that the Gram solver is made of do not exist. "
            f"{WAY_OUT}, freeze the layer (`layer.trainable = False`), or use LayerNormalization."
        )
    return None


def call_refusal(layer: keras.layers.Layer, call: LayerCall, graph: object) -> str | None:
    """Why a rule cannot treat this call, if so."""
    if call.kwargs.get("training") and rule_for(layer) is FALLBACK and _keras.draws_random_numbers(layer):
        return (
            f"Layer {layer.name!r} draws random numbers inside a layer with weights; the Gram solver would have to "
            f"draw them again. {WAY_OUT}, or set its dropout to 0 and add a Dropout layer."
        )
    if _keras.graph_now() is not graph:
        return (
            f"Layer {layer.name!r} is called inside a loop or a function of its own, where the Gram solver cannot "
            f"see it. {WAY_OUT}."
        )
    return None


__all__ = ["WAY_OUT", "call_refusal", "folding_refusal", "mixing_refusal", "rows_refusal"]
