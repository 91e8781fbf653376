"""Names for the types that cross module borders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
import tensorflow as tf

# Anything `tf.convert_to_tensor` takes.
TensorLike = Any
# One tensor per trainable variable, in the order of the model's list.
TensorList = Sequence[tf.Tensor]
# A Keras loss, its name, or a `tf_natgrad.distributions.Distribution` subclass.
LossLike = Any
# A model, or anything callable as `model(x, training=...)` with `trainable_variables`.
ModelLike = keras.Model | Callable[..., Any]

F = TypeVar("F", bound=Callable[..., Any])
# Code that branches on static shapes must not be rewritten when it is called from a user's `tf.function`. TensorFlow's
# decorator has no types and would take those of what it decorates away.
plain_python: Callable[[F], F] = tf.autograph.experimental.do_not_convert

__all__ = ["LossLike", "ModelLike", "TensorLike", "TensorList", "plain_python"]
