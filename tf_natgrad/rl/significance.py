"""What to believe of the extreme curvature of an expected return."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.stats
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._typing import TensorLike
from tf_natgrad.operators import CurvatureOperator
from tf_natgrad.rl.baselines import Baseline
from tf_natgrad.rl.episodes import Episodes, check_episodes
from tf_natgrad.rl.policies import Policy, check_policy
from tf_natgrad.rl.policy_hessian import PolicyHessian
from tf_natgrad.spectrum import Eigenpairs, eigsh


class ExtremeCurvature(NamedTuple):
    """The extreme eigenpairs of a policy Hessian, with what speaks for them.

    Attributes:
        eigenvalues: `[2]`, smallest and largest, of all episodes: biased outward.
        eigenvectors: `[n, 2]`.
        residuals: `||H v - lambda v||`, `[2]`.
        intervals: confidence intervals of `v^T H v` over episodes, `[2, 2]`, as if `v` were given.
        cross_fitted: `v^T H v` with `v` from one half of the episodes and `H` from the other, averaged over both ways,
            `[2]`: biased inward. In expectation the two bracket the truth.
        cross_fitted_intervals: their confidence intervals over episodes, `[2, 2]`.
        null_limits: what the extreme eigenvalues of pure noise stay within at the level of the test, `[2]`.
        p_values: of each end against the null, `[2]`; NaN without null draws.
        rejects: whether an end is distinguishable from noise at `level` (over both ends).
        level: the level.
    """

    eigenvalues: np.ndarray
    eigenvectors: tf.Tensor
    residuals: np.ndarray
    intervals: np.ndarray
    cross_fitted: np.ndarray
    cross_fitted_intervals: np.ndarray
    null_limits: np.ndarray
    p_values: np.ndarray
    rejects: bool
    level: float


def extreme_curvature(
    policy: Policy,
    episodes: Episodes,
    *,
    estimator: str = "causal",
    baseline: Baseline = "leave_one_out",
    gamma: float = 0.99,
    level: float = 0.05,
    null_draws: int = 99,
    method: str = "auto",
    tol: float = 1e-4,
    seed: int = 0,
) -> ExtremeCurvature:
    """The smallest and largest eigenvalue of a policy Hessian, with confidence intervals, cross-fitting and a null.

    The null hypothesis is that returns have nothing to do with actions: the weights of each episode, centred by the
    baseline, get a random sign, and the extreme eigenvalues are found again, `null_draws` times.

    Args:
        policy: a `Policy`.
        episodes: that were drawn with it, with equal weights.
        estimator: a symmetric one; see `PolicyHessian`.
        baseline: see `PolicyHessian`; the null asks for one that centres the weights.
        gamma: the discount factor.
        level: of the intervals (1 - level) and of the test over both ends.
        null_draws: how often signs are drawn; 0 for no test. The test needs at least `2 / level - 1`.
        method: of `spectrum.eigsh`.
        tol: of `spectrum.eigsh`.
        seed: of signs and halves.

    Returns:
        An `ExtremeCurvature`.

    Raises:
        ValueError: if there are fewer than 4 episodes, they are weighted, or a number is out of its range.
    """
    check_policy(policy)
    check_episodes(episodes)
    _checks.check_seed("seed", seed)
    _checks.check_number("level", level, minimum=0.0, exclusive=True)
    if level >= 1.0:
        raise ValueError(_checks.message("level", level, "a number below 1"))
    _checks.check_number("null_draws", null_draws, minimum=0, integer=True)
    if episodes.weights is not None or episodes.num_episodes < 4:
        raise ValueError(
            _checks.message(
                "episodes",
                "weighted episodes" if episodes.weights is not None else f"{episodes.num_episodes} episodes",
                "at least 4 episodes of equal weight",
            )
        )
    if null_draws and null_draws < 2.0 / level - 1.0:
        raise ValueError(
            _checks.message(
                "null_draws", null_draws, f"0, or at least {int(np.ceil(2.0 / level - 1.0))} at level {level}"
            )
        )
    options = {"estimator": estimator, "baseline": baseline, "gamma": gamma}
    sample = _PolicySample(policy, episodes, options, {"method": method, "tol": tol, "seed": seed})
    return assess(sample, level, null_draws, np.random.default_rng(seed))


class Sample(Protocol):
    """Episodes, and the matrix `H` that is the mean of their matrices: all that the statistics need."""

    @property
    def num_episodes(self) -> int:
        """N."""

    def extremes(self) -> Eigenpairs:
        """The smallest and the largest eigenvalue of `H`, with eigenvectors."""

    def quadratic_forms(self, vector: TensorLike) -> np.ndarray:
        """`v^T M_e v` of each episode, `[N]`."""

    def select(self, chosen: np.ndarray) -> Sample:
        """Some of the episodes, with baselines of their own."""

    def signed_extremes(self, signs: np.ndarray) -> np.ndarray:
        """The extreme eigenvalues, `[2]`, of `H` with a sign `[N]` for the matrix of each episode."""


def assess(sample: Sample, level: float, null_draws: int, generator: np.random.Generator) -> ExtremeCurvature:
    """The statistics of `extreme_curvature`, of any sample.

    Args:
        sample: the episodes.
        level: of the intervals and of the test.
        null_draws: how often signs are drawn.
        generator: of halves and signs.

    Returns:
        An `ExtremeCurvature`.
    """
    pairs = sample.extremes()
    quantile = scipy.stats.norm.ppf(1.0 - level / 2.0)
    intervals = np.stack([_interval(sample.quadratic_forms(v), quantile) for v in tf.transpose(pairs.eigenvectors)])

    order = generator.permutation(sample.num_episodes)
    halves = [sample.select(np.sort(part)) for part in np.array_split(order, 2)]
    vectors = [tf.transpose(half.extremes().eigenvectors) for half in halves]
    scores = [np.concatenate([halves[1 - i].quadratic_forms(vectors[i][end]) for i in (0, 1)]) for end in (0, 1)]
    cross_fitted = np.array([forms.mean() for forms in scores])
    cross_intervals = np.stack([_interval(forms, quantile) for forms in scores])

    limits, p_values, rejects = np.full(2, np.nan), np.full(2, np.nan), False
    if null_draws:
        signs = generator.choice([-1.0, 1.0], [null_draws, sample.num_episodes])
        null = np.stack([sample.signed_extremes(row) for row in signs])
        beyond = np.array([(null[:, 0] <= pairs.eigenvalues[0]).sum(), (null[:, 1] >= pairs.eigenvalues[1]).sum()])
        p_values = (1.0 + beyond) / (1.0 + null_draws)
        limits = np.array([np.quantile(null[:, 0], level / 2.0), np.quantile(null[:, 1], 1.0 - level / 2.0)])
        rejects = bool((p_values <= level / 2.0).any())
    return ExtremeCurvature(
        pairs.eigenvalues,
        pairs.eigenvectors,
        pairs.info.residuals,
        intervals,
        cross_fitted,
        cross_intervals,
        limits,
        p_values,
        rejects,
        level,
    )


class _PolicySample:
    """Episodes of a policy."""

    def __init__(self, policy: Policy, episodes: Episodes, options: dict[str, Any], solver: dict[str, Any]):
        self._arguments = policy, episodes, options, solver
        self._episodes = episodes
        self._solver = solver
        self._hessian = PolicyHessian(policy, episodes, **options)
        self.num_episodes = episodes.num_episodes

    def extremes(self) -> Eigenpairs:
        return eigsh(self._hessian, 2, "BE", **self._solver)

    def quadratic_forms(self, vector: TensorLike) -> np.ndarray:
        return self._hessian.quadratic_forms(vector).numpy()

    def select(self, chosen: np.ndarray) -> _PolicySample:
        policy, episodes, options, solver = self._arguments
        return _PolicySample(policy, episodes.select(chosen), options, solver)

    def signed_extremes(self, signs: np.ndarray) -> np.ndarray:
        operator, shares = self._reweighted
        shares.assign(self._episodes.episode_weights * signs)
        return eigsh(operator, 2, "BE", **self._solver).eigenvalues

    @functools.cached_property
    def _reweighted(self) -> tuple[CurvatureOperator, tf.Variable]:
        return self._hessian.reweighted()


def _interval(forms: np.ndarray, quantile: float) -> np.ndarray:
    """The confidence interval of the mean of independent values."""
    half = quantile * forms.std(ddof=1) / np.sqrt(len(forms))
    return np.array([forms.mean() - half, forms.mean() + half])


__all__ = ["ExtremeCurvature", "Sample", "assess", "extreme_curvature"]
