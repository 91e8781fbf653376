"""Trainings on replicas in less than double precision."""

import contextlib

import keras
import numpy as np
import tensorflow as tf
from replica_models import BATCH, compiled, data, fitted, on_each


@contextlib.contextmanager
def _policy(floatx, policy):
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def _relative(one, other):
    return float(np.max(np.abs(one - other)) / np.max(np.abs(one)))


def single(steps, strategy):
    """Steps in single precision, one an epoch."""
    x, y, _ = data()
    x, y = x[:BATCH].astype("float32"), y[:BATCH]
    with _policy("float32", "float32"):
        models = [compiled("gram", on) for on in (tf.distribute.get_strategy(), strategy)]
        for model in models:
            fitted(model, x, y, None, epochs=int(steps))
    (alone,), each = on_each(models[0], tf.distribute.get_strategy()), on_each(models[1], strategy)
    return {
        "difference": _relative(alone, each[0]),
        "equal": all(each[0].tobytes() == other.tobytes() for other in each),
    }


def mixed(policy, strategy):
    """One step in mixed precision: beside one device, and what another order of the batch does on one device."""
    x, y, _ = data()
    x, y = x[:BATCH].astype("float32"), y[:BATCH]
    one, found, orders = tf.distribute.get_strategy(), [], [np.arange(BATCH)]
    orders += [np.random.default_rng(seed).permutation(BATCH) for seed in range(5)]
    with _policy("float32", policy):
        for on, order in [*((one, order) for order in orders), (strategy, orders[0])]:
            model = compiled("gram", on)
            fitted(model, x[order], y[order], None, epochs=1)
            found.append(on_each(model, on))
    (alone,), *permuted = found[:-1]
    return {
        "difference": _relative(alone, found[-1][0]),
        "permuted": max(_relative(alone, weights) for (weights,) in permuted),
        "equal": all(found[-1][0].tobytes() == other.tobytes() for other in found[-1]),
    }
