"""The record of training: what it holds, and that nothing ends training or leaves half a line."""

import csv
import logging
import os
import pathlib
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
import training
from training import batch, compiled, fit, network

import tf_natgrad as ng

StepLogger = ng.callbacks.StepLogger
X, Y = batch()


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def whole(path):
    """The content, of which every line is finished and has as many fields as the first."""
    text = pathlib.Path(path).read_text()
    assert text.endswith("\n") and len({line.count(",") for line in text.splitlines()}) == 1
    return text


@pytest.mark.parametrize(
    "optimizer",
    [
        ng.NaturalGradient,
        lambda: ng.NaturalGradient(keras.optimizers.schedules.ExponentialDecay(0.7, 1, 0.5), solver="cg"),
        lambda: keras.optimizers.LossScaleOptimizer(training.plain(on_nonfinite="skip")),
        keras.optimizers.Adam,
    ],
    ids=["default", "schedule", "wrapped", "adam"],
)
def test_the_file_holds_what_train_on_batch_returns(tmp_path, optimizer):
    path = tmp_path / "steps.csv"
    fit(compiled(network(), optimizer()), X, Y, epochs=2, callbacks=[StepLogger(path)])
    reference = compiled(network(), optimizer())
    losses = []
    for number, row in enumerate(rows(path)):
        part = slice(4 * (number % 3), 4 * (number % 3) + 4)
        rate = float(reference.optimizer.learning_rate)
        logs = reference.train_on_batch(X[part], Y[part], return_dict=True)
        expected = {name: float(value) for name, value in logs.items()}
        expected |= {"epoch": number // 3, "step": number + 1, "learning_rate": rate}
        assert float(row.pop("seconds")) > 0.0
        # That of the log is the mean over the epoch so far.
        losses = [*(losses if number % 3 else []), expected.pop("loss")]
        assert float(row.pop("loss")) == pytest.approx(np.mean(losses), rel=1e-6)
        assert {name: float(value) for name, value in row.items()} == expected
    assert number == 5
    whole(path)


def test_the_columns_of_the_default_optimizer(tmp_path):
    path = tmp_path / "steps.csv"
    fit(compiled(network(), ng.NaturalGradient()), X, Y, callbacks=[StepLogger(path)])
    assert whole(path).splitlines()[0] == (
        "epoch,step,loss,learning_rate,damping,predicted_decrease,actual_decrease,reduction_ratio,kl,step_scale,rank,"
        "rejected_steps,seconds"
    )


def test_one_readable_line_per_step_goes_to_the_logger(caplog):
    with caplog.at_level(logging.INFO, "tf_natgrad"):
        fit(compiled(network(), ng.NaturalGradient()), X, Y, epochs=2, callbacks=[StepLogger()])
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(lines) == 6
    assert lines[4].startswith("epoch 1, step 5, loss ") and ", damping 0." in lines[4] and ", rank " in lines[4]
    assert max(map(len, lines)) < 300


def test_several_steps_per_execution_and_every(tmp_path):
    model = compiled(network(), ng.NaturalGradient(), steps_per_execution=2)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)
    loggers = [StepLogger(tmp_path / f"{every}.csv", every) for every in (1, 4)]
    model.fit(data, epochs=2, verbose=0, callbacks=loggers)
    steps = [[row["step"] for row in rows(logger.path)] for logger in loggers]
    assert steps == [["2", "4", "6", "8", "10", "12"], ["4", "8", "12"]]
    reference = compiled(network(), ng.NaturalGradient())
    for part in range(2):
        logs = reference.train_on_batch(X[2 * part : 2 * part + 2], Y[2 * part : 2 * part + 2], return_dict=True)
    assert float(rows(loggers[0].path)[0]["kl"]) == pytest.approx(logs["kl"], rel=1e-4)


def test_the_record_goes_on_after_an_unfinished_line(tmp_path):
    path = tmp_path / "steps.csv"
    fit(compiled(network(), ng.NaturalGradient()), X, Y, callbacks=[StepLogger(path)])
    first = whole(path)
    path.write_text(first + "0,4,0.1234")
    # Fewer columns: those of the file stay.
    fit(compiled(network(), "sgd"), X, Y, callbacks=[StepLogger(path, append=True)])
    assert whole(path).startswith(first)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3"] * 2
    assert rows(path)[-1]["damping"] == "" and float(rows(path)[-1]["loss"]) > 0.0


@pytest.mark.parametrize("content", ["", "epoch,st"])
def test_appending_to_a_file_without_a_whole_line_begins_it(tmp_path, content):
    path = tmp_path / "steps.csv"
    path.write_text(content)
    fit(compiled(network(), "sgd"), X, Y, callbacks=[StepLogger(path, append=True)])
    assert whole(path).startswith("epoch,step,loss,learning_rate,seconds\n0,1,")


def test_the_same_object_goes_on_and_another_overwrites(tmp_path):
    path = tmp_path / "steps.csv"
    model, logger = compiled(network(), "sgd"), StepLogger(path)
    for expected in (3, 6):
        fit(model, X, Y, callbacks=[logger])
        assert len(rows(path)) == expected
    fit(model, X, Y, callbacks=[StepLogger(path)])
    assert [row["step"] for row in rows(path)] == ["7", "8", "9"] and whole(path)


def test_each_line_is_on_disk_when_the_step_is_over(tmp_path):
    path, seen = tmp_path / "steps.csv", []
    look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: seen.append(whole(path)))
    fit(compiled(network(), "sgd"), X, Y, callbacks=[StepLogger(path), look])
    assert [len(text.splitlines()) for text in seen] == [2, 3, 4]


def test_a_file_of_another_kind_is_refused_and_kept(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("name,value\na,1\n")
    with pytest.raises(ValueError, match=r"`path`: .*other.csv.*append=False"):
        fit(compiled(network(), "sgd"), X, Y, callbacks=[StepLogger(path, append=True)])
    assert path.read_text() == "name,value\na,1\n"


@pytest.mark.parametrize(("options", "error"), [({"every": 0}, ValueError), ({"every": 1.5}, TypeError)])
def test_arguments_are_checked(options, error):
    with pytest.raises(error, match="`every`"):
        StepLogger(**options)


def _warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "tf_natgrad" and r.levelno == logging.WARNING]


def _same_as_without(model):
    reference = compiled(network(), "sgd")
    fit(reference, X, Y, epochs=2)
    return training.same_weights(model.get_weights(), reference.get_weights())


def test_a_full_disk_ends_neither_training_nor_a_line(tmp_path, caplog):
    """A limit in the middle of the third line; then room again."""
    path, model, logger = tmp_path / "steps.csv", compiled(network(), "sgd"), StepLogger(tmp_path / "steps.csv")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    fit(model, X[:8], Y[:8], callbacks=[logger])
    before = whole(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        history = fit(model, X, Y, callbacks=[logger])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert np.isfinite(history["loss"]).all() and int(model.optimizer.iterations) == 5
    assert whole(path) == before
    (warning,) = _warnings(caplog)
    assert str(path) in warning and "File too large" in warning
    fit(model, X, Y, callbacks=[logger])
    assert [row["step"] for row in rows(path)] == ["1", "2", "6", "7", "8"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("append", [False, True])
def test_a_device_without_room(caplog, append):
    model = compiled(network(), "sgd")
    fit(model, X, Y, epochs=2, callbacks=[StepLogger("/dev/full", append=append)])
    (warning,) = _warnings(caplog)
    assert "No space left on device" in warning
    assert _same_as_without(model)


def test_a_folder_that_does_not_exist(tmp_path, caplog):
    model = compiled(network(), "sgd")
    fit(model, X, Y, epochs=2, callbacks=[StepLogger(tmp_path / "none" / "steps.csv")])
    (warning,) = _warnings(caplog)
    assert "No such file" in warning and _same_as_without(model)
