"""Outputs with several positions per example: their weights in the loss, data sets of them, and Monte-Carlo rows."""

import functools
import itertools

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import difference

import tf_natgrad as ng
from tf_natgrad.operators import EmpiricalFisher, Fisher, Hessian

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-10
EXAMPLES, POSITIONS, CLASSES = 4, 3, 3


def _loss(reduction="sum_over_batch_size"):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)


@functools.cache
def _model(shape=(None, 2)):
    """Each position sees its neighbours too: `[N, T, C]`, or `[N, H, W, C]`."""
    with cases.precision("float64"):
        kernel = layers.Conv1D if len(shape) == 2 else layers.Conv2D
        stack = [layers.Dense(2, activation="tanh"), kernel(CLASSES, 2, padding="same")]
        model = keras.Sequential([keras.Input(shape), *stack])
        rng = np.random.default_rng(1)
        model.set_weights([rng.normal(0.0, 0.7, w.shape) for w in model.get_weights()])
    return model


def _data(examples=EXAMPLES, positions=(POSITIONS,), seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, *positions, 2)), rng.integers(0, CLASSES, (examples, *positions))


def _weights(shape, examples=EXAMPLES):
    rng = np.random.default_rng(9)
    return None if shape is None else rng.uniform(0.1, 2.0, (examples, *shape))


def _gradient(model, value):
    flat = ng.parameters.FlatParameters(model.trainable_variables)
    with tf.GradientTape() as tape:
        loss = value()
    return float(loss), flat.flatten([tf.convert_to_tensor(g) for g in tape.gradient(loss, flat.tensors)])


# Reductions, against Keras's own loss.


@pytest.mark.parametrize("shape", [None, (1,), (POSITIONS,), (POSITIONS, 1)], ids=str)
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_loss_and_gradient_are_those_of_keras(reduction, shape, micro_batch_size):
    (x, y), weight, loss = _data(), _weights(shape), _loss(reduction)
    value, gradient = _gradient(_model(), lambda: loss(y, _model()(x), weight))
    ours = Hessian(_model(), loss, (x, y), sample_weight=weight, micro_batch_size=micro_batch_size)
    assert float(ours.loss()) == pytest.approx(value, rel=TOLERANCE)
    assert difference(ours.gradient(), gradient) < TOLERANCE


@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight"])
def test_one_weight_per_example_without_an_axis_of_positions(reduction):
    (x, y), weight = _data(), _weights(())
    flat, column = (Hessian(_model(), _loss(reduction), (x, y, w)).gradient() for w in (weight, weight[:, None]))
    assert difference(flat, column) < TOLERANCE


@pytest.mark.parametrize("shape", [None, (1,), (POSITIONS,)], ids=str)
def test_masked_positions_are_no_part_of_the_mean(shape):
    model = keras.Sequential([keras.Input((POSITIONS,)), layers.Embedding(5, 2, mask_zero=True), layers.Dense(CLASSES)])
    x, y = np.array([[1, 2, 0], [3, 0, 0], [1, 1, 1], [4, 2, 1]]), _data()[1]
    loss, weight = _loss("mean_with_sample_weight"), _weights(shape)
    value, gradient = _gradient(model, lambda: loss(y, model(x), weight))
    ours = Hessian(model, loss, (x, y), sample_weight=weight)
    assert float(ours.loss()) == pytest.approx(value, rel=TOLERANCE)
    assert difference(ours.gradient(), gradient) < TOLERANCE


# Data sets whose batches have different numbers of positions.

BATCHES = ((2, 3), (1, 5), (3, 1))


def _ragged(shape=None):
    """Batches of different sizes and lengths."""
    batches = [_data(n, (t,), seed) for seed, (n, t) in enumerate(BATCHES)]
    if shape is not None:
        batches = [
            (x, y, _weights((1,) if shape == "example" else y.shape[1:], len(x)) * (1 + k))
            for k, (x, y) in enumerate(batches)
        ]
    signature = [tf.TensorSpec([None, None, *p.shape[2:]], p.dtype) for p in batches[0]]
    if shape == "example":
        signature[2] = tf.TensorSpec([None, 1], tf.float64)
    dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=tuple(signature))
    return dataset, batches


@pytest.mark.parametrize("shape", [None, "example", "position"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_with_sample_weight"])
def test_a_data_set_is_averaged_by_position(reduction, shape):
    """Keras's summed loss over all batches, divided by what its mean over all positions would be divided by."""
    dataset, batches = _ragged(shape)
    summed = _loss("sum")

    def total():
        return tf.add_n([summed(y, _model()(x), *weight) for x, y, *weight in batches])

    value, gradient = _gradient(_model(), total)
    by_weight = reduction == "mean_with_sample_weight" and shape is not None
    count = {"sum": 1.0}.get(reduction, sum(np.sum(b[2]) if by_weight else b[1].size for b in batches))
    # Eagerly, with a progress bar, the batches are summed up by other code than inside a graph.
    ours = Hessian(_model(), _loss(reduction), dataset, progress=shape == "example")
    assert float(ours.loss()) == pytest.approx(value / count, rel=TOLERANCE)
    assert difference(ours.gradient(), gradient.numpy() / count) < TOLERANCE


def test_the_fisher_of_a_data_set_is_averaged_by_position(rng):
    dataset, batches = _ragged()
    v = rng.normal(size=ng.parameters.FlatParameters(_model().trainable_variables).size)
    products = [y.size * Fisher(_model(), _loss(), x).matvec(v).numpy() for x, y in batches]
    expected = sum(products) / sum(y.size for _, y in batches)
    assert difference(Fisher(_model(), _loss(), dataset).matvec(v), expected) < TOLERANCE


# Monte-Carlo rows: one per example and draw.

SHAPES = [(POSITIONS,), (2, 3)]


def _sampled(positions=(POSITIONS,), weight=(1,), **options):
    shape = (None,) * len(positions) + (2,)
    x = _data(positions=positions)[0]
    options = {"kind": "mc", "sample_weight": _weights(weight), **options}
    return Fisher(_model(shape), _loss(), x, **options)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("positions", SHAPES, ids=str)
def test_one_row_per_example_and_draw_in_every_form(positions, samples, rng):
    fisher = _sampled(positions, mc_samples=samples, weight=(1,) * (len(positions) - 1) + (3,))
    factor = fisher.factor().numpy()
    assert fisher.rows == len(factor) == EXAMPLES * samples
    v, u = rng.normal(size=fisher.shape[0]), rng.normal(size=fisher.rows)
    assert difference(fisher.gram(), factor @ factor.T) < TOLERANCE
    assert difference(fisher.to_dense(), factor.T @ factor) < TOLERANCE
    assert difference(fisher.matvec(v), factor.T @ (factor @ v)) < TOLERANCE
    assert difference(fisher.matmul(np.stack([v, -v], 1))[:, 1], -factor.T @ (factor @ v)) < TOLERANCE
    assert difference(fisher.factor_matvec(v), factor @ v) < TOLERANCE
    assert difference(fisher.factor_transpose_matvec(u), factor.T @ u) < TOLERANCE
    assert difference(fisher.diag_part(), np.square(factor).sum(0)) < TOLERANCE


def test_a_row_is_the_sum_of_the_scores_of_its_positions():
    """Against the gradient of each example's log-likelihood at the labels that were drawn."""
    fisher, model, weight = _sampled(), _model(), _weights((1,))
    labels = fisher.distribution.sample([0, 0])
    flat = ng.parameters.FlatParameters(model.trainable_variables)
    x, rows = _data()[0], []
    for i in range(EXAMPLES):
        with tf.GradientTape() as tape:
            log_p = tf.nn.log_softmax(model(x[i : i + 1])[0])
            value = tf.reduce_sum(tf.gather(log_p, labels[i], batch_dims=1))
        row = flat.flatten([tf.convert_to_tensor(g) for g in tape.gradient(value, flat.tensors)])
        rows.append(row * np.sqrt(weight[i, 0] / (EXAMPLES * POSITIONS)))
    assert difference(-fisher.factor().numpy(), rows) < TOLERANCE


def test_expectation_over_all_labels_is_the_exact_fisher(monkeypatch):
    """One example of three positions, with each of its 27 labellings."""
    x, weight = _data(1)[0], np.array([[0.5, 2.0, 1.0]])
    make = functools.partial(Fisher, _model(), _loss(), x, sample_weight=weight)
    exact = make()
    p = exact.distribution.probabilities.numpy()[0]
    total = 0.0
    for labels in itertools.product(range(CLASSES), repeat=POSITIONS):
        monkeypatch.setattr(type(exact.distribution), "sample", lambda *_, y=labels: tf.constant([y]))
        factor = make(kind="mc").factor().numpy()
        total = total + np.prod(p[range(POSITIONS), labels]) * factor.T @ factor
    assert difference(total, exact.to_dense()) < TOLERANCE


@pytest.mark.parametrize("positions", SHAPES, ids=str)
def test_mean_over_draws_is_the_exact_fisher(positions):
    samples, fisher = 400, _sampled(positions, mc_samples=400)
    v = np.random.default_rng(2).normal(size=fisher.shape[0])
    forms = samples * np.square(fisher.factor_matvec(v).numpy()).reshape(samples, EXAMPLES).sum(1)
    exact = Fisher(
        _model((None,) * len(positions) + (2,)), _loss(), _data(positions=positions)[0], sample_weight=_weights((1,))
    )
    assert abs(forms.mean() - v @ exact.matvec(v).numpy()) < 3 * forms.std(ddof=1) / np.sqrt(samples)


def test_over_a_data_set(rng):
    x = _data()[0]
    v = rng.normal(size=_sampled().shape[0])
    one, batches = _sampled(weight=None), tf.data.Dataset.from_tensors(x)
    assert difference(Fisher(_model(), _loss(), batches, kind="mc").matvec(v), one.matvec(v)) < TOLERANCE


def test_inside_a_function_where_the_batch_is_not_known(rng):
    v, fisher = rng.normal(size=_sampled().shape[0]), _sampled(weight=None)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, 2], tf.float64)])
    def inside(x):
        inner = Fisher(_model(), _loss(), x, kind="mc")
        image = inner.factor_matvec(v)
        return inner.matvec(v), inner.gram(), image, inner.factor_transpose_matvec(image)

    product, gram, image, back = inside(_data()[0])
    assert difference(product, fisher.matvec(v)) < TOLERANCE and difference(gram, fisher.gram()) < TOLERANCE
    assert difference(image, fisher.factor_matvec(v)) < TOLERANCE and difference(back, product) < TOLERANCE


@pytest.mark.parametrize("solver", ["gram", "cg", "svd"])
def test_solves_with_sampled_rows(solver):
    fisher, y = _sampled(mc_samples=2), _data()[1]
    solvers = {"gram": ng.solvers.Gram(), "cg": ng.solvers.ConjugateGradient(rtol=1e-13)}
    rhs = fisher.loss_gradient(y)
    solution = solvers.get(solver, ng.solvers.SVDPseudoInverse()).solve(fisher.damped(0.1), rhs)
    matrix = fisher.to_dense().numpy() + 0.1 * np.eye(fisher.shape[0])
    assert difference(solution.value, np.linalg.solve(matrix, rhs.rest)) < 1e-8


def test_the_empirical_fisher_has_a_row_for_each_position():
    (x, y) = _data()
    empirical = EmpiricalFisher(_model(), _loss(), (x, y))
    assert empirical.rows == EXAMPLES * POSITIONS
    factor = empirical.factor().numpy()
    assert difference(empirical.gram(), factor @ factor.T) < TOLERANCE


def test_a_step_of_training_solves_a_system_of_the_size_of_the_batch():
    inputs = keras.Input((POSITIONS, 2))
    model = ng.NaturalGradientModel(inputs, layers.Dense(CLASSES)(layers.Dense(5, activation="tanh")(inputs)))
    model.compile(ng.NaturalGradient(fisher="mc", solver="gram"), _loss())
    assert model.fit(*_data(), verbose=0).history["rank"][0] <= EXAMPLES
