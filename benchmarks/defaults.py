"""How the defaults of `NaturalGradient` were chosen: four sets of options on tasks that nothing else is measured on.

The tasks come with scikit-learn: handwritten digits (scaled, and as they are, from 0 to 16), breast cancer, diabetes. A
cell has the training and the test loss after some steps, the worst of the seeds; "diverged" where one is not finite or
above its start.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from _timing import table
from keras import layers
from sklearn import datasets

import tf_natgrad as ng
from tf_natgrad._progress import progress_bar

SETTINGS = {
    "plain": lambda: ng.NaturalGradient(0.7, damping=0.1, max_kl=None, line_search=None),
    "+ max_kl": lambda: ng.NaturalGradient(0.7, damping=0.1, max_kl=0.1, line_search=None),
    "+ adaptive damping": lambda: ng.NaturalGradient(0.7, max_kl=0.1, line_search=None),
    "+ line search (default)": lambda: ng.NaturalGradient(),
    "default, rate 1": lambda: ng.NaturalGradient(1.0),
}
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


class Task(NamedTuple):
    """Layers, loss, data and batch size (`None`: all examples)."""

    stack: Callable[[], list[keras.layers.Layer]]
    loss: object
    x: np.ndarray
    y: np.ndarray
    batch: int | None


def tasks() -> dict[str, Task]:
    """The tasks."""
    digits, labels = datasets.load_digits(return_X_y=True)
    digits = digits.astype("float32")
    scaled = digits / 16
    small = scaled.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    cancer = datasets.load_breast_cancer()
    diabetes = datasets.load_diabetes()

    def standard(values: np.ndarray) -> np.ndarray:
        return ((values - values.mean(0)) / values.std(0)).astype("float32")

    def classifier() -> list:
        return [layers.Dense(64, activation="relu"), layers.Dense(32, activation="relu"), layers.Dense(10)]

    def convolution() -> list:
        hidden = [layers.Conv2D(8, 3, activation="relu"), layers.Conv2D(16, 3, activation="relu")]
        return [layers.Reshape((8, 8, 1)), *hidden, layers.Flatten(), layers.Dense(10)]

    def normalised() -> list:
        hidden = [layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()]
        return [layers.Reshape((8, 8, 1)), *hidden, layers.Dropout(0.3), layers.Dense(10)]

    def tanh(*units: int, outputs: int) -> list:
        return [*(layers.Dense(n, activation="tanh") for n in units), layers.Dense(outputs)]

    return {
        "digits, softmax": Task(lambda: [layers.Dense(10)], CROSS_ENTROPY, scaled, labels, 32),
        "digits, 64-32-10": Task(classifier, CROSS_ENTROPY, scaled, labels, 64),
        "the same, 0 to 16": Task(classifier, CROSS_ENTROPY, digits, labels, 64),
        "digits, convolutions": Task(convolution, CROSS_ENTROPY, scaled, labels, 64),
        "the same, BatchNorm, dropout": Task(normalised, CROSS_ENTROPY, scaled, labels, 64),
        "4x4 digits, autoencoder": Task(lambda: tanh(12, 4, 12, outputs=16), BINARY, small, small, 64),
        "breast cancer, 16-1": Task(
            lambda: tanh(16, outputs=1), BINARY, standard(cancer.data), cancer.target[:, None].astype("float32"), 64
        ),
        "diabetes, 32-32-1": Task(
            lambda: tanh(32, 32, outputs=1), "mse", standard(diabetes.data), standard(diabetes.target[:, None]), None
        ),
    }


def losses_after(task: Task, make: Callable, seed: int, steps: int) -> tuple[float, float, float]:
    """Training loss before, training loss and test loss after some steps; infinite where training broke down."""
    keras.utils.set_random_seed(seed)
    order = np.random.default_rng(seed).permutation(len(task.x))
    x, y = task.x[order], task.y[order]
    held = len(x) // 5
    train, test = (x[held:], y[held:]), (x[:held], y[:held])
    model = ng.NaturalGradientSequential([keras.Input(x.shape[1:]), *task.stack()])
    model.compile(make(), task.loss, jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices(train).cache()
    if task.batch is not None:
        data = data.shuffle(len(x), seed=seed)
    data = data.repeat().batch(task.batch or len(train[0]), drop_remainder=True).take(steps)

    def loss(pair: tuple[np.ndarray, np.ndarray]) -> float:
        return float(model.evaluate(*pair, batch_size=512, verbose=0))

    before = loss(train)
    try:
        model.fit(data, verbose=0)
    except ng.errors.NonFiniteError:
        return before, float("inf"), float("inf")
    return before, loss(train), loss(test)


def main() -> None:
    """Runs all and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="runs of each (default 2)")
    parser.add_argument("--steps", type=int, default=100, help="of each run (default 100)")
    arguments = parser.parse_args()
    rows = []
    for name, task in progress_bar(tasks().items(), desc="tasks", leave=False):
        row = [name]
        for make in SETTINGS.values():
            runs = [losses_after(task, make, seed, arguments.steps) for seed in range(arguments.seeds)]
            before, after, test = (max(column) for column in zip(*runs, strict=True))
            row.append(f"{after:.2g} / {test:.2g}" if after < before else "diverged")
        rows.append(row)
    print(table(["training / test loss, worst seed", *SETTINGS], rows))


if __name__ == "__main__":
    main()
