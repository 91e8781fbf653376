"""What Kronecker factors cost, in plain gradients, and how many iterations they save conjugate gradients.

Everything that is compared runs in turns within one process; figures are medians. The iterations are counted on
images and labels of `load_images`, after some steps of Adam: on random numbers they would say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from _problems import LOSS, batch_for, gradient_of, mlp
from _timing import side_by_side, table

import tf_natgrad as ng
from tf_natgrad.data import load_images

WIDTHS, BATCH, DAMPING = (784, 512, 512, 10), 512, 0.01


def costs(rounds: int) -> dict[str, float]:
    """Seconds of the factors (labels drawn, as training has them), of the damped inverse, and of a product with it."""
    model = mlp(*WIDTHS)
    x, y = batch_for(model, BATCH)
    vector = tf.random.stateless_normal([model.count_params()], [5, 6])

    def made():
        return ng.operators.KroneckerFisher(model, LOSS, x, fisher="mc")

    @tf.function
    def factors():
        return [(block.inputs, block.gradients) for block in made().blocks]

    fixed = made()
    inverses = {split: tf.function(lambda split=split: _inverted(fixed, split)) for split in ("pi", "exact")}
    inverse = fixed.inverse(DAMPING, split="pi")
    product = tf.function(lambda: inverse.matvec(vector))
    functions = {"gradient": gradient_of(model, x, y), "factors": factors, "product": product}
    functions |= {f"inverse, {split}, and product": function for split, function in inverses.items()}
    return side_by_side(functions, rounds, 5, "factors")


def _inverted(fisher: ng.operators.KroneckerFisher, split: str) -> tf.Tensor:
    """The inverse, of which a number is asked for, so that it is computed."""
    return fisher.inverse(DAMPING, split=split).matvec(tf.ones([fisher.shape[0]]))


def iterations(steps: int, damping: float, rtol: float = 1e-3) -> dict[str, int]:
    """Iterations of conjugate gradients for a natural-gradient direction, without and with a preconditioner."""
    keras.utils.set_random_seed(0)
    data = load_images(image_size=14)
    x, y = data.x_train[:BATCH].reshape(BATCH, -1), data.y_train[:BATCH]
    model = mlp(x.shape[1], 64, 64, 10, activation="tanh")
    model.compile("adam", LOSS)
    model.fit(x, y, batch_size=64, epochs=steps * 64 // BATCH, verbose=0)
    found = {}
    for name in (None, "jacobi", "kfac"):
        solver = ng.solvers.ConjugateGradient(rtol=rtol, max_iterations=2000, preconditioner=name)
        _, info = ng.natural_gradient(model, LOSS, x, y, damping=damping, solver=solver)
        found[str(name)] = int(info.iterations)
    return found


def main() -> None:
    """Runs the comparisons and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="turns per comparison (default 15)")
    parser.add_argument("--json", type=pathlib.Path, help="file in which the figures are kept")
    options = parser.parse_args()
    times = costs(options.rounds)
    rows = [[name, seconds * 1e3, seconds / times["gradient"]] for name, seconds in times.items()]
    print(table([f"{'-'.join(map(str, WIDTHS))}, batch {BATCH}", "milliseconds", "gradients"], rows))
    counts = {f"{s} steps, damping {d:g}": iterations(s, d) for s in (0, 40, 400) for d in (1e-1, 1e-3)}
    rows = [[name, *found.values()] for name, found in counts.items()]
    print("\n" + table(["CG iterations, after", "plain", "jacobi", "kfac"], rows))
    if options.json:
        options.json.write_text(json.dumps({"seconds": times, "iterations": counts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
