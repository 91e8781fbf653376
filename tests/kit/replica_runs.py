"""Short trainings on one device and on several replicas, in a process of their own: `python replica_runs.py 2 gram cg`.

Logical devices are made before TensorFlow starts; with `worker` for their number the process is the worker that
`TF_CONFIG` says. It prints a line of JSON for each case.
"""

import hashlib
import json
import os
import pathlib
import signal
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from operator_runs import operators
from precision_runs import mixed, single
from replica_models import BATCH, CASES, CLASSES, FEATURES, compiled, data, fitted, on_each, plain, sparse

import tf_natgrad as ng


def compared(case, strategy):
    """How far training on replicas is from training on one device, and whether the replicas agree."""
    given = data(**CASES[case][2])
    one = compiled(case, tf.distribute.get_strategy())
    expected = fitted(one, *given)
    (alone,) = on_each(one, tf.distribute.get_strategy())
    model = compiled(case, strategy)
    history, each = fitted(model, *given), on_each(model, strategy)
    logs = {name: np.max(np.abs(np.subtract(history[name], values))) for name, values in expected.items()}
    return {
        "difference": float(np.max(np.abs(each[0] - alone)) / np.max(np.abs(alone))),
        "weights": hashlib.sha256(each[0].tobytes()).hexdigest(),
        "equal": all(each[0].tobytes() == other.tobytes() for other in each),
        "logs": {name: float(value) for name, value in logs.items()},
        "names": sorted(history) == sorted(expected),
    }


def spoilt(which, strategy):
    """What becomes of a batch that is spoilt on one replica: the error, the weights, the number of steps left out."""
    found = []
    for on in (tf.distribute.get_strategy(), strategy):
        model = compiled("gram", on)
        model.optimizer.on_nonfinite = "skip" if which == "skipped" else "raise"
        error = ""
        try:
            fitted(model, *data(spoilt="x" if which == "skipped" else which), epochs=1)
        except ValueError as raised:
            error = f"{type(raised).__name__}: {raised}"
        each = on_each(model, on)
        left_out = int(model.optimizer.skipped_steps.numpy())
        found.append((error, each[0], left_out, [each[0].tobytes() == other.tobytes() for other in each]))
    (one, alone, left_out, _), (several, weights, of_replicas, equal) = found
    return {
        "errors": [one, several],
        "difference": float(np.max(np.abs(weights - alone))),
        "left_out": [left_out, of_replicas],
        "equal": all(equal),
    }


def refused(which, strategy):
    """The refusal of what does not go with several replicas."""
    try:
        if which == "outside":
            made = compiled("gram", tf.distribute.get_strategy())
            with strategy.scope():
                made.compile(plain(), "mse")
                fitted(made, *data("mse"))
        elif which == "eager":
            fitted(compiled("gram", strategy, run_eagerly=True), *data())
        else:
            model = compiled("gram", strategy)
            with strategy.scope():
                options = {"cg": {"solver": "cg"}, "parts": {"micro_batch_size": 4}}[which]
                model.compile(plain(**options), sparse())
            fitted(model, *data())
    except ValueError as error:
        return {"errors": [str(error)]}
    return {"errors": []}


def stateful(which, strategy):
    """Layers with a state, and metrics: the replicas stay together, and the logs are those of stock Keras."""
    del which
    keras.utils.set_random_seed(1)
    with strategy.scope():
        inner = [layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.2), layers.Dense(CLASSES)]
        model = ng.NaturalGradientSequential([keras.Input((FEATURES,)), *inner])
        loss = sparse()
        model.compile(ng.NaturalGradient(fisher=ng.KFAC("fixed", update_every=1)), loss, metrics=["accuracy"])
    x, y, _ = data()
    history = model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, validation_data=(x, y)).history
    each = on_each(model, strategy)
    return {
        "equal": all(each[0].tobytes() == other.tobytes() for other in each),
        "finite": bool(np.all(np.isfinite(each[0]))),
        "logs": sorted(history),
        "moved": float(np.max(np.abs(model.layers[1].moving_mean.numpy()))),
    }


def inference(which, strategy):
    """`evaluate` and `predict` on several workers, and what stock Keras says to `fit` there."""
    del which
    model = compiled("gram", strategy)
    x, y, _ = data()
    stock = ""
    with strategy.scope():
        plain_keras = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES)])
        plain_keras.compile("sgd", sparse())
    try:
        plain_keras.fit(x, y, batch_size=BATCH, verbose=0)
    except Exception as error:
        stock = type(error).__name__
    loss = sparse()
    return {
        "loss": float(model.evaluate(x, y, batch_size=BATCH, verbose=0)),
        "expected": float(loss(y, model(x))),
        "shape": list(model.predict(x, batch_size=BATCH, verbose=0).shape),
        "stock": stock,
    }


class Restores(keras.callbacks.BackupAndRestore):
    """What the workers beside the chief do: they read its backup, and write none."""

    def on_epoch_end(self, epoch, logs=None):
        """Nothing."""

    def on_train_batch_end(self, batch, logs=None):
        """Nothing."""

    def on_train_end(self, logs=None):
        """Nothing."""


class Dies(keras.callbacks.Callback):
    """Ends this process, as an operator or the system would, in the middle of the second epoch of its first life."""

    def __init__(self, marker):
        super().__init__()
        self.marker, self.steps = marker, 0

    def on_train_batch_end(self, batch, logs=None):
        """Counts."""
        self.steps += 1
        if self.steps == 5 and not os.path.exists(self.marker):
            pathlib.Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def backup(folder, strategy):
    """Training that is backed up each epoch by the chief; the other worker is killed once."""
    chief = strategy.cluster_resolver.task_id == 0
    model = compiled("search", strategy)
    callbacks = [(keras.callbacks.BackupAndRestore if chief else Restores)(os.path.join(folder, "backup"))]
    if not chief:
        callbacks.append(Dies(os.path.join(folder, "died")))
    x, y, _ = data()
    history = model.fit(x, y, batch_size=BATCH, epochs=4, shuffle=False, verbose=0, callbacks=callbacks).history
    one = compiled("search", tf.distribute.get_strategy())
    fitted(one, x, y, None)
    (alone,), (weights,) = on_each(one, tf.distribute.get_strategy()), on_each(model, strategy)
    return {
        "difference": float(np.max(np.abs(weights - alone)) / np.max(np.abs(alone))),
        "weights": hashlib.sha256(weights.tobytes()).hexdigest(),
        "epochs": len(history["loss"]),
    }


KINDS = {
    "backup": backup,
    "spoilt": spoilt,
    "refused": refused,
    "stateful": stateful,
    "mixed": mixed,
    "single": single,
    "inference": inference,
    "operators": operators,
}


def main(replicas, *cases):
    (cpu,) = tf.config.list_physical_devices("CPU")
    # A second strategy would take the numbers of the first one's exchanges for its own.
    if replicas == "worker":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(replicas))
        strategy = tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(int(replicas))])
    keras.config.set_floatx("float64")
    for case in cases or CASES:
        kind, _, which = case.partition(":")
        found = KINDS[kind](which, strategy) if kind in KINDS else compared(case, strategy)
        sys.stdout.write(json.dumps({"case": case} | found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
