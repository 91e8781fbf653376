"""Layers for networks that solve differential equations: Fourier features, and boundary values that hold exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.pde._rules import register
from tf_natgrad.pde._streams import Streams, joined


@keras.saving.register_keras_serializable(package="tf_natgrad")
class FourierFeatures(keras.layers.Layer):
    """Computes `[cos(2 pi B x), sin(2 pi B x)]` with frequencies `B` that are drawn once and stay.

    They let a network learn what oscillates faster than its inputs vary.

    >>> import keras, tensorflow as tf
    >>> FourierFeatures(16, scale=2.0)(tf.zeros([3, 2])).shape
    TensorShape([3, 32])

    Args:
        features: the number of frequencies; there are twice as many outputs.
        scale: the standard deviation of the entries of `B`, in periods per unit of the inputs.
        seed: of the draw.
        **kwargs: what every Keras layer takes.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if it is no number.

    References:
        M. Tancik, P. Srinivasan, B. Mildenhall, et al., "Fourier features let networks learn high frequency functions
        in low dimensional domains", NeurIPS (2020).
    """

    def __init__(self, features: int, scale: float = 1.0, seed: int = 0, **kwargs: Any):
        _checks.check_number("features", features, minimum=1, integer=True)
        _checks.check_number("scale", scale, minimum=0.0, exclusive=True)
        _checks.check_number("seed", seed, minimum=0, integer=True)
        super().__init__(**kwargs)
        self.features, self.scale, self.seed = features, scale, seed

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Draws the frequencies, a weight that is saved and not trained.

        Args:
            input_shape: `[N, d]`.
        """
        drawn = np.random.default_rng(self.seed).normal(0.0, self.scale, (input_shape[-1], self.features))
        self.frequencies = self.add_weight(shape=drawn.shape, initializer="zeros", trainable=False, name="frequencies")
        # Keras's `Constant` would round to float32.
        self.frequencies.assign(drawn)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Computes the features.

        Args:
            inputs: `[N, d]`.

        Returns:
            `[N, 2 features]`.
        """
        angles = self._angles(inputs)
        return keras.ops.concatenate([keras.ops.cos(angles), keras.ops.sin(angles)], -1)

    def _angles(self, inputs: tf.Tensor) -> tf.Tensor:
        return keras.ops.matmul(inputs, 2.0 * math.pi * keras.ops.cast(self.frequencies, inputs.dtype))

    def streams(self, inputs: Streams) -> Streams:
        """What `laplacian` makes of the derivatives of the inputs."""
        angles = inputs.mapped(self._angles)
        cosine, sine = tf.cos(angles.value), tf.sin(angles.value)
        return joined([angles.composed((cosine, -sine, -cosine)), angles.composed((sine, cosine, -sine))])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns `[N, 2 features]`.

        Args:
            input_shape: `[N, d]`.
        """
        return (*input_shape[:-1], 2 * self.features)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {"features": self.features, "scale": self.scale, "seed": self.seed}


@keras.saving.register_keras_serializable(package="tf_natgrad")
class HardBoundary(keras.layers.Layer):
    """Computes `g(x) + d(x) y` of points x and a network's outputs y: where the distance d is zero, it is g.

    Boundary values then hold exactly, whatever the weights, and need no term of the loss.

    >>> import keras, tensorflow as tf
    >>> def distance(x):
    ...     return keras.ops.prod(x * (1.0 - x), axis=-1, keepdims=True)
    >>> x = keras.Input((2,))
    >>> y = keras.layers.Dense(1)(keras.layers.Dense(8, "tanh")(x))
    >>> network = keras.Model(x, HardBoundary(distance)([x, y]))
    >>> network(tf.constant([[0.0, 0.3]])).numpy().tolist()
    [[0.0]]

    To save such a network, register the functions: `@keras.saving.register_keras_serializable()`.

    Args:
        distance: `d`, a function of the points `[N, d]` to `[N, 1]` or `[N, C]`, smooth, zero on the boundary and
            nowhere else.
        lift: `g`, a smooth function of the points that has the boundary's values there; `None` for zero.
        **kwargs: what every Keras layer takes.

    Raises:
        TypeError: if `distance` or `lift` is no function.
        ValueError: when it is called, if one of them returns neither `[N, 1]` nor `[N, C]`.

    References:
        I. Lagaris, A. Likas, D. Fotiadis, "Artificial neural networks for solving ordinary and partial differential
        equations", IEEE Transactions on Neural Networks 9 (1998), section III.
    """

    def __init__(self, distance: Callable, lift: Callable | None = None, **kwargs: Any):
        for name, function in (("distance", distance), ("lift", lift)):
            if not callable(function) and not (name == "lift" and function is None):
                raise TypeError(_checks.message(name, _checks.described(function), "a function of the points"))
        super().__init__(**kwargs)
        self.distance, self.lift = distance, lift

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Computes the values.

        Args:
            inputs: `[x, y]`, the points `[N, d]` and outputs `[N, C]`.

        Returns:
            `[N, C]`.
        """
        x, y = inputs
        values = _at("distance", self.distance, x, y) * y
        return values if self.lift is None else _at("lift", self.lift, x, y) + values

    def streams(self, inputs: list[Streams]) -> Streams:
        """What `laplacian` makes of the derivatives of the inputs."""
        x, y = inputs
        values = _through("distance", self.distance, x, y).times(y)
        return values if self.lift is None else _through("lift", self.lift, x, y).plus(values)

    def compute_output_shape(self, input_shape: list[tuple[int | None, ...]]) -> tuple[int | None, ...]:
        """Returns `[N, C]`.

        Args:
            input_shape: those of the points and of the outputs.
        """
        return tuple(input_shape[1])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the functions serialised."""
        functions = {"distance": self.distance, "lift": self.lift}
        return super().get_config() | {
            name: None if f is None else keras.saving.serialize_keras_object(f) for name, f in functions.items()
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HardBoundary:
        """Makes the layer of what `get_config` returned."""
        functions = {
            name: None if config[name] is None else keras.saving.deserialize_keras_object(config[name])
            for name in ("distance", "lift")
        }
        return cls(**config | functions)


def _at(name: str, function: Callable, points: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """The values of a function of points, `[N, 1]` or as wide as `like`; `[N]` would broadcast to `[N, N]`."""
    values = function(points)
    shape = tuple(getattr(values, "shape", ()))
    if len(shape) != 2 or shape[1] not in (1, like.shape[-1]):
        widths = "[N, 1]" if like.shape[-1] == 1 else f"[N, 1] or [N, {like.shape[-1]}]"
        received = f"a function that returns shape {shape} for points of shape {tuple(points.shape)}"
        remedy = "Keep the last axis: `keepdims=True` in a sum or product, `x[:, :1]` for a coordinate."
        raise ValueError(_checks.message(name, received, f"values {widths}", remedy))
    return values


def _through(name: str, function: Callable, x: Streams, like: Streams) -> Streams:
    """The streams of a smooth function of points whose streams are known, as wide as `like`.

    No weight acts here, so that nested tapes cost next to nothing: `D_i g = sum_k g_k D_i x_k`, and
    `D_i D_j g = sum_kl g_kl D_i x_k D_j x_l + sum_k g_k D_i D_j x_k`.
    """
    points = x.value
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(points)
        with tf.GradientTape(persistent=True) as inner:
            inner.watch(points)
            values = tf.cast(_at(name, function, points, like.value), like.value.dtype)
            columns = tf.unstack(values, axis=-1)
        zero = tf.UnconnectedGradients.ZERO
        slopes = [inner.gradient(c, points, unconnected_gradients=zero) for c in columns]
        parts = [tf.unstack(s, axis=-1) for s in slopes]
    bends = [tf.stack([outer.gradient(p, points, unconnected_gradients=zero) for p in of], 1) for of in parts]
    # `[N, C, d]` and `[N, C, d, d]`.
    slope, bend = tf.stack(slopes, 1), tf.stack(bends, 1)

    def along(direction: tf.Tensor | None) -> tf.Tensor | None:
        return None if direction is None else tf.einsum("nck,nk->nc", slope, direction)

    second = []
    for stream, pairs in zip(x.second, x.wanted.seconds, strict=True):
        terms = [
            tf.einsum("nckl,nk,nl->nc", bend, x.first[i], x.first[j])
            for i, j in pairs
            if x.first[i] is not None and x.first[j] is not None
        ]
        terms += [] if stream is None else [along(stream)]
        second.append(tf.add_n(terms) if terms else None)
    return Streams(x.wanted, values, tuple(along(f) for f in x.first), tuple(second))


register(FourierFeatures, FourierFeatures.streams)
register(HardBoundary, HardBoundary.streams)

__all__ = ["FourierFeatures", "HardBoundary"]
