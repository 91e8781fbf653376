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
import dataclasses
import logging
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from _arguments import add_dataset, add_recording, check_recording, non_negative, output_folder, positive, show_log
from _drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, pyplot, save, set_caption, title_of
from _recording import Recorder, Row, as_text, read_rows

# TensorFlow and matplotlib are imported where they are used: `--help` and `--replot` need not wait for TensorFlow.

LOGGER = logging.getLogger("tf_natgrad")
COLUMNS = (
    *("run", "dataset", "image_size", "batch_size", "learning_rate", "damping", "metric", "solver", "seed"),
    *("iteration", "loss", "test_loss", "test_accuracy", "seconds"),
)
KEY_COLUMNS = COLUMNS[: COLUMNS.index("iteration")]
COST_COLUMNS = ("image_size", "parameters", "batch_size", "solver", "milliseconds", "relative_difference", "rank")

EXPLODED_LOSS = 10.0
TARGET_TEST_LOSS = 0.55
RCOND = 1e-6
AUTHOR_STOPPED = 63
# A dense step takes about a second: enough of them to see every recipe of the author explode.
DENSE_ITERATIONS = 100
COST_BATCH_SIZE = 32
COST_SOLVERS = ("svd", "gram", "cg")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run; its fields up to `seed` are columns of the CSV.

    Attributes:
        run: name of the configuration.
        dataset: `"mnist"` or `"digits"`.
        image_size: height and width of the images.
        batch_size: examples per iteration.
        learning_rate: factor of the direction.
        damping: added to the diagonal of the Fisher; 0 is the pseudo-inverse.
        metric: `"euclidean"`, `"logits"` (the Fisher), or `"probs"` (the blog's: probabilities taken as logits).
        solver: `"gram"`, `"cg"`, `"svd"` (dense `tf.hessians` and SVD), or `"none"`.
        seed: of weights and batches.
        iterations: updates to be made, unless it explodes.
    """

    run: str
    dataset: str
    image_size: int
    batch_size: int
    learning_rate: float
    damping: float
    metric: str
    solver: str
    seed: int
    iterations: int

    @property
    def key(self) -> tuple[str, ...]:
        """The values of the key columns, as text."""
        return tuple(as_text(getattr(self, column)) for column in KEY_COLUMNS)

    def is_complete(self, rows: Sequence[Row]) -> bool:
        """Whether these rows are all that this run would record."""
        last = int(rows[-1]["iteration"])
        return last == self.iterations or (last < self.iterations and has_exploded(float(rows[-1]["loss"])))


def has_exploded(loss: float) -> bool:
    """Whether a batch's loss is above 10 or not finite; softmax regression starts at log 10 = 2.3."""
    return not loss <= EXPLODED_LOSS


def is_evaluated(iteration: int, last: int) -> bool:
    """Whether the test set is looked at: always up to 100 iterations, then at every fifth, and at the end."""
    return iteration <= 100 or iteration % 5 == 0 or iteration == last


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


def plan(arguments: argparse.Namespace, dataset: str, sizes: Sequence[int]) -> list[Run]:
    """All runs, in the order in which they are made; the slow dense ones come last."""
    size, seeds, iterations = sizes[0], arguments.seeds, arguments.iterations

    def runs(name, rate, damping, batch, metric, solver, count, image_size=size, last=iterations):
        return [
            Run(name, dataset, image_size, batch, rate, damping, metric, solver, seed, last) for seed in range(count)
        ]

    rate, damping, batch, solver = arguments.learning_rate, arguments.damping, arguments.batch_size, arguments.solver
    found = runs("gradient descent", 0.1, 0.0, 16, "euclidean", "none", seeds)
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


class Problem:
    """Softmax regression without biases on one data set, with its compiled updates.

    Args:
        data: an `ImageData`.
    """

    def __init__(self, data):
        import keras
        import tensorflow as tf

        self.data = data
        self.dense = keras.layers.Dense(10, use_bias=False)
        self.model = keras.Sequential([keras.Input((data.image_size**2,)), self.dense])
        self.softmax_model = keras.Sequential([self.model, keras.layers.Softmax()])
        self.weights = self.dense.kernel.value
        self._updates = {}
        x_test, y_test = tf.constant(data.x_test), tf.constant(data.y_test)

        @tf.function
        def evaluate():
            logits = self.model(x_test)
            correct = tf.equal(tf.argmax(logits, -1, tf.int32), y_test)
            return self.cross_entropy(logits, y_test), tf.reduce_mean(tf.cast(correct, tf.float32))

        self._evaluate = evaluate

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return 10 * self.data.image_size**2

    def reset(self, seed: int) -> None:
        """Draws the initial weights; the blog's variable was a flat vector, and TensorFlow 1 drew it as such."""
        import keras

        vector = keras.initializers.GlorotUniform(seed=seed)([self.parameters])
        self.dense.kernel.assign(keras.ops.reshape(vector, self.dense.kernel.shape))

    def batches(self, seed: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches without end: one shuffled pass through the training set after another."""
        rng = np.random.default_rng(seed)
        left = np.zeros(0, np.int64)
        while True:
            while len(left) < batch_size:
                left = np.concatenate([left, rng.permutation(len(self.data.x_train))])
            chosen, left = left[:batch_size], left[batch_size:]
            yield self.data.x_train[chosen], self.data.y_train[chosen]

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the test set."""
        loss, accuracy = self._evaluate()
        return float(loss), float(accuracy)

    @staticmethod
    def cross_entropy(logits, y):
        """The mean cross-entropy, a scalar."""
        import tensorflow as tf

        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))

    def direction(self, metric: str, solver: str, damping: float, x, y):
        """What an update subtracts, before the learning rate: graph code.

        Args:
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

        with tf.GradientTape() as tape:
            loss = self.cross_entropy(self.model(x), y)
        gradient = tf.reshape(tape.gradient(loss, self.weights), [-1])
        if metric == "euclidean":
            return loss, gradient, tf.constant(-1)
        if metric == "logits":
            fisher = ng.operators.Fisher(self.model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), x)
            rhs = fisher.loss_gradient(y)
        else:
            # The slip of the blog: the distribution is given probabilities where it expects logits.
            fisher = ng.operators.Fisher(self.softmax_model, ng.distributions.CategoricalPd, x)
            rhs = gradient
        if solver == "svd":
            dense = fisher.to_dense(method="hessians")
            dense = tf.linalg.set_diag(dense, tf.linalg.diag_part(dense) + damping)
            matrix = tf.linalg.LinearOperatorFullMatrix(dense, is_self_adjoint=True)
            solution = ng.solvers.SVDPseudoInverse(RCOND).solve(matrix, gradient)
        else:
            algorithm = ng.solvers.Gram(RCOND) if solver == "gram" else ng.solvers.ConjugateGradient(rtol=1e-4)
            solution = algorithm.solve(fisher.damped(damping) if damping else fisher, rhs)
        return loss, solution.value, tf.constant(-1) if solver == "cg" else solution.info.rank

    def compiled_direction(self, metric: str, solver: str, damping: float, batch_size: int):
        """`direction` as a compiled function of `(x, y)`."""
        import tensorflow as tf

        x = tf.TensorSpec([batch_size, self.data.image_size**2], tf.float32)
        y = tf.TensorSpec([batch_size], tf.int32)
        function = tf.function(lambda x, y: self.direction(metric, solver, damping, x, y), autograph=False)
        return function.get_concrete_function(x, y)

    def update(self, run: Run):
        """One iteration as a compiled function of `(x, y)` that returns the loss before the update."""
        import tensorflow as tf

        key = (run.metric, run.solver, run.damping, run.learning_rate, run.batch_size)
        if key not in self._updates:
            direction = self.compiled_direction(run.metric, run.solver, run.damping, run.batch_size)

            @tf.function(autograph=False, input_signature=direction.structured_input_signature[0])
            def update(x, y):
                loss, value, _ = direction(x, y)
                self.weights.assign_sub(run.learning_rate * tf.reshape(value, self.weights.shape))
                return loss

            # Tracing now keeps it out of the seconds of the first iteration.
            self._updates[key] = update.get_concrete_function()
        return self._updates[key]

    def train(self, run: Run) -> Iterator[dict[str, float | int | None]]:
        """Makes one run.

        Args:
            run: which one.

        Yields:
            The columns from `iteration` on, row by row.
        """
        import tensorflow as tf

        update = self.update(run)
        self.reset(run.seed)
        seconds = 0.0
        for iteration, (x, y) in enumerate(self.batches(run.seed, run.batch_size)):
            test_loss, test_accuracy = self.evaluate() if is_evaluated(iteration, run.iterations) else (None, None)
            x, y = tf.constant(x), tf.constant(y)
            start = time.perf_counter()
            is_last = iteration == run.iterations
            loss = float(self.cross_entropy(self.model(x), y) if is_last else update(x, y))
            duration = time.perf_counter() - start
            yield {
                "iteration": iteration,
                "loss": loss,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "seconds": seconds,
            }
            if is_last or has_exploded(loss):
                return
            seconds += duration

    def step_cost(self, solver: str, repetitions: int) -> dict[str, float | int | str | None]:
        """Times the direction of the blog's problem, undamped, and compares it with a float64 least-squares solution.

        Args:
            solver: see `Run`.
            repetitions: how often it is timed.

        Returns:
            The columns of the step-cost CSV.
        """
        import tensorflow as tf

        self.reset(0)
        x, y = next(self.batches(0, COST_BATCH_SIZE))
        direction = self.compiled_direction("logits", solver, 0.0, COST_BATCH_SIZE)
        batch = tf.constant(x), tf.constant(y)
        durations = []
        # The first call allocates; where a call takes minutes that is nothing, and it is the only one.
        for _ in range(repetitions + (repetitions > 1)):
            start = time.perf_counter()
            _, value, rank = direction(*batch)
            value, rank = value.numpy(), int(rank)
            durations.append(time.perf_counter() - start)
        reference = least_squares_direction(self.weights.numpy(), x, y)
        return {
            "image_size": self.data.image_size,
            "parameters": self.parameters,
            "batch_size": COST_BATCH_SIZE,
            "solver": solver,
            "milliseconds": 1e3 * statistics.median(durations[-repetitions:]),
            "relative_difference": float(np.linalg.norm(value - reference) / np.linalg.norm(reference)),
            "rank": None if rank < 0 else rank,
        }


def least_squares_direction(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The natural gradient `F^+ g = A^+ u` of softmax regression, by NumPy in float64, without this library.

    Args:
        weights: `[pixels, C]`.
        x: `[N, pixels]`.
        y: `[N]` classes.

    Returns:
        `[pixels * C]`.
    """
    weights, x = weights.astype(np.float64), x.astype(np.float64)
    p = np.exp(x @ weights)
    p /= p.sum(1, keepdims=True)
    root = np.sqrt(p)
    one_hot = np.eye(p.shape[1])[y]
    factor = np.einsum("nc,ca->nca", root, np.eye(p.shape[1])) - np.einsum("nc,na->nca", p, root)
    a = np.einsum("nf,nca->nafc", x, factor).reshape(-1, weights.size) / math.sqrt(len(x))
    u = (root - one_hot / root).reshape(-1) / math.sqrt(len(x))
    # Singular values of A are the square roots of the Fisher's.
    return np.linalg.lstsq(a, u, rcond=math.sqrt(RCOND))[0]


def load(arguments: argparse.Namespace) -> dict[int, Problem]:
    """The problems by image size, the main one first; scikit-learn's digits have only one size."""
    from tf_natgrad.data import load_images

    problems = {}
    for image_size in dict.fromkeys((arguments.image_size, 28)):
        data = load_images(arguments.dataset, image_size)
        if data.image_size not in problems:
            problems[data.image_size] = Problem(data)
        if data.name == "digits":
            size = data.image_size
            LOGGER.warning("data set: scikit-learn's digits; everything runs at %dx%d, none of it is MNIST", size, size)
            break
    return problems


def run_all(arguments: argparse.Namespace, problems: dict[int, Problem], out: pathlib.Path) -> None:
    """Makes all runs and measurements and records them."""
    from tf_natgrad._progress import progress_bar

    sizes = list(problems)
    dataset = problems[sizes[0]].data.name
    runs = {run.key: run for run in plan(arguments, dataset, sizes)}
    recorder = Recorder(
        out / "mnist_convergence.csv",
        COLUMNS,
        KEY_COLUMNS,
        arguments.resume,
        lambda key, rows: key in runs and runs[key].is_complete(rows),
    )
    with progress_bar(runs.values(), unit="run", desc="training", mininterval=1.0) as bar:
        for run in bar:
            if run.key in recorder:
                continue
            bar.set_description(f"{run.run}, {run.solver}, seed {run.seed}")
            columns = {name: getattr(run, name) for name in KEY_COLUMNS}
            for row in problems[run.image_size].train(run):
                recorder.append(**columns, **row)
                if row["iteration"] % 10 == 0:
                    bar.set_postfix(iteration=row["iteration"])

    def is_slow(size: int, solver: str) -> bool:
        return size >= 28 and solver == "svd"

    def is_kept(key, rows) -> bool:
        size, batch_size, solver = int(key[0]), int(key[1]), key[2]
        asked_for_anew = arguments.dense_28 and not arguments.resume
        recorded_once = is_slow(size, solver) and not asked_for_anew
        return size in sizes and batch_size == COST_BATCH_SIZE and (arguments.resume or recorded_once)

    costs = Recorder(
        out / "mnist_step_cost.csv", COST_COLUMNS, ("image_size", "batch_size", "solver"), resume=True, keep=is_kept
    )
    wanted = [
        (size, solver) for size in sizes for solver in COST_SOLVERS if arguments.dense_28 or not is_slow(size, solver)
    ]
    for size, solver in progress_bar(wanted, unit="solver", desc="step cost"):
        if (size, COST_BATCH_SIZE, solver) not in costs:
            repetitions = 30 if solver != "svd" else 1 if arguments.smoke or is_slow(size, solver) else 5
            costs.append(**problems[size].step_cost(solver, repetitions))


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one run recorded, as arrays.

    Attributes:
        first: its first row, for the configuration.
        iteration: `[T]`.
        loss: `[T]`.
        test_loss: `[T]`, NaN where it was not evaluated.
        test_accuracy: `[T]`, NaN where it was not evaluated.
    """

    first: Row
    iteration: np.ndarray
    loss: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray

    @property
    def exploded_at(self) -> int | None:
        """The iteration at which the batch's loss exceeded 10, or `None`."""
        return int(self.iteration[-1]) if has_exploded(self.loss[-1]) else None

    @property
    def reached_at(self) -> int | None:
        """The first evaluated iteration with a test loss of 0.55 or less, or `None`."""
        below = np.flatnonzero(self.test_loss <= TARGET_TEST_LOSS)
        return int(self.iteration[below[0]]) if len(below) else None

    @property
    def at_end(self) -> tuple[float, float]:
        """The last test loss and accuracy."""
        last = np.flatnonzero(~np.isnan(self.test_loss))[-1]
        return float(self.test_loss[last]), float(self.test_accuracy[last])


class Results:
    """The recorded runs, by configuration.

    Args:
        rows: of the convergence CSV.
        costs: of the step-cost CSV.
    """

    def __init__(self, rows: Sequence[Row], costs: Sequence[Row]):
        runs: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            runs.setdefault(tuple(row[column] for column in KEY_COLUMNS), []).append(row)
        self.groups: dict[tuple[str, int, bool], list[Curve]] = {}
        for group in runs.values():
            first = group[0]
            arrays = [
                np.array([float(row[name] or "nan") for row in group])
                for name in ("iteration", "loss", "test_loss", "test_accuracy")
            ]
            name = (first["run"], int(first["image_size"]), first["solver"] == "svd")
            self.groups.setdefault(name, []).append(Curve(first, *arrays))
        self.costs = costs
        self.dataset = rows[0]["dataset"]
        self.size = int(rows[0]["image_size"])
        self.other_sizes = sorted({size for _, size, _ in self.groups} - {self.size})

    def curves(self, name: str, size: int | None = None, dense: bool = False) -> list[Curve]:
        """The runs of one configuration, by seed; none where it was not run."""
        group = self.groups.get((name, size or self.size, dense), [])
        # With `--solver svd` the corrected runs are dense ones.
        return group or ([] if name != "corrected" else self.groups.get((name, size or self.size, True), []))

    def window(self, name: str) -> tuple[int, int, int, int] | None:
        """First and last iteration of explosion, how many seeds exploded, and of how many; `None` where none did."""
        curves = self.curves(name)
        found = [curve.exploded_at for curve in curves if curve.exploded_at is not None]
        return (min(found), max(found), len(found), len(curves)) if found else None

    @property
    def title(self) -> str:
        """The data set in words."""
        return title_of(self.dataset, self.size)


def median_or_none(values: Sequence[int | None]) -> float | None:
    """The median, a run that never got there counting as infinitely late; `None` where that is the median."""
    median = statistics.median(math.inf if value is None else value for value in values)
    return None if math.isinf(median) else median


def dash(value: float | None) -> str:
    """A number for a table, or a dash."""
    return "-" if value is None else f"{value:g}"


def table(results: Results) -> str:
    """What was found, for people."""
    lines = [results.title, ""]
    head = f"{'undamped, explodes (batch loss > 10) at':40s}{'dense SVD':>11s}{'Gram':>7s}{'Gram, all seeds':>26s}"
    lines += [head]
    for name, metric, rate, batch in AUTHOR:
        gram, dense, window = results.curves(name), results.curves(name, dense=True), results.window(name)
        if not gram:
            continue
        seeds = "none" if window is None else f"{window[0]} to {window[1]}, {window[2]} of {window[3]}"
        at = dash(dense[0].exploded_at) if dense else ""
        label = f"{name}: {metric}, rate {rate:g}, batch {batch}"
        lines.append(f"{label:40s}{at:>11s}{dash(gram[0].exploded_at):>7s}{seeds:>26s}")
    to_target = f"to test loss {TARGET_TEST_LOSS:g}"
    lines += [
        "",
        f"{'iterations (median), at the end':40s}{to_target:>19s}{'test loss':>11s}{'accuracy':>10s}  stayed finite",
    ]
    rows = [(name, results.size) for name in ("gradient descent", "corrected")]
    rows += [("corrected", size) for size in results.other_sizes] + [(name, results.size) for name, *_ in VARIATIONS]
    for name, size in rows:
        curves = results.curves(name, size)
        if not curves:
            continue
        end = [statistics.median(values) for values in zip(*(curve.at_end for curve in curves), strict=True)]
        reached = dash(median_or_none([curve.reached_at for curve in curves]))
        finite = sum(curve.exploded_at is None for curve in curves)
        last = int(max(curve.iteration[-1] for curve in curves))
        label = f"{name}, {size}x{size}"
        stayed = f"{finite} of {len(curves)} seeds, {last:,} iterations"
        lines.append(f"{label:40s}{reached:>19s}{end[0]:>11.3f}{end[1]:>10.1%}  {stayed}")
    lines += [
        "",
        f"{'one direction, batch ' + str(COST_BATCH_SIZE):40s}{'milliseconds':>19s}{'rel. diff.':>11s}{'rank':>10s}",
    ]
    for row in results.costs:
        label = f"{SOLVER_NAMES[row['solver']]}, {row['image_size']}x{row['image_size']}"
        milliseconds, difference = float(row["milliseconds"]), float(row["relative_difference"])
        lines.append(f"{label:40s}{milliseconds:>19,.2f}{difference:>11.1e}{row['rank'] or '-':>10s}")
    return "\n".join(lines)


SOLVER_NAMES = {"svd": "dense Hessian + SVD", "gram": "Gram matrix", "cg": "conjugate gradients"}


def draw_convergence(results: Results, path: pathlib.Path, recorded: Sequence[pathlib.Path] = ()) -> None:
    """Draws the four panels: the blog's figure, and metric, learning rate and damping varied one at a time."""
    figure, axes = pyplot().subplots(2, 2, figsize=(13, 10.6), sharex=True)
    (blog, metric), (rate, damping) = axes

    _draw_blog(blog, results, recorded)
    small = "true logits" + _seeds(results.curves("rate 0.0004"))
    _draw_test(metric, results, "rate 0.0004", BLUE, small)
    _draw_exploding(metric, results, "June script", RED, "probabilities as logits", test=True)
    _draw_exploding(metric, results, "blog text", PURPLE, "the same at rate 0.001, batch 32 (blog text)", test=True)
    metric.set_title("The metric alone (rate 0.0004, no damping, batch 16)")

    _draw_exploding(rate, results, "March script", ORANGE, "rate 0.1", test=True)
    _draw_test(rate, results, "rate 0.01", GREEN, "rate 0.01" + _fate(results, "rate 0.01"))
    _draw_test(rate, results, "rate 0.0004", BLUE, "rate 0.0004" + _fate(results, "rate 0.0004"))
    _draw_test(rate, results, "gradient descent", GREY, "gradient descent, rate 0.1")
    rate.set_title("The learning rate alone (true logits, no damping, batch 16)")

    _draw_exploding(damping, results, "March script", ORANGE, "damping 0", test=True)
    for name, colour in (("damping 0.001", RED), ("damping 0.01", PURPLE), ("damping 0.1", SKY)):
        _draw_test(damping, results, name, colour, name + _fate(results, name))
    for size, colour in zip((results.size, *results.other_sizes), (GREEN, "black"), strict=False):
        curves = results.curves("corrected", size)
        if curves:
            label = f"corrected, {size}x{size}: {_settings(curves[0])}"
            _draw_test(damping, results, "corrected", colour, label, size)
    damping.axhline(TARGET_TEST_LOSS, color=GREY, linewidth=0.8, linestyle=":")
    damping.set_title("The damping alone (true logits, rate 0.1, batch 16)")

    for axis in axes.flat:
        axis.set_xscale("log")
        # The upper half is for the legends; what reaches it is on its way out.
        axis.set_ylim(0, 4.6)
        axis.set_ylabel("loss of the batch (nats)" if axis is blog else "loss on the test set (nats)")
        axis.set_xlabel("iteration, from 1 on (logarithmic)")
        axis.tick_params(labelbottom=True)
        axis.grid(alpha=0.25)
        legend = axis.legend(fontsize=8.5, loc="upper left", framealpha=1.0)
        for handle in legend.legend_handles:
            if hasattr(handle, "get_linewidth") and hasattr(handle, "set_marker"):
                handle.set(alpha=1.0, linewidth=1.8)
    figure.suptitle(f"Softmax regression by natural gradient, {results.title}", fontsize=15)
    set_caption(figure, _convergence_caption(results))
    save(figure, path)


def _draw_blog(axis, results: Results, recorded: Sequence[pathlib.Path]) -> None:
    _draw_exploding(axis, results, "March script", ORANGE, "natural gradient as in the March script", test=False)
    for name, colour, label in (
        ("gradient descent", BLUE, "gradient descent, rate 0.1, batch 16"),
        ("corrected", GREEN, "natural gradient, corrected"),
    ):
        curves = results.curves(name)
        if curves:
            label = label if name != "corrected" else f"{label}: {_settings(curves[0])}"
            axis.plot(curves[0].iteration + 1, curves[0].loss, color=colour, alpha=0.18, linewidth=0.6)
            axis.plot(curves[0].iteration + 1, running_mean(curves[0].loss), color=colour, label=label)
    for path, style in zip(recorded, ("-", "--", ":"), strict=False):
        losses = np.loadtxt(path, ndmin=1)
        label = f"recorded: {path.name}"
        axis.plot(1 + np.arange(len(losses)), running_mean(losses), color="black", linestyle=style, label=label)
    axis.axvline(AUTHOR_STOPPED, color="black", linewidth=1.0, linestyle="--")
    axis.annotate(
        f"the author stopped\nat {AUTHOR_STOPPED}",
        (AUTHOR_STOPPED, 2.45),
        (-5, 0),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
    )
    axis.set_title("The blog's figure, redrawn (means over up to 10 iterations)")


def running_mean(values: np.ndarray, width: int = 10) -> np.ndarray:
    """The mean of each value and of up to `width - 1` before it: fewer at first, where the curve is steep."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = end - np.minimum(width, 1 + end // 4)
    return (sums[end] - sums[start]) / (end - start)


def _draw_exploding(axis, results: Results, name: str, colour: str, label: str, *, test: bool) -> None:
    curves, window = results.curves(name), results.window(name)
    for index, curve in enumerate(curves):
        values = curve.test_loss if test else running_mean(curve.loss[: -1 if curve.exploded_at else None])
        seen = np.flatnonzero(~np.isnan(values))
        x, y = 1 + curve.iteration[seen], values[seen]
        text = None if index else f"{label} ({len(curves)} seeds)"
        # Far above the axes the lines would only make the file larger and the rasteriser overflow.
        axis.plot(x, np.minimum(y, 1e3), color=colour, linewidth=0.9, alpha=0.45, label=text)
    if window:
        text = f"explodes at {window[0]} to {window[1]} ({window[2]} of {window[3]} seeds)"
        axis.axvspan(1 + window[0], 1 + window[1], color=colour, alpha=0.13, linewidth=0, label=text)


def _draw_test(axis, results: Results, name: str, colour: str, label: str, size: int | None = None) -> None:
    curves = results.curves(name, size)
    if not curves:
        return
    shortest = min(len(curve.iteration) for curve in curves)
    values = np.stack([curve.test_loss[:shortest] for curve in curves])
    seen = np.flatnonzero(~np.isnan(values).any(0))
    x, values = 1 + curves[0].iteration[seen], np.minimum(values[:, seen], 1e3)
    axis.plot(x, np.median(values, 0), color=colour, label=label)
    if len(curves) > 1:
        axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def _settings(curve: Curve) -> str:
    row = curve.first
    return f"rate {row['learning_rate']}, damping {row['damping']}, batch {row['batch_size']}"


def _seeds(curves: Sequence[Curve]) -> str:
    return f" ({len(curves)} seed{'s' if len(curves) != 1 else ''})"


def _fate(results: Results, name: str) -> str:
    window, curves = results.window(name), results.curves(name)
    if not curves:
        return ""
    if window is None:
        return f": all {int(curves[0].iteration[-1]):,} iterations finite"
    at = f"{window[0]}" if window[0] == window[1] else f"{window[0]} to {window[1]}"
    return f": explodes at {at}"


def _convergence_caption(results: Results) -> str:
    window, gradient, corrected = (
        results.window("March script"),
        results.curves("gradient descent"),
        results.curves("corrected"),
    )
    parts = []
    if window:
        stopped = window[0] <= AUTHOR_STOPPED <= window[1]
        parts.append(
            "Top left: the undamped natural gradient falls faster than gradient descent, and then explodes (batch "
            f"loss above {EXPLODED_LOSS:g}) on {window[2]} of {window[3]} seeds between iterations {window[0]} and "
            f"{window[1]} (shaded); the author's record ends at {AUTHOR_STOPPED}, "
            f"{'inside' if stopped else 'outside'} that window."
        )
    same = [
        name
        for name, *_ in AUTHOR
        if results.curves(name, dense=True)
        and results.curves(name, dense=True)[0].exploded_at == results.curves(name)[0].exploded_at is not None
    ]
    if same:
        parts.append(
            "By dense Hessian + SVD and by the Gram matrix the same seed explodes at the same iteration "
            f"({', '.join(same)})."
        )
    parts.append("The other panels change one thing at a time.")
    for where, name, what in (
        ("Top right", "June script", "probabilities taken for logits make a metric too small and steps too long"),
        ("Top right", "rate 0.0004", "true logits at the same rate"),
        ("Bottom left", "rate 0.01", "a tenth of the rate of the March script"),
        ("Bottom right", "damping 0.1", "damping at the rate of the March script"),
    ):
        found, curves = results.window(name), results.curves(name)
        if curves:
            parts.append(f"{where}: {what} ({found[2] if found else 0} of {len(curves)} seeds explode).")
    if gradient and corrected:
        fast = median_or_none([curve.reached_at for curve in corrected])
        slow = median_or_none([curve.reached_at for curve in gradient])
        parts.append(
            f"Test loss {TARGET_TEST_LOSS:g} (dotted) is reached after {dash(fast)} iterations by the corrected "
            f"natural gradient and after {dash(slow)} by gradient descent (medians of {len(corrected)} and "
            f"{len(gradient)} seeds). Bands: least to greatest over seeds."
        )
    return " ".join(parts)


def draw_step_cost(results: Results, path: pathlib.Path) -> None:
    """Draws the time of one direction by solver and image size, with how exact it is."""
    rows = [{**row, "value": float(row["milliseconds"])} for row in results.costs]
    sizes = sorted({int(row["image_size"]) for row in rows})
    colours = {"svd": RED, "gram": GREEN, "cg": BLUE}
    figure, axis = pyplot().subplots(figsize=(9.5, 6.2))
    ticks = {}
    for group, size in enumerate(sizes):
        of_size = [row for row in rows if int(row["image_size"]) == size]
        of_size.sort(key=lambda row: COST_SOLVERS.index(row["solver"]))
        for index, row in enumerate(of_size):
            position = 4 * group + index
            seen = any(int(other["image_size"]) in sizes[:group] and other["solver"] == row["solver"] for other in rows)
            label = None if seen else SOLVER_NAMES[row["solver"]]
            axis.bar(position, row["value"], color=colours[row["solver"]], width=0.85, label=label)
            difference = f"off by {float(row['relative_difference']):.0e}"
            text = "\n".join(
                [f"{row['value']:,.3g} ms" if row["value"] < 1e3 else f"{row['value'] / 1e3:,.3g} s", difference]
                + ([f"rank {row['rank']}"] if row["rank"] else [])
            )
            axis.annotate(text, (position, row["value"]), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        if of_size:
            middle = 4 * group + (len(of_size) - 1) / 2
            ticks[middle] = f"{size}x{size}\n{int(of_size[0]['parameters']):,} parameters"
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_yscale("log")
    values = [row["value"] for row in rows]
    axis.set_ylim(min(values) / 3, max(values) * 60)
    axis.set_ylabel("milliseconds per direction (logarithmic)")
    axis.set_xlabel("image size")
    axis.grid(axis="y", alpha=0.25)
    axis.legend(loc="upper center", ncols=3, fontsize=9)
    name = results.title.split(",")[0]
    axis.set_title(f"One undamped natural gradient of softmax regression, {name}, batch {COST_BATCH_SIZE}")
    caption = (
        "Median time of a compiled forward pass, gradient and solve at the initial weights of seed 0, in float32 "
        f"on a CPU. 'off by': relative difference to the least-squares solution in float64; pseudo-inverse with rcond "
        f"{RCOND:g}. The rank is the number of eigenvalues used, at most 9 per example."
    )
    if 28 in sizes and not any(int(row["image_size"]) == 28 and row["solver"] == "svd" for row in rows):
        caption += " The dense SVD at 28x28 was not run here (--dense-28 does; it takes many minutes)."
    set_caption(figure, caption)
    save(figure, path)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add_dataset(parser)
    add(
        "--image-size",
        type=int,
        choices=(14, 28),
        default=14,
        help="of the main runs (default 14); 28 has no dense runs",
    )
    add("--batch-size", type=positive(int), default=32, help="of the corrected runs (default 32)")
    add("--learning-rate", type=positive(float), default=0.7, help="of the corrected runs (default 0.7)")
    add(
        "--damping",
        type=non_negative,
        default=0.1,
        help="of the corrected runs (default 0.1); for another image size it is multiplied by the ratio of pixels",
    )
    add(
        "--solver",
        choices=("gram", "cg", "svd"),
        default="gram",
        help="of the corrected runs (default gram; svd is dense, a second an iteration)",
    )
    add("--iterations", type=positive(int), help="of every run, unless it explodes (default 1000; 20 with --smoke)")
    add(
        "--seeds",
        type=positive(int),
        help="of a training run (default 5; 1 with --smoke); explosion windows take 4 times as many",
    )
    add_recording(parser)
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
    check_recording(parser, arguments)
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
    show_log()
    start = time.perf_counter()
    out = output_folder(arguments, "mnist_natgrad")
    convergence, costs = out / "mnist_convergence.csv", out / "mnist_step_cost.csv"
    if arguments.replot:
        missing = [str(path) for path in (convergence, costs) if not path.is_file()]
        if missing:
            print(f"error: nothing to draw: there is no {' and no '.join(missing)}", file=sys.stderr)
            return 1
    else:
        try:
            problems = load(arguments)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        run_all(arguments, problems, out)
    results = Results(read_rows(convergence, COLUMNS), read_rows(costs, COST_COLUMNS))
    draw_convergence(results, out / "mnist_convergence.png", arguments.recorded)
    draw_step_cost(results, out / "mnist_step_cost.png")
    print(f"\n{table(results)}\n\nCSV files and figures: {out} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
