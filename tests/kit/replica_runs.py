"""Short trainings on one device and on several replicas, in a process of their own: `python replica_runs.py 2 gram cg`.

Logical devices are made before TensorFlow starts. The process prints a line of JSON for each case.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers, regularizers

import tf_natgrad as ng

# Three batches an epoch of 12, 12 and 2 examples: of the last one two of four replicas have none.
EXAMPLES, BATCH, FEATURES, CLASSES = 26, 12, 4, 3


def plain(**options):
    return ng.NaturalGradient(**{"learning_rate": 0.5, "damping": 0.1, "max_kl": None, "line_search": None} | options)


def stack(**options):
    return [layers.Dense(5, activation="tanh", **options), layers.Dense(CLASSES, **options)]


def with_adam():
    beside = {"head/.*": keras.optimizers.Adam(0.05)}
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(plain(), beside))


def named():
    return [layers.Dense(5, activation="tanh"), layers.Dense(CLASSES, name="head")]


def convolutional():
    return [
        layers.Reshape((2, 2, 1)),
        layers.Conv2D(2, 2, padding="same", activation="tanh"),
        layers.LayerNormalization(),
        layers.Flatten(),
        layers.Dense(CLASSES),
    ]


CG = ng.solvers.ConjugateGradient(max_iterations=8, rtol=1e-14)
# Optimizer, layers, and what else `run` takes.
CASES = {
    "gram": (lambda: plain(solver="gram"), stack, {}),
    "auto": (plain, stack, {}),
    "weighted": (lambda: plain(solver="gram"), stack, {"weighted": True}),
    "l2": (lambda: plain(solver="gram"), lambda: stack(kernel_regularizer=regularizers.L2(0.01)), {}),
    "beside": (with_adam, named, {}),
    "layers": (lambda: plain(solver="gram"), convolutional, {}),
    "regression": (lambda: plain(solver="gram"), stack, {"loss": "mse"}),
    "search": (lambda: ng.NaturalGradient(solver="gram"), stack, {}),
    "decay": (lambda: ng.NaturalGradient(2.0, solver="gram", weight_decay=0.01, max_kl=None), stack, {}),
    "momentum": (lambda: plain(solver="gram", momentum=0.5), stack, {}),
}


def data(weighted, loss):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(EXAMPLES, FEATURES))
    y = rng.normal(size=(EXAMPLES, CLASSES)) if loss == "mse" else rng.integers(0, CLASSES, EXAMPLES)
    return x, y, (rng.uniform(0.0, 2.0, EXAMPLES) if weighted else None)


def run(case, strategy, epochs=4):
    """Trains a new model; its weights on each replica, and the history."""
    optimizer, stack_of, options = CASES[case]
    loss = options.get("loss") or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = ng.NaturalGradientSequential([keras.Input((FEATURES,)), *stack_of()])
        model.compile(optimizer(), loss)
    x, y, weights = data(options.get("weighted", False), loss)
    history = model.fit(x, y, sample_weight=weights, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)
    values = [strategy.experimental_local_results(v.value) for v in model.trainable_variables]
    on_each = [np.concatenate([np.ravel(v.numpy()) for v in replica]) for replica in zip(*values, strict=True)]
    return on_each, history.history


def compared(case, replicas):
    """How far training on replicas is from training on one device, and whether the replicas agree."""
    alone, expected = run(case, tf.distribute.get_strategy())
    each, history = run(case, tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(replicas)]))
    logs = {name: np.max(np.abs(np.subtract(history[name], values))) for name, values in expected.items()}
    return {
        "case": case,
        "difference": float(np.max(np.abs(each[0] - alone[0])) / np.max(np.abs(alone[0]))),
        "moved": float(np.max(np.abs(alone[0]))),
        "equal": all(each[0].tobytes() == other.tobytes() for other in each),
        "logs": {name: float(value) for name, value in logs.items()},
        "names": sorted(history) == sorted(expected),
    }


def main(replicas, *cases):
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(replicas))
    keras.config.set_floatx("float64")
    for case in cases or CASES:
        sys.stdout.write(json.dumps(compared(case, int(replicas))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
