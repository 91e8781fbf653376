"""Default networks of the agents, for the spaces of an environment."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from tf_natgrad.rl.normalization import ObservationNormalization
from tf_natgrad.rl.policies import CategoricalPolicy, GaussianPolicy, Policy

_HIDDEN = (64, 64)


def default_policy(observations: Any, actions: Any, *, normalized: bool, seed: int) -> Policy:
    """A policy of two tanh layers of 64 units, with a small last layer: at first all actions are about as likely.

    Args:
        observations: the Box of single observations.
        actions: the Discrete space or the Box `[D]` of single actions.
        normalized: whether observations go through `ObservationNormalization`.
        seed: of the weights.

    Returns:
        A `CategoricalPolicy` or a `GaussianPolicy` with standard deviation 1.
    """
    if hasattr(actions, "n"):
        return CategoricalPolicy(_network(observations.shape, int(actions.n), 0.01, normalized, seed, "policy"))
    return GaussianPolicy(_network(observations.shape, actions.shape[0], 0.01, normalized, seed, "policy"))


def default_value_network(observations: Any, *, normalized: bool, seed: int) -> keras.Model:
    """A value function of two tanh layers of 64 units.

    Args:
        observations: the Box of single observations.
        normalized: whether observations go through `ObservationNormalization`.
        seed: of the weights.

    Returns:
        A Keras model from observations to `[M, 1]`.
    """
    return _network(observations.shape, 1, 1.0, normalized, seed, "value")


def _network(
    shape: tuple[int, ...], outputs: int, last_gain: float, normalized: bool, seed: int, name: str
) -> keras.Model:
    # Orthogonal weights, as in "Implementation matters in deep policy gradients" and in Stable-Baselines3.
    seeds = [int(word) for word in np.random.SeedSequence([seed, outputs, name == "value"]).generate_state(3) >> 1]

    def dense(units: int, gain: float, number: int, activation: str | None = None) -> keras.layers.Layer:
        initializer = keras.initializers.Orthogonal(gain, seed=seeds[number])
        return keras.layers.Dense(units, activation, kernel_initializer=initializer)

    return keras.Sequential(
        [
            keras.Input(shape),
            *([ObservationNormalization()] if normalized else []),
            *([keras.layers.Flatten()] if len(shape) != 1 else []),
            *(dense(units, math.sqrt(2.0), i, "tanh") for i, units in enumerate(_HIDDEN)),
            dense(outputs, last_gain, len(_HIDDEN)),
        ],
        name=name,
    )


__all__ = ["default_policy", "default_value_network"]
