"""Training in Keras: what `compile` and `fit` accept, what stays as under stock Keras, and what is refused."""

import os

import cases
import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
import training
from keras import layers, losses
from training import MODES, RUNS, batch, cg, compiled, fit, network, sparse, trained

import tf_natgrad as ng

X, Y = batch()
ONE_HOT = np.eye(3, dtype="float32")[Y]


def _tokens():
    tokens = np.random.default_rng(5).integers(0, 6, (12, 5))
    tokens[3:, 3:] = 0
    tokens[7, :] = 0
    return tokens


def _padded():
    x = np.random.default_rng(5).normal(size=(12, 5, 2)).astype("float32")
    x[3:, 2:] = 0.0
    return x


def _sequence_labels():
    return np.random.default_rng(6).integers(0, 3, (12, 5))


def _weights(*shape):
    return np.random.default_rng(8).uniform(0.1, 3.0, (12, *shape)).astype("float32")


def _embedding():
    return [layers.Embedding(6, 3, mask_zero=True), layers.Dense(3)]


def _masking():
    return [layers.Masking(), layers.Dense(4, activation="tanh"), layers.Dense(3)]


def _ending_in(activation, units=3):
    return lambda: [layers.Dense(5, activation="tanh"), layers.Dense(units, activation=activation)]


def _penalised():
    return [
        layers.Dense(5, activation="tanh", kernel_regularizer="l2"),
        layers.Dense(3, kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02), bias_regularizer="l2"),
    ]


def _noisy():
    return [layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.4), layers.Dense(3)]


def _frozen():
    frozen = layers.Dense(5, activation="tanh")
    frozen.trainable = False
    return [frozen, layers.Dense(3)]


def _convolutional():
    return [layers.Reshape((2, 2, 1)), layers.Conv2D(2, 2, padding="same"), layers.Flatten(), layers.Dense(3)]


# Layers, loss, inputs, labels and options of `fit`: one step at infinite damping is Keras's own gradient.
GRADIENTS = {
    "plain": (training.mlp, sparse, X, Y, {}),
    "column_labels": (training.mlp, sparse, X, Y[:, None], {}),
    "sample_weight": (training.mlp, sparse, X, Y, {"sample_weight": _weights()}),
    "sample_weight_column": (training.mlp, sparse, X, Y, {"sample_weight": _weights(1)}),
    "class_weight": (training.mlp, sparse, X, Y, {"class_weight": {0: 0.2, 1: 3.0, 2: 1.0}}),
    "sum": (training.mlp, lambda: losses.SparseCategoricalCrossentropy(True, reduction="sum"), X, Y, {}),
    "one_hot": (training.mlp, lambda: losses.CategoricalCrossentropy(True), X, ONE_HOT, {}),
    "smoothed": (training.mlp, lambda: losses.CategoricalCrossentropy(True, label_smoothing=0.2), X, ONE_HOT, {}),
    "smoothed_probabilities": (
        _ending_in("softmax"),
        lambda: losses.CategoricalCrossentropy(label_smoothing=0.2),
        X,
        ONE_HOT,
        {"sample_weight": _weights()},
    ),
    "probabilities": (_ending_in("softmax"), lambda: "sparse_categorical_crossentropy", X, Y, {}),
    "binary": (_ending_in(None, 1), lambda: losses.BinaryCrossentropy(True, label_smoothing=0.1), X, Y > 0, {}),
    "binary_probabilities": (_ending_in("sigmoid"), lambda: "binary_crossentropy", X, ONE_HOT, {}),
    "squared_error": (training.mlp, lambda: "mse", X, ONE_HOT, {"sample_weight": _weights()}),
    "scalar_regression": (_ending_in(None, 1), lambda: "mse", X, X[:, 0], {}),
    "sequence": (_masking, sparse, _padded() + 1.0, _sequence_labels(), {"sample_weight": _weights(1)}),
    "sequence_weights": (_masking, sparse, _padded() + 1.0, _sequence_labels(), {"sample_weight": _weights(5)}),
    "sequence_regression": (_masking, lambda: "mse", _padded() + 1.0, _weights(5, 3), {}),
    "embedding_mask": (_embedding, sparse, _tokens(), _sequence_labels(), {}),
    "embedding_mask_weights": (_embedding, sparse, _tokens(), _sequence_labels(), {"sample_weight": _weights(1)}),
    "masking": (_masking, sparse, _padded(), _sequence_labels(), {"sample_weight": _weights(5)}),
    "own_distribution": (
        training.mlp,
        lambda: ng.distributions.NegativeLogLikelihood(training.PoissonPd),
        X,
        np.arange(36.0).reshape(12, 3) % 5,
        {"sample_weight": _weights()},
    ),
    "regularised": (_penalised, sparse, X, Y, {}),
    "frozen": (_frozen, sparse, X, Y, {}),
    "dropout_and_batch_norm": (_noisy, sparse, X, Y, {}),
    "convolution": (_convolutional, sparse, X, Y, {}),
}
THOROUGH = ("sample_weight", "embedding_mask", "regularised", "dropout_and_batch_norm")


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "graph") for name in GRADIENTS] + [(name, mode) for name in THOROUGH for mode in ("eager", "xla")],
)
def test_at_infinite_damping_a_step_is_that_of_gradient_descent(name, mode):
    stack, loss, x, y, options = GRADIENTS[name]
    shape, dtype = x.shape[1:], x.dtype.name
    infinity = 1e6
    natural = training.plain(infinity, damping=infinity, solver=cg() if mode == "xla" else "auto")
    model = compiled(network(stack, shape, dtype), natural, loss(), mode)
    stock = compiled(network(stack, shape, dtype, keras.Sequential), keras.optimizers.SGD(1.0), loss(), mode)
    histories = []

    def run(m):
        return lambda: histories.append(fit(m, x, y, batch_size=12, **options))

    actual, expected = (training.flat(training.changes(m, run(m))) for m in (model, stock))
    assert np.linalg.norm(expected) > 1e-3
    assert oracle.difference(actual, expected) < 1e-3
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)


@pytest.mark.parametrize(("mode", "solver"), [*RUNS, ("graph", "gram"), ("graph", "svd")])
def test_a_step_is_the_dense_natural_gradient(mode, solver, double):
    x, y = batch(dtype="float64")
    weight = np.linspace(0.0, 2.0, 12)
    solver = cg(1e-12) if solver == "cg" else solver
    model = compiled(network(_penalised), training.plain(0.5, damping=0.02, solver=solver), mode=mode)
    # The curvature of the penalties, whose numbers Keras takes through float32.
    first, second = (2.0 * float(np.float32(c)) for c in (0.01, 0.02))
    damping = 0.02 + np.repeat([first, 0.0, second, first], [20, 5, 15, 3])
    expected = -0.5 * training.dense_direction(model, x, y, damping, sample_weight=weight)
    actual = training.changes(model, lambda: fit(model, x, y, sample_weight=weight, batch_size=12))
    assert oracle.difference(training.flat(actual), expected) < 1e-8


def _functional():
    inputs = keras.Input((4,))
    return ng.NaturalGradientModel(inputs, layers.Dense(3)(layers.Dense(5, activation="tanh")(inputs)))


def _wrapped():
    return ng.natural_gradient_model(network(kind=keras.Sequential))


def _nested():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5, activation="tanh"), layers.Dropout(0.2)])
    inputs = keras.Input((4,))
    return ng.NaturalGradientModel(inputs, layers.Dense(3)(inner(inputs)))


def _cloned():
    return keras.models.clone_model(_functional())


def _cloned_sequential():
    # Keras clones a Sequential model of any class into a plain one.
    return ng.natural_gradient_model(keras.models.clone_model(network()))


def _unbuilt():
    return ng.NaturalGradientSequential(training.mlp())


KINDS = (_functional, network, _unbuilt, _wrapped, _nested, training.Subclassed, _cloned, _cloned_sequential)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__.strip("_"))
def test_every_kind_of_model_trains(make):
    model = compiled(make(), metrics=["accuracy"])
    history = fit(model, X, Y, epochs=4, validation_data=(X, Y))
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert set(history) == {"accuracy", "damping", "kl", "loss", "rank", "val_accuracy", "val_loss"}
    assert model.predict(X, verbose=0).shape == (12, 3)
    np.testing.assert_allclose(model.evaluate(X, Y, verbose=0)[0], history["val_loss"][-1], rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_was_never_called_takes_the_steps_of_one_that_was(mode):
    histories = []
    for build in (False, True):
        keras.utils.set_random_seed(4)
        model = compiled(training.Subclassed(), training.plain(solver="cg"), mode=mode)
        if build:
            model(X[:1])
        histories.append(fit(model, X, Y, epochs=2)["loss"])
    assert histories[0] == histories[1]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("mode", MODES)
def test_another_optimizer_trains_as_under_stock_keras_to_the_bit(mode, optimizer):
    results = []
    for kind in (ng.NaturalGradientSequential, keras.Sequential):
        model = compiled(network(_noisy, kind=kind), optimizer, mode=mode, metrics=["accuracy"])
        results.append((fit(model, X, Y, epochs=3, validation_data=(X, Y)), model.get_weights()))
    assert results[0][0] == results[1][0]
    assert training.same_weights(results[0][1], results[1][1])


def test_a_subclassed_model_with_adam_is_stock_keras():
    histories = []
    for make in (training.Subclassed, training.StockSubclassed):
        keras.utils.set_random_seed(2)
        histories.append(fit(compiled(make(), "adam"), X, Y, epochs=3))
    assert histories[0] == histories[1]


@pytest.mark.parametrize(("mode", "solver"), RUNS)
def test_seeds_and_statistics_move_as_often_as_under_stock_keras(mode, solver):
    # The statistics are those of the inputs, so they do not depend on the weights.
    def stack():
        return [layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(4), layers.Dropout(0.2), layers.Dense(3)]

    model = compiled(network(stack), training.plain(0.1, solver=solver), mode=mode)
    stock = compiled(network(stack, kind=keras.Sequential), "sgd", mode=mode)
    start = [v.numpy() for v in model.non_trainable_variables]
    for m in (model, stock):
        fit(m, X, Y, epochs=2)
    pairs = list(zip(model.non_trainable_variables, stock.non_trainable_variables, strict=True))
    assert len(pairs) == 4
    for (mine, theirs), before in zip(pairs, start, strict=True):
        assert not np.array_equal(mine.numpy(), before)
        # XLA sums in another order.
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-5 if mode == "xla" else 0)


@pytest.mark.parametrize(("mode", "solver"), RUNS)
def test_frozen_layers_keep_their_weights_and_stay_out_of_the_fisher(mode, solver, double):
    x, y = batch(dtype="float64")
    solver = cg(1e-12) if solver == "cg" else solver
    model = compiled(network(_frozen), training.plain(1.0, damping=0.1, solver=solver), mode=mode)
    frozen = model.layers[0].get_weights()
    expected = training.dense_direction(model, x, y, 0.1)
    assert expected.shape == (18,)
    actual = training.changes(model, lambda: fit(model, x, y, batch_size=12))
    assert oracle.difference(training.flat(actual), -expected) < 1e-8
    assert training.same_weights(frozen, model.layers[0].get_weights())


def test_a_layer_may_be_unfrozen_and_compiled_again():
    model, _ = trained(stack=_frozen)
    model.layers[0].trainable = True
    before = model.layers[0].get_weights()
    history = fit(compiled(model), X, Y, epochs=3)
    assert history["loss"][-1] < history["loss"][0]
    assert not training.same_weights(before, model.layers[0].get_weights())


@pytest.mark.parametrize(("mode", "solver"), RUNS)
def test_modes_agree(mode, solver, double):
    data = batch(10, dtype="float64")
    solver = cg(1e-12) if solver == "cg" else solver
    _, history = trained(mode, training.plain(0.5, solver=solver), data=data)
    _, expected = trained("graph", training.plain(0.5, solver="svd"), data=data)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-8)
    np.testing.assert_allclose(history["kl"], expected["kl"], rtol=1e-6)


@pytest.mark.parametrize(("mode", "steps"), [("graph", 2), ("graph", 3), ("xla", 2)])
def test_steps_per_execution_change_nothing(mode, steps):
    optimizer = {"solver": cg()}
    _, expected = trained(mode, training.plain(0.5, **optimizer))
    model = compiled(network(), training.plain(0.5, **optimizer), mode=mode, steps_per_execution=steps)
    np.testing.assert_allclose(fit(model, X, Y, epochs=2)["loss"], expected["loss"], rtol=1e-4)


def test_a_data_set_with_a_partial_last_batch_trains_as_arrays_do():
    data = tf.data.Dataset.from_tensor_slices((X[:10], Y[:10])).batch(4)
    _, expected = trained(data=(X[:10], Y[:10]))
    history = fit(compiled(network()), data, epochs=2)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_train_on_batch_takes_the_steps_of_fit(mode):
    reference, _ = trained(mode, training.plain(solver="cg"), epochs=1)
    model = compiled(network(), training.plain(solver="cg"), mode=mode, metrics=["accuracy"])
    for start in (0, 4, 8):
        logs = model.train_on_batch(X[start : start + 4], Y[start : start + 4], return_dict=True)
    for mine, theirs in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert {"loss", "accuracy", "kl", "damping"} <= set(logs)


def test_metrics_are_those_of_stock_keras():
    options = {"metrics": ["accuracy", sparse()], "weighted_metrics": ["accuracy"]}
    data = {"sample_weight": _weights(), "validation_data": (X, Y, _weights())}
    histories = []
    for kind, optimizer in (
        (ng.NaturalGradientSequential, training.plain(0.0)),
        (keras.Sequential, keras.optimizers.SGD(0.0)),
    ):
        histories.append(fit(compiled(network(kind=kind), optimizer, **options), X, Y, **data))
    assert len(histories[1]) == 8
    for name, values in histories[1].items():
        np.testing.assert_allclose(histories[0][name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("solver", ["auto", "gram", "svd"])
def test_xla_is_switched_off_for_solvers_that_need_eigenvalues(solver):
    model = network()
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        compiled(model, training.plain(solver=solver), mode="xla")
    assert model.jit_compile is False
    fit(model, X, Y)


@pytest.mark.parametrize(
    ("optimizer", "expected"), [(ng.NaturalGradient, False), (lambda: training.plain(solver="cg"), True)]
)
def test_automatic_xla_looks_at_the_solver(optimizer, expected, monkeypatch):
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *args: [gpu])
    model = network()
    for candidate, supported in ((optimizer(), expected), ("adam", True)):
        model.compile(candidate, sparse())
        assert model._resolve_auto_jit_compile() is supported


@pytest.mark.parametrize("mode", MODES)
def test_the_log_tells_damping_iterations_and_kl(mode):
    x, y = batch(dtype="float32")
    model = compiled(network(), training.plain(0.01, damping=0.05, solver=cg()), mode=mode)
    before = ng.distributions.CategoricalPd(model.predict(x, verbose=0))
    logs = model.train_on_batch(x, y, return_dict=True)
    measured = float(tf.reduce_mean(before.kl(ng.distributions.CategoricalPd(model.predict(x, verbose=0)))))
    assert logs["damping"] == np.float32(0.05) and logs["iterations"] > 1
    assert measured > 1e-6
    np.testing.assert_allclose(logs["kl"], measured, rtol=0.1)


def test_the_predicted_kl_is_that_of_the_step_to_leading_order(double):
    x, y = batch(dtype="float64")
    ratios = []
    for rate in (1e-2, 1e-3):
        model = compiled(network(), training.plain(rate, damping=0.05))
        before = ng.distributions.CategoricalPd(model(x))
        logs = model.train_on_batch(x, y, return_dict=True)
        measured = tf.reduce_mean(before.kl(ng.distributions.CategoricalPd(model(x))))
        ratios.append(logs["kl"] / float(measured) - 1.0)
    assert abs(ratios[1]) < 2e-3
    assert abs(ratios[1]) < 0.2 * abs(ratios[0])


def test_a_step_too_far_is_logged_with_what_to_change(caplog, monkeypatch):
    monkeypatch.setattr(ng._checks, "_logged", set())
    trained(optimizer=training.plain(0.1, damping=0.1, solver="gram"))
    assert not caplog.records
    trained(optimizer=training.plain(20.0, damping=1e-3, solver="gram"))
    (record,) = caplog.records
    assert "nats" in record.message and "Raise `damping`, or set `max_kl`" in record.message


def test_one_trace_per_shape():
    counting = training.Counting()
    model = compiled(network([counting, *training.mlp()]), training.plain(solver="cg"))
    built = counting.calls
    fit(model, X, Y, epochs=2)
    assert counting.calls == built + 1
    fit(model, X[:10], Y[:10], epochs=2)
    traced = counting.calls
    assert traced <= built + 2
    fit(model, X[:9], Y[:9], epochs=2)
    fit(model, X, Y, epochs=2)
    assert counting.calls == traced


def test_memory_stays_flat_over_many_steps():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("the memory of a process is read from /proc")
    model = compiled(network())
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat()
    fit(model, data, steps_per_epoch=200)
    before = resident()
    fit(model, data, steps_per_epoch=400)
    assert resident() - before < 16.0


def _bad_batch():
    x = X.copy()
    x[1, 2] = np.nan
    return x


def _normalised():
    return [layers.BatchNormalization(), layers.Dense(3)]


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_that_is_not_finite_raises_and_changes_nothing(mode):
    model = compiled(network(_normalised), training.plain(solver="cg"), mode=mode)
    fit(model, X, Y)
    before = model.get_weights()
    with pytest.raises(ValueError, match="on_nonfinite='skip'"):
        fit(model, _bad_batch(), Y, batch_size=12)
    assert training.same_weights(before, model.get_weights())
    assert np.isfinite(fit(model, X, Y)["loss"]).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_that_is_not_finite_is_skipped_and_counted(mode):
    model = compiled(network(_normalised), training.plain(solver="cg", on_nonfinite="skip"), mode=mode)
    reference = compiled(network(_normalised), training.plain(solver="cg"), mode=mode)
    history = fit(model, _bad_batch(), Y)
    fit(reference, X[4:], Y[4:])
    assert history["skipped_steps"] == [1] and int(model.optimizer.skipped_steps) == 1
    assert np.isfinite(history["loss"] + history["kl"]).all()
    for mine, theirs in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_an_overflow_inside_the_network_is_never_applied(mode, on_nonfinite):
    def stack():
        return [layers.Dense(4, activation="exponential"), layers.BatchNormalization(), layers.Dense(3)]

    model = compiled(network(stack), training.plain(solver="cg", on_nonfinite=on_nonfinite), mode=mode)
    before = model.get_weights()
    if on_nonfinite == "raise":
        with pytest.raises(ValueError, match="is not finite"):
            fit(model, 1e3 * X, Y, batch_size=12)
    else:
        assert fit(model, 1e3 * X, Y, batch_size=12)["skipped_steps"] == [1]
    assert training.same_weights(before, model.get_weights())


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_labels_out_of_range_are_refused(mode, on_nonfinite):
    model = compiled(network(), training.plain(on_nonfinite=on_nonfinite), mode=mode)
    before = model.get_weights()
    with pytest.raises(ValueError, match="class indices 0 to 2"):
        fit(model, X, Y + 1)
    assert training.same_weights(before, model.get_weights())


def test_a_stock_model_is_told_what_to_do():
    model = compiled(network(kind=keras.Sequential))
    before = model.get_weights()
    with pytest.raises(ValueError, match="natural_gradient_model"):
        fit(model, X, Y)
    assert training.same_weights(before, model.get_weights())


class OwnLoss(training.Subclassed):
    def compute_loss(self, *args, **kwargs):
        return 2.0 * super().compute_loss(*args, **kwargs)


class AddedLoss(training.Subclassed):
    def call(self, x, training=False):
        self.add_loss(keras.ops.mean(x**2))
        return super().call(x, training=training)


def _two_outputs(named=False):
    inputs = keras.Input((4,))
    outputs = [layers.Dense(3, name="a")(inputs), layers.Dense(3, name="b")(inputs)]
    return ng.NaturalGradientModel(inputs, dict(zip("ab", outputs, strict=True)) if named else outputs)


def _with_activity():
    return network([layers.Dense(5, activity_regularizer="l2"), layers.Dense(3)])


def _all_frozen():
    model = network()
    model.trainable = False
    return model


# Model, options of `compile`, labels, the class of the error and what its message says.
REFUSED = {
    "two outputs": (_two_outputs, {}, [Y, Y], TypeError, "one output tensor. For several outputs give one loss each"),
    "loss weights": (network, {"loss_weights": 2.0}, Y, ValueError, "Scale `damping` and `learning_rate`"),
    "unknown loss": (network, {"loss": "mae"}, ONE_HOT, ValueError, "write a `tf_natgrad.distributions.Distribution`"),
    "function as loss": (network, {"loss": lambda a, b: b}, ONE_HOT, ValueError, "write a `tf_natgrad.distrib"),
    "ignored class": (
        network,
        {"loss": losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)},
        Y,
        ValueError,
        "Use a `sample_weight` of zero",
    ),
    "own compute_loss": (OwnLoss, {}, Y, ValueError, "Write a `tf_natgrad.distributions.Distribution`"),
    "add_loss": (AddedLoss, {}, Y, ValueError, "Move the penalty to `kernel_regularizer`"),
    "activity regulariser": (_with_activity, {}, Y, ValueError, "Move the penalty to `kernel_regularizer`"),
    "no labels": (network, {}, None, ValueError, "Pass them to `fit`"),
    "one-hot labels": (network, {}, ONE_HOT, ValueError, "use `CategoricalCrossentropy`"),
    "nothing to train": (_all_frozen, {}, Y, ValueError, "unfreeze at least one layer"),
}


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_to_do_and_changes_nothing(name, mode):
    make, options, y, error, text = REFUSED[name]
    model = make()
    loss = options.get("loss") or sparse()
    compiled(model, loss=loss, mode=mode, **{k: v for k, v in options.items() if k != "loss"})
    model(X[:1])
    before = model.get_weights()
    with pytest.raises(error, match=text.replace("(", r"\(")):
        fit(model, X, y, batch_size=12)
    assert training.same_weights(before, model.get_weights())


def test_what_cannot_be_wrapped_is_refused():
    class Plain(keras.Model):
        pass

    with pytest.raises(ValueError, match=r"class Plain\(ng.NaturalGradientMixin, keras.Model\)"):
        ng.natural_gradient_model(Plain())
    with pytest.raises(ValueError, match=r"Begin it with `keras\.Input"):
        ng.natural_gradient_model(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(TypeError, match=r"keras\.Model"):
        ng.natural_gradient_model("mlp")
    model = network()
    assert ng.natural_gradient_model(model) is model


@pytest.mark.parametrize("mode", ["graph"])
def test_float64_models_train_in_float64(mode):
    with cases.precision("float64"):
        data = batch(dtype="float64")
        model, history = trained(mode, training.plain(0.5, solver="cg"), data=data, epochs=3)
        assert {v.dtype for v in model.trainable_variables} == {"float64"}
        assert model.optimizer.damping.dtype == "float64"
        assert history["loss"][-1] < history["loss"][0]
    assert keras.config.floatx() == "float32"


@pytest.mark.parametrize("fisher", ["exact", "kfac"])
def test_layers_unfrozen_under_the_same_optimizer_are_not_left_untrained(fisher):
    model, optimizer = training.network(), ng.NaturalGradient(fisher=fisher)
    model.layers[0].trainable = False
    training.compiled(model, optimizer)
    x, y = training.batch()
    training.fit(model, x, y)
    model.layers[0].trainable = True
    training.compiled(model, optimizer)
    with pytest.raises(ValueError, match=r"`optimizer`: received one that was built without .*kernel.*new optimizer"):
        training.fit(model, x, y)
