"""How often the null of `rl.extreme_curvature` rejects, and how often its intervals hold the truth.

On a decision process of 3 states, 2 actions and 4 steps at most, with a softmax policy whose rarest action has a
probability of 0.13. Level: rewards are pure noise while actions move the state. Coverage: noise is added to rewards of
state and action, and the Hessian is exact. Unequal lengths are uniform from 1 to 4. The methods of before, random signs
of episodes and normal quantiles, stand beside. All in NumPy, by the package's own statistics; three minutes on one
idle core. Prints a table and writes `figures/significance.csv`.
"""

from __future__ import annotations

import argparse
import csv
import pathlib

import numpy as np
import scipy.stats
from _timing import table

from tf_natgrad._progress import progress_bar
from tf_natgrad.rl.curvature.episode_statistics import mean_interval, monte_carlo_p_values, studentised
from tf_natgrad.rl.curvature.significance import redraws_of

STATES, ACTIONS, HORIZON, GAMMA = 3, 2, 4, 0.9
LEVEL, NULL_DRAWS = 0.05, 39
COUNTS = (10, 50, 400)
LENGTHS = ("equal", "unequal")
NOISE = {
    "symmetric": lambda rng, shape: rng.normal(0.5, 1.0, shape),
    "skewed up": lambda rng, shape: rng.exponential(1.0, shape),
    "skewed down": lambda rng, shape: -rng.exponential(1.0, shape),
    "rare": lambda rng, shape: (rng.random(shape) < 0.03).astype(float),
    "none": lambda rng, shape: np.zeros(shape),
}
# How many episodes are held at once.
_BLOCK = 40_000


class Problem:
    """The decision process, and estimates of its Hessian for arrays of states and actions `[..., N, T]`.

    Args:
        seed: of transitions, rewards and policy.
    """

    def __init__(self, seed: int = 7):
        rng = np.random.default_rng(seed)
        self.transitions = rng.dirichlet(np.ones(STATES), (STATES, ACTIONS))
        self.rewards = rng.normal(size=(STATES, ACTIONS))
        self.start = rng.dirichlet(np.ones(STATES))
        self.theta = rng.normal(size=(STATES, ACTIONS))
        self.policy = _softmax(self.theta)
        # Gradient and Hessian of log pi(a|s); the second depends on the state alone.
        self.first = np.zeros((STATES, ACTIONS, self.theta.size))
        self.second = np.zeros((STATES, self.theta.size, self.theta.size))
        for s, pi in enumerate(self.policy):
            own = slice(s * ACTIONS, (s + 1) * ACTIONS)
            self.first[s, :, own] = np.eye(ACTIONS) - pi
            self.second[s, own, own] = np.outer(pi, pi) - np.diag(pi)

    def sample(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """States and actions, `[*shape, T]`."""
        states, actions = np.zeros((*shape, HORIZON), int), np.zeros((*shape, HORIZON), int)
        state = _drawn(np.broadcast_to(self.start, (*shape, STATES)), rng)
        for t in range(HORIZON):
            states[..., t] = state
            actions[..., t] = self.redraw(state, rng)
            state = _drawn(self.transitions[state, actions[..., t]], rng)
        return states, actions

    def redraw(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Actions of the policy at given states."""
        return _drawn(self.policy[states], rng)

    def mean(self, states: np.ndarray, actions: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The causal estimate, `[..., n, n]`; steps that do not count have the weight 0."""
        g = self.first[states, actions]
        later = (np.cumsum(g, -2) - 0.5 * g).reshape(*g.shape[:-3], -1, g.shape[-1])
        crossed = np.swapaxes((weights[..., None] * g).reshape(later.shape), -1, -2) @ later
        visits = np.stack([np.where(states == s, weights, 0.0).sum((-1, -2)) for s in range(STATES)], -1)
        total = crossed + np.swapaxes(crossed, -1, -2) + np.einsum("...s,sij->...ij", visits, self.second)
        return total / states.shape[-2]

    def forms(self, states: np.ndarray, actions: np.ndarray, weights: np.ndarray, v: np.ndarray) -> np.ndarray:
        """`v^T M_e v` of each episode, `[..., N]`, along `v` `[..., n]`."""
        along = np.einsum("san,...n->...sa", self.first, v)
        bent = np.einsum("sij,...i,...j->...s", self.second, v, v)
        flat = states.reshape(*states.shape[:-2], -1)
        c = np.take_along_axis(along.reshape(*along.shape[:-2], -1), flat * ACTIONS + actions.reshape(flat.shape), -1)
        c, bent = c.reshape(states.shape), np.take_along_axis(bent, flat, -1).reshape(states.shape)
        return (weights * (c * (2.0 * np.cumsum(c, -1) - c) + bent)).sum(-1)

    def extremes(self, *sample: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Extreme eigenvalues `[..., 2]`, eigenvectors as rows `[..., 2, n]`, forms along them `[..., 2, N]`."""
        values, vectors = np.linalg.eigh(self.mean(*sample))
        rows = np.swapaxes(vectors[..., [0, -1]], -1, -2)
        return values[..., [0, -1]], rows, np.stack([self.forms(*sample, rows[..., i, :]) for i in (0, 1)], -2)

    def exact(self, lengths: str) -> np.ndarray:
        """The Hessian of the expected return, `[n, n]`, by central differences of its closed form."""
        n, eps = self.theta.size, 1e-3
        unit = eps * np.eye(n)

        def second(i: int, j: int) -> float:
            return sum(
                a * b * self._expected_return(self.theta.ravel() + a * unit[i] + b * unit[j], lengths)
                for a in (-1, 1)
                for b in (-1, 1)
            ) / (4.0 * eps**2)

        return np.array([[second(i, j) for j in range(n)] for i in range(n)])

    def _expected_return(self, theta: np.ndarray, lengths: str) -> float:
        policy, value = _softmax(theta.reshape(STATES, ACTIONS)), np.zeros(STATES)
        for t in reversed(range(HORIZON)):
            going_on = 1.0 if lengths == "equal" else 1.0 - 1.0 / (HORIZON - t)
            value = (policy * (self.rewards + GAMMA * going_on * self.transitions @ value)).sum(1)
        return float(self.start @ value)


def _softmax(theta: np.ndarray) -> np.ndarray:
    chances = np.exp(theta)
    return chances / chances.sum(1, keepdims=True)


def _drawn(chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index for each row of probabilities."""
    return (rng.random((*chances.shape[:-1], 1)) > np.cumsum(chances[..., :-1], -1)).sum(-1)


def drawn_lengths(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Lengths of episodes that have nothing to do with what happens in them."""
    return np.full(shape, HORIZON) if kind == "equal" else rng.integers(1, HORIZON + 1, shape)


def centred(rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rewards to go less their leave-one-out baseline, `[..., N, T]`; 0 after the end of an episode."""
    used = np.arange(HORIZON) < lengths[..., None]
    discounted = rewards * GAMMA ** np.arange(HORIZON) * used
    to_go = np.cumsum(discounted[..., ::-1], -1)[..., ::-1]
    others = to_go.shape[-2] - 1
    return used * (to_go - (to_go.sum(-2, keepdims=True) - to_go) / others)


def against_null(problem: Problem, states, actions, weights, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The p-values of both ends of one sample, by redrawn actions, and by random signs as before."""
    values, _, forms = problem.extremes(states, actions, weights)
    many = (NULL_DRAWS, *states.shape)
    again = [np.broadcast_to(array, many) for array in (states, actions, weights)]
    null, _, null_forms = problem.extremes(again[0], problem.redraw(again[0], rng), again[2])
    signs = rng.choice([-1.0, 1.0], (NULL_DRAWS, len(states), 1))
    signed = np.linalg.eigvalsh(problem.mean(again[0], again[1], signs * again[2]))[:, [0, -1]]
    return {
        "redrawn": monte_carlo_p_values(studentised(values, forms)[0], studentised(null, null_forms)[0]),
        "signs": monte_carlo_p_values(values, signed),
    }


def levels(
    problem: Problem, count: int, noise: str, lengths: str, draws: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """How many of the draws reject at the smallest, at the largest and at either end, `[3]` for each null."""
    found: dict[str, np.ndarray] = {}
    for _ in range(draws):
        states, actions = problem.sample((count,), rng)
        weights = centred(NOISE[noise](rng, states.shape), drawn_lengths(lengths, (count,), rng))
        for name, p in against_null(problem, states, actions, weights, rng).items():
            rejects = np.array([*(p <= LEVEL), (p <= LEVEL / 2.0).any()])
            found[name] = found.get(name, 0) + rejects
    return found


def coverage(
    problem: Problem, count: int, noise: str, lengths: str, draws: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """How many of the intervals hold the truth, `[2]` for each kind, and widths in those of before."""
    exact, found = problem.exact(lengths), {}
    size = max(1, _BLOCK // count)
    for start in range(0, draws, size):
        for name, numbers in _covered(problem, exact, count, noise, lengths, min(size, draws - start), rng).items():
            found.setdefault(name, []).append(numbers)
    found = {name: np.concatenate(parts) for name, parts in found.items()}
    width = np.median(found.pop("width"), 0)
    return {name: held.sum(0) for name, held in found.items()} | {"width": width}


def _covered(problem, exact, count, noise, lengths, size, rng) -> dict[str, np.ndarray]:
    """Of `size` experiments: whether each interval holds the truth, and ratios of widths, `[size, 2]` each."""
    shape = (size, count)
    states, actions = problem.sample(shape, rng)
    rewards = problem.rewards[states, actions] + NOISE[noise](rng, states.shape)
    ends = drawn_lengths(lengths, shape, rng)
    weights = centred(rewards, ends)
    redrawn = [problem.redraw(states, rng) for _ in range(redraws_of(count))]
    given = np.linalg.eigh(exact)[1].T[[0, -1]]
    given = [np.broadcast_to(v, (size, v.size)) for v in given]
    forms = np.stack([problem.forms(states, actions, weights, v) for v in given], 1)
    again = np.stack([[problem.forms(states, other, weights, v) for v in given] for other in redrawn]).swapaxes(1, 2)
    intervals = mean_interval(forms, again, LEVEL, rng)
    before = _normal(forms)

    parts = [slice(0, count // 2), slice(count // 2, count)]
    halves = [(states[:, p], actions[:, p], centred(rewards[:, p], ends[:, p])) for p in parts]
    rows = [problem.extremes(*half)[1] for half in reversed(halves)]
    pieces, again = [], []
    for half, part, directions in zip(halves, parts, rows, strict=True):
        vectors = [directions[:, i] for i in (0, 1)]
        pieces.append(np.stack([problem.forms(*half, v) for v in vectors], 1))
        # The weights that count for the spread are those of all episodes, as in `assess`.
        whole = [[problem.forms(states, other, weights, v)[:, part] for v in vectors] for other in redrawn]
        again.append(np.stack(whole).swapaxes(1, 2))
    scores = np.concatenate(pieces, -1)
    crossed = mean_interval(scores, np.concatenate(again, -1), LEVEL, rng)
    share = np.array([part.stop - part.start for part in parts]) / count
    crossed_truth = sum(s * np.einsum("ski,ij,skj->sk", r, exact, r) for s, r in zip(share, rows, strict=True))
    truth = np.array([v[0] @ exact @ v[0] for v in given])
    return {
        "given": _holds(intervals, truth),
        "given, normal": _holds(before, truth),
        "cross-fitted": _holds(crossed, crossed_truth),
        "cross-fitted, normal": _holds(_normal(scores), crossed_truth),
        "width": np.diff(intervals)[..., 0] / np.diff(before)[..., 0],
    }


def _normal(values: np.ndarray) -> np.ndarray:
    """The intervals of before."""
    half = scipy.stats.norm.ppf(1.0 - LEVEL / 2.0) * values.std(-1, ddof=1) / np.sqrt(values.shape[-1])
    return np.stack([values.mean(-1) - half, values.mean(-1) + half], -1)


def _holds(intervals: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return (intervals[..., 0] <= truth) & (truth <= intervals[..., 1])


def row_of(problem: Problem, count: int, noise: str, lengths: str, draws: int, seed: int) -> dict:
    """All that is known of one cell; without noise there is no level."""
    rng = np.random.default_rng([seed, count, list(NOISE).index(noise), LENGTHS.index(lengths)])
    row = {"episodes": count, "noise": noise, "lengths": lengths, "draws": draws, "seed": seed}
    rejections = {} if noise == "none" else levels(problem, count, noise, lengths, draws, rng)
    for null in ("redrawn", "signs"):
        shares = rejections[null] / draws if rejections else np.full(3, np.nan)
        row |= {f"{null}_{end}": float(x) for end, x in zip(("smallest", "largest", "either"), shares, strict=True)}
    held = coverage(problem, count, noise, lengths, draws, rng)
    widths = held.pop("width")
    for name, counts in held.items():
        key = name.replace(", ", "_").replace("-", "_")
        row |= {f"{key}_{end}": float(x) for end, x in zip(("smallest", "largest"), counts / draws, strict=True)}
    return row | {f"width_{end}": float(x) for end, x in zip(("smallest", "largest"), widths, strict=True)}


def main() -> None:
    """Runs all cells, prints them and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000, help="experiments of each cell (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the experiments (default 0)")
    path = pathlib.Path(__file__).parent.parent / "figures" / "significance.csv"
    parser.add_argument("--out", type=pathlib.Path, default=path, help="file (default figures/significance.csv)")
    arguments = parser.parse_args()
    problem = Problem()
    cells = [(count, noise, lengths) for count in COUNTS for lengths in LENGTHS for noise in NOISE]
    rows = [
        row_of(problem, *cell, arguments.draws, arguments.seed)
        for cell in progress_bar(cells, desc="cells", leave=False)
    ]
    with open(arguments.out, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    names = ("redrawn", "signs", "given", "given_normal", "cross_fitted", "cross_fitted_normal", "width")
    cells = [
        [
            f"{row['episodes']}, {row['noise']}, {row['lengths']}",
            *(" ".join(f"{value:.3f}" for key, value in row.items() if _belongs(key, name)) for name in names),
        ]
        for row in rows
    ]
    print(
        f"Level {LEVEL:g}: rejections at the smallest, the largest, either end. Coverage of {1 - LEVEL:.0%} intervals."
    )
    print(table(["episodes, noise, lengths", *names], cells))


def _belongs(key: str, name: str) -> bool:
    return key in {f"{name}_{end}" for end in ("smallest", "largest", "either")}


if __name__ == "__main__":
    main()
