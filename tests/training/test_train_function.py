"""What a step sees of its batches before it is traced: the true sizes, of the first batch and of larger ones."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from training import batch, compiled, fit, network, plain

import tf_natgrad as ng


def _wide():
    """Ten outputs of a few weights: from 46 examples on the dense matrix is smaller than the Gram matrix."""
    return [layers.Dense(4, "tanh"), layers.Dense(10)]


def _model(**options):
    return compiled(network(_wide), ng.NaturalGradient(**options), "mse", mode="graph")


def _data(examples):
    rng = np.random.default_rng(0)
    return rng.normal(size=(examples, 4)).astype("float32"), rng.normal(size=(examples, 10)).astype("float32")


def _solver(model):
    return type(model.train_function.planned.algorithm).__name__


@pytest.mark.parametrize("examples", [60, 61])
def test_the_choice_knows_the_size_of_a_batch_whose_last_one_is_smaller(examples):
    model = _model()
    fit(model, *_data(examples), batch_size=20)
    assert "200 rows" in model.train_function.planned.why


class _Seen(layers.Layer):
    """Notes the examples that pass."""

    def __init__(self):
        super().__init__()
        self.rows = _Untracked()

    def call(self, x):
        note = tf.py_function(lambda t: self.rows.list.extend(map(tuple, t.numpy())), [x], [])
        with tf.control_dependencies([note] if note is not None else []):
            return tf.identity(x)


class _Untracked:
    def __init__(self):
        self.list = []


@pytest.mark.parametrize("steps", [1, 3])
def test_every_batch_is_used(steps):
    seen = _Seen()
    model = network(lambda: [seen, layers.Dense(3)])
    compiled(model, plain(), mode="graph", steps_per_execution=steps)
    x, y = batch(26)
    fit(model, x, y, epochs=2, batch_size=8)
    assert int(model.optimizer.iterations) == 8
    # Each example twice, and the first batch once more, when it is looked at.
    assert len(seen.rows.list) == 2 * 26 + 8
    counts = collections.Counter(seen.rows.list)
    assert sorted(counts.values()) == [2] * 18 + [3] * 8 and set(counts) == set(map(tuple, x))


def test_batches_of_unknown_size_give_the_numbers_of_known_ones():
    x, y = _data(24)
    known = tf.data.Dataset.from_tensor_slices((x, y)).batch(8, drop_remainder=True)
    unknown = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    generated = tf.data.Dataset.from_generator(
        lambda: ((x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)),
        output_signature=(tf.TensorSpec([None, 4]), tf.TensorSpec([None, 10])),
    )
    models = []
    for data in (known, unknown, generated):
        models.append(_model())
        models[-1].fit(data, epochs=2, verbose=0)
    for other in models[1:]:
        for a, b in zip(models[0].get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_larger_batch_is_looked_at_again():
    model, (x, y) = _model(), _data(60)
    sizes = [2, 1, 2, 60]
    starts = np.cumsum([0, *sizes])
    data = tf.data.Dataset.from_generator(
        lambda: ((x[:size], y[:size]) for size in sizes),
        output_signature=(tf.TensorSpec([None, 4]), tf.TensorSpec([None, 10])),
    )
    chosen = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            chosen.append(_solver(model))

    model.fit(data, verbose=0, callbacks=[Note()])
    assert chosen == ["Gram", "Gram", "Gram", "SVDPseudoInverse"] and starts[-1] == 65
    model = _model()
    for size, expected in [(2, "Gram"), (60, "SVDPseudoInverse"), (2, "SVDPseudoInverse")]:
        model.train_on_batch(x[:size], y[:size])
        assert _solver(model) == expected


def test_a_larger_batch_in_a_later_fit_is_looked_at_again():
    model, (x, y) = _model(), _data(64)
    fit(model, x[:8], y[:8], batch_size=2)
    assert _solver(model) == "Gram"
    fit(model, x, y, batch_size=32)
    assert _solver(model) == "SVDPseudoInverse"


@pytest.mark.parametrize("drop_remainder", [True, False])
def test_one_trace_for_all_batches(drop_remainder):
    model, traces = _model(), []
    inner = model.train_step
    model.train_step = lambda data: traces.append(1) or inner(data)
    x, y = _data(30)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8, drop_remainder=drop_remainder)
    for _ in range(2):
        model.fit(data, epochs=2, verbose=0)
    assert len(traces) == 1


def test_a_first_batch_with_nan_is_left_out_and_the_next_one_looked_at():
    model = _model(on_nonfinite="skip", solver="gram")
    x, y = _data(24)
    x[3] = np.nan
    fit(model, x, y, batch_size=8)
    assert int(model.optimizer.skipped_steps) == 1 and int(model.optimizer.iterations) == 2
    assert model.train_function._largest is not None


def test_solvers_that_do_not_choose_leave_the_iterator_to_keras():
    model = _model(solver="cg")
    fit(model, *_data(20), batch_size=8)
    assert model.train_function.planned is None


def test_labels_and_weights_that_are_absent_stay_so():
    x, y = batch(10)
    data = tf.data.Dataset.from_tensor_slices((x, y, np.ones(10, "float32"))).batch(4)
    model = compiled(network(), mode="graph")
    model.fit(data, verbose=0)
    other = compiled(network(), mode="graph")
    other.fit(data.map(lambda x, y, w: (x, y)), verbose=0)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class OwnBatches(ng.NaturalGradientSequential):
    """Makes the batch that it trains on of another one."""

    def train_step(self, data):
        return super().train_step((data["image"][:, 1:], data["label"]))


@pytest.mark.parametrize("eager", [False, True])
def test_a_train_step_of_ones_own_may_make_another_batch(eager):
    x, y = batch(12)
    wide = np.concatenate([x[:, :1], x], 1)
    data = tf.data.Dataset.from_tensor_slices({"image": wide, "label": y}).batch(8)
    models = [network(kind=OwnBatches), network()]
    for model in models:
        compiled(model, mode="eager" if eager else "graph")
    models[0].fit(data, verbose=0)
    fit(models[1], x, y, batch_size=8)
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class _Noise(layers.Layer):
    """Draws from the generator that all of Keras shares."""

    def call(self, x, training=False):
        return x + 0.3 * keras.random.normal(tf.shape(x)) if training else x


@pytest.mark.parametrize("used_before", [False, True])
def test_the_first_look_draws_no_random_numbers_of_keras(used_before):
    losses = []
    for solver in ("gram", "svd"):
        model = compiled(network(lambda: [_Noise(), layers.Dense(3)]), plain(solver=solver))
        if used_before:
            keras.random.normal([])
        # Of one batch, before its step.
        losses.append(fit(model, *batch(8), batch_size=8)["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_a_choice_by_size_is_no_replacement(caplog):
    """Nothing is logged of a Gram matrix that would not have been taken anyway."""
    model = compiled(network(lambda: [layers.Dense(2), layers.BatchNormalization(), layers.Dense(3)]), plain())
    fit(model, *batch(16), batch_size=16)
    assert "dense step, 23 weights" in model.train_function.planned.why
    assert "does without" not in caplog.text
