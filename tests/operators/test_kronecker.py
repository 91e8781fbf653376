"""Kronecker factors against sums over examples, positions and labels that are written out here."""

import itertools

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from keras import layers
from oracle import FAMILIES, difference, rows_first, targets

import tf_natgrad as ng
from tf_natgrad.operators import Fisher, KroneckerFisher

pytestmark = pytest.mark.usefixtures("float64")

CATEGORICAL = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
N = 6


# Each case: a model, its forward pass as a function of weights and one example that also returns `(h, s)` of each
# layer with a matrix (`[T, d_in]`, `[T, d_out]`, the latter watched), the loss, its family, inputs and labels.


def _dense(x, kernel, bias, tape):
    s = x @ kernel + bias
    tape.watch(s)
    return s


def _mlp(weights, x, tape):
    s1 = _dense(x[None], *weights[:2], tape)
    h = tf.tanh(s1)
    s2 = _dense(h, *weights[2:], tape)
    return s2, [(x[None], s1), (h, s2)]


def _linear(weights, x, tape):
    pairs, h = [], x[None]
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        s = _dense(h, kernel, bias, tape)
        pairs.append((h, s))
        h = s
    return h, pairs


def _conv(weights, x, tape):
    """A kernel of 2 x 2 on images 4 x 3 with 2 channels, no padding."""
    rows = [tf.reshape(x[i : i + 2, j : j + 2], [-1]) for i in range(3) for j in range(2)]
    patches = tf.stack(rows)
    s1 = _dense(patches, tf.reshape(weights[0], [-1, 3]), weights[1], tape)
    h = tf.reshape(tf.tanh(s1), [1, -1])
    s2 = _dense(h, *weights[2:], tape)
    return s2, [(patches, s1), (h, s2)]


def _transposed(weights, x, tape):
    """A kernel of 4 x 3 on images 2 x 3 with 2 channels, strides 2 and 1, "same": one row and column are cut off."""
    patches = np.zeros((4, 3, 4, 3, 2))
    for i, j, k, m in itertools.product(range(2), range(3), range(4), range(3)):
        row, column = 2 * i + k - 1, j + m - 1
        if 0 <= row < 4 and 0 <= column < 3:
            patches[row, column, k, m] = x[i, j]
    patches = tf.constant(patches.reshape(12, -1))
    kernel = tf.reshape(tf.transpose(weights[0], [0, 1, 3, 2]), [-1, 3])
    s1 = _dense(patches, kernel, weights[1], tape)
    h = tf.reshape(tf.tanh(s1), [1, -1])
    s2 = _dense(h, *weights[2:], tape)
    return s2, [(patches, s1), (h, s2)]


def _separable(weights, x, tape):
    """A kernel of 2 x 2 on images 4 x 3 with 2 channels, no padding, then a pointwise one."""
    patches = tf.stack([x[i : i + 2, j : j + 2] for i in range(3) for j in range(2)])
    h = tf.reshape(tf.einsum("tabc,abcm->tcm", patches, weights[0]), [6, -1])
    s1 = _dense(h, weights[1][0, 0], weights[2], tape)
    h2 = tf.reshape(tf.tanh(s1), [1, -1])
    s2 = _dense(h2, *weights[3:], tape)
    return s2, [(h, s1), (h2, s2)]


def _sequence(weights, x, tape):
    one_hot = tf.one_hot(x, len(weights[0]), dtype=tf.float64)
    s1 = one_hot @ weights[0]
    tape.watch(s1)
    h = tf.tanh(s1)
    s2 = _dense(h, *weights[1:], tape)
    return s2, [(one_hot, s1), (h, s2)]


def _pooled(weights, x, tape):
    """The first token is padding."""
    real = tf.cast(x != 0, tf.float64)[:, None]
    one_hot = tf.one_hot(x, len(weights[0]), dtype=tf.float64)
    s1 = one_hot @ weights[0]
    tape.watch(s1)
    h = tf.reduce_sum(s1 * real, 0, keepdims=True) / tf.reduce_sum(real)
    s2 = _dense(h, *weights[1:], tape)
    return s2, [(one_hot, s1), (h, s2)]


def _shared(weights, x, tape):
    s1 = _dense(x[None], *weights[:2], tape)
    h1 = tf.tanh(s1)
    s2 = _dense(h1, *weights[:2], tape)
    h2 = tf.tanh(s2)
    s3 = _dense(h2, *weights[2:], tape)
    return s3, [(tf.concat([x[None], h1], 0), [s1, s2]), (h2, s3)]


def _shared_model():
    x = keras.Input((4,))
    twice = layers.Dense(4, "tanh")
    return keras.Model(x, layers.Dense(3)(twice(twice(x))))


def _sequential(shape, stack, dtype="float64"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *stack])


def _case(name):
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 7, (N, 5))
    if name == "mlp":
        model = _sequential((4,), [layers.Dense(5, "tanh"), layers.Dense(3)])
        return model, _mlp, CATEGORICAL, "categorical", rng.normal(size=(N, 4)), rng.integers(0, 3, N)
    if name == "regression":
        model = _sequential((4,), [layers.Dense(5, "tanh"), layers.Dense(2)])
        return model, _mlp, "mse", "squared_error", rng.normal(size=(N, 4)), rng.normal(size=(N, 2))
    if name == "binary":
        model = _sequential((4,), [layers.Dense(5, "tanh"), layers.Dense(2)])
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        return model, _mlp, loss, "bernoulli", rng.normal(size=(N, 4)), rng.integers(0, 2, (N, 2)).astype("float64")
    if name == "linear":
        model = _sequential((4,), [layers.Dense(3), layers.Dense(5), layers.Dense(2)])
        return model, _linear, "mse", "squared_error", rng.normal(size=(N, 4)), rng.normal(size=(N, 2))
    if name == "conv":
        stack = [layers.Conv2D(3, 2, activation="tanh"), layers.Flatten(), layers.Dense(3)]
        images, labels = rng.normal(size=(N, 4, 3, 2)), rng.integers(0, 3, N)
        return _sequential((4, 3, 2), stack), _conv, CATEGORICAL, "categorical", images, labels
    if name == "transposed":
        stack = [layers.Conv2DTranspose(3, (4, 3), strides=(2, 1), padding="same", activation="tanh")]
        stack += [layers.Flatten(), layers.Dense(3)]
        images, labels = rng.normal(size=(N, 2, 3, 2)), rng.integers(0, 3, N)
        return _sequential((2, 3, 2), stack), _transposed, CATEGORICAL, "categorical", images, labels
    if name == "separable":
        stack = [layers.SeparableConv2D(4, 2, depth_multiplier=3, activation="tanh"), layers.Flatten(), layers.Dense(3)]
        images, labels = rng.normal(size=(N, 4, 3, 2)), rng.integers(0, 3, N)
        return _sequential((4, 3, 2), stack), _separable, CATEGORICAL, "categorical", images, labels
    if name == "sequence":
        stack = [layers.Embedding(7, 4), layers.Activation("tanh"), layers.Dense(3)]
        labels = rng.integers(0, 3, (N, 5))
        return _sequential((5,), stack, "int64"), _sequence, CATEGORICAL, "categorical", tokens, labels
    if name == "pooled":
        tokens[:2, 3:], tokens[3, 1:] = 0, 0
        stack = [layers.Embedding(7, 4, mask_zero=True), layers.GlobalAveragePooling1D(), layers.Dense(3)]
        return _sequential((5,), stack, "int64"), _pooled, CATEGORICAL, "categorical", tokens, rng.integers(0, 3, N)
    return _shared_model(), _shared, CATEGORICAL, "categorical", rng.normal(size=(N, 4)), rng.integers(0, 3, N)


CASES = ("mlp", "regression", "binary", "linear", "conv", "transposed", "sequence", "pooled", "shared")


def oracle(name, case, approximation, empirical=False, sample_weight=None):
    """The blocks, by the definition: `A`, `G` and their Kronecker product, for each layer with a matrix."""
    model, forward, _, family, x, y = case
    weights = [tf.constant(v.numpy()) for v in model.trainable_variables]
    example_weights = np.ones(N) if sample_weight is None else np.asarray(sample_weight)
    found = []
    for i in range(N):
        with tf.GradientTape(persistent=True) as tape:
            outputs, pairs = forward(weights, tf.constant(x[i]), tape)
        z = outputs.numpy()
        curvature, scores = FAMILIES[family](z, targets(np.asarray(y)[i : i + 1], z, family))
        if empirical:
            curvature = np.einsum("pc,pd->pcd", scores, scores)
            if family == "bernoulli":
                # The mean over the outputs is a weight of their joint log-likelihood, and counts once.
                curvature *= z.shape[-1]
        w = example_weights[i] / (N * len(z))
        for layer, (h, s) in enumerate(pairs):
            jacobian = [tape.jacobian(outputs, part).numpy() for part in (s if isinstance(s, list) else [s])]
            # [P, C, T, d_out]
            jacobian = np.concatenate(jacobian, 2)
            h = h.numpy()
            if not (name in ("sequence", "pooled") and layer == 0):
                h = np.concatenate([h, np.ones((len(h), 1))], 1)
            mass = np.full(len(h), w * len(z) if len(h) != len(z) else w)
            if name == "pooled" and layer == 0:
                mass = mass * (x[i] != 0)
            if approximation == "reduce":
                jacobian = jacobian.sum(2, keepdims=True)
                h, mass = (mass @ h)[None] / max(mass.sum(), 1e-300), np.array([mass.sum()])
            a = np.einsum("t,ta,tb->ab", mass, h, h)
            g = np.einsum("pctu,pcd,pdtv->uv", jacobian, w * curvature, jacobian)
            if i == 0:
                found.append([0.0, 0.0, 0.0])
            found[layer] = [found[layer][0] + a, found[layer][1] + mass.sum(), found[layer][2] + g]
    blocks = []
    for layer, (a, mass, g) in enumerate(found):
        a = a / mass
        if name in ("sequence", "pooled") and layer == 0:
            a = np.diag(np.diag(a))
        blocks.append((a, g))
    return blocks


def dense_of(blocks, name, model):
    """The matrix over the variables, in their own order."""
    parts = [np.kron(a, g) for a, g in blocks]
    if name == "transposed":
        order = np.argsort(rows_first(model.layers[0].trainable_variables))
        parts[0] = parts[0][np.ix_(order, order)]
    return scipy.linalg.block_diag(*parts)


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_factors_are_those_of_the_definition(name, weighted, approximation):
    case = _case(name)
    model, _, loss, _, x, y = case
    sample_weight = np.array([1.0, 0.0, 2.0, 0.5, 1.5, 1.0]) if weighted else None
    options = {"sample_weight": sample_weight, "approximation": approximation}
    for kind in ("exact", "empirical"):
        fisher = KroneckerFisher(model, loss, (x, y), fisher=kind, **options)
        expected = oracle(name, case, approximation, kind == "empirical", sample_weight)
        assert difference(fisher.to_dense(), dense_of(expected, name, model)) < 1e-12


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("weighted", [False, True])
def test_of_a_separable_convolution_the_depthwise_kernel_alone_has_a_diagonal(weighted, approximation):
    case = _case("separable")
    model, _, loss, _, x, _ = case
    sample_weight = np.array([1.0, 0.0, 2.0, 0.5, 1.5, 1.0]) if weighted else None
    found = KroneckerFisher(model, loss, x, sample_weight=sample_weight, approximation=approximation).to_dense()
    size = model.layers[0].depthwise_kernel.shape.num_elements()
    diagonal = Fisher(model, loss, x, sample_weight=sample_weight).diag_part()[:size]
    blocks = oracle("separable", case, approximation, sample_weight=sample_weight)
    expected = scipy.linalg.block_diag(np.diag(diagonal), dense_of(blocks, "separable", model))
    assert difference(found, expected) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "regression", "binary"])
def test_of_one_example_the_blocks_are_those_of_the_fisher(name):
    model, _, loss, _, x, _ = _case(name)
    exact = Fisher(model, loss, x[:1]).to_dense().numpy()
    found = KroneckerFisher(model, loss, x[:1]).to_dense().numpy()
    inside = scipy.linalg.block_diag(*(np.ones((s, s)) for s in (25, found.shape[0] - 25)))
    assert difference(found, exact * inside) < 1e-13


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_of_a_deep_linear_network_the_blocks_are_those_of_the_fisher(approximation):
    model, _, loss, _, x, _ = _case("linear")
    sample_weight = np.linspace(0.0, 2.0, N)
    exact = Fisher(model, loss, x, sample_weight=sample_weight).to_dense().numpy()
    found = KroneckerFisher(model, loss, x, sample_weight=sample_weight, approximation=approximation)
    inside = scipy.linalg.block_diag(*(np.ones((s, s)) for s in (15, 20, 12)))
    assert difference(found.to_dense(), exact * inside) < 1e-13


def test_some_layers_alone_have_their_blocks():
    model, _, loss, _, x, _ = _case("mlp")
    whole = KroneckerFisher(model, loss, x)
    last = KroneckerFisher(model, loss, x, variables=model.layers[-1].trainable_variables)
    (block,) = last.blocks
    assert difference(block.gradients, whole.blocks[1].gradients) < 1e-14
    assert last.shape == (18, 18)


def test_labels_that_are_drawn_are_unbiased():
    model, _, loss, _, x, _ = _case("mlp")
    exact = KroneckerFisher(model, loss, x)
    drawn = KroneckerFisher(model, loss, x, fisher="mc", mc_samples=4000)
    for one, other in zip(exact.blocks, drawn.blocks, strict=True):
        assert difference(one.inputs, other.inputs) < 1e-14
        assert 1e-6 < difference(one.gradients, other.gradients) < 0.08


@pytest.mark.parametrize("name", ["mlp", "conv", "transposed", "sequence"])
@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_data_sets_and_micro_batches_give_what_a_batch_gives(name, approximation):
    model, _, loss, _, x, y = _case(name)
    sample_weight = np.array([1.0, 0.0, 2.0, 0.5, 1.5, 1.0])
    options = {"approximation": approximation}
    whole = KroneckerFisher(model, loss, (x, y), sample_weight=sample_weight, **options).to_dense()
    data = tf.data.Dataset.from_tensor_slices((x, y, sample_weight)).batch(4)
    assert difference(KroneckerFisher(model, loss, data, **options).to_dense(), whole) < 1e-13
    parts = KroneckerFisher(model, loss, (x, y), sample_weight=sample_weight, micro_batch_size=4, **options)
    assert difference(parts.to_dense(), whole) < 1e-13


@pytest.fixture(params=["mlp", "transposed"])
def fisher(request):
    model, _, loss, _, x, _ = _case(request.param)
    return KroneckerFisher(model, loss, x)


def test_every_form_is_the_same_matrix(fisher, rng):
    dense = fisher.to_dense().numpy()
    vectors = rng.normal(size=(len(dense), 3))
    assert difference(fisher.matmul(vectors), dense @ vectors) < 1e-13
    assert difference(fisher.to_scipy() @ vectors, dense @ vectors) < 1e-13
    assert difference(fisher.diag_part(), np.diag(dense)) < 1e-13
    assert difference(fisher.trace(), np.trace(dense)) < 1e-13
    assert difference(fisher.eigenvalues(), np.linalg.eigvalsh(dense)) < 1e-12
    assert difference(fisher.log_determinant(0.1), np.linalg.slogdet(dense + 0.1 * np.eye(len(dense)))[1]) < 1e-12
    assert difference(fisher.damped(0.3).matvec(vectors[:, 0]), dense @ vectors[:, 0] + 0.3 * vectors[:, 0]) < 1e-13


@pytest.mark.parametrize("damping", [1e-6, 0.1, 10.0])
@pytest.mark.parametrize("name", ["mlp", "conv", "transposed", "sequence"])
def test_damped_inverses(name, damping, rng):
    model, _, loss, _, x, _ = _case(name)
    fisher = KroneckerFisher(model, loss, x)
    dense = fisher.to_dense().numpy()
    vector = rng.normal(size=len(dense))
    solved = np.linalg.solve(dense + damping * np.eye(len(dense)), vector)
    assert difference(fisher.inverse(damping).matvec(vector), solved) < 1e-8
    split = []
    for block in fisher.blocks:
        a, g = block.inputs.numpy(), block.gradients.numpy()
        a = np.diag(a) if a.ndim == 1 else a
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
        a, g = a + pi * np.sqrt(damping) * np.eye(len(a)), g + np.sqrt(damping) / pi * np.eye(len(g))
        split.append((np.linalg.inv(a), np.linalg.inv(g)))
    inverse = dense_of(split, name, model)
    assert difference(fisher.inverse(damping, split="pi").matvec(vector), inverse @ vector) < 1e-8
    assert difference(fisher.inverse(damping, split="pi").to_dense(), inverse) < 1e-8


NO_MATRIX = {
    "normalised": lambda: [layers.Dense(4, "tanh"), layers.LayerNormalization(), layers.Dense(3)],
    "recurrent": lambda: [layers.Reshape((2, 2)), layers.LSTM(3), layers.Dense(3)],
    "grouped": lambda: [layers.Reshape((2, 2)), layers.Conv1D(4, 2, groups=2), layers.Flatten(), layers.Dense(3)],
    "depthwise": lambda: [
        layers.Reshape((2, 2)),
        layers.DepthwiseConv1D(2, depth_multiplier=3),
        layers.Flatten(),
        layers.Dense(3),
    ],
}


@pytest.mark.parametrize("name", NO_MATRIX)
def test_of_layers_without_a_matrix_the_diagonal_is_that_of_the_fisher(name, rng):
    model = _sequential((4,), NO_MATRIX[name]())
    x = rng.normal(size=(N, 4))
    found = KroneckerFisher(model, CATEGORICAL, x)
    exact = np.diag(Fisher(model, CATEGORICAL, x).to_dense())
    diagonals = [block for block in found.blocks if block.diagonal is not None]
    assert len(diagonals) == 1
    slices = dict(zip((id(v) for v in model.trainable_variables), found.flat_parameters.slices, strict=True))
    expected = np.concatenate([exact[slices[id(v)]] for v in diagonals[0].variables])
    assert difference(diagonals[0].diagonal, expected) < 1e-12
    vector = rng.normal(size=found.shape[0])
    solved = np.linalg.solve(found.to_dense() + 0.1 * np.eye(len(vector)), vector)
    assert difference(found.inverse(0.1).matvec(vector), solved) < 1e-10


def test_the_layers_of_attention_are_dense_layers(rng):
    heads = [layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"), layers.Activation("tanh")]
    heads.append(layers.EinsumDense("abde,dec->abc", (None, 3), bias_axes="c"))
    dense = [layers.Dense(6, "tanh"), layers.Dense(3)]
    labels, x = rng.integers(0, 3, (N, 5)), rng.normal(size=(N, 5, 4))
    models = [_sequential((5, 4), stack) for stack in (heads, dense)]
    weights = [rng.normal(size=v.shape) for v in models[1].trainable_variables]
    for model in models:
        for variable, value in zip(model.trainable_variables, weights, strict=True):
            variable.assign(value.reshape(variable.shape))
    for approximation in ("expand", "reduce"):
        found = [KroneckerFisher(m, CATEGORICAL, (x, labels), approximation=approximation) for m in models]
        assert all(block.diagonal is None for block in found[0].blocks)
        assert difference(found[0].to_dense(), found[1].to_dense()) < 1e-13


def test_attention_has_factors(rng):
    inputs = keras.Input((5, 4))
    outputs = layers.Dense(3)(layers.MultiHeadAttention(2, 3)(inputs, inputs))
    found = KroneckerFisher(keras.Model(inputs, outputs), CATEGORICAL, rng.normal(size=(N, 5, 4)))
    assert [tuple(block.inputs.shape) for block in found.blocks] == [(5, 5)] * 3 + [(7, 7), (5, 5)]


def test_single_precision():
    stack = [layers.Dense(5, "tanh", dtype="float32"), layers.Dense(3, dtype="float32")]
    model, x = _sequential((4,), stack, "float32"), np.ones((N, 4), "float32")
    found = KroneckerFisher(model, CATEGORICAL, x)
    assert found.dtype == tf.float32 and np.isfinite(found.inverse(1e-3).matvec(np.ones(43, "float32"))).all()


class Scaled(keras.Model):
    """A number of its own around a layer."""

    def __init__(self, tied=False):
        super().__init__()
        self.dense = layers.Dense(4)
        self.scale = None if tied else self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return self.dense(x) @ self.dense.kernel if self.scale is None else self.scale * self.dense(x)


def test_what_has_no_factors_is_said(caplog, rng):
    model = Scaled()
    x = rng.normal(size=(N, 4))
    model(x)
    (block,) = KroneckerFisher(model, CATEGORICAL, x).blocks
    assert difference(block.diagonal, Fisher(model, CATEGORICAL, x).diag_part()) < 1e-12
    assert "keeps the diagonal alone" in caplog.text and "scale" in caplog.text


def test_tied_weights_are_refused(rng):
    model = Scaled(tied=True)
    x = rng.normal(size=(N, 4))
    model(x)
    with pytest.raises(ValueError, match="outside of its layer's own call"):
        KroneckerFisher(model, CATEGORICAL, x)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), "little"])
def test_bad_damping_is_refused(fisher, damping):
    for call in (fisher.inverse, fisher.log_determinant):
        with pytest.raises((ValueError, TypeError), match="`damping`"):
            call(damping)
    with pytest.raises(ValueError, match="`split`"):
        fisher.inverse(0.1, split="half")


def test_it_is_a_part_of_the_public_interface():
    assert ng.operators.KroneckerFisher is KroneckerFisher


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_factors_of_a_volume_of_depth_one_are_those_of_the_image(approximation):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 5, 4, 2))
    found, weights = [], None
    for shape, make in (
        ((5, 4, 2), lambda: layers.Conv2D(3, 2, strides=(2, 1), padding="same")),
        ((1, 5, 4, 2), lambda: layers.Conv3D(3, (1, 2, 2), strides=(1, 2, 1), padding="same")),
    ):
        model = keras.Sequential([keras.Input(shape), make(), layers.Flatten(), layers.Dense(2)])
        if weights is not None:
            model.set_weights([w.reshape(v.shape) for w, v in zip(weights, model.weights, strict=True)])
        weights = model.get_weights()
        found.append(KroneckerFisher(model, "mse", x.reshape(N, *shape), approximation=approximation).to_dense())
    assert difference(found[1], found[0]) < 1e-12
