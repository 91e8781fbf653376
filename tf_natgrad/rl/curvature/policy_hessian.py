"""The Hessian of the expected return of a policy, as a linear operator over all episodes at once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.distributions import CategoricalPd
from tf_natgrad.linearize import ensure_built
from tf_natgrad.operators import CurvatureOperator, ScoreFunctionHessian
from tf_natgrad.operators.score_function import ESTIMATORS, ReturnHessian
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.rl.curvature.baselines import Baseline, step_weights
from tf_natgrad.rl.episodes import Episodes, check_episodes
from tf_natgrad.rl.policies import Policy, check_policy, has_kinks


class PolicyHessian(ReturnHessian):
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
        super().__init__(flat, name="PolicyHessian")
        weights = step_weights(episodes, estimator, baseline, gamma)
        self._batch = _EpisodeBatch(policy, episodes, observations, weights, estimator)
        self._whole = self._batch.operator(slice(None)) if chunk_steps is None else None
        self._chunks = [] if chunk_steps is None else self._batch.chunks(chunk_steps)

    @property
    def estimator(self) -> str:
        """The name of the estimator."""
        return self._batch.estimator

    @property
    def step_weights(self) -> np.ndarray:
        """The weights `w_t` of the steps, `[M]`."""
        return self._batch.weights

    def policy_gradient(self) -> tf.Tensor:
        """Estimates the gradient of `E[R]` with the same step weights, `[n]`."""
        if self._whole is not None:
            return self._whole.policy_gradient()
        return self._over_chunks("gradient", lambda part, v: part.policy_gradient(), self._zeros())

    def reweighted(self) -> tuple[CurvatureOperator, tf.Variable]:
        """Returns the same operator with episode weights that can be changed at any time, without a new trace.

        Returns:
            `(operator, weights)`: assign to the variable `weights` `[N]`.
        """
        shares = tf.Variable(self._batch.shares, trainable=False)
        return _Changeable(self._batch, self._flat, shares, self._batch.actions), shares

    def redrawn(self) -> tuple[ReturnHessian, tf.Variable]:
        """Returns the same operator with actions that can be changed at any time, without a new trace.

        Observations and step weights stay those of the episodes.

        Returns:
            `(operator, actions)`: assign to the variable `actions`, of the shape of the recorded ones.
        """
        actions = tf.Variable(self._batch.actions, trainable=False)
        return _Changeable(self._batch, self._flat, self._batch.shares, actions), actions

    def prepare(self) -> None:
        """Does nothing: the policy is called on construction, or for each chunk."""

    def _zeros(self) -> tf.Tensor:
        return tf.zeros([self._flat.size], self.dtype)

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        if self._whole is not None:
            return self._whole.product(vector)
        return self._over_chunks("product", lambda part, v: part.product(v), vector)

    def episode_forms(self, vector: tf.Tensor) -> tf.Tensor:
        if self._whole is not None:
            return self._whole.episode_forms(vector)
        parts = [self._batch.run("forms", c, lambda part, v: part.episode_forms(v), vector) for c in self._chunks]
        return tf.concat(parts, 0)

    def _over_chunks(self, key: str, function: Any, vector: tf.Tensor) -> tf.Tensor:
        return tf.add_n([self._batch.run(key, chunk, function, vector) for chunk in self._chunks])

    def adjoint_product(self, vector: tf.Tensor) -> tf.Tensor:
        if self._whole is not None:
            return self._whole.adjoint_product(vector)
        return self._over_chunks("adjoint", lambda part, v: part.adjoint_product(v), vector)

    def map_rows(self, function: Any, rows: tf.Tensor) -> tf.Tensor:
        if self._whole is not None:
            return self._whole.map_rows(function, rows)
        return tf.map_fn(function, rows, parallel_iterations=1)


class _Changeable(ReturnHessian):
    """A policy Hessian whose episode weights or actions are a variable; the policy is called at each product."""

    def __init__(self, batch: _EpisodeBatch, flat: FlatParameters, shares: Any, actions: Any):
        super().__init__(flat, name="Changeable")
        self._batch = batch
        self._shares = shares
        self._actions = actions

    @property
    def estimator(self) -> str:
        return self._batch.estimator

    def prepare(self) -> None:
        """Does nothing: the policy is called in each product."""

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        return self._part().product(vector)

    def adjoint_product(self, vector: tf.Tensor) -> tf.Tensor:
        return self._part().adjoint_product(vector)

    def episode_forms(self, vector: tf.Tensor) -> tf.Tensor:
        return self._part().episode_forms(vector)

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        part = self._part()
        return part.map_rows(part.product, rows)

    def _part(self) -> ScoreFunctionHessian:
        shares, actions = (tf.convert_to_tensor(values) for values in (self._shares, self._actions))
        return self._batch.operator(slice(None), shares, actions)


class _EpisodeBatch:
    """The arrays of the episodes, on the device, and the operators of parts of them."""

    def __init__(
        self, policy: Policy, episodes: Episodes, observations: tf.Tensor, weights: np.ndarray, estimator: str
    ):
        self.policy = policy
        self.weights = weights
        self.estimator = estimator
        self._episodes = episodes
        dtype = FlatParameters(policy.trainable_variables).dtype
        self._observations = observations
        self.actions = tf.constant(episodes.actions)
        self._weights = tf.constant(weights, dtype)
        self._ids = tf.constant(episodes.episode_ids, tf.int32)
        self.shares = tf.constant(episodes.episode_weights, dtype)
        self._functions: dict[str, Any] = {}

    def chunks(self, steps: int) -> list[tuple[slice, slice]]:
        """Groups whole episodes into chunks of about `steps` steps; returns the steps and episodes of each."""
        ends = self._episodes.starts + self._episodes.lengths
        found, first = [], 0
        while first < self._episodes.num_episodes:
            start = self._episodes.starts[first]
            last = max(first + 1, int(np.searchsorted(ends, start + steps, side="right")))
            found.append((slice(int(start), int(ends[last - 1])), slice(first, last)))
            first = last
        return found

    def operator(self, steps: slice, shares: tf.Tensor | None = None, actions: tf.Tensor | None = None):
        """The operator of these steps, built eagerly or inside a trace."""
        ids = self._ids[steps]
        return self._make(
            self._observations[steps],
            (self.actions if actions is None else actions)[steps],
            self._weights[steps],
            ids - ids[0],
            self.shares if shares is None else shares,
        )

    def _make(self, observations, actions, weights, ids, shares) -> ScoreFunctionHessian:
        return ScoreFunctionHessian(
            lambda: self.policy.log_prob(observations, actions),
            self.policy.trainable_variables,
            weights,
            ids,
            episode_weights=shares,
            estimator=self.estimator,
            model=self.policy,
        )

    def run(self, key: str, chunk: tuple[slice, slice], function: Any, vector: tf.Tensor) -> tf.Tensor:
        """`function(operator of the chunk, vector)`, as one graph for chunks of all sizes."""
        if key not in self._functions:
            tensors = (self._observations, self.actions, self._weights, self._ids, self.shares)
            specs = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in tensors]
            specs.append(tf.TensorSpec(vector.shape, vector.dtype))
            self._functions[key] = tf.function(
                lambda *args: function(self._make(*args[:5]), args[5]), input_signature=specs, autograph=False
            )
        steps, episodes = chunk
        ids = self._ids[steps]
        return self._functions[key](
            self._observations[steps],
            self.actions[steps],
            self._weights[steps],
            ids - ids[0],
            self.shares[episodes],
            vector,
        )


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
