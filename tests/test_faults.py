"""What goes wrong around a step: weights and optimizer stay as they were, the error tells, training goes on."""

import contextlib
import functools
import os
import resource
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
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


def normalised():
    return [layers.Dense(5, activation="tanh"), layers.BatchNormalization(), layers.Dense(3)]


def full(**options):
    """The default optimizer, with all the state that one can have."""
    return ng.NaturalGradient(
        **{"damping": ng.LevenbergMarquardt(period=2), "momentum": 0.5, "use_ema": True, "ema_momentum": 0.5} | options
    )


OPTIMIZERS = {"default": ng.NaturalGradient, "full": full, "plain": training.plain}


def regression(optimizer, mode="graph"):
    return compiled(network(normalised), optimizer, "mse", mode)


def batches(*arrays, parts=range(5)):
    """A data set of the numbered batches."""
    rows = np.concatenate([np.arange(SIZE * part, SIZE * part + SIZE) for part in parts])
    return tf.data.Dataset.from_tensor_slices(tuple(a[rows] for a in arrays)).batch(SIZE, drop_remainder=True)


def state(model, but=()):
    """Every variable of model and optimizer, as bytes."""
    found = {}
    for number, variable in enumerate([*model.variables, *model.optimizer.variables]):
        if variable.name not in but:
            found[number, variable.path] = variable.numpy().tobytes()
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert not [name for name in found if found[name] != expected[name]]


def spoilt(name, value=np.nan):
    """Inputs, labels and weights, of which one has a bad entry in the third batch."""
    data = {"x": X.copy(), "y": TARGETS.copy(), "sample_weight": WEIGHTS.copy()}
    data[name].flat[SIZE * BAD * data[name][0].size + 1] = value
    return tuple(data.values())


FAULTS = [
    ("default", "x", "graph"),
    ("full", "y", "graph"),
    ("plain", "sample_weight", "graph"),
    ("full", "sample_weight", "eager"),
    ("plain", "x", "eager"),
]


@pytest.mark.parametrize(("optimizer", "name", "mode"), FAULTS)
def test_a_batch_of_nan_raises_and_changes_nothing(optimizer, name, mode):
    model, reference = (regression(OPTIMIZERS[optimizer](), mode) for _ in range(2))
    with pytest.raises(ValueError, match=f"`{name}`: received .*NaN"):
        model.fit(batches(*spoilt(name)), verbose=0)
    reference.fit(batches(X, TARGETS, WEIGHTS, parts=range(BAD)), verbose=0)
    # The count is of batches left out, whatever came of them.
    assert_same(state(model, ["skipped_steps"]), state(reference, ["skipped_steps"]))
    rest = [m.fit(batches(X, TARGETS, WEIGHTS, parts=(3, 4)), verbose=0).history for m in (model, reference)]
    assert rest[0] == rest[1]
    assert_same(state(model, ["skipped_steps"]), state(reference, ["skipped_steps"]))


@pytest.mark.parametrize(("optimizer", "name", "mode"), FAULTS)
def test_a_batch_of_nan_that_is_skipped_might_as_well_not_have_been_there(optimizer, name, mode):
    model, reference = (regression(OPTIMIZERS[optimizer](on_nonfinite="skip"), mode) for _ in range(2))
    history = model.fit(batches(*spoilt(name)), verbose=0).history
    expected = reference.fit(batches(X, TARGETS, WEIGHTS, parts=(0, 1, 3, 4)), verbose=0).history
    assert_same(state(model, ["skipped_steps"]), state(reference, ["skipped_steps"]))
    assert history.pop("skipped_steps") == [1] and expected.pop("skipped_steps") == [0]
    assert history == expected
