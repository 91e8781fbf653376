"""The direction of a batch with weight regularisers, against a dense oracle."""

import itertools

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
import training
from keras import layers, regularizers
from oracle import difference

import tf_natgrad as ng
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.solvers import ConjugateGradient, get
from tf_natgrad.training.direction import DirectionSettings, batch_direction

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-10
KERNEL, BIAS = 2.0**-5, 2.0**-7


class Quadratic(regularizers.Regularizer):
    """`x^T M x / 2` with a matrix that is not definite."""

    MATRIX = np.diag([0.5] * 6 + [-0.3] * 6) + 0.05

    def __call__(self, x):
        flat = tf.reshape(tf.convert_to_tensor(x), [-1])
        return 0.5 * tf.reduce_sum(flat * tf.linalg.matvec(tf.constant(self.MATRIX, flat.dtype), flat))


class Problem:
    """Softmax regression with penalties; `curvature` is that of the penalties, dense."""

    def __init__(self, kernel=None, bias=None, curvature=None, units=3):
        keras.utils.set_random_seed(0)
        dense = layers.Dense(units, kernel_regularizer=kernel, bias_regularizer=bias, bias_initializer="normal")
        self.model = ng.NaturalGradientSequential([keras.Input((4,)), dense])
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(40, 4))
        self.y = np.argmax(self.x[:, :units] + rng.gumbel(size=(40, units)), 1)
        truth = oracle.dense_problem(self.model, self.x, self.y, None, "categorical")
        flat = FlatParameters(self.model.trainable_variables)
        with tf.GradientTape() as tape:
            penalty = tf.add_n(self.model.losses)
        slope = flat.flatten(tape.gradient(penalty, flat.tensors, unconnected_gradients="zero")).numpy()
        self.fisher, self.gradient = truth.matrix, truth.gradient + slope
        self.curvature = np.diag(curvature) if np.ndim(curvature) == 1 else curvature
        self.shift, self.last = rng.normal(size=(2, flat.size))

    def direction(self, solver, damping, **options):
        """Value, slope, form of the Fisher and form of the whole curvature, from a graph."""
        solver = ConjugateGradient(rtol=1e-13) if solver == "cg" else get(solver)

        @tf.function(autograph=False)
        def traced(x, y, damping):
            settings = DirectionSettings(solver, damping, **options)
            found = batch_direction(self.model, training.sparse(), (x, y, None), settings)
            return found.value, *found.model

        known = 0 if damping == 0 else tf.constant(damping, tf.float64)
        return [t.numpy() for t in traced(tf.constant(self.x), tf.constant(self.y), known)]


def _l2(kernel=KERNEL, bias=BIAS):
    constants = [2 * (kernel or 0.0)] * 12 + [2 * (bias or 0.0)] * 3
    made = [None if c is None else regularizers.L2(c) for c in (kernel, bias)]
    return Problem(*made, curvature=np.array(constants))


@pytest.mark.parametrize("with_shift", [False, True])
@pytest.mark.parametrize("solver", ["gram", "cg", "svd", "cholesky", "auto"])
@pytest.mark.parametrize("bias", [BIAS, None])
def test_direction_and_forms(bias, solver, with_shift):
    problem, damping = _l2(bias=bias), 2.0**-6
    shift = problem.shift if with_shift else np.zeros(15)
    value, slope, form, whole = problem.direction(solver, damping, shift=tf.constant(shift) if with_shift else None)
    matrix = problem.fisher + problem.curvature + damping * np.eye(15)
    expected = np.linalg.solve(matrix, problem.gradient + damping * shift)
    assert difference(value, expected) < TOLERANCE
    assert slope == pytest.approx(problem.gradient @ expected, rel=1e-9)
    assert form == pytest.approx(expected @ problem.fisher @ expected, rel=1e-9)
    assert whole == pytest.approx(expected @ (problem.fisher + problem.curvature) @ expected, rel=1e-9)


@pytest.mark.parametrize("solver", ["gram", "cg"])
def test_the_best_combination_has_the_curvature_of_the_penalties(solver):
    problem, damping = _l2(), 2.0**-6
    value, slope, form, whole = problem.direction(solver, damping, last=tf.constant(problem.last))
    matrix = problem.fisher + problem.curvature + damping * np.eye(15)
    both = np.stack([np.linalg.solve(matrix, problem.gradient), problem.last], 1)
    expected = both @ np.linalg.solve(both.T @ matrix @ both, both.T @ problem.gradient)
    assert difference(value, expected) < TOLERANCE
    assert slope == pytest.approx(problem.gradient @ expected, rel=1e-9)
    assert form == pytest.approx(expected @ problem.fisher @ expected, rel=1e-9)
    assert whole == pytest.approx(expected @ (problem.fisher + problem.curvature) @ expected, rel=1e-9)


@pytest.mark.parametrize("solver", ["svd", "cholesky", "auto", "cg"])
def test_of_an_indefinite_penalty_the_positive_part(solver, caplog):
    values, vectors = np.linalg.eigh(Quadratic.MATRIX)
    positive = np.zeros((15, 15))
    positive[:12, :12] = (vectors * np.maximum(values, 0.0)) @ vectors.T
    problem = Problem(Quadratic(), curvature=positive)
    value, slope, _, whole = problem.direction(solver, 0.125)
    expected = np.linalg.solve(problem.fisher + positive + 0.125 * np.eye(15), problem.gradient)
    assert difference(value, expected) < TOLERANCE
    assert whole == pytest.approx(expected @ (problem.fisher + positive) @ expected, rel=1e-9)
    assert slope > 0


def test_products_with_a_penalty_run_under_xla():
    problem, solver = _l2(), ConjugateGradient(rtol=1e-13)

    @tf.function(autograph=False, jit_compile=True)
    def compiled(x, y, damping):
        settings = DirectionSettings(solver, damping)
        return batch_direction(problem.model, training.sparse(), (x, y, None), settings).value

    value = compiled(tf.constant(problem.x), tf.constant(problem.y), tf.constant(0.125, tf.float64))
    matrix = problem.fisher + problem.curvature + 0.125 * np.eye(15)
    assert difference(value, np.linalg.solve(matrix, problem.gradient)) < TOLERANCE


@pytest.mark.parametrize("kernel, damping", [(Quadratic(), 0.125), (regularizers.L2(KERNEL), 0.0)])
def test_gram_refuses_what_it_has_no_form_for(kernel, damping):
    problem = Problem(kernel, curvature=np.zeros(15))
    with pytest.raises(ValueError, match=r"`solver`: received the Gram solver.*positive `damping`.*'auto'"):
        problem.direction("gram", damping)
    value, info = ng.natural_gradient(problem.model, training.sparse(), problem.x, problem.y, damping=damping)
    assert info.solver == "SVDPseudoInverse" and "positive number for each variable" in info.why
    assert np.isfinite(value).all()


def test_l1_has_no_curvature_and_stays_in_the_gram_form():
    problem = Problem(regularizers.L1(0.25), curvature=np.zeros(15))
    value, _, _, _ = problem.direction("gram", 0.125)
    assert difference(value, np.linalg.solve(problem.fisher + 0.125 * np.eye(15), problem.gradient)) < TOLERANCE


def _norm_of_gradient(model, x, y):
    with tf.GradientTape() as tape:
        loss = training.sparse()(y, model(x)) + tf.add_n(model.losses)
    return np.sqrt(sum(np.sum(np.square(g)) for g in tape.gradient(loss, [v.value for v in model.trainable_variables])))


@pytest.fixture(scope="module")
def penalised_fit(float64):
    problem = _l2()
    data = problem.x, problem.y
    assert ng.fisher_scoring(problem.model, training.sparse(), data, gtol=1e-13, progress=False).converged
    return problem.model.get_weights()


@pytest.mark.parametrize("solver", ["gram", "cholesky"])
def test_full_batches_converge_quadratically_to_the_penalised_fit(solver, penalised_fit):
    problem = _l2()
    optimizer = ng.NaturalGradient(1.0, damping=0.0, line_search=None, max_kl=None, solver=solver)
    problem.model.compile(optimizer, training.sparse())
    norms = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: norms.append(_norm_of_gradient(problem.model, problem.x, problem.y))
    )
    problem.model.fit(problem.x, problem.y, batch_size=40, epochs=8, verbose=0, shuffle=False, callbacks=[watch])
    falling = [n for n in norms if n > 1e-13]
    gained = [np.log(b) / np.log(a) for a, b in itertools.pairwise(falling[1:])]
    assert norms[-1] < 1e-14 and min(gained) > 1.5
    for ours, theirs in zip(problem.model.get_weights(), penalised_fit, strict=True):
        assert difference(ours, theirs) < TOLERANCE
