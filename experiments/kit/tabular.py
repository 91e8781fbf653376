"""Tabular problems, on which the variance of estimators of the policy Hessian is measured."""

from __future__ import annotations

import pathlib

import numpy as np

from kit.policy_results import VARIANCE_COLUMNS, VARIANCE_KEY_COLUMNS
from kit.recording import Recorder, as_text

HORIZONS = (10, 50, 200)
# Estimator, its baseline in words, offset of the rewards per step (their standard deviation being 1).
CASES = {
    "causal, state baseline": 0.0,
    "trajectory, constant baseline J": 0.0,
    "trajectory, no baseline, rewards + 0.1": 0.1,
    "trajectory, no baseline, rewards + 0.5": 0.5,
}


class TabularProblem:
    """A random problem of 3 states and 2 actions, with a softmax policy of one logit per state and action.

    Rewards have standard deviation 1 over states and actions, and are centred for each horizon so that the expected
    return, undiscounted, is exactly 0.

    Args:
        seed: of transitions, rewards and logits.
    """

    states, actions = 3, 2

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self._rng = rng
        self.transitions = rng.dirichlet(np.ones(self.states), [self.states, self.actions])
        self.start = rng.dirichlet(np.ones(self.states))
        rewards = rng.standard_normal([self.states, self.actions])
        self.rewards = (rewards - rewards.mean()) / rewards.std()
        logits = rng.standard_normal([self.states, self.actions])
        self.policy = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def values(self, horizon: int, rewards: np.ndarray) -> np.ndarray:
        """The value of each state at each time, `[horizon + 1, states]`."""
        values = np.zeros([horizon + 1, self.states])
        for t in reversed(range(horizon)):
            values[t] = (self.policy * (rewards + self.transitions @ values[t + 1])).sum(1)
        return values

    def variances(self, horizon: int, samples: int) -> dict[str, float]:
        """The variance per episode of each estimate of the Hessian, mean over its entries.

        Args:
            horizon: steps of an episode.
            samples: episodes.

        Returns:
            By the name of the case.
        """
        found = self.estimates(horizon, samples)
        return {name: float(matrices.var(0, ddof=1).mean()) for name, matrices in found.items()}

    def estimates(self, horizon: int, samples: int) -> dict[str, np.ndarray]:
        """The estimates of single episodes, `[samples, n, n]`, by the name of the case."""
        rewards = self.rewards - self.start @ self.values(horizon, self.rewards)[0] / horizon
        values = self.values(horizon, rewards)
        states, actions = self._sample(horizon, samples)
        to_go = np.cumsum(rewards[states, actions][:, ::-1], 1)[:, ::-1]
        causal_weights = to_go - values[np.arange(horizon), states]
        size = self.states * self.actions
        sums = np.zeros([samples, size])
        curvatures = np.zeros([samples, size, size])
        causal = np.zeros([samples, size, size])
        score, hessian = self._derivatives()
        for t in range(horizon):
            s, a = states[:, t], actions[:, t]
            g, h, w = score[s, a], hessian[s], causal_weights[:, t, None, None]
            # The pairs of which this step is the later one, and the step with itself.
            outer = g[:, :, None] * (0.5 * g + sums)[:, None, :]
            causal += w * (h + outer + outer.transpose(0, 2, 1))
            sums += g
            curvatures += h
        whole = sums[:, :, None] * sums[:, None, :] + curvatures
        found = {}
        for name, offset in CASES.items():
            # The constant baseline J is 0 where the rewards are centred.
            returns = to_go[:, 0] + offset * horizon
            found[name] = causal if name.startswith("causal") else returns[:, None, None] * whole
        return found

    def _sample(self, horizon: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
        states, actions = np.zeros([samples, horizon], int), np.zeros([samples, horizon], int)
        state = _choose(self._rng, np.broadcast_to(self.start, [samples, self.states]))
        for t in range(horizon):
            states[:, t], actions[:, t] = state, _choose(self._rng, self.policy[state])
            state = _choose(self._rng, self.transitions[state, actions[:, t]])
        return states, actions

    def _derivatives(self) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and Hessian of the log-probabilities, `[states, actions, n]` and `[states, n, n]`."""
        size = self.states * self.actions
        score, hessian = np.zeros([self.states, self.actions, size]), np.zeros([self.states, size, size])
        for s in range(self.states):
            block, p = slice(s * self.actions, (s + 1) * self.actions), self.policy[s]
            score[s, :, block] = np.eye(self.actions) - p
            hessian[s, block, block] = np.outer(p, p) - np.diag(p)
        return score, hessian


def _choose(rng: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """One index per row."""
    return np.minimum(
        (rng.random([len(probabilities), 1]) > np.cumsum(probabilities, 1)).sum(1), probabilities.shape[1] - 1
    )


def run_variances(problems: int, samples: int, path: pathlib.Path, resume: bool) -> None:
    """Records the variances of all problems and horizons."""
    from tf_natgrad._progress import progress_bar

    wanted = [(seed, horizon) for seed in range(problems) for horizon in HORIZONS]
    keys = {tuple(map(as_text, (seed, horizon, samples))) for seed, horizon in wanted}
    recorder = Recorder(
        path,
        VARIANCE_COLUMNS,
        VARIANCE_KEY_COLUMNS,
        resume,
        lambda key, rows: key in keys and len(rows) == len(CASES),
    )
    for seed, horizon in progress_bar(wanted, desc="variances"):
        key = {"mdp": seed, "horizon": horizon, "samples": samples}
        if tuple(key.values()) in recorder:
            continue
        found = TabularProblem(seed).variances(horizon, samples)
        for name, variance in found.items():
            factor = variance / found["causal, state baseline"]
            offset = CASES[name]
            recorder.append(**key, estimator=name, reward_offset=offset, variance=variance, factor=factor)
