"""On CartPole: `v^T H v` from recorded episodes against second differences of the return over fresh rollouts."""

import gymnasium as gym
import keras
import numpy as np
import pytest
import scipy.stats
from gymnasium.vector import AutoresetMode
from keras import layers

from tf_natgrad import rl, spectrum

GAMMA, HIDDEN = 0.99, 4
EPISODES, ROLLOUTS = 3000, 30000


class CartPole:
    """Many carts at once, in NumPy."""

    def __init__(self, starts):
        self.state = np.array(starts, np.float64).T

    def step(self, pushes_right):
        """Moves all carts; returns which of them have failed."""
        _, speed, angle, turning = self.state
        sine, cosine = np.sin(angle), np.cos(angle)
        push = (np.where(pushes_right, 10.0, -10.0) + 0.05 * turning**2 * sine) / 1.1
        turn = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3.0 - 0.1 * cosine**2 / 1.1))
        acceleration = push - 0.05 * turn * cosine / 1.1
        self.state = self.state + 0.02 * np.array([speed, acceleration, turning, turn])
        return (np.abs(self.state[0]) > 2.4) | (np.abs(self.state[2]) > 12 * 2 * np.pi / 360)


def weights(theta):
    """The arrays of a network 4 - `HIDDEN` - 2 in flat parameters."""
    sizes = [(4, HIDDEN), (HIDDEN,), (HIDDEN, 2), (2,)]
    ends = np.cumsum([np.prod(s) for s in sizes])[:-1]
    return [part.reshape(s) for part, s in zip(np.split(theta, ends), sizes, strict=True)]


def logits(theta, observations):
    w, b, v, c = weights(theta)
    return np.tanh(observations @ w + b) @ v + c


def returns(theta, count, seed):
    """Discounted returns of fresh episodes; with the same seed, the same starts and the same random numbers."""
    rng = np.random.default_rng(seed)
    env, alive = CartPole(rng.uniform(-0.05, 0.05, (count, 4))), np.arange(count)
    lengths = np.zeros(count)
    for _ in range(500):
        z = logits(theta, env.state.T)
        failed = env.step(rng.random(count)[alive] < 1.0 / (1.0 + np.exp(z[:, 0] - z[:, 1])))
        lengths[alive] += 1.0
        alive, env.state = alive[~failed], env.state[:, ~failed]
        if not alive.size:
            break
    return (1.0 - GAMMA**lengths) / (1.0 - GAMMA)


def initial():
    """A policy that balances for 70 steps: it leans against angle and speed, with some noise in its weights."""
    rng = np.random.default_rng(0)
    inward = rng.normal(0.0, 0.3, (4, HIDDEN)) + np.outer([0.1, 0.4, 2.0, 1.0], [1.0, -1.0, 0.5, -0.5])
    outward = 0.5 * np.outer([1.0, -1.0, 1.0, -1.0], [-1.0, 1.0]) + rng.normal(0.0, 0.2, (HIDDEN, 2))
    return np.concatenate([inward.ravel(), np.zeros(HIDDEN), outward.ravel(), np.zeros(2)])


@pytest.fixture(scope="module")
def policy(float64):
    network = keras.Sequential([keras.Input((4,)), layers.Dense(HIDDEN, "tanh"), layers.Dense(2)])
    network.set_weights(weights(initial()))
    return rl.CategoricalPolicy(network)


@pytest.fixture(scope="module")
def episodes(policy):
    env = gym.make_vec(
        "CartPole-v1",
        num_envs=200,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )
    return rl.collect(env, policy, EPISODES, seed=1)


@pytest.fixture(scope="module")
def from_episodes(policy, episodes):
    """Eigenvectors of one half, smallest and largest, and their quadratic forms on the other."""
    halves = [
        rl.PolicyHessian(policy, episodes.select(range(first, EPISODES, 2)), baseline="value", gamma=GAMMA)
        for first in (0, 1)
    ]
    vectors = spectrum.eigsh(halves[0], 2, "BE").eigenvectors.numpy().T
    return vectors, [halves[1].quadratic_forms(v).numpy() for v in vectors]


@pytest.fixture(scope="module")
def fresh_returns():
    return returns(initial(), ROLLOUTS, seed=2)


def second_differences(theta, v, centre, eps):
    """Of each fresh episode's return, extrapolated from `eps` and `eps / 2` to 0."""

    def difference(a):
        ahead, behind = (returns(theta + s * a * v, ROLLOUTS, seed=2) for s in (1, -1))
        return (ahead - 2 * centre + behind) / a**2

    return (4 * difference(eps / 2) - difference(eps)) / 3


def test_carts_move_as_those_of_gymnasium(episodes):
    carts = CartPole(episodes.observations)
    failed = carts.step(episodes.actions == 1)
    last = np.append(episodes.times[1:] == 0, True)
    np.testing.assert_allclose(carts.state.T[~last], episodes.observations[1:][~last[:-1]], atol=1e-6)
    np.testing.assert_allclose(carts.state.T[last], episodes.final_observations, atol=1e-6)
    np.testing.assert_array_equal(failed[last], episodes.terminated)
    assert not failed[~last].any()


def test_the_policy_is_the_same(policy, episodes):
    seen = episodes.observations[:50]
    np.testing.assert_allclose(policy(seen), logits(initial(), seen), rtol=1e-10)


def test_fresh_and_recorded_returns_agree(episodes, fresh_returns):
    recorded = episodes.returns(GAMMA)
    error = np.hypot(scipy.stats.sem(fresh_returns), scipy.stats.sem(recorded))
    assert abs(fresh_returns.mean() - recorded.mean()) < 3 * error


@pytest.mark.parametrize("end", [0, 1], ids=["bottom", "top"])
def test_second_differences_of_fresh_returns_agree(from_episodes, fresh_returns, end):
    v, forms = (part[end] for part in from_episodes)
    fresh = second_differences(initial(), v, fresh_returns, eps=0.2)
    estimates = np.array([forms.mean(), fresh.mean()])
    half_widths = 1.96 * np.array([scipy.stats.sem(forms), scipy.stats.sem(fresh)])
    print(estimates, half_widths)
    assert abs(estimates[1] - estimates[0]) < half_widths.min()
    assert (np.sign(estimates) == 2 * end - 1).all()
    if end == 0:
        assert (half_widths < 0.25 * np.abs(estimates)).all()
