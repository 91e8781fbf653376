"""Episodes: returns, boundaries, storage, baselines, and what is refused."""

import numpy as np
import pytest
from mdp import Mdp

from tf_natgrad import rl

LENGTHS = [3, 1, 4]
REWARDS = np.arange(1.0, 13.0).reshape(3, 4)


def make(**changes):
    arrays = {
        "observations": np.arange(24.0).reshape(3, 4, 2),
        "actions": np.arange(12).reshape(3, 4),
        "rewards": REWARDS,
        "lengths": LENGTHS,
    }
    return rl.Episodes.from_arrays(**arrays | changes)


def test_from_arrays_leaves_the_padding_out():
    episodes = make(terminated=[True, False, True])
    assert (episodes.num_episodes, episodes.num_steps) == (3, 8)
    np.testing.assert_array_equal(episodes.actions, [0, 1, 2, 4, 8, 9, 10, 11])
    np.testing.assert_array_equal(episodes.observations[:, 0], 2 * episodes.actions)
    np.testing.assert_array_equal(episodes.rewards, episodes.actions + 1.0)
    np.testing.assert_array_equal(episodes.starts, [0, 3, 4])
    np.testing.assert_array_equal(episodes.episode_ids, [0, 0, 0, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(episodes.times, [0, 1, 2, 0, 0, 1, 2, 3])
    np.testing.assert_array_equal(episodes.terminated, [True, False, True])


def test_without_lengths_all_of_each_row_counts():
    assert make(lengths=None).num_steps == 12
    assert make().terminated.all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_rewards_to_go_are_discounted_from_the_start(gamma):
    episodes, expected = make(), []
    for row, length in zip(REWARDS, LENGTHS, strict=True):
        expected += [sum(gamma**u * row[u] for u in range(t, length)) for t in range(length)]
    np.testing.assert_allclose(episodes.rewards_to_go(gamma), expected, rtol=1e-14)
    np.testing.assert_allclose(episodes.returns(gamma), np.array(expected)[episodes.starts], rtol=1e-14)


def test_a_long_episode_does_not_lose_the_rewards_of_a_short_one():
    rewards = np.zeros((2, 5000))
    rewards[0], rewards[1, 0] = 1e12, 1e-3
    episodes = rl.Episodes.from_arrays(rewards, rewards, rewards, lengths=[5000, 1])
    assert episodes.returns(1.0)[1] == 1e-3


def test_select():
    episodes = make(weights=[0.2, 0.3, 0.5], terminated=[True, False, True])
    some = episodes.select([2, 0])
    np.testing.assert_array_equal(some.actions, [8, 9, 10, 11, 0, 1, 2])
    np.testing.assert_array_equal(some.lengths, [4, 3])
    np.testing.assert_array_equal(some.weights, [0.5, 0.2])
    np.testing.assert_array_equal(episodes.select([1]).terminated, [False])
    np.testing.assert_array_equal(some.returns(0.9), episodes.returns(0.9)[[2, 0]])


@pytest.mark.parametrize("weights", [None, [0.2, 0.3, 0.5]])
def test_saved_without_pickle(tmp_path, weights):
    episodes = make(weights=weights, terminated=[True, False, True])
    episodes.save(tmp_path / "episodes.npz")
    loaded = rl.Episodes.load(tmp_path / "episodes.npz")
    with np.load(tmp_path / "episodes.npz", allow_pickle=False) as stored:
        assert ("weights" in stored.files) == (weights is not None)
    for name in ("observations", "actions", "rewards", "lengths", "terminated", "weights", "final_observations"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(episodes, name))


def test_an_array_of_objects_is_not_loaded(tmp_path):
    np.savez(tmp_path / "episodes.npz", observations=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        rl.Episodes.load(tmp_path / "episodes.npz")


def test_weights():
    np.testing.assert_allclose(make().episode_weights, 1 / 3)
    np.testing.assert_allclose(make(weights=[0.2, 0.3, 0.5]).episode_weights, [0.2, 0.3, 0.5])


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"lengths": [3, 0, 4]}, r"`lengths`: received an empty episode \(number 1\)"),
        ({"lengths": [3, 5, 4]}, r"`lengths`.*at most 4 each"),
        ({"lengths": [3, 4]}, r"`lengths`: received shape \(2,\)"),
        ({"rewards": np.where(REWARDS == 2.0, np.nan, REWARDS)}, r"`rewards`: received NaN or infinite values"),
        ({"rewards": np.where(REWARDS == 9.0, np.inf, REWARDS)}, r"`rewards`: received NaN or infinite values"),
        ({"rewards": REWARDS[0]}, r"`rewards`: received shape \(4,\); expected shape \[episodes, steps\]"),
        ({"actions": np.zeros((3, 3))}, r"`actions`: received shape \(3, 3\)"),
        ({"observations": np.zeros((2, 4, 2))}, r"`observations`: received shape \(2, 4, 2\)"),
        ({"weights": [0.5, 0.5]}, r"`weights`: received 2 entries; expected 3"),
        ({"weights": [0.5, np.nan, 0.5]}, r"`weights`: received NaN"),
        ({"terminated": [True]}, r"`terminated`: received 1 entries; expected 3"),
    ],
)
def test_bad_arrays_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        make(**changes)


def test_no_episodes_at_all_are_refused():
    with pytest.raises(ValueError, match=r"`lengths`: received no episodes"):
        rl.Episodes.from_arrays(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros((0, 4)))


@pytest.mark.parametrize("gamma", [-0.1, 1.01, np.nan])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ValueError, match="`gamma`"):
        make().returns(gamma)


# Baselines.

GAMMA = 0.9


def test_leave_one_out_is_the_mean_of_the_others():
    episodes = make()
    discounted = np.where(np.arange(4) < np.array(LENGTHS)[:, None], REWARDS * GAMMA ** np.arange(4), 0.0)
    to_go = np.cumsum(discounted[:, ::-1], 1)[:, ::-1]
    expected = [to_go[e, t] - np.delete(to_go, e, 0)[:, t].mean() for e in range(3) for t in range(LENGTHS[e])]
    for name in ("leave_one_out", "time"):
        np.testing.assert_allclose(rl.step_weights(episodes, "causal", name, GAMMA), expected, rtol=1e-12)
    returns = to_go[:, 0]
    expected = np.repeat([returns[e] - np.delete(returns, e).mean() for e in range(3)], LENGTHS)
    np.testing.assert_allclose(rl.step_weights(episodes, "trajectory", "leave_one_out", GAMMA), expected, rtol=1e-12)


def test_values_come_from_other_episodes():
    """A change of one episode's rewards leaves its own baseline as it was."""
    episodes = Mdp().sample(50, np.random.default_rng(0)).episodes()
    other = rl.Episodes(episodes.observations, episodes.actions, episodes.rewards.copy(), episodes.lengths, None)
    other.rewards[episodes.episode_ids == 7] += 3.0

    def baseline(some):
        return some.rewards_to_go(GAMMA) - rl.step_weights(some, "causal", "value", GAMMA)

    own, same_fold = episodes.episode_ids == 7, episodes.episode_ids % 5 == 2
    np.testing.assert_allclose(baseline(other)[own], baseline(episodes)[own], rtol=0.0, atol=1e-12)
    assert np.abs(baseline(other) - baseline(episodes))[~same_fold].max() > 1e-3


def test_values_reduce_the_variance_of_the_weights():
    episodes = Mdp().sample(300, np.random.default_rng(0)).episodes()
    centred, fitted = (rl.step_weights(episodes, "causal", b, GAMMA) for b in ("leave_one_out", "value"))
    assert np.var(fitted) < 0.9 * np.var(centred)


def test_a_function_sees_observations_and_times():
    episodes = make()
    weights = rl.step_weights(episodes, "causal", lambda o, t: o[:, 0] + t, GAMMA)
    expected = episodes.observations[:, 0] + episodes.times
    np.testing.assert_allclose(weights, episodes.rewards_to_go(GAMMA) - GAMMA**episodes.times * expected)


@pytest.mark.parametrize(
    "baseline, changes, error, match",
    [
        ("mean", {}, ValueError, r"`baseline`: received 'mean'; expected one of 'leave_one_out'"),
        ("leave_one_out", {"weights": [0.2, 0.3, 0.5]}, ValueError, r"'leave_one_out' for weighted episodes"),
        ("value", {"weights": [0.2, 0.3, 0.5]}, ValueError, r"'value' for weighted episodes"),
        (lambda o, t: t[:3], {}, ValueError, r"`baseline`: received values of shape \(3,\); expected shape \[8\]"),
        ([1.0], {}, TypeError, "`baseline`"),
        (np.nan, {}, ValueError, "`baseline`"),
    ],
)
def test_bad_baselines_are_refused(baseline, changes, error, match):
    with pytest.raises(error, match=match):
        rl.step_weights(make(**changes), "causal", baseline, GAMMA)


@pytest.mark.parametrize("baseline", ["leave_one_out", "value"])
def test_one_episode_has_no_others(baseline):
    with pytest.raises(ValueError, match=r"`baseline`: received one episode; expected at least two"):
        rl.step_weights(make().select([0]), "causal", baseline, GAMMA)
