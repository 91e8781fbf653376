"""How this package refuses: the argument, what came, what was expected, what to do.

A condition on values is a `ValueError` where the values are at hand (eager execution) and an assertion of the
graph otherwise; `as_value_error` turns the latter back into a `ValueError` at the border to Python.
"""

from __future__ import annotations

import contextlib
import logging
import numbers
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_natgrad import errors

_LOGGER = logging.getLogger("tf_natgrad")
_logged: set[str] = set()
_collectors: list[_Collector] = []

# Marks the messages of this package, and the class of the error, inside TensorFlow's own error text.
_OPEN, _CLOSE = "[tf_natgrad {}] ", " [/tf_natgrad]"
_MARKED = re.compile(r"\[tf_natgrad (\w+)\] (.*?) \[/tf_natgrad\]", re.DOTALL)


def message(argument: str, received: object, expected: str, remedy: str = "") -> str:
    """Returns the text of an error about one argument.

    >>> message("damping", -1.0, "a number >= 0", "Pass `damping=0.1`.")
    '`damping`: received -1.0; expected a number >= 0. Pass `damping=0.1`.'
    """
    text = f"`{argument}`: received {received}; expected {expected}."
    return f"{text} {remedy}".rstrip()


def check_number(
    argument: str,
    value: object,
    *,
    minimum: float | None = None,
    exclusive: bool = False,
    integer: bool = False,
    remedy: str = "",
) -> None:
    """Checks that a hyper-parameter is a finite number in range.

    Args:
        argument: its name, for the message.
        value: what the user gave.
        minimum: the least value allowed, if any.
        exclusive: whether `minimum` itself is refused.
        integer: whether only whole numbers are allowed.
        remedy: what the user can do, for the message.

    Raises:
        TypeError: if `value` is not a real number (or not an integer).
        ValueError: if it is not finite or too small.
    """
    kind = numbers.Integral if integer else numbers.Real
    noun = "an integer" if integer else "a number"
    bound = "" if minimum is None else f" {'>' if exclusive else '>='} {minimum:g}"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(message(argument, f"{value!r} ({type(value).__name__})", noun + bound, remedy))
    too_small = minimum is not None and (value <= minimum if exclusive else value < minimum)
    if value != value or value in (float("inf"), -float("inf")) or too_small:
        raise ValueError(message(argument, value, f"{noun}{bound}, finite", remedy))


def check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Checks that an option is one of a few words.

    Args:
        argument: its name, for the message.
        value: what the user gave.
        choices: the words allowed.

    Raises:
        ValueError: if `value` is none of them.
    """
    if value not in choices:
        raise ValueError(message(argument, repr(value), "one of " + ", ".join(map(repr, choices))))


def check_rank_one(argument: str, value: tf.Tensor, size: int | None) -> None:
    """Checks that a tensor is a vector, of a given size where one is known.

    Args:
        argument: its name, for the message.
        value: the tensor.
        size: the number of entries expected, or `None`.

    Raises:
        ValueError: if the static shape contradicts `[size]`.
    """
    if not value.shape.is_compatible_with([size]):
        raise ValueError(message(argument, f"shape {tuple(value.shape)}", f"shape [{'m' if size is None else size}]"))


def require(condition: tf.Tensor, text: str, error: type[ValueError] = ValueError) -> None:
    """Refuses with `text` unless the scalar boolean `condition` holds.

    Args:
        condition: a scalar boolean.
        text: the message.
        error: the class of the error, `ValueError` or one of `tf_natgrad.errors`.

    Raises:
        ValueError: at once, where the condition has a value; in a graph an assertion is added instead.
    """
    static = tf.get_static_value(condition)
    undo = _collectors[-1].undo if _collectors else None
    if static is not None:
        if not static:
            if undo is not None:
                undo()
            raise error(text)
    else:
        undone = condition
        if undo is not None:
            undone = tf.cond(condition, lambda: True, lambda: (undo(), True)[1])
        # The error ends the graph: what is to be undone comes before it.
        with tf.control_dependencies([undone]):
            # `tf.debugging.Assert` would put the message into a branch of its own, at ten times the cost.
            text = _OPEN.format(error.__name__) + text + _CLOSE
            assertion = tf.raw_ops.Assert(condition=condition, data=[text], summarize=1)
        if _collectors:
            # What depends on the condition comes after the assertion, and so does its error.
            with tf.control_dependencies([assertion]):
                _collectors[-1].conditions.append(tf.identity(condition))


def require_finite(argument: str, expected: str, *tensors: tf.Tensor) -> None:
    """Refuses tensors that are not finite, or leaves it to `collected` to deal with them."""
    condition = is_finite(*tensors)
    if _collectors and _collectors[-1].finite_only_collected:
        _collectors[-1].conditions.append(condition)
    else:
        require(condition, message(argument, "NaN or infinite values", expected, "Clean the batch before the step."))


class _Collector(NamedTuple):
    conditions: list[tf.Tensor]
    finite_only_collected: bool
    undo: Callable[[], Any] | None


@contextlib.contextmanager
def collected(finite_only_collected: bool = False, undo: Callable[[], Any] | None = None):
    """Collects the conditions that `require` left to the graph.

    XLA drops assertions: what must not happen on bad input is to be made to depend on these conditions as well.

    Args:
        finite_only_collected: whether `require_finite` refuses nothing itself, so that the batch can be skipped.
        undo: called before `require` refuses, to put back what the body changed.

    Yields:
        The list that fills up with scalar booleans.
    """
    _collectors.append(_Collector([], finite_only_collected, undo))
    try:
        yield _collectors[-1].conditions
    finally:
        _collectors.pop()


def is_finite(*tensors: tf.Tensor) -> tf.Tensor:
    """Whether all entries of all floating tensors are finite (scalar boolean).

    One sum per tensor, which takes no memory: it is not finite where an entry is not (or where the sum
    overflows, which is a reason to refuse too).
    """
    sums = [tf.reduce_sum(t) for t in tensors if t.dtype.is_floating]
    return tf.reduce_all([tf.math.is_finite(s) for s in sums]) if sums else tf.constant(True)


def log_once(text: str, key: str | None = None) -> None:
    """Logs a warning the first time that its key comes up, and not again.

    Args:
        text: the warning.
        key: what it is told by; by default its first twenty characters, which numbers later in the text leave alone.
    """
    key = text[:20] if key is None else key
    if key not in _logged:
        _logged.add(key)
        _LOGGER.warning("%s (logged once)", text)


@contextlib.contextmanager
def as_value_error():
    """Turns a failed assertion of `require` into the error that it stands for, with the same text.

    Yields:
        Nothing.

    Raises:
        ValueError: where the body failed with one of this package's messages inside a graph.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = _MARKED.search(str(error))
        if found is None:
            raise
        name, text = found.groups()
        # TensorFlow escapes quotes.
        text = text.replace("\\'", "'").replace('\\"', '"')
        raise errors.BY_NAME.get(name, ValueError)(text) from None
