"""What Kronecker factors cost, in plain gradients, and how many iterations they save conjugate gradients.

Everything that is compared runs in turns within one process; figures are medians. The iterations are counted on
images and labels of `load_images`, after some steps of Adam: on random numbers they would say nothing.

`--peer PYTHON` sets curvlinops beside it, which has the same factors for PyTorch: PYTHON is that of an environment with
`pip install curvlinops-for-pytorch`. It runs before and after, and the mean of the two medians is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess

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


def costs_of_peer(python: str, rounds: int, threads: int) -> dict[str, float]:
    """The same of curvlinops, in a process of its own."""
    settings = {"widths": WIDTHS, "batch": BATCH, "damping": DAMPING, "rounds": rounds, "threads": threads}
    script = pathlib.Path(__file__).with_name("_curvlinops.py")
    command = [python, "-W", "ignore", str(script), json.dumps(settings)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


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
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that has curvlinops, to be compared with")
    parser.add_argument("--threads", type=int, default=1, help="of each library (default 1)")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    before = costs_of_peer(options.peer, options.rounds, options.threads) if options.peer else {}
    times = costs(options.rounds)
    rows = [[name, seconds * 1e3, seconds / times["gradient"]] for name, seconds in times.items()]
    header = [f"{'-'.join(map(str, WIDTHS))}, batch {BATCH}", "milliseconds", "gradients"]
    if options.peer:
        after = costs_of_peer(options.peer, options.rounds, options.threads)
        peer = {name: 0.5 * (before[name] + after[name]) for name in times}
        header += ["curvlinops, milliseconds", "gradients", "ratio"]
        rows = [
            [*row, peer[row[0]] * 1e3, peer[row[0]] / peer["gradient"], peer[row[0]] / times[row[0]]] for row in rows
        ]
    print(table(header, rows))
    counts = {f"{s} steps, damping {d:g}": iterations(s, d) for s in (0, 40, 400) for d in (1e-1, 1e-3)}
    rows = [[name, *found.values()] for name, found in counts.items()]
    print("\n" + table(["CG iterations, after", "plain", "jacobi", "kfac"], rows))
    if options.json:
        kept = {"seconds": times, "iterations": counts} | ({"curvlinops": peer} if options.peer else {})
        options.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
