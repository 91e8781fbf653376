"""What a natural-gradient step on the residuals of 2d Poisson costs, in gradients of the same loss.

900 points inside, 120 on the boundary, float64. Steps are those that `fit` takes with `pde.natural_gradient()`; the
gradient is compiled by XLA. What is compared runs in turns within one process; figures are medians.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from _timing import side_by_side, table

import tf_natgrad as ng

NETWORKS = ((2, 32, 1), (2, 64, 64, 1))
# Steps in one turn.
TURN = 10


def model_of(widths: tuple[int, ...]) -> tuple[ng.pde.ResidualModel, tf.data.Dataset]:
    """The residuals of Poisson's equation on the unit square, compiled, and a data set of one turn."""
    first, *hidden, last = widths
    layers = [keras.layers.Dense(width, "tanh") for width in hidden]
    network = keras.Sequential([keras.Input((first,)), *layers, keras.layers.Dense(last)])

    def inside(u, x):
        source = 2.0 * np.pi**2 * keras.ops.prod(keras.ops.sin(np.pi * x), -1, keepdims=True)
        return ng.pde.laplacian(u, x)[2] + source

    model = ng.pde.ResidualModel(network, {"inside": inside, "boundary": lambda u, x: u(x)}, {"boundary": 100.0})
    model.compile(ng.pde.natural_gradient(), "mse")
    rng = np.random.default_rng(0)
    edge, number = rng.random((120, 2)), np.arange(120)
    edge[number, number % 2] = number // 2 % 2
    return model, model.batches({"inside": rng.random((900, 2)), "boundary": edge}, repeat=TURN)


def milliseconds(widths: tuple[int, ...], rounds: int) -> dict[str, float]:
    """A step, and a gradient of the loss."""
    model, batches = model_of(widths)
    inputs, _, weights = next(iter(batches))

    @tf.function(autograph=False, jit_compile=True)
    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(weights * tf.square(model(inputs))[:, 0])
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    def gradients() -> None:
        for _ in range(TURN):
            gradient()

    model.make_train_function()
    endless = iter(batches.repeat())

    def steps() -> None:
        for _ in range(TURN):
            logs = model.train_function(endless)
        float(logs["loss"])

    name = "-".join(map(str, widths))
    seconds = side_by_side({"gradient": gradients, "step": steps}, rounds, 1, name)
    return {what: value / TURN * 1e3 for what, value in seconds.items()}


def main() -> None:
    """Runs the comparison and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns per comparison (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="of TensorFlow (default 1)")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    rows = []
    for widths in NETWORKS:
        times = milliseconds(widths, options.rounds)
        rows.append(["-".join(map(str, widths)), times["gradient"], times["step"], times["step"] / times["gradient"]])
    print(table(["network", "gradient, ms", "step, ms", "step, gradients"], rows))


if __name__ == "__main__":
    main()
