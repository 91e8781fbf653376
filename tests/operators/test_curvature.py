"""Hessian, Gauss-Newton and empirical Fisher against dense oracles, and against each other where theory says so."""

import functools
import itertools

import cases
import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from oracle import difference

from tf_natgrad.operators import EmpiricalFisher, Fisher, GaussNewton, Hessian
from tf_natgrad.solvers import Auto, ConjugateGradient, Gram, SVDPseudoInverse

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-10
KINDS = {"hessian": Hessian, "gauss_newton": GaussNewton, "empirical": EmpiricalFisher}
# A network with a loop takes seconds to trace: one matrix of it stands for the others.
EVERY_FORM = [(name, kind) for name in ("mlp", "sequence", "embedding") for kind in sorted(KINDS)] + [
    ("cnn", "hessian"),
    ("lstm", "hessian"),
    ("shared_layer", "gauss_newton"),
]
A_FEW = [("mlp", kind) for kind in sorted(KINDS)] + [("cnn", "hessian")]
# The model ends in a softmax or sigmoid, and the distribution is parametrised by the logits before it.
BEHIND_LOGITS = {"softmax_in_model", "sigmoid_in_model"}


def _make(problem, kind, **options):
    with cases.precision(problem.dtype):
        return KINDS[kind](problem.model, problem.loss, (problem.x, problem.y), sample_weight=problem.weight, **options)


@functools.cache
def _operator(name, kind):
    return _make(cases.shared(name), kind)


@functools.cache
def _truth(name, kind):
    problem = cases.shared(name)
    truth = problem.oracle
    if kind == "hessian":
        return oracle.hessian(problem.model, problem.x, problem.y, truth.weights, problem.family)
    if kind == "empirical":
        return oracle.empirical_fisher(truth, problem.family)
    return truth.matrix if name in BEHIND_LOGITS else oracle.gauss_newton(truth, problem.y, problem.family)


# The oracles.


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("name", sorted(cases.CASES))
def test_matrix_is_the_oracle(name, kind, rng):
    truth, operator = _truth(name, kind), _operator(name, kind)
    v = rng.normal(size=len(truth))
    assert difference(operator.matvec(v), truth @ v) < TOLERANCE
    assert difference(operator.to_dense(), truth) < TOLERANCE


@pytest.mark.parametrize("name", ["mlp", "learned_std", "shared_layer"])
def test_oracle_of_the_hessian_is_that_of_the_keras_loss_by_tensorflow(name):
    problem = cases.shared(name)
    theta, variables = problem.flat.read(), problem.model.trainable_variables
    loss = problem.loss if name != "learned_std" else _negative_log_likelihood

    @tf.function(autograph=False)
    def hessians(theta):
        moving = list(zip(variables, problem.flat.unflatten(theta), strict=True))
        with keras.StatelessScope(state_mapping=moving):
            value = loss(problem.y, problem.model(problem.x), sample_weight=problem.weight)
        return tf.hessians(value, theta)[0]

    assert difference(_truth(name, "hessian"), hessians(theta)) < TOLERANCE


def _negative_log_likelihood(y, z, sample_weight):
    mean, log_std = z[:, :2], z[:, 2:]
    values = tf.reduce_sum(0.5 * tf.square((y - mean) * tf.exp(-log_std)) + log_std, -1)
    return tf.reduce_mean(sample_weight * values)


@pytest.mark.parametrize("name, kind", EVERY_FORM)
def test_every_form_is_the_same_matrix(name, kind, rng):
    truth, operator = _truth(name, kind), _operator(name, kind)
    block = rng.normal(size=(len(truth), 3))
    assert difference(operator.matmul(block), truth @ block) < TOLERANCE
    assert difference(operator.matmul(block.T, adjoint_arg=True), truth @ block) < TOLERANCE
    assert difference(operator.matvec(block[:, 0], adjoint=True), truth @ block[:, 0]) < TOLERANCE
    assert operator.adjoint() is operator
    assert difference(operator.diag_part(), np.diag(truth)) < TOLERANCE
    assert float(operator.trace()) == pytest.approx(np.trace(truth), rel=TOLERANCE)
    exported = operator.to_scipy()
    assert difference(exported.matmat(block[:, :2]), truth @ block[:, :2]) < TOLERANCE
    assert difference(exported.rmatvec(block[:, 0]), truth @ block[:, 0]) < TOLERANCE
    damped = operator.damped(0.3)
    assert difference(damped.matvec(block[:, 0]), truth @ block[:, 0] + 0.3 * block[:, 0]) < TOLERANCE


@pytest.mark.parametrize("name, kind", A_FEW)
def test_damped_solve(name, kind, rng):
    truth, operator = _truth(name, kind), _operator(name, kind)
    damping = 0.3 + 1.5 * max(0.0, -np.linalg.eigvalsh(truth)[0])
    b = rng.normal(size=len(truth))
    expected = np.linalg.solve(truth + damping * np.eye(len(truth)), b)
    solvers = [ConjugateGradient(rtol=1e-13), ConjugateGradient(rtol=1e-13, preconditioner="jacobi")]
    solvers += [SVDPseudoInverse()] + [Gram()] * (kind == "empirical")
    for solver in solvers:
        assert difference(solver.solve(operator.damped(damping), b).value, expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_gram_needs_a_factor(kind):
    operator = _operator("mlp", kind).damped(0.1)
    with pytest.raises(TypeError, match=r"`operator`: received (Hessian|GaussNewton).*ConjugateGradient"):
        Gram().solve(operator, np.ones(64))
    assert Auto().choose(operator)[0] == ConjugateGradient(rtol=1e-3)


@pytest.mark.parametrize("name", ["mlp", "sequence", "binary"])
def test_empirical_gram_is_that_of_its_factor(name):
    operator = _operator(name, "empirical")
    factor = operator.factor().numpy()
    assert difference(operator.gram(), factor @ factor.T) < TOLERANCE
    assert difference(factor.T @ factor, _truth(name, "empirical")) < TOLERANCE


@pytest.mark.parametrize("name", ["mlp", "binary", "regression", "sequence", "shared_layer"])
def test_loss_and_its_gradient(name):
    problem, operator = cases.shared(name), _operator(name, "hessian")
    loss = keras.losses.MeanSquaredError() if name == "regression" else problem.loss
    z = problem.model(problem.x)
    weight = problem.weight.reshape(-1, *[1] * (len(z.shape) - 2))
    # A squared error leaves out the constant of the normal density, of standard deviation sqrt(3 / 2).
    constant = np.mean(problem.weight) * 1.5 * np.log(2 * np.pi * 1.5) if name == "regression" else 0.0
    assert float(operator.loss()) - constant == pytest.approx(float(loss(problem.y, z, sample_weight=weight)), rel=1e-9)
    assert difference(operator.gradient(), problem.oracle.gradient) < TOLERANCE


# What theory says.


@pytest.mark.parametrize("name", ["mlp", "soft_targets", "softmax_in_model", "binary", "regression", "sequence"])
def test_gauss_newton_is_the_fisher_where_the_label_does_not_matter(name):
    assert difference(_operator(name, "gauss_newton").to_dense(), cases.shared(name).dense) < TOLERANCE


@pytest.mark.parametrize("name", ["learned_std", "mixture"])
def test_gauss_newton_is_not_the_fisher_where_it_does(name):
    assert difference(_operator(name, "gauss_newton").to_dense(), cases.shared(name).dense) > 0.1


def test_blocks_of_a_piecewise_linear_network_are_those_of_gauss_newton(rng):
    stack = [keras.layers.Dense(5, "relu"), keras.layers.Dense(4, "leaky_relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *stack])
    data = rng.normal(size=(9, 4)), rng.integers(0, 3, 9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    hessian, gauss_newton = (cls(model, loss, data).to_dense().numpy() for cls in (Hessian, GaussNewton))
    ends = np.cumsum([0] + [layer.count_params() for layer in stack])
    for start, end in itertools.pairwise(ends):
        block = slice(start, end)
        assert difference(hessian[block, block], gauss_newton[block, block]) < TOLERANCE
    assert difference(hessian, gauss_newton) > 0.01


@pytest.mark.parametrize("loss", ["categorical", "binary", "mse"])
def test_all_three_are_one_matrix_for_linear_models(loss, rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, bias_initializer="normal")])
    loss, y = {
        "categorical": (keras.losses.SparseCategoricalCrossentropy(from_logits=True), rng.integers(0, 2, 7)),
        "binary": (keras.losses.BinaryCrossentropy(from_logits=True), rng.integers(0, 2, (7, 2)).astype(float)),
        "mse": ("mse", rng.normal(size=(7, 2))),
    }[loss]
    data = rng.normal(size=(7, 4)), y, rng.uniform(0.1, 2.0, 7)
    fisher, hessian, gauss_newton = (cls(model, loss, data).to_dense() for cls in (Fisher, Hessian, GaussNewton))
    assert difference(hessian, fisher) < TOLERANCE
    assert difference(gauss_newton, fisher) < TOLERANCE


def test_empirical_fisher_is_the_fisher_on_average_over_labels():
    problem = cases.shared("softmax_regression")
    p = oracle.softmax(problem.oracle.outputs)
    total = 0.0
    for label in range(3):
        y, weight = np.full(5, label), problem.weight * p[:, label]
        total = total + EmpiricalFisher(problem.model, problem.loss, (problem.x, y), sample_weight=weight).to_dense()
    assert difference(total, problem.oracle.matrix) < TOLERANCE


# Statistics of a batch or of an example: TensorFlow's own second derivative of them is wrong.


def _normalised(make):
    stack = [keras.layers.Dense(4), make(), keras.layers.Dense(3, "tanh"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4,)), *stack])


@pytest.mark.parametrize(
    "make, training",
    [
        (keras.layers.BatchNormalization, True),
        (keras.layers.BatchNormalization, False),
        (lambda: keras.layers.GroupNormalization(1), False),
        (keras.layers.UnitNormalization, False),
        (keras.layers.RMSNormalization, False),
    ],
    ids=["batch, training", "batch, inference", "group", "unit", "rms"],
)
def test_hessian_through_normalisation(make, training, rng):
    model, x, y = _normalised(make), rng.normal(size=(6, 4)), rng.integers(0, 3, 6)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.set_weights([np.abs(rng.normal(0.5, 0.4, w.shape)) for w in model.get_weights()])
    expected = oracle.hessian(model, x, y, np.full(6, 1 / 6), "categorical", training)
    assert difference(Hessian(model, loss, (x, y), training=training).to_dense(), expected) < TOLERANCE


def test_what_replaces_the_moments_of_tensorflow_is_taken_back(rng):
    original = tf.nn.moments
    seen = []

    class Spy(keras.layers.Layer):
        def call(self, x):
            if not tf.executing_eagerly():
                return x
            seen.append(tf.nn.moments is not original)
            for axes, keepdims in (([0], False), ([1], True), ([0, 1], False)):
                for ours, theirs in zip(
                    tf.nn.moments(x, axes, keepdims=keepdims), original(x, axes, keepdims=keepdims), strict=True
                ):
                    assert ours.shape == theirs.shape and difference(ours, theirs) < 1e-14
            if len(seen) == 3:
                raise RuntimeError("mid-way")
            return x

    model = keras.Sequential([keras.Input((4,)), Spy(), keras.layers.Dense(1)])
    data = rng.normal(size=(5, 4)), rng.normal(size=(5, 1))
    Hessian(model, "mse", data)
    assert seen == [True] and tf.nn.moments is original
    GaussNewton(model, "mse", data)
    assert seen == [True, False]
    with pytest.raises(RuntimeError, match=r"mid-way"):
        Hessian(model, "mse", data)
    assert seen == [True, False, True] and tf.nn.moments is original


# Some of the variables.


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("chosen", ["first kernel", "last layer", "two, the later one first"])
def test_restriction_is_the_block_of_the_whole(kind, chosen):
    problem = cases.shared("mlp")
    indices = {"first kernel": [0], "last layer": [4, 5], "two, the later one first": [4, 1]}[chosen]
    slices = problem.flat.slices
    entries = np.concatenate([np.arange(64)[slices[i]] for i in indices])
    operator = _make(problem, kind, variables=[problem.model.trainable_variables[i] for i in indices])
    block = _truth("mlp", kind)[np.ix_(entries, entries)]
    assert operator.flat_parameters.size == len(entries)
    assert difference(operator.to_dense(), block) < TOLERANCE
    assert difference(operator.gradient(), problem.oracle.gradient[entries]) < TOLERANCE


# Precision, graphs, and time.


@pytest.mark.parametrize("name, kind", [*A_FEW, ("layer_norm", "hessian")])
def test_single_precision(name, kind, rng):
    operator, truth = _make(cases.shared(name, "float32"), kind), _truth(name, kind)
    assert operator.dtype == tf.float32
    assert difference(operator.to_dense(), truth) < 1e-5
    v = rng.normal(size=len(truth)).astype("float32")
    assert difference(operator.matvec(v), truth @ v) < 1e-5
    with pytest.raises(TypeError, match=r"`x`: received dtype float64; expected dtype float32"):
        operator.matvec(tf.constant(v, tf.float64))


@pytest.mark.parametrize("name, kind", A_FEW)
def test_inside_a_function(name, kind, rng):
    problem, v = cases.shared(name), rng.normal(size=cases.shared(name).size)

    @tf.function(autograph=False)
    def inside(x, y, weight):
        operator = KINDS[kind](problem.model, problem.loss, (x, y), sample_weight=weight)
        return operator.matvec(v), operator.matmul(tf.stack([v, -v], 1)), operator.gradient()

    product, products, gradient = inside(problem.x, problem.y, problem.weight)
    expected = _truth(name, kind) @ v
    assert difference(product, expected) < TOLERANCE
    assert difference(products, np.stack([expected, -expected], 1)) < TOLERANCE
    assert difference(gradient, problem.oracle.gradient) < TOLERANCE


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_used_inside_a_function(kind, rng):
    v, operator = rng.normal(size=64), _operator("mlp", kind)
    product = tf.function(lambda x: operator.matvec(x), autograph=False)
    assert difference(product(v), _truth("mlp", kind) @ v) < TOLERANCE


@pytest.mark.parametrize("name, kind", [*A_FEW, ("layer_norm", "hessian")])
def test_matrix_stays_at_the_weights_of_its_construction(name, kind, rng):
    problem = cases.fresh(name)
    operator, v = _make(problem, kind), rng.normal(size=problem.size)
    problem.flat.assign(problem.flat.read() + rng.normal(size=problem.size))
    assert difference(operator.matvec(v), _truth(name, kind) @ v) < TOLERANCE
    problem.flat.assign(problem.flat.read() + rng.normal(size=problem.size))
    assert difference(operator.to_dense(), _truth(name, kind)) < TOLERANCE


# Refusals.


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_labels_are_needed(kind):
    problem = cases.shared("mlp")
    with pytest.raises(ValueError, match=rf"`data`: received inputs without labels.*{KINDS[kind].__name__} has labels"):
        KINDS[kind](problem.model, problem.loss, problem.x)


@pytest.mark.parametrize("name", ["solve", "solvevec", "inverse", "cholesky", "eigvals", "cond", "determinant"])
def test_nothing_dense_unasked(name):
    for kind in KINDS:
        operator = _operator("mlp", kind)
        with pytest.raises(NotImplementedError, match=rf"dense matrix of {type(operator).__name__}"):
            getattr(operator, name)()


def test_dense_matrix_beyond_the_memory_limit():
    with pytest.raises(ValueError, match=r"64 x 64 takes .* GiB.*memory_limit"):
        _operator("mlp", "hessian").to_dense(memory_limit=64 * 64 * 8 - 1)
    assert _operator("mlp", "hessian").to_dense(memory_limit=64 * 64 * 8).shape == (64, 64)


@pytest.mark.parametrize("option", [{"training": True}, {"sample_weight": np.ones(5)}])
def test_options_of_one_batch_are_refused_over_a_data_set(option):
    problem = cases.shared("mlp")
    dataset = tf.data.Dataset.from_tensors((problem.x, problem.y))
    with pytest.raises(ValueError, match=rf"`{next(iter(option))}`: received a value together with a data set"):
        Hessian(problem.model, problem.loss, dataset, **option)
