"""Natural policy gradient: an agent that learns, acts, and is saved."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from tf_natgrad import _checks
from tf_natgrad.rl.agents.checkpoint import damaged, read_agent, write_agent
from tf_natgrad.rl.agents.learner import Learner
from tf_natgrad.rl.agents.log import Record, logs
from tf_natgrad.rl.agents.settings import FIELDS, WHOLE_STEPS, Preset
from tf_natgrad.rl.environments import check_maker, check_spaces, vector_environment
from tf_natgrad.rl.episodes import Episodes
from tf_natgrad.rl.networks import agent_networks
from tf_natgrad.rl.policies import Policy
from tf_natgrad.rl.rollouts import collect

Callback = Callable[[Any, Record], Any]


class NaturalPolicyGradient:
    """Natural policy gradient: steps along `F^-1 grad` whose length a KL divergence in the quadratic model sets.

    Each update runs the policy for `n_steps` in each of `n_envs` environments, all reset at its beginning; estimates
    advantages by GAE; moves the policy by `sqrt(2 target_kl / x^T F x) x`, where `x` solves `(F + cg_damping I) x = g`
    by conjugate gradients, `g` is the gradient of the surrogate `mean_t pi(a_t|s_t) / pi_old(a_t|s_t) A_t` and `F` the
    Fisher of the policy at the observations; and fits the value function to `A_t + V(s_t)`. To second order the step
    has `KL(old || new) = target_kl`. It is taken whole, without a search; it is rejected if the surrogate would not
    rise, or something is not finite. `TRPO` also keeps the measured divergence within `target_kl`.

    Since an update starts with fresh episodes, it sees no state that is more than `n_steps` steps from a start: choose
    `n_steps` at least as large as the length of an episode.

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
        policy: a `Policy`; by default two tanh layers of 64 units, with weights from `seed`. It is trained in place.
        value_network: a Keras model from observations to `[M, 1]`; by default of the same kind.
        learning_rate: of Adam, for the value function (default 1e-3).
        n_steps: of each environment in an update (2048).
        batch_size: of the regression of the value function (128).
        gamma: the discount factor, in [0, 1] (0.99).
        cg_max_steps: the largest number of conjugate gradient iterations (15).
        cg_damping: the number added to the diagonal of the Fisher matrix (0.1).
        n_critic_updates: epochs of the regression in an update (10).
        gae_lambda: of the advantages: from 0 (TD errors) to 1 (returns) (0.95).
        normalize_advantage: whether advantages are shifted to mean 0 and divided by their standard deviation (True).
        target_kl: of one update, in nats, mean over the observations (0.01).
        sub_sampling_factor: k, where the Fisher matrix uses each k-th observation only (1).
        n_envs: environments side by side, in one process (1). The policy acts for all of them at once: four with a
            quarter of `n_steps` are faster than one.
        normalize_observations: whether the networks see observations less their running mean, over their running
            standard deviation (False); see `ObservationNormalization`.
        normalize_rewards: whether rewards are divided by the running standard deviation of discounted returns (False).
        seed: of weights, environments, actions and shuffles; a non-negative integer (0).
        **settings: the arguments from `learning_rate` to `seed`, which `TrustRegionSettings` checks.

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

    _preset: ClassVar[Preset] = WHOLE_STEPS

    @WHOLE_STEPS.signed
    def __init__(
        self,
        env: str | Callable[[], Any],
        *,
        policy: Policy | None = None,
        value_network: keras.Model | None = None,
        **settings: Any,
    ):
        self.settings = self._preset.settings(settings)
        check_maker(env)
        self._env = env
        with vector_environment(env, 1) as vector:
            self.observation_space, self.action_space = vector.single_observation_space, vector.single_action_space
        check_spaces(self.observation_space, self.action_space)
        self.policy, value_network = agent_networks(
            self.observation_space,
            self.action_space,
            policy,
            value_network,
            normalized=self.settings.normalize_observations,
            seed=self.settings.seed,
        )
        self._learner = Learner(self.policy, value_network, self.settings, self.observation_space.shape)
        self.critic = self._learner.critic
        self.steps = 0
        self.updates = 0
        self.log: list[dict[str, Any]] = []

    def learn(
        self,
        total_steps: int,
        *,
        callbacks: Callback | Sequence[Callback] = (),
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
        callbacks = _as_callbacks(callbacks)
        shown = logs(
            self.log,
            total=total_steps,
            done=self.steps,
            progress=progress,
            log_path=log_path,
            tensorboard=tensorboard,
        )
        saved_at = self.updates
        with vector_environment(self._env, self.settings.n_envs) as env, shown as written:
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
        """Saves, or logs why that failed: it is no reason to lose the training."""
        try:
            self.save(path)
        except OSError as error:
            _checks.log_once(f"The checkpoint {os.fspath(path)!r} could not be written ({error}); training goes on")

    def _update(self, env: Any) -> Record:
        """Makes one update; if it fails halfway, everything is put back."""
        before = self._learner.arrays(), self.steps, self.updates, len(self.log)
        try:
            began = time.perf_counter()
            numbers = self._learner.update(env, self.updates)
            steps = self.steps + self.settings.steps_per_update
            speed = (steps - self.steps) / (time.perf_counter() - began)
            record = Record(steps=steps, updates=self.updates + 1, **numbers, steps_per_second=speed)
            self.steps, self.updates = record.steps, record.updates
            self.log.append(record._asdict())
        except BaseException:
            arrays, self.steps, self.updates, rows = before
            self._learner.restore(arrays)
            del self.log[rows:]
            raise
        return record

    def predict(self, observation: Any, deterministic: bool = True, seed: int | None = None) -> np.ndarray:
        """Chooses actions for observations as the environment gives them; the agent is not changed.

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
        """Computes undiscounted returns of whole episodes in environments of their own; the agent is not changed.

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
        """Runs whole episodes in environments of their own, as `rl.collect` does; the agent is not changed.

        Args:
            episodes: how many.
            deterministic: whether to take the most probable actions instead of samples.
            seed: of environments and actions.

        Returns:
            `Episodes`, with rewards as the environment gave them.
        """
        return collect(self._env, self.policy, episodes, seed=seed, deterministic=deterministic)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the whole agent into one file: `load` goes on with the same numbers.

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
            "hyperparameters": self._preset.chosen(self.settings),
            "steps": self.steps,
            "updates": self.updates,
            "log": self.log,
        }
        networks = {"policy": self.policy, "value_network": self.critic.network}
        write_agent(path, description, networks, self._learner.arrays())

    @classmethod
    def load(cls, path: str | os.PathLike, env: str | Callable[[], Any] | None = None) -> NaturalPolicyGradient:
        """Reads the agent that `save` wrote.

        Args:
            path: of the file.
            env: the environment in which it goes on; needed if the agent was made with a function.

        Returns:
            An agent of this class.

        Raises:
            ValueError: if the file is damaged, is another agent's, or needs `env`.
            FileNotFoundError: if there is none.
        """
        _checks.check_path("path", path)
        description, networks, arrays = read_agent(path, cls.__name__)
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
        agent = cls(env, **networks, **description["hyperparameters"])
        try:
            agent._learner.restore(arrays)
        except (KeyError, ValueError) as error:
            raise damaged(path, error) from error
        agent.steps, agent.updates = description["steps"], description["updates"]
        agent.log = [Record(**row)._asdict() for row in description["log"]]
        return agent


# Each setting is an attribute of the agent, which reads it and cannot be set.
for _name in FIELDS:
    setattr(NaturalPolicyGradient, _name, property(operator.attrgetter(f"settings.{_name}")))


def _as_callbacks(callbacks: Any) -> list[Callback]:
    """The functions that a user gave as one or several, checked."""
    expected = "one or several functions of `(agent, record)`"
    callbacks = [callbacks] if callable(callbacks) else _checks.as_list("callbacks", callbacks, expected)
    for callback in callbacks:
        _checks.check_instance("callbacks", callback, Callable, expected)
    return callbacks


__all__ = ["NaturalPolicyGradient"]
