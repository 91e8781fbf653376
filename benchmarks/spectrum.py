"""What eigenvalues cost: extreme pairs by two methods, and Lanczos against its products alone.

The Hessian is that of a relu network on MNIST at 14x14 (or on what stands in for it); what is compared runs in turns
within one process, and figures are medians after tracing.
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
from _problems import LOSS, gradient_of, mlp
from _timing import side_by_side, table

import tf_natgrad as ng
from tf_natgrad.data import load_images
from tf_natgrad.spectrum._krylov import krylov_of

EXAMPLES = 2000
STEPS = 90


def products_of(operator: ng.operators.Hessian, count: int):
    """`count` products inside one loop, as Lanczos takes them."""

    @tf.function
    def products():
        def body(k, v):
            image = operator.matvec(v)
            return k + 1, image / tf.norm(image)

        return tf.while_loop(lambda k, v: k < count, body, (0, tf.ones([operator.shape[0]])))[1]

    return products


def main() -> None:
    """Runs the comparison, prints a table and keeps the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns per comparison (default 9)")
    parser.add_argument("--pairs", type=int, default=10, help="eigenpairs wanted (default 10)")
    parser.add_argument("--tol", type=float, default=1e-4, help="tolerance of the residuals (default 1e-4)")
    parser.add_argument("--json", type=pathlib.Path, help="file in which the figures are kept")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    images = load_images("auto", 14)
    x, y = tf.constant(images.x_train[:EXAMPLES]), tf.constant(images.y_train[:EXAMPLES])
    model = mlp(x.shape[1], 128, 10)
    hessian = ng.operators.Hessian(model, LOSS, (x, y))
    generator = np.random.default_rng(0)
    krylov = krylov_of(hessian, STEPS)
    start = tf.constant(generator.standard_normal(hessian.shape[0]), tf.float32)

    def lanczos():
        krylov.start(start)
        krylov.extend(STEPS, generator)

    def pairs(method: str):
        return ng.spectrum.eigsh(hessian, arguments.pairs, "LA", method=method, tol=arguments.tol)

    times = side_by_side(
        {
            "gradient": gradient_of(model, x, y),
            f"{STEPS} products": products_of(hessian, STEPS),
            f"Lanczos, {STEPS} steps": lanczos,
            f"{arguments.pairs} pairs, Lanczos on the device": lambda: pairs("lanczos"),
            f"{arguments.pairs} pairs, ARPACK": lambda: pairs("arpack"),
        },
        arguments.rounds,
        1,
        "spectrum",
    )
    found = {method: pairs(method) for method in ("lanczos", "arpack")}
    rows = [
        {"quantity": name, "milliseconds": 1e3 * seconds, "gradients": seconds / times["gradient"]}
        for name, seconds in times.items()
    ]
    print(f"{images.name}, {EXAMPLES} images, {x.shape[1]}-128-10, {hessian.shape[0]:,} parameters")
    print(table(["", "milliseconds", "gradients"], [[r["quantity"], r["milliseconds"], r["gradients"]] for r in rows]))
    print(f"Lanczos over its products: {times[f'Lanczos, {STEPS} steps'] / times[f'{STEPS} products']:.2f}")
    for method, result in found.items():
        worst = result.info.residuals.max() / np.abs(result.eigenvalues).max()
        print(f"{method}: {result.info.products} products, largest residual {worst:.1e} of the largest eigenvalue")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
