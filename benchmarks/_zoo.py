"""A zoo of small Keras models with data that is made here: what people bring, built by hand, nothing downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

# Tasks made of a seed: examples to train on, and to test on.
_TRAIN, _TEST = 8_192, 1_024


class Animal(NamedTuple):
    """A model with its task.

    Attributes:
        build: makes the model.
        data: makes `(x, y)` of a number of examples and a generator; the task itself is the same each time.
        loss: makes the Keras loss.
        batch: the batch size.
        aside: whether it is of the half on which choices are made; the other half only reports.
        policy: the dtype policy.
    """

    build: Callable[[], keras.Model]
    data: Callable[[int, np.random.Generator], tuple[Any, Any]]
    loss: Callable[[], keras.losses.Loss]
    batch: int = 128
    aside: bool = False
    policy: str = "float32"

    def examples(self, seed: int = 0) -> tuple[Any, Any, Any, Any]:
        """Training and test data: `x, y, x_test, y_test`."""
        rng = np.random.default_rng(seed)
        x, y = self.data(_TRAIN + _TEST, rng)
        cut = tf.nest.map_structure
        return (*(cut(lambda a: a[:_TRAIN], part) for part in (x, y)), *(cut(lambda a: a[_TRAIN:], p) for p in (x, y)))


# --- Data ------------------------------------------------------------------------------------------------------------


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], times: int = 2) -> np.ndarray:
    """Noise whose axes, but for the first and the last, are smoothed."""
    field = rng.normal(size=shape)
    for _ in range(times):
        for axis in range(1, len(shape) - 1):
            field = (np.roll(field, 1, axis) + field + np.roll(field, -1, axis)) / 3
    return (field / field.std()).astype("float32")


def _pictures(*shape: int, classes: int = 10, noise: float = 0.7, one_hot: bool = False) -> Callable:
    """Each class is a smooth pattern, shifted and scaled at random, with smooth noise."""

    def make(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        patterns = _smooth(np.random.default_rng(99), (classes, *shape))
        labels = rng.integers(classes, size=count)
        moved = [
            np.roll(patterns[label], rng.integers(-2, 3, len(shape) - 1), tuple(range(len(shape) - 1)))
            for label in labels
        ]
        scale = rng.uniform(0.5, 1.5, (count, *[1] * len(shape)))
        x = (scale * np.stack(moved) + noise * _smooth(rng, (count, *shape), 1)).astype("float32")
        return x, (np.eye(classes, dtype="float32")[labels] if one_hot else labels)

    return make


def _flattened(*shape: int, classes: int = 10) -> Callable:
    """Pictures as vectors."""
    make = _pictures(*shape, classes=classes)

    def flat(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        x, y = make(count, rng)
        return x.reshape(count, -1), y

    return flat


def _masks(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pictures with a class for each pixel: where a smooth field, seen through noise, is high, low or between."""
    field = _smooth(rng, (count, 16, 16, 1), 4)
    x = np.concatenate([field, field**2, -field], -1) + 0.7 * rng.normal(size=(count, 16, 16, 3))
    return x.astype("float32"), np.digitize(field[..., 0], [-0.5, 0.5])


def _own_pictures(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of 14 x 14 pixels in [0, 1] that are to be given back."""
    x, _ = _pictures(14, 14, 1, noise=0.3)(count, rng)
    x = 1 / (1 + np.exp(-2 * x))
    return x, x


def _sentences(length: int, vocabulary: int, classes: int) -> Callable:
    """Sequences of unequal length, padded with zeros; the class is that whose words are most frequent."""

    def make(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        kind = np.random.default_rng(99).integers(classes, size=vocabulary)
        labels = rng.integers(classes, size=count)
        words = rng.integers(1, vocabulary, (count, length))
        own = rng.random((count, length)) < 0.3
        for c in range(classes):
            rows = labels == c
            chosen = rng.choice(np.flatnonzero(kind[1:] == c) + 1, (rows.sum(), length))
            words[rows] = np.where(own[rows], chosen, words[rows])
        lengths = rng.integers(length // 2, length + 1, count)
        words[np.arange(length) >= lengths[:, None]] = 0
        return words, labels

    return make


def _text(length: int, characters: int) -> Callable:
    """A Markov chain of characters: the next one is to be told at each position."""

    def make(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        fixed = np.random.default_rng(99)
        follow = np.cumsum(fixed.dirichlet(np.full(characters, 0.05), characters), 1)
        state = [rng.integers(characters, size=count)]
        for _ in range(length):
            state.append(np.minimum((rng.random((count, 1)) > follow[state[-1]]).sum(1), characters - 1))
        chain = np.stack(state, 1)
        return chain[:, :-1], chain[:, 1:]

    return make


def _signals(steps: int, channels: int, classes: int | None) -> Callable:
    """Sums of sines: the class is the frequency, or the label is a smooth function of the last steps."""

    def make(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(classes or 4, size=count)
        time = np.arange(steps)[None, :, None]
        phase = rng.uniform(0, 2 * np.pi, (count, 1, channels))
        x = np.sin((0.3 + 0.25 * labels[:, None, None]) * time + phase) + 0.4 * rng.normal(
            size=(count, steps, channels)
        )
        y = labels if classes else np.tanh(x[:, -4:].mean((1, 2)) * 3)[:, None]
        return x.astype("float32"), y if classes else y.astype("float32")

    return make


def _function(inputs: int, outputs: int, kind: str) -> Callable:
    """A random network's outputs with a little noise; signs of them for `kind="labels"`."""

    def make(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        fixed = np.random.default_rng(99)
        first = fixed.normal(size=(inputs, 20)) / inputs**0.5
        second = fixed.normal(size=(20, outputs)) / 20**0.5
        x = rng.normal(size=(count, inputs)).astype("float32")
        y = np.tanh(2 * x @ first) @ second + 0.05 * rng.normal(size=(count, outputs))
        return x, ((y > 0) if kind == "labels" else y).astype("float32")

    return make


def _two_inputs(count: int, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
    x, y = _function(12, 1, "values")(count, rng)
    return {"left": x[:, :8], "right": x[:, 8:]}, y


# --- Models ----------------------------------------------------------------------------------------------------------


def _stack(shape: tuple[int, ...], *stack: keras.layers.Layer) -> Callable[[], keras.Model]:
    """A Sequential model; its layers are made anew from their configuration at each call."""

    def build() -> keras.Model:
        return keras.Sequential([keras.Input(shape), *(type(one).from_config(one.get_config()) for one in stack)])

    return build


def _resnet() -> keras.Model:
    def normalised(x, filters, stride=1, activation=True):
        x = layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if activation else x

    inputs = keras.Input((16, 16, 3))
    x = normalised(inputs, 16)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = normalised(normalised(x, filters, stride), filters, activation=False)
        if stride > 1:
            x = layers.Conv2D(filters, 1, strides=stride, use_bias=False)(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _transformer() -> keras.Model:
    inputs = keras.Input((32,), dtype="int32")
    x = layers.Embedding(200, 32, mask_zero=True)(inputs)
    y = layers.MultiHeadAttention(4, 8)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.Dense(32)(layers.Dense(64, activation="gelu")(x))
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


def _unet() -> keras.Model:
    def twice(x, filters):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        return x

    inputs = keras.Input((16, 16, 3))
    wide = twice(inputs, 16)
    middle = twice(layers.MaxPooling2D()(wide), 32)
    x = twice(layers.MaxPooling2D()(middle), 64)
    x = twice(layers.Concatenate()([layers.Conv2DTranspose(32, 2, strides=2)(x), middle]), 32)
    x = twice(layers.Concatenate()([layers.Conv2DTranspose(16, 2, strides=2)(x), wide]), 16)
    return keras.Model(inputs, layers.Conv2D(3, 1)(x))


def _two_branches() -> keras.Model:
    left, right = keras.Input((8,), name="left"), keras.Input((4,), name="right")
    x = layers.Concatenate()(
        [layers.Dense(32, activation="tanh")(left), layers.Dense(16, activation="tanh")(right)],
    )
    return keras.Model({"left": left, "right": right}, layers.Dense(1)(layers.Dense(32, activation="tanh")(x)))


def _mobilenet() -> keras.Model:
    return keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=10, classifier_activation=None)


def _labels() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _squares() -> keras.losses.Loss:
    return keras.losses.MeanSquaredError()


def _yes_or_no() -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True)


_RELU = {"activation": "relu"}

ZOO: dict[str, Animal] = {
    "convnet": Animal(
        _stack(
            *((28, 28, 1), layers.Conv2D(32, 3, **_RELU), layers.MaxPooling2D(), layers.Conv2D(64, 3, **_RELU)),
            *(layers.MaxPooling2D(), layers.Flatten(), layers.Dropout(0.5), layers.Dense(10, activation="softmax")),
        ),
        *(_pictures(28, 28, 1, one_hot=True), keras.losses.CategoricalCrossentropy),
    ),
    "resnet8": Animal(_resnet, _pictures(16, 16, 3), _labels, aside=True),
    "transformer": Animal(_transformer, _sentences(32, 200, 4), _labels, 32),
    "characters": Animal(
        _stack((32,), layers.Embedding(85, 32), layers.GRU(64, return_sequences=True), layers.Dense(85)),
        *(_text(32, 85), _labels, 32),
        aside=True,
    ),
    "lstm": Animal(_stack((24, 3), layers.LSTM(32), layers.Dense(4)), _signals(24, 3, 4), _labels, 64),
    "gru": Animal(_stack((24, 2), layers.GRU(24), layers.Dense(1)), _signals(24, 2, None), _squares, 64, aside=True),
    "unet": Animal(_unet, _masks, _labels, 16),
    "transposed": Animal(
        _stack(
            *((14, 14, 1), layers.Conv2D(8, 3, strides=2, padding="same", **_RELU), layers.Flatten()),
            *(layers.Dense(16, activation="tanh"), layers.Dense(49, **_RELU), layers.Reshape((7, 7, 1))),
            layers.Conv2DTranspose(1, 3, strides=2, padding="same"),
        ),
        *(_own_pictures, _yes_or_no, 64),
        aside=True,
    ),
    "conv1d": Animal(
        _stack(
            *((64, 2), layers.Conv1D(16, 5, **_RELU), layers.MaxPooling1D(), layers.Conv1D(32, 5, **_RELU)),
            *(layers.GlobalAveragePooling1D(), layers.Dense(6)),
        ),
        *(_signals(64, 2, 6), _labels, 64),
    ),
    "conv3d": Animal(
        _stack(
            (8, 8, 8, 1), layers.Conv3D(8, 3, **_RELU), layers.Conv3D(16, 3, **_RELU), layers.Flatten(), layers.Dense(4)
        ),
        *(_pictures(8, 8, 8, 1, classes=4), _labels, 32),
        aside=True,
    ),
    "separable": Animal(
        _stack(
            *((16, 16, 3), layers.SeparableConv2D(16, 3, **_RELU), layers.DepthwiseConv2D(3, **_RELU)),
            *(layers.SeparableConv2D(32, 3, **_RELU), layers.GlobalAveragePooling2D(), layers.Dense(10)),
        ),
        *(_pictures(16, 16, 3), _labels, 64),
    ),
    "two_inputs": Animal(_two_branches, _two_inputs, _squares, 32, aside=True),
    "many_outputs": Animal(
        _stack((20,), layers.Dense(64, activation="tanh"), layers.Dense(64, activation="tanh"), layers.Dense(100)),
        *(_function(20, 100, "values"), _squares, 64),
    ),
    "multi_label": Animal(
        _stack((20,), layers.Dense(64, **_RELU), layers.Dense(64, **_RELU), layers.Dense(12)),
        *(_function(20, 12, "labels"), _yes_or_no, 64),
        aside=True,
    ),
    "mobilenet": Animal(_mobilenet, _pictures(32, 32, 3), _labels, 32),
    "mixed": Animal(
        _stack((784,), layers.Dense(128, **_RELU), layers.Dense(128, **_RELU), layers.Dense(10, dtype="float32")),
        *(_flattened(28, 28, 1), _labels, 64),
        aside=True,
        policy="mixed_bfloat16",
    ),
    "mlp": Animal(
        _stack((784,), layers.Dense(512, **_RELU), layers.Dense(512, **_RELU), layers.Dense(10)),
        *(_flattened(28, 28, 1), _labels, 128),
    ),
    "softmax": Animal(
        _stack((196,), layers.Dense(10)),
        *(_flattened(14, 14, 1), _labels, 32),
        aside=True,
    ),
    # Many more weights than rows in a batch, and the exact step still within the budget.
    "wide": Animal(
        _stack((196,), layers.Dense(1024, **_RELU), layers.Dense(1024, **_RELU), layers.Dense(4)),
        *(_flattened(14, 14, 1, classes=4), _labels, 32),
        aside=True,
    ),
    "wide_conv": Animal(
        _stack(
            *((14, 14, 1), layers.Conv2D(16, 3, padding="same", **_RELU), layers.MaxPooling2D()),
            *(layers.Conv2D(32, 3, padding="same", **_RELU), layers.Flatten(), layers.Dense(512, **_RELU)),
            layers.Dense(5),
        ),
        *(_pictures(14, 14, 1, classes=5), _labels, 32),
        aside=True,
    ),
}
