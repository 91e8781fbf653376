"""The Hessian of an expected return, from log-probabilities and weights alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tf_natgrad import _checks, _conditions
from tf_natgrad._typing import ModelLike, TensorLike
from tf_natgrad.linearize import Linearization
from tf_natgrad.operators._return_hessian import ReturnHessian
from tf_natgrad.parameters import FlatParameters

ESTIMATORS = ("causal", "trajectory", "surrogate", "algorithm1")


class ScoreFunctionHessian(ReturnHessian):
    """A score-function estimate of the Hessian of `E[R]`, `[n, n]`; each product takes all episodes in one pass.

    With `g_t`, `h_t` the gradient and Hessian of `log_prob[t]`, `w_t = weights[t]` and `omega_e` the weight of an
    episode, it is `sum_e omega_e M_e`, where `M_e` is, by the name of the estimator,

    * `"causal"`: `sum_t w_t h_t + sum_tt' w_max(t,t') g_t g_t'^T`;
    * `"trajectory"`: `sum_t w_t h_t + sum_tt' w_t g_t g_t'^T`, for `w_t` constant within the episode;
    * `"surrogate"`: `sum_t w_t (h_t + g_t g_t^T)`, the Hessian of the surrogate `sum_t w_t exp(log_prob_t - const)`;
    * `"algorithm1"`: `(sum_t g_t) (sum_t w_t g_t)^T + sum_t w_t h_t`, not symmetric unless `w_t` is constant.

    A product takes one pass of first and one of second derivatives over all steps of all episodes.

    >>> import keras, tensorflow as tf
    >>> theta = keras.Variable([0.5])
    >>> hessian = ScoreFunctionHessian(lambda: theta * tf.constant([1.0, 2.0]), [theta], [1.0, 1.0], [0, 0])
    >>> hessian.matvec([1.0]).numpy().tolist()  # (1 + 2)^2
    [9.0]

    Args:
        log_prob: the log-probabilities of all steps, `[M]`, as a function of the variables; called once, and once more
            for quadratic forms.
        variables: Keras variables.
        weights: `[M]`, the weight of each step (reward to go less baseline, or the return of the episode).
        episode_ids: `[M]`, ascending integers from 0: the episode of each step.
        episode_weights: `[N]`, `omega`; by default `1 / N` each.
        estimator: see above.
        model: the network behind `log_prob`, if it has layers that cannot be vectorised.

    Raises:
        ValueError: if shapes do not fit, a weight is not finite, or the estimator is unknown.

    References:
        J. Foerster et al., "DiCE: the infinitely differentiable Monte Carlo estimator", ICML (2018), equation 9.
    """

    def __init__(
        self,
        log_prob: Callable[[], tf.Tensor],
        variables: Sequence[keras.Variable],
        weights: TensorLike,
        episode_ids: TensorLike,
        *,
        episode_weights: TensorLike | None = None,
        estimator: str = "causal",
        model: ModelLike | None = None,
    ):
        _checks.check_choice("estimator", estimator, ESTIMATORS)
        _checks.check_instance("log_prob", log_prob, Callable, "a function without arguments")
        if model is not None:
            _checks.check_model("model", model)
        flat = FlatParameters(variables)
        with tf.GradientTape(persistent=True) as outer:
            with tf.GradientTape(persistent=True) as tape:
                log_probs = _checks.as_tensor("log_prob()", log_prob())
            _checks.check_rank_one("log_prob()", log_probs, None)
            steps = log_probs.shape[0]
            weights = tf.cast(_checks.as_tensor("weights", weights), flat.dtype)
            _checks.check_rank_one("weights", weights, steps)
            _conditions.judge([_conditions.finite("weights", "finite weights", weights)])
            ids = _checks.as_tensor("episode_ids", episode_ids)
            if not ids.dtype.is_integer:
                raise TypeError(_checks.message("episode_ids", f"dtype {ids.dtype.name}", "integers"))
            ids = tf.cast(ids, tf.int32)
            _checks.check_rank_one("episode_ids", ids, steps)
            _conditions.require(
                tf.reduce_all((ids[1:] - ids[:-1] >= 0) & (ids[1:] - ids[:-1] <= 1)) & (ids[0] == 0),
                _checks.message("episode_ids", "a gap or a step back", "0 0 ... 1 1 ..., each episode in one piece"),
            )
            episodes = int(ids[-1]) + 1 if tf.executing_eagerly() else ids[-1] + 1
            if episode_weights is None:
                shares = tf.ones([episodes], flat.dtype) / tf.cast(episodes, flat.dtype)
            else:
                shares = tf.cast(_checks.as_tensor("episode_weights", episode_weights), flat.dtype)
                _checks.check_rank_one("episode_weights", shares, episodes if isinstance(episodes, int) else None)
                _conditions.judge([_conditions.finite("episode_weights", "finite weights", shares)])
            scaled = weights * tf.gather(shares, ids)
            # The seed of the recorded gradient is itself a point of differentiation: it gives `J v` along the way.
            seed = tf.identity(scaled)
            outer.watch(seed)
            linearization = Linearization(log_probs, tape, flat, model)
            gradient = linearization.vjp(tf.cast(seed, log_probs.dtype))
        super().__init__(flat, name="ScoreFunctionHessian")
        values = [(v, tf.convert_to_tensor(v.value)) for v in flat.variables]
        # Made before it is asked for inside a graph.
        self._state = _State(outer, log_prob, values, log_probs, seed, gradient, ids, weights, shares, episodes)
        self._state.grid  # noqa: B018
        self._estimator = estimator
        self._linearization = linearization

    @property
    def estimator(self) -> str:
        """The name of the estimator."""
        return self._estimator

    def policy_gradient(self) -> tf.Tensor:
        """Computes the gradient `sum_e omega_e sum_t w_t g_t`, `[n]`, from the same pass."""
        return self._flat.flatten(self._state.gradient)

    @property
    def episode_weights(self) -> tf.Tensor:
        """`omega`, `[N]`."""
        return self._state.shares

    def prepare(self) -> None:
        """Nothing: the gradient was recorded with the forward pass."""

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        return self._combined(vector, self._step_factors)

    def adjoint_product(self, vector: tf.Tensor) -> tf.Tensor:
        """Computes the product of the transposed matrix: for `algorithm1` with `(sum_t w_t g_t) (sum_t g_t)^T v`."""
        state = self._state
        return self._combined(vector, lambda c: state.weights * state.over_episode(c))

    def _combined(self, vector: tf.Tensor, factors: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        state = self._state
        tangents = self._flat.unflatten(vector)
        along = tf.cast(self._along(tangents), self.dtype)
        cotangent = tf.gather(state.shares, state.ids) * factors(along)
        # One reverse pass through the log-probabilities and through their gradient.
        products = state.outer.gradient(
            [state.log_probs, *state.gradient],
            self._flat.tensors,
            output_gradients=[tf.cast(cotangent, state.log_probs.dtype), *tangents],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return self._flat.flatten([tf.convert_to_tensor(p) for p in products])

    def _along(self, tangents: list[tf.Tensor]) -> tf.Tensor:
        """`c = J v`: the derivative of each log-probability along `v`, `[M]`."""
        return self._state.outer.gradient(
            self._state.gradient,
            self._state.seed,
            output_gradients=tangents,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    def _step_factors(self, c: tf.Tensor) -> tf.Tensor:
        """`m_t`, what multiplies `g_t` in the product."""
        state = self._state
        if self._estimator == "surrogate":
            return state.weights * c
        if self._estimator == "trajectory":
            return state.weights * state.over_episode(c)
        if self._estimator == "algorithm1":
            return state.over_episode(state.weights * c)
        weighted = state.weights * c
        later = state.over_episode(weighted) - state.cumulative(weighted)
        return state.weights * state.cumulative(c) + later

    def episode_forms(self, vector: tf.Tensor) -> tf.Tensor:
        state = self._state
        first, second = self._along_twice(self._flat.unflatten(vector))
        first, second = tf.cast(first, self.dtype), tf.cast(second, self.dtype)
        terms = first * self._step_factors(first) + state.weights * second
        return tf.math.segment_sum(terms, state.ids)

    def _along_twice(self, tangents: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """First and second derivative of each log-probability along `v`, `[M]` each, at the weights of construction.

        Both are differentiated from `u -> sum_t u_t log_prob_t(theta + a v)` at `a = 0`, in `a` and then in `u`.
        """
        state = self._state
        with tf.GradientTape(persistent=True) as in_seed:
            seed = tf.ones_like(state.log_probs)
            in_seed.watch(seed)
            with tf.GradientTape() as second, tf.GradientTape() as first:
                step = tf.zeros([], self.dtype)
                first.watch(step)
                second.watch(step)
                moved = [(v, x + step * t) for (v, x), t in zip(state.values, tangents, strict=True)]
                with keras.StatelessScope(state_mapping=moved):
                    total = tf.reduce_sum(seed * state.log_prob())
                slope = first.gradient(total, step)
            curvature = second.gradient(slope, step)
        zero = tf.UnconnectedGradients.ZERO
        return in_seed.gradient(slope, seed), in_seed.gradient(curvature, seed, unconnected_gradients=zero)

    def map_rows(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        return self._linearization.map_rows(function, rows)


@dataclasses.dataclass
class _State:
    """What the one pass left behind.

    Attributes:
        outer: the tape of forward pass and gradient.
        log_prob: the function itself.
        values: the variables with their values at construction.
        log_probs: `[M]`.
        seed: `omega_e w_t`, `[M]`, at which the gradient was recorded.
        gradient: `sum_t seed_t g_t`, one tensor per variable.
        ids: the episode of each step, `[M]`.
        weights: `w`, `[M]`.
        shares: `omega`, `[N]`.
        episodes: N.
    """

    outer: tf.GradientTape
    log_prob: Callable[[], tf.Tensor]
    values: list[tuple[keras.Variable, tf.Tensor]]
    log_probs: tf.Tensor
    seed: tf.Tensor
    gradient: list[tf.Tensor]
    ids: tf.Tensor
    weights: tf.Tensor
    shares: tf.Tensor
    episodes: int | tf.Tensor

    def over_episode(self, x: tf.Tensor) -> tf.Tensor:
        """The sum of `x` over the whole episode, at each step: `[M] -> [M]`."""
        return tf.gather(tf.math.unsorted_segment_sum(x, self.ids, self.episodes), self.ids)

    def cumulative(self, x: tf.Tensor) -> tf.Tensor:
        """The inclusive cumulative sum of `x` within each episode: `[M] -> [M]`.

        Taken over the episodes as rows of a padded array: over the flat array it would cancel between episodes.
        """
        # Gathered, not scattered: TensorFlow vectorises no scatter.
        padded = tf.gather(tf.concat([x, tf.zeros([1], x.dtype)], 0), self.grid)
        return tf.gather_nd(tf.cumsum(padded, axis=1), self.places)

    @functools.cached_property
    def places(self) -> tf.Tensor:
        """Row and column of each step in an array with one row per episode, `[M, 2]`."""
        steps = tf.range(tf.size(self.ids))
        first = tf.gather(tf.math.unsorted_segment_min(steps, self.ids, self.episodes), self.ids)
        return tf.stack([self.ids, steps - first], 1)

    @functools.cached_property
    def grid(self) -> tf.Tensor:
        """The step at each place of that array, `[N, T]`; M where there is none."""
        count = tf.size(self.ids)
        shape = tf.stack([self.episodes, tf.reduce_max(self.places[:, 1]) + 1])
        return tf.tensor_scatter_nd_update(tf.fill(shape, count), self.places, tf.range(count))


__all__ = ["ESTIMATORS", "ReturnHessian", "ScoreFunctionHessian"]
