"""Where no finite fit exists it is said so, and nowhere else: a table of both, in double and in single precision."""

import logging

import cases
import keras
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
import training

import tf_natgrad as ng
from tf_natgrad import _checks
from tf_natgrad.training._factorised import factorised
from tf_natgrad.training._scoring import Fit
from tf_natgrad.training._separation import no_finite_fit
from tf_natgrad.training._whole_data import as_dataset

SOFTMAX = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ONE_HOT = keras.losses.CategoricalCrossentropy(from_logits=True)
LOGISTIC = keras.losses.BinaryCrossentropy(from_logits=True)
SMOOTHED = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1)
L2 = keras.regularizers.L2
PENALISED = {"kernel_regularizer": L2(2.0**-7), "bias_regularizer": L2(2.0**-7)}
N = 120


def linear(units, features, **options):
    layer = keras.layers.Dense(units, kernel_initializer="zeros", **options)
    return keras.Sequential([keras.Input((features,)), layer])


def features(columns=3, seed=0):
    return np.random.default_rng(seed).normal(size=(N, columns))


def overlapping(x, classes=2, size=1.0):
    """Labels that no hyperplane separates."""
    rng = np.random.default_rng(1)
    scores = size * x @ rng.normal(size=(x.shape[1], classes)) + rng.gumbel(size=(N, classes))
    return scores.argmax(1)


def separated(x, classes=2):
    return (x @ np.random.default_rng(1).normal(size=(x.shape[1], classes))).argmax(1)


def astray(x):
    """The example that is the eleventh nearest to the separating hyperplane."""
    margin = np.abs(np.diff(x @ np.random.default_rng(1).normal(size=(x.shape[1], 2)))[:, 0])
    return margin == np.sort(margin)[10]


def one_astray(x):
    return np.where(astray(x), 1 - separated(x), separated(x))


def dummy(x, share=4):
    """One more column, the indicator of a group."""
    return np.c_[x, np.arange(N) % share == 0]


def logistic(x, y, weight=None, **options):
    return linear(1, x.shape[1], **options), LOGISTIC, x, y, weight


def softmax(x, y, weight=None, classes=3, **options):
    return linear(classes, x.shape[1], **options), SOFTMAX, x, y, weight


def poisson(x, y):
    return linear(1, x.shape[1]), training.PoissonPd, x, y[:, None]


X = features()
GROUPED = dummy(X)
GROUP = GROUPED[:, -1] > 0
BINARY, TERNARY = overlapping(X), overlapping(X, 3)
COUNTS = np.random.default_rng(2).poisson(np.exp(0.5 * X[:, 0] - 0.2))


def two_outputs(y):
    return linear(2, 3), LOGISTIC, X, np.c_[BINARY, y]


def head_on_frozen_features(y, **options):
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(4, "tanh", trainable=False)
    head = keras.layers.Dense(1, kernel_initializer="zeros", **options)
    return keras.Sequential([keras.Input((3,)), hidden, head]), LOGISTIC, X, y


def activated(y):
    model = linear(3, 3, activation="softmax")
    return model, keras.losses.SparseCategoricalCrossentropy(), X, y


# Name -> model, loss, x, y and perhaps weights.
NO_FIT = {
    "separable": lambda: logistic(X, separated(X)),
    "separable, no bias": lambda: logistic(X, separated(X), use_bias=False),
    "more features than examples": lambda: logistic(features(130), BINARY),
    "separable, columns 1e4 apart": lambda: logistic(X * [1.0, 1e2, 1e-2], separated(X)),
    "separable, a column twice": lambda: logistic(X[:, [0, 1, 1, 2]], separated(X)),
    "a group with one label": lambda: logistic(GROUPED, np.where(GROUP, 1, BINARY)),
    "labels beyond a threshold, ties at it": lambda: logistic(
        np.sign(X[:, :1]) * (np.abs(X[:, :1]) > 0.5), np.where(np.abs(X[:, 0]) > 0.5, X[:, 0] > 0, BINARY)
    ),
    "all labels 0": lambda: logistic(X, np.zeros(N)),
    "all labels 1": lambda: logistic(X, np.ones(N)),
    "separable but for examples without weight": lambda: logistic(
        X, np.where(X[:, 0] > 1, BINARY, X[:, 0] > 0), (X[:, 0] <= 1).astype("float64")
    ),
    "a penalty of zero": lambda: logistic(X, separated(X), kernel_regularizer=L2(0.0)),
    "all labels 1, the bias free": lambda: logistic(X, np.ones(N), kernel_regularizer=L2(2.0**-7)),
    "one output of two has one label": lambda: two_outputs(np.zeros(N)),
    "one output of two is separable": lambda: two_outputs(separated(X)),
    "last layer on frozen features": lambda: head_on_frozen_features(np.ones(N)),
    "three separable classes": lambda: softmax(X, separated(X, 3)),
    "a class never occurs": lambda: softmax(X, BINARY),
    "a class never occurs, the bias free": lambda: softmax(X, BINARY, kernel_regularizer=L2(2.0**-7)),
    "two classes never occur": lambda: softmax(X, BINARY, classes=4),
    "one class only": lambda: softmax(X, np.ones(N)),
    "a class is separable from two that overlap": lambda: softmax(X, np.where(X[:, 1] > 1, 2, BINARY)),
    "a group without one class": lambda: softmax(GROUPED, np.where(GROUP & (TERNARY == 2), 0, TERNARY)),
    "softmax in the model, a class never occurs": lambda: activated(BINARY),
    "one-hot labels, a class never occurs": lambda: (linear(3, 3), ONE_HOT, X, np.eye(3)[BINARY]),
    "Poisson, no counts": lambda: poisson(X, np.zeros(N)),
    "Poisson, a group without counts": lambda: poisson(GROUPED, np.where(GROUP, 0, COUNTS)),
}
FITS = {
    "overlapping": lambda: logistic(X, BINARY),
    "large coefficients": lambda: logistic(X, overlapping(X, size=8.0)),
    "one example from separable": lambda: logistic(X, one_astray(X)),
    "one example from separable, of small weight": lambda: logistic(X, one_astray(X), np.where(astray(X), 1e-3, 1.0)),
    "one example from separable, of tiny weight": lambda: logistic(X, one_astray(X), np.where(astray(X), 1e-10, 1.0)),
    "columns 1e6 apart": lambda: logistic(X * [1.0, 1e3, 1e-3], BINARY),
    "small features": lambda: logistic(1e-2 * X, BINARY),
    "an outlier": lambda: logistic(np.r_[X[:-1], [[1e4, 0.0, 0.0]]], np.r_[BINARY[:-1], 1]),
    "a column twice and one of zeros": lambda: logistic(np.c_[X, X[:, 0], np.zeros(N)], BINARY),
    "columns that add up to the bias": lambda: logistic(np.c_[X, GROUP, ~GROUP], BINARY),
    "separable, penalised": lambda: logistic(X, separated(X), kernel_regularizer=L2(2.0**-10)),
    "separable, hardly penalised": lambda: logistic(X, separated(X), kernel_regularizer=L2(2.0**-34)),
    "separable, penalised next to nothing": lambda: logistic(X, separated(X), kernel_regularizer=L2(2.0**-60)),
    "all labels 1, penalised": lambda: logistic(X, np.ones(N), **PENALISED),
    "separable, smoothed": lambda: (linear(1, 3), SMOOTHED, X, separated(X)),
    "soft targets": lambda: logistic(X, 0.02 + 0.96 * separated(X)),
    "two outputs": lambda: two_outputs(1 - BINARY),
    "last layer on frozen features": lambda: head_on_frozen_features(BINARY),
    "three classes": lambda: softmax(X, TERNARY),
    "three classes, a column twice": lambda: softmax(X[:, [0, 1, 1, 2]], TERNARY),
    "a rare class": lambda: softmax(X, np.where(np.arange(N) < 2, 2, BINARY)),
    "a class never occurs, penalised": lambda: softmax(X, BINARY, **PENALISED),
    "softmax in the model": lambda: activated(TERNARY),
    "least squares": lambda: (linear(2, 3), "mse", X, features(2, 5)),
    "least squares, exact": lambda: (linear(1, 3), "mse", X, X[:, :1]),
    "Poisson": lambda: poisson(X, COUNTS),
    "Poisson, a group with few counts": lambda: poisson(GROUPED, np.where(GROUP & (np.arange(N) > 0), 0, COUNTS + 1)),
}
# In single precision as well; the rest differs from these in the labels only.
IN_SINGLE = {
    *("separable", "separable, columns 1e4 apart", "a group with one label", "a class never occurs"),
    *("all labels 1, the bias free", "one output of two is separable", "Poisson, a group without counts"),
    *("a class is separable from two that overlap", "a group without one class", "three separable classes"),
    *("overlapping", "large coefficients", "one example from separable, of small weight", "columns 1e6 apart"),
    *("an outlier", "columns that add up to the bias", "separable, penalised", "separable, hardly penalised"),
    *("separable, smoothed", "three classes, a column twice", "a rare class", "Poisson, a group with few counts"),
}


def fitted(case, **options):
    """Fits a case of the table, at the precision of the moment."""
    model, loss, *arrays = case()
    x, y, *weight = (np.asarray(a, keras.config.floatx()) for a in arrays if a is not None)
    if loss is SOFTMAX or isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        y = y.astype("int64")
    batch = options.pop("batch", None)
    given = tf.data.Dataset.from_tensor_slices((x, y, *weight)).batch(batch) if batch else (x, y, *weight)
    return ng.fisher_scoring(model, loss, given, progress=False, **options)


def says_so(result):
    return not result.converged and "no finite maximum-likelihood fit exists" in result.reason


def is_fit(result):
    return result.converged and result.reason == "converged: the gradient norm is within gtol"


@pytest.fixture
def precision(request):
    with cases.precision(request.param):
        yield


def each(table):
    double = [pytest.param("float64", name, id=f"{name}-double") for name in table]
    single = [pytest.param("float32", name, id=f"{name}-single") for name in table if name in IN_SINGLE]
    return pytest.mark.parametrize("precision, name", double + single, indirect=["precision"])


@each(NO_FIT)
def test_where_no_fit_exists_it_is_said(precision, name):
    assert says_so(fitted(NO_FIT[name]))


@each(FITS)
def test_where_a_fit_exists_there_is_no_alarm(precision, name):
    assert is_fit(fitted(FITS[name]))


@pytest.mark.parametrize("table", [NO_FIT, FITS])
def test_the_table_is_right(table, double):
    """A linear programme decides for the logistic cases, as in K. Konis (2007), "Linear programming algorithms"."""
    decided = 0
    for name, case in table.items():
        model, loss, x, y, *weight = case()
        known = loss is LOGISTIC and len(model.layers) == 1 and np.ndim(y) == 1 and set(np.unique(y)) <= {0, 1}
        if not known or "penalised" in name or "free" in name:
            continue
        h = np.c_[x, np.ones(N)] if model.layers[0].use_bias else x
        if weight and weight[0] is not None:
            h, y = h[weight[0] > 0], y[weight[0] > 0]
        h = h / np.linalg.norm(h, axis=1, keepdims=True) * (2 * y - 1)[:, None]
        best = scipy.optimize.linprog(-h.sum(0), A_ub=-h, b_ub=np.zeros(len(h)), bounds=[(-1, 1)] * h.shape[1])
        assert (-best.fun > 1e-6) == (table is NO_FIT), name
        decided += 1
    assert decided >= 8


@pytest.mark.parametrize("options", [{"solver": "cg"}, {"batch": 50}, {"damping": 1e-3, "gtol": 1e-4}, {"gtol": 1e-12}])
def test_whatever_the_options(options, double):
    assert says_so(fitted(NO_FIT["a class never occurs"], **options))
    assert is_fit(fitted(FITS["one example from separable"], **options))


def test_also_where_the_fit_ends_early_or_starts_at_its_end(double):
    model, loss, x, y, _ = NO_FIT["separable"]()
    results = [ng.fisher_scoring(model, loss, (x, y), progress=False, max_iterations=10)]
    results += [ng.fisher_scoring(model, loss, (x, y), progress=False) for _ in range(2)]
    assert [says_so(result) for result in results] == [True] * 3
    assert results[0].iterations == 10 and results[-1].iterations == 0


def test_it_is_logged_once_and_the_weights_are_those_of_the_last_step(double, caplog, monkeypatch):
    monkeypatch.setattr(_checks, "_logged", set())
    with caplog.at_level(logging.WARNING, "tf_natgrad"):
        for _ in range(2):
            model, loss, x, y, _ = NO_FIT["all labels 1"]()
            ng.fisher_scoring(model, loss, (x, y), progress=False)
    assert caplog.text.count("no finite maximum-likelihood fit") == 1
    assert "add a penalty" in caplog.text
    assert 15.0 < model.get_weights()[1][0] < 25.0


def network(units, loss, x, y):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, "tanh"), keras.layers.Dense(units)]
    return keras.Sequential([keras.Input((3,)), *layers]), loss, x, y


@pytest.mark.parametrize(
    "case, options",
    [
        (lambda: network(3, SOFTMAX, X, separated(X, 3)), {}),
        (lambda: network(3, SOFTMAX, X, TERNARY), {"damping": 1e-3, "max_iterations": 20}),
        (lambda: network(1, LOGISTIC, X, np.ones(N)), {"damping": 1e-6, "max_iterations": 20}),
        (lambda: network(1, "mse", X, X[:, :1]), {"damping": 1e-4, "max_iterations": 20}),
    ],
)
def test_of_a_network_nothing_is_claimed(case, options, double):
    assert not says_so(fitted(case, **options))


def test_the_weights_are_not_moved_by_the_search(double):
    model, loss, x, y, _ = NO_FIT["a class never occurs"]()
    problem = Fit(model, loss, as_dataset((x, y), None))
    value, gradient = problem.value_and_gradient()
    before = model.get_weights()
    step = factorised(problem.matrix(), gradient, 0.0)
    assert not no_finite_fit(problem.fisher, value, gradient, step)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
