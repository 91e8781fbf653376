"""The blog's errata, each shown."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import difference

import tf_natgrad as ng
from tf_natgrad.distributions import CategoricalPd
from tf_natgrad.operators import Fisher
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.solvers import Gram, SVDPseudoInverse

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-10


def _hessian_of_kl(problem, target):
    """The Hessian in the weights of the mean `KL(p || target(p))`, the way the blog takes it."""
    variables = problem.model.trainable_variables

    @tf.function(autograph=False)
    def hessian(theta):
        with keras.StatelessScope(state_mapping=list(zip(variables, problem.flat.unflatten(theta), strict=True))):
            pd = CategoricalPd(problem.model(problem.x))
        kl = tf.reduce_mean(pd.kl(CategoricalPd(target(pd.logits))))
        return kl, tf.hessians(kl, theta)[0]

    return hessian(problem.flat.read())


def test_self_kl_needs_stop_gradient():
    problem = cases.shared("unweighted")
    without, zero = _hessian_of_kl(problem, tf.identity)
    with_it, fisher = _hessian_of_kl(problem, tf.stop_gradient)
    assert without == with_it == 0.0
    assert np.abs(zero).max() < 1e-15
    assert difference(fisher, problem.oracle.matrix) < TOLERANCE


# The metric of softmax(softmax(z)).


def _digits_regression(activation=None, features=16, seed=0):
    model = keras.Sequential([keras.Input((features,)), keras.layers.Dense(10, activation)])
    model.set_weights([np.random.default_rng(seed).normal(0.0, 0.1, w.shape) for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def two_metrics(float64):
    """The same gradient, through the metric of the logits and through that of probabilities taken for logits."""
    images, labels = (d[:32] for d in cases.digits())
    logits, probabilities = _digits_regression(), _digits_regression("softmax")
    right = Fisher(logits, keras.losses.SparseCategoricalCrossentropy(from_logits=True), images)
    wrong = Fisher(probabilities, CategoricalPd, images)
    gradient = right.factor_transpose_matvec(right.loss_gradient(labels).u)
    return right, wrong, gradient


def test_probabilities_taken_for_logits_shrink_the_metric_a_hundred_times(two_metrics):
    right, wrong, _ = two_metrics
    ratio = np.linalg.norm(right.to_dense()) / np.linalg.norm(wrong.to_dense())
    assert 50 < ratio < 200


def test_probabilities_taken_for_logits_inflate_the_step_a_hundred_times(two_metrics):
    right, wrong, gradient = two_metrics
    step, inflated = (SVDPseudoInverse().solve(fisher, gradient).value for fisher in (right, wrong))
    assert 50 < np.linalg.norm(inflated) / np.linalg.norm(step) < 200


# Without damping the recipe explodes; with it, it does not.


def _largest_loss(learning_rate, damping, seed):
    from sklearn.datasets import load_digits

    data, rng = load_digits(), np.random.default_rng(seed)
    images, labels = data.data / 16.0, data.target
    model, loss = _digits_regression(None, 64, seed), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    flat, worst = FlatParameters(model.trainable_variables), 0.0
    for _ in range(60):
        batch = rng.integers(0, len(images), 16)
        worst = max(worst, float(loss(labels, model(images))))
        if worst > 100.0:
            break
        step, _ = ng.natural_gradient(model, loss, images[batch], labels[batch], damping=damping, solver=Gram())
        flat.assign(flat.read() - learning_rate * step)
    return worst


def test_undamped_recipe_explodes_and_the_damped_one_does_not():
    undamped = [_largest_loss(0.1, 0, seed) for seed in range(4)]
    damped = [_largest_loss(0.7, 0.1, seed) for seed in range(4)]
    assert max(undamped) > 100.0, undamped
    assert max(damped) < 20.0, damped


# The divergence along a step, in the weights of a network.


@pytest.mark.parametrize("reverse", [False, True])
def test_kl_along_a_step_is_quadratic_up_to_third_order(reverse, rng):
    problem = cases.fresh("mlp")
    start, weights = problem.flat.read(), problem.oracle.weights
    d = rng.normal(size=problem.size)
    quadratic = 0.5 * d @ problem.oracle.matrix @ d
    before = CategoricalPd(problem.model(problem.x))

    def remainder(e):
        problem.flat.assign(start + e * d)
        after = CategoricalPd(problem.model(problem.x))
        kl = np.sum(weights * (after.kl(before) if reverse else before.kl(after)))
        return kl - e**2 * quadratic

    order = np.log2(remainder(4e-3) / remainder(2e-3))
    assert order == pytest.approx(3.0, abs=0.1)


# The pseudo-inverse by hand.


@pytest.mark.parametrize("rcond", [1e-10, 1e-3, 1e-1])
def test_pseudo_inverse_by_hand_is_that_of_tensorflow(rcond, rng):
    problem = cases.singular_digits(hidden=(4,))
    b = rng.normal(size=problem.size)
    ours = SVDPseudoInverse(rcond).solve(problem.fisher, b).value
    assert difference(ours, tf.linalg.matvec(tf.linalg.pinv(problem.dense, rcond), b)) < TOLERANCE
