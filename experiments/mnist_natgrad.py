"""Softmax regression on MNIST: gradient descent, the blog's natural gradient, and what keeps the latter finite.

Three recipes of the blog's author are run to the letter (float32, pseudo-inverse, no damping) until they explode,
which means here: the loss of a batch exceeds 10 or is not finite. One seed of each goes through the dense Fisher,
`tf.hessians` and the SVD, and 20 seeds through the Gram matrix, which gives the same steps a thousand times
faster. Metric, learning rate and damping are then varied one at a time.

A run is determined by its seed: the initial weights and the order of the examples, which all runs of one seed and
batch size share. In the CSV a row `iteration` is about the weights after so many updates: their loss on the next
batch, which is then used for the next update, and now and then their loss and accuracy on the test set.
`seconds` is the time spent in updates up to there.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from drawing.mnist_natgrad import draw_convergence, draw_step_cost
from kit import arguments as options
from kit.mnist_results import COLUMNS, COST_COLUMNS, KEY_COLUMNS, Results, has_exploded, table
from kit.recording import Recorder, read_rows
from kit.softmax_regression import Run, SoftmaxRegression, cross_entropy, load
from kit.step_cost import run_costs

# TensorFlow and matplotlib are imported where they are used: `--help` and `--replot` need not wait for TensorFlow.

# Eigenvalues up to this share of the largest count as zero.
RCOND = 1e-6


def blog_direction(weights, metric: str, damping: float, x, y):
    """The natural gradient as the blog takes it: the Fisher as the Hessian of the divergence of the model from itself.

    Args:
        weights: `[pixels, 10]`.
        metric: `"logits"`, or `"probs"`, which is the blog's slip: probabilities where the class expects logits.
        damping: added to the diagonal of the Fisher.
        x: the inputs of the batch.
        y: its labels.

    Returns:
        `(loss, direction, rank)`: the batch's loss, `[n]`, and how many eigenvalues were used.
    """
    import tensorflow as tf

    import tf_natgrad as ng

    theta = tf.reshape(weights, [-1])
    logits = tf.matmul(x, tf.reshape(theta, weights.shape))
    loss = cross_entropy(logits, y)
    gradient = tf.gradients(loss, theta)[0]
    pd = ng.distributions.CategoricalPd(tf.nn.softmax(logits) if metric == "probs" else logits)
    # One side is held fixed: without `stop_gradient` the divergence is zero, and so is its Hessian.
    self_kl = tf.reduce_mean(pd.kl(ng.distributions.CategoricalPd(tf.stop_gradient(pd.logits))))
    fisher = tf.hessians(self_kl, theta)[0]
    fisher = tf.linalg.set_diag(fisher, tf.linalg.diag_part(fisher) + damping)
    matrix = tf.linalg.LinearOperatorFullMatrix(fisher, is_self_adjoint=True)
    solution = ng.solvers.SVDPseudoInverse(RCOND).solve(matrix, gradient)
    return loss, solution.value, solution.info.rank


def update(weights, learning_rate: float, direction) -> None:
    """The step: the weights move against the direction."""
    import tensorflow as tf

    weights.assign_sub(learning_rate * tf.reshape(direction, weights.shape))


# The author's three recipes: name, metric, learning rate, batch size.
AUTHOR = (
    ("March script", "logits", 0.1, 16),
    ("June script", "probs", 4e-4, 16),
    ("blog text", "probs", 1e-3, 32),
)
# The March script with one thing changed: name, learning rate, damping. Seeds: many for the first, one for the rest.
VARIATIONS = (
    ("rate 0.0004", 4e-4, 0.0),
    ("rate 0.01", 0.01, 0.0),
    ("damping 0.001", 0.1, 1e-3),
    ("damping 0.01", 0.1, 1e-2),
    ("damping 0.1", 0.1, 0.1),
)
# What keeps the natural gradient finite, and gradient descent beside it.
CORRECTED = {"learning_rate": 0.7, "damping": 0.1, "batch_size": 32, "solver": "gram"}
GRADIENT_DESCENT = {"learning_rate": 0.1, "batch_size": 16}
# A dense step takes about a second: enough of them to see every recipe of the author explode.
DENSE_ITERATIONS = 100


def direction(problem: SoftmaxRegression, metric: str, solver: str, damping: float, x, y):
    """What an update subtracts, before the learning rate: graph code.

    Args:
        problem: the model.
        metric: see `Run`.
        solver: see `Run`.
        damping: see `Run`.
        x: the inputs of the batch.
        y: its labels.

    Returns:
        `(loss, direction, rank)`: the batch's loss, `[n]`, and how many eigenvalues were used (-1: unknown).
    """
    import keras
    import tensorflow as tf

    import tf_natgrad as ng

    if solver == "svd":
        return blog_direction(problem.weights, metric, damping, x, y)
    with tf.GradientTape() as tape:
        loss = cross_entropy(problem.model(x), y)
    gradient = tf.reshape(tape.gradient(loss, problem.weights), [-1])
    if metric == "euclidean":
        return loss, gradient, tf.constant(-1)
    # The same Fisher without its matrix.
    if metric == "logits":
        fisher = ng.operators.Fisher(problem.model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), x)
        rhs = fisher.loss_gradient(y)
    else:
        fisher = ng.operators.Fisher(problem.softmax_model, ng.distributions.CategoricalPd, x)
        rhs = gradient
    algorithm = ng.solvers.Gram(RCOND) if solver == "gram" else ng.solvers.ConjugateGradient(rtol=1e-4)
    solution = algorithm.solve(fisher.damped(damping) if damping else fisher, rhs)
    return loss, solution.value, tf.constant(-1) if solver == "cg" else solution.info.rank


def compiled_update(problem: SoftmaxRegression, run: Run) -> Callable:
    """One iteration as a compiled function of `(x, y)` that returns the loss before the update."""

    def iteration(x, y):
        loss, value, _ = direction(problem, run.metric, run.solver, run.damping, x, y)
        update(problem.weights, run.learning_rate, value)
        return loss

    return problem.compiled(iteration, run.batch_size)


def is_evaluated(iteration: int, last: int) -> bool:
    """Whether the test set is looked at: always up to 100 iterations, then at every fifth, and at the end."""
    return iteration <= 100 or iteration % 5 == 0 or iteration == last


def train(problem: SoftmaxRegression, run: Run, step: Callable) -> Iterator[dict[str, float | int | None]]:
    """Makes one run.

    Args:
        problem: the model and its data.
        run: which one.
        step: its compiled update.

    Yields:
        The columns from `iteration` on, row by row.
    """
    import tensorflow as tf

    problem.reset(run.seed)
    seconds = 0.0
    for iteration, (x, y) in enumerate(problem.batches(run.seed, run.batch_size)):
        is_last = iteration == run.iterations
        test_loss, test_accuracy = problem.evaluate() if is_evaluated(iteration, run.iterations) else (None, None)
        x, y = tf.constant(x), tf.constant(y)
        start = time.perf_counter()
        loss = float(cross_entropy(problem.model(x), y) if is_last else step(x, y))
        duration = time.perf_counter() - start
        row = {"iteration": iteration, "loss": loss, "test_loss": test_loss, "test_accuracy": test_accuracy}
        yield {**row, "seconds": seconds}
        if is_last or has_exploded(loss):
            return
        seconds += duration


def plan(arguments: argparse.Namespace, dataset: str, sizes: Sequence[int]) -> list[Run]:
    """All runs, in the order in which they are made; the slow dense ones come last."""
    size, seeds, iterations = sizes[0], arguments.seeds, arguments.iterations

    def runs(name, rate, damping, batch, metric, solver, count, image_size=size, last=iterations):
        return [
            Run(name, dataset, image_size, batch, rate, damping, metric, solver, seed, last) for seed in range(count)
        ]

    rate, batch = GRADIENT_DESCENT["learning_rate"], GRADIENT_DESCENT["batch_size"]
    found = runs("gradient descent", rate, 0.0, batch, "euclidean", "none", seeds)
    rate, damping, batch, solver = (getattr(arguments, name) for name in CORRECTED)
    found += runs("corrected", rate, damping, batch, "logits", solver, seeds)
    for other in [] if solver == "svd" else sizes[1:]:
        # The Fisher grows with the squared norm of the inputs, which is proportional to the number of pixels.
        scaled = damping * (other / size) ** 2
        found += runs("corrected", rate, scaled, batch, "logits", solver, min(seeds, 2), other)
    for index, (name, rate, damping) in enumerate(VARIATIONS):
        found += runs(name, rate, damping, 16, "logits", "gram", seeds if index == 0 else 1)
    for name, metric, rate, batch in AUTHOR:
        found += runs(name, rate, 0.0, batch, metric, "gram", 4 * seeds)
    if size < 28:
        last = min(iterations, 2 if arguments.smoke else DENSE_ITERATIONS)
        for name, metric, rate, batch in AUTHOR:
            found += runs(name, rate, 0.0, batch, metric, "svd", 1, last=last)
    return found


def run_all(arguments: argparse.Namespace, problems: dict[int, SoftmaxRegression], out: pathlib.Path) -> None:
    """Makes all runs and measurements and records them."""
    from tf_natgrad._progress import progress_bar

    sizes = list(problems)
    runs = {run.key: run for run in plan(arguments, problems[sizes[0]].data.name, sizes)}
    recorder = Recorder(
        out / "mnist_convergence.csv",
        COLUMNS,
        KEY_COLUMNS,
        arguments.resume,
        lambda key, rows: key in runs and runs[key].is_complete(rows),
    )
    compiled: dict[tuple, Callable] = {}
    with progress_bar(runs.values(), unit="run", desc="training", mininterval=1.0) as bar:
        for run in bar:
            if run.key in recorder:
                continue
            bar.set_description(f"{run.run}, {run.solver}, seed {run.seed}")
            problem = problems[run.image_size]
            # Runs that differ in their seed share the compiled update.
            kind = (run.image_size, run.metric, run.solver, run.damping, run.learning_rate, run.batch_size)
            if kind not in compiled:
                compiled[kind] = compiled_update(problem, run)
            for row in train(problem, run, compiled[kind]):
                recorder.append(**run.columns, **row)
                if row["iteration"] % 10 == 0:
                    bar.set_postfix(iteration=row["iteration"])
    run_costs(arguments, problems, direction, RCOND, out / "mnist_step_cost.csv")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser_of(__doc__)
    add = parser.add_argument
    options.add_dataset(parser)
    what = "of the main runs (default 14); 28 has no dense runs"
    add("--image-size", type=int, choices=(14, 28), default=14, help=what)
    add("--batch-size", type=options.positive(int), help="of the corrected runs (default 32)")
    add("--learning-rate", type=options.positive(float), help="of the corrected runs (default 0.7)")
    add(
        "--damping",
        type=options.non_negative,
        help="of the corrected runs (default 0.1); for another image size it is multiplied by the ratio of pixels",
    )
    what = "of the corrected runs (default gram; svd is dense, a second an iteration)"
    add("--solver", choices=("gram", "cg", "svd"), help=what)
    add(
        "--iterations",
        type=options.positive(int),
        help="of every run, unless it explodes (default 1000; 20 with --smoke)",
    )
    add(
        "--seeds",
        type=options.positive(int),
        help="of a training run (default 5; 1 with --smoke); explosion windows take 4 times as many",
    )
    parser.set_defaults(**CORRECTED)
    options.add_recording(parser)
    add(
        "--recorded",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="FILE",
        help="losses, one per line, to be drawn over the blog's figure; may be given several times",
    )
    add(
        "--dense-28",
        action="store_true",
        help="time the dense SVD at 28x28 too, which takes many minutes and GiB; without it the recorded row is kept",
    )
    arguments = parser.parse_args(argv)
    options.check_recording(parser, arguments)
    if arguments.solver == "svd" and arguments.image_size == 28:
        parser.error("--solver svd takes minutes for each iteration at --image-size 28: use gram or cg")
    for path in arguments.recorded:
        if not path.is_file():
            parser.error(f"--recorded: there is no file {path}")
    arguments.iterations = arguments.iterations or (20 if arguments.smoke else 1000)
    arguments.seeds = arguments.seeds or (1 if arguments.smoke else 5)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, records, draws and reports."""
    arguments = parse(argv)
    options.show_log()
    start = time.perf_counter()
    out = options.output_folder(arguments, "mnist_natgrad")
    convergence, costs = out / "mnist_convergence.csv", out / "mnist_step_cost.csv"
    if arguments.replot:
        if missing := options.none_of((convergence, costs)):
            return options.failed(f"nothing to draw: {missing}")
    else:
        try:
            problems = load(arguments)
        except ValueError as error:
            return options.failed(error)
        run_all(arguments, problems, out)
    results = Results(read_rows(convergence, COLUMNS), read_rows(costs, COST_COLUMNS))
    draw_convergence(results, out / "mnist_convergence.png", arguments.recorded)
    draw_step_cost(results, out / "mnist_step_cost.png")
    print(f"\n{table(results)}\n\nCSV files and figures: {out} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
