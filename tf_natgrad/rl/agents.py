"""Natural policy gradient and trust region policy optimization."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad.linearize import ensure_built
from tf_natgrad.rl.advantages import check_gae_lambda, generalized_advantages
from tf_natgrad.rl.agent_log import Record, logs
from tf_natgrad.rl.checkpoint import damaged, read_checkpoint, write_checkpoint
from tf_natgrad.rl.critic import Critic
from tf_natgrad.rl.environments import check_spaces, vector_environment
from tf_natgrad.rl.episodes import Episodes, check_gamma
from tf_natgrad.rl.networks import default_policy, default_value_network
from tf_natgrad.rl.normalization import ObservationNormalization, RewardScaling, RunningMoments
from tf_natgrad.rl.policies import Policy, check_policy
from tf_natgrad.rl.policy_step import PolicyStep
from tf_natgrad.rl.rollouts import collect, rollout
from tf_natgrad.step import LineSearch

# What is added to the standard deviation of advantages before they are divided by it.
_EPSILON = 1e-8
# What a seed of the agent is combined with, so that its streams are independent of each other.
_ROLLOUT, _SHUFFLES = 1, 2
# Least value of each number, whether it is excluded, and whether only integers are allowed.
_RANGES: dict[str, tuple[float, bool, bool]] = {
    "n_envs": (1, False, True),
    "n_steps": (1, False, True),
    "batch_size": (1, False, True),
    "cg_max_steps": (1, False, True),
    "n_critic_updates": (1, False, True),
    "sub_sampling_factor": (1, False, True),
    "line_search_max_iter": (1, False, True),
    "seed": (0, False, True),
    "learning_rate": (0.0, True, False),
    "target_kl": (0.0, True, False),
    "cg_damping": (0.0, False, False),
    "line_search_shrinking_factor": (0.0, True, False),
}


class NaturalPolicyGradient:
    """Natural policy gradient: steps along `F^-1 grad`, as long as a KL divergence in the quadratic model allows.

    Each update runs the policy for `n_steps` in each of `n_envs` environments, all reset at its beginning; estimates
    advantages by GAE; moves the policy by `sqrt(2 target_kl / x^T F x) x`, where `x` solves `(F + cg_damping I) x = g`
    by conjugate gradients, `g` is the gradient of the surrogate `mean_t pi(a_t|s_t) / pi_old(a_t|s_t) A_t` and `F` the
    Fisher of the policy at the observations; and fits the value function to `A_t + V(s_t)`. To second order the step
    has `KL(old || new) = target_kl`. It is taken whole, without a search; where the surrogate would not rise, or
    something is not finite, it is left. `TRPO` also keeps the measured divergence within `target_kl`.

    Since an update starts with fresh episodes, no state is seen that lies more than `n_steps` steps from a start: let
    `n_steps` be at least as large as an episode is long.

    The same seed gives the same numbers on the same machine, also if training is interrupted, saved and resumed, where
    `reset(seed=...)` determines all that an environment does (a wrapper that normalises observations keeps more).

    >>> agent = NaturalPolicyGradient("CartPole-v1", n_steps=64, n_envs=2, seed=0)
    >>> agent.learn(total_steps=256, progress=False).updates
    2
    >>> agent.evaluate(episodes=2, seed=1).shape
    (2,)

    Args:
        env: the name of an environment, or a function without arguments that makes one. Observations are a Box,
            actions Discrete or a Box `[D]`.
        learning_rate: of Adam, for the value function.
        n_steps: of each environment in an update.
        batch_size: of the regression of the value function.
        gamma: the discount factor, in [0, 1].
        cg_max_steps: iterations of conjugate gradients at most.
        cg_damping: added to the diagonal of the Fisher.
        n_critic_updates: epochs of the regression in an update.
        gae_lambda: of the advantages: from 0 (TD errors) to 1 (returns).
        normalize_advantage: whether advantages are shifted to mean 0 and divided by their standard deviation.
        target_kl: of one update, in nats, mean over the observations.
        sub_sampling_factor: k, where the Fisher uses each k-th observation only.
        n_envs: environments side by side, in one process. The policy acts for all of them at once: four with a quarter
            of `n_steps` are faster than one.
        normalize_observations: whether the networks see observations less their running mean, over their running
            standard deviation; see `ObservationNormalization`.
        normalize_rewards: whether rewards are divided by the running standard deviation of discounted returns.
        policy: a `Policy`; by default two tanh layers of 64 units, with weights from `seed`. It is trained in place.
        value_network: a Keras model from observations to `[M, 1]`; by default of the same kind.
        seed: of weights, environments, actions and shuffles; a non-negative integer.

    Raises:
        ValueError: if an argument is out of range, or the environment's spaces are others than these, or a network
            does not fit them.
        TypeError: if an argument is of the wrong type.
        ImportError: if Gymnasium is not installed.

    References:
        S. Kakade, "A natural policy gradient", NIPS (2001), section 3.
        A. Rajeswaran, K. Lowrey, E. Todorov, S. Kakade, "Towards generalization and simplicity in continuous control",
        NIPS (2017), equation 6: the length of the step.
    """

    _hyperparameters: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "n_steps",
        "batch_size",
        "gamma",
        "cg_max_steps",
        "cg_damping",
        "n_critic_updates",
        "gae_lambda",
        "normalize_advantage",
        "target_kl",
        "sub_sampling_factor",
        "n_envs",
        "normalize_observations",
        "normalize_rewards",
        "seed",
    )

    def __init__(
        self,
        env: str | Callable[[], Any],
        *,
        learning_rate: float = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        normalize_advantage: bool = True,
        target_kl: float = 0.01,
        sub_sampling_factor: int = 1,
        n_envs: int = 1,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        policy: Policy | None = None,
        value_network: keras.Model | None = None,
        seed: int = 0,
    ):
        given = locals()
        self._set({name: given[name] for name in NaturalPolicyGradient._hyperparameters})
        if self.sub_sampling_factor > self.n_steps * self.n_envs:
            raise ValueError(
                _checks.message(
                    "sub_sampling_factor",
                    self.sub_sampling_factor,
                    f"at most {self.n_steps * self.n_envs}, the observations of an update",
                )
            )
        self._make(env, policy, value_network)

    def _set(self, values: dict[str, Any]) -> None:
        """Checks hyper-parameters and keeps them as attributes."""
        for name, value in values.items():
            if name in _RANGES:
                minimum, exclusive, integer = _RANGES[name]
                _checks.check_number(name, value, minimum=minimum, exclusive=exclusive, integer=integer)
                value = int(value) if integer else float(value)
                if name == "line_search_shrinking_factor" and value >= 1.0:
                    raise ValueError(_checks.message(name, value, "a number below 1"))
            elif name == "gamma":
                check_gamma(value)
                value = float(value)
            elif name == "gae_lambda":
                check_gae_lambda(value)
                value = float(value)
            else:
                _checks.check_flag(name, value)
                value = bool(value)
            setattr(self, name, value)

    def _make(self, env: Any, policy: Policy | None, value_network: keras.Model | None) -> None:
        """Networks and compiled functions, for the spaces of the environment."""
        self._env = env
        if not isinstance(env, str | type) and (not callable(env) or hasattr(env, "step")):
            raise ValueError(
                _checks.message(
                    "env",
                    type(env).__name__,
                    "the name of an environment, or a function that makes one",
                    "Pass `env=lambda: gymnasium.make(...)`: an agent runs several at a time.",
                )
            )
        with vector_environment(env, 1) as vector:
            self.observation_space, self.action_space = vector.single_observation_space, vector.single_action_space
        check_spaces(self.observation_space, self.action_space)
        options = {"normalized": self.normalize_observations, "seed": self.seed}
        if policy is None:
            policy = default_policy(self.observation_space, self.action_space, **options)
        check_policy(policy)
        policy.check_action_space(self.action_space)
        if value_network is None:
            value_network = default_value_network(self.observation_space, **options)
        _checks.check_model("value_network", value_network)
        for name, network in (("policy", policy), ("value_network", value_network)):
            self._fit_to_observations(name, network)
        self.policy = policy
        self.critic = Critic(value_network, self.learning_rate, self.batch_size, self.n_critic_updates)
        self.steps = 0
        self.updates = 0
        self.log: list[dict[str, Any]] = []
        self._observation_moments = RunningMoments(self.observation_space.shape)
        self._reward_scaling = RewardScaling(self.gamma)
        self._policy_step = PolicyStep(
            policy,
            target_kl=self.target_kl,
            max_iterations=self.cg_max_steps,
            damping=self.cg_damping,
            sub_sampling_factor=self.sub_sampling_factor,
            line_search=self._line_search(),
            max_kl=self._max_kl(),
        )

    def _line_search(self) -> LineSearch:
        """What decides on a step."""
        return LineSearch(max_backtracks=0)

    def _max_kl(self) -> float | None:
        """The limit of the measured KL divergence."""
        return None

    def _fit_to_observations(self, name: str, network: keras.Model) -> None:
        observation = np.zeros([1, *self.observation_space.shape], network.compute_dtype)
        try:
            ensure_built(network, tf.constant(observation))
            network(observation)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(
                _checks.message(
                    name,
                    f"a network that does not take observations of shape {self.observation_space.shape} ({error})",
                    "one that takes a batch of them",
                )
            ) from error
        if self.normalize_observations and not _normalizations(network):
            raise ValueError(
                _checks.message(
                    name,
                    "a network without `rl.ObservationNormalization`, together with `normalize_observations=True`",
                    "one with that layer",
                    "Put it first: `keras.Sequential([keras.Input(shape), rl.ObservationNormalization(), ...])`.",
                )
            )

    def learn(
        self,
        total_steps: int,
        *,
        callbacks: Callable[[Any, Record], Any] | Sequence[Callable[[Any, Record], Any]] = (),
        progress: bool = True,
        log_path: str | os.PathLike | None = None,
        tensorboard: str | os.PathLike | None = None,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_every: int = 10,
    ) -> NaturalPolicyGradient:
        """Trains until the agent has made `total_steps` environment steps in its life.

        Updates are whole: it stops at the first multiple of `n_steps * n_envs` that is not less. Called again with the
        same number it does nothing, and an agent that was saved, loaded and called with it ends as an uninterrupted
        one does, bit for bit.

        An exception, such as a keyboard interrupt, leaves the agent as it was after the last complete update.

        Args:
            total_steps: of all environments together, those of earlier calls included.
            callbacks: one or several functions, called with `(agent, record)` after each update; see `Record`. One that
                returns `False` ends the training.
            progress: whether to show a progress bar.
            log_path: of a CSV file with a line for each update of the agent's life; it is replaced, then grows.
            tensorboard: a folder for TensorBoard's event files.
            checkpoint: where to `save` the agent every `checkpoint_every` updates, and at the end. Where that fails, a
                warning is logged once.
            checkpoint_every: see above.

        Returns:
            The agent.

        Raises:
            ValueError: if a reward or an observation is not finite, or a number is out of range.
        """
        _checks.check_number("total_steps", total_steps, minimum=0, integer=True)
        _checks.check_number("checkpoint_every", checkpoint_every, minimum=1, integer=True)
        _checks.check_flag("progress", progress)
        for name, path in (("log_path", log_path), ("tensorboard", tensorboard), ("checkpoint", checkpoint)):
            if path is not None:
                _checks.check_path(name, path)
        expected = "one or several functions of `(agent, record)`"
        callbacks = [callbacks] if callable(callbacks) else _checks.as_list("callbacks", callbacks, expected)
        for callback in callbacks:
            _checks.check_instance("callbacks", callback, Callable, expected)
        saved_at = self.updates
        with (
            vector_environment(self._env, self.n_envs) as env,
            logs(
                self.log,
                total=total_steps,
                done=self.steps,
                progress=progress,
                log_path=log_path,
                tensorboard=tensorboard,
            ) as written,
        ):
            going_on = True
            while going_on and self.steps < total_steps:
                record = self._update(env)
                for log in written:
                    log.write(record)
                if checkpoint is not None and self.updates % checkpoint_every == 0:
                    self._try_to_save(checkpoint)
                    saved_at = self.updates
                # Each is called, even if another one ends the training.
                going_on = all([callback(self, record) is not False for callback in callbacks])
        if checkpoint is not None and (saved_at != self.updates or not os.path.exists(checkpoint)):
            self._try_to_save(checkpoint)
        return self

    def _try_to_save(self, path: str | os.PathLike) -> None:
        """A checkpoint that cannot be written is no reason to lose the training."""
        try:
            self.save(path)
        except OSError as error:
            _checks.log_once(f"The checkpoint {os.fspath(path)!r} could not be written ({error}); training goes on")

    def _update(self, env: Any) -> Record:
        """One update, or none: where it fails halfway, all is put back."""
        before = self._arrays(), self.steps, self.updates, len(self.log)
        try:
            began = time.perf_counter()
            numbers = self._improve(env)
            steps = self.steps + self.n_steps * self.n_envs
            speed = (steps - self.steps) / (time.perf_counter() - began)
            record = Record(steps=steps, updates=self.updates + 1, **numbers, steps_per_second=speed)
            self.steps, self.updates = record.steps, record.updates
            self.log.append(record._asdict())
        except BaseException:
            arrays, self.steps, self.updates, rows = before
            self._restore(arrays)
            del self.log[rows:]
            raise
        return record

    def _improve(self, env: Any) -> dict[str, Any]:
        """Rollout, advantages, policy, value function, moments."""
        run = rollout(env, self.policy, self.n_steps, seed=self._seed(_ROLLOUT))
        observations = run.observations.reshape(-1, *run.observations.shape[2:])
        rewards = self._reward_scaling(run.rewards, run.done) if self.normalize_rewards else run.rewards
        values = self.critic.values(observations)
        next_values = self.critic.values(run.next_observations.reshape(observations.shape))
        advantages = generalized_advantages(
            rewards,
            values.reshape(rewards.shape),
            next_values.reshape(rewards.shape),
            run.terminated,
            run.truncated,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
        ).reshape(-1)
        targets = advantages + values
        scaled = advantages
        if self.normalize_advantage:
            scaled = (advantages - advantages.mean()) / (advantages.std() + _EPSILON)
        actions = run.actions.reshape(-1, *run.actions.shape[2:])
        step = self._policy_step(observations, actions, scaled)
        value_loss = self.critic.fit(observations, targets, self._seed_words(_SHUFFLES))
        if self.normalize_observations:
            # Only now: within an update, the policy that acted is the one that is improved.
            self._observation_moments.update(run.observations.reshape(observations.shape))
            self._set_moments()
        returns = run.finished_returns()
        spread = targets.var()
        return {
            "episodes": len(returns),
            "mean_return": float(returns.mean()) if len(returns) else float("nan"),
            **step._asdict(),
            "explained_variance": float(1.0 - advantages.var() / spread) if spread else float("nan"),
            "value_loss": value_loss,
        }

    def _seed_words(self, stream: int) -> np.ndarray:
        """Two words for this update and purpose."""
        return (np.random.SeedSequence([self.seed, self.updates, stream]).generate_state(2) >> 1).astype(np.int32)

    def _seed(self, stream: int) -> int:
        return int(self._seed_words(stream)[0])

    def _set_moments(self) -> None:
        for layer in (*_normalizations(self.policy), *_normalizations(self.critic.network)):
            layer.set_moments(self._observation_moments)

    def predict(self, observation: Any, deterministic: bool = True, seed: int | None = None) -> np.ndarray:
        """Actions for observations as the environment gives them; the agent is not changed.

        Args:
            observation: one observation, or a batch `[M, ...]`.
            deterministic: whether to take the most probable action instead of a sample.
            seed: of the sample; by default another one each time.

        Returns:
            One action, or `[M, ...]`; clipped to the Box.

        Raises:
            ValueError: if the shape is neither that of an observation nor that of a batch.
        """
        _checks.check_flag("deterministic", deterministic)
        if seed is not None:
            _checks.check_seed("seed", seed)
        observation = _checks.as_array("observation", observation).astype(self.policy.compute_dtype)
        shape = self.observation_space.shape
        single = observation.shape == shape
        if not np.isfinite(observation).all():
            raise ValueError(_checks.message("observation", "NaN or infinite values", "finite numbers"))
        if not single and (observation.shape[1:] != shape or not observation.size):
            raise ValueError(
                _checks.message("observation", f"shape {observation.shape}", f"shape {shape}, or a batch of them")
            )
        batch = observation[None] if single else observation
        if deterministic:
            actions = self.policy.distribution(batch).mode().numpy()
        else:
            words = np.random.SeedSequence(seed).generate_state(2) >> 1
            actions = self.policy.sample(batch, words.astype(np.int32)).numpy()
        if hasattr(self.action_space, "low"):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        return actions[0] if single else actions

    def evaluate(self, episodes: int = 30, deterministic: bool = True, seed: int = 1) -> np.ndarray:
        """Undiscounted returns of whole episodes in environments of their own; the agent is not changed.

        Args:
            episodes: how many.
            deterministic: whether to take the most probable actions instead of samples.
            seed: of environments and actions: the same seed gives the same returns. For independent samples take seeds
                at least 16 apart; see `collect`.

        Returns:
            `[episodes]`, float64.
        """
        return self.collect(episodes, deterministic=deterministic, seed=seed).returns(1.0)

    def collect(self, episodes: int, deterministic: bool = False, seed: int = 0) -> Episodes:
        """Whole episodes in environments of their own, as `rl.collect` gives them; the agent is not changed.

        Args:
            episodes: how many.
            deterministic: whether to take the most probable actions instead of samples.
            seed: of environments and actions.

        Returns:
            `Episodes`, with rewards as the environment gave them.
        """
        return collect(self._env, self.policy, episodes, seed=seed, deterministic=deterministic)

    def save(self, path: str | os.PathLike) -> None:
        """Writes all of the agent into one file: `load` goes on with the same numbers.

        The file is written beside its place and renamed: a kill leaves the previous one intact.

        Args:
            path: of the file.

        Raises:
            TypeError: if `path` is no path.
        """
        _checks.check_path("path", path)
        description = {
            "class": type(self).__name__,
            "env": self._env if isinstance(self._env, str) else None,
            "hyperparameters": {name: getattr(self, name) for name in self._hyperparameters},
            "policy": keras.saving.serialize_keras_object(self.policy),
            "value_network": keras.saving.serialize_keras_object(self.critic.network),
            "steps": self.steps,
            "updates": self.updates,
            "log": self.log,
        }
        write_checkpoint(path, description, self._arrays())

    @classmethod
    def load(cls, path: str | os.PathLike, env: str | Callable[[], Any] | None = None) -> NaturalPolicyGradient:
        """The agent that `save` wrote.

        Args:
            path: of the file.
            env: where it goes on; needed where the agent was made with a function.

        Returns:
            An agent of this class.

        Raises:
            ValueError: if the file is damaged, is another agent's, or needs `env`.
            FileNotFoundError: if there is none.
        """
        _checks.check_path("path", path)
        description, arrays = read_checkpoint(path)
        if description.get("class") != cls.__name__:
            raise ValueError(
                _checks.message(
                    "path", f"a checkpoint of {description.get('class')}", f"one of {cls.__name__}", "Use its `load`."
                )
            )
        env = description["env"] if env is None else env
        if env is None:
            raise ValueError(
                _checks.message(
                    "env",
                    "None for an agent that was made with a function",
                    "an environment",
                    "Pass the function to `load`: it is not in the checkpoint.",
                )
            )
        networks = {
            name: keras.saving.deserialize_keras_object(description[name]) for name in ("policy", "value_network")
        }
        agent = cls(env, **networks, **description["hyperparameters"])
        try:
            agent._restore(arrays)
        except (KeyError, ValueError) as error:
            raise damaged(path, error) from error
        agent.steps, agent.updates = description["steps"], description["updates"]
        agent.log = [Record(**row)._asdict() for row in description["log"]]
        return agent

    def _variables(self) -> dict[str, keras.Variable]:
        """All that training changes in the networks and in Adam, by name."""
        groups = {"policy": self.policy.variables, "critic": self.critic.variables}
        return {f"{group}/{i}": v for group, variables in groups.items() for i, v in enumerate(variables)}

    def _moments(self) -> dict[str, RunningMoments]:
        return {"observations": self._observation_moments, "returns": self._reward_scaling.moments}

    def _arrays(self) -> dict[str, np.ndarray]:
        """All that training changes, by name."""
        arrays = {name: np.array(variable) for name, variable in self._variables().items()}
        for group, moments in self._moments().items():
            arrays |= {f"{group}/{name}": np.array(array) for name, array in moments.arrays().items()}
        return arrays

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        for name, variable in self._variables().items():
            variable.assign(arrays[name])
        for group, moments in self._moments().items():
            moments.restore({name: arrays[f"{group}/{name}"] for name in moments.arrays()})


class TRPO(NaturalPolicyGradient):
    """Trust region policy optimization: natural policy gradient with a line search.

    The step of `NaturalPolicyGradient` is shortened until the surrogate rises and the measured `KL(old || new)`, mean
    over all observations of the rollout, is at most `target_kl`. If no length will do, the weights stay bit for bit.

    >>> agent = TRPO("CartPole-v1", n_steps=64, n_envs=2, seed=0)
    >>> agent.learn(total_steps=256, progress=False).log[-1]["kl"] <= 0.01
    True
    >>> agent.predict([0.0, 0.0, 0.0, 0.0]).shape
    ()

    Args:
        env: see `NaturalPolicyGradient`.
        line_search_shrinking_factor: what the step is multiplied with to shorten it, below 1.
        line_search_max_iter: lengths tried at most.
        **options: all other arguments of `NaturalPolicyGradient`.

    Raises:
        ValueError: if an argument is out of range; see `NaturalPolicyGradient`.

    References:
        J. Schulman, S. Levine, P. Moritz, M. Jordan, P. Abbeel, "Trust region policy optimization", ICML (2015),
        section 6 and appendix C.
    """

    _hyperparameters: ClassVar[tuple[str, ...]] = (
        *NaturalPolicyGradient._hyperparameters,
        "line_search_shrinking_factor",
        "line_search_max_iter",
    )

    def __init__(
        self,
        env: str | Callable[[], Any],
        *,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        **options: Any,
    ):
        self._set(
            {
                "line_search_shrinking_factor": line_search_shrinking_factor,
                "line_search_max_iter": line_search_max_iter,
            }
        )
        super().__init__(env, **options)

    def _line_search(self) -> LineSearch:
        return LineSearch(max_backtracks=self.line_search_max_iter - 1, shrink=self.line_search_shrinking_factor)

    def _max_kl(self) -> float:
        return self.target_kl


def _normalizations(network: keras.Model) -> list[ObservationNormalization]:
    return [layer for layer in _keras.all_layers(network) if isinstance(layer, ObservationNormalization)]


__all__ = ["TRPO", "NaturalPolicyGradient"]
