"""Collects whole episodes, or a fixed number of steps, from Gymnasium environments."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._progress import progress_bar
from tf_natgrad.rl.environments import final_observations_kept, vector_environment
from tf_natgrad.rl.episodes import Episodes
from tf_natgrad.rl.policies import Policy, check_policy

_NUM_ENVS = 16
# Seeds of actions are 32-bit integers, and the environments count on from theirs.
_LARGEST_SEED = 2**31 - 1 - _NUM_ENVS


def collect(
    env: Any,
    policy: Policy,
    num_episodes: int,
    *,
    seed: int = 0,
    deterministic: bool = False,
    progress: bool = False,
) -> Episodes:
    """Runs a policy for whole episodes.

    Each environment of the vector runs the same share of the episodes: taking the episodes that end first would favour
    short ones. Actions are recorded as they were sampled; they are clipped to the box for the environment only.
    Truncation and termination are recorded separately. Observations are copied, so a vector environment may have
    `copy=False`, and an environment may return the same array at each step; only within an `AsyncVectorEnv` such an
    environment must copy its final observations itself.

    >>> import keras, tf_natgrad.rl as rl
    >>> policy = rl.CategoricalPolicy(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    >>> rl.collect("CartPole-v1", policy, num_episodes=3, seed=0).num_episodes
    3

    Args:
        env: the name of an environment, a function that makes one, or a vector environment with `autoreset_mode`
            SAME_STEP.
        policy: a `CategoricalPolicy` or `GaussianPolicy`.
        num_episodes: the number of episodes, at least 1.
        seed: of environments and actions, a non-negative integer: the same seed gives the same episodes. Environment i
            has the seed `seed + i`: for independent samples use seeds at least 16 apart.
        deterministic: whether to take the most probable action instead of a sample.
        progress: whether to show a progress bar.

    Returns:
        `Episodes`.

    Raises:
        ValueError: if the policy does not fit the environment's actions, or the environment resets in a step of its
            own (NEXT_STEP), whose transitions are not real ones.
        TypeError: if the policy is a plain Keras model.
        ImportError: if Gymnasium is not installed.
    """
    check_policy(policy)
    _checks.check_number("num_episodes", num_episodes, minimum=1, integer=True)
    _checks.check_number("seed", seed, minimum=0, integer=True)
    _checks.check_flag("deterministic", deterministic)
    _checks.check_flag("progress", progress)
    if seed > _LARGEST_SEED:
        raise ValueError(_checks.message("seed", seed, f"at most {_LARGEST_SEED}"))
    with vector_environment(env, min(num_episodes, _NUM_ENVS)) as vector, final_observations_kept(vector):
        policy.check_action_space(vector.single_action_space)
        return _run(vector, policy, num_episodes, seed, deterministic, progress)


class Rollout(NamedTuple):
    """T steps of each of E environments, one after the other.

    Attributes:
        observations: `[T, E, ...]`, what the policy saw before each action.
        actions: `[T, E]` or `[T, E, D]`, as they were sampled (not clipped).
        rewards: `[T, E]`.
        next_observations: `[T, E, ...]`, what each step led to; where an episode ended, its true last observation.
        terminated: `[T, E]`, whether the step reached a terminal state.
        truncated: `[T, E]`, whether the episode was cut off after the step.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    @property
    def done(self) -> np.ndarray:
        """Whether an episode ended with the step, `[T, E]`."""
        return self.terminated | self.truncated

    def finished_returns(self) -> np.ndarray:
        """The undiscounted returns of the episodes that ended within the rollout, in order of their ends."""
        totals = np.cumsum(self.rewards, 0)
        returns, before = [], np.zeros(totals.shape[1])
        for t, i in zip(*np.nonzero(self.done), strict=True):
            returns.append(totals[t, i] - before[i])
            before[i] = totals[t, i]
        return np.array(returns)


def rollout(env: Any, policy: Policy, num_steps: int, *, seed: int = 0) -> Rollout:
    """Runs a policy for a fixed number of steps in each environment, from a fresh start.

    >>> import keras, tf_natgrad.rl as rl
    >>> policy = rl.CategoricalPolicy(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    >>> with vector_environment("CartPole-v1", 2) as env:
    ...     rollout(env, policy, 5).observations.shape
    (5, 2, 4)

    Args:
        env: a vector environment with `autoreset_mode` SAME_STEP.
        policy: whose actions are sampled.
        num_steps: T, at least 1.
        seed: of environments and actions, a non-negative integer: the same seed gives the same rollout.

    Returns:
        A `Rollout`.

    Raises:
        ValueError: if a reward or an observation is not finite.
    """
    # Three independent streams of one seed: environments, and the two words of the actions' seeds.
    words = np.random.SeedSequence(seed).generate_state(2 * num_steps + 1) >> 1
    seeds = words[1:].astype(np.int32).reshape(num_steps, 2)
    fields: list[np.ndarray] = []
    steps = _transitions(env, policy, int(words[0]), seeds, deterministic=False)
    with final_observations_kept(env):
        for t, step in enumerate(steps):
            values = [np.asarray(getattr(step, name)) for name in Rollout._fields]
            if not fields:
                fields = [np.empty((num_steps, *value.shape), value.dtype) for value in values]
            for field, value in zip(fields, values, strict=True):
                field[t] = value
    result = Rollout(*fields)
    for name in ("rewards", "observations", "next_observations"):
        if not np.all(np.isfinite(getattr(result, name))):
            raise ValueError(
                _checks.message("env", f"{name} with NaN or infinite values", "finite ones", "Look at the environment.")
            )
    return result


class _Transition(NamedTuple):
    """One step of all environments; arrays `[E, ...]`, see `Rollout`."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def _transitions(
    env: Any, policy: Policy, reset_seed: int, seeds: Iterable[Any], deterministic: bool
) -> Iterator[_Transition]:
    """One step of all environments for each seed of the actions, from a fresh start."""
    dtype, space = policy.compute_dtype, env.single_action_space
    bounds = (space.low, space.high) if hasattr(space, "low") else None
    # Copied as they arrive: the environment may write the next ones into the same array.
    observations = np.array(env.reset(seed=reset_seed)[0], dtype)
    act = _acting(policy, deterministic, observations.shape)
    for seed in seeds:
        actions = act(observations, seed)
        taken = actions if bounds is None else np.clip(actions, *bounds)
        following, rewards, terminated, truncated, info = env.step(taken)
        following = led_to = np.array(following, dtype)
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            led_to = following.copy()
            for i in ended:
                led_to[i] = info["final_obs"][i]
        yield _Transition(observations, actions, rewards, led_to, terminated, truncated)
        observations = following


def _acting(policy: Policy, deterministic: bool, shape: tuple[int, ...]) -> Callable[[np.ndarray, Any], np.ndarray]:
    """The compiled choice of actions for observations of one shape, made once and kept with the policy."""
    functions = _keras.kept_with(policy, "_tf_natgrad_acting", lambda: _keras.Untracked({})).value
    key = deterministic, shape
    if key not in functions:

        def choice(observations: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            if deterministic:
                return policy.distribution(observations).mode()
            return policy.sample(observations, seed)

        # Called by itself it takes half the time that `tf.function` does, which would look at each argument anew.
        functions[key] = tf.function(choice, autograph=False).get_concrete_function(
            tf.TensorSpec(shape, policy.compute_dtype), tf.TensorSpec([2], tf.int32)
        )
    function = functions[key]
    return lambda observations, seed: function(tf.constant(observations), tf.constant(seed)).numpy()


def _run(env: Any, policy: Policy, num_episodes: int, seed: int, deterministic: bool, progress: bool) -> Episodes:
    quota = np.full(env.num_envs, num_episodes // env.num_envs) + (
        np.arange(env.num_envs) < num_episodes % env.num_envs
    )
    running: list[list[tuple]] = [[] for _ in range(env.num_envs)]
    finished: list[list[tuple]] = [[] for _ in range(env.num_envs)]
    seeds = (np.array([seed, step], np.int32) for step in itertools.count())
    with progress_bar(total=num_episodes, disable=not progress, leave=False, unit="episode") as bar:
        for step in _transitions(env, policy, seed, seeds, deterministic):
            for i in range(env.num_envs):
                if len(finished[i]) == quota[i]:
                    continue
                running[i].append((step.observations[i], step.actions[i], step.rewards[i]))
                if step.terminated[i] or step.truncated[i]:
                    finished[i].append((running[i], bool(step.terminated[i]), step.next_observations[i]))
                    running[i] = []
                    bar.update()
            if all(len(done) == wanted for done, wanted in zip(finished, quota, strict=True)):
                break
    # Round by round over the environments, so that the first half is no other sample than the second.
    ordered = [finished[i][r] for r in range(int(quota.max())) for i in range(env.num_envs) if r < quota[i]]
    steps = [one for episode, _, _ in ordered for one in episode]
    return Episodes(
        observations=np.stack([o for o, _, _ in steps]),
        actions=np.stack([a for _, a, _ in steps]),
        rewards=np.array([r for _, _, r in steps], np.float64),
        lengths=np.array([len(episode) for episode, _, _ in ordered]),
        terminated=np.array([ended for _, ended, _ in ordered]),
        final_observations=np.stack([final for _, _, final in ordered]),
    )


__all__ = ["Rollout", "collect", "rollout"]
