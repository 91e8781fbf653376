"""What a step with K-FAC costs, in steps of Adam: averages and inverses included, and at their share.

What is compared runs in turns of `fit` within one process, on one thread, after the first steps, in which more is
inverted; figures are medians. A turn is as many steps as lie between two inversions. Inputs are random numbers of
MNIST's shape: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from _problems import LOSS, convolutional, mlp
from _timing import side_by_side, table

import tf_natgrad as ng

WIDTHS = (1000, 500, 250, 30, 250, 500, 1000, 784)
CROSS_ENTROPY = keras.losses.BinaryCrossentropy(from_logits=True)
# The network, its batch and loss, and whether the labels are the inputs.
PROBLEMS = {
    "784-512-512-10": (lambda: mlp(784, 512, 512, 10), 128, LOSS, False),
    "2c2d": (convolutional, 64, LOSS, False),
    "autoencoder": (lambda: mlp(784, *WIDTHS, activation="tanh"), 256, CROSS_ENTROPY, True),
}
OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "kfac, fixed": lambda: ng.NaturalGradient(fisher=ng.KFAC("fixed")),
    "kfac, quadratic": lambda: ng.NaturalGradient(fisher=ng.KFAC("quadratic")),
    "ekfac, fixed": lambda: ng.NaturalGradient(fisher=ng.EKFAC("fixed")),
}
# Both recipes' periods divide it.
TURN = 100


def milliseconds(name: str, contestants: list[str], rounds: int) -> dict[str, float]:
    """A step of `fit` with each optimizer."""
    make, batch, loss, is_autoencoder = PROBLEMS[name]
    rng = np.random.default_rng(0)
    network = make()
    x = rng.random((batch * TURN, *network.input_shape[1:]), dtype=np.float32)
    y = x if is_autoencoder else rng.integers(0, 10, len(x))
    runs = {}
    for contestant in contestants:
        network = make()
        model = network if contestant == "adam" else ng.natural_gradient_model(network)
        model.compile(OPTIMIZERS[contestant](), loss)
        runs[contestant] = lambda model=model: model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
    seconds = side_by_side(runs, rounds, 1, name)
    return {contestant: value / TURN * 1e3 for contestant, value in seconds.items()}


def main() -> None:
    """Runs the comparisons and prints their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns per comparison (default 5)")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="default: all")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="of TensorFlow (default 1)")
    parser.add_argument("--json", type=pathlib.Path, help="file in which the figures are kept")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    contestants = ["adam", *(name for name in options.optimizers if name != "adam")]
    figures = {name: milliseconds(name, contestants, options.rounds) for name in options.problems}
    rows = []
    for name, times in figures.items():
        rows += [[f"{name}, batch {PROBLEMS[name][1]}", who, ms, ms / times["adam"]] for who, ms in times.items()]
    print(table(["network", "optimizer", "milliseconds a step", "steps of Adam"], rows))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
