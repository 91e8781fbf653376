"""The Hessian of the expected return of a policy, as a linear operator over all episodes at once."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.distributions import CategoricalPd
from tf_natgrad.linearize import ensure_built
from tf_natgrad.operators import CurvatureOperator, ScoreFunctionHessian
from tf_natgrad.operators.score_function import ESTIMATORS, ReturnHessian
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.rl.curvature._episode_sources import AllEpisodes, ChangingEpisodes, Drawn, EpisodeChunks, EpisodeSource
from tf_natgrad.rl.curvature.baselines import Baseline, step_weights
from tf_natgrad.rl.episodes import Episodes, check_episodes
from tf_natgrad.rl.policies import Policy, check_policy, has_kinks


class _OverEpisodes(ReturnHessian):
    """An estimate of the Hessian as a sum over a source of episodes."""

    def __init__(self, flat: FlatParameters, name: str, estimator: str, source: EpisodeSource):
        super().__init__(flat, name=name)
        self._estimator = estimator
        self._source = source

    @property
    def estimator(self) -> str:
        """The name of the estimator."""
        return self._estimator

    def prepare(self) -> None:
        self._source.prepare()

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        return self._source.sum("product", ScoreFunctionHessian.product, vector, vector)

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        return self._source.sum("products", ScoreFunctionHessian.products, rows, rows)

    def adjoint_product(self, vector: tf.Tensor) -> tf.Tensor:
        return self._source.sum("adjoint_product", ScoreFunctionHessian.adjoint_product, vector, vector)

    def episode_forms(self, vector: tf.Tensor) -> tf.Tensor:
        return self._source.concatenated("episode_forms", ScoreFunctionHessian.episode_forms, vector)

    def map_rows(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        return self._source.map_rows(function, rows)


class PolicyHessian(_OverEpisodes):
    """Estimates `d^2 / dtheta^2 E[R]`, `[n, n]`, from episodes that are drawn once.

    `R = sum_t gamma^t r_t`. With `g_t`, `h_t` the gradient and Hessian of `log pi(a_t | s_t)` and `w_t` the discounted
    reward to go less its baseline, it is the weighted mean over episodes of

    * `"causal"`: `sum_t w_t h_t + sum_tt' w_max(t,t') g_t g_t'^T` (unbiased, of small variance);
    * `"trajectory"`: `(R - b) (S S^T + sum_t h_t)`, `S = sum_t g_t` (unbiased, of large variance);
    * `"surrogate"`: `sum_t w_t (h_t + g_t g_t^T)`, the Hessian of the surrogate of PPO and TRPO (another matrix);
    * `"algorithm1"`: `S (sum_t w_t g_t)^T + sum_t w_t h_t` (for study: unbiased, but not symmetric; `symmetrize()`).

    >>> import keras, numpy as np, tf_natgrad.rl as rl
    >>> policy = rl.CategoricalPolicy(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    >>> episodes = rl.collect("CartPole-v1", policy, num_episodes=4, seed=0)
    >>> rl.PolicyHessian(policy, episodes, gamma=0.99).shape
    TensorShape([10, 10])

    Args:
        policy: a `Policy`.
        episodes: drawn with this policy.
        estimator: see above.
        baseline: `None`, a number, `"leave_one_out"`, `"time"`, `"value"` or a function; see `step_weights`.
        gamma: the discount factor.
        chunk_steps: the approximate number of steps in a chunk of episodes; each product calls the policy on one chunk
            after the other. By default the policy is called once, for all episodes.

    Raises:
        ValueError: if the policy does not fit the episodes, or an option is out of range.

    References:
        J. Foerster et al., "DiCE: the infinitely differentiable Monte Carlo estimator", ICML (2018), equation 9.
    """

    def __init__(
        self,
        policy: Policy,
        episodes: Episodes,
        estimator: str = "causal",
        baseline: Baseline = None,
        gamma: float = 0.99,
        chunk_steps: int | None = None,
    ):
        check_policy(policy)
        check_episodes(episodes)
        _checks.check_choice("estimator", estimator, ESTIMATORS)
        if chunk_steps is not None:
            _checks.check_number("chunk_steps", chunk_steps, minimum=1, integer=True)
        if has_kinks(policy):
            warnings.warn(
                "The policy has piecewise linear activations (relu): its Hessian misses their kinks, and is not the "
                "curvature of the expected return. Use tanh or another smooth activation for claims about it.",
                stacklevel=2,
            )
        observations = tf.constant(episodes.observations.astype(policy.compute_dtype))
        ensure_built(policy, observations)
        _check_actions(policy, observations, episodes)
        flat = FlatParameters(policy.trainable_variables)
        self._weights = step_weights(episodes, estimator, baseline, gamma)
        self._drawn = Drawn(
            policy,
            estimator,
            observations,
            tf.constant(episodes.actions),
            tf.constant(self._weights, flat.dtype),
            tf.constant(episodes.episode_ids, tf.int32),
            tf.constant(episodes.episode_weights, flat.dtype),
        )
        if chunk_steps is None:
            source: EpisodeSource = AllEpisodes(self._drawn)
        else:
            source = EpisodeChunks(self._drawn, episodes.starts, episodes.lengths, chunk_steps)
        super().__init__(flat, "PolicyHessian", estimator, source)

    @property
    def step_weights(self) -> np.ndarray:
        """The weights `w_t` of the steps, `[M]`."""
        return self._weights

    def policy_gradient(self) -> tf.Tensor:
        """Estimates the gradient of `E[R]` with the same step weights, `[n]`."""
        like = tf.zeros([self._flat.size], self.dtype)
        return self._source.sum("policy_gradient", ScoreFunctionHessian.policy_gradient, like)

    def reweighted(self) -> tuple[CurvatureOperator, tf.Variable]:
        """Returns the same operator with episode weights that can be changed at any time, without a new trace.

        Returns:
            `(operator, weights)`: assign to the variable `weights` `[N]`.
        """
        shares = tf.Variable(self._drawn.shares, trainable=False)
        return self._changing(dataclasses.replace(self._drawn, shares=shares)), shares

    def redrawn(self) -> tuple[ReturnHessian, tf.Variable]:
        """Returns the same operator with actions that can be changed at any time, without a new trace.

        Observations and step weights stay those of the episodes.

        Returns:
            `(operator, actions)`: assign to the variable `actions`, of the shape of the recorded ones.
        """
        actions = tf.Variable(self._drawn.actions, trainable=False)
        return self._changing(dataclasses.replace(self._drawn, actions=actions)), actions

    def _changing(self, drawn: Drawn) -> ReturnHessian:
        return _OverEpisodes(self._flat, "Changing", self._estimator, ChangingEpisodes(drawn))


def _check_actions(policy: Policy, observations: tf.Tensor, episodes: Episodes) -> None:
    """Refuses actions that the policy's distribution cannot have produced."""
    outputs = policy(observations[:1]).shape[-1]
    actions = episodes.actions
    discrete = actions.dtype.kind in "iu"
    fits = (
        discrete and actions.ndim == 1 and actions.min() >= 0 and actions.max() < outputs
        if issubclass(policy.distribution_class, CategoricalPd)
        else not discrete and actions.ndim == 2 and 2 * actions.shape[1] == outputs
    )
    if not fits:
        raise ValueError(
            _checks.message(
                "policy",
                f"{type(policy).__name__} with {outputs} outputs for actions {actions.dtype} {actions.shape}",
                "outputs that fit the actions of the episodes",
                "Integers `[M]` go with `CategoricalPolicy`, numbers `[M, D]` with `GaussianPolicy`.",
            )
        )


__all__ = ["PolicyHessian"]
