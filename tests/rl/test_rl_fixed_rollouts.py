"""Rollouts of a fixed number of steps: true last observations, seeds, and the compiled choice of actions."""

from typing import ClassVar

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf
from environments import Counter
from gymnasium.vector import AutoresetMode
from keras import layers

from tf_natgrad import rl
from tf_natgrad.rl.environments import vector_environment
from tf_natgrad.rl.rollouts import Rollout, rollout


class OneArray(Counter):
    """A `Counter` that writes all its observations into one array, and returns that."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.array = np.zeros(1, np.float32)

    def reset(self, **options):
        self.array[:], info = super().reset(**options)
        return self.array, info

    def step(self, action):
        self.array[:], *rest = super().step(action)
        return self.array, *rest


class OneRecord(gym.vector.VectorEnv):
    """Two `Counter`s in one array for observations, one for rewards and one for ends, changed in place."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.SAME_STEP}
    num_envs = 2
    single_observation_space, single_action_space = Counter.observation_space, Counter.action_space

    def __init__(self, length):
        self.length = length
        self.times, self.rewards = np.zeros((2, 1), np.float32), np.zeros(2)
        self.terminated, self.truncated = np.zeros((2, 2), bool)

    def reset(self, *, seed=None, options=None):
        self.times[:] = 0.0
        return self.times, {}

    def step(self, actions):
        self.times += 1.0
        self.rewards[:] = self.times[:, 0]
        self.truncated[:] = self.times[:, 0] == self.length
        info = {"final_obs": self.times.copy()} if self.truncated.any() else {}
        self.times[self.truncated] = 0.0
        return self.times, self.rewards, self.terminated, self.truncated, info


def of_one_id(copy, entry):
    """What `gym.make_vec` gives, each environment being a `Counter` of five steps that is cut off after three."""
    spec = gym.envs.registration.EnvSpec(
        "Counter-v0", entry, max_episode_steps=3, disable_env_checker=True, kwargs={"length": 5}
    )
    options = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": copy}
    return gym.make_vec(spec, num_envs=2, vectorization_mode="sync", vector_kwargs=options)


REUSED = {
    "copy=False": lambda: of_one_id(False, Counter),
    "one array": lambda: of_one_id(True, OneArray),
    "one array, copy=False": lambda: of_one_id(False, OneArray),
    "wrapped": lambda: gym.wrappers.vector.ClipReward(of_one_id(False, OneArray), 0.0, 100.0),
    "one record": lambda: OneRecord(3),
}


def counters(*makers):
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def gaussian():
    return rl.GaussianPolicy(keras.Sequential([keras.Input((1,)), layers.Dense(1)]), initial_log_std=1.0)


def categorical():
    return rl.CategoricalPolicy(keras.Sequential([keras.Input((4,)), layers.Dense(2)]))


@pytest.fixture
def run():
    env = counters(lambda: Counter(3), lambda: Counter(2, terminates=False))
    return rollout(env, gaussian(), 7, seed=3), env


def test_each_step_is_a_real_transition(run):
    result, _ = run
    np.testing.assert_array_equal(result.observations[:, :, 0].T, [[0, 1, 2, 0, 1, 2, 0], [0, 1, 0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(result.next_observations, result.observations + 1.0)
    np.testing.assert_array_equal(result.rewards, result.next_observations[:, :, 0])
    np.testing.assert_array_equal(np.flatnonzero(result.terminated[:, 0]), [2, 5])
    np.testing.assert_array_equal(np.flatnonzero(result.truncated[:, 1]), [1, 3, 5])
    assert not result.truncated[:, 0].any() and not result.terminated[:, 1].any()


def test_returns_of_finished_episodes_in_order_of_their_ends(run):
    assert run[0].finished_returns().tolist() == [3.0, 6.0, 3.0, 6.0, 3.0]


def test_no_episode_ends():
    assert rollout(counters(lambda: Counter(9)), gaussian(), 3).finished_returns().shape == (0,)


def test_actions_are_kept_as_sampled_and_clipped_for_the_environment(run):
    result, env = run
    assert np.abs(result.actions).max() > 0.5
    np.testing.assert_array_equal(env.envs[0].received, np.clip(result.actions[:, 0], -0.5, 0.5))


def test_the_seed_determines_all():
    policy = categorical()
    with vector_environment("CartPole-v1", 3) as env:
        first, again, other = (rollout(env, policy, 20, seed=seed) for seed in (1, 1, 2))
    for name, mine, theirs in zip(Rollout._fields, first, again, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
    assert not np.array_equal(first.observations[0], other.observations[0])
    assert not np.array_equal(first.actions, other.actions)


def test_a_rollout_draws_other_actions_at_each_step():
    actions = rollout(counters(lambda: Counter(99)), gaussian(), 50).actions[:, 0, 0]
    assert len(np.unique(actions)) == 50
    assert abs(np.corrcoef(actions[:-1], actions[1:])[0, 1]) < 0.5


def test_the_choice_of_actions_is_compiled_once_and_follows_the_weights():
    class Counted(rl.CategoricalPolicy):
        calls = 0

        def call(self, observations):
            if not isinstance(observations, keras.KerasTensor):
                self.calls += 1
            return super().call(observations)

    policy = Counted(categorical().network)
    with vector_environment("CartPole-v1", 2) as env:
        rollout(env, policy, 5)
        calls = policy.calls
        policy.network.set_weights([np.zeros((4, 2)), np.array([100.0, -100.0])])
        assert not rollout(env, policy, 5).actions.any()
        policy.network.set_weights([np.zeros((4, 2)), np.array([-100.0, 100.0])])
        assert rollout(env, policy, 5).actions.all()
    assert policy.calls == calls


def test_a_policy_that_acted_can_still_be_saved_and_copied(tmp_path):
    policy = categorical()
    rl.collect("CartPole-v1", policy, 1)
    policy.save(tmp_path / "policy.keras")
    restored = keras.models.load_model(tmp_path / "policy.keras")
    np.testing.assert_array_equal(restored(tf.ones([1, 4])), policy(tf.ones([1, 4])))


def test_a_function_that_makes_an_environment():
    assert rl.collect(lambda: Counter(4), gaussian(), 3).lengths.tolist() == [4, 4, 4]


@pytest.mark.parametrize("make", REUSED.values(), ids=REUSED)
def test_a_rollout_keeps_what_the_environment_writes_over(make):
    run = rollout(make(), gaussian(), 7)
    np.testing.assert_array_equal(run.observations[:, :, 0].T, [[0, 1, 2, 0, 1, 2, 0]] * 2)
    np.testing.assert_array_equal(run.next_observations, run.observations + 1.0)
    np.testing.assert_array_equal(run.rewards, run.next_observations[:, :, 0])
    np.testing.assert_array_equal(np.flatnonzero(run.truncated[:, 1]), [2, 5])


@pytest.mark.parametrize("make", REUSED.values(), ids=REUSED)
def test_the_value_after_a_truncation_is_that_of_the_final_observation(make):
    """With the value 10 s of a state s the advantage is the reward, s + 1, plus 9 (s + 1) - 10 s."""
    run = rollout(make(), gaussian(), 6)
    values = [10.0 * states[..., 0] for states in (run.observations, run.next_observations)]
    advantages = rl.generalized_advantages(
        run.rewards, *values, run.terminated, run.truncated, gamma=0.9, gae_lambda=0.0
    )
    np.testing.assert_allclose(advantages, 10.0, rtol=1e-6)


@pytest.mark.parametrize("make", REUSED.values(), ids=REUSED)
def test_episodes_keep_what_the_environment_writes_over(make):
    episodes = rl.collect(make(), gaussian(), 4)
    np.testing.assert_array_equal(episodes.observations[:, 0], [0, 1, 2] * 4)
    np.testing.assert_array_equal(episodes.rewards, [1, 2, 3] * 4)
    np.testing.assert_array_equal(episodes.final_observations, [[3]] * 4)
    assert not episodes.terminated.any()


def test_a_function_that_makes_an_environment_of_one_array():
    episodes = rl.collect(lambda: OneArray(2), gaussian(), 3)
    np.testing.assert_array_equal(episodes.observations[:, 0], [0, 1] * 3)
    np.testing.assert_array_equal(episodes.final_observations, [[2]] * 3)


@pytest.mark.parametrize("run", [lambda env: rollout(env, gaussian(), 2), lambda env: rl.collect(env, gaussian(), 1)])
def test_a_vector_environment_is_left_with_its_own_environments(run):
    env = of_one_id(False, OneArray)
    own = list(env.envs)
    run(env)
    assert env.envs == own


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rewards_that_are_not_finite(value):
    with pytest.raises(ValueError, match=r"`env`: received rewards with NaN or infinite values"):
        rollout(counters(lambda: Counter(4, reward=value)), gaussian(), 3)


def test_an_environment_made_here_is_closed(monkeypatch):
    closed = []
    monkeypatch.setattr(Counter, "close", lambda self: closed.append(self))
    with pytest.raises(RuntimeError), vector_environment(lambda: Counter(1), 2):
        raise RuntimeError
    assert len(closed) == 2
