"""Networks, data and the plain gradient that the benchmarks measure against."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(inputs: int, *widths: int, activation: str = "relu") -> keras.Model:
    """A fully connected network."""
    hidden = [keras.layers.Dense(width, activation=activation) for width in widths[:-1]]
    return keras.Sequential([keras.Input((inputs,)), *hidden, keras.layers.Dense(widths[-1])])


def convolutional() -> keras.Model:
    """The "2c2d" network: two convolutions with pooling, two dense layers, 3.3 million parameters."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 5, padding="same", activation="relu"),
            layers.MaxPool2D(2),
            layers.Conv2D(64, 5, padding="same", activation="relu"),
            layers.MaxPool2D(2),
            layers.Flatten(),
            layers.Dense(1024, activation="relu"),
            layers.Dense(10),
        ]
    )


def recurrent() -> keras.Model:
    """An LSTM that reads images row by row."""
    return keras.Sequential([keras.Input((28, 28)), keras.layers.LSTM(64), keras.layers.Dense(10)])


def batch_for(model: keras.Model, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Random inputs and labels: the cost of a step does not depend on them."""
    x = tf.random.stateless_uniform([size, *model.input_shape[1:]], [1, 2])
    classes = model.output_shape[-1]
    return x, tf.random.stateless_uniform([size], [3, 4], maxval=classes, dtype=tf.int32)


def gradient_of(model: keras.Model, x: tf.Tensor, y: tf.Tensor) -> Callable[[], list[tf.Tensor]]:
    """The plain gradient, compiled: what everything else is measured in."""

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    return gradient
