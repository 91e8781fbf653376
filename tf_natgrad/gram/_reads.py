"""Notices every read of a variable, for a while."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf


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
        stack.callback(_restore, variable, type(variable))
        variable.__dict__["_tf_natgrad_note"] = note
        # The variable stays the same object; only the property through which Keras reads it is another one.
        variable.__class__ = _watched(type(variable))


def _restore(variable: keras.Variable, own_class: type) -> None:
    variable.__class__ = own_class
    variable.__dict__.pop("_tf_natgrad_note", None)


@functools.cache
def _watched(own_class: type) -> type:
    def value(self: keras.Variable) -> tf.Tensor:
        self.__dict__["_tf_natgrad_note"](self)
        return own_class.value.fget(self)

    return type(own_class.__name__, (own_class,), {"value": property(value)})


__all__ = ["watch_reads"]
