"""The layers' calls are recorded where the Gram matrix is asked for, and nowhere else."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import training
from keras import layers
from oracle import difference

import tf_natgrad as ng
from tf_natgrad.operators import Fisher, Hessian
from tf_natgrad.solvers import Auto, ConjugateGradient, Gram, SVDPseudoInverse

pytestmark = pytest.mark.usefixtures("float64")

SEEN = []


class Spy(layers.Layer):
    """Notes for each pass whether the `call` of the layer before it was replaced."""

    def call(self, inputs):
        SEEN.append("call" in vars(WATCHED[-1]))
        return inputs


WATCHED = []


class Noise(layers.Layer):
    """Draws random numbers that no seed of Keras knows of."""

    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs), dtype=inputs.dtype)


@pytest.fixture(autouse=True)
def _forget():
    SEEN.clear()


def _problem(*between, kind=keras.Sequential):
    keras.utils.set_random_seed(0)
    WATCHED.append(layers.Dense(4, "tanh"))
    model = kind([keras.Input((3,)), WATCHED[-1], Spy(), *between, layers.Dense(3)])
    SEEN.clear()
    rng = np.random.default_rng(0)
    return model, training.sparse(), rng.normal(size=(5, 3)), rng.integers(0, 3, 5)


def _gram_of_the_factor(fisher):
    factor = fisher.factor().numpy()
    return factor @ factor.T


def _cg_direction(model, loss, x, y):
    ng.natural_gradient(model, loss, x, y, solver="cg")


def _hessian_product(model, loss, x, y):
    Hessian(model, loss, (x, y)).matvec(np.ones(31))


def _eigenvalues(model, loss, x, y):
    ng.spectrum.eigsh(Hessian(model, loss, (x, y)), 2)
    ng.spectrum.eigsh(Fisher(model, loss, x), 2, method="lanczos")


def _dense_direction(model, loss, x, y):
    ng.natural_gradient(model, loss, x, y, solver="svd")


def _micro_batches(model, loss, x, y):
    Fisher(model, loss, x, micro_batch_size=2).matvec(np.ones(31))


def _data_set(model, loss, x, y):
    Fisher(model, loss, tf.data.Dataset.from_tensor_slices((x, y)).batch(2)).matvec(np.ones(31))


def _steps_by_products(model, loss, x, y):
    training.compiled(model, ng.NaturalGradient(solver="cg"), loss)
    training.fit(model, x, y, batch_size=5)


def _many_rows_for_few_weights(model, loss, x, y):
    # "auto" takes the dense matrix by the sizes alone.
    ng.natural_gradient(model, loss, np.tile(x, (8, 1)), np.tile(y, 8))


JOBS = [
    _cg_direction,
    _hessian_product,
    _eigenvalues,
    _dense_direction,
    _micro_batches,
    _data_set,
    _steps_by_products,
    _many_rows_for_few_weights,
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__.strip("_"))
def test_nothing_is_replaced_where_no_gram_matrix_is_asked_for(job):
    job(*_problem(kind=ng.NaturalGradientSequential))
    assert SEEN and not any(SEEN)


def test_the_gram_matrix_takes_one_more_pass_unless_it_was_announced():
    model, loss, x, _ = _problem()
    late, early = Fisher(model, loss, x), Fisher(model, loss, x, record_calls=True)
    assert SEEN == [False, True]
    SEEN.clear()
    assert difference(late.gram(), _gram_of_the_factor(early)) < 1e-10
    assert SEEN == [True]
    late.gram(), early.gram(), Gram().solve(late.damped(0.1), np.ones(31))
    assert len(SEEN) == 1


@pytest.mark.parametrize("solver", ["gram", "auto"])
def test_a_compiled_direction_takes_one_pass(solver):
    model, loss, x, y = _problem()
    ng.natural_gradient(model, loss, x, y, solver=solver)
    traced = len(SEEN)
    SEEN.clear()
    direction = tf.function(lambda x, y: ng.natural_gradient(model, loss, x, y, solver=solver)[0], autograph=False)
    direction(tf.constant(x), tf.constant(y))
    assert SEEN == [True] and traced <= 3


@pytest.mark.parametrize("when", ["eager", "in_a_function"])
def test_the_second_pass_has_the_dropout_of_the_first(when):
    model, loss, x, y = _problem(layers.Dropout(0.5))
    fisher, seeds = Fisher(model, loss, (x, y), training=True), [v.numpy() for v in model.non_trainable_variables]
    expected = _gram_of_the_factor(fisher)
    gram = fisher.gram if when == "eager" else tf.function(fisher.gram, autograph=False)
    assert difference(gram(), expected) < 1e-10
    for before, variable in zip(seeds, model.non_trainable_variables, strict=True):
        assert np.array_equal(before, variable.numpy())


def test_weights_that_have_changed_are_found_out():
    model, loss, x, _ = _problem()
    fisher, announced = Fisher(model, loss, x), Fisher(model, loss, x, record_calls=True)
    expected = fisher.damped(0.1).to_dense().numpy()
    model.layers[0].bias.assign(np.ones(4))
    for solve in (fisher.gram, lambda: Gram().solve(fisher.damped(0.1), np.ones(31))):
        with pytest.raises(ValueError, match=r"weights have changed.*bias.*record_calls=True"):
            solve()
    assert difference(announced.gram(), _gram_of_the_factor(announced)) < 1e-10
    value, info = Auto().solve(fisher.damped(0.1), np.ones(31))
    assert info.solver == SVDPseudoInverse.__name__ and "weights have changed" in info.why
    assert difference(value, np.linalg.solve(expected, np.ones(31))) < 1e-8


def test_a_model_that_cannot_be_called_again_as_it_was_is_found_out():
    model, loss, x, _ = _problem(Noise())
    fisher = Fisher(model, loss, x)
    with pytest.raises(ValueError, match=r"other outputs when it is called again"):
        fisher.gram()
    announced = Fisher(model, loss, x, record_calls=True)
    assert difference(announced.gram(), _gram_of_the_factor(announced)) < 1e-10
    assert ConjugateGradient().solve(fisher.damped(0.1), np.ones(31)).info.converged
