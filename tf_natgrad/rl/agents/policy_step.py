"""One natural-gradient step of a policy inside a trust region, as one compiled function."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _conditions
from tf_natgrad._typing import TensorLike
from tf_natgrad.distributions import Distribution
from tf_natgrad.operators import Fisher
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.rl.policies import Policy
from tf_natgrad.solvers import ConjugateGradient
from tf_natgrad.steps import LineSearch, Trial, kl_radius


class PolicyStepReport(NamedTuple):
    """Reports a policy step, in Python's numbers.

    Attributes:
        kl_predicted: `1/2 d^T F d` of the step taken, in nats.
        kl: measured `KL(before || now)`, mean over the observations, of the step taken.
        surrogate_predicted: improvement of the surrogate to first order, `g^T d`, of the step taken.
        surrogate: its measured improvement.
        cg_iterations: of conjugate gradients.
        cg_residual: `|(F + damping I) x - g| / |g|` at their end.
        line_search_steps: the number of times the step was shortened.
        accepted: whether the weights moved; if they did not, the first four are 0.
        entropy: of the policy before the step, mean over the observations, in nats.
    """

    kl_predicted: float
    kl: float
    surrogate_predicted: float
    surrogate: float
    cg_iterations: int
    cg_residual: float
    line_search_steps: int
    accepted: bool
    entropy: float


class PolicyStep:
    """Raises the surrogate `L(theta) = mean_t pi_theta(a_t | s_t) / pi_old(a_t | s_t) A_t` by a natural-gradient step.

    `x` solves `(F + damping I) x = grad L` approximately, with `F` the Fisher of the policy at the observations. The
    step is `sqrt(2 target_kl / x^T F x) x`: to second order its `KL(old || new)`, mean over the observations, is
    `target_kl`. Gradient, conjugate gradients and search are one compiled function, traced once for each shape of its
    arguments.

    Args:
        policy: is trained in place.
        target_kl: in nats.
        max_iterations: of conjugate gradients.
        damping: added to the diagonal of `F`.
        sub_sampling_factor: `F` uses each k-th observation only.
        line_search: accepts, shortens or rejects the step.
        max_kl: the limit of the measured KL, or `None` for none.

    References:
        J. Schulman, S. Levine, P. Moritz, M. Jordan, P. Abbeel, "Trust region policy optimization", ICML (2015),
        equation 14 and appendix C.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        target_kl: float,
        max_iterations: int,
        damping: float,
        sub_sampling_factor: int,
        line_search: LineSearch,
        max_kl: float | None,
    ):
        self.policy = policy
        self.target_kl = target_kl
        self.solver = ConjugateGradient(rtol=1e-4, max_iterations=max_iterations)
        self.damping = damping
        self.sub_sampling_factor = sub_sampling_factor
        self.line_search = line_search
        self.max_kl = max_kl
        self.compiled = tf.function(self._step, autograph=False)

    def __call__(self, observations: np.ndarray, actions: np.ndarray, advantages: np.ndarray) -> PolicyStepReport:
        """Takes one step, or leaves the weights exactly as they are.

        Args:
            observations: `[M, ...]`.
            actions: `[M]` or `[M, D]`, as they were sampled at these weights.
            advantages: `[M]`.

        Returns:
            A `PolicyStepReport`.
        """
        dtype = self.policy.compute_dtype
        with _conditions.as_value_error():
            report = self.compiled(np.asarray(observations, dtype), actions, np.asarray(advantages, dtype))
        return PolicyStepReport(*(value.numpy().item() for value in report))

    def _step(self, observations: tf.Tensor, actions: tf.Tensor, advantages: tf.Tensor) -> PolicyStepReport:
        flat = FlatParameters(self.policy.trainable_variables)
        objective = _Surrogate(self.policy, observations, actions, advantages)
        gradient = objective.gradient(flat)
        fisher = Fisher(self.policy, self.policy.distribution_class, observations[:: self.sub_sampling_factor])
        direction, info = self.solver.solve(fisher.damped(self.damping), gradient)
        radius = kl_radius(info.quadratic_form, tf.constant(self.target_kl, tf.float64))
        step = tf.cast(radius, flat.dtype) * direction
        # Without a gradient, or with numbers that are not finite, the step is zero and is rejected.
        step = tf.where(tf.math.is_finite(radius) & _conditions.is_finite(step), step, tf.zeros_like(step))
        objective.slope = tf.tensordot(gradient, step, 1)
        start = flat.read()
        max_kl = None if self.max_kl is None else _not_above(self.max_kl, flat.dtype.as_numpy_dtype)

        def evaluate(scale: tf.Tensor) -> Trial:
            there = zip(flat.variables, flat.unflatten(start - scale * step), strict=True)
            with keras.StatelessScope(state_mapping=list(there)):
                return Trial(objective.loss(), objective.kl(), objective.predicted(scale))

        report = self.line_search.search(evaluate, objective.loss(), max_kl)
        flat.assign(tf.where(report.accepted, start - report.scale * step, start))
        moved = report.accepted & tf.reduce_any(step != 0)

        def if_moved(value: tf.Tensor) -> tf.Tensor:
            return tf.where(moved, value, tf.zeros_like(value))

        return PolicyStepReport(
            kl_predicted=if_moved(self.target_kl * tf.square(report.scale)),
            kl=if_moved(report.kl),
            surrogate_predicted=if_moved(report.predicted_decrease),
            surrogate=if_moved(report.actual_decrease),
            cg_iterations=info.iterations,
            cg_residual=info.relative_residual,
            line_search_steps=report.backtracks,
            accepted=moved,
            entropy=tf.reduce_mean(objective.before.entropy()),
        )


def _not_above(limit: float, dtype: type) -> np.floating:
    """The number closest to a limit in a precision, without being above it."""
    rounded = dtype(limit)
    return rounded if float(rounded) <= limit else np.nextafter(rounded, dtype(0))


class _Surrogate:
    """Computes minus the surrogate for the line search; it keeps the distributions before the step."""

    def __init__(self, policy: Policy, observations: tf.Tensor, actions: TensorLike, advantages: tf.Tensor):
        self.policy = policy
        self.observations = observations
        self.actions = actions
        self.advantages = advantages
        parameters = tf.identity(policy(observations))
        self.before: Distribution = policy.distribution_class(parameters)
        self._log_prob_before = self.before.log_prob(actions)
        self.slope: tf.Tensor | None = None

    def gradient(self, flat: FlatParameters) -> tf.Tensor:
        """Computes the gradient of the loss at the present weights, `[n]`."""
        with tf.GradientTape() as tape:
            loss = self.loss()
        gradients = tape.gradient(loss, flat.tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return flat.flatten([tf.convert_to_tensor(g) for g in gradients])

    def loss(self) -> tf.Tensor:
        log_ratio = self.policy.log_prob(self.observations, self.actions) - self._log_prob_before
        return -tf.reduce_mean(tf.exp(log_ratio) * self.advantages)

    def kl(self) -> tf.Tensor:
        return tf.reduce_mean(self.before.kl(self.policy.distribution(self.observations)))

    def predicted(self, scale: tf.Tensor) -> tf.Tensor:
        return scale * self.slope


__all__ = ["PolicyStep", "PolicyStepReport"]
