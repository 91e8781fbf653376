"""The flat view of a model's variables."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_natgrad.parameters import FlatParameters


@pytest.fixture
def model():
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="first"), keras.layers.Dense(4, name="second")]
    )


@pytest.fixture
def flat(model):
    return FlatParameters(model.trainable_variables)


def test_size_shapes_and_slices(flat):
    assert flat.size == 6 + 2 + 8 + 4
    assert [tuple(s) for s in flat.shapes] == [(3, 2), (2,), (2, 4), (4,)]
    assert flat.slices == (slice(0, 6), slice(6, 8), slice(8, 16), slice(16, 20))


def test_names_are_paths(flat):
    assert [name.split("/")[-2:] for name in flat.names] == [
        [layer, weight] for layer in ("first", "second") for weight in ("kernel", "bias")
    ]


def test_read_is_row_major_in_the_order_of_the_model(model, flat):
    expected = np.concatenate([w.reshape(-1) for w in model.get_weights()])
    np.testing.assert_array_equal(flat.read(), expected)


def test_flatten_and_unflatten_are_inverse(flat):
    vector = tf.range(20, dtype=tf.float32)
    parts = flat.unflatten(vector)
    assert [tuple(p.shape) for p in parts] == [tuple(s) for s in flat.shapes]
    np.testing.assert_array_equal(flat.flatten(parts), vector)
    np.testing.assert_array_equal(parts[2], np.arange(8, 16).reshape(2, 4))


def test_assign_writes_into_the_model(model, flat):
    flat.assign(np.arange(20))
    np.testing.assert_array_equal(model.layers[1].bias, np.arange(16, 20))
    np.testing.assert_array_equal(flat.read(), np.arange(20))


def test_inside_a_function(flat):
    doubled = tf.function(lambda: flat.flatten(flat.unflatten(2 * flat.read())))()
    np.testing.assert_array_equal(doubled, 2 * flat.read())


def test_plain_tensorflow_variables():
    flat = FlatParameters([tf.Variable([1.0, 2.0], name="a"), tf.Variable([[3.0]], name="b")])
    assert flat.size == 3 and flat.names == ("a:0", "b:0")
    np.testing.assert_array_equal(flat.read(), [1.0, 2.0, 3.0])


@pytest.mark.parametrize("shape", [(19,), (21,), (20, 1), ()])
def test_wrong_shape_is_refused(flat, shape):
    before = flat.read().numpy()
    with pytest.raises(ValueError, match=r"`vector`: received shape"):
        flat.assign(tf.zeros(shape))
    np.testing.assert_array_equal(flat.read(), before)


def test_no_variables_are_refused():
    with pytest.raises(ValueError, match=r"`variables`: received none.*Build the model"):
        FlatParameters([])


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("int32",)])
def test_mixed_or_integer_dtypes_are_refused(dtypes):
    with pytest.raises(ValueError, match=r"`variables`: received dtypes .*one floating-point dtype"):
        FlatParameters([tf.Variable(tf.zeros([2], dtype)) for dtype in dtypes])
