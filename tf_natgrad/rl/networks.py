"""The networks of the agents: the default ones, and what is asked of a user's own."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad.linearize import ensure_built
from tf_natgrad.rl.normalization import ObservationNormalization
from tf_natgrad.rl.policies import CategoricalPolicy, GaussianPolicy, Policy, check_policy

_HIDDEN = (64, 64)


def agent_networks(
    observations: Any,
    actions: Any,
    policy: Policy | None,
    value_network: keras.Model | None,
    *,
    normalized: bool,
    seed: int,
) -> tuple[Policy, keras.Model]:
    """Returns the networks of an agent: the given ones after checking them, or default ones.

    Args:
        observations: the Box of single observations.
        actions: the Discrete space or the Box `[D]` of single actions.
        policy: the user's own, or `None`.
        value_network: the user's own, or `None`.
        normalized: whether observations go through `ObservationNormalization`.
        seed: of the weights of default networks.

    Returns:
        `(policy, value_network)`, both built.

    Raises:
        TypeError: if one is something else.
        ValueError: if one does not fit the spaces.
    """
    if policy is None:
        policy = default_policy(observations, actions, normalized=normalized, seed=seed)
    check_policy(policy)
    policy.check_action_space(actions)
    if value_network is None:
        value_network = default_value_network(observations, normalized=normalized, seed=seed)
    _checks.check_model("value_network", value_network)
    for name, network in (("policy", policy), ("value_network", value_network)):
        _check_observations(name, network, observations.shape)
        if normalized and not normalizations(network):
            raise ValueError(
                _checks.message(
                    name,
                    "a network without `rl.ObservationNormalization`, together with `normalize_observations=True`",
                    "one with that layer",
                    "Put it first: `keras.Sequential([keras.Input(shape), rl.ObservationNormalization(), ...])`.",
                )
            )
    return policy, value_network


def _check_observations(name: str, network: keras.Model, shape: tuple[int, ...]) -> None:
    """Builds a network, and refuses one that does not take observations of this shape."""
    observation = np.zeros([1, *shape], network.compute_dtype)
    try:
        ensure_built(network, tf.constant(observation))
        network(observation)
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(
            _checks.message(
                name,
                f"a network that does not take observations of shape {shape} ({error})",
                "one that takes a batch of them",
            )
        ) from error


def normalizations(network: keras.Model) -> list[ObservationNormalization]:
    """Finds the normalization layers of a network.

    Args:
        network: a Keras model.

    Returns:
        The layers.
    """
    return [layer for layer in _keras.all_layers(network) if isinstance(layer, ObservationNormalization)]


def default_policy(observations: Any, actions: Any, *, normalized: bool, seed: int) -> Policy:
    """Makes a policy of two tanh layers of 64 units, with a small last layer: at first all actions are about as likely.

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
    """Makes a value function of two tanh layers of 64 units.

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


__all__ = ["agent_networks", "default_policy", "default_value_network", "normalizations"]
