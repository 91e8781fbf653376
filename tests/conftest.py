"""Fixtures of the whole suite: precision, seeds, and the registry of cases."""

import gc
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cases
import keras
import numpy as np
import pytest
import slow
import tensorflow as tf

# Two pytest-xdist workers share two cores.
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(2)


TESTS = pathlib.Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks the slow tests before `-m` chooses."""
    names = {item: f"{item.path.relative_to(TESTS)}::{item.nodeid.split('::', 1)[1]}" for item in items}
    marked, idle = slow.chosen(slow.SLOW, names.values())
    config.stash[slow.IDLE] = idle + [file for file in slow.SLOW if not list(TESTS.glob(file))]
    for item, name in names.items():
        if name in marked:
            item.add_marker("slow")


def pytest_collection_finish(session):
    """What was imported stays: the garbage collector need not look through it time and again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, whichever tests ran before it."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def float64():
    """Keras in double precision for a whole module: its losses cast to `floatx`."""
    with cases.precision("float64"):
        yield


@pytest.fixture
def double():
    """The same for one test."""
    with cases.precision("float64"):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module", params=sorted(cases.CASES))
def problem(request, float64):
    """Each case of the registry in float64, shared: not to be trained."""
    return cases.shared(request.param)
