"""Derivatives of a network in its inputs, carried forward through its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import TensorLike
from tf_natgrad.pde._rules import of_network
from tf_natgrad.pde._streams import Streams, Wanted

# The coordinates of a derivative: none for the value, `(i,)` for `d/dx_i`, `(i, j)` for `d^2/dx_i dx_j`.
Index = tuple[int, ...]


def laplacian(network: keras.Model, x: TensorLike) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes a network's value, gradient and Laplacian in its inputs, in one pass forward.

    Each layer acts on the value `v`, its first derivatives `D_i` and the Laplacian `L` at once. A dense layer applies
    its kernel to all of them. An activation s makes `s'(v) D_i` and `s''(v) sum_i D_i^2 + s'(v) L` of them. Nothing is
    differentiated by a tape, so that these are outputs like any other: the gradient of a loss in the weights, and the
    exact Gram matrix of its Fisher, take the layers' calls as they are. It works on a network by itself, and inside
    the `call` of another model.

    >>> import keras, tensorflow as tf
    >>> network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    >>> u, du, lap = laplacian(network, tf.zeros([5, 2]))
    >>> u.shape, du.shape, lap.shape
    (TensorShape([5, 1]), TensorShape([5, 2]), TensorShape([5, 1]))

    Args:
        network: a Sequential or Functional model from `[N, d]` to `[N, C]`. Its layers are `Dense`, `Activation`,
            `ELU`, `Rescaling`, `Add`, `Subtract`, `Multiply`, `Concatenate`, `Identity`, `FourierFeatures`,
            `HardBoundary` and networks of these; activations have a second derivative (`tanh`, `sin`, `softplus`,
            `swish`, `gelu`, or any smooth function of each entry).
        x: the points, `[N, d]`.

    Returns:
        `(u, du, laplacian)`: `[N, 1]`, `[N, d]`, `[N, 1]` for a network of one output; of C outputs `[N, C]`,
        `[N, C, d]`, `[N, C]`. In units of the outputs, over those of the inputs, and over their squares.

    Raises:
        ValueError: if a layer has no rule (it is named), or `x` does not fit.
        TypeError: if `network` is not a Keras model, or `x` no array of numbers.

    References:
        R. Li, H. Ye, D. Jiang, et al., "A computational framework for neural network-based variational Monte Carlo
        with Forward Laplacian", Nature Machine Intelligence 6 (2024).
    """
    x = _checked(network, x)
    axes = tuple(range(x.shape[-1]))
    streams = _streams(network, x, Wanted(axes, (tuple((i, i) for i in axes),)))
    gradient = tf.stack([streams.filled(f) for f in streams.first], -1)
    gradient = gradient[:, 0] if gradient.shape[1] == 1 else gradient
    return streams.value, gradient, streams.filled(streams.second[0])


def derivatives(network: keras.Model, x: TensorLike, wanted: Sequence[Index]) -> dict[Index, tf.Tensor]:
    """Computes chosen first and second derivatives of a network in its inputs, in one pass forward.

    A derivative is written as the coordinates by which it is taken: `(0,)` is `du/dx_0`, `(0, 1)` is
    `d^2 u / dx_0 dx_1`, and `()` is the value. What is not asked for is not computed, but for the first derivatives
    that a second one is made of. See `laplacian`, which is faster where the sum of all second derivatives is meant.

    >>> import keras, tensorflow as tf
    >>> network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    >>> u = derivatives(network, tf.zeros([5, 2]), [(), (1,), (0, 0)])
    >>> heat = u[1,] - 0.1 * u[0, 0]
    >>> heat.shape
    TensorShape([5, 1])

    Args:
        network: as for `laplacian`.
        x: the points, `[N, d]`.
        wanted: the derivatives, each a tuple of none, one or two coordinates from 0 to d - 1.

    Returns:
        For each of them `[N, C]`. The order of the coordinates of a mixed derivative does not matter; it is found
        under the name that it was asked for by.

    Raises:
        ValueError: if a layer has no rule (it is named), `x` does not fit, or a coordinate does not exist.
        TypeError: if `network` is not a Keras model, `x` no array of numbers, or `wanted` no list of tuples.
    """
    x = _checked(network, x)
    wanted = _checked_indices(wanted, x.shape[-1])
    axes = tuple(sorted({axis for index in wanted for axis in index}))
    place = {axis: k for k, axis in enumerate(axes)}
    seconds = sorted({tuple(sorted(index)) for index in wanted if len(index) == 2})
    streams = _streams(network, x, Wanted(axes, tuple(((place[i], place[j]),) for i, j in seconds)))
    found: dict[Index, tf.Tensor] = {(): streams.value}
    found |= {(axis,): streams.filled(f) for axis, f in zip(axes, streams.first, strict=True)}
    found |= {pair: streams.filled(s) for pair, s in zip(seconds, streams.second, strict=True)}
    return {index: found[tuple(sorted(index))] for index in wanted}


def _streams(network: keras.Model, x: tf.Tensor, wanted: Wanted) -> Streams:
    found = of_network(network, Streams.of_coordinates(x, wanted))
    if found.value.shape.rank != 2:
        raise ValueError(_checks.message("network", f"one with outputs of shape {found.value.shape}", "outputs [N, C]"))
    return found


def _checked(network: Any, x: Any) -> tf.Tensor:
    """The points, for a network that is built and may be differentiated."""
    _checks.check_instance("network", network, keras.Model, "a Keras model")
    x = _checks.as_tensor("x", x)
    if x.shape.rank != 2 or not x.shape[-1]:
        raise ValueError(_checks.message("x", f"shape {tuple(x.shape)}", "points [N, d]"))
    if not _keras.is_graph(network):
        raise ValueError(
            _checks.message(
                "network",
                f"the subclassed model {type(network).__name__}",
                "a Sequential or Functional model, whose layers are known",
                "Build it with `keras.Sequential` or `keras.Model(inputs, outputs)`, or take derivatives with "
                "`tf.GradientTape`.",
            )
        )
    if not network.built:
        network(x)
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise ValueError(
            _checks.message(
                "network",
                f"one with {len(network.inputs)} inputs and {len(network.outputs)} outputs",
                "one input [N, d] and one output [N, C]",
                "Put the coordinates into one tensor, and the outputs too (`Concatenate`).",
            )
        )
    if not network.inputs[0].shape[-1] == x.shape[-1] or len(network.inputs[0].shape) != 2:
        raise ValueError(
            _checks.message("x", f"shape {tuple(x.shape)}", f"{network.inputs[0].shape}, as the network takes")
        )
    dtype = tf.as_dtype(network.inputs[0].dtype)
    if not dtype.is_floating:
        raise ValueError(_checks.message("network", f"one with inputs of dtype {dtype.name}", "floating-point inputs"))
    # As a call of the network does.
    return tf.cast(x, dtype)


def _checked_indices(wanted: Any, dimension: int) -> list[Index]:
    expected = "a list of tuples of up to two coordinates, such as [(), (0,), (0, 1)]"
    try:
        indices = [tuple(index) for index in wanted]
    except TypeError:
        raise TypeError(_checks.message("wanted", _checks.described(wanted), expected)) from None
    for index in indices:
        whole = all(isinstance(i, int) and not isinstance(i, bool) for i in index)
        if not whole or len(index) > 2:
            raise TypeError(_checks.message("wanted", f"{index} in it", expected))
        if not all(0 <= i < dimension for i in index):
            raise ValueError(_checks.message("wanted", f"{index} in it", f"coordinates from 0 to {dimension - 1}"))
    if not indices:
        raise ValueError(_checks.message("wanted", "an empty list", expected))
    return indices


__all__ = ["derivatives", "laplacian"]
