"""The two maps of the Jacobian, wherever they run, and no side effect per product."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import difference, outputs_and_jacobian

from tf_natgrad.linearize import linearize
from tf_natgrad.parameters import FlatParameters

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-11


def _images(linearization, v, u):
    flat = linearization.flat_parameters
    return linearization.jvp(flat.unflatten(v)), flat.flatten(linearization.vjp(tf.constant(u)))


def _truth(problem, v, u):
    jacobian = outputs_and_jacobian(problem.model, problem.x)[1]
    return jacobian @ v, np.tensordot(u, jacobian, u.ndim)


@pytest.fixture
def vectors(rng):
    def draw(problem):
        shape = problem.model(problem.x).shape
        return rng.normal(size=problem.size), rng.normal(size=shape)

    return draw


def test_jvp_and_vjp_are_the_jacobian(problem, vectors):
    v, u = vectors(problem)
    for ours, theirs in zip(_images(linearize(problem.model, problem.x), v, u), _truth(problem, v, u), strict=True):
        assert difference(ours, theirs) < TOLERANCE


def test_adjoint_identity(problem, vectors):
    v, u = vectors(problem)
    forward, backward = _images(linearize(problem.model, problem.x), v, u)
    size = np.linalg.norm(forward) * np.linalg.norm(u)
    assert abs(np.sum(forward * u) - np.sum(backward * v)) < TOLERANCE * size


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "embedding"])
def test_inside_a_function(name, jit_compile, vectors):
    problem = cases.shared(name)
    v, u = vectors(problem)
    inside = tf.function(lambda x: _images(linearize(problem.model, x), v, u), jit_compile=jit_compile, autograph=False)
    for ours, theirs in zip(inside(problem.x), _truth(problem, v, u), strict=True):
        assert difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("jit_compile", [False, True])
def test_inside_a_while_loop(jit_compile, vectors):
    problem = cases.shared("mlp")
    v, _ = vectors(problem)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def gauss_newton_powers(x, v):
        j = linearize(problem.model, x)
        flat = j.flat_parameters

        def once(i, v):
            return i + 1, flat.flatten(j.vjp(j.jvp(flat.unflatten(v))))

        return tf.while_loop(lambda i, _: i < 3, once, (0, v))[1]

    jacobian = outputs_and_jacobian(problem.model, problem.x)[1].reshape(-1, problem.size)
    expected = np.linalg.matrix_power(jacobian.T @ jacobian, 3) @ v
    assert difference(gauss_newton_powers(problem.x, tf.constant(v)), expected) < TOLERANCE


def test_eager_record_used_inside_a_function(vectors):
    problem = cases.shared("mlp")
    v, u = vectors(problem)
    j = linearize(problem.model, problem.x)
    j.prepare_jvp()
    inside = tf.function(lambda: _images(j, v, u), autograph=False)
    for ours, theirs in zip(inside(), _truth(problem, v, u), strict=True):
        assert difference(ours, theirs) < TOLERANCE


def _with_dropout():
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    )


def test_dropout_is_frozen_between_products(rng):
    model, x = _with_dropout(), rng.normal(size=(6, 4))
    first, second = linearize(model, x, training=True), linearize(model, x, training=True)
    v = rng.normal(size=first.flat_parameters.size)
    u = np.ones((6, 2))
    once, again = _images(first, v, u), _images(first, v, u)
    assert np.array_equal(once[0], again[0]) and np.array_equal(once[1], again[1])
    assert abs(np.sum(once[0] * u) - np.sum(once[1] * v)) < TOLERANCE
    assert not np.array_equal(first.outputs, second.outputs)


def _with_batch_norm():
    return keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(momentum=0.9), keras.layers.Dense(2)])


@pytest.mark.parametrize("in_graph", [False, True])
def test_batch_norm_statistics_move_once_per_linearisation(in_graph, rng):
    model, x = _with_batch_norm(), rng.normal(3.0, 1.0, size=(6, 4))
    v = rng.normal(size=FlatParameters(model.trainable_variables).size)

    def several_products(x):
        j = linearize(model, x, training=True)
        return [_images(j, v, np.ones((6, 2))) for _ in range(3)]

    (tf.function(several_products, autograph=False) if in_graph else several_products)(tf.constant(x))
    assert difference(model.layers[0].moving_mean, 0.1 * x.mean(0)) < TOLERANCE


def test_batch_norm_statistics_stay_in_inference_mode(rng):
    model = _with_batch_norm()
    _images(linearize(model, rng.normal(size=(6, 4)), training=False), np.ones(18), np.ones((6, 2)))
    assert not np.any(model.layers[0].moving_mean)


def test_model_is_called_once(rng, monkeypatch):
    problem, calls = cases.fresh("mlp"), []
    call = problem.model.layers[0].call
    monkeypatch.setattr(problem.model.layers[0], "call", lambda *a, **k: calls.append(1) or call(*a, **k))
    j = linearize(problem.model, problem.x)
    for _ in range(3):
        _images(j, rng.normal(size=problem.size), rng.normal(size=(5, 3)))
    assert len(calls) == 1


def test_head_and_choice_of_variables(rng):
    problem = cases.shared("mlp")
    last = FlatParameters(problem.model.layers[-1].trainable_variables)
    j = linearize(problem.model, problem.x, flat_parameters=last, head=lambda z: 3.0 * z)
    v, u = rng.normal(size=last.size), rng.normal(size=(5, 3))
    jacobian = 3.0 * outputs_and_jacobian(problem.model, problem.x)[1][..., -last.size :]
    forward, backward = _images(j, v, u)
    assert difference(forward, jacobian @ v) < TOLERANCE
    assert difference(backward, np.tensordot(u, jacobian, 2)) < TOLERANCE


def test_variables_that_do_not_matter_have_zero_gradients():
    problem = cases.shared("mlp")
    unused = keras.Variable(np.ones(2))
    flat = FlatParameters([*problem.model.trainable_variables, unused])
    forward, backward = _images(linearize(problem.model, problem.x, flat_parameters=flat), np.ones(66), np.ones((5, 3)))
    assert forward.shape == (5, 3) and not np.any(backward[-2:])


def test_a_plain_callable():
    variable = keras.Variable(np.array([2.0]))

    class Scale:
        trainable_variables = (variable,)

        def __call__(self, x, training=False):
            return x * variable

    forward, backward = _images(linearize(Scale(), tf.constant([[1.0], [3.0]], tf.float64)), [5.0], np.ones((2, 1)))
    assert np.array_equal(forward, [[5.0], [15.0]]) and np.array_equal(backward, [4.0])
