"""Terms on their own points: layers that see some examples of the batch, and matrices that are right all the same."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import training
from keras import layers
from oracle import difference, outputs_and_jacobian

import tf_natgrad as ng
from tf_natgrad.layers import _products, capture
from tf_natgrad.layers.rows import rows
from tf_natgrad.layers.transposed_convolution import TransposedConvolutionRule
from tf_natgrad.operators import Fisher, KroneckerFisher

pytestmark = pytest.mark.usefixtures("float64")
POINTS = {"inside": 70, "boundary": 5, "data": 12}


def network(units):
    return keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(units, "tanh"),
            layers.Dense(units, "tanh", use_bias=False),
            layers.Dense(1),
        ]
    )


def points(counts=POINTS):
    rng = np.random.default_rng(1)
    return {name: rng.uniform(size=(count, 2)) for name, count in counts.items()}


def three_terms(units=24, residuals=1):
    """A coefficient in one term only, a layer in another one, and a network in all three."""
    keras.utils.set_random_seed(0)
    k, head = ng.pde.Coefficient(0.7), layers.Dense(4, "tanh")
    weigh = layers.LayerNormalization()

    def repeated(values):
        return tf.concat([values, tf.sin(3.0 * values)][:residuals], -1)

    def inside(u, x):
        value, slopes, laplacian = ng.pde.laplacian(u, x)
        return repeated(k(x) * laplacian + value * slopes[:, :1])

    def data(u, x):
        return repeated(u(x) - tf.reduce_sum(weigh(head(x)) ** 3, -1, keepdims=True))

    model = ng.pde.ResidualModel(
        network(units),
        {"inside": inside, "boundary": lambda u, x: repeated(u(x)), "data": data},
        weights={"boundary": 5.0},
        coefficients=[k, head, weigh],
        residuals=residuals,
    )
    batch = next(iter(model.batches(points())))
    # Builds the layers beside the network.
    model(batch[0])
    return model, batch


@pytest.mark.parametrize("residuals", [1, 2])
@pytest.mark.parametrize("units", [3, 40], ids=["by_weight_gradients", "by_pairs"])
def test_gram_is_that_of_the_per_example_jacobian(units, residuals):
    model, (x, y, weights) = three_terms(units, residuals)
    outputs, jacobian = outputs_and_jacobian(model, x)
    assert outputs.shape == (87, residuals)
    # Rows have the residuals major.
    factor = (np.sqrt(2.0 / outputs.size * weights)[:, None, None] * jacobian).swapaxes(0, 1)
    factor = factor.reshape(outputs.size, -1)
    fisher = Fisher(model, "mse", (x, y, weights))
    assert difference(fisher.gram(), factor @ factor.T) < 1e-10
    assert fisher.gram_checked
    scales = {id(v): tf.constant(0.5 + i, tf.float64) for i, v in enumerate(model.trainable_variables)}
    diagonal = np.concatenate([np.full(v.shape.num_elements(), 0.5 + i) for i, v in enumerate(fisher._flat.tensors)])
    assert difference(fisher.gram_matrix(scales), factor * diagonal @ factor.T) < 1e-10


@pytest.mark.parametrize("units", [3, 40])
def test_directions_are_those_of_the_dense_matrix(units):
    model, (x, y, weights) = three_terms(units)
    options = {"damping": 1e-3, "sample_weight": weights}
    expected, _ = ng.natural_gradient(model, "mse", x, y, solver="svd", **options)
    value, info = ng.natural_gradient(model, "mse", x, y, solver="gram", **options)
    assert info.solver == "Gram"
    assert difference(value, expected) < 1e-8


def test_numbers_of_points_that_are_not_known():
    model, (x, y, weights) = three_terms(40)
    shapes = tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), (x, y, weights))
    fisher = Fisher(model, "mse", (x, y, weights))

    @tf.function(input_signature=[shapes])
    def gram(data):
        return Fisher(model, "mse", data, record_calls=True).gram_matrix()

    assert difference(gram((x, y, weights)), fisher.gram()) < 1e-12


def test_steps_are_those_of_the_dense_matrix():
    weights = {}
    for solver in ("gram", "svd"):
        model, _ = three_terms()
        model.compile(ng.pde.natural_gradient(solver=solver), "mse")
        history = model.fit(model.batches(points(), repeat=5), verbose=0).history
        assert history["rank"][-1] >= 80
        weights[solver] = ng.parameters.FlatParameters(model.trainable_variables).read()
    assert difference(weights["gram"], weights["svd"]) < 1e-6


def test_one_graph_for_the_first_batch_and_the_others():
    model, _ = three_terms()
    model.compile(ng.pde.natural_gradient(), "mse")
    model.make_train_function()
    given, step = [], model.train_function._step
    model.train_function._step = lambda iterator: (given.append(iterator), step(iterator))[1]
    model.fit(model.batches(points(), repeat=3), verbose=0)
    # A batch by itself would have a graph of its own.
    assert len(given) == 3
    assert all(isinstance(i, tf.data.Iterator) and i.element_spec == given[-1].element_spec for i in given)


def split(whole):
    """The same network on all points at once, or on parts of them."""
    keras.utils.set_random_seed(0)
    terms = {"a": lambda u, x: u(x) - tf.sin(x[:, :1])}
    names = {"a": POINTS["inside"]} if whole else {"a": 50, "b": 7, "c": 13}
    terms = {name: terms["a"] for name in names}
    model = ng.pde.ResidualModel(network(6), terms)
    x = points({"a": POINTS["inside"]})["a"]
    cuts = [0, *itertools.accumulate(names.values())]
    parts = {name: x[i:j] for name, (i, j) in zip(names, itertools.pairwise(cuts), strict=True)}
    data, _, _ = next(iter(model.batches(parts)))
    model(data)
    labels = np.random.default_rng(2).normal(size=(len(x), 1))
    return model, (data, labels, np.linspace(0.5, 1.5, len(x)))


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_kronecker_factors_do_not_count_the_points_of_other_terms(approximation):
    whole, parts = (
        KroneckerFisher(model, "mse", data, approximation=approximation) for model, data in (split(True), split(False))
    )
    for one, other in zip(whole.blocks, parts.blocks, strict=True):
        assert difference(other.inputs, one.inputs) < 1e-12
        assert difference(other.gradients, one.gradients) < 1e-12


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_kfac_takes_the_same_steps(approximation):
    weights = []
    for whole in (True, False):
        model, data = split(whole)
        kfac = ng.KFAC(fisher="exact", approximation=approximation)
        training.compiled(model, ng.NaturalGradient(fisher=kfac), "mse")
        model.fit(tf.data.Dataset.from_tensors(data).repeat(4), verbose=0)
        weights.append(ng.parameters.FlatParameters(model.trainable_variables).read())
    assert difference(weights[1], weights[0]) < 1e-9


def test_kfac_of_residuals_with_a_coefficient():
    model, _ = three_terms()
    model.compile(ng.NaturalGradient(fisher=ng.KFAC()), "mse")
    history = model.fit(model.batches(points(), repeat=20), verbose=0).history["loss"]
    assert np.isfinite(history).all()


def test_points_of_several_dimensions():
    keras.utils.set_random_seed(0)
    lift = layers.Dense(2)
    terms = {"line": lambda u, x: u(lift(x)), "plane": lambda u, x: ng.pde.laplacian(u, x)[2] + 1.0}
    model = ng.pde.ResidualModel(network(5), terms, coefficients=[lift])
    batch = next(iter(model.batches({"line": np.linspace(0, 1, 4)[:, None], "plane": points()["data"]})))
    fisher = Fisher(model, "mse", batch)
    factor = fisher.factor().numpy()
    assert difference(fisher.gram(), factor @ factor.T) < 1e-12


def test_rows_are_checked():
    with pytest.raises(ValueError, match="0 <= start < stop <= total"), rows(3, 3, 5):
        pass
    with rows(0, 2, 3), pytest.raises(ValueError, match="one at a time"), rows(0, 1, 3):
        pass


class Odd(keras.Model):
    """Says that its layer sees other examples than those that it gets, or those of another batch."""

    def __init__(self, *numbers, mask=None):
        super().__init__()
        self.numbers, self.mask, self.dense = numbers, mask, layers.Dense(1)

    def call(self, x):
        part = x[self.numbers[0] : self.numbers[0] + 3]
        if self.mask is not None:
            part._keras_mask = self.mask
        with rows(*self.numbers):
            value = self.dense(part)
        return tf.concat([value, tf.zeros_like(x[3:, :1])], 0)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Odd(0, 2, 6), "called on 3 rows where the batch has 2 examples"),
        (Odd(0, 3, 7), "sees some of 7 examples, where the outputs have 6"),
        (Odd(0, 3, 6, mask=tf.constant([True, True, False])), "with a mask"),
    ],
    ids=["rows", "total", "mask"],
)
def test_what_does_not_fit_is_refused(model, text):
    with pytest.raises(ValueError, match=text):
        Fisher(model, "mse", np.ones([6, 2])).gram()


def test_micro_batches_are_refused():
    model, data = three_terms()
    with pytest.raises(ValueError, match="`micro_batch_size`"):
        Fisher(model, "mse", data, micro_batch_size=8)


def test_inputs_of_other_terms_are_refused():
    model, (x, _, _) = three_terms()
    with pytest.raises(ValueError, match="points for each of inside, boundary, data"):
        model({"inside": x["inside"]})


def test_sums_of_products_of_parts():
    rng = np.random.default_rng(0)
    sizes, terms = (130, 30, 70), (range(3), (), (1,))
    left, right = rng.normal(size=(3, 230, 4)), rng.normal(size=(3, 230, 5))
    start, parts = 0, []
    for size, own in zip(sizes, terms, strict=True):
        end = start + size
        parts.append(
            _products.Part(size, [tf.constant(left[t, start:end]) for t in own], [right[t, start:end] for t in own])
        )
        left[[t for t in range(3) if t not in own], start:end] = 0.0
        start = end
    expected = np.einsum("sik,tjk,sil,tjl->ij", left, left, right, right, optimize=True)
    assert difference(_products.sum_of_products(parts), expected) < 1e-13


def test_calls_outside_of_any_rows_see_all_examples():
    layer = layers.Dense(1)
    with capture(layer) as record:
        layer(tf.ones([4, 2]))
    assert record.calls[0].rows is None


def test_transposed_convolutions_leave_squares_to_the_rule_of_all_layers():
    assert TransposedConvolutionRule().squares([], [], tf.float64) is None
