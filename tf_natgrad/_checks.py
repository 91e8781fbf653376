"""Checks of arguments, with messages that say what was received, what was expected, and what to do."""

from __future__ import annotations

import dataclasses
import logging
import numbers
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_LOGGER = logging.getLogger("tf_natgrad")
_logged: set[str] = set()


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
        raise TypeError(message(argument, described(value), noun + bound, remedy))
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
    if not isinstance(value, str) or value not in choices:
        received = repr(value) if isinstance(value, str) else described(value)
        raise ValueError(message(argument, received, "one of " + ", ".join(map(repr, choices))))


def check_flag(argument: str, value: object) -> None:
    """Checks that an option is `True` or `False`: a word such as "no" would count as true.

    Args:
        argument: its name, for the message.
        value: what the user gave.

    Raises:
        TypeError: if `value` is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(message(argument, described(value), "True or False"))


def check_seed(argument: str, value: object) -> None:
    """Checks that the seed of random numbers is a whole number, not negative.

    Args:
        argument: its name, for the message.
        value: what the user gave.

    Raises:
        TypeError: if `value` is not an integer.
        ValueError: if it is negative.
    """
    check_number(argument, value, minimum=0, integer=True)


def check_scalar(argument: str, value: Any) -> None:
    """Checks that a tensor or variable is one real number.

    Args:
        argument: its name, for the message.
        value: what the user gave.

    Raises:
        TypeError: if its dtype is another.
        ValueError: if it has axes.
    """
    dtype, shape = tf.as_dtype(value.dtype), tf.TensorShape(value.shape)
    if not (dtype.is_floating or dtype.is_integer):
        raise TypeError(message(argument, f"dtype {dtype.name}", "a number, or a scalar tensor of one"))
    if shape.rank not in (0, None):
        raise ValueError(message(argument, f"shape {tuple(shape)}", "a number, or a scalar tensor"))


def check_fields(argument: str, given: dict[str, Any], kind: type) -> None:
    """Checks that a dictionary names fields of a data class only.

    Args:
        argument: its name, for the message.
        given: the dictionary.
        kind: the data class.

    Raises:
        ValueError: if there are others.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(message(argument, ", ".join(map(repr, unknown)), f"fields of `{kind.__name__}`: {known}"))


def check_words(argument: str, value: Any) -> None:
    """Checks that a seed of TensorFlow's stateless random numbers is two integers.

    Args:
        argument: its name, for the message.
        value: what the user gave.

    Raises:
        TypeError: if `value` is not of numbers.
        ValueError: if it is not of two integers.
    """
    words = as_tensor(argument, value, expected="2 integers")
    if not words.dtype.is_integer or not words.shape.is_compatible_with([2]):
        raise ValueError(message(argument, described(value), "2 integers"))


def check_instance(argument: str, value: object, kinds: Any, expected: str, remedy: str = "") -> None:
    """Checks what kind of object an argument is.

    Args:
        argument: its name, for the message.
        value: what the user gave.
        kinds: a class, or several.
        expected: these in words.
        remedy: what the user can do, for the message.

    Raises:
        TypeError: if `value` is an instance of none of them.
    """
    if not isinstance(value, kinds):
        raise TypeError(message(argument, described(value), expected, remedy))


def as_list(argument: str, value: Any, expected: str) -> list[Any]:
    """What a user gave as a list.

    Args:
        argument: its name, for the message.
        value: what the user gave.
        expected: what is wanted, for the message.

    Returns:
        A list.

    Raises:
        TypeError: if it cannot be iterated over.
    """
    try:
        return list(value)
    except TypeError:
        raise TypeError(message(argument, described(value), expected)) from None


def check_model(argument: str, value: object) -> None:
    """Checks that an argument is a Keras model (or layer), made and not just its class.

    Args:
        argument: its name, for the message.
        value: what the user gave.

    Raises:
        TypeError: if `value` is something else.
    """
    check_instance(argument, value, keras.layers.Layer, "a `keras.Model`")


def check_path(argument: str, value: object) -> None:
    """Checks that an argument is the path of a file or folder.

    Args:
        argument: its name, for the message.
        value: what the user gave.

    Raises:
        TypeError: if `value` is something else; a number would count as an open file.
    """
    check_instance(argument, value, str | os.PathLike, "a path: a string or a `pathlib.Path`")


def check_operator(argument: str, value: object) -> None:
    """Checks that an argument is one square matrix of real numbers, as a linear operator.

    Args:
        argument: its name, for the message.
        value: what the user gave.

    Raises:
        TypeError: if `value` is no `tf.linalg.LinearOperator`, or not of a floating-point dtype.
        ValueError: if it is not `[n, n]`.
    """
    remedy = "Wrap a matrix: `tf.linalg.LinearOperatorFullMatrix(matrix, is_self_adjoint=True)`."
    kind = "a linear operator [n, n], such as those of `tf_natgrad.operators`"
    check_instance(argument, value, tf.linalg.LinearOperator, kind, remedy)
    if not value.dtype.is_floating:
        raise TypeError(message(argument, f"an operator of dtype {value.dtype.name}", "one of floating-point numbers"))
    if value.shape.rank != 2 or value.shape[0] is None or value.shape[0] != value.shape[1]:
        raise ValueError(message(argument, f"an operator of shape {tuple(value.shape)}", kind))


def as_tensor(
    argument: str, value: Any, dtype: tf.DType | None = None, expected: str = "an array of numbers"
) -> tf.Tensor:
    """What a user gave as a tensor of real numbers.

    Args:
        argument: its name, for the message.
        value: what the user gave.
        dtype: of the tensor; by default its own.
        expected: what is wanted, for the message.

    Returns:
        A tensor.

    Raises:
        TypeError: if no tensor of numbers can be made of it, or it is one of another floating-point dtype.
    """
    try:
        # NumPy's complex numbers would lose a part without a word.
        given = None if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "c" else dtype
        known = isinstance(value, tf.Tensor) and given in (None, value.dtype)
        tensor = value if known else tf.convert_to_tensor(value, given)
    except (TypeError, ValueError, tf.errors.OpError):
        raise TypeError(message(argument, described(value), expected)) from None
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
        raise TypeError(message(argument, described(value), expected))
    return tensor


def as_array(argument: str, value: Any, expected: str = "an array of numbers", kinds: str = "biuf") -> np.ndarray:
    """What a user gave as a NumPy array of real numbers.

    Args:
        argument: its name, for the message.
        value: what the user gave.
        expected: what is wanted, for the message.
        kinds: NumPy's letters of the kinds of numbers allowed.

    Returns:
        An array; the value itself, where it is one.

    Raises:
        TypeError: if no array of such numbers can be made of it.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    # An empty list has no numbers of any kind.
    if array.dtype.kind not in kinds and array.size:
        raise TypeError(message(argument, described(value), expected))
    return array


def described(value: object) -> str:
    """What came, in a few words: the shape of an array, else a short text and the type."""
    if isinstance(value, np.ndarray | tf.Tensor):
        dtype = value.dtype.name if isinstance(value, tf.Tensor) else value.dtype
        return f"{type(value).__name__} of shape {value.shape} and dtype {dtype}"
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


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
