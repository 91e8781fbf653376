"""What goes wrong around a step: weights and optimizer stay as they were, the error tells, training goes on."""

import contextlib
import functools
import itertools
import os
import pathlib
import resource
import signal
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import scripts
import tensorflow as tf
import training
from keras import callbacks, layers
from training import compiled, network

import tf_natgrad as ng

SIZE, BAD = 4, 2
X = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
TARGETS = np.random.default_rng(1).normal(size=(20, 3)).astype("float32")
WEIGHTS = np.linspace(0.5, 1.5, 20).astype("float32")
LABELS = np.arange(20) % 3


def full(**options):
    """An optimizer with all the state that one can have."""
    return ng.NaturalGradient(
        fisher="exact",
        **{"damping": ng.LevenbergMarquardt(period=2), "momentum": 0.5, "use_ema": True, "ema_momentum": 0.5} | options,
    )


# What is compared is put back to its beginning, where `fisher="auto"` would not have chosen yet.
OPTIMIZERS = {
    "default": functools.partial(ng.NaturalGradient, fisher="exact"),
    "full": full,
    "plain": functools.partial(training.plain, fisher="exact"),
}


def batches(*arrays, parts=range(5)):
    """A data set of the numbered batches."""
    rows = np.concatenate([np.arange(SIZE * part, SIZE * part + SIZE) for part in parts])
    return tf.data.Dataset.from_tensor_slices(tuple(a[rows] for a in arrays)).batch(SIZE, drop_remainder=True)


def fit(model, data, **options):
    return model.fit(data, verbose=0, shuffle=False, **options).history


def variables(model):
    """All that a model is, and its optimizer: weights, statistics, damping, last direction, counts."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]


def values(model):
    return [v.numpy() for v in variables(model)]


def assign(model, numbers):
    for variable, number in zip(variables(model), numbers, strict=True):
        variable.assign(number)


def changed(model, before, but=()):
    """The names of the variables that differ, in whichever bit."""
    pairs = zip(variables(model), before, strict=True)
    return [v.name for v, old in pairs if v.name not in but and v.numpy().tobytes() != old.tobytes()]


class Interrupt(callbacks.Callback):
    """Stops training after the second batch, without what `fit` does at its end (to averages of weights)."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == BAD - 1:
            raise KeyboardInterrupt


def trained(model, data):
    """What `fit` logs, but for the count of batches left out, which goes on counting."""
    return {name: column for name, column in fit(model, data).items() if name != "skipped_steps"}


def raises_and_goes_on(model, bad, good, match):
    """The third batch of `bad` is refused, with the state after the second; the last two train as if nothing was.

    The references come from the same model, put back to its beginning.
    """
    start = values(model)
    with pytest.raises(ValueError, match=match):
        fit(model, bad)
    found = values(model)
    rest = trained(model, good(parts=(3, 4)))
    end = values(model)
    assign(model, start)
    with contextlib.suppress(KeyboardInterrupt):
        fit(model, good(), callbacks=[Interrupt()])
    # The count tells of batches left out, whatever came of them.
    assert not changed(model, found, but=["skipped_steps"])
    assert changed(model, start)
    assert trained(model, good(parts=(3, 4))) == rest
    assert not changed(model, end, but=["skipped_steps"])


def skips_as_if_it_had_not_been_there(model, bad, good):
    start = values(model)
    history = fit(model, bad)
    end = values(model)
    assign(model, start)
    expected = fit(model, good(parts=(0, 1, 3, 4)))
    assert not changed(model, end, but=["skipped_steps"])
    assert changed(model, start)
    assert history.pop("skipped_steps") == [1] and expected.pop("skipped_steps") == [0]
    assert history == expected


def normalised():
    return [layers.Dense(5, activation="tanh"), layers.BatchNormalization(), layers.Dense(3)]


def regression(optimizer, mode="graph"):
    return compiled(network(normalised), optimizer, "mse", mode)


def good(parts=range(5)):
    return batches(X, TARGETS, WEIGHTS, parts=parts)


def spoilt(name, value=np.nan):
    """Inputs, labels and weights, of which one has a bad entry in the third batch."""
    data = {"x": X.copy(), "y": TARGETS.copy(), "sample_weight": WEIGHTS.copy()}
    data[name][SIZE * BAD + 1] = value
    return batches(*data.values())


NANS = [
    ("default", "x"),
    ("full", "y"),
    ("plain", "sample_weight"),
]


@pytest.mark.parametrize(("optimizer", "name"), NANS)
def test_a_batch_of_nan_raises_and_changes_nothing(optimizer, name):
    model = regression(OPTIMIZERS[optimizer]())
    raises_and_goes_on(model, spoilt(name), good, f"`{name}`: received .*NaN")


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1}, {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 1}]
)
def test_a_batch_of_nan_changes_no_weight_on_which_a_step_of_zeros_acts(options):
    model = regression(training.plain(fisher="exact", **options))
    if not options:
        model.trainable_variables[0].constraint = lambda weights: 0.5 * weights
    raises_and_goes_on(model, spoilt("x"), good, "`x`: received .*NaN")


@pytest.mark.parametrize(("optimizer", "name"), NANS)
def test_a_batch_of_nan_that_is_skipped_might_as_well_not_have_been_there(optimizer, name):
    model = regression(OPTIMIZERS[optimizer](on_nonfinite="skip"))
    skips_as_if_it_had_not_been_there(model, spoilt(name), good)


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_what_cannot_be_skipped_changes_nothing_either(mode):
    """Negative weights are a mistake, not an accident: they are refused, after the forward pass."""
    model = regression(training.plain(on_nonfinite="skip", solver=training.cg(0.5)), mode)
    raises_and_goes_on(model, spoilt("sample_weight", -1.0), good, "`sample_weight`: received a negative")


def duplicates(x):
    return np.repeat(x[:1], len(x), axis=0)


def constant_zeros(x):
    return x * np.array([1, 0, 0, 1], "float32")


def badly_scaled(x):
    return x * np.array([1e8, 1, 1e-8, 1], "float32")


@pytest.mark.parametrize("options", [{}, {"damping": 0.0}], ids=["default", "undamped"])
@pytest.mark.parametrize("spoil", [duplicates, constant_zeros, badly_scaled])
def test_a_fisher_that_cannot_be_inverted_is_stepped_through_or_the_step_is_rejected(spoil, options):
    model = compiled(network(), ng.NaturalGradient(fisher="exact", **options))
    x, start = spoil(X), model.evaluate(spoil(X), LABELS, verbose=0)
    rejected = 0
    for _ in range(5):
        before = values(model)
        logs = model.train_on_batch(x, LABELS, return_dict=True)
        assert all(np.all(np.isfinite(v)) for v in values(model))
        if logs["rejected_steps"] > rejected:
            assert logs["step_scale"] == 0.0 and logs["kl"] == 0.0 and logs["actual_decrease"] <= 0.0
            assert not changed(model, before, but=["rejected_steps", "damping"])
        else:
            assert logs["actual_decrease"] > 0.0 and logs["kl"] <= 0.1
        rejected = logs["rejected_steps"]
    # Without damping, in float32, the step may be rejected each time: what is tiny is not told from what is zero.
    if not options:
        assert rejected < 5
    assert model.evaluate(x, LABELS, verbose=0) < start or rejected == 5


# Scales sixteen orders apart, squared, are too much for a Gram matrix in float32.
@pytest.mark.parametrize(
    ("solver", "spoil"),
    [("gram", duplicates), ("svd", constant_zeros), ("gram", constant_zeros), ("svd", badly_scaled)],
)
def test_a_singular_fisher_of_a_convex_loss_has_a_plain_step_without_damping(solver, spoil):
    """The pseudo-inverse, with no line search to catch what goes wrong: the logits of the classes sum to a constant."""
    model = compiled(network([layers.Dense(3)]), training.plain(0.3, damping=0.0, solver=solver))
    x = spoil(X)
    losses = [model.evaluate(x, LABELS, verbose=0)]
    for _ in range(3):
        model.train_on_batch(x, LABELS)
        losses.append(model.evaluate(x, LABELS, verbose=0))
    assert np.all(np.isfinite(losses)) and losses == sorted(losses, reverse=True)


def half(**options):
    """A network in mixed precision, whose outputs overflow beyond 65504."""
    keras.utils.set_random_seed(1)
    stack = [layers.Dense(5, activation="relu", dtype="mixed_float16"), layers.Dense(3, dtype="mixed_float16")]
    optimizer = keras.optimizers.LossScaleOptimizer(ng.NaturalGradient(fisher="exact", **options))
    return compiled(network(stack), optimizer)


def labelled(x=X, parts=range(5)):
    return batches(x, LABELS, parts=parts)


@pytest.mark.parametrize("line_search", [ng.LineSearch(), None], ids=["line_search", "whole"])
@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_an_overflow_in_half_precision_leaves_the_weights(on_nonfinite, line_search):
    model = half(on_nonfinite=on_nonfinite, line_search=line_search)
    x = X.copy()
    # The first unit's sum goes beyond 65504.
    x[SIZE * BAD : SIZE * BAD + SIZE] = 6e4 * np.sign(model.layers[0].kernel.numpy()[:, 0])
    assert not np.all(np.isfinite(model(x)))
    if on_nonfinite == "raise":
        raises_and_goes_on(model, labelled(x), labelled, "is not finite")
    else:
        skips_as_if_it_had_not_been_there(model, labelled(x), labelled)


def test_a_step_that_overflows_in_half_precision_is_rejected():
    model = half(learning_rate=1e6, max_kl=None, line_search=ng.LineSearch(max_backtracks=0))
    before = values(model)
    history = fit(model, labelled())
    assert history["rejected_steps"] == [5] and history["step_scale"] == [0.0]
    assert np.isfinite(history["loss"]).all()
    assert not changed(model, before, but=["rejected_steps", "damping", "learning_rate"])
    model.optimizer.learning_rate = 0.1
    assert fit(model, labelled(), epochs=4)["loss"][-1] < history["loss"][0]


def resumable():
    optimizer = ng.NaturalGradient(damping=ng.LevenbergMarquardt(period=2), momentum=0.5)
    return compiled(network(normalised), optimizer, "mse")


def backup(folder):
    return callbacks.BackupAndRestore(folder, double_checkpoint=True)


def die_while_saving(save=1):
    """From now on this process dies in the middle of writing the weights for the given time."""
    create = h5py.Group.create_dataset
    store = keras.src.saving.saving_lib.H5IOStore
    opened, begin = [], store.__init__

    def counted(self, path, archive=None, mode="r"):
        begin(self, path, archive=archive, mode=mode)
        opened.append(mode)
        if opened.count("w") == save:
            left = [5]

            def fatal(group, *args, **kwargs):
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return create(group, *args, **kwargs)

            h5py.Group.create_dataset = fatal

    store.__init__ = counted


CHILD = """
import sys
import conftest, test_faults
model = test_faults.resumable()
test_faults.die_while_saving(save=3)
test_faults.fit(model, test_faults.good(), epochs=5, callbacks=[test_faults.backup(sys.argv[1])])
"""


def test_a_process_killed_in_the_middle_of_a_checkpoint_resumes_from_the_one_before(tmp_path):
    """The new process ends with the losses of a run that was never interrupted, bit for bit."""
    environment = scripts.environment(pathlib.Path(__file__).parent)
    folder = tmp_path / "backup"
    child = subprocess.run([sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, env=environment)
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    # The third save was begun, and is not whole.
    with pytest.raises(Exception):  # noqa: B017
        resumable().load_weights(folder / "latest.weights.h5")
    expected = resumable()
    losses = fit(expected, good(), epochs=5)["loss"]
    again = resumable()
    for variable in again.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    assert fit(again, good(), epochs=5, callbacks=[backup(folder)])["loss"] == losses[2:]
    assert not changed(again, values(expected))


def save(model, path):
    """How to save a model such that there is always a good one: beside the old, then in its place."""
    beside = f"{path}.new.keras"
    model.save(beside)
    os.replace(beside, path)


@pytest.mark.parametrize(("how", "survives"), [(save, True), (lambda model, path: model.save(path), False)])
def test_a_model_saved_over_a_good_one_by_a_process_that_is_killed(tmp_path, how, survives):
    """Keras writes into the file in place: killed in the middle, it leaves neither the old model nor the new."""
    model = resumable()
    fit(model, good())
    path = tmp_path / "model.keras"
    how(model, path)
    old = values(model)
    fit(model, good())
    child = os.fork()
    if not child:
        signal.alarm(60)
        die_while_saving()
        how(model, path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    if survives:
        assert not changed(keras.saving.load_model(path), old)
        how(model, path)
        assert not changed(keras.saving.load_model(path), values(model))
    else:
        with pytest.raises(Exception):  # noqa: B017
            keras.saving.load_model(path)


def _generator(bad=True):
    def batch(part):
        rows = slice(SIZE * part, SIZE * part + SIZE)
        return X[rows], TARGETS[rows], WEIGHTS[rows]

    yield from map(batch, (0, 1))
    if bad:
        raise RuntimeError("the disk of the data went away")
    yield from map(batch, (3, 4))


def _function(bad=True):
    def look(x):
        if bad and np.array_equal(x, X[SIZE * BAD : SIZE * BAD + SIZE]):
            raise RuntimeError("the disk of the data went away")
        return x

    def mapped(x, y, weight):
        return tf.ensure_shape(tf.py_function(look, [x], tf.float32), x.shape), y, weight

    return good().map(mapped)


@pytest.mark.parametrize(
    ("data", "first_two"),
    # The same kind of iterator: a step traced for batches of any size rounds otherwise than one for this size.
    [
        (_generator, lambda: (batch for batch in itertools.islice(_generator(), 2))),
        (_function, lambda: good(parts=(0, 1))),
    ],
)
def test_a_data_set_that_raises_in_the_middle_of_an_epoch(data, first_two):
    model = regression(ng.NaturalGradient(fisher="exact"))
    start = values(model)
    with pytest.raises(Exception, match="the disk of the data went away"):
        fit(model, data())
    found = values(model)
    assert np.isfinite(fit(model, data(bad=False))["loss"]).all()
    assert changed(model, found)
    assign(model, start)
    fit(model, first_two())
    assert not changed(model, found)


def test_an_interruption_leaves_the_weights_of_the_last_step():
    model = regression(ng.NaturalGradient(fisher="exact"))
    start = values(model)
    with pytest.raises(KeyboardInterrupt):
        fit(model, good(), callbacks=[Interrupt()])
    found = values(model)
    rest = fit(model, good(parts=(3, 4)))
    assign(model, start)
    fit(model, good(parts=(0, 1)))
    assert not changed(model, found)
    assert fit(model, good(parts=(3, 4))) == rest


@contextlib.contextmanager
def full_disk(size):
    """No file of this process may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["log.csv", "model.keras", "w.weights.h5"])
def test_a_full_disk_while_recording_raises_and_leaves_the_weights(tmp_path, name):
    path = str(tmp_path / name)
    record = {
        "log.csv": lambda: callbacks.CSVLogger(path),
        "model.keras": lambda: callbacks.ModelCheckpoint(path),
        "w.weights.h5": lambda: callbacks.ModelCheckpoint(path, save_weights_only=True),
    }[name]
    model = regression(training.plain(fisher="exact"))
    start = values(model)
    with full_disk(64), pytest.raises(OSError):
        fit(model, good(), epochs=3, callbacks=[record()])
    found = values(model)
    fit(model, good(), callbacks=[record()])
    assign(model, start)
    fit(model, good())
    assert not changed(model, found)
