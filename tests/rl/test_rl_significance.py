"""Extreme eigenvalues: the plug-in and the cross-fitted bracket the truth, and the test keeps its level."""

import contextlib
import copy
import dataclasses

import numpy as np
import pytest
import scipy.stats
import scripts
from mdp import GAMMA, Mdp

from tf_natgrad import rl
from tf_natgrad.rl.curvature import episode_statistics, significance
from tf_natgrad.rl.curvature.episode_statistics import mean_interval, monte_carlo_p_values, studentised
from tf_natgrad.rl.curvature.significance import assess
from tf_natgrad.spectrum.extreme import Eigenpairs, EigshInfo

pytestmark = pytest.mark.usefixtures("float64")


class TabularSample:
    """Episodes of the tabular policy with their matrices, in NumPy: what `assess` asks for, in microseconds."""

    def __init__(self, mdp, steps, baseline="leave_one_out", draw=None):
        self.mdp, self.steps, self.baseline = mdp, steps, baseline
        self.draw = draw or self.drawn
        self.weights = steps.padded(rl.step_weights(steps.episodes(), "causal", baseline, GAMMA))
        self.matrices = mdp.matrices(steps, self.weights)
        self.num_episodes = len(steps.lengths)

    def extremes(self):
        values, vectors = np.linalg.eigh(self.matrices.mean(0))
        ends = [0, -1]
        return Eigenpairs(values[ends], vectors[:, ends], EigshInfo("numpy", 0, np.zeros(2), np.ones(2, bool), 0))

    def quadratic_forms(self, vector):
        return (self.matrices @ vector) @ vector

    def select(self, chosen):
        return TabularSample(self.mdp, self.steps.select(chosen), self.baseline, self.draw)

    def redrawn(self, generator):
        other = copy.copy(self)
        other.matrices = self.mdp.matrices(dataclasses.replace(self.steps, actions=self.draw(generator)), self.weights)
        return other

    def drawn(self, generator):
        """Actions of the policy at the states."""
        return (generator.random(self.steps.states.shape) > self.mdp.probabilities()[self.steps.states, 0]).astype(int)


def as_the_policy_draws(mdp, steps):
    """The actions that `extreme_curvature` draws with the same generator."""
    policy, observations = mdp.policy(), steps.episodes().observations

    def draw(generator):
        seed = generator.integers(2**31, size=2).astype(np.int32)
        return steps.padded(policy.sample(observations, seed).numpy()).astype(int)

    return draw


def without_effect(mdp, count, rng):
    """Episodes whose rewards know nothing of the actions."""
    steps = mdp.sample(count, rng)
    return dataclasses.replace(steps, rewards=rng.normal(0.5, 1.0, steps.rewards.shape))


@pytest.mark.parametrize("ends", [False, True], ids=["full", "ragged"])
def test_it_is_the_same_by_operators_and_by_matrices(ends):
    mdp = Mdp(ends=ends)
    steps = mdp.sample(20, np.random.default_rng(5))
    by_operators = rl.extreme_curvature(mdp.policy(), steps.episodes(), gamma=GAMMA, level=0.2, null_draws=9, seed=3)
    sample = TabularSample(mdp, steps, draw=as_the_policy_draws(mdp, steps))
    by_matrices = assess(sample, 0.2, 9, np.random.default_rng(3))
    for name in by_operators._fields:
        expected, value = getattr(by_matrices, name), np.asarray(getattr(by_operators, name))
        if name == "eigenvectors":
            expected, value = np.abs(expected), np.abs(value)
        np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-10, err_msg=name)


def test_intervals_are_those_of_a_mean():
    """Around it, and at least as wide as Student's."""
    mdp = Mdp()
    sample = TabularSample(mdp, mdp.sample(40, np.random.default_rng(0)))
    result = assess(sample, 0.1, 0, np.random.default_rng(0))
    for end in (0, 1):
        forms = sample.quadratic_forms(result.eigenvectors[:, end])
        student = scipy.stats.t.interval(0.9, 39, forms.mean(), scipy.stats.sem(forms))
        assert result.intervals[end, 0] < student[0] and result.intervals[end, 1] > student[1]
        np.testing.assert_allclose(result.eigenvalues[end], forms.mean(), rtol=1e-10)
    assert np.isnan(result.p_values).all() and np.isnan(result.null_limits).all()
    assert not result.rejects


def test_the_interval_of_many_normal_values_is_that_of_textbooks(rng):
    values = rng.normal(size=4000)
    low, high = mean_interval(values, None, 0.05, rng)
    expected = scipy.stats.norm.interval(0.95, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose([low, high], expected, atol=0.1 * (expected[1] - expected[0]))


def test_the_interval_leans_to_where_rare_values_are(rng):
    values = rng.exponential(size=15) ** 2
    low, high = mean_interval(values, None, 0.05, rng) - values.mean()
    mirrored = mean_interval(-values, None, 0.05, np.random.default_rng(1)) + values.mean()
    assert high > 1.2 * -low
    assert -mirrored[0] > 1.2 * mirrored[1]


def test_leading_axes_are_intervals_of_their_own():
    values, redrawn = (
        np.random.default_rng(1).normal(size=(2, 3, 8)),
        np.random.default_rng(2).normal(size=(5, 2, 3, 8)),
    )
    together = mean_interval(values, redrawn, 0.1, np.random.default_rng(0))
    for i, j in np.ndindex(2, 3):
        alone = mean_interval(values[i, j], redrawn[:, i, j], 0.1, np.random.default_rng(0))
        np.testing.assert_allclose(together[i, j], alone, rtol=1e-10)


def test_the_variance_of_redrawn_actions_counts_as_a_hundred_episodes(rng):
    values, redrawn = rng.normal(size=10), 3.0 * rng.normal(size=(50, 10))
    narrow, wide = (np.ptp(mean_interval(values, r, 0.05, np.random.default_rng(0))) for r in (None, redrawn))
    variance = values.var(ddof=1)
    expected = (100 * np.square(redrawn).mean() + 9 * variance) / 109
    assert wide / narrow == pytest.approx(np.sqrt(expected / variance))
    same = mean_interval(values, 0.1 * redrawn, 0.05, np.random.default_rng(0))
    assert np.ptp(same) == pytest.approx(narrow)


@pytest.mark.parametrize("values", [np.zeros(5), np.eye(5)[0]], ids=["all the same", "all but one the same"])
def test_an_interval_of_few_distinct_values_is_finite(values, rng):
    low, high = mean_interval(values, None, 0.05, rng)
    assert np.isfinite([low, high]).all() and low <= values.mean() <= high


def test_p_values_count_what_is_as_extreme():
    null = np.array([[-1.0, 1.0], [-2.0, 2.0], [-3.0, 4.0]])
    np.testing.assert_allclose(monte_carlo_p_values(np.array([-2.0, 5.0]), null), [3 / 4, 1 / 4])
    np.testing.assert_allclose(monte_carlo_p_values(np.array([-9.0, 0.0]), null), [1 / 4, 1.0])


def test_eigenvalues_in_units_of_one_error_for_both_ends():
    forms = np.array([[1.0, -1.0, 3.0, 1.0], [0.0, 2.0, 2.0, 0.0]])
    statistics, unit = studentised(np.array([-2.0, 4.0]), forms)
    expected = np.hypot(*(scipy.stats.sem(row) for row in forms))
    np.testing.assert_allclose(unit, [expected])
    np.testing.assert_allclose(statistics, np.array([-2.0, 4.0]) / expected)
    np.testing.assert_array_equal(studentised(np.array([-1e-20, 0.0]), np.zeros((2, 4)))[0], [0.0, 0.0])


@contextlib.contextmanager
def rough_intervals():
    """For what does not look at intervals, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "redraws_of", lambda count: 1)
        patch.setattr(episode_statistics, "_RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def replicates():
    mdp, rng = Mdp(), np.random.default_rng(0)
    samples = (TabularSample(mdp, mdp.sample(100, rng)) for _ in range(500))
    with rough_intervals():
        results = [assess(sample, 0.05, 0, rng) for sample in samples]
    return np.array([r.eigenvalues for r in results]), np.array([r.cross_fitted for r in results])


def test_plug_in_and_cross_fitted_bracket_the_truth_in_the_mean(replicates):
    exact = np.linalg.eigvalsh(Mdp().exact()[1])[[0, -1]]
    outward = np.array([-1.0, 1.0])
    plug_in, cross_fitted = (outward * (values - exact) for values in replicates)
    assert (plug_in.mean(0) > -3 * scipy.stats.sem(plug_in)).all()
    assert (cross_fitted.mean(0) < 3 * scipy.stats.sem(cross_fitted)).all()


def test_the_two_are_biased_and_the_test_would_notice_them_exchanged(replicates):
    plug_in, cross_fitted = replicates
    gap = np.array([-1.0, 1.0]) * (plug_in - cross_fitted)
    assert (gap.mean(0) > 10 * scipy.stats.sem(gap)).all()


@pytest.fixture(scope="module")
def benchmark():
    with scripts.imported("significance", "benchmarks") as module:
        yield module


def test_the_benchmark_has_the_same_matrices(benchmark, rng):
    mdp, problem = Mdp(), benchmark.Problem()
    steps = dataclasses.replace(mdp.sample(30, rng), lengths=rng.integers(1, 5, 30))
    sample, weights = TabularSample(mdp, steps), benchmark.centred(steps.rewards, steps.lengths)
    arrays = steps.states, steps.actions, weights
    np.testing.assert_allclose(weights, sample.weights, atol=1e-12)
    np.testing.assert_allclose(problem.mean(*arrays), sample.matrices.mean(0), atol=1e-12)
    v = rng.normal(size=6)
    np.testing.assert_allclose(problem.forms(*arrays, v), sample.quadratic_forms(v), atol=1e-12)
    np.testing.assert_allclose(problem.exact("equal"), mdp.exact()[1], atol=1e-6)


def at_most(count, draws, share):
    """Whether so many of the draws are compatible with a share of at most this."""
    return scipy.stats.binomtest(int(count), draws, share, alternative="greater").pvalue > 1e-3


def test_the_level_is_kept_where_returns_are_skewed_and_lengths_unequal(benchmark):
    draws = 500
    found = benchmark.levels(benchmark.Problem(), 50, "rare", "unequal", draws, np.random.default_rng(0))
    assert all(at_most(count, draws, 0.05) for count in found["redrawn"])
    assert not all(at_most(count, draws, 0.05) for count in found["signs"])


def test_intervals_of_few_episodes_hold_the_truth(benchmark):
    draws = 1000
    held = benchmark.coverage(benchmark.Problem(), 10, "skewed down", "equal", draws, np.random.default_rng(0))
    for name in ("given", "cross-fitted"):
        assert all(at_most(draws - count, draws, 0.05) for count in held[name])
        assert not all(at_most(draws - count, draws, 0.05) for count in held[f"{name}, normal"])


def test_the_level_is_kept_by_all_of_it():
    mdp, rng = Mdp(), np.random.default_rng(0)
    with rough_intervals():
        results = [assess(TabularSample(mdp, without_effect(mdp, 20, rng)), 0.05, 39, rng) for _ in range(200)]
    assert at_most(sum(result.rejects for result in results), 200, 0.05)
    p_values = np.array([result.p_values for result in results])
    assert all(at_most(count, 200, 0.1) for count in (p_values <= 0.1).sum(0))
    for result in results:
        beyond = result.eigenvalues * [-1, 1] > result.null_limits * [-1, 1]
        assert (beyond >= (result.p_values <= 0.025)).all() and (beyond <= (result.p_values <= 0.05)).all()


def test_a_real_curvature_is_found():
    mdp, rng = Mdp(), np.random.default_rng(0)
    with rough_intervals():
        rejections = sum(assess(TabularSample(mdp, mdp.sample(200, rng)), 0.05, 39, rng).rejects for _ in range(30))
    assert rejections >= 0.9 * 30


def test_a_real_curvature_is_found_in_few_episodes(benchmark):
    """The same rewards as in the decision process, 100 episodes, no assumption on returns."""
    problem, rng, found = benchmark.Problem(), np.random.default_rng(0), []
    for _ in range(100):
        states, actions = problem.sample((100,), rng)
        weights = benchmark.centred(problem.rewards[states, actions], np.full(100, benchmark.HORIZON))
        found.append((benchmark.against_null(problem, states, actions, weights, rng)["redrawn"] <= 0.025).any())
    assert sum(found) >= 90


@pytest.mark.parametrize(
    "change, options, error, match",
    [
        ({}, {"null_draws": 38}, ValueError, r"`null_draws`: received 38; expected 0, or at least 39 at level 0.05"),
        ({}, {"null_draws": -1}, ValueError, r"`null_draws`: received -1"),
        ({}, {"level": 0.0}, ValueError, r"`level`: received 0.0"),
        ({}, {"level": 1.5}, ValueError, r"`level`: received 1.5"),
        ({}, {"estimator": "algorithm1"}, ValueError, r"symmetrize\(\)"),
        ({"lengths": np.array([4] * 3)}, {}, ValueError, r"`episodes`: received 3 episodes; expected at least 4"),
        ({"probabilities": np.full(8, 1 / 8)}, {}, ValueError, r"`episodes`: received weighted episodes"),
    ],
)
def test_what_is_refused(change, options, error, match):
    mdp = Mdp()
    steps = mdp.sample(8, np.random.default_rng(0))
    steps = steps.select(range(3)) if "lengths" in change else dataclasses.replace(steps, **change)
    with pytest.raises(error, match=match):
        rl.extreme_curvature(mdp.policy(), steps.episodes(), **options)
