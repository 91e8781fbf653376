"""What is looked at of a batch before a model is called on it."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _replicas
from tf_natgrad._conditions import Condition, finite
from tf_natgrad._typing import ModelLike


def input_conditions(x: Any) -> list[Condition]:
    """The conditions that a batch is not empty and its inputs are finite.

    Args:
        x: a tensor or a structure of tensors, examples first.

    Returns:
        Conditions.

    Raises:
        ValueError: naming `x`, if the batch is known to be empty.
    """
    tensors = [tf.convert_to_tensor(t) for t in tf.nest.flatten(x)]
    if not tensors:
        raise ValueError(_checks.message("x", "nothing", "a batch of shape [N, ...]"))
    found = []
    for tensor in tensors:
        if tensor.shape.rank == 0:
            raise ValueError(_checks.message("x", "a scalar", "a batch of shape [N, ...]"))
        if _replicas.several():
            # A batch has at least one example, which need not be on this replica.
            continue
        size = tensor.shape[0]
        text = _checks.message("x", "an empty batch", "at least one example", "Drop empty batches from the data set.")
        if size == 0:
            raise ValueError(text)
        if size is None:
            found.append(Condition(tf.shape(tensor)[0] > 0, text))
    return [*found, finite("x", "finite inputs", *tensors)]


def unpack(data: Any, several: bool = False) -> tuple[Any, Any, Any]:
    """`(x, y, sample_weight)` of what a user or a data set gives, with `None` for what is missing.

    Args:
        data: inputs, or a tuple `(x, y)` or `(x, y, sample_weight)`.
        several: whether a list of labels is one for each of several outputs.

    Returns:
        Tensors.
    """
    # Keras would take a list of two inputs for `(x, y)`.
    data = data if isinstance(data, tuple) else (data,)
    if not 1 <= len(data) <= 3:
        raise ValueError(_checks.message("data", f"a tuple of {len(data)}", "`x`, `(x, y)` or `(x, y, sample_weight)`"))
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return as_inputs(x), as_labels("y", y, several), as_labels("sample_weight", sample_weight, several)


def as_labels(argument: str, value: Any, several: bool) -> Any:
    """Labels or sample weights as a tensor, or as a list or dictionary of tensors for several outputs.

    Args:
        argument: what they are called, for the message.
        value: an array, or a structure of arrays; data sets give tuples of tensors for several outputs.
        several: whether a list of arrays is one for each of several outputs.

    Returns:
        Tensors, or `None` for `None`.

    Raises:
        TypeError: if one cannot be a tensor.
    """
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: as_labels(argument, part, False) for name, part in value.items()}
    from_data_set = isinstance(value, tuple) and all(tf.is_tensor(part) for part in value)
    if isinstance(value, list | tuple) and (several or from_data_set):
        return [as_labels(argument, part, False) for part in value]
    return _checks.as_tensor(argument, value)


def as_inputs(x: Any) -> Any:
    """A model's inputs as tensors. Words are inputs too: a model may begin with a layer that reads them.

    Args:
        x: arrays, or a structure of them.

    Returns:
        Tensors in the same structure.

    Raises:
        TypeError: if one cannot be a tensor.
    """

    def converted(value: Any) -> tf.Tensor:
        try:
            return tf.convert_to_tensor(value)
        except (TypeError, ValueError, tf.errors.OpError):
            raise TypeError(_checks.message("x", _checks.described(value), "an array [N, ...]")) from None

    return tf.nest.map_structure(converted, x)


def check_fits(model: ModelLike, x: Any) -> None:
    """Refuses inputs that are not of the shape that a Functional or Sequential model was made for.

    Args:
        model: a Keras model.
        x: tensors or their specifications, examples first.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if words or complex numbers come where real numbers are expected.
    """
    inputs, given = getattr(model, "inputs", None), tf.nest.flatten(x)
    if not inputs or len(inputs) != 1 or len(given) != 1:
        # Of several inputs Keras knows which is whose.
        return
    (tensor,), wanted = given, inputs[0]
    real = tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool
    if not real and wanted.dtype not in (tensor.dtype.name, "string"):
        raise TypeError(_checks.message("x", f"inputs of dtype {tensor.dtype.name}", f"inputs of dtype {wanted.dtype}"))
    if getattr(wanted, "sparse", False) or getattr(wanted, "ragged", False) or not tensor.shape.rank:
        return
    axes = list(wanted.shape[1:])
    # Keras adds or takes away a last axis of one.
    allowed = [axes, [*axes, 1], *([axes[:-1]] if axes[-1:] == [1] else [])]
    if not any(tensor.shape[1:].is_compatible_with(one) for one in allowed):
        raise ValueError(
            _checks.message(
                "x", f"inputs of shape {tensor.shape}", f"shape {wanted.shape}, which the model was made for"
            )
        )


__all__ = ["as_inputs", "as_labels", "check_fits", "input_conditions", "unpack"]
