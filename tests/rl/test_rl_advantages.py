"""GAE against a loop over episodes, closed forms, and what it refuses."""

import numpy as np
import pytest

from tf_natgrad.rl import generalized_advantages

STEPS, ENVS, GAMMA = 40, 3, 0.9


@pytest.fixture
def run(rng):
    """Rewards, values, next values, ends; episodes of about 6 steps, half of which are truncated."""
    over = rng.random((STEPS, ENVS)) < 0.15
    cut = rng.random((STEPS, ENVS)) < 0.5
    return {
        "rewards": rng.normal(size=(STEPS, ENVS)),
        "values": rng.normal(size=(STEPS, ENVS)),
        "next_values": rng.normal(size=(STEPS, ENVS)),
        "terminated": over & ~cut,
        "truncated": over & cut,
    }


def pieces(run):
    """Stretches without an end inside: `(environment, first step, last step)`."""
    over = run["terminated"] | run["truncated"]
    for i in range(ENVS):
        start = 0
        for t in range(STEPS):
            if over[t, i] or t == STEPS - 1:
                yield i, start, t
                start = t + 1


def by_the_definition(run, gae_lambda):
    """Each advantage as a double sum over its own piece."""
    advantages = np.zeros((STEPS, ENVS))
    for i, start, last in pieces(run):
        deltas = []
        for t in range(start, last + 1):
            following = 0.0 if run["terminated"][t, i] else run["next_values"][t, i]
            deltas.append(run["rewards"][t, i] + GAMMA * following - run["values"][t, i])
        for t in range(start, last + 1):
            advantages[t, i] = sum((GAMMA * gae_lambda) ** (u - t) * deltas[u - start] for u in range(t, last + 1))
    return advantages


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_a_loop_over_episodes(run, gae_lambda):
    assert run["terminated"].any() and run["truncated"].any()
    advantages = generalized_advantages(**run, gamma=GAMMA, gae_lambda=gae_lambda)
    np.testing.assert_allclose(advantages, by_the_definition(run, gae_lambda), rtol=1e-12, atol=1e-12)


def test_lambda_zero_is_the_td_error(run):
    bootstrap = np.where(run["terminated"], 0.0, run["next_values"])
    expected = run["rewards"] + GAMMA * bootstrap - run["values"]
    np.testing.assert_allclose(generalized_advantages(**run, gamma=GAMMA, gae_lambda=0.0), expected, rtol=1e-12)


def test_lambda_one_is_the_return_less_the_value(run):
    # Values that are consistent along each piece telescope.
    over = run["terminated"] | run["truncated"]
    run["next_values"][:-1] = np.where(over[:-1], run["next_values"][:-1], run["values"][1:])
    advantages = generalized_advantages(**run, gamma=GAMMA, gae_lambda=1.0)
    for i, start, last in pieces(run):
        to_come = 0.0 if run["terminated"][last, i] else run["next_values"][last, i]
        for t in reversed(range(start, last + 1)):
            to_come = run["rewards"][t, i] + GAMMA * to_come
            np.testing.assert_allclose(advantages[t, i], to_come - run["values"][t, i], atol=1e-12)


def test_truncation_takes_the_value_of_the_last_observation_and_termination_zero():
    ends = np.array([[False], [True], [False]])
    off = np.zeros_like(ends)
    arguments = {"rewards": np.ones((3, 1)), "values": np.zeros((3, 1)), "next_values": np.full((3, 1), 10.0)}
    cut = generalized_advantages(**arguments, terminated=off, truncated=ends, gamma=0.5, gae_lambda=0.0)
    over = generalized_advantages(**arguments, terminated=ends, truncated=off, gamma=0.5, gae_lambda=0.0)
    # The last step is the end of the rollout, and is bootstrapped too.
    assert cut[:, 0].tolist() == [6.0, 6.0, 6.0]
    assert over[:, 0].tolist() == [6.0, 1.0, 6.0]


def test_nothing_leaks_over_an_end(run):
    run["truncated"][10] = True
    before = generalized_advantages(**run)
    run["rewards"][11:] += 100.0
    np.testing.assert_array_equal(generalized_advantages(**run)[:11], before[:11])


@pytest.mark.parametrize("name", ["values", "next_values", "terminated", "truncated"])
def test_shapes(run, name):
    run[name] = run[name][1:]
    with pytest.raises(ValueError, match=rf"`{name}`: received shape \(39, 3\); expected \(40, 3\)"):
        generalized_advantages(**run)


def test_rewards_without_environments(run):
    with pytest.raises(ValueError, match=r"`rewards`: received shape \(40,\); expected shape \[steps, environments\]"):
        generalized_advantages(**run | {"rewards": run["rewards"][:, 0]})


@pytest.mark.parametrize("name", ["gamma", "gae_lambda"])
@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_factors(run, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        generalized_advantages(**run, **{name: value})
