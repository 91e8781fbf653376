"""Extreme eigenvalues: the plug-in and the cross-fitted bracket the truth, and the test keeps its level."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from mdp import GAMMA, Mdp

from tf_natgrad import rl
from tf_natgrad.rl.significance import assess
from tf_natgrad.spectrum.extreme import Eigenpairs, EigshInfo

pytestmark = pytest.mark.usefixtures("float64")


class TabularSample:
    """Episodes of the tabular policy with their matrices, in NumPy: what `assess` asks for, in microseconds."""

    def __init__(self, mdp, steps, baseline="leave_one_out"):
        self.mdp, self.steps, self.baseline = mdp, steps, baseline
        weights = steps.padded(rl.step_weights(steps.episodes(), "causal", baseline, GAMMA))
        self.matrices = mdp.matrices(steps, weights)
        self.num_episodes = len(steps.lengths)

    def extremes(self):
        values, vectors = np.linalg.eigh(self.matrices.mean(0))
        ends = [0, -1]
        return Eigenpairs(values[ends], vectors[:, ends], EigshInfo("numpy", 0, np.zeros(2), np.ones(2, bool), 0))

    def quadratic_forms(self, vector):
        return np.einsum("i,eij,j->e", vector, self.matrices, vector)

    def select(self, chosen):
        return TabularSample(self.mdp, self.steps.select(chosen), self.baseline)

    def signed_extremes(self, signs):
        return np.linalg.eigvalsh(np.tensordot(signs, self.matrices, 1) / self.num_episodes)[[0, -1]]


def without_effect(mdp, count, rng):
    """Episodes whose rewards know nothing of the actions."""
    steps = mdp.sample(count, rng)
    return dataclasses.replace(steps, rewards=rng.normal(0.5, 1.0, steps.rewards.shape))


@pytest.mark.parametrize("ends", [False, True], ids=["full", "ragged"])
def test_it_is_the_same_by_operators_and_by_matrices(ends):
    mdp = Mdp(ends=ends)
    steps = mdp.sample(20, np.random.default_rng(5))
    by_operators = rl.extreme_curvature(mdp.policy(), steps.episodes(), gamma=GAMMA, level=0.2, null_draws=9, seed=3)
    by_matrices = assess(TabularSample(mdp, steps), 0.2, 9, np.random.default_rng(3))
    for name in by_operators._fields:
        expected, value = getattr(by_matrices, name), np.asarray(getattr(by_operators, name))
        if name == "eigenvectors":
            expected, value = np.abs(expected), np.abs(value)
        np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-10, err_msg=name)


def test_intervals_are_those_of_a_mean():
    mdp = Mdp()
    sample = TabularSample(mdp, mdp.sample(40, np.random.default_rng(0)))
    result = assess(sample, 0.1, 0, np.random.default_rng(0))
    for end in (0, 1):
        forms = sample.quadratic_forms(result.eigenvectors[:, end])
        expected = scipy.stats.norm.interval(0.9, forms.mean(), scipy.stats.sem(forms))
        np.testing.assert_allclose(result.intervals[end], expected, rtol=1e-10)
        np.testing.assert_allclose(result.eigenvalues[end], forms.mean(), rtol=1e-10)
    assert np.isnan(result.p_values).all()
    assert not result.rejects


@pytest.fixture(scope="module")
def replicates():
    mdp, rng = Mdp(), np.random.default_rng(0)
    samples = (TabularSample(mdp, mdp.sample(100, rng)) for _ in range(500))
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


def test_the_level_is_kept_where_returns_do_not_depend_on_actions():
    mdp, rng = Mdp(), np.random.default_rng(0)
    samples = (TabularSample(mdp, without_effect(mdp, 100, rng)) for _ in range(200))
    rejections = sum(assess(sample, 0.05, 199, rng).rejects for sample in samples)
    assert 0.02 * 200 <= rejections <= 0.09 * 200


def test_a_real_curvature_is_found():
    mdp, rng = Mdp(), np.random.default_rng(0)
    rejections = sum(assess(TabularSample(mdp, mdp.sample(1000, rng)), 0.05, 99, rng).rejects for _ in range(30))
    assert rejections >= 0.9 * 30


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
