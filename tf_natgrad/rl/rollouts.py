"""Whole episodes from Gymnasium environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_natgrad import _checks
from tf_natgrad.rl.episodes import Episodes
from tf_natgrad.rl.policies import Policy, check_policy

_NUM_ENVS = 16


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

    Each environment of the vector runs its share of the episodes, whatever their lengths: taking those that end
    first would favour short ones. Actions are recorded as they were sampled, and clipped to the box only for the
    environment. Truncation and termination are kept apart.

    >>> import keras, tf_natgrad.rl as rl
    >>> policy = rl.CategoricalPolicy(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    >>> rl.collect("CartPole-v1", policy, num_episodes=3, seed=0).num_episodes
    3

    Args:
        env: the name of an environment, or a vector environment with `autoreset_mode` SAME_STEP.
        policy: a `CategoricalPolicy` or `GaussianPolicy`.
        num_episodes: how many episodes, at least 1.
        seed: of environments and actions: the same seed gives the same episodes.
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
    gym = _gymnasium()
    check_policy(policy)
    _checks.check_number("num_episodes", num_episodes, minimum=1, integer=True)
    same_step = gym.vector.AutoresetMode.SAME_STEP
    made = isinstance(env, str)
    if made:
        env = gym.make_vec(
            env,
            num_envs=min(num_episodes, _NUM_ENVS),
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": same_step},
        )
    if not isinstance(env, gym.vector.VectorEnv):
        raise ValueError(
            _checks.message(
                "env",
                type(env).__name__,
                "the name of an environment or a vector environment",
                "Use `gymnasium.make_vec(..., vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP})`.",
            )
        )
    if env.metadata.get("autoreset_mode") != same_step:
        raise ValueError(
            _checks.message(
                "env",
                f"a vector environment with autoreset_mode {env.metadata.get('autoreset_mode')}",
                "SAME_STEP, where every step is a real transition",
                "Use `make_vec(..., vectorization_mode='sync', "
                "vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP})`.",
            )
        )
    try:
        policy.check_action_space(env.single_action_space)
        return _run(env, policy, num_episodes, seed, deterministic, progress)
    finally:
        if made:
            env.close()


def _run(env: Any, policy: Policy, num_episodes: int, seed: int, deterministic: bool, progress: bool) -> Episodes:
    quota = np.full(env.num_envs, num_episodes // env.num_envs) + (
        np.arange(env.num_envs) < num_episodes % env.num_envs
    )
    space = env.single_action_space

    @tf.function(reduce_retracing=True)
    def act(observations: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        if deterministic:
            return policy.distribution(observations).mode()
        return policy.sample(observations, tf.stack([tf.constant(seed, tf.int32), step]))

    observations, _ = env.reset(seed=seed)
    running: list[list[tuple]] = [[] for _ in range(env.num_envs)]
    finished: list[list[tuple]] = [[] for _ in range(env.num_envs)]
    step = 0
    with tqdm(total=num_episodes, disable=not progress, leave=False, unit="episode") as bar:
        while any(len(done) < wanted for done, wanted in zip(finished, quota, strict=True)):
            inputs = np.asarray(observations, policy.compute_dtype)
            actions = act(tf.constant(inputs), tf.constant(step)).numpy()
            taken = np.clip(actions, space.low, space.high) if hasattr(space, "low") else actions
            following, rewards, terminated, truncated, info = env.step(taken)
            for i in range(env.num_envs):
                if len(finished[i]) == quota[i]:
                    continue
                running[i].append((inputs[i], actions[i], rewards[i]))
                if terminated[i] or truncated[i]:
                    finished[i].append((running[i], bool(terminated[i]), np.asarray(info["final_obs"][i])))
                    running[i] = []
                    bar.update()
            observations = following
            step += 1
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


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("`tf_natgrad.rl.collect` needs Gymnasium: python -m pip install 'tf-natgrad[rl]'") from error
    return gymnasium


__all__ = ["collect"]
