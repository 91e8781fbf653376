"""Generalized advantage estimation over fixed numbers of steps of many environments."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_natgrad import _checks
from tf_natgrad.rl.episodes import as_flags, check_gamma


def generalized_advantages(
    rewards: Any,
    values: Any,
    next_values: Any,
    terminated: Any,
    truncated: Any,
    *,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
) -> np.ndarray:
    """Computes generalized advantages (GAE), `A_t = sum_{k >= 0} (gamma lambda)^k delta_{t+k}` within each episode.

    `delta_t = r_t + gamma V(s_{t+1}) - V(s_t)`, where `V(s_{t+1})` counts as 0 after a terminal step. If an
    episode is truncated, and at the end of the rollout, the value of the last observation replaces the rewards that
    would have followed. `lambda = 0` gives the TD error, `lambda = 1` the (bootstrapped) return minus the value.

    >>> rewards, values = np.ones((3, 1)), np.zeros((3, 1))
    >>> ends = np.array([[False], [False], [True]])
    >>> a = generalized_advantages(rewards, values, values, ends, np.zeros_like(ends), gamma=0.5, gae_lambda=1.0)
    >>> a[:, 0].tolist()
    [1.75, 1.5, 1.0]

    Args:
        rewards: `[T, E]`, T steps of E environments.
        values: `[T, E]`, `V` of the observation before each step.
        next_values: `[T, E]`, `V` of the observation that each step led to; where an episode ended, of its true
            last observation, not of the first of the next one.
        terminated: `[T, E]`, whether the step reached a terminal state.
        truncated: `[T, E]`, whether the episode was cut off after the step.
        gamma: the discount factor, in [0, 1].
        gae_lambda: the trade between bias (0) and variance (1), in [0, 1].

    Returns:
        `[T, E]`, float64. The regression target of the value function is `A_t + V(s_t)`.

    Raises:
        ValueError: if a shape does not fit or a factor is not in [0, 1].

    References:
        J. Schulman, P. Moritz, S. Levine, M. Jordan, P. Abbeel, "High-dimensional continuous control using generalized
        advantage estimation", ICLR (2016), equation 16.
    """
    check_gamma(gamma)
    check_gae_lambda(gae_lambda)
    rewards = _checks.as_array("rewards", rewards).astype(np.float64)
    if rewards.ndim != 2:
        raise ValueError(_checks.message("rewards", f"shape {rewards.shape}", "shape [steps, environments]"))
    if not np.isfinite(rewards).all():
        raise ValueError(
            _checks.message("rewards", "NaN or infinite values", "finite rewards", "Look at the environment.")
        )
    values, next_values = _checks.as_array("values", values), _checks.as_array("next_values", next_values)
    terminated, truncated = as_flags("terminated", terminated), as_flags("truncated", truncated)
    named = {"values": values, "next_values": next_values, "terminated": terminated, "truncated": truncated}
    for name, array in named.items():
        if np.shape(array) != rewards.shape:
            raise ValueError(_checks.message(name, f"shape {np.shape(array)}", f"{rewards.shape}, as the rewards have"))
    values, next_values = values.astype(np.float64), next_values.astype(np.float64)
    going_on = ~(terminated | truncated)
    deltas = rewards + gamma * np.where(terminated, 0.0, next_values) - values
    decay = gamma * gae_lambda * going_on
    advantages, later = np.empty_like(deltas), np.zeros(rewards.shape[1])
    for t in reversed(range(len(deltas))):
        later = deltas[t] + decay[t] * later
        advantages[t] = later
    return advantages


def check_gae_lambda(gae_lambda: float) -> None:
    """Checks the factor of GAE.

    Args:
        gae_lambda: what the user gave.

    Raises:
        ValueError: if it is not in [0, 1].
    """
    _checks.check_number("gae_lambda", gae_lambda, minimum=0.0)
    if gae_lambda > 1.0:
        raise ValueError(_checks.message("gae_lambda", gae_lambda, "a number in [0, 1]"))


__all__ = ["check_gae_lambda", "generalized_advantages"]
