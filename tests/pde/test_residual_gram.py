"""The Gram matrix of residuals whose derivatives are carried forward is exact, and so are their natural gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import training
from keras import layers
from oracle import difference, outputs_and_jacobian
from test_derivatives import hard, sequential, skips

import tf_natgrad as ng
from tf_natgrad.layers import _products, gram_mismatch, tolerated_mismatch
from tf_natgrad.operators import Fisher

pytestmark = pytest.mark.usefixtures("float64")


class Residual(ng.NaturalGradientMixin, keras.Model):
    """The residual of an equation that has all of a network: value, slopes, curvature, and a product of them."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def call(self, x):
        u, du, laplacian = ng.pde.laplacian(self.network, x)
        slopes = tf.reduce_sum(du, -1, keepdims=u.shape[1] == 1)
        return laplacian + u * slopes + tf.sin(x[:, :1])


class Mixed(ng.NaturalGradientMixin, keras.Model):
    """Two residuals, of chosen derivatives, beside the plain outputs of the same network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def call(self, x):
        u = ng.pde.derivatives(self.network, x, [(1,), (0, 1), (0, 0)])
        return tf.concat([u[1,] - u[0, 0], u[0, 1] * self.network(x)], -1)


def wide():
    """Pairs of streams take less time here than per-example gradients of the weights."""
    return keras.Sequential([keras.Input((2,)), layers.Dense(40, "tanh"), layers.Dense(40, "sigmoid"), layers.Dense(1)])


MODELS = {
    "one_output": lambda: Residual(sequential("tanh", "tanh")),
    "three_outputs": lambda: Residual(sequential("tanh", "swish", outputs=3)),
    "one_dimension": lambda: Residual(sequential("sigmoid", dimension=1)),
    "wide": lambda: Residual(wide()),
    "skips": lambda: Residual(skips()),
    "hard_boundary": lambda: Residual(hard(2)),
    "mixed": lambda: Mixed(sequential("tanh", keras.ops.sin)),
}


def problem(name, count=9):
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    dimension = model.network.input_shape[-1]
    x = np.random.default_rng(1).uniform(size=(count, dimension))
    return model, x, np.random.default_rng(2).normal(size=model(x).shape)


@pytest.mark.parametrize("name", MODELS)
def test_gram_is_that_of_the_jacobian(name):
    model, x, _ = problem(name)
    fisher = Fisher(model, "mse", x)
    factor = fisher.factor().numpy()
    assert difference(fisher.gram(), factor @ factor.T) < 1e-12
    assert fisher.gram_checked
    assert gram_mismatch(fisher.batch.record, fisher.batch.linearization, tf.ones([len(x), 1], tf.float64)) < (
        tolerated_mismatch(fisher.batch.linearization)
    )


@pytest.mark.parametrize("name", MODELS)
def test_fisher_is_that_of_the_per_example_jacobian(name):
    model, x, _ = problem(name)
    outputs, jacobian = outputs_and_jacobian(model, tf.constant(x))
    scale = 2.0 / outputs.size
    dense = scale * np.einsum("ncp,ncq->pq", jacobian, jacobian)
    fisher = Fisher(model, "mse", x)
    vector = np.random.default_rng(3).normal(size=len(dense))
    assert difference(fisher.matvec(vector), dense @ vector) < 1e-11
    assert difference(fisher.to_dense(), dense) < 1e-11


@pytest.mark.parametrize("damping", [1e-2, 1e-5])
@pytest.mark.parametrize("name", MODELS)
def test_directions_are_those_of_the_dense_matrix(name, damping):
    model, x, y = problem(name)
    expected, _ = ng.natural_gradient(model, "mse", x, y, damping=damping, solver="svd")
    value, info = ng.natural_gradient(model, "mse", x, y, damping=damping, solver="gram")
    assert info.solver == "Gram"
    assert difference(value, expected) < 1e-8


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_training_takes_the_directions_of_the_dense_matrix(mode):
    weights = {}
    for solver in ("gram", "svd"):
        model, x, y = problem("one_output", count=12)
        training.compiled(model, ng.NaturalGradient(solver=solver), "mse", mode=mode)
        history = training.fit(model, x, 0.1 * y, batch_size=12, epochs=5)
        assert history["loss"][-1] < 0.9 * history["loss"][0]
        weights[solver] = ng.parameters.FlatParameters(model.trainable_variables).read()
    assert difference(weights["gram"], weights["svd"]) < 1e-7


@pytest.mark.parametrize("fisher", ["exact", ng.KFAC(fisher="exact")], ids=["cg", "kfac"])
def test_xla(fisher):
    weights = {}
    for mode in ("graph", "xla"):
        model, x, y = problem("one_output", count=12)
        options = {"solver": "cg"} if fisher == "exact" else {}
        training.compiled(model, ng.NaturalGradient(fisher=fisher, **options), "mse", mode=mode)
        training.fit(model, x, 0.1 * y, batch_size=12, epochs=3)
        weights[mode] = ng.parameters.FlatParameters(model.trainable_variables).read()
    assert difference(weights["graph"], weights["xla"]) < 1e-6


def test_scales_by_variable():
    model, x, _ = problem("mixed")
    fisher = Fisher(model, "mse", x)
    scales = {id(v): tf.constant(0.5 + k, tf.float64) for k, v in enumerate(model.trainable_variables)}
    factor = fisher.factor().numpy()
    diagonal = np.concatenate([np.full(v.shape.num_elements(), 0.5 + k) for k, v in enumerate(fisher._flat.tensors)])
    assert difference(fisher.gram_matrix(scales), factor * diagonal @ factor.T) < 1e-12


class Times(layers.Layer):
    """Holds a variable that belongs to another layer too."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


class Shared(Residual):
    """Its network shares a kernel with a layer that has no rule."""

    def __init__(self, network):
        super().__init__(network)
        self.times = Times(network.layers[0].kernel)

    def call(self, x):
        return super().call(x) * keras.ops.sum(keras.ops.tanh(self.times(x)), -1, keepdims=True)


def test_layers_that_share_weights():
    keras.utils.set_random_seed(0)
    model, x = Shared(sequential("tanh")), np.random.default_rng(1).uniform(size=(7, 2))
    fisher = Fisher(model, "mse", x)
    factor = fisher.factor().numpy()
    assert difference(fisher.gram(), factor @ factor.T) < 1e-12


class Biharmonic(Residual):
    """A tape through derivatives that were carried forward: a weight acts outside of the recorded calls."""

    def call(self, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            laplacian = ng.pde.laplacian(self.network, x)[2]
        return tape.gradient(laplacian, x)


def test_a_tape_through_streams_is_found_out():
    keras.utils.set_random_seed(0)
    model, x = Biharmonic(sequential("tanh")), np.random.default_rng(1).uniform(size=(6, 2))
    with pytest.raises(ValueError, match="a gradient taken inside `call`"):
        Fisher(model, "mse", x).gram()


@pytest.mark.parametrize("rows", [3, 130, 400])
def test_sum_of_products_in_strips(rows):
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(3, rows, 4)), rng.normal(size=(3, rows, 5))
    expected = np.einsum("sik,tjk,sil,tjl->ij", left, left, right, right, optimize=True)
    found = _products.sum_of_products(
        [_products.Part(rows, list(map(tf.constant, left)), list(map(tf.constant, right)))]
    )
    assert difference(found, expected) < 1e-13
