"""Names for the types that cross module borders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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

__all__ = ["LossLike", "ModelLike", "TensorLike", "TensorList"]
