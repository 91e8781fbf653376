"""The Fisher of a policy, and one step of it, against closed forms in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tf_natgrad import rl
from tf_natgrad.operators import Fisher
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.rl.agents.policy_step import PolicyStep, _not_above
from tf_natgrad.solvers import ConjugateGradient
from tf_natgrad.steps import LineSearch

INPUTS, EXAMPLES, DAMPING, TARGET = 3, 40, 0.05, 0.01

pytestmark = pytest.mark.usefixtures("float64")


def categorical(hidden=0, actions=3):
    return rl.CategoricalPolicy(network(hidden, actions))


def gaussian(hidden=0, actions=2):
    policy = rl.GaussianPolicy(network(hidden, actions), initial_log_std=-0.3)
    policy.log_std.assign(np.linspace(-0.5, 0.4, actions))
    return policy


def network(hidden, outputs):
    middle = [layers.Dense(hidden, "tanh")] if hidden else []
    return keras.Sequential([keras.Input((INPUTS,)), *middle, layers.Dense(outputs)])


@pytest.fixture
def data(rng):
    """Observations, actions of both kinds and advantages."""
    return {
        "x": rng.normal(size=(EXAMPLES, INPUTS)),
        "discrete": rng.integers(0, 3, EXAMPLES),
        "continuous": rng.normal(size=(EXAMPLES, 2)),
        "advantages": rng.normal(size=EXAMPLES),
    }


def jacobians(policy, function):
    """`d function() / d theta`, `[..., n]`."""
    flat = FlatParameters(policy.trainable_variables)
    with tf.GradientTape() as tape:
        values = function()
    parts = tape.jacobian(values, flat.tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return np.concatenate([p.numpy().reshape(*values.shape, -1) for p in parts], -1)


def categorical_fisher(policy, x):
    """Score outer products, summed over all actions with their probabilities."""
    log_p = policy.distribution(x).log_probabilities.numpy()
    scores = jacobians(policy, lambda: policy.distribution(x).log_probabilities)
    return np.einsum("ia,iam,ian->mn", np.exp(log_p), scores, scores) / len(x)


def gaussian_fisher(policy, x):
    """`J^T diag(1 / sigma^2, 2) J`."""
    jacobian = jacobians(policy, lambda: policy(x))
    precision = np.exp(-2.0 * policy.log_std.numpy())
    return np.einsum("c,icm,icn->mn", [*precision, *np.full(len(precision), 2.0)], jacobian, jacobian) / len(x)


@pytest.mark.parametrize("make, oracle", [(categorical, categorical_fisher), (gaussian, gaussian_fisher)])
def test_three_routes_to_the_fisher(make, oracle, data):
    policy = make(hidden=4)
    fisher = Fisher(policy, policy.distribution_class, data["x"])
    dense = fisher.to_dense()
    np.testing.assert_allclose(dense, oracle(policy, data["x"]), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dense, fisher.to_dense(method="hessians"), rtol=1e-9, atol=1e-12)
    vector = np.random.default_rng(1).normal(size=dense.shape[0])
    np.testing.assert_allclose(fisher.matvec(vector), dense.numpy() @ vector, rtol=1e-9, atol=1e-12)


def step_of(policy, max_kl=None, backtracks=0, **options):
    settings = {"target_kl": TARGET, "max_iterations": 200, "damping": DAMPING, "sub_sampling_factor": 1} | options
    step = PolicyStep(policy, line_search=LineSearch(backtracks, 0.8), max_kl=max_kl, **settings)
    step.solver = ConjugateGradient(rtol=1e-12, max_iterations=settings["max_iterations"])
    return step


def linear_categorical(policy, data, keep=slice(None)):
    """Gradient of the surrogate and Fisher of softmax regression, laid out as kernel, then bias."""
    x = np.concatenate([data["x"], np.ones((EXAMPLES, 1))], 1)
    theta = np.concatenate([policy.network.get_weights()[0], policy.network.get_weights()[1][None]])
    p = np.exp(x @ theta)
    p /= p.sum(1, keepdims=True)
    residual = (np.eye(3)[data["discrete"]] - p) * data["advantages"][:, None]
    blocks = [np.kron(np.outer(a, a), np.diag(b) - np.outer(b, b)) for a, b in zip(x[keep], p[keep], strict=True)]
    return (x.T @ residual / EXAMPLES).reshape(-1), np.mean(blocks, 0)


def linear_gaussian(policy, data, keep=slice(None)):
    """The same of a linear policy with learned deviations, laid out as `log_std`, kernel, bias."""
    x = np.concatenate([data["x"], np.ones((EXAMPLES, 1))], 1)
    theta = np.concatenate([policy.network.get_weights()[0], policy.network.get_weights()[1][None]])
    sigma = np.exp(policy.log_std.numpy())
    z = (data["continuous"] - x @ theta) / sigma
    of_mean = x.T @ (data["advantages"][:, None] * z / sigma) / EXAMPLES
    of_log_std = (data["advantages"][:, None] * (z**2 - 1.0)).mean(0)
    gram = x[keep].T @ x[keep] / len(x[keep])
    fisher = np.zeros((10, 10))
    fisher[:2, :2] = 2.0 * np.eye(2)
    fisher[2:, 2:] = np.kron(gram, np.diag(sigma**-2))
    return np.concatenate([of_log_std, of_mean.reshape(-1)]), fisher


LINEAR = [(categorical, linear_categorical, "discrete"), (gaussian, linear_gaussian, "continuous")]


@pytest.mark.parametrize("make, oracle, actions", LINEAR)
@pytest.mark.parametrize("factor", [1, 3])
def test_one_step_of_a_linear_policy(make, oracle, actions, factor, data):
    policy = make()
    flat = FlatParameters(policy.trainable_variables)
    before = flat.read().numpy()
    gradient, fisher = oracle(policy, data, slice(None, None, factor))
    direction = np.linalg.solve(fisher + DAMPING * np.eye(len(fisher)), gradient)
    expected = np.sqrt(2.0 * TARGET / (direction @ fisher @ direction)) * direction
    report = step_of(policy, sub_sampling_factor=factor)(data["x"], data[actions], data["advantages"])
    np.testing.assert_allclose(flat.read() - before, expected, rtol=1e-6, atol=1e-9)
    assert report.accepted and report.line_search_steps == 0
    np.testing.assert_allclose(report.surrogate_predicted, gradient @ expected, rtol=1e-6)
    np.testing.assert_allclose(report.kl_predicted, TARGET, rtol=1e-9)
    if factor == 1:
        np.testing.assert_allclose(report.kl, TARGET, rtol=0.3)


@pytest.mark.parametrize("make, oracle, actions", LINEAR)
def test_the_search_shortens_the_same_step_until_it_is_within_the_limit(make, oracle, actions, data):
    policy = make()
    flat = FlatParameters(policy.trainable_variables)
    before, old = flat.read().numpy(), policy.distribution(data["x"])
    gradient, fisher = oracle(policy, data)
    direction = np.linalg.solve(fisher + DAMPING * np.eye(len(fisher)), gradient)
    whole = np.sqrt(2.0 * TARGET / (direction @ fisher @ direction)) * direction
    limit = 0.3 * TARGET
    report = step_of(policy, limit, backtracks=10)(data["x"], data[actions], data["advantages"])
    scale = 0.8**report.line_search_steps
    assert report.accepted and report.line_search_steps >= 2
    np.testing.assert_allclose(flat.read() - before, scale * whole, rtol=1e-6, atol=1e-9)
    kl = tf.reduce_mean(old.kl(policy.distribution(data["x"])))
    np.testing.assert_allclose(report.kl, kl, rtol=1e-9)
    assert report.kl <= limit
    np.testing.assert_allclose(report.kl_predicted, scale**2 * TARGET, rtol=1e-6)
    flat.assign(before + scale / 0.8 * whole)
    assert tf.reduce_mean(old.kl(policy.distribution(data["x"]))) > limit, "one step less would have done"


def test_the_surrogate_is_the_importance_weighted_advantage(data):
    policy = gaussian(hidden=4)
    before = policy.log_prob(data["x"], data["continuous"]).numpy()
    report = step_of(policy)(data["x"], data["continuous"], data["advantages"])
    ratio = np.exp(policy.log_prob(data["x"], data["continuous"]).numpy() - before)
    np.testing.assert_allclose(report.surrogate, ((ratio - 1.0) * data["advantages"]).mean(), rtol=1e-9)


def assert_left_alone(policy, step, data, advantages):
    before = [w.tobytes() for w in policy.get_weights()]
    report = step(data["x"], data["continuous"], advantages)
    assert [w.tobytes() for w in policy.get_weights()] == before
    assert not report.accepted
    assert (report.kl, report.kl_predicted, report.surrogate, report.surrogate_predicted) == (0.0, 0.0, 0.0, 0.0)
    assert np.isfinite(report.entropy)
    return report


def test_a_search_that_fails_restores_the_weights_bit_for_bit(data):
    policy = gaussian(hidden=4)
    report = assert_left_alone(policy, step_of(policy, 1e-300, backtracks=5), data, data["advantages"])
    assert report.line_search_steps == 5


def test_no_advantage_moves_nothing(data):
    policy = gaussian(hidden=4)
    report = assert_left_alone(policy, step_of(policy, TARGET, backtracks=5), data, np.zeros(EXAMPLES))
    assert np.isfinite(report).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("max_kl", [None, TARGET])
def test_advantages_that_are_not_finite_move_nothing(data, value, max_kl):
    policy = gaussian(hidden=4)
    data["advantages"][3] = value
    assert_left_alone(policy, step_of(policy, max_kl, backtracks=2), data, data["advantages"])


def test_many_steps_are_traced_once(data):
    policy = categorical(hidden=4)
    step = step_of(policy, TARGET, backtracks=5)
    for _ in range(3):
        report = step(data["x"], data["discrete"], data["advantages"])
    assert step.compiled.experimental_get_tracing_count() == 1
    assert report.kl <= TARGET


def test_a_rejected_step_does_not_disturb_the_next_one(data):
    policy, other = gaussian(hidden=4), gaussian(hidden=4)
    other.set_weights(policy.get_weights())
    step = step_of(policy, TARGET, backtracks=5)
    step(data["x"], data["continuous"], np.zeros(EXAMPLES))
    first = step(data["x"], data["continuous"], data["advantages"])
    second = step_of(other, TARGET, backtracks=5)(data["x"], data["continuous"], data["advantages"])
    assert first == second
    for mine, theirs in zip(policy.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.1, 1e-30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_limit_is_never_rounded_up(limit, dtype):
    rounded = _not_above(limit, dtype)
    assert isinstance(rounded, dtype)
    assert float(rounded) <= limit == pytest.approx(float(rounded), rel=1e-6)
