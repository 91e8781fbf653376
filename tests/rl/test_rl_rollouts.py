"""Whole episodes from environments: seeded, unbiased by length, actions as they were sampled."""

import environments
import gymnasium as gym
import keras
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from keras import layers

from tf_natgrad import rl


def categorical(inputs=4, outputs=2):
    return rl.CategoricalPolicy(keras.Sequential([keras.Input((inputs,)), layers.Dense(outputs)]))


def gaussian(inputs=3, outputs=1, log_std=1.0):
    return rl.GaussianPolicy(keras.Sequential([keras.Input((inputs,)), layers.Dense(outputs)]), log_std)


class Counter(environments.Counter):
    """Its reward is the length of the episode."""

    def __init__(self, length, terminates=True):
        super().__init__(length, terminates, float(length))


def vector(*makers, mode=AutoresetMode.SAME_STEP):
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=mode)


def counters(*lengths):
    return vector(*(lambda n=n: Counter(n) for n in lengths))


def test_each_environment_gives_its_share_whatever_the_lengths():
    episodes = rl.collect(counters(1, 10, 3), gaussian(1), 8)
    assert sorted(episodes.lengths) == [1, 1, 1, 3, 3, 10, 10, 10]
    assert list(episodes.lengths) == [1, 10, 3, 1, 10, 3, 1, 10]


def test_episodes_are_whole_and_in_one_piece():
    episodes = rl.collect(counters(4, 7), gaussian(1), 6)
    np.testing.assert_array_equal(episodes.observations[:, 0], episodes.times)
    np.testing.assert_array_equal(episodes.rewards, np.repeat(episodes.lengths, episodes.lengths))
    np.testing.assert_array_equal(episodes.final_observations[:, 0], episodes.lengths)
    assert episodes.terminated.all()


def test_truncation_is_no_termination():
    env = vector(lambda: Counter(2), lambda: Counter(3, terminates=False))
    episodes = rl.collect(env, gaussian(1), 4)
    np.testing.assert_array_equal(episodes.terminated, episodes.lengths == 2)


def test_actions_are_recorded_as_sampled_and_clipped_for_the_environment():
    env = counters(20)
    episodes = rl.collect(env, gaussian(1), 1)
    received = np.array(env.envs[0].received)[:20]
    assert np.abs(episodes.actions).max() > 1.0
    np.testing.assert_array_equal(received, np.clip(episodes.actions, -0.5, 0.5))


@pytest.mark.parametrize("name, make", [("CartPole-v1", categorical), ("Pendulum-v1", gaussian)])
def test_the_seed_decides(name, make):
    policy = make()
    first, again, other = (rl.collect(name, policy, 2, seed=seed) for seed in (3, 3, 4))
    for array in ("observations", "actions", "rewards", "lengths", "final_observations"):
        np.testing.assert_array_equal(getattr(first, array), getattr(again, array))
    assert not np.array_equal(first.observations, other.observations)


def test_episodes_differ_from_one_another():
    episodes = rl.collect("CartPole-v1", categorical(), 20)
    assert len(np.unique(episodes.observations[episodes.starts], axis=0)) == 20


def test_cart_pole_terminates():
    episodes = rl.collect("CartPole-v1", categorical(), 20)
    assert episodes.terminated.all()
    assert episodes.actions.dtype.kind == "i"
    final = np.abs(episodes.final_observations)
    assert ((final[:, 0] > 2.4) | (final[:, 2] > 0.2095)).all()
    assert np.abs(episodes.observations[:, 2]).max() <= 0.2095


def test_pendulum_is_truncated():
    episodes = rl.collect("Pendulum-v1", gaussian(), 2)
    assert not episodes.terminated.any()
    np.testing.assert_array_equal(episodes.lengths, [200, 200])
    assert episodes.actions.shape == (400, 1)


def test_the_environment_follows_the_recorded_actions():
    episodes = rl.collect("CartPole-v1", categorical(), 1, seed=5)
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=5)
    for t in range(episodes.num_steps):
        np.testing.assert_array_equal(episodes.observations[t], observation)
        observation, reward, *_ = env.step(int(episodes.actions[t]))
        assert episodes.rewards[t] == reward
    np.testing.assert_array_equal(episodes.final_observations[0], observation)


def test_deterministic_actions_are_the_most_probable():
    policy = gaussian()
    episodes = rl.collect("Pendulum-v1", policy, 1, deterministic=True)
    np.testing.assert_allclose(episodes.actions, policy.network(episodes.observations), rtol=1e-4, atol=1e-6)


def test_frequencies_of_actions():
    policy = categorical()
    episodes = rl.collect("CartPole-v1", policy, 60)
    p = np.exp(policy.log_prob(episodes.observations, np.ones(episodes.num_steps, int)))
    z = (episodes.actions - p).sum() / np.sqrt((p * (1 - p)).sum())
    assert abs(z) < 4.0


def test_a_progress_bar(capsys):
    rl.collect(counters(2), gaussian(1), 3, progress=True)
    assert "episode" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, policy, match",
    [
        ("CartPole-v1", lambda: categorical(4, 3), r"CategoricalPolicy with 3 outputs.*Discrete\(2\)"),
        ("CartPole-v1", lambda: gaussian(4, 2), r"GaussianPolicy with 2 means.*use `CategoricalPolicy`"),
        ("Pendulum-v1", lambda: gaussian(3, 2), r"GaussianPolicy with 2 means.*Box"),
        ("Pendulum-v1", lambda: categorical(3, 2), r"CategoricalPolicy with 2 outputs.*use `GaussianPolicy`"),
    ],
)
def test_policies_that_do_not_fit(name, policy, match):
    with pytest.raises(ValueError, match=match):
        rl.collect(name, policy(), 1)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_modes_of_resetting_are_refused(mode):
    env = vector(lambda: Counter(2), mode=mode)
    with pytest.raises(ValueError, match=rf"autoreset_mode AutoresetMode.{mode.name}; expected SAME_STEP"):
        rl.collect(env, gaussian(1), 1)


def test_the_native_vector_of_cart_pole_is_refused():
    with pytest.raises(ValueError, match="expected SAME_STEP"):
        rl.collect(gym.make_vec("CartPole-v1", num_envs=2), categorical(), 1)


def test_a_single_environment_is_refused():
    with pytest.raises(ValueError, match=r"`env`: received \w+; expected the name of an environment or a vector"):
        rl.collect(gym.make("CartPole-v1"), categorical(), 1)


def test_a_plain_keras_model_is_refused():
    with pytest.raises(TypeError, match="Wrap your Keras model"):
        rl.collect("CartPole-v1", keras.Sequential([keras.Input((4,)), layers.Dense(2)]), 1)


def test_rewards_that_are_not_finite_are_refused():
    env = counters(3)
    env.envs[0].step = lambda action: (np.zeros(1, np.float32), np.nan, True, False, {})
    with pytest.raises(ValueError, match=r"`rewards`: received NaN or infinite values"):
        rl.collect(env, gaussian(1), 1)


@pytest.mark.parametrize("count, error", [(0, ValueError), (1.5, TypeError)])
def test_numbers_of_episodes(count, error):
    with pytest.raises(error, match="`num_episodes`"):
        rl.collect("CartPole-v1", categorical(), count)
