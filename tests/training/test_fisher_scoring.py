"""Fisher scoring: the fits of scikit-learn and SciPy, in a handful of steps, or a reason why not."""

import importlib
import itertools

import cases
import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import tensorflow as tf
import training
from oracle import difference

import tf_natgrad as ng
from tf_natgrad.data import load_images
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.steps import LineSearch
from tf_natgrad.training._scoring import Fit
from tf_natgrad.training._whole_data import as_dataset

pytestmark = pytest.mark.usefixtures("float64")

SOFTMAX = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LOGISTIC = keras.losses.BinaryCrossentropy(from_logits=True)
EXAMPLES, FEATURES, CLASSES = 300, 4, 3

# The module: the package exports the function under its name.
DATA_MODULE = importlib.import_module("tf_natgrad.training._whole_data")
SOLVERS = ("dense", "cg")


def fit(model, loss, data, **options):
    return ng.fisher_scoring(model, loss, data, progress=False, **options)


# Keras rounds the factor of its L2 to single precision: powers of two survive that.
def linear(units=CLASSES, features=FEATURES, **options):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((features,)), keras.layers.Dense(units, **options)])


def data(classes=CLASSES, seed=0):
    """Labels that overlap, so that the fit is finite."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(EXAMPLES, FEATURES)) * [1.0, 2.0, 0.5, 1.0]
    logits = x @ rng.normal(size=(FEATURES, classes)) + rng.gumbel(size=(EXAMPLES, classes))
    return x, logits.argmax(1)


def minimum(x, y, classes, penalty=lambda kernel: (0.0, 0.0), weight=None):
    """The loss at the minimum and the probabilities there, by SciPy, of softmax regression with biases."""
    one_hot = np.eye(classes)[y]
    w = np.ones(len(x)) if weight is None else weight
    h = np.concatenate([x, np.ones((len(x), 1))], 1)

    def value(flat):
        theta = flat.reshape(-1, classes)
        log_p = scipy.special.log_softmax(h @ theta, 1)
        extra, slope = penalty(theta[:-1])
        gradient = h.T @ (w[:, None] * (np.exp(log_p) - one_hot)) / len(x)
        gradient[:-1] += slope
        return -(w[:, None] * one_hot * log_p).sum() / len(x) + extra, gradient.ravel()

    start = np.zeros(h.shape[1] * classes)
    found = scipy.optimize.minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    assert np.abs(found.jac).max() < 1e-7
    return found.fun, scipy.special.softmax(h @ found.x.reshape(-1, classes), 1)


# The fits of others.


def test_softmax_regression_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    x, y = data()
    c = 2.0**-7
    reference = LogisticRegression(C=1 / (2 * c * len(x)), tol=1e-12, max_iter=10_000).fit(x, y)
    model = linear(kernel_regularizer=keras.regularizers.L2(c))
    result = fit(model, SOFTMAX, (x, y))
    assert result.converged and result.gradient_norm < 1e-8 and result.iterations < 10
    kernel, bias = model.get_weights()
    assert difference(kernel, reference.coef_.T) < 1e-6
    assert difference(bias - bias.mean(), reference.intercept_ - reference.intercept_.mean()) < 1e-6


def test_logistic_regression_without_a_penalty_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    x, y = data(2)
    reference = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(x, y)
    model = linear(1)
    result = fit(model, LOGISTIC, (x, y))
    assert result.converged and result.iterations < 12
    assert difference(np.concatenate(model.get_weights(), None), [*reference.coef_[0], *reference.intercept_]) < 1e-6


def test_least_squares_in_one_step(rng):
    x = rng.normal(size=(50, FEATURES))
    y = x @ rng.normal(size=(FEATURES, 2)) + rng.normal(size=(50, 2))
    model = linear(2)
    result = fit(model, "mse", (x, y))
    assert result.converged and result.iterations == 1
    expected = np.linalg.lstsq(np.c_[x, np.ones(50)], y, rcond=None)[0]
    assert difference(np.r_[model.get_weights()[0], model.get_weights()[1][None]], expected) < 1e-6


def test_poisson_regression_is_that_of_scikit_learn(rng):
    from sklearn.linear_model import PoissonRegressor

    x = rng.normal(size=(EXAMPLES, FEATURES))
    y = rng.poisson(np.exp(x @ [0.5, -0.3, 0.2, 0.0] + 0.4))
    reference = PoissonRegressor(alpha=0.0, tol=1e-12, solver="newton-cholesky").fit(x, y)
    model = linear(1)
    result = fit(model, training.PoissonPd, (x, y[:, None]))
    assert result.converged and result.iterations < 12
    assert difference(np.concatenate(model.get_weights(), None), [*reference.coef_, reference.intercept_]) < 1e-6


def test_digits():
    from sklearn.linear_model import LogisticRegression

    images = load_images("digits")
    x, y, c = images.x_train.astype("float64"), images.y_train, 2.0**-13
    model = linear(10, 64, kernel_regularizer=keras.regularizers.L2(c))
    result = fit(model, SOFTMAX, (x, y))
    assert result.converged and result.gradient_norm < 1e-8 and result.iterations <= 15
    reference = LogisticRegression(C=1 / (2 * c * len(x)), tol=1e-10, solver="newton-cholesky").fit(x, y)
    assert difference(model.get_weights()[0], reference.coef_.T) < 1e-6


# Convergence.


def test_convergence_is_quadratic():
    model = linear(kernel_regularizer=keras.regularizers.L2(1e-3))
    history = fit(model, SOFTMAX, data()).history
    norms = [step.gradient_norm for step in history]
    assert all(step.scale == 1.0 for step in history[-4:])
    digits_gained = [np.log(b) / np.log(a) for a, b in zip(norms[-4:-1], norms[-3:], strict=True)]
    assert min(digits_gained) > 1.5
    # The last model of the loss was right to many digits.
    assert history[-1].actual_decrease == pytest.approx(history[-1].predicted_decrease, rel=1e-2)


def test_without_the_regularisers_hessian_it_stalls(monkeypatch):
    x, y = data()
    regularizer = keras.regularizers.L2(2.0**-7)
    assert fit(linear(kernel_regularizer=regularizer), SOFTMAX, (x, y)).iterations < 8
    monkeypatch.setattr(ng.operators.Penalty, "dense_matrix", lambda self: tf.zeros([15, 15], tf.float64))
    without = fit(linear(kernel_regularizer=regularizer), SOFTMAX, (x, y), max_iterations=16)
    assert not without.converged


@keras.saving.register_keras_serializable("test_fisher_scoring")
class Huberish(keras.regularizers.Regularizer):
    """Neither a multiple of the identity nor diagonal."""

    def __call__(self, x):
        return 0.1 * tf.reduce_sum(tf.sqrt(1.0 + tf.square(x))) + 0.05 * tf.reduce_sum(tf.square(tf.reduce_sum(x, 0)))


@pytest.mark.parametrize("solver", SOLVERS)
def test_any_smooth_regulariser(solver):
    x, y = data()
    model = linear(kernel_regularizer=Huberish())
    result = fit(model, SOFTMAX, (x, y), solver=solver)

    def penalty(kernel):
        root, sums = np.sqrt(1 + kernel**2), kernel.sum(0)
        return 0.1 * root.sum() + 0.05 * (sums**2).sum(), 0.1 * kernel / root + 0.1 * sums

    expected, probabilities = minimum(x, y, CLASSES, penalty)
    assert result.converged and result.iterations < 10
    assert result.loss == pytest.approx(expected, abs=1e-10)
    assert np.abs(tf.nn.softmax(model(x)) - probabilities).max() < 1e-6


def test_l1_l2_away_from_the_kink():
    x, y = data(2)
    model = linear(1, kernel_regularizer=keras.regularizers.L1L2(1e-3, 1e-3))
    model.set_weights([np.sign(np.linalg.lstsq(x, y - 0.5, rcond=None)[0])[:, None], np.zeros(1)])
    result = fit(model, LOGISTIC, (x, y))
    kernel, bias = (w.ravel() for w in model.get_weights())
    p = scipy.special.expit(x @ kernel + bias)
    slope = x.T @ (p - y) / len(x) + 2e-3 * kernel + 1e-3 * np.sign(kernel)
    assert result.converged and np.abs(slope).max() < 1e-8 and np.abs(kernel).min() > 1e-2


def test_features_that_are_always_zero_and_duplicates():
    x, y = data()
    x = np.c_[x, np.zeros(EXAMPLES), x[:, 0]]
    expected, _ = minimum(x[:, :4], y, CLASSES)
    model = linear(features=6, kernel_initializer="zeros")
    result = fit(model, SOFTMAX, (x, y))
    assert result.converged and result.iterations < 12
    assert result.loss == pytest.approx(expected, abs=1e-10)
    kernel = model.get_weights()[0]
    assert np.abs(kernel[4]).max() < 1e-8 and difference(kernel[5], kernel[0]) < 1e-4


def irls(x, y, steps=30):
    """Logistic regression with a bias, by NumPy: the coefficients, the bias last."""
    h = np.c_[x, np.ones(len(x))]
    b = np.zeros(h.shape[1])
    for _ in range(steps):
        p = scipy.special.expit(h @ b)
        b -= np.linalg.solve(h.T @ (h * (p * (1 - p))[:, None]), h.T @ (p - y))
    return b


@pytest.mark.parametrize("scales", [(1, 1e6, 1, 1), (1e-3, 1e3, 1, 1), (1, 1e8, 1, 1), (1e-4, 1e4, 1, 1)])
def test_columns_of_very_different_scales(scales):
    x, y = data(2)
    model = linear(1, kernel_initializer="zeros")
    result = fit(model, LOGISTIC, (x * scales, y), solver="dense")
    kernel, bias = model.get_weights()
    assert result.converged and result.iterations < 10
    assert difference(np.r_[kernel[:, 0] * scales, bias], irls(x, y)) < 1e-8


def test_scaled_columns_of_a_softmax_keep_its_null_space_out():
    x, y = data()
    scales = np.array([1.0, 1e6, 1e-2, 1.0])
    expected, probabilities = minimum(x, y, CLASSES)
    model = linear(kernel_initializer="zeros")
    result = fit(model, SOFTMAX, (x * scales, y), solver="dense")
    kernel = model.get_weights()[0] * scales[:, None]
    assert result.converged and result.iterations < 10
    assert result.loss == pytest.approx(expected, abs=1e-10)
    assert np.abs(tf.nn.softmax(model(x * scales)) - probabilities).max() < 1e-6
    assert np.abs(kernel.sum(1)).max() < 1e-8 * np.abs(kernel).max()


@pytest.mark.parametrize("solver", ["Cholesky", "SVDPseudoInverse", "ConjugateGradient", "Auto"])
def test_any_solver_of_the_package_finds_the_fit(solver):
    penalties = {name: keras.regularizers.L2(1e-2) for name in ("kernel_regularizer", "bias_regularizer")}
    weights = {}
    for chosen in ("dense", getattr(ng.solvers, solver)()):
        model = linear(kernel_initializer="zeros", **penalties)
        result = fit(model, SOFTMAX, data(), solver=chosen, gtol=1e-10)
        assert result.converged
        weights[result.solver.split()[0]] = np.concatenate([np.ravel(w) for w in model.get_weights()])
    assert list(weights) == ["dense", solver]
    assert difference(*weights.values()) < 1e-8


def test_a_solver_that_needs_one_batch_is_refused():
    with pytest.raises((ValueError, TypeError), match=r"ConjugateGradient"):
        fit(linear(), SOFTMAX, data(), solver=ng.solvers.Gram())


def test_at_the_optimum_it_takes_no_step():
    model = linear(kernel_regularizer=keras.regularizers.L2(1e-2))
    fit(model, SOFTMAX, data())
    before = model.get_weights()
    result = fit(model, SOFTMAX, data(), gtol=1e-7)
    assert result.iterations == 0 and result.converged and len(result.history) == 1
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


# What is given.


def batches(size, *arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


def test_a_data_set_and_arrays_in_chunks_give_what_arrays_give(monkeypatch):
    x, y = data()
    weight = np.random.default_rng(1).uniform(0.1, 2.0, EXAMPLES)
    regularizer = keras.regularizers.L2(2.0**-7)
    whole, chunks, given = (linear(kernel_regularizer=regularizer) for _ in range(3))
    results = [fit(whole, SOFTMAX, (x, y), sample_weight=weight)]
    results.append(fit(given, SOFTMAX, batches(64, x, y, weight)))
    monkeypatch.setattr(DATA_MODULE, "_CHUNK", 128)
    results.append(fit(chunks, SOFTMAX, (x, y, weight)))
    expected, _ = minimum(x, y, CLASSES, lambda k: (2.0**-7 * np.sum(k**2), 2.0**-6 * k), weight)
    assert [r.loss for r in results] == pytest.approx([expected] * 3, abs=1e-10)
    for model in (chunks, given):
        assert difference(model.get_weights()[0], whole.get_weights()[0]) < 1e-6


def test_the_matrix_of_one_layer_is_the_fisher():
    x, y = data()
    softmax = keras.losses.SparseCategoricalCrossentropy()
    for model, loss in (
        (linear(), SOFTMAX),
        (linear(use_bias=False), SOFTMAX),
        (linear(activation="softmax"), softmax),
    ):
        problem = Fit(model, loss, as_dataset((x, y), None))
        assert problem.layer is not None
        assert difference(problem.matrix(), ng.operators.Fisher(model, loss, x).to_dense()) < 1e-12


def test_the_block_formula_is_not_taken_where_the_gram_matrix_is_refused(monkeypatch):
    x, y = data()
    refusal = property(lambda self: "The kernel acts elsewhere too.")
    monkeypatch.setattr(ng.operators.Fisher, "gram_refusal", refusal)
    model = linear()
    problem = Fit(model, SOFTMAX, as_dataset((x, y), None))
    assert problem.layer is None
    assert difference(problem.matrix(), ng.operators.Fisher(model, SOFTMAX, x).to_dense()) < 1e-12


class Slope(keras.Model):
    """The derivative of a function that one dense layer makes of powers of its argument."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, use_bias=False)

    def call(self, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = self.dense(tf.concat([x, x**2, x**3], 1))
        return tape.gradient(value, x)


def test_a_gradient_inside_call_is_fitted_too(rng):
    """The kernel acts by the derivatives of the features, not by the features that the layer was called with."""
    x = rng.normal(size=(40, 1))
    slopes = np.cos(x)
    model = Slope()
    model(x[:1])
    problem = Fit(model, "mse", as_dataset((x, slopes), None))
    assert problem.layer is None
    derivatives = np.concatenate([np.ones_like(x), 2.0 * x, 3.0 * x**2], 1)
    found = fit(model, "mse", (x, slopes))
    assert found.converged
    assert difference(model.dense.kernel.numpy(), np.linalg.lstsq(derivatives, slopes, rcond=None)[0]) < 1e-10


def test_last_layer_on_frozen_features():
    x, y = data()
    keras.utils.set_random_seed(0)
    features = keras.layers.Dense(6, "tanh", trainable=False)
    head = keras.layers.Dense(CLASSES, kernel_regularizer=keras.regularizers.L2(2.0**-10))
    model = keras.Sequential([keras.Input((FEATURES,)), features, head])
    frozen = [w.copy() for w in features.get_weights()]
    result = fit(model, SOFTMAX, (x, y))
    expected, _ = minimum(features(x).numpy(), y, CLASSES, lambda k: (2.0**-10 * np.sum(k**2), 2.0**-9 * k))
    assert "one Dense layer" in result.solver and result.converged
    assert result.loss == pytest.approx(expected, abs=1e-10)
    assert all(np.array_equal(a, b) for a, b in zip(frozen, features.get_weights(), strict=True))


def test_single_precision_has_its_own_tolerance():
    x, y = data()
    with cases.precision("float32"):
        model = linear(kernel_regularizer=keras.regularizers.L2(1e-2))
        result = fit(model, SOFTMAX, (x.astype("float32"), y))
    assert result.converged and 1e-8 < result.gradient_norm < 1e-5


# Networks.


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_network_decreases_monotonically(solver, rng):
    x = np.linspace(-1, 1, 80)[:, None]
    y = np.sin(4 * x) + x / 2
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(12, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((1,)), *layers])
    result = fit(model, "mse", (x, y), damping=1e-4, solver=solver, max_iterations=15)
    losses = [step.loss for step in result.history]
    assert "Dense layer" not in result.solver
    assert all(b < a for a, b in itertools.pairwise(losses)) and len(losses) > 5
    assert np.mean((model(x) - y) ** 2) < 0.03


def test_auto_says_what_it_took_and_why():
    x, y = data()
    assert fit(linear(), SOFTMAX, (x, y), max_iterations=1).solver == (
        "dense (one Dense layer, block by block), because 15 parameters are at most 1,000"
    )
    layers = [keras.layers.Dense(100, "tanh"), keras.layers.Dense(CLASSES)]
    model = keras.Sequential([keras.Input((FEATURES,)), *layers])
    assert fit(model, SOFTMAX, (x, y), max_iterations=1).solver == (
        "conjugate gradients, because 803 parameters are more than 500"
    )


# When it ends otherwise.


def test_max_iterations_is_told(caplog):
    result = fit(linear(), SOFTMAX, data(), max_iterations=2)
    assert (result.iterations, result.converged, result.reason) == (2, False, "stopped at max_iterations")
    assert "Fisher scoring stopped at max_iterations" in caplog.text


class Uphill(LineSearch):
    """No step is ever good enough."""

    def run(self, objective, move, variables, max_kl=None):
        class Worse:
            def loss(self):
                return tf.abs(objective.loss())

        for name in ("kl", "predicted"):
            setattr(Worse, name, staticmethod(getattr(objective, name)))
        return super().run(Worse(), move, variables, max_kl)


def test_weights_are_restored_where_no_step_helps():
    model = linear()
    before = model.get_weights()
    result = fit(model, SOFTMAX, data(), line_search=Uphill(max_backtracks=3))
    assert result.iterations == 0 and not result.converged and "no multiple of the step" in result.reason
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_interruption_leaves_the_last_accepted_weights():
    class Interrupted(LineSearch):
        def run(self, objective, move, variables, max_kl=None):
            if Interrupted.runs:
                move(tf.constant(1.0, tf.float64))
                raise KeyboardInterrupt
            Interrupted.runs += 1
            return super().run(objective, move, variables, max_kl)

    Interrupted.runs = 0
    once, model = linear(), linear()
    fit(once, SOFTMAX, data(), max_iterations=1)
    with pytest.raises(KeyboardInterrupt):
        fit(model, SOFTMAX, data(), line_search=Interrupted())
    assert difference(model.get_weights()[0], once.get_weights()[0]) < 1e-12


@pytest.mark.parametrize("as_dataset", [False, True])
@pytest.mark.parametrize("name", ["x", "y", "sample_weight"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_are_not_finite(name, bad, as_dataset):
    rng = np.random.default_rng(0)
    given = {"x": rng.normal(size=(9, FEATURES)), "y": rng.normal(size=(9, 1)), "sample_weight": np.ones(9)}
    given[name].flat[5] = bad
    model = linear(1)
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"`{name}`: received NaN or infinite values"):
        fit(model, "mse", batches(4, *given.values()) if as_dataset else tuple(given.values()))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("form", ["arrays", "argument", "data set"])
def test_weights_of_the_examples_that_are_all_zero(form):
    (x, y), zero = data(), np.zeros(EXAMPLES)
    model = linear()
    before = model.get_weights()
    given = {"arrays": (x, y, zero), "argument": (x, y), "data set": batches(64, x, y, zero)}[form]
    with pytest.raises(ValueError, match=r"`sample_weight`: received zeros only; expected a positive weight"):
        fit(model, SOFTMAX, given, **({"sample_weight": zero} if form == "argument" else {}))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_batch_without_weight_among_others_is_no_error():
    x, y = data()
    weight = np.repeat([0.0, 1.0], [64, EXAMPLES - 64])
    given, rest = linear(kernel_initializer="zeros"), linear(kernel_initializer="zeros")
    assert fit(given, SOFTMAX, batches(64, x, y, weight), gtol=1e-11).converged
    assert fit(rest, SOFTMAX, (x[64:], y[64:]), gtol=1e-11).converged
    assert difference(given.get_weights()[0], rest.get_weights()[0]) < 1e-6


def test_weights_that_are_not_finite():
    model = linear()
    FlatParameters(model.trainable_variables).assign(np.full(15, np.nan))
    with pytest.raises(ValueError, match=r"`model`: received a loss or gradient that is not finite"):
        fit(model, SOFTMAX, data())


@pytest.mark.parametrize(
    "options, error",
    [
        ({"damping": -1.0}, ValueError),
        ({"solver": "svd"}, ValueError),
        ({"gtol": -1.0}, ValueError),
        ({"max_iterations": 1.5}, TypeError),
    ],
)
def test_bad_arguments_are_refused(options, error):
    with pytest.raises(error, match=f"`{next(iter(options))}`"):
        fit(linear(), SOFTMAX, data(), **options)


def test_data_that_do_not_fit_are_refused():
    x, y = data()
    for given, options, name in (
        (x, {}, "data"),
        ((x, y[:-1]), {}, "data"),
        ((x, y + 3), {}, "y"),
        (batches(64, x, y).repeat(), {}, "data"),
        (batches(64, x, y), {"sample_weight": np.ones(EXAMPLES)}, "sample_weight"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            fit(linear(), SOFTMAX, given, **options)
    model = linear(activity_regularizer=keras.regularizers.L2(1e-3))
    with pytest.raises(ValueError, match=r"`model`: received activity regularisers"):
        fit(model, SOFTMAX, (x, y))
