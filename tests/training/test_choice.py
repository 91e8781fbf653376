"""`fisher="auto"`: what it becomes at the first batch, how that is saved, and what is shown of a step."""

import csv
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import callbacks, layers
from training import batch, compiled, fit, network, plain, sparse

import tf_natgrad as ng

FIXED = "kfac, fixed"


def mixing():
    """A model without a Gram matrix, which goes to K-FAC."""
    return network(lambda: [layers.Dense(8, "relu"), layers.BatchNormalization(), layers.Dense(3)])


def data(examples=32):
    return batch(examples)


def weights_of(model):
    return [w.copy() for w in model.get_weights()]


def test_a_small_model_takes_the_exact_step():
    model = compiled(network(), ng.NaturalGradient())
    assert model.optimizer.is_undecided and model.optimizer.get_config()["fisher"] == "auto"
    fit(model, *data())
    assert not model.optimizer.is_undecided and model.optimizer.chosen == model.optimizer.fisher == "exact"
    assert model.train_function.planned.why.startswith("exact")


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_the_step_is_that_of_the_preconditioner_when_it_is_chosen(mode):
    found = {}
    for name, optimizer in (
        ("auto", ng.NaturalGradient()),
        (FIXED, ng.NaturalGradient(fisher=ng.KFAC(recipe="fixed"))),
    ):
        model = compiled(mixing(), optimizer, mode=mode)
        losses = fit(model, *data(), epochs=4)["loss"]
        found[name] = losses, weights_of(model)
        numbers = {key: value for key, value in optimizer.get_config().items() if key not in ("fisher", "name")}
        found[name] += (numbers,)
    assert found["auto"][0] == found[FIXED][0]
    assert all(np.array_equal(a, b) for a, b in zip(found["auto"][1], found[FIXED][1], strict=True))
    assert found["auto"][2] == found[FIXED][2]


@pytest.mark.parametrize(
    "options",
    [
        {"damping": 0.1},
        {"learning_rate": 0.5},
        {"max_kl": 0.01},
        {"line_search": None},
        {"warm_start": 0.5},
        {"use_ema": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_numbers_that_belong_to_the_exact_step_keep_it(options):
    model = compiled(mixing(), ng.NaturalGradient(**options))
    fit(model, *data())
    assert model.optimizer.fisher == "exact" and model.optimizer.preconditioner is None


def test_a_number_that_was_set_before_the_first_batch_counts_as_given():
    model = compiled(mixing(), ng.NaturalGradient())
    model.optimizer.learning_rate = 0.25
    fit(model, *data())
    assert model.optimizer.fisher == "exact" and float(model.optimizer.learning_rate) == 0.25


def test_a_saved_model_goes_on_as_if_it_had_not_been_saved(tmp_path):
    runs = []
    for saved in (False, True):
        model = compiled(mixing(), ng.NaturalGradient())
        fit(model, *data(), epochs=2)
        if saved:
            model.save(tmp_path / "model.keras")
            model = keras.models.load_model(tmp_path / "model.keras")
            assert model.optimizer.chosen == FIXED
            assert model.optimizer.get_config()["fisher"] == {"name": "auto", "chosen": FIXED}
        runs.append((fit(model, *data(), epochs=2)["loss"], weights_of(model)))
    assert runs[0][0] == runs[1][0]
    assert all(np.array_equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


class _Interrupt(callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stack", [mixing, network], ids=["kfac", "exact"])
def test_an_interrupted_run_goes_on_with_a_new_optimizer(stack, tmp_path):
    whole = fit(compiled(stack(), ng.NaturalGradient()), *data(), epochs=4)["loss"]
    with pytest.raises(KeyboardInterrupt):
        again = [callbacks.BackupAndRestore(tmp_path), _Interrupt()]
        fit(compiled(stack(), ng.NaturalGradient()), *data(), epochs=4, callbacks=again)
    # The new optimizer does not know yet what the old one chose.
    resumed = fit(compiled(stack(), ng.NaturalGradient()), *data(), epochs=4, callbacks=again[:1])["loss"]
    assert resumed == whole[2:]


def test_what_a_checkpoint_says_is_what_is_chosen(tmp_path):
    model = compiled(mixing(), ng.NaturalGradient())
    fit(model, *data())
    model.save_weights(tmp_path / "state.weights.h5")
    other = compiled(mixing(), ng.NaturalGradient())
    other.load_weights(tmp_path / "state.weights.h5")
    assert other.optimizer.choices == (FIXED,)


@pytest.mark.parametrize(
    ("fisher", "text"),
    [({"name": "auto", "chosen": "nonsense"}, "fisher\\['chosen'\\]"), ({"name": "auto"}, "fisher\\['chosen'\\]")],
)
def test_an_unknown_choice_is_refused(fisher, text):
    with pytest.raises(ValueError, match=text):
        ng.NaturalGradient(fisher=fisher)


def test_there_is_one_choice():
    model = compiled(network(), ng.NaturalGradient())
    fit(model, *data())
    with pytest.raises(ValueError, match="`chosen`: received mc; expected no choice"):
        model.optimizer.settle("mc")


class _Slope(ng.NaturalGradientMixin, keras.Model):
    """A model of the derivative of a network, beside layers that mix examples: neither form sees all of it."""

    def __init__(self):
        super().__init__(name="slope")
        self.first, self.mixed, self.last = layers.Dense(6, "tanh"), layers.BatchNormalization(), layers.Dense(3)

    def call(self, x, training=None):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(self.first(x))
        return self.last(self.mixed(tape.gradient(y, x), training=training))


def test_a_model_that_kfac_would_refuse_gets_the_exact_step():
    keras.utils.set_random_seed(0)
    model = _Slope()
    compiled(model, ng.NaturalGradient())
    losses = fit(model, *data(), epochs=2)["loss"]
    assert model.optimizer.chosen == "exact"
    assert type(model.train_function.planned.algorithm).__name__ in ("ConjugateGradient", "SVDPseudoInverse")
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_the_choice_is_said_once(caplog):
    caplog.set_level(logging.WARNING, logger="tf_natgrad")
    shape = (7,)
    for _ in range(2):
        model = compiled(network([layers.Dense(11), layers.Dense(3)], shape), ng.NaturalGradient())
        fit(model, *batch(32, 7))
    said = [r.getMessage() for r in caplog.records if "other ways" in r.getMessage()]
    assert len(said) <= 1 and all("\n" not in line for line in said)


def test_the_budget_bounds_the_iterations():
    model = network(lambda: [layers.Dense(40, "relu"), layers.BatchNormalization(), layers.Dense(30), layers.Dense(3)])
    compiled(model, ng.NaturalGradient(damping=0.1, budget=40.0))
    fit(model, *data())
    planned = model.train_function.planned
    assert planned.algorithm.max_iterations >= 10 and "iterations" in planned.why


# What is shown.


def test_the_history_has_the_mean_of_each_epoch_and_the_logger_each_step(tmp_path):
    model = compiled(network(), ng.NaturalGradient())
    logger = ng.callbacks.StepLogger(tmp_path / "steps.csv")
    history = fit(model, *data(16), epochs=2, callbacks=[logger])
    with open(tmp_path / "steps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("kl", "actual_decrease", "damping"):
        steps = np.array([float(row[name]) for row in rows]).reshape(2, 4)
        assert np.std(steps) > 0
        np.testing.assert_allclose(history[name], steps.mean(1), rtol=1e-6)
    assert len(set(history)) == len(history) and "rank" in history


def test_the_progress_line_shows_three_numbers_beside_loss_and_metrics(capsys):
    model = compiled(network(), ng.NaturalGradient(), metrics=["accuracy"])
    model.fit(*data(), batch_size=16, verbose=2, validation_data=data())
    line = next(line for line in capsys.readouterr().out.splitlines() if "loss:" in line)
    shown = [part.split(":")[0] for part in line.split(" - ") if ":" in part]
    assert shown == ["accuracy", "loss", "val_accuracy", "val_loss", "damping", "kl"]


@pytest.mark.parametrize("given", [callbacks.ProgbarLogger(), [callbacks.ProgbarLogger()]], ids=["one", "list"])
def test_a_progress_line_of_ones_own_stays(given, capsys):
    model = compiled(network(), ng.NaturalGradient())
    model.fit(*data(), verbose=2, callbacks=given)
    assert "reduction_ratio" in capsys.readouterr().out


def test_with_another_optimizer_the_progress_line_is_keras_own(capsys):
    model = compiled(network(), "adam")
    model.fit(*data(), verbose=2)
    assert "kl:" not in capsys.readouterr().out


def test_sums_over_many_positions_raise_no_alarm():
    """In float32 what a depthwise convolution sums differs by 22 roundings of the Gram matrix's norm."""
    keras.utils.set_random_seed(0)
    stack = [layers.DepthwiseConv2D(3, activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(10)]
    model = ng.NaturalGradientSequential(
        [keras.Input((16, 16, 3)), layers.SeparableConv2D(16, 3, activation="relu"), *stack]
    )
    x = np.random.default_rng(0).normal(size=(256, 16, 16, 3)).astype("float32")
    y = np.random.default_rng(1).integers(0, 10, 256)
    compiled(model, ng.NaturalGradient(solver="gram", fisher="mc"), sparse())
    fit(model, x, y, batch_size=64, epochs=3)
    assert int(model.optimizer.iterations) + int(model.optimizer.rejected_steps) == 12


def test_plain_is_not_open():
    assert not plain(fisher="exact").is_undecided
