"""What a natural-gradient step costs: in plain gradients, and against the blog's dense route.

Everything that is compared runs in turns within one process; figures are medians. Inputs are random numbers of
MNIST's shape: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import unittest.mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from _problems import LOSS, batch_for, gradient_of, mlp
from _timing import side_by_side, table

import tf_natgrad as ng

DAMPING = 0.1


def step_of(model: keras.Model, x: tf.Tensor, y: tf.Tensor, solver):
    """One natural-gradient direction, compiled."""
    return tf.function(lambda: ng.natural_gradient(model, LOSS, x, y, damping=DAMPING, solver=solver)[0])


def dense_step_of(model: keras.Model, x: tf.Tensor, y: tf.Tensor):
    """The blog's route: `tf.hessians` of the self-KL, then the SVD pseudo-inverse."""

    @tf.function
    def step():
        fisher = ng.operators.Fisher(model, LOSS, x, training=True)
        dense = fisher.to_dense(method="hessians")
        dense = tf.linalg.set_diag(dense, tf.linalg.diag_part(dense) + DAMPING)
        gradient = fisher.factor_transpose_matvec(fisher.loss_gradient(y).u)
        operator = tf.linalg.LinearOperatorFullMatrix(dense, is_self_adjoint=True)
        return ng.solvers.SVDPseudoInverse(rcond=1e-6).solve(operator, gradient).value

    return step


def products_of(model: keras.Model, x: tf.Tensor, count: int):
    """`count` products with the Fisher inside one loop, as conjugate gradients take them."""

    @tf.function
    def products():
        fisher = ng.operators.Fisher(model, LOSS, x, training=True)
        start = tf.ones([fisher.shape[0]])

        def body(k, v):
            image = fisher.matvec(v)
            return k + 1, image / tf.norm(image)

        return tf.while_loop(lambda k, v: k < count, body, (0, start))[1]

    return products


def against_dense(size: int, batch_size: int, rounds: int) -> list[list[object]]:
    """The blog's problem: the exact step against the dense one, and how far their answers are apart."""
    model = mlp(size * size, 10)
    x, y = batch_for(model, batch_size)
    gradient, gram, dense = gradient_of(model, x, y), step_of(model, x, y, "gram"), dense_step_of(model, x, y)
    fast = side_by_side({"gradient": gradient, "gram": gram}, rounds=4 * rounds, progress="exact step")
    slow = side_by_side({"dense": dense}, rounds=max(3, rounds // 4), progress="dense step")
    difference = tf.norm(gram() - dense()) / tf.norm(dense())
    return [
        [f"{size}x{size}, batch {batch_size}: gradient", fast["gradient"] * 1e3, 1.0, ""],
        ["  exact step (Gram)", fast["gram"] * 1e3, fast["gram"] / fast["gradient"], ""],
        ["  dense step (tf.hessians + SVD)", slow["dense"] * 1e3, slow["dense"] / fast["gradient"], ""],
        ["  dense / exact", "", slow["dense"] / fast["gram"], f"answers differ by {float(difference):.1e}"],
    ]


def self_check(widths: tuple[int, ...], batch_size: int, rounds: int) -> list[list[object]]:
    """What it costs that each step checks itself: the step with its check and without, in turns.

    The step is what training takes of it: the direction `d` and `d^T F d`.
    """
    model = mlp(*widths)
    x, y = batch_for(model, batch_size)

    def step():
        value, info = ng.natural_gradient(model, LOSS, x, y, damping=DAMPING, solver="gram")
        return value, info.quadratic_form

    checked, unchecked = tf.function(step), tf.function(lambda: step())
    checked()
    with unittest.mock.patch.object(ng.solvers.Gram, "conditions", lambda *_: []):
        unchecked()
    times = side_by_side(
        {"checked": checked, "unchecked": unchecked}, rounds=20 * rounds, repeats=20, progress="check of the step"
    )
    share = times["checked"] / times["unchecked"] - 1.0
    name = "-".join(map(str, widths))
    return [
        [f"{name}, batch {batch_size}: exact step", times["checked"] * 1e3, "", ""],
        ["  without its check of itself", times["unchecked"] * 1e3, "", f"the check: {share:.1%}"],
    ]


def exact_step(batch_size: int, rounds: int) -> list[list[object]]:
    """The exact damped step of a network whose dense Fisher would take 1.8 TB."""
    model = mlp(784, 512, 512, 10)
    x, y = batch_for(model, batch_size)
    times = side_by_side(
        {"gradient": gradient_of(model, x, y), "step": step_of(model, x, y, "gram")}, rounds=4 * rounds, progress="step"
    )
    return [
        [f"784-512-512-10, batch {batch_size}: gradient", times["gradient"] * 1e3, 1.0, ""],
        ["  exact step (Gram)", times["step"] * 1e3, times["step"] / times["gradient"], ""],
    ]


def fisher_product(batch_size: int, rounds: int) -> list[list[object]]:
    """One product inside a loop: the difference between loops of 12 and of 2 products, by ten."""
    model = mlp(784, 512, 512, 10)
    x, y = batch_for(model, batch_size)
    times = side_by_side(
        {
            "gradient": gradient_of(model, x, y),
            "few": products_of(model, x, 2),
            "many": products_of(model, x, 12),
            "cg": step_of(model, x, y, ng.solvers.ConjugateGradient(rtol=0.0, max_iterations=10)),
        },
        rounds=2 * rounds,
        repeats=3,
        progress="product",
    )
    product = (times["many"] - times["few"]) / 10
    return [
        [f"784-512-512-10, batch {batch_size}: gradient", times["gradient"] * 1e3, 1.0, ""],
        ["  Fisher product inside a loop", product * 1e3, product / times["gradient"], ""],
        ["  step by 10 iterations of CG", times["cg"] * 1e3, times["cg"] / times["gradient"], ""],
    ]


def main() -> None:
    """Runs the comparisons and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns per comparison (default 15)")
    parser.add_argument("--no-dense", action="store_true", help="leave out the dense route, which takes seconds a step")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    rows: list[list[object]] = []
    if not arguments.no_dense:
        rows += against_dense(14, 32, arguments.rounds)
    rows += exact_step(32, arguments.rounds)
    rows += self_check((196, 10), 32, arguments.rounds)
    rows += self_check((784, 512, 512, 10), 32, arguments.rounds)
    rows += fisher_product(512, arguments.rounds)
    print(table(["", "milliseconds", "gradients", ""], rows))


if __name__ == "__main__":
    main()
