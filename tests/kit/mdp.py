"""A tabular Markov decision process that can be enumerated, and the estimators' formulas, in NumPy alone."""

import dataclasses
import itertools

import keras
import numpy as np
from keras import layers

from tf_natgrad import rl

STATES, ACTIONS, HORIZON, GAMMA = 3, 2, 4, 0.9


@dataclasses.dataclass
class Steps:
    """Trajectories of equal length, some of which count only up to `lengths`: `[N, T]`, `[N]`."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    lengths: np.ndarray
    probabilities: np.ndarray | None = None

    @property
    def used(self):
        """Which steps count, `[N, T]`."""
        return np.arange(self.states.shape[1]) < self.lengths[:, None]

    def episodes(self):
        one_hot = np.eye(STATES)[self.states]
        return rl.Episodes.from_arrays(one_hot, self.actions, self.rewards, self.lengths, self.probabilities)

    def select(self, chosen):
        """Some of them, without their probabilities."""
        return Steps(self.states[chosen], self.actions[chosen], self.rewards[chosen], self.lengths[chosen])

    def padded(self, flat):
        """`[M]` as `[N, T]`, with zeros after the end."""
        padded = np.zeros(self.states.shape)
        padded[self.used] = flat
        return padded


class Mdp:
    """Random transitions, rewards and softmax policy.

    Args:
        horizon: steps of an episode at most.
        ends: whether the second action in the last state ends the episode.
    """

    def __init__(self, horizon=HORIZON, ends=False):
        rng = np.random.default_rng(7)
        self.horizon = horizon
        self.ends = ends
        self.transitions = rng.dirichlet(np.ones(STATES), (STATES, ACTIONS))
        self.rewards = rng.normal(size=(STATES, ACTIONS))
        self.start = rng.dirichlet(np.ones(STATES))
        self.theta = rng.normal(size=(STATES, ACTIONS))
        self.going_on = np.ones((STATES, ACTIONS))
        if ends:
            self.going_on[-1, -1] = 0.0

    def policy(self):
        """The same as a Keras network; the flat parameters are `theta` in row-major order."""
        network = keras.Sequential([keras.Input((STATES,)), layers.Dense(ACTIONS, use_bias=False)])
        network.set_weights([self.theta])
        return rl.CategoricalPolicy(network)

    def probabilities(self, theta=None):
        """`pi(a|s)`, `[S, A]`."""
        theta = self.theta if theta is None else theta
        e = np.exp(theta - theta.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def log_derivatives(self):
        """Gradient `[S, A, n]` and Hessian `[S, A, n, n]` of `log pi(a|s)`."""
        pi, n = self.probabilities(), STATES * ACTIONS
        first, second = np.zeros((STATES, ACTIONS, n)), np.zeros((STATES, ACTIONS, n, n))
        for s in range(STATES):
            own = slice(s * ACTIONS, (s + 1) * ACTIONS)
            first[s, :, own] = np.eye(ACTIONS) - pi[s]
            second[s, :, own, own] = np.outer(pi[s], pi[s]) - np.diag(pi[s])
        return first, second

    def values(self, theta=None):
        """`V_t(s)` `[T + 1, S]` and `Q_t(s, a)` `[T, S, A]`, by backward recursion."""
        pi = self.probabilities(theta)
        v, q = np.zeros((self.horizon + 1, STATES)), np.zeros((self.horizon, STATES, ACTIONS))
        for t in reversed(range(self.horizon)):
            q[t] = self.rewards + GAMMA * self.going_on * (self.transitions @ v[t + 1])
            v[t] = (pi * q[t]).sum(1)
        return v, q

    def expected_return(self, theta=None):
        return float(self.start @ self.values(theta)[0][0])

    def exact(self):
        """Gradient `[n]` and Hessian `[n, n]` of the expected return, in closed form."""
        pi, (log_first, log_second), (_, q) = self.probabilities(), self.log_derivatives(), self.values()
        first = pi[..., None] * log_first
        second = pi[..., None, None] * (log_second + log_first[..., :, None] * log_first[..., None, :])
        onward = GAMMA * self.going_on[..., None] * self.transitions
        grad_v, grad_q = np.zeros((STATES, first.shape[-1])), []
        for t in reversed(range(self.horizon)):
            grad_q.insert(0, np.einsum("saz,zn->san", onward, grad_v))
            grad_v = np.einsum("sa,san->sn", q[t], first) + np.einsum("sa,san->sn", pi, grad_q[0])
        hessian, visits = 0.0, self.start
        for t in range(self.horizon):
            crossed = np.einsum("san,sam->snm", first, grad_q[t])
            local = np.einsum("sa,sanm->snm", q[t], second) + crossed + crossed.transpose(0, 2, 1)
            hessian = hessian + np.einsum("s,snm->nm", visits, local)
            visits = np.einsum("s,sa,saz->z", visits, pi, onward)
        return self.start @ grad_v, hessian

    def enumeration(self):
        """All trajectories with their probabilities; after its end an episode goes on, without counting."""
        paths = np.array(list(itertools.product(range(STATES * ACTIONS), repeat=self.horizon)))
        states, actions = np.divmod(paths, ACTIONS)
        chances = self.start[states[:, 0]] * self.probabilities()[states, actions].prod(1)
        chances = chances * self.transitions[states[:, :-1], actions[:, :-1], states[:, 1:]].prod(1)
        return self._steps(states, actions, chances)

    def sample(self, count, rng):
        """Episodes drawn at random."""
        states, actions = np.zeros((count, self.horizon), int), np.zeros((count, self.horizon), int)
        pi, state = self.probabilities(), _draw(np.broadcast_to(self.start, (count, STATES)), rng)
        for t in range(self.horizon):
            states[:, t], actions[:, t] = state, _draw(pi[state], rng)
            state = _draw(self.transitions[state, actions[:, t]], rng)
        return self._steps(states, actions)

    def _steps(self, states, actions, chances=None):
        over = self.going_on[states, actions] == 0.0
        lengths = np.where(over.any(1), over.argmax(1) + 1, self.horizon)
        return Steps(states, actions, self.rewards[states, actions], lengths, chances)

    def matrices(self, steps, weights, estimator="causal"):
        """`M_e` of each episode, `[N, n, n]`, from the weights of its steps, `[N, T]`."""
        first, second = self.log_derivatives()
        counts = steps.used.astype(float)
        g = first[steps.states, steps.actions] * counts[..., None]
        h = second[steps.states, steps.actions] * counts[..., None, None]
        return estimate(estimator, g, h, weights)


def _draw(chances, rng):
    """One index for each row of probabilities."""
    return (rng.random((len(chances), 1)) > np.cumsum(chances[:, :-1], 1)).sum(1)


def estimate(estimator, g, h, w):
    """The matrices `[N, n, n]` of N episodes, from `g` `[N, T, n]`, `h` `[N, T, n, n]` and `w` `[N, T]`, as written."""
    w = np.broadcast_to(w[:, :1], w.shape) if estimator == "trajectory" else w
    t = np.arange(g.shape[1])
    pairs = {
        "trajectory": np.broadcast_to(w[:, :, None], (*w.shape, len(t))),
        "causal": w[:, np.maximum(t[:, None], t)],
        "surrogate": w[:, :, None] * np.eye(len(t)),
        "algorithm1": np.broadcast_to(w[:, None, :], (len(w), len(t), len(t))),
    }[estimator]
    return np.einsum("et,etij->eij", w, h) + np.swapaxes(g, 1, 2) @ pairs @ g
