"""Keras's callbacks, and saving: what is interrupted goes on with the same numbers."""

import csv
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import scripts
import training
from keras import callbacks, layers
from training import batch, compiled, fit, network, trained

import tf_natgrad as ng

X, Y = batch()


def _same(model, other):
    return training.same_weights(model.get_weights(), other.get_weights())


class Interrupt(callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


class _Damping(callbacks.Callback):
    """A schedule of the damping, written as a user would."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.damping = 0.5 * 0.5**epoch


def _schedule(epoch):
    return 0.8 * 0.5**epoch


@pytest.mark.parametrize("mode", training.MODES)
def test_learning_rate_and_damping_schedules(mode):
    options = [callbacks.LearningRateScheduler(_schedule), _Damping()]
    optimizer = training.plain(solver=training.cg())
    model, history = trained(mode, optimizer, epochs=3, callbacks=options)
    np.testing.assert_allclose(history["learning_rate"], [0.8, 0.4, 0.2])
    np.testing.assert_allclose(history["damping"], [0.5, 0.25, 0.125])
    by_hand = compiled(network(), training.plain(solver=training.cg()), mode=mode)
    for epoch in range(3):
        by_hand.optimizer.learning_rate, by_hand.optimizer.damping = _schedule(epoch), 0.5 * 0.5**epoch
        fit(by_hand, X, Y)
    assert _same(model, by_hand)


def test_reduce_on_plateau():
    reduce = callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=10.0)
    model, history = trained(epochs=3, callbacks=[reduce])
    assert float(model.optimizer.learning_rate) < history["learning_rate"][0]


def test_early_stopping_restores_the_best_weights():
    class Record(callbacks.Callback):
        weights = ()

        def on_epoch_end(self, epoch, logs=None):
            self.weights = (*self.weights, self.model.get_weights())

    record = Record()
    stopping = callbacks.EarlyStopping(monitor="val_loss", patience=2, restore_best_weights=True)
    model, history = trained(
        optimizer=training.plain(1.0, damping=1e-3),
        epochs=30,
        callbacks=[record, stopping],
        validation_data=(X, np.roll(Y, 1)),
    )
    losses = history["val_loss"]
    assert len(losses) < 30
    assert training.same_weights(model.get_weights(), record.weights[int(np.argmin(losses))])
    assert not training.same_weights(model.get_weights(), record.weights[-1])


def test_checkpoints_of_the_whole_model_go_on_with_the_same_numbers(tmp_path):
    path = str(tmp_path / "{epoch}.keras")
    _, history = trained(epochs=4, callbacks=[callbacks.ModelCheckpoint(path)])
    loaded = keras.saving.load_model(path.format(epoch=2))
    assert type(loaded) is ng.NaturalGradientSequential
    assert type(loaded.optimizer) is ng.NaturalGradient and int(loaded.optimizer.iterations) == 6
    assert fit(loaded, X, Y, epochs=4, initial_epoch=2)["loss"] == history["loss"][2:]


def test_checkpoints_of_the_best_weights(tmp_path):
    path = str(tmp_path / "best.weights.h5")
    best = callbacks.ModelCheckpoint(path, save_weights_only=True, save_best_only=True, monitor="loss")
    model, history = trained(epochs=3, callbacks=[best])
    assert np.argmin(history["loss"]) == 2
    other = compiled(network(seed=9))
    assert not _same(other, model)
    other.load_weights(path)
    assert _same(other, model)


@pytest.mark.parametrize("optimizer", [training.plain, lambda: training.plain(use_ema=True, clipnorm=1.0)])
def test_backup_and_restore_after_an_interruption(tmp_path, optimizer):
    expected, history = trained(optimizer=optimizer(), epochs=4)
    backup = str(tmp_path / "backup")
    model = compiled(network(), optimizer())
    with pytest.raises(KeyboardInterrupt):
        fit(model, X, Y, epochs=4, callbacks=[callbacks.BackupAndRestore(backup), Interrupt(2)])
    again = compiled(network(seed=7), optimizer())
    resumed = fit(again, X, Y, epochs=4, callbacks=[callbacks.BackupAndRestore(backup)])
    assert resumed["loss"] == history["loss"][2:]
    assert _same(again, expected)


def test_csv_logger(tmp_path):
    path = tmp_path / "log.csv"
    _, history = trained(epochs=3, callbacks=[callbacks.CSVLogger(str(path))])
    rows = list(csv.DictReader(path.open()))
    assert {"epoch", "damping", "kl", "loss", "rank"} <= set(rows[0])
    for name in ("loss", "kl", "damping", "rank"):
        np.testing.assert_allclose([float(row[name]) for row in rows], history[name])


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    trained(epochs=2, callbacks=[callbacks.TensorBoard(str(tmp_path), histogram_freq=1)])
    assert list(tmp_path.rglob("events*"))


def test_the_progress_bar_is_one_readable_line_per_epoch(capsys):
    compiled(network()).fit(X, Y, batch_size=4, epochs=2, verbose=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(lines) == 2
    for word in ("damping: ", "kl: ", "loss: "):
        assert all(word in line for line in lines)
    assert max(map(len, lines)) < 100


RESUME = """
import json, sys
import keras, numpy as np
import tf_natgrad as ng
import scripts
import training
from test_callbacks import _Damping, _schedule, X, Y
model = keras.saving.load_model(sys.argv[1])
options = [keras.callbacks.LearningRateScheduler(_schedule), _Damping()]
history = training.fit(model, X, Y, epochs=4, initial_epoch=2, callbacks=options)
print("LOSSES", json.dumps({k: history[k] for k in ("loss", "kl", "damping")}), type(model).__name__)
"""


def test_a_model_loaded_in_a_fresh_process_goes_on_with_the_same_numbers(tmp_path):
    def options(epochs):
        schedules = [callbacks.LearningRateScheduler(_schedule), _Damping()]
        return {"epochs": epochs, "callbacks": schedules}

    inputs = keras.Input((4,))

    def make():
        keras.utils.set_random_seed(1)
        hidden = layers.BatchNormalization()(layers.Dense(5, activation="tanh")(inputs))
        return ng.NaturalGradientModel(inputs, layers.Dense(3)(hidden))

    expected = fit(compiled(make(), training.plain(clipnorm=2.0)), X, Y, **options(4))
    model = compiled(make(), training.plain(clipnorm=2.0))
    fit(model, X, Y, **options(2))
    path = str(tmp_path / "model.keras")
    model.save(path)
    environment = scripts.environment(os.path.dirname(__file__))
    run = subprocess.run([sys.executable, "-c", RESUME, path], capture_output=True, text=True, env=environment)
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("LOSSES")] or [run.stderr[-2000:]]
    assert line.endswith("NaturalGradientModel"), line
    losses = json.loads(line[len("LOSSES ") :].rsplit(" ", 1)[0])
    for name in ("loss", "kl", "damping"):
        np.testing.assert_allclose(losses[name], expected[name][2:], rtol=1e-6)


def _own_distribution():
    return compiled(network(), loss=ng.distributions.NegativeLogLikelihood(training.PoissonPd))


def _of_gaussians():
    keras.utils.set_random_seed(1)
    model = ng.NaturalGradientSequential([keras.Input((4,)), layers.Dense(6, kernel_initializer="zeros")])
    return compiled(
        model,
        training.plain(0.1, damping=1.0),
        loss=ng.distributions.NegativeLogLikelihood(ng.distributions.DiagGaussianPd),
    )


@pytest.mark.parametrize("make", [_own_distribution, _of_gaussians])
def test_a_loss_of_ones_own_is_saved_with_the_model(make, tmp_path):
    counts = np.random.default_rng(0).poisson(2.0, (12, 3)).astype("float32")
    model = make()
    history = fit(model, X, counts, epochs=4)
    assert history["loss"][-1] < history["loss"][0]
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.loss.distribution is model.loss.distribution
    assert fit(loaded, X, counts, epochs=2)["loss"] == fit(model, X, counts, epochs=2)["loss"]


def test_a_distribution_that_is_not_imported_is_asked_for():
    config = ng.distributions.NegativeLogLikelihood(training.PoissonPd).get_config() | {"distribution": "NowherePd"}
    with pytest.raises(ValueError, match="Import the module that defines it"):
        ng.distributions.NegativeLogLikelihood.from_config(config)
    with keras.saving.custom_object_scope({"NowherePd": training.PoissonPd}):
        loss = ng.distributions.NegativeLogLikelihood.from_config(config)
    assert loss.distribution is training.PoissonPd


# No dropout among these: Keras does not save its seeds.
def _subclassed():
    keras.utils.set_random_seed(1)
    return training.Subclassed(dropout=0.0)


def _nested():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5, activation="tanh"), layers.LayerNormalization()])
    inputs = keras.Input((4,))
    return ng.NaturalGradientModel(inputs, layers.Dense(3)(inner(inputs)))


def _mixed():
    stack = [layers.Dense(5, activation="tanh", dtype="mixed_float16"), layers.Dense(3, dtype="mixed_float16")]
    return network(stack)


@pytest.mark.parametrize(
    ("make", "optimizer"),
    [
        (_subclassed, ng.NaturalGradient),
        (_nested, lambda: training.plain(solver="cg", on_nonfinite="skip")),
        (_mixed, lambda: keras.optimizers.LossScaleOptimizer(training.plain(0.5))),
        (
            network,
            lambda: keras.optimizers.MultiOptimizer(
                keras.optimizers.OptimizerMap(training.plain(0.5), {".*bias": keras.optimizers.Adam()})
            ),
        ),
    ],
    ids=["subclassed", "nested", "loss_scale", "several_optimizers"],
)
def test_saved_and_loaded_models_go_on_with_the_same_numbers(make, optimizer, tmp_path):
    model = compiled(make(), optimizer())
    fit(model, X, Y, epochs=2)
    path = str(tmp_path / "model.keras")
    model.save(path)
    expected = fit(model, X, Y, epochs=2)
    assert fit(keras.saving.load_model(path), X, Y, epochs=2) == expected
