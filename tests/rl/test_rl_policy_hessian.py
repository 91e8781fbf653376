"""The policy Hessian: unbiased by enumeration, and the products of a dense matrix."""

import dataclasses
import functools
import itertools

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from mdp import GAMMA, HORIZON, STATES, Mdp, estimate

from tf_natgrad import operators, rl, spectrum
from tf_natgrad.distributions import CategoricalPd
from tf_natgrad.operators.score_function import ESTIMATORS

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {"rtol": 0.0, "atol": 1e-10}
# By how much a biased estimator misses, at least: ten million times the tolerance.
FAR = 1e-3
TABLE = np.random.default_rng(2).normal(size=(HORIZON, STATES))


def by_state(observations, times):
    """A baseline of state and time that has nothing to do with values."""
    return TABLE[times, observations.argmax(1)]


@pytest.fixture(scope="module", params=[False, True], ids=["full", "ragged"])
def mdp(request):
    return Mdp(ends=request.param)


@pytest.fixture(scope="module")
def episodes(mdp):
    return mdp.enumeration().episodes()


@pytest.fixture(scope="module")
def policy(mdp, float64):
    return mdp.policy()


def with_weights(policy, episodes, weights, estimator):
    """The operator of weights that no baseline gives."""
    return operators.ScoreFunctionHessian(
        lambda: policy.log_prob(episodes.observations, episodes.actions),
        policy.trainable_variables,
        weights,
        episodes.episode_ids,
        episode_weights=episodes.weights,
        estimator=estimator,
    ).to_dense()


def test_the_oracle_is_the_derivative_of_the_expected_return(mdp):
    def moved(*terms):
        return mdp.expected_return(mdp.theta + np.sum([1e-3 * t for t in terms], 0))

    gradient, hessian = mdp.exact()
    units = np.eye(6).reshape(6, 3, 2)
    first = [(moved(u) - moved(-u)) / 2e-3 for u in units]
    second = [[moved(u, v) - moved(u, -v) - moved(-u, v) + moved(-u, -v) for u in units] for v in units]
    np.testing.assert_allclose(gradient, first, atol=1e-6)
    np.testing.assert_allclose(hessian, np.array(second) / 4e-6, atol=1e-6)


def test_the_enumeration_is_complete(mdp, episodes):
    assert episodes.num_episodes == 1296
    np.testing.assert_allclose(episodes.weights.sum(), 1.0)
    np.testing.assert_allclose(episodes.weights @ episodes.returns(GAMMA), mdp.expected_return())


@pytest.mark.parametrize("estimator", ["trajectory", "causal"])
@pytest.mark.parametrize("baseline", [None, 0.7, by_state], ids=["none", "constant", "state"])
def test_unbiased(mdp, policy, episodes, estimator, baseline):
    gradient, exact = mdp.exact()
    hessian = rl.PolicyHessian(policy, episodes, estimator, baseline, GAMMA)
    np.testing.assert_allclose(hessian.to_dense(), exact, **EXACT)
    np.testing.assert_allclose(hessian.policy_gradient(), gradient, **EXACT)


def test_the_surrogate_is_another_matrix(mdp, policy, episodes):
    hessian = rl.PolicyHessian(policy, episodes, "surrogate", gamma=GAMMA).to_dense().numpy()
    np.testing.assert_allclose(hessian, hessian.T, **EXACT)
    assert np.abs(hessian - mdp.exact()[1]).max() > FAR


@pytest.mark.parametrize("baseline", [None, by_state], ids=["none", "state"])
def test_algorithm_1_is_unbiased_but_not_symmetric(mdp, policy, episodes, baseline):
    hessian = rl.PolicyHessian(policy, episodes, "algorithm1", baseline, GAMMA)
    np.testing.assert_allclose(hessian.to_dense(), mdp.exact()[1], **EXACT)
    few = (
        rl.PolicyHessian(policy, episodes.select(range(0, 1296, 37)), "algorithm1", baseline, GAMMA).to_dense().numpy()
    )
    assert np.abs(few - few.T).max() > 0.01 * np.abs(few).max()


def test_a_dropped_discount_is_biased(mdp, policy, episodes):
    discount = GAMMA**episodes.times
    for estimator in ("causal", "algorithm1"):
        right = with_weights(policy, episodes, episodes.rewards_to_go(GAMMA), estimator)
        wrong = with_weights(policy, episodes, episodes.rewards_to_go(GAMMA) / discount, estimator)
        np.testing.assert_allclose(right, mdp.exact()[1], **EXACT)
        assert np.abs(wrong - mdp.exact()[1]).max() > FAR


@pytest.mark.parametrize("decay", [0.0, 0.9], ids=["td", "gae"])
def test_algorithm_1_with_advantages_is_biased(mdp, policy, episodes, decay):
    values, _ = mdp.values()
    here = values[episodes.times, episodes.observations.argmax(1)]
    last = np.append(episodes.times[1:] == 0, True)
    advantages = episodes.rewards - here + GAMMA * np.where(last, 0.0, np.roll(here, -1))
    for t in reversed(range(len(here) - 1)):
        advantages[t] += 0.0 if last[t] else GAMMA * decay * advantages[t + 1]
    hessian = with_weights(policy, episodes, GAMMA**episodes.times * advantages, "algorithm1").numpy()
    assert np.abs(hessian - mdp.exact()[1]).max() > FAR


@pytest.mark.parametrize("ends", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("estimator", ["trajectory", "causal"])
@pytest.mark.parametrize("horizon, count", [(2, 2), (1, 3)], ids=["pairs", "triples"])
def test_leave_one_out_is_unbiased_over_all_sets_of_episodes(ends, estimator, horizon, count):
    mdp = Mdp(horizon, ends)
    steps = mdp.enumeration()
    left_out, in_sample = 0.0, 0.0
    for chosen in itertools.product(range(len(steps.lengths)), repeat=count):
        some, chance = steps.select(list(chosen)), steps.probabilities[list(chosen)].prod()
        raw, centred = (rl.step_weights(some.episodes(), estimator, b, GAMMA) for b in (None, "leave_one_out"))
        raw, centred = some.padded(raw), some.padded(centred)
        left_out = left_out + chance * mdp.matrices(some, centred, estimator).mean(0)
        in_sample = in_sample + chance * mdp.matrices(some, raw - raw.mean(0), estimator).mean(0)
    np.testing.assert_allclose(left_out, mdp.exact()[1], **EXACT)
    np.testing.assert_allclose(in_sample, (1 - 1 / count) * mdp.exact()[1], **EXACT)


@pytest.mark.parametrize("estimator", ["trajectory", "causal"])
def test_leave_one_out_over_all_pairs_of_the_enumeration(mdp, estimator):
    steps = mdp.enumeration()
    raw = steps.padded(rl.step_weights(steps.episodes(), estimator, None, GAMMA))

    def mean_over_pairs(own, other):
        """The first of two episodes, with `own w_e - other w_f`; linear in the weights, so `w_f` enters by its mean."""
        weights = own * raw - other * (steps.probabilities @ raw)
        return np.tensordot(steps.probabilities, mdp.matrices(steps, weights, estimator), 1)

    exact = mdp.exact()[1]
    np.testing.assert_allclose(mean_over_pairs(1.0, 1.0), exact, **EXACT)
    np.testing.assert_allclose(mean_over_pairs(0.5, 0.5), (1 - 1 / 2) * exact, **EXACT)


# Products against dense matrices, for networks.

LENGTHS = [3, 1, 4, 2]


def _network(inputs, outputs):
    network = keras.Sequential([keras.Input((inputs,)), layers.Dense(2, "tanh"), layers.Dense(outputs)])
    rng = np.random.default_rng(3)
    network.set_weights([rng.normal(0.0, 0.7, w.shape) for w in network.get_weights()])
    return network


class Ragged:
    """A policy, ragged episodes, and all matrices by one Jacobian after the other."""

    def __init__(self, kind, weighted=False):
        rng = np.random.default_rng(4)
        shape = (len(LENGTHS), max(LENGTHS))
        if kind == "discrete":
            self.policy, actions = rl.CategoricalPolicy(_network(2, 3)), rng.integers(0, 3, shape)
        else:
            self.policy = rl.GaussianPolicy(_network(2, 2), initial_log_std=-0.3)
            actions = rng.normal(size=(*shape, 2))
        shares = rng.uniform(0.1, 0.4, len(LENGTHS)) if weighted else None
        self.episodes = rl.Episodes.from_arrays(
            rng.normal(size=(*shape, 2)), actions, rng.normal(size=shape), LENGTHS, shares
        )
        self.size = sum(int(np.prod(v.shape)) for v in self.policy.trainable_variables)

    def make_hessian(self, estimator, chunk_steps=None):
        return rl.PolicyHessian(self.policy, self.episodes, estimator, 0.3, GAMMA, chunk_steps)

    @functools.cache  # noqa: B019
    def hessian(self, estimator):
        return self.make_hessian(estimator)

    @functools.cached_property
    def derivatives(self):
        """`g` `[M, n]` and `h` `[M, n, n]`."""
        variables = [v.value for v in self.policy.trainable_variables]
        with tf.GradientTape(persistent=True) as outer:
            with tf.GradientTape(persistent=True) as inner:
                log_probs = self.policy.log_prob(self.episodes.observations, self.episodes.actions)
            first = inner.jacobian(log_probs, variables, experimental_use_pfor=False)
            first = _joined(first, 1)
        second = outer.jacobian(first, variables, unconnected_gradients="zero")
        return first.numpy(), _joined(second, 2).numpy()

    def matrices(self, estimator, weights):
        """`M_e`, one episode after the other, `[N, n, n]`."""
        g, h = self.derivatives
        parts = [np.flatnonzero(self.episodes.episode_ids == e) for e in range(len(LENGTHS))]
        return np.concatenate([estimate(estimator, g[p][None], h[p][None], weights[p][None]) for p in parts])

    def dense(self, estimator, weights):
        return np.tensordot(self.episodes.episode_weights, self.matrices(estimator, weights), 1)


def _joined(blocks, leading):
    """Derivatives in each variable as derivatives in the flat parameters."""
    return tf.concat([tf.reshape(b, [*b.shape[:leading], -1]) for b in blocks], -1)


KINDS = ["discrete", "continuous"]


@functools.cache
def shared(kind):
    """Not to be trained."""
    return Ragged(kind)


@pytest.fixture(params=KINDS)
def ragged(request, float64):
    return shared(request.param)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_products_are_those_of_the_dense_matrix(ragged, estimator, rng):
    hessian = ragged.hessian(estimator)
    dense = ragged.dense(estimator, hessian.step_weights)
    x = rng.normal(size=(ragged.size, 3))
    np.testing.assert_allclose(hessian.to_dense(), dense, **EXACT)
    np.testing.assert_allclose(hessian.matmul(x), dense @ x, **EXACT)
    np.testing.assert_allclose(hessian.matvec(x[:, 0]), dense @ x[:, 0], **EXACT)
    np.testing.assert_allclose(hessian.matvec(x[:, 0], adjoint=True), dense.T @ x[:, 0], **EXACT)
    np.testing.assert_allclose(hessian.matmul(x, adjoint=True), dense.T @ x, **EXACT)
    np.testing.assert_allclose(hessian.to_scipy().rmatvec(x[:, 0]), dense.T @ x[:, 0], **EXACT)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_policy_gradient_and_quadratic_forms(ragged, estimator, rng):
    hessian, v = ragged.hessian(estimator), rng.normal(size=ragged.size)
    forms = np.einsum("i,eij,j->e", v, ragged.matrices(estimator, hessian.step_weights), v)
    np.testing.assert_allclose(hessian.quadratic_forms(v), forms, **EXACT)
    np.testing.assert_allclose(np.mean(forms), np.dot(v, hessian.matvec(v)), **EXACT)
    shares = (ragged.episodes.episode_weights[ragged.episodes.episode_ids] * hessian.step_weights)[:, None]
    np.testing.assert_allclose(hessian.policy_gradient(), (shares * ragged.derivatives[0]).sum(0), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ["causal", "algorithm1"])
def test_weighted_episodes(kind, estimator):
    ragged = Ragged(kind, weighted=True)
    hessian = ragged.hessian(estimator)
    np.testing.assert_allclose(hessian.to_dense(), ragged.dense(estimator, hessian.step_weights), **EXACT)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_symmetric_to_rounding_or_declared_not_to_be(ragged, estimator):
    hessian = ragged.hessian(estimator)
    dense = hessian.to_dense().numpy()
    difference = np.abs(dense - dense.T).max()
    assert hessian.is_self_adjoint == (estimator != "algorithm1")
    assert difference < 1e-14 * np.abs(dense).max() if hessian.is_self_adjoint else difference > 1e-2


@pytest.mark.parametrize(
    "kind, estimator, steps",
    [
        ("discrete", "causal", 1),
        ("discrete", "algorithm1", 4),
        ("continuous", "causal", 1000),
        ("continuous", "trajectory", 4),
        ("continuous", "surrogate", 4),
    ],
)
def test_in_chunks(kind, estimator, steps, rng):
    ragged = shared(kind)
    parts, x = ragged.make_hessian(estimator, steps), rng.normal(size=(ragged.size, 2))
    dense = ragged.dense(estimator, parts.step_weights)
    np.testing.assert_allclose(parts.to_dense(), dense, **EXACT)
    np.testing.assert_allclose(parts.matmul(x), dense @ x, **EXACT)
    np.testing.assert_allclose(parts.matvec(x[:, 0], adjoint=True), dense.T @ x[:, 0], **EXACT)
    np.testing.assert_allclose(parts.policy_gradient(), ragged.hessian(estimator).policy_gradient(), **EXACT)
    forms = np.einsum("i,eij,j->e", x[:, 0], ragged.matrices(estimator, parts.step_weights), x[:, 0])
    np.testing.assert_allclose(parts.quadratic_forms(x[:, 0]), forms, **EXACT)


@pytest.mark.parametrize("chunk_steps", [None, 4])
def test_symmetrize(chunk_steps):
    hessian = shared("discrete").make_hessian("algorithm1", chunk_steps)
    dense, symmetric = hessian.to_dense().numpy(), hessian.symmetrize()
    assert symmetric.is_self_adjoint
    np.testing.assert_allclose(symmetric.to_dense(), (dense + dense.T) / 2, **EXACT)
    pairs = spectrum.eigsh(symmetric, 2, "BE")
    np.testing.assert_allclose(pairs.eigenvalues, np.linalg.eigvalsh((dense + dense.T) / 2)[[0, -1]], **EXACT)
    causal = shared("discrete").hessian("causal")
    assert causal.symmetrize() is causal


@pytest.mark.parametrize("method", ["auto", "lanczos", "arpack", "dense"])
def test_eigsh_refuses_what_is_not_symmetric(method):
    with pytest.raises(ValueError, match=r"symmetrize\(\)"):
        spectrum.eigsh(shared("discrete").hessian("algorithm1"), 2, "BE", method=method)


@pytest.mark.parametrize("method", ["lanczos", "arpack", "dense"])
def test_both_ends_of_the_spectrum(method):
    ragged = shared("discrete")
    hessian = ragged.hessian("causal")
    dense = ragged.dense("causal", hessian.step_weights)
    pairs = spectrum.eigsh(hessian, 2, "BE", method=method, tol=1e-10)
    np.testing.assert_allclose(pairs.eigenvalues, np.linalg.eigvalsh(dense)[[0, -1]], rtol=1e-8)
    residuals = np.linalg.norm(dense @ pairs.eigenvectors - pairs.eigenvectors * pairs.eigenvalues, axis=0)
    np.testing.assert_allclose(residuals, pairs.info.residuals, atol=1e-9)


def test_episodes_that_are_not_in_one_piece_are_refused(policy):
    def hessian(ids):
        return operators.ScoreFunctionHessian(
            lambda: policy.log_prob(np.eye(3), [0, 1, 0]), policy.trainable_variables, np.ones(3), ids
        )

    assert hessian([0, 0, 1]).shape == (6, 6)
    for ids in ([0, 1, 0], [1, 1, 2], [0, 0, 2]):
        with pytest.raises(ValueError, match=r"`episode_ids`.*each episode in one piece"):
            hessian(ids)


def test_it_is_the_matrix_at_the_weights_of_its_construction():
    ragged = Ragged("discrete")
    hessian, v = ragged.hessian("causal"), np.linspace(-1.0, 1.0, ragged.size)
    before = [f(v).numpy() for f in (hessian.matvec, hessian.quadratic_forms)]
    other = ragged.make_hessian("causal")
    for variable in ragged.policy.trainable_variables:
        variable.assign_add(tf.ones(variable.shape, variable.dtype))
    for operator in (hessian, other):
        np.testing.assert_array_equal(operator.matvec(v), before[0])
        np.testing.assert_array_equal(operator.quadratic_forms(v), before[1])
    assert np.abs(ragged.make_hessian("causal").matvec(v) - before[0]).max() > 1e-3


def test_episode_weights_that_change(rng):
    ragged = shared("continuous")
    hessian = ragged.hessian("causal")
    operator, shares = hessian.reweighted()
    matrices = ragged.matrices("causal", hessian.step_weights)
    for _ in range(2):
        shares.assign(rng.normal(size=len(LENGTHS)))
        dense = np.tensordot(shares.numpy(), matrices, 1)
        np.testing.assert_allclose(operator.to_dense(), dense, **EXACT)
        unit = np.eye(ragged.size)[3]
        np.testing.assert_allclose(operator.matvec(unit), dense @ unit, **EXACT)


@pytest.mark.parametrize("kind, estimator", [("discrete", "causal"), ("continuous", "algorithm1")])
def test_actions_that_change(kind, estimator, rng):
    ragged, x = Ragged(kind), rng.normal(size=shared(kind).size)
    operator, actions = ragged.make_hessian(estimator).redrawn()
    for _ in range(2):
        before = operator.matvec(x).numpy()
        drawn = ragged.policy.sample(ragged.episodes.observations, rng.integers(9, size=2)).numpy()
        actions.assign(drawn.astype(ragged.episodes.actions.dtype))
        ragged.episodes = dataclasses.replace(ragged.episodes, actions=actions.numpy())
        expected = ragged.make_hessian(estimator)
        assert np.abs(operator.matvec(x) - before).max() > FAR
        np.testing.assert_allclose(operator.matvec(x), expected.matvec(x), **EXACT)
        np.testing.assert_allclose(operator.matvec(x, adjoint=True), expected.matvec(x, adjoint=True), **EXACT)
        np.testing.assert_allclose(operator.quadratic_forms(x), expected.quadratic_forms(x), **EXACT)


def test_single_precision():
    with cases.precision("float32"):
        single = Ragged("continuous").hessian("causal")
    double = Ragged("continuous").hessian("causal").to_dense().numpy()
    assert single.dtype == "float32"
    np.testing.assert_allclose(single.to_dense(), double, atol=1e-5 * np.abs(double).max())


class Renamed(CategoricalPd):
    """The same distribution, as a class of another name."""


class OtherPolicy(rl.CategoricalPolicy):
    distribution_class = Renamed


def test_the_kind_of_distribution_counts_and_not_the_name_of_its_class():
    network = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    episodes = rl.Episodes.from_arrays(np.ones((2, 3, 3)), np.zeros((2, 3), int), np.ones((2, 3)))
    found, expected = (
        rl.PolicyHessian(kind(network), episodes).to_dense().numpy() for kind in (OtherPolicy, rl.CategoricalPolicy)
    )
    np.testing.assert_array_equal(found, expected)
