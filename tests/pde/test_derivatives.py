"""Derivatives carried forward through the layers are those that nested tapes find."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_natgrad as ng

TOLERANCE = 1e-12


@pytest.fixture(autouse=True)
def _float64(float64):
    keras.utils.set_random_seed(0)


def sequential(*activations, outputs=1, dimension=2):
    hidden = [layers.Dense(7, activation) for activation in activations]
    return keras.Sequential([keras.Input((dimension,)), *hidden, layers.Dense(outputs)])


@keras.saving.register_keras_serializable(package="test_pde")
def distance(x):
    return keras.ops.prod(x * (1.0 - x), axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(package="test_pde")
def lift(x):
    return keras.ops.exp(x[:, :1]) * x[:, 1:]


def cubed_sine(v):
    return keras.ops.sin(v) ** 3


def skips():
    """Skip connections, a product, a difference, a shared layer, and a network within."""
    x = keras.Input((2,))
    shared = layers.Dense(5, "sigmoid")
    a = layers.Dense(5, "tanh")(layers.Rescaling(2.0, -0.5)(x))
    b = shared(shared(a))
    c = layers.Multiply()([a, b, shared(b)])
    d = layers.Concatenate()([layers.Subtract()([a, c]), x, layers.Activation("softplus")(b)])
    inner = keras.Sequential([keras.Input((12,)), layers.Dense(4, use_bias=False), layers.Activation("gelu")])
    return keras.Model(x, layers.Dense(3)(layers.Add()([inner(d), layers.Dense(4)(x)])))


def hard(outputs):
    x = keras.Input((2,))
    y = layers.Dense(outputs)(layers.Dense(6, "tanh")(x))
    return keras.Model(x, ng.pde.HardBoundary(distance, lift)([x, y]))


def late():
    return keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(1)])


NETWORKS = {
    "tanh": lambda: sequential("tanh", "tanh"),
    "three_outputs": lambda: sequential("tanh", "swish", outputs=3),
    "one_dimension": lambda: sequential("softplus", dimension=1),
    "four_dimensions": lambda: sequential("gelu", "sigmoid", dimension=4),
    "sine": lambda: sequential(keras.ops.sin, "exponential", outputs=2),
    "callable": lambda: sequential(cubed_sine, lambda v: keras.activations.gelu(v, approximate=True)),
    "elu_layers": lambda: sequential(layers.ELU(0.5), "elu"),
    "linear": lambda: sequential(None),
    "skips": skips,
    "fourier": lambda: keras.Sequential(
        [keras.Input((2,)), ng.pde.FourierFeatures(5, 0.3), layers.Dense(4, "tanh"), layers.Dense(2)]
    ),
    "hard_boundary": lambda: hard(1),
    "hard_boundary_of_two": lambda: hard(2),
    "unbuilt": late,
}


def by_tapes(network, x):
    """Value `[N, C]`, first derivatives `[N, C, d]` and second ones `[N, C, d, d]`."""
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        with tf.GradientTape(persistent=True) as inner:
            inner.watch(x)
            value = network(x)
        first = inner.batch_jacobian(value, x, experimental_use_pfor=False)
    return value, first, outer.batch_jacobian(first, x, experimental_use_pfor=False, unconnected_gradients="zero")


def points(network, count=6):
    dimension = network.input_shape[-1] if network.built else 2
    return tf.constant(np.random.default_rng(1).uniform(-0.3, 1.2, size=(count, dimension)))


def assert_close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("name", NETWORKS)
def test_laplacian_and_gradient(name, mode):
    network = NETWORKS[name]()
    x = points(network)
    if mode != "eager" and not network.built:
        network(x)
    function = ng.pde.laplacian
    if mode != "eager":
        function = tf.function(function, jit_compile=mode == "xla")
    u, du, found = function(network, x)
    value, first, second = by_tapes(network, x)
    assert_close(u, value)
    assert_close(du, first[:, 0] if value.shape[1] == 1 else first)
    assert_close(found, tf.linalg.trace(second))


@pytest.mark.parametrize("name", NETWORKS)
def test_chosen_derivatives(name):
    network = NETWORKS[name]()
    x = points(network)
    last = x.shape[1] - 1
    wanted = [(last, 0), (), (0, 0), (0,), (last,)]
    found = ng.pde.derivatives(network, x, wanted)
    value, first, second = by_tapes(network, x)
    assert set(found) == set(wanted)
    assert_close(found[()], value)
    assert_close(found[0,], first[..., 0])
    assert_close(found[last,], first[..., last])
    assert_close(found[0, 0], second[..., 0, 0])
    assert_close(found[last, 0], second[..., 0, last])


def test_derivatives_in_one_coordinate_carry_no_more():
    found = ng.pde.derivatives(sequential("tanh"), tf.ones([3, 2]), [(1,)])
    assert list(found) == [(1,)] and found[1,].shape == (3, 1)


def test_gradients_in_the_weights_are_those_of_tapes():
    network = skips()
    x = points(network)

    def of_streams():
        u, du, found = ng.pde.laplacian(network, x)
        return tf.reduce_sum(u**2) + tf.reduce_sum(tf.sin(du)) + tf.reduce_sum(found**2)

    def of_tapes():
        value, first, second = by_tapes(network, x)
        return tf.reduce_sum(value**2) + tf.reduce_sum(tf.sin(first)) + tf.reduce_sum(tf.linalg.trace(second) ** 2)

    gradients = []
    for function in (of_streams, of_tapes):
        with tf.GradientTape() as tape:
            loss = function()
        gradients.append(tape.gradient(loss, [v.value for v in network.trainable_variables]))
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def mixed(precision, points_precision):
    """Layers in one precision, points in another."""
    x = keras.Input((2,), dtype=points_precision)
    options = {"dtype": precision}
    a = layers.Dense(4, "tanh", **options)(x)
    b = layers.Multiply(**options)([a, layers.Concatenate(**options)([x, layers.Rescaling(2.0, **options)(x)])])
    inner = keras.Sequential([keras.Input((4,), dtype=precision), layers.Dense(2, **options)])
    both = layers.Add(**options)([inner(b), x])
    return keras.Model(x, ng.pde.HardBoundary(distance, lift, **options)([x, layers.Dense(1, **options)(both)]))


@pytest.mark.parametrize("x", [tf.ones([3, 2], tf.float64), tf.ones([3, 2]), np.ones((3, 2), int)])
@pytest.mark.parametrize("precision", [("float32", "float32"), ("float32", "float64"), ("float64", "float32")])
def test_precisions_are_those_of_the_network(precision, x):
    network = mixed(*precision)
    expected = network(x)
    for found in ng.pde.laplacian(network, x):
        assert found.dtype == expected.dtype
    np.testing.assert_allclose(ng.pde.laplacian(network, x)[0], expected, rtol=1e-6)


def test_float32_inputs_and_layers_of_their_own_precision():
    keras.config.set_floatx("float32")
    network = keras.Sequential(
        [keras.Input((2,)), layers.Dense(4, "tanh", dtype="float64"), layers.Dense(1, dtype="float64")]
    )
    u, _, found = ng.pde.laplacian(network, np.ones((3, 2), "float32"))
    assert u.dtype == found.dtype == tf.float64


@pytest.mark.parametrize(
    "layer, words",
    [
        (lambda: layers.Dense(3, "relu", name="odd"), "'odd' with the activation `relu`, whose second derivative"),
        (lambda: layers.Dense(3, "softmax", name="odd"), "'odd' with the activation `softmax`, which mixes"),
        (lambda: layers.Dropout(0.5, name="odd"), r"layer 'odd' \(Dropout\)"),
        (lambda: layers.LayerNormalization(name="odd"), r"layer 'odd' \(LayerNormalization\)"),
        (lambda: layers.Dense(3, activity_regularizer="l2", name="odd"), "'odd' .Dense. with an `activity_reg"),
        (lambda: layers.Identity(activity_regularizer="l1", name="odd"), "'odd' .Identity. with an `activity_reg"),
    ],
)
def test_layers_without_a_rule_are_refused_by_name(layer, words):
    network = keras.Sequential([keras.Input((2,)), layers.Dense(3, "tanh"), layer(), layers.Dense(1)])
    with pytest.raises(ValueError, match=words):
        ng.pde.laplacian(network, tf.ones([2, 2]))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    "activation",
    [
        lambda v: tf.nn.relu(v),
        lambda v: keras.activations.threshold(v, 0.5, 0.0),
        keras.activations.sparse_sigmoid,
        keras.activations.softsign,
        tf.abs,
    ],
)
def test_activations_without_a_second_derivative_are_refused(activation, graph):
    network = keras.Sequential([keras.Input((2,)), layers.Dense(3, activation, name="odd"), layers.Dense(1)])
    function = tf.function(ng.pde.laplacian, autograph=False) if graph else ng.pde.laplacian
    with pytest.raises(ValueError, match=r"'odd' with the activation .* is zero or missing"):
        function(network, tf.ones([2, 2], tf.float64))


def test_affine_activations_are_not_refused():
    assert not ng.pde.laplacian(sequential(lambda v: 2.0 * v + 1.0), tf.ones([2, 2], tf.float64))[2].numpy().any()


def test_networks_with_several_outputs_are_refused_by_name():
    x = keras.Input((2,))
    inner = keras.Model(x, [layers.Dense(3)(x), layers.Dense(3)(x)], name="odd")
    y = keras.Input((2,))
    with pytest.raises(ValueError, match=r"'odd' .Functional. with several outputs"):
        ng.pde.laplacian(keras.Model(y, inner(y)[1]), tf.ones([2, 2]))


def test_the_message_says_the_general_way():
    network = keras.Sequential([keras.Input((2,)), layers.LayerNormalization(), layers.Dense(1)])
    with pytest.raises(ValueError, match=r"GradientTape.*'cg'"):
        ng.pde.laplacian(network, tf.ones([2, 2]))


@pytest.mark.parametrize("name", ["fourier", "hard_boundary"])
def test_networks_are_saved(name, tmp_path):
    network = NETWORKS[name]()
    network.save(tmp_path / "network.keras")
    again = keras.models.load_model(tmp_path / "network.keras")
    x = points(network)
    for a, b in zip(ng.pde.laplacian(network, x), ng.pde.laplacian(again, x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_boundary_values_hold():
    x = tf.constant([[0.0, 0.3], [1.0, 0.2], [0.4, 0.0], [0.9, 1.0]], tf.float64)
    np.testing.assert_allclose(hard(1)(x), lift(x), atol=1e-15)


@pytest.mark.parametrize("name", ["distance", "lift"])
@pytest.mark.parametrize("function", [lambda x: x[:, 0], lambda x: x, lambda x: 1.0])
def test_boundary_functions_of_another_shape_are_refused(name, function):
    x = keras.Input((2,))
    layer = ng.pde.HardBoundary(**{"distance": distance, name: function})
    network = keras.Model(x, layer([x, layers.Dense(3)(x)]))
    for call in (network, lambda p: ng.pde.laplacian(network, p)):
        with pytest.raises(ValueError, match=rf"`{name}`: .*returns shape .*keepdims=True"):
            call(tf.ones([4, 2], tf.float64))
