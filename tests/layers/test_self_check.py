"""The Gram matrix is that of the Jacobian, or it is found out: before a step is traced, and at every solve."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import training
from cases import precision
from keras import layers
from oracle import difference

import tf_natgrad as ng
from tf_natgrad.errors import GramMismatchError
from tf_natgrad.layers import gram_mismatch, tolerated_mismatch
from tf_natgrad.operators import Fisher
from tf_natgrad.solvers.gram import is_consistent


class InputGradient(ng.NaturalGradientMixin, keras.Model):
    """Puts out the gradient of a network in its input: a force, a score, the residual of an equation."""

    def __init__(self, units=10, **kwargs):
        super().__init__(**kwargs)
        self.net = keras.Sequential(
            [layers.Dense(units, activation="tanh"), layers.Dense(units, "tanh"), layers.Dense(1)]
        )

    def call(self, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = self.net(x)
        return tape.gradient(value, x)


class Centred(layers.Layer):
    """Subtracts the mean over the batch."""

    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


class Rolled(layers.Layer):
    """Gives each example the features of another one."""

    def call(self, x):
        return keras.ops.roll(x, 1, axis=0)


class RolledWhenLarge(layers.Layer):
    """The same, but only for batches that a first look does not see."""

    def call(self, x):
        return keras.ops.where(keras.ops.max(x) > 100.0, keras.ops.roll(x, 1, axis=0), x)


class Folded(layers.Layer):
    """Takes each half of the features for an example of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3, activation="tanh")

    def call(self, x):
        return keras.ops.reshape(self.dense(keras.ops.reshape(x, (-1, 2))), (-1, 6))


def _between(layer, kind=keras.Sequential):
    return kind([keras.Input((4,)), layers.Dense(4, activation="tanh"), layer, layers.Dense(3)])


MIXING = {"centred": Centred, "rolled": Rolled, "folded": Folded}


def _wrong(name, units=10):
    """A model whose recorded calls do not tell all, its loss, inputs and labels."""
    rng = np.random.default_rng(0)
    if name == "gradient_in_call":
        model, x, y = InputGradient(units), rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
        model(x)
        return model, "mse", x, y
    model = _between(MIXING[name](), ng.NaturalGradientSequential)
    return model, training.sparse(), rng.normal(size=(6, 4)), rng.integers(0, 3, 6)


NAMES = ["gradient_in_call", *MIXING]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_gram_matrix_is_refused_and_auto_goes_another_way(name, float64):
    model, loss, x, y = _wrong(name)
    fisher = Fisher(model, loss, x)
    with pytest.raises(ValueError, match=r"'cg'|ConjugateGradient"):
        fisher.gram()
    with pytest.raises(ValueError, match=r"'cg'|ConjugateGradient"):
        ng.natural_gradient(model, loss, x, y, solver="gram")
    expected, _ = ng.natural_gradient(model, loss, x, y, solver="svd")
    value, info = ng.natural_gradient(model, loss, x, y)
    assert difference(value, expected) < 1e-10
    assert info.solver == "SVDPseudoInverse" and "allow for the dense matrix" in info.why


def test_auto_goes_to_conjugate_gradients_where_the_dense_matrix_is_too_large(float64, caplog):
    model, loss, x, y = _wrong("gradient_in_call", units=25)
    value, info = ng.natural_gradient(model, loss, x, y, damping=1e-2)
    assert info.solver == "ConjugateGradient" and "relative residual of 0.001" in info.why
    fisher = Fisher(model, loss, (x, y), training=True)
    gradient = fisher.gradient()
    assert tf.norm(fisher.damped(1e-2).matvec(value) - gradient) < 1.01e-3 * tf.norm(gradient)
    ng.natural_gradient(model, loss, x, y, damping=1e-2)
    said = [r for r in caplog.records if "does without the Gram matrix" in r.message and "gradients, to" in r.message]
    assert len(said) <= 1


def test_training_takes_the_directions_of_the_dense_matrix(float64):
    # 200 weights or so, a gradient in `call`, full batches, the defaults.
    histories, weights = {}, {}
    for solver in ("auto", "svd"):
        keras.utils.set_random_seed(2)
        model = InputGradient(units=11)
        x = np.random.default_rng(1).normal(size=(30, 2))
        model(x)
        model.compile(ng.NaturalGradient(solver=solver), "mse")
        histories[solver] = model.fit(x, np.sin(x), batch_size=30, epochs=6, verbose=0).history["loss"]
        weights[solver] = ng.parameters.FlatParameters(model.trainable_variables).read()
    assert 150 < weights["svd"].shape[0] < 250
    assert difference(weights["auto"], weights["svd"]) < 1e-8
    assert histories["svd"][-1] < 0.5 * histories["svd"][0]


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_gram_refuses_in_fit_before_a_step(mode, float64):
    model, loss, x, y = _wrong("rolled")
    training.compiled(model, ng.NaturalGradient(solver="gram"), loss, mode=mode)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"mixes the examples.*'auto'"):
        training.fit(model, x, y, batch_size=6)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def _late(solver, **options):
    model = training.network(lambda: [layers.Dense(4, "tanh"), RolledWhenLarge(), layers.Dense(3)])
    model.layers[0].set_weights([np.eye(4), np.zeros(4)])
    model.layers[0].activation = keras.activations.linear
    x, y = training.batch(16)
    x[8:12] += 200.0
    training.compiled(model, ng.NaturalGradient(solver=solver, **options), mode="graph")
    return model, x, y


def test_a_batch_that_is_wrong_later_is_refused_at_its_solve():
    model, x, y = _late("gram")
    model.train_on_batch(x[:4], y[:4])
    before = [w.copy() for w in model.get_weights()]
    iterations = int(model.optimizer.iterations)
    with pytest.raises(GramMismatchError, match=r"The step was not taken.*'auto'"):
        model.train_on_batch(x[8:12], y[8:12])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert int(model.optimizer.iterations) == iterations


@pytest.mark.parametrize("drawn", [True, False])
def test_auto_compiles_another_way_after_such_a_batch(drawn):
    model, x, y = _late("auto", line_search=None, max_kl=None, damping=1.0)
    if drawn:
        for start in range(0, 16, 4):
            model.train_on_batch(x[start : start + 4], y[start : start + 4])
    else:
        training.fit(model, x, y)
    # What a graph drew itself is gone with it, and counted.
    assert int(model.optimizer.skipped_steps) == (0 if drawn else 1)
    assert int(model.optimizer.iterations) == (4 if drawn else 3)
    assert type(model.train_function.planned.algorithm).__name__ == "SVDPseudoInverse"
    # A larger batch that looks right does not bring the Gram matrix back.
    model.train_on_batch(np.tile(x[:4], (3, 1)), np.tile(y[:4], 3))
    assert type(model.train_function.planned.algorithm).__name__ == "SVDPseudoInverse"
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_natural_gradient_goes_another_way_on_such_a_batch():
    model, x, y = _late("auto")
    value, info = ng.natural_gradient(model, training.sparse(), x[:4], y[:4])
    assert info.solver == "Gram"
    value, info = ng.natural_gradient(model, training.sparse(), x[8:12], y[8:12])
    expected, _ = ng.natural_gradient(model, training.sparse(), x[8:12], y[8:12], solver="svd")
    assert info.solver == "SVDPseudoInverse" and difference(value, expected) < 1e-5


# No false alarms.


def _duplicated(dtype, examples, features=6):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples // 4, features)).astype(dtype)
    return np.tile(x, (4, 1)), rng.integers(0, 3, examples)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("damping", [1e-7, 1e-5, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("examples", [8, 160])
def test_singular_systems_raise_no_alarm(damping, dtype, examples):
    # Duplicated examples; more rows than weights where there are 160.
    with precision(dtype):
        model = training.network(dtype=dtype, shape=(6,))
        x, y = _duplicated(dtype, examples)
        for scale in (1.0, 100.0):
            _, info = ng.natural_gradient(model, training.sparse(), scale * x, y, damping=damping, solver="gram")
            assert info.solver == "Gram"


@pytest.mark.parametrize("damping", [1e-7, 1e-4, 0.0])
def test_regression_with_more_rows_than_weights_raises_no_alarm(damping):
    rng = np.random.default_rng(0)
    model = training.network(lambda: [layers.Dense(4, "tanh"), layers.Dense(5)], shape=(6,))
    x, y = rng.normal(size=(200, 6)).astype("float32"), rng.normal(size=(200, 5)).astype("float32")
    _, info = ng.natural_gradient(model, "mse", x, y, damping=damping, solver="gram")
    assert info.rows == 1000


RIGHT = {
    "dense": lambda: [layers.Dense(32, "relu"), layers.Dense(3)],
    "convolution": lambda: [
        layers.Reshape((8, 8, 1)),
        layers.Conv2D(4, 3, activation="relu"),
        layers.MaxPool2D(2),
        layers.Flatten(),
        layers.Dense(3),
    ],
    "attention": lambda: [layers.Reshape((8, 8)), layers.LayerNormalization(), layers.LSTM(5), layers.Dense(3)],
    "sequence": lambda: [layers.Reshape((8, 8)), layers.Dense(5, "gelu"), layers.Dense(3)],
}


@pytest.mark.parametrize(("share", "consistent"), [(4.2e-4, True), (0.02, False), (-0.02, False)])
def test_what_rounding_may_explain(share, consistent):
    # The first was seen in a step of the blog about to explode: the gradient through a nearly certain softmax cancels.
    one = tf.ones([1])
    value = tf.sqrt(tf.constant([1.0 + share]))
    assert bool(is_consistent(one[None], one, one, value, 2.0**-23)) == consistent


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", sorted(RIGHT))
def test_correct_models_pass_in_every_precision(name, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = training.network(RIGHT[name], shape=(64,))
        for seed in range(3):
            x = np.random.default_rng(seed).normal(size=(24, 64)).astype("float32")
            fisher = Fisher(model, training.sparse(), x)
            assert fisher.gram_refusal is None and fisher.gram_checked
    finally:
        keras.config.set_dtype_policy(before)


def test_the_mismatch_is_measured(float64):
    right = Fisher(_between(layers.Activation("relu")), training.sparse(), np.ones((5, 4)))
    live = tf.ones_like(right.batch.output_weights)
    assert gram_mismatch(right.batch.record, right.batch.linearization, live) < 1e-13
    wrong = Fisher(_between(Rolled()), training.sparse(), np.random.default_rng(0).normal(size=(5, 4)))
    assert gram_mismatch(wrong.batch.record, wrong.batch.linearization, live) > 1e-2
    assert tolerated_mismatch(right.batch.linearization) == 100 * 2.0**-52


class _SharedNoise(layers.Layer):
    """Draws from a generator that is not the model's own."""

    def __init__(self, generator):
        super().__init__()
        self.draw = lambda x: keras.random.dropout(x, 0.5, seed=generator)

    def call(self, x):
        return self.draw(x)


def test_the_first_look_leaves_the_model_as_it_was():
    shared = keras.random.SeedGenerator(3)
    model = training.network(
        lambda: [layers.Dense(4), layers.BatchNormalization(), _SharedNoise(shared), layers.Dense(3)]
    )
    x, y = training.batch()
    model(x)
    seed = shared.state.numpy()
    before = [tf.identity(v.value) for v in model.non_trainable_variables]
    plan = ng.training.planning.plan_solver(
        model, training.sparse(), (x, y), solver=ng.solvers.get("auto"), training=True
    )
    assert plan[1] and not isinstance(plan[0].algorithm, ng.solvers.Gram)
    assert np.array_equal(seed, shared.state)
    for old, new in zip(before, model.non_trainable_variables, strict=True):
        assert np.array_equal(old, new)
