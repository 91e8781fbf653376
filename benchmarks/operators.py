"""What products with curvature matrices cost, in plain gradients, and how large an exact batch can be.

Everything that is compared runs in turns within one process; figures are medians. Inputs are random numbers of
MNIST's shape: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from _problems import LOSS, batch_for, convolutional, gradient_of, mlp, recurrent
from _timing import side_by_side, table

import tf_natgrad as ng

MATRICES = {
    "Fisher": ng.operators.Fisher,
    "Gauss-Newton": ng.operators.GaussNewton,
    "Hessian": ng.operators.Hessian,
}


def loop_of(matrix: type, model: keras.Model, x: tf.Tensor, y: tf.Tensor, count: int):
    """`count` products inside one loop."""

    @tf.function
    def loop():
        operator = matrix(model, LOSS, (x, y), training=True)

        def body(k, v):
            image = operator.matvec(v)
            return k + 1, image / tf.norm(image)

        return tf.while_loop(lambda k, v: k < count, body, (0, tf.ones([operator.shape[0]])))[1]

    return loop


def product_costs(name: str, model: keras.Model, batch: int, rounds: int) -> list[dict]:
    """One product of each matrix inside a loop: the difference between loops of 6 and of 2 products, by four."""
    x, y = batch_for(model, batch)
    functions = {"gradient": gradient_of(model, x, y)}
    for label, matrix in MATRICES.items():
        functions |= {f"{label} {count}": loop_of(matrix, model, x, y, count) for count in (2, 6)}
    times = side_by_side(functions, rounds, 3, f"{name}, batch {batch}")
    return [
        {
            "network": name,
            "parameters": model.count_params(),
            "batch": batch,
            "quantity": f"{label} product",
            "milliseconds": 250 * (times[f"{label} 6"] - times[f"{label} 2"]),
            "gradients": (times[f"{label} 6"] - times[f"{label} 2"]) / 4 / times["gradient"],
        }
        for label in MATRICES
    ]


def eight_vectors(name: str, model: keras.Model, batch: int, rounds: int) -> list[dict]:
    """Eight vectors at once against eight products one after the other."""
    x, y = batch_for(model, batch)
    fisher = ng.operators.Fisher(model, LOSS, (x, y))
    vectors = tf.random.stateless_normal([fisher.shape[0], 8], [5, 6])
    columns = [vectors[:, i] for i in range(8)]
    times = side_by_side(
        {
            "gradient": gradient_of(model, x, y),
            "at once": lambda: fisher.matmul(vectors),
            "in turn": lambda: [fisher.matvec(v) for v in columns],
        },
        rounds,
        3,
        f"{name}, eight vectors",
    )
    return [
        {
            "network": name,
            "parameters": model.count_params(),
            "batch": batch,
            "quantity": f"Fisher, eight vectors {how}",
            "milliseconds": 1e3 * times[how],
            "gradients": times[how] / times["gradient"],
        }
        for how in ("at once", "in turn")
    ]


def exact_step(batch: int) -> dict:
    """One exact damped step of the convolutional network, in this process: time and greatest memory."""
    model = convolutional()
    x, y = batch_for(model, batch)
    start = time.perf_counter()
    direction, info = ng.natural_gradient(model, LOSS, x, y, damping=0.1, solver="gram")
    return {
        "network": "2c2d",
        "parameters": model.count_params(),
        "batch": batch,
        "quantity": f"exact step, {info.rows} rows (first call)",
        "milliseconds": 1e3 * (time.perf_counter() - start),
        "GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "finite": bool(tf.reduce_all(tf.math.is_finite(direction))),
    }


def largest_batch(sizes: list[int], memory: float) -> list[dict]:
    """Exact steps of growing batches, each in a process of its own, until one does not fit into `memory` GiB."""
    rows = []
    for batch in sizes:
        limit = f"ulimit -v {int((memory + 8) * 2**20)}; exec {sys.executable} {__file__} --exact-step {batch}"
        done = subprocess.run(["bash", "-c", limit], capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            break
        row = json.loads(lines[-1])
        if row["GiB"] > memory:
            break
        rows.append(row)
        print(f"  2c2d, batch {batch}: {row['milliseconds'] / 1e3:.0f} s, {row['GiB']:.1f} GiB", flush=True)
    return rows


def main() -> None:
    """Runs the comparisons, prints a table and keeps the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns per comparison (default 15)")
    parser.add_argument("--memory", type=float, default=20.0, help="GiB that an exact step may take (default 20)")
    parser.add_argument(
        "--batches", type=int, nargs="*", default=[128, 512], help="batches of the exact step (default 128 512)"
    )
    parser.add_argument("--json", type=pathlib.Path, help="file in which the figures are kept")
    parser.add_argument("--exact-step", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.exact_step:
        print(json.dumps(exact_step(arguments.exact_step)))
        return
    keras.utils.set_random_seed(0)
    rows = product_costs("784-512-512-10", mlp(784, 512, 512, 10), 512, arguments.rounds)
    rows += product_costs("784-512-512-10", mlp(784, 512, 512, 10), 64, arguments.rounds)
    rows += product_costs("196-32-10", mlp(196, 32, 10), 512, arguments.rounds)
    rows += product_costs("784-512-512-100", mlp(784, 512, 512, 100), 512, arguments.rounds)
    rows += product_costs("2c2d", convolutional(), 64, max(3, arguments.rounds // 3))
    rows += product_costs("LSTM 64", recurrent(), 64, max(3, arguments.rounds // 3))
    rows += eight_vectors("196-32-10", mlp(196, 32, 10), 32, arguments.rounds)
    rows += eight_vectors("784-512-512-10", mlp(784, 512, 512, 10), 512, max(3, arguments.rounds // 3))
    rows += largest_batch(arguments.batches, arguments.memory)
    cells = [
        [
            f"{r['network']}, batch {r['batch']}: {r['quantity']}",
            r["milliseconds"],
            r.get("gradients", ""),
            r.get("GiB", ""),
        ]
        for r in rows
    ]
    print(table(["", "milliseconds", "gradients", "GiB"], cells))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
