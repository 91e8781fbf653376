"""The Gram matrix layer by layer: right for every case, without traces left in the model, or refused."""

import sys

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import difference

from tf_natgrad.layers import LayerCall, Rule, _products, capture, fallback, register_rule, registry, rule_for
from tf_natgrad.layers.dense import DenseRule
from tf_natgrad.layers.fallback import FallbackRule
from tf_natgrad.operators import Fisher
from tf_natgrad.solvers import ConjugateGradient, Gram

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-10
# The package exports a function of the module's name.
capture_module = sys.modules["tf_natgrad.layers.capture"]


def _sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _assert_gram(fisher):
    factor = fisher.factor().numpy()
    assert difference(fisher.gram(), factor @ factor.T) < TOLERANCE


def test_gram_is_the_factor_times_its_transpose(problem):
    assert difference(problem.fisher.gram(), problem.factor @ problem.factor.T) < TOLERANCE


def test_gram_is_the_one_of_the_jacobian(problem):
    truth = problem.oracle
    weighted = np.sqrt(truth.weights)[:, None, None] * truth.jacobian
    values, vectors = np.linalg.eigh(truth.output_fisher)
    rows = np.einsum("pcr,pr,pcn->prn", vectors, np.sqrt(np.maximum(values, 0.0)), weighted).reshape(-1, problem.size)
    expected = np.linalg.eigvalsh(rows @ rows.T)[-problem.fisher.rows :]
    assert difference(np.linalg.eigvalsh(problem.fisher.gram())[-len(expected) :], expected) < TOLERANCE


@pytest.fixture
def fallback_only(monkeypatch):
    """No layer has a rule of its own."""
    for layer_class in list(registry._RULES):
        monkeypatch.delitem(registry._RULES, layer_class)


@pytest.mark.parametrize("name", ["mlp", "cnn", "sequence", "shared_layer", "embedding", "layer_norm"])
def test_fallback_agrees_with_the_rules(name, fallback_only):
    problem = cases.shared(name)
    assert isinstance(registry.rule_for(problem.model.layers[-1]), FallbackRule)
    assert difference(problem.make_fisher().gram(), problem.factor @ problem.factor.T) < TOLERANCE


# Layers with a rule, in all their variants.

L = keras.layers
IMAGE, VOLUME, SERIES = (6, 5, 2), (4, 5, 3, 2), (7, 4)
VARIANTS = {
    "conv2d": (IMAGE, lambda: L.Conv2D(3, (3, 2), activation="tanh")),
    "conv2d_same_strides": (IMAGE, lambda: L.Conv2D(3, 3, strides=2, padding="same")),
    "conv2d_valid_strides": (IMAGE, lambda: L.Conv2D(3, 2, strides=(2, 3))),
    "conv2d_dilation": (IMAGE, lambda: L.Conv2D(3, 2, dilation_rate=2, padding="same")),
    "conv2d_groups": (IMAGE, lambda: L.Conv2D(4, 3, groups=2)),
    "conv2d_no_bias": (IMAGE, lambda: L.Conv2D(3, 3, use_bias=False)),
    "conv3d": (VOLUME, lambda: L.Conv3D(3, (2, 3, 2), activation="tanh")),
    "conv3d_same_strides": (VOLUME, lambda: L.Conv3D(2, 3, strides=(1, 2, 3), padding="same")),
    "conv3d_dilation_groups": (VOLUME, lambda: L.Conv3D(4, 2, dilation_rate=2, groups=2, padding="same")),
    "conv1d": (SERIES, lambda: L.Conv1D(3, 3)),
    "conv1d_causal": (SERIES, lambda: L.Conv1D(3, 3, padding="causal", dilation_rate=2)),
    "conv1d_causal_strides": (SERIES, lambda: L.Conv1D(3, 3, padding="causal", strides=2)),
    "conv1d_groups": (SERIES, lambda: L.Conv1D(4, 2, groups=2, padding="same")),
    "depthwise2d": (IMAGE, lambda: L.DepthwiseConv2D(3, depth_multiplier=2, activation="tanh")),
    "depthwise1d": (SERIES, lambda: L.DepthwiseConv1D(3, padding="same")),
    "separable2d": (IMAGE, lambda: L.SeparableConv2D(3, (2, 3), depth_multiplier=2, activation="tanh")),
    "separable2d_same_strides": (IMAGE, lambda: L.SeparableConv2D(3, 3, strides=2, padding="same", use_bias=False)),
    "separable1d_dilation": (SERIES, lambda: L.SeparableConv1D(3, 2, dilation_rate=2)),
    "transposed2d": (IMAGE, lambda: L.Conv2DTranspose(2, 3, activation="tanh")),
    "transposed2d_same_strides": (IMAGE, lambda: L.Conv2DTranspose(3, (4, 3), strides=2, padding="same")),
    "transposed2d_gaps": (IMAGE, lambda: L.Conv2DTranspose(3, (1, 2), strides=(2, 3), padding="same")),
    "transposed2d_output_padding": (IMAGE, lambda: L.Conv2DTranspose(3, 3, strides=(2, 3), output_padding=(1, 2))),
    "transposed2d_no_bias": (IMAGE, lambda: L.Conv2DTranspose(3, 2, use_bias=False)),
    "transposed1d": (SERIES, lambda: L.Conv1DTranspose(3, 4, strides=3, padding="same")),
    "transposed3d": (VOLUME, lambda: L.Conv3DTranspose(2, (3, 2, 3), strides=(2, 1, 1), padding="same")),
    "layer_norm": (SERIES, L.LayerNormalization),
    "layer_norm_two_axes": (SERIES, lambda: L.LayerNormalization(axis=(1, 2))),
    "layer_norm_no_scale": (SERIES, lambda: L.LayerNormalization(scale=False)),
    "layer_norm_no_offset": (SERIES, lambda: L.LayerNormalization(center=False)),
    "rms_norm": (SERIES, L.RMSNormalization),
    "group_norm": (SERIES, lambda: L.GroupNormalization(2)),
    "batch_norm": (IMAGE, L.BatchNormalization),
    "batch_norm_no_offset": (SERIES, lambda: L.BatchNormalization(center=False)),
    "batch_norm_other_axis": (SERIES, lambda: L.BatchNormalization(axis=1)),
    "einsum_dense": (SERIES, lambda: L.EinsumDense("abc,cd->abd", (7, 3), bias_axes="d")),
    "einsum_dense_heads": (SERIES, lambda: L.EinsumDense("abc,cde->abde", (7, 2, 3), bias_axes="de")),
    "einsum_dense_units_first": (SERIES, lambda: L.EinsumDense("abc,bcd->ad", (4,), activation="tanh", bias_axes="d")),
    "einsum_dense_any_positions": (SERIES, lambda: L.EinsumDense("...x,xy->...y", 2)),
    "einsum_dense_part_of_the_bias": (SERIES, lambda: L.EinsumDense("abc,cde->abde", (7, 2, 3), bias_axes="e")),
    "einsum_dense_kernel_by_position": (SERIES, lambda: L.EinsumDense("abc,bcd->abd", (7, 3), bias_axes="d")),
    "einsum_dense_other_order": (SERIES, lambda: L.EinsumDense("abc,dc->adb", (3, 7))),
    "dense_on_images": (IMAGE, lambda: L.Dense(3, activation="tanh")),
    "prelu": (SERIES, L.PReLU),
}


def _variant(name):
    shape, make = VARIANTS[name]
    rng = np.random.default_rng(5)
    model = keras.Sequential([keras.Input(shape), make(), L.Flatten(), L.Dense(3)])
    # Positive, for the sake of moving variances.
    model.set_weights([np.abs(rng.normal(0.5, 0.3, w.shape)) for w in model.get_weights()])
    return Fisher(model, _sparse(), rng.normal(size=(3, *shape)))


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_layer(name):
    _assert_gram(_variant(name))


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.Conv2D(2, 3, padding="same"),
        lambda: L.Conv2DTranspose(2, 3, padding="same"),
        lambda: L.SeparableConv2D(2, 3, padding="same"),
        L.LayerNormalization,
    ],
)
def test_layer_that_is_called_twice(make, rng):
    inputs, layer = keras.Input(IMAGE), make()
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(layer(keras.ops.tanh(layer(inputs))))))
    _assert_gram(Fisher(model, _sparse(), rng.normal(size=(3, *IMAGE))))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_dilated_transposed_convolution_has_the_patches_of_a_wider_one(padding, rng):
    # TensorFlow has no such layer on a CPU: its taps are every other one of a kernel of twice the width.
    x, found = tf.constant(rng.normal(size=(2, *IMAGE))), []
    wide, dilated = (L.Conv2DTranspose(3, size, padding=padding) for size in ((5, 3), (3, 2)))
    dilated.dilation_rate = (2, 2)
    output = wide(x)
    for layer in (wide, dilated):
        call = LayerCall(layer, (x,), {}, output)
        found.append(tf.reshape(rule_for(wide).patches(call, x.dtype), [2, -1, *layer.kernel_size, IMAGE[-1]]))
    assert np.array_equal(found[1], found[0][:, :, ::2, ::2])


def test_embedding_that_is_called_twice(rng):
    inputs, layer = keras.Input((4,), dtype="int32"), L.Embedding(5, 2)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(layer(inputs) * layer(4 - inputs))))
    _assert_gram(Fisher(model, _sparse(), rng.integers(0, 5, (3, 4))))


# In chunks.


@pytest.mark.parametrize("rows_at_once", [1, 3, 7])
@pytest.mark.parametrize("name", ["mlp", "cnn", "shared_layer"])
def test_fallback_in_chunks(name, rows_at_once, fallback_only, monkeypatch):
    problem, held, rows = cases.shared(name), [], FallbackRule._rows
    limit = rows_at_once * 2 * 8 * max(layer.count_params() for layer in problem.model.layers)
    monkeypatch.setattr(fallback, "MEMORY_LIMIT", limit)
    # In chunks the number of rows is known only at run time.
    monkeypatch.setattr(FallbackRule, "_rows", lambda *a: held.append(rows(*a)) or held[-1])
    assert difference(problem.make_fisher().gram(), problem.factor @ problem.factor.T) < TOLERANCE
    sizes = [block.shape.num_elements() for block in held]
    assert None in sizes and all(size is None or 2 * 8 * size <= limit for size in sizes)


@pytest.mark.parametrize("name", ["mlp", "cnn", "sequence", "shared_layer", "embedding"])
def test_columns_in_chunks(name, monkeypatch):
    problem = cases.shared(name)
    monkeypatch.setattr(capture_module, "MEMORY_LIMIT", 1)
    assert difference(problem.make_fisher().gram(), problem.factor @ problem.factor.T) < TOLERANCE


# In blocks.


@pytest.mark.parametrize("rows", [2, 7, 12])
def test_symmetric_product_in_blocks(rows, rng, monkeypatch):
    monkeypatch.setattr(_products, "_MANY_ROWS", 4)
    matrix = rng.normal(size=(rows, 5))
    product = _products.symmetric_product(tf.constant(matrix))
    assert difference(product, matrix @ matrix.T) < TOLERANCE
    # What lies between blocks is mirrored: the same numbers.
    assert rows < 4 or np.array_equal(product[0], product[:, 0])


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_gram_in_blocks(name, monkeypatch):
    sizes, product = [], _products.symmetric_product
    monkeypatch.setattr(_products, "_MANY_ROWS", 4)
    problem = cases.shared(name)
    for module in ("_products", "dense", "fallback"):
        spy = lambda rows: sizes.append(rows.shape[0]) or product(rows)  # noqa: E731
        monkeypatch.setattr(sys.modules[f"tf_natgrad.layers.{module}"], "symmetric_product", spy)
    fisher = problem.make_fisher()
    columns = fisher.batch.factor.columns() * tf.sqrt(fisher.batch.output_weights)
    gram = tf.function(lambda: fisher.batch.record.gram(fisher.batch.linearization, columns))()
    assert difference(gram, problem.factor @ problem.factor.T) < TOLERANCE
    assert sizes and set(sizes) == {10}


# The model is left as it was.


def _state(model):
    return [
        {k: v for k, v in vars(layer).items() if k in ("call", "activation")}
        for layer in model._flatten_layers(include_self=True)
    ]


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "nested", "attention", "shared_layer"])
def test_capture_leaves_the_model_as_it_was(name):
    problem = cases.fresh(name)
    before, outputs, config = _state(problem.model), problem.model(problem.x), problem.model.get_config()
    problem.make_fisher().gram()
    assert _state(problem.model) == before
    assert problem.model.get_config() == config
    assert np.array_equal(problem.model(problem.x), outputs)


def test_capture_leaves_the_model_as_it_was_after_an_exception():
    problem = cases.fresh("mlp")
    before = _state(problem.model)
    with pytest.raises(RuntimeError, match=r"mid-way"), capture(problem.model):
        assert _state(problem.model) != before
        raise RuntimeError("mid-way")
    assert _state(problem.model) == before


def test_capture_leaves_the_model_as_it_was_when_the_call_fails():
    problem = cases.fresh("mlp")
    before = _state(problem.model)
    with pytest.raises(Exception, match=r"shape|incompatible"):
        Fisher(problem.model, problem.loss, np.ones((5, 3)))
    assert _state(problem.model) == before
    _assert_gram(problem.make_fisher())


def test_a_captured_model_still_saves(tmp_path):
    problem = cases.fresh("mlp")
    problem.make_fisher().gram()
    problem.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.array_equal(loaded(problem.x), problem.model(problem.x))


def test_capture_records_each_call_of_a_shared_layer():
    problem = cases.shared("shared_layer")
    with capture(problem.model) as record:
        problem.model(problem.x)
    assert [call.layer.units for call in record.calls] == [4, 4, 4, 3]
    assert [len(calls) for calls in record.groups(problem.flat)] == [3, 1]


# What rules it out.


def _batch_norm(trainable=True):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    )
    model.layers[1].trainable = trainable
    return model


def test_batch_norm_in_training_mode_is_refused_with_the_way_out(rng):
    fisher = Fisher(_batch_norm(), _sparse(), rng.normal(size=(5, 4)), training=True)
    with pytest.raises(
        ValueError, match=r"BatchNormalization in training mode.*ConjugateGradient\(\).*trainable = False"
    ):
        fisher.gram()
    with pytest.raises(ValueError, match=r"BatchNormalization in training mode"):
        Gram().solve(fisher.damped(0.1), fisher.loss_gradient(np.zeros(5, int)))
    solution = ConjugateGradient().solve(fisher.damped(0.1), fisher.loss_gradient(np.zeros(5, int)))
    assert solution.info.converged


def test_batch_norm_in_inference_mode_is_allowed(rng):
    _assert_gram(Fisher(_batch_norm(), _sparse(), rng.normal(size=(5, 4)), training=False))


def test_frozen_batch_norm_is_allowed(rng):
    _assert_gram(Fisher(_batch_norm(trainable=False), _sparse(), rng.normal(size=(5, 4)), training=True))


class _Scaled(keras.Model):
    """A variable used outside of any layer's call."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return self.dense(x) * self.scale


class _OutsideVariable(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.bystander = keras.layers.Dense(3), keras.layers.Dense(3, use_bias=False)

    def call(self, x):
        if not self.bystander.built:
            self.bystander.build((None, 3))
        return self.dense(x) @ self.bystander.kernel


def test_variables_of_a_subclassed_model_itself(rng):
    x = rng.normal(size=(5, 4))
    model = _Scaled()
    model(x)
    _assert_gram(Fisher(model, _sparse(), x))


def test_a_variable_used_without_its_layer_is_refused(rng):
    x = rng.normal(size=(5, 4))
    model = _OutsideVariable()
    model(x)
    fisher = Fisher(model, _sparse(), x)
    assert "kernel" in fisher.gram_refusal
    with pytest.raises(ValueError, match=r"kernel.*ConjugateGradient"):
        fisher.gram()


class _Transposed(keras.layers.Layer):
    """Uses another layer's kernel, transposed: an autoencoder with tied weights."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.other.kernel))


class TiedAutoencoder(keras.Model):
    """Calls a layer, and uses its kernel once more beside."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.layers.Dense(3, activation="tanh")

    def call(self, x):
        return keras.ops.matmul(self.encoder(x), keras.ops.transpose(self.encoder.kernel))


def _tied_by_a_layer():
    inputs, first = keras.Input((4,)), keras.layers.Dense(3, activation="tanh")
    return keras.Model(inputs, _Transposed(first)(first(inputs)))


@pytest.mark.parametrize("make", [_tied_by_a_layer, TiedAutoencoder])
def test_tied_weights_are_right_or_refused(make, rng):
    model, x = make(), rng.normal(size=(5, 4))
    model(x)
    fisher = Fisher(model, "mse", x)
    if fisher.gram_refusal is None:
        _assert_gram(fisher)
    else:
        assert "ConjugateGradient" in fisher.gram_refusal


def test_tied_embedding_is_right():
    inputs = keras.Input((3,), dtype="int32")
    embedding = keras.layers.ReversibleEmbedding(6, 2)
    model = keras.Model(inputs, embedding(embedding(inputs), reverse=True))
    _assert_gram(Fisher(model, _sparse(), np.random.default_rng(0).integers(0, 6, (4, 3))))


class _Times(keras.layers.Layer):
    """Holds a variable that may belong to others too."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel

    def call(self, x):
        return keras.ops.tanh(keras.ops.matmul(x, self.kernel))


def test_one_variable_in_two_layers_is_right(rng):
    inputs, kernel = keras.Input((3,)), keras.Variable(rng.normal(size=(3, 3)))
    model = keras.Model(inputs, _Times(kernel)(_Times(kernel)(inputs)))
    fisher = Fisher(model, "mse", rng.normal(size=(5, 3)))
    assert fisher.flat_parameters.size == 9
    _assert_gram(fisher)


def test_random_numbers_inside_a_layer_with_weights_are_refused(rng):
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.LSTM(2, dropout=0.5), keras.layers.Dense(3)])
    x = rng.normal(size=(5, 3, 2))
    with pytest.raises(ValueError, match=r"draws random numbers.*ConjugateGradient\(\).*Dropout layer"):
        Fisher(model, _sparse(), x, training=True).gram()
    _assert_gram(Fisher(model, _sparse(), x, training=False))


def test_dropout_layer_is_frozen_into_the_gram_matrix(rng):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6, "tanh"), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    )
    _assert_gram(Fisher(model, _sparse(), rng.normal(size=(5, 4)), training=True))


# Layers that behave in an unusual way.


def test_time_distributed_and_bidirectional(rng):
    model = keras.Sequential(
        [
            keras.Input((3, 2)),
            keras.layers.Bidirectional(keras.layers.GRU(2, return_sequences=True)),
            keras.layers.TimeDistributed(keras.layers.Dense(2)),
            keras.layers.Flatten(),
        ]
    )
    _assert_gram(Fisher(model, _sparse(), rng.normal(size=(3, 3, 2))))


def test_masked_sequence():
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), keras.layers.Embedding(6, 2, mask_zero=True), keras.layers.Dense(3)]
    )
    x = np.array([[1, 2, 0, 0], [3, 4, 5, 0], [1, 1, 1, 1]])
    fisher = Fisher(model, _sparse(), x)
    _assert_gram(fisher)
    y = np.zeros((3, 4), int)
    outputs = model(x)
    with tf.GradientTape() as tape:
        loss = _sparse()(y, model(x))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    expected = fisher.flat_parameters.flatten([tf.convert_to_tensor(g) for g in gradients])
    assert outputs.shape == (3, 4, 3)
    assert difference(fisher.factor_transpose_matvec(fisher.loss_gradient(y).u), expected) < TOLERANCE


def test_dense_subclass_does_not_get_the_rule_of_dense(rng):
    class Squared(keras.layers.Dense):
        def call(self, x):
            return super().call(x) ** 2

    model = keras.Sequential([keras.Input((4,)), Squared(3)])
    assert isinstance(rule_for(model.layers[0]), FallbackRule)
    _assert_gram(Fisher(model, _sparse(), rng.normal(size=(5, 4))))


def test_dense_with_low_rank_adaptation_goes_through_the_fallback(rng):
    with cases.precision("float32"):  # Keras keeps these weights in float32
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        assert isinstance(rule_for(model.layers[0]), DenseRule)
        model.layers[0].enable_lora(1, b_initializer="normal")
        assert isinstance(rule_for(model.layers[0]), FallbackRule)
        fisher = Fisher(model, _sparse(), rng.normal(size=(5, 4)).astype("float32"))
    factor = fisher.factor().numpy()
    assert difference(fisher.gram(), factor @ factor.T) < 1e-6


def test_dense_with_constant_inputs_and_without_bias():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    _assert_gram(Fisher(model, _sparse(), np.ones((5, 4))))


def test_two_layers_with_one_activation_object(rng):
    activation = keras.layers.LeakyReLU()
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, activation), keras.layers.Dense(3, activation), keras.layers.Dense(2)]
    )
    _assert_gram(Fisher(model, _sparse(), rng.normal(size=(5, 4))))


# Rules of one's own.


class _Counting(Rule):
    def __init__(self):
        self.inner, self.calls = FallbackRule(), 0

    def gram(self, calls, summaries, dtype):
        self.calls += 1
        return self.inner.gram(calls, summaries, dtype)


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setitem(registry._RULES, keras.layers.Conv2D, FallbackRule())
    return _Counting()


def test_register_rule(counting):
    register_rule(keras.layers.Conv2D, counting)
    problem = cases.shared("cnn")
    assert difference(problem.make_fisher().gram(), problem.factor @ problem.factor.T) < TOLERANCE
    # Once for the check of the batch, once for the matrix.
    assert counting.calls == 2


def test_rule_that_does_not_support_the_instance_is_not_used(counting):
    counting.supports = lambda layer: False
    register_rule(keras.layers.Conv2D, counting)
    cases.shared("cnn").make_fisher().gram()
    assert counting.calls == 0


def test_rules_do_not_extend_to_subclasses(counting):
    class Wider(keras.layers.Conv2D):
        pass

    register_rule(keras.layers.Conv2D, counting)
    assert rule_for(keras.layers.Conv2D(1, 1)) is counting
    assert rule_for(Wider(1, 1)) is not counting


# A batch size that is not known while tracing.


@pytest.mark.parametrize("name", ["mlp", "cnn", "sequence", "long_sequence", "embedding", "attention"])
def test_unknown_batch_size(name):
    problem = cases.shared(name)
    x = tf.convert_to_tensor(problem.x)

    @tf.function(input_signature=[tf.TensorSpec([None, *x.shape[1:]], x.dtype), tf.TensorSpec([None], tf.float64)])
    def gram(x, weight):
        return Fisher(problem.model, problem.loss, x, sample_weight=weight).gram()

    assert difference(gram(x, problem.weight), problem.factor @ problem.factor.T) < TOLERANCE
    kept = Fisher(problem.model, problem.loss, x[:2], sample_weight=problem.weight[:2])
    assert difference(gram(x[:2], problem.weight[:2]), kept.gram()) < TOLERANCE


def test_factor_of_an_unknown_batch_size_is_refused():
    problem = cases.shared("mlp")

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float64)])
    def factor(x):
        return Fisher(problem.model, problem.loss, x).factor()

    with pytest.raises(ValueError, match=r"number of rows is not known"):
        factor(problem.x)


def test_restricted_to_some_variables():
    problem = cases.shared("mlp")
    last = problem.model.layers[-1].trainable_variables
    fisher = problem.make_fisher(variables=last)
    factor = problem.factor[:, -fisher.flat_parameters.size :]
    assert difference(fisher.gram(), factor @ factor.T) < TOLERANCE
    assert difference(fisher.to_dense(), factor.T @ factor) < TOLERANCE
