"""The flat view `[n]` of a model's trainable variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._typing import TensorLike, TensorList


class FlatParameters:
    """The layout of trainable variables as one vector `[n]`.

    Every vector of this package (gradients, directions, eigenvectors, operands of curvature matrices) is laid
    out in this order: the variables in the order of the model's list, each one in row-major order.

    >>> import keras, tensorflow as tf
    >>> dense = keras.layers.Dense(2); dense.build((None, 3))
    >>> flat = FlatParameters(dense.trainable_variables)
    >>> flat.size, [tuple(p.shape) for p in flat.unflatten(tf.zeros([8]))]
    (8, [(3, 2), (2,)])

    Args:
        variables: Keras or TensorFlow variables, all of one floating-point dtype.

    Raises:
        ValueError: if there are no variables, or their dtypes differ or are not floating-point.
        TypeError: if `variables` is no list of variables.
    """

    def __init__(self, variables: Sequence[keras.Variable]):
        self.variables = _as_variables(variables)
        if not self.variables:
            raise ValueError(
                _checks.message(
                    "variables",
                    "none",
                    "at least one trainable variable",
                    "Build the model (call it once on data) and unfreeze at least one layer.",
                )
            )
        dtypes = {tf.as_dtype(v.dtype) for v in self.variables}
        if len(dtypes) > 1 or not next(iter(dtypes)).is_floating:
            raise ValueError(
                _checks.message(
                    "variables",
                    "dtypes " + ", ".join(sorted(d.name for d in dtypes)),
                    "one floating-point dtype for all of them",
                    "Build every layer under one dtype policy.",
                )
            )
        self.dtype = dtypes.pop()
        self.shapes = tuple(tf.TensorShape(v.shape) for v in self.variables)
        self.sizes = tuple(shape.num_elements() for shape in self.shapes)
        self.size = sum(self.sizes)

    @property
    def names(self) -> tuple[str, ...]:
        """The variables' paths, such as `"dense/kernel"`."""
        return tuple(getattr(v, "path", v.name) for v in self.variables)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The slice of the flat vector that each variable occupies."""
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return tuple(slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    @property
    def tensors(self) -> list[tf.Variable]:
        """The variables as TensorFlow's tapes know them."""
        return [v.value if isinstance(v, keras.Variable) else v for v in self.variables]

    def flatten(self, tensors: TensorList) -> tf.Tensor:
        """Concatenates one tensor per variable into `[n]`.

        Raises:
            ValueError: if these are not as many tensors, of the variables' shapes.
            TypeError: if they are no tensors of numbers.
        """
        expected = f"{len(self.variables)} tensors, one for each variable"
        tensors = _checks.as_list("tensors", tensors, expected)
        if len(tensors) != len(self.variables):
            raise ValueError(_checks.message("tensors", f"{len(tensors)} of them", expected))
        tensors = [_checks.as_tensor("tensors", t, None if tf.is_tensor(t) else self.dtype) for t in tensors]
        for tensor, shape in zip(tensors, self.shapes, strict=True):
            if not tensor.shape.is_compatible_with(shape):
                raise ValueError(
                    _checks.message("tensors", f"one of shape {tensor.shape}", f"shape {shape} in its place")
                )
        return _joined(tensors)

    def unflatten(self, vector: TensorLike) -> list[tf.Tensor]:
        """Splits `[n]` into one tensor per variable, in the variables' shapes.

        Raises:
            ValueError: if `vector` is not `[n]`.
        """
        vector = _checks.as_tensor("vector", vector, self.dtype)
        _checks.check_rank_one("vector", vector, self.size)
        parts = tf.split(vector, self.sizes)
        return [tf.reshape(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def read(self) -> tf.Tensor:
        """Returns the present values as `[n]`."""
        return _joined(self.tensors)

    def assign(self, vector: TensorLike) -> None:
        """Writes `[n]` into the variables.

        Raises:
            ValueError: if `vector` is not `[n]`.
        """
        for variable, part in zip(self.variables, self.unflatten(vector), strict=True):
            variable.assign(part)


def _joined(tensors: TensorList) -> tf.Tensor:
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)


def _as_variables(variables: Any) -> tuple[keras.Variable | tf.Variable, ...]:
    """A list of variables, looked at; iterating over anything else would end in Python's or TensorFlow's words."""
    expected = "a list of Keras or TensorFlow variables, such as `model.trainable_variables`"
    found = tuple(_checks.as_list("variables", variables, expected))
    for variable in found:
        _checks.check_instance("variables", variable, keras.Variable | tf.Variable, expected)
    return found


__all__ = ["FlatParameters"]
