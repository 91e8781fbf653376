"""Conditions on values, as data: a check returns them, and whoever owns the step judges them.

A condition that fails is an error at once where its value is at hand (eager execution), and an assertion of the graph
otherwise; `as_value_error` turns the latter back into the error at the border to Python.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_natgrad import errors
from tf_natgrad._checks import described, message

# Marks the messages of this package, and the class of the error, inside TensorFlow's own error text.
_OPEN, _CLOSE = "[tf_natgrad {}] ", " [/tf_natgrad]"
_MARKED = re.compile(r"\[tf_natgrad (\w+)\] (.*?) \[/tf_natgrad\]", re.DOTALL)


class Condition(NamedTuple):
    """Something that must hold.

    Attributes:
        ok: a scalar boolean.
        text: the message of the error where it does not.
        error: the class of the error, `ValueError` or one of `tf_natgrad.errors`.
        finite: whether it says that something is finite, which a step may leave a batch out for.
    """

    ok: tf.Tensor
    text: str
    error: type[ValueError] = ValueError
    finite: bool = False


class Checked(NamedTuple):
    """A value, and the conditions under which it is to be used.

    Attributes:
        value: a tensor.
        conditions: of which none has been judged.
    """

    value: tf.Tensor
    conditions: list[Condition]

    def judged(self) -> tf.Tensor:
        """Judges the conditions and returns the value; in a graph, after the assertions.

        Raises:
            ValueError: see `judge`.
        """
        assertions = judge(self.conditions)
        if not assertions:
            return self.value
        with tf.control_dependencies(assertions):
            return tf.identity(self.value)


def judge(conditions: Iterable[Condition]) -> list[tf.Operation]:
    """Refuses with the text of the first condition that does not hold.

    Args:
        conditions: in the order in which they are to be reported.

    Returns:
        The assertions that were added to a graph, for what must come after them.

    Raises:
        ValueError: at once, where a condition has a value; in a graph an assertion is added instead.
    """
    assertions = []
    for condition in conditions:
        static = tf.get_static_value(condition.ok)
        if static is None:
            # `tf.debugging.Assert` would put the message into a branch of its own, at ten times the cost.
            text = _OPEN.format(condition.error.__name__) + condition.text + _CLOSE
            assertions.append(tf.raw_ops.Assert(condition=condition.ok, data=[text], summarize=1))
        elif not static:
            raise condition.error(condition.text)
    return assertions


def check_collector(argument: str, value: Any) -> None:
    """Checks that conditions can be added to something: a list, or `None` for nothing.

    Args:
        argument: its name, for the message.
        value: what the user gave.

    Raises:
        TypeError: if `value` is neither.
    """
    if value is not None and not isinstance(value, list):
        raise TypeError(message(argument, described(value), "a list, to which conditions are added, or None"))


def note(found: list[Condition], conditions: list[Condition] | None) -> None:
    """Adds conditions to a list, or judges them where there is none.

    Args:
        found: the conditions.
        conditions: the list, or `None`.

    Raises:
        ValueError: see `judge`.
    """
    if conditions is None:
        judge(found)
    else:
        conditions.extend(found)


def noted(checked: Checked, conditions: list[Condition] | None) -> tf.Tensor:
    """The value of something that was checked, its conditions being noted or judged.

    Args:
        checked: a value with conditions.
        conditions: a list, or `None`.

    Returns:
        The value.
    """
    if conditions is None:
        return checked.judged()
    conditions.extend(checked.conditions)
    return checked.value


def require(ok: tf.Tensor, text: str, error: type[ValueError] = ValueError) -> None:
    """Judges one condition at once.

    Args:
        ok: a scalar boolean.
        text: the message.
        error: the class of the error.

    Raises:
        ValueError: see `judge`.
    """
    judge([Condition(ok, text, error)])


def all_hold(conditions: Iterable[Condition]) -> tf.Tensor:
    """Computes whether all conditions hold, a scalar boolean."""
    return tf.reduce_all(tf.stack([tf.constant(True), *(condition.ok for condition in conditions)]))


def finite(argument: str, expected: str, *tensors: tf.Tensor) -> Condition:
    """Returns the condition that all entries of tensors are finite.

    Args:
        argument: what they are called, for the message.
        expected: the kind of values, for the message.
        *tensors: numbers.
    """
    text = message(argument, "NaN or infinite values", expected, "Clean the batch before the step.")
    return Condition(is_finite(*tensors), text, errors.NonFiniteError, finite=True)


def is_finite(*tensors: tf.Tensor) -> tf.Tensor:
    """Computes whether all entries of all floating tensors are finite, a scalar boolean.

    One sum per tensor, which takes no memory: it is not finite where an entry is not (or where the sum
    overflows, which is a reason to refuse too).
    """
    sums: dict[tf.DType, list[tf.Tensor]] = {}
    for tensor in tensors:
        if tensor.dtype.is_floating:
            sums.setdefault(tensor.dtype, []).append(tf.reduce_sum(tensor))
    # Looked at together: an operation for each of many small tensors takes longer than its work.
    found = [tf.reduce_all(tf.math.is_finite(tf.stack(some))) for some in sums.values()]
    return tf.reduce_all(tf.stack(found)) if found else tf.constant(True)


def chosen(where: tf.Tensor, values: list[tf.Tensor], others: list[tf.Tensor]) -> list[tf.Tensor]:
    """Returns one of two lists of tensors, by reference: a `tf.where` would copy each of them.

    Args:
        where: a scalar boolean.
        values: what is returned where it holds.
        others: what is returned where it does not.

    Returns:
        One of the lists.
    """
    return list(tf.cond(where, lambda: list(values), lambda: list(others))) if values else []


@contextlib.contextmanager
def as_value_error() -> Any:
    """Turns a failed assertion of `judge` into the error that it stands for, with the same text.

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


__all__ = [
    "Checked",
    "Condition",
    "all_hold",
    "as_value_error",
    "check_collector",
    "chosen",
    "finite",
    "is_finite",
    "judge",
    "note",
    "noted",
    "require",
]
