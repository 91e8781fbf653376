"""Running moments of observations, as a layer of the networks, and of returns, to scale rewards."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks

_CLIP = 10.0
_EPSILON = 1e-8


class RunningMoments:
    """Mean and variance of all rows seen so far, in float64.

    >>> moments = RunningMoments(())
    >>> moments.update([1.0, 2.0]); moments.update([3.0])
    >>> float(moments.mean), round(float(moments.variance), 4)
    (2.0, 0.6667)

    Args:
        shape: of one row.

    References:
        T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
        COMPSTAT (1982), equation 2.1.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.count = np.zeros(())
        self.mean = np.zeros(shape)
        self.squares = np.zeros(shape)

    @property
    def variance(self) -> np.ndarray:
        """The population variance; 1 before anything was seen."""
        return self.squares / self.count if self.count else np.ones_like(self.squares)

    def update(self, rows: Any) -> None:
        """Takes more rows into account.

        Args:
            rows: `[M, *shape]`.
        """
        rows = np.asarray(rows, np.float64)
        if not len(rows):
            return
        mean = rows.mean(0)
        total = self.count + len(rows)
        shift = mean - self.mean
        self.squares = self.squares + np.square(rows - mean).sum(0) + shift**2 * (self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = np.asarray(total, np.float64)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that there is to store."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes back to what `arrays` returned.

        Args:
            arrays: by name.
        """
        self.count, self.mean, self.squares = (
            np.asarray(arrays[name], np.float64) for name in ("count", "mean", "squares")
        )


class RewardScaling:
    """Divides rewards by the standard deviation of the discounted returns seen so far, and clips at ±10.

    The returns are those that run forward in time, `R_t = gamma R_{t-1} + r_t`, from 0 at each start of an episode. The
    rewards of a rollout are scaled with moments that include it.

    Args:
        gamma: the discount factor.

    References:
        L. Engstrom et al., "Implementation matters in deep policy gradients", ICLR (2020), section 3.
    """

    def __init__(self, gamma: float):
        self.gamma = gamma
        self.moments = RunningMoments(())

    def __call__(self, rewards: np.ndarray, done: np.ndarray) -> np.ndarray:
        """Learns from a rollout, and scales its rewards.

        Args:
            rewards: `[T, E]`, from fresh starts of all environments.
            done: `[T, E]`, whether an episode ended with the step.

        Returns:
            `[T, E]`.
        """
        returns, running = np.empty(rewards.shape), np.zeros(rewards.shape[1])
        for t in range(len(rewards)):
            running = self.gamma * running + rewards[t]
            returns[t] = running
            running = np.where(done[t], 0.0, running)
        self.moments.update(returns.reshape(-1))
        return np.clip(rewards / np.sqrt(self.moments.variance + _EPSILON), -_CLIP, _CLIP)


@keras.saving.register_keras_serializable(package="tf_natgrad")
class ObservationNormalization(keras.layers.Layer):
    """Computes `(x - mean) / std`, clipped at ±10, with running moments that the agents set after each update.

    The layer is part of the policy and is saved with it, so the policy takes the unscaled observations.

    >>> layer = ObservationNormalization()
    >>> layer(tf.ones([2, 3])).shape, len(layer.trainable_variables)
    (TensorShape([2, 3]), 0)

    Args:
        **options: of `keras.layers.Layer`.
    """

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the variables of the moments, in the shape of one observation.

        Args:
            shape: `(None, ...)`.
        """
        self.mean = self.add_weight(shape=shape[1:], initializer="zeros", trainable=False, name="mean")
        self.scale = self.add_weight(shape=shape[1:], initializer="ones", trainable=False, name="scale")

    def call(self, observations: tf.Tensor) -> tf.Tensor:
        """Computes the standardised observations, `[M, ...]`."""
        return tf.clip_by_value((observations - self.mean) * self.scale, -_CLIP, _CLIP)

    def set_moments(self, moments: RunningMoments) -> None:
        """Uses these moments from now on.

        Args:
            moments: of observations.
        """
        _checks.check_instance("moments", moments, RunningMoments, "`RunningMoments`")
        if moments.mean.shape != tuple(self.mean.shape):
            raise ValueError(_checks.message("moments", f"shape {moments.mean.shape}", f"{tuple(self.mean.shape)}"))
        self.mean.assign(moments.mean)
        self.scale.assign(1.0 / np.sqrt(moments.variance + _EPSILON))


__all__ = ["ObservationNormalization", "RewardScaling", "RunningMoments"]
