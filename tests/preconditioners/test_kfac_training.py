"""Training with Kronecker factors: all that `fit` does, saving and resuming, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import training
from keras import layers

import tf_natgrad as ng

RECIPES = ("quadratic", "fixed")


def _residual():
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    x = short = layers.BatchNormalization()(x)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(layers.ReLU()(x)))
    x = layers.Add()([x, short])
    return inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))


def _attention():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(8, 6, mask_zero=True)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
    return inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))


def _recurrent():
    inputs = keras.Input((4, 3))
    return inputs, layers.Dense(3)(layers.GRU(5)(inputs))


def _shared():
    inputs, dense = keras.Input((4,)), layers.Dense(4, "tanh")
    return inputs, layers.Dense(3)(dense(dense(inputs)))


def _decoder():
    inputs = keras.Input((6,))
    x = layers.Reshape((3, 3, 4))(layers.Dense(36, "tanh")(inputs))
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="tanh")(x)
    return inputs, layers.Dense(3)(layers.Flatten()(layers.SeparableConv2D(2, 3)(x)))


NETWORKS = {
    "residual": _residual,
    "decoder": _decoder,
    "attention": _attention,
    "recurrent": _recurrent,
    "shared": _shared,
}


def _data(inputs, size=22):
    rng = np.random.default_rng(0)
    shape = (size, *inputs.shape[1:])
    x = rng.integers(1, 8, shape) if inputs.dtype == "int32" else rng.normal(size=shape).astype("float32")
    if inputs.dtype == "int32":
        x[:, 3:] = 0
    return x, (np.abs(x).reshape(size, -1).sum(1) * 7).astype("int64") % 3


def _compiled(make=None, recipe="quadratic", seed=5, fisher="mc", **options):
    keras.utils.set_random_seed(seed)
    if make is None:
        inputs = keras.Input((4,))
        outputs = layers.Dense(3)(layers.Dense(5, "tanh")(inputs))
    else:
        inputs, outputs = make()
    model = ng.NaturalGradientModel(inputs, outputs)
    kfac = ng.KFAC(recipe, fisher=fisher, update_every=2, invert_every=3)
    compiling = {
        name: options.pop(name) for name in ("jit_compile", "run_eagerly", "steps_per_execution") if name in options
    }
    model.compile(ng.NaturalGradient(fisher=kfac, **options), training.sparse(), **compiling)
    return model, _data(inputs)


def _state(model):
    return [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_other_peoples_networks_learn(make, recipe):
    model, (x, y) = _compiled(make, recipe, **({"max_kl": 5e-3} if recipe == "fixed" else {}))
    # The quadratic recipe would fit the noise of a few examples. The last batch of the other one is smaller.
    size = 22 if recipe == "quadratic" else 12
    losses = model.fit(x, y, batch_size=size, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


# XLA draws other labels.
@pytest.mark.parametrize(("recipe", "fisher"), [("quadratic", "exact"), ("fixed", "empirical")])
def test_eager_graph_xla_and_several_steps_at_once_agree(recipe, fisher):
    runs = [{"run_eagerly": True}, {}, {"jit_compile": True}, {"steps_per_execution": 2}]
    weights = []
    for options in runs:
        model, (x, y) = _compiled(recipe=recipe, fisher=fisher, **options)
        model.fit(x[:16], y[:16], batch_size=4, epochs=2, shuffle=False, verbose=0)
        weights.append(training.flat(model.get_weights()))
    for other in weights[1:]:
        np.testing.assert_allclose(other, weights[0], rtol=0, atol=2e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model, (x, y) = _compiled()
    finally:
        keras.config.set_dtype_policy("float32")
    loss = model.fit(x, y, batch_size=8, epochs=6, verbose=0).history["loss"]
    assert loss[-1] < 0.8 * loss[0]
    natural = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    assert {v.dtype for v in natural.preconditioner.variables} == {"float32", "int32"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_saved_model_goes_on_with_the_same_numbers(recipe, tmp_path):
    model, (x, y) = _compiled(recipe=recipe)
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert loaded.optimizer.get_config()["damping"] == "auto"
    state = [v.numpy().tobytes() for v in model.optimizer.preconditioner.variables]
    assert state == [v.numpy().tobytes() for v in loaded.optimizer.preconditioner.variables]
    histories = [m.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history for m in (model, loaded)]
    assert histories[0] == histories[1]
    assert _state(model) == _state(loaded)


def test_an_interrupted_fit_is_resumed_bit_for_bit(tmp_path):
    def run(model, data, epochs, stop=None):
        class Stop(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == stop:
                    raise KeyboardInterrupt

        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        return model.fit(*data, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[backup, Stop()])

    whole, data = _compiled()
    whole.fit(*data, batch_size=8, epochs=4, shuffle=False, verbose=0)
    first, _ = _compiled()
    with pytest.raises(KeyboardInterrupt):
        run(first, data, 4, stop=2)
    second, _ = _compiled()
    run(second, data, 4)
    assert [w.tobytes() for w in second.get_weights()] == [w.tobytes() for w in whole.get_weights()]
    kept, expected = second.optimizer.preconditioner.variables, whole.optimizer.preconditioner.variables
    assert [v.numpy().tobytes() for v in kept] == [v.numpy().tobytes() for v in expected]


def test_a_checkpoint_without_factors_is_met_with_a_message():
    model, (x, y) = _compiled()
    model.compile(ng.NaturalGradient(), training.sparse())
    model.fit(x, y, verbose=0)
    other, _ = _compiled(seed=6)
    other.make_train_function()
    store = {str(k): v.numpy() for k, v in enumerate(model.optimizer.variables)}
    with pytest.warns(UserWarning, match="saved with another `fisher`"):
        other.optimizer.load_own_variables(store)


def test_a_batch_that_is_left_out_leaves_no_trace():
    model, (x, y) = _compiled(on_nonfinite="skip")
    model.fit(x[:16], y[:16], batch_size=8, verbose=0)
    before = _state(model)
    model.train_on_batch(np.full_like(x[:8], np.nan), y[:8])
    changed = [a != b for a, b in zip(before, _state(model), strict=True)]
    names = [v.name for v in (*model.variables, *model.optimizer.variables)]
    assert [name for name, c in zip(names, changed, strict=True) if c] == ["skipped_steps"]


def test_layers_that_are_frozen_and_unfrozen_keep_their_factors():
    model, (x, y) = _compiled()
    model.fit(x, y, batch_size=8, verbose=0)
    optimizer, first = model.optimizer, model.layers[1]
    kept = {v.path: v.numpy() for v in optimizer.preconditioner.variables}
    first.trainable = False
    model.compile(optimizer, training.sparse())
    model.fit(x, y, batch_size=8, verbose=0)
    now = {v.path: v.numpy() for v in optimizer.preconditioner.variables}
    assert set(now) == set(kept)
    same = {path for path in kept if np.array_equal(kept[path], now[path])}
    assert all((path in same) == (first.name in path) for path in kept)


def test_beside_other_optimizers_and_with_weights_of_examples():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden, adam = layers.Dense(5, "tanh", name="hidden"), keras.optimizers.Adam(0.01)
    model = ng.NaturalGradientModel(inputs, layers.Dense(3, name="head")(hidden(inputs)))
    x, y = _data(inputs)
    natural = ng.NaturalGradient(fisher="kfac", weight_decay=0.01)
    both = keras.optimizers.MultiOptimizer(lambda v: natural if "head" in v.path else adam)
    model.compile(both, training.sparse())
    losses = model.fit(x, y, sample_weight=np.linspace(0.0, 2.0, len(x)), batch_size=8, epochs=5, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0]
    assert len(natural.preconditioner.values().averages) == 1


def test_ekfac_trains_and_is_saved(tmp_path):
    inputs, outputs = _shared()
    model, (x, y) = ng.NaturalGradientModel(inputs, outputs), _data(inputs)
    model.compile(ng.NaturalGradient(fisher=ng.EKFAC(update_every=2, invert_every=4)), training.sparse())
    losses = model.fit(x, y, batch_size=22, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    histories = [m.fit(x, y, batch_size=22, epochs=3, shuffle=False, verbose=0).history for m in (model, loaded)]
    assert histories[0] == histories[1]


def test_several_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = layers.Dense(6, "tanh")(inputs)
    model = ng.NaturalGradientModel(inputs, [layers.Dense(3)(hidden), layers.Dense(2)(hidden)])
    x, y = _data(inputs)
    model.compile(ng.NaturalGradient(fisher="kfac"), [training.sparse(), "mse"])
    losses = model.fit(x, [y, x[:, :2]], batch_size=8, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]


class _Force(keras.layers.Layer):
    """A gradient inside `call`."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.square(self.dense(x)))
        return self.dense(x) + tape.gradient(value, x)[:, :3]


def test_weights_that_act_otherwise_than_by_their_calls_are_refused():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = ng.NaturalGradientModel(inputs, _Force()(inputs))
    model.compile(ng.NaturalGradient(fisher="kfac"), training.sparse())
    x, y = _data(inputs)
    before = [w.tobytes() for w in model.get_weights()]
    with pytest.raises(ValueError, match="Kronecker-factored preconditioner"):
        model.fit(x, y, verbose=0)
    assert [w.tobytes() for w in model.get_weights()] == before


def test_the_expectation_over_labels_is_refused_where_examples_are_mixed():
    inputs, outputs = _residual()
    model = ng.NaturalGradientModel(inputs, outputs)
    model.compile(ng.NaturalGradient(fisher=ng.KFAC(fisher="exact")), training.sparse())
    with pytest.raises(ValueError, match="mixes the examples"):
        model.fit(*_data(inputs), verbose=0)


@pytest.mark.parametrize(
    "options",
    [{"solver": "cg"}, {"warm_start": 0.5}, {"micro_batch_size": 4}, {"damping": 0.0}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_system_of_one_batch_are_refused(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`.*KFAC"):
        ng.NaturalGradient(fisher="kfac", **options)


def test_what_is_given_is_kept_and_the_rest_is_the_recipes():
    optimizer = ng.NaturalGradient(fisher=ng.KFAC("fixed"), damping=0.03)
    assert float(optimizer.learning_rate) == pytest.approx(0.1) and float(optimizer.momentum) == pytest.approx(0.9)
    config = optimizer.get_config()
    given = {name: config[name] for name in ("learning_rate", "momentum", "max_kl", "line_search")}
    assert set(given.values()) == {"auto"} and config["damping"] == pytest.approx(0.03)
    optimizer.learning_rate = 0.05
    assert optimizer.get_config()["learning_rate"] == pytest.approx(0.05)
    optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    assert optimizer.get_config()["learning_rate"]["config"]["initial_learning_rate"] == 0.5
    assert ng.NaturalGradient.from_config(config).get_config() == config
    assert ng.NaturalGradient().get_config()["max_kl"] == "auto"
    # Of a preconditioner a new one is made, so that two optimizers never share a state.
    kfac = ng.KFAC("fixed")
    first, second = (ng.NaturalGradient(fisher=kfac).fisher for _ in range(2))
    assert first is not kfac and first is not second and first.get_config() == kfac.get_config()


def test_many_steps_trace_once_and_keep_their_memory():
    model, (x, y) = _compiled(recipe="fixed")
    model.make_train_function()
    traces = []
    step = model.train_step
    model.train_step = lambda data: traces.append(1) or step(data)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8, drop_remainder=True).repeat()
    model.fit(data, steps_per_epoch=250, epochs=4, verbose=0)
    assert len(traces) <= 1 and int(model.optimizer.iterations) == 1000
