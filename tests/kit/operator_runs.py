"""Matrices over a data set that a strategy shares out, beside the same on one device."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tf_natgrad as ng

FEATURES, CLASSES, EXAMPLES, BATCH = 4, 3, 27, 13
KINDS = ("Fisher", "GaussNewton", "Hessian", "EmpiricalFisher", "KroneckerFisher")


def _network():
    stack = [layers.Dense(5, activation="tanh"), layers.BatchNormalization(), layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((FEATURES,)), *stack])


def _distance(one, other):
    return float(np.max(np.abs(np.subtract(one, other))) / np.max(np.abs(one)))


def _compared(one, several, v):
    """Relative differences of all that a matrix can be asked for."""
    columns = np.stack([v, v[::-1]], 1)
    found = {
        "matvec": (one.matvec(v), several.matvec(v)),
        "matmul": (one.matmul(columns), several.matmul(columns)),
        "dense": (one.to_dense(), several.to_dense()),
        "diagonal": (one.diag_part(), several.diag_part()),
        "eigenvalues": (ng.spectrum.eigsh(one, 3).eigenvalues, ng.spectrum.eigsh(several, 3).eigenvalues),
        "trace": [ng.spectrum.hutchinson_trace(o, 5).value for o in (one, several)],
    }
    return {name: _distance(*pair) for name, pair in found.items()}


def _solved(operator, v):
    return ng.solvers.ConjugateGradient(rtol=1e-12).solve(operator.damped(0.1), v).value


def _shares(x, y, weights, replicas):
    """The shares of the replicas as batches, one after the other: the first ones are larger by one, if any are."""
    for start in range(0, len(x), BATCH):
        for part in np.array_split(np.arange(start, min(start + BATCH, len(x))), replicas):
            if len(part):
                yield x[part], y[part], weights[part]


def operators(which, strategy):
    """All matrices over a data set whose last batch leaves replicas without examples, and what is refused."""
    del which
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = _network()
    outside = _network()
    rng = np.random.default_rng(0)
    x, y, weights = (
        rng.normal(size=(EXAMPLES, FEATURES)),
        rng.integers(0, CLASSES, EXAMPLES),
        rng.uniform(size=EXAMPLES),
    )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(BATCH).with_options(options)
    shared = strategy.experimental_distribute_dataset(data)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    one, several = (ng.operators.Fisher(model, loss, d) for d in ((x, y, weights), shared))
    v, found = rng.normal(size=one.shape[0]), {}
    for name in KINDS:
        kind = getattr(ng.operators, name)
        found[name] = _compared(kind(model, loss, (x, y, weights)), kind(model, loss, shared), v)
    found["sums"] = {
        "loss": _distance(one.loss(), several.loss()),
        "gradient": _distance(one.gradient(), several.gradient()),
        "solution": _distance(*(_solved(o, v) for o in (one, several))),
    }
    # Labels are drawn as if the shares were batches.
    shares = tf.data.Dataset.from_generator(
        lambda: _shares(x, y, weights, strategy.num_replicas_in_sync),
        output_signature=(
            tf.TensorSpec([None, FEATURES], tf.float64),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.float64),
        ),
    )
    drawn = [ng.operators.Fisher(model, loss, d, kind="mc").to_dense() for d in (shares, shared)]
    found["sums"]["mc"] = _distance(*drawn)
    errors = {}
    for name, build in {
        "outside": lambda: ng.operators.Fisher(outside, loss, shared),
        "graph": lambda: tf.function(several.matvec)(tf.constant(v)),
        "training": lambda: ng.operators.Fisher(model, loss, shared, training=True),
    }.items():
        try:
            build()
            errors[name] = ""
        except ValueError as error:
            errors[name] = str(error)
    return {"differences": found, "errors": errors}
