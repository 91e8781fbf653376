"""What the curvature of the loss does while a small network learns, by SGD, Adam and natural gradient.

A network with one hidden tanh layer is trained on the first images of the training set. At checkpoints, spaced
logarithmically, the Hessian of the training loss is looked at on disjoint subsamples of these images: its largest
and smallest eigenvalues, its trace, and how much of the gradient lies in the span of the ten eigenvectors with the
largest eigenvalues. At start and end of a run the same is done on all the images, and for the first seed the
density of eigenvalues is estimated too.

The runs of one seed share initial weights and batches. In the CSV a row is one subsample (or `all`) at one iteration;
`trace_error` is the standard error over the probes, `residual` the largest of the eigenpairs.

With `--exact` instead the whole spectrum of one Hessian is computed, densely, for a network of 15,910 weights
(784-20-10), and recorded beside the estimate of its density. It takes some minutes and 5 GiB.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from drawing.style import BLUE, GREEN, GREY, ORANGE, RED, pyplot, save, set_caption
from kit.arguments import add_dataset, add_recording, check_recording, output_folder, positive, show_log
from kit.recording import Recorder, Row, as_text, read_rows
from kit.runs import title_of

# TensorFlow and matplotlib are imported where they are used: `--help` and `--replot` need not wait for TensorFlow.

LOGGER = logging.getLogger("tf_natgrad")
KEY_COLUMNS = (
    *("optimizer", "dataset", "image_size", "hidden", "batch_size", "learning_rate", "damping", "train_images"),
    *("subsample_images", "seed"),
)
MEASURED = (
    *("largest", "tenth", "smallest", "residual", "trace", "trace_error", "gradient_norm", "overlap", "products"),
    "seconds",
)
COLUMNS = (*KEY_COLUMNS, "iteration", "subsample", "train_loss", "test_accuracy", *MEASURED)
DENSITY_COLUMNS = (*KEY_COLUMNS, "iteration", "eigenvalue", "density", "standard_error")
EXACT_KEY_COLUMNS = ("dataset", "image_size", "hidden", "parameters", "images", "iterations", "seed")
EXACT_COLUMNS = (*EXACT_KEY_COLUMNS, "quantity", "x", "value", "standard_error")

CLASSES = 10
HIDDEN = 32
BATCH_SIZE = 64
SUBSAMPLES = 4
# Ten pairs from each end of the spectrum. As many probes: the product of as many vectors is traced once for both.
PAIRS = 2 * CLASSES
DENSITY_POINTS = 500
# Narrow enough to tell the large eigenvalues apart, and the same everywhere, so that densities can be compared.
DENSITY_WIDTH = 0.02
# The exact check: its weights are those after a few steps of Adam, when large and small eigenvalues are apart.
EXACT_OPTIMIZER = "Adam"
EXACT_ENDS = 100
EXACT_KEPT = 2000


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run; its fields up to `seed` are columns of the CSV.

    Attributes:
        optimizer: a key of `OPTIMIZERS`.
        dataset: `"mnist"` or `"digits"`.
        image_size: height and width of the images.
        hidden: units of the hidden layer.
        batch_size: examples per iteration.
        learning_rate: of the optimizer.
        damping: of the natural gradient; `None` for the others.
        train_images: how many images it is trained on.
        subsample_images: how many of them a subsample has.
        seed: of weights and batches.
        iterations: updates to be made.
    """

    optimizer: str
    dataset: str
    image_size: int
    hidden: int
    batch_size: int
    learning_rate: float
    damping: float | None
    train_images: int
    subsample_images: int
    seed: int
    iterations: int

    @property
    def key(self) -> tuple[str, ...]:
        """The values of the key columns, as text."""
        return tuple(as_text(getattr(self, column)) for column in KEY_COLUMNS)

    @property
    def checkpoints(self) -> list[int]:
        """The iterations at which the curvature is looked at: 0, 1, 3, 10, 30, ... and the last."""
        spaced = (factor * 10**power for power in range(10) for factor in (1, 3))
        return [0, *(iteration for iteration in spaced if iteration < self.iterations), self.iterations]

    @property
    def rows(self) -> int:
        """How many rows it records: each subsample at each checkpoint, and all images at the two ends."""
        return len(self.checkpoints) * (self.train_images // self.subsample_images) + 2

    def is_complete(self, rows: Sequence[Row]) -> bool:
        """Whether these rows are all that this run would record."""
        return len(rows) == self.rows and {int(row["iteration"]) for row in rows} == set(self.checkpoints)


# Name: learning rate, damping, colour. The rates were chosen so that each learns fast and none diverges.
OPTIMIZERS = {
    "SGD": (0.5, None, BLUE),
    "Adam": (0.003, None, ORANGE),
    "natural gradient": (0.7, 0.1, GREEN),
}


def plan(arguments: argparse.Namespace, data) -> list[Run]:
    """All runs, seed by seed, so that the optimizers of a seed share what is measured before the first step."""
    subsamples = 2 if arguments.smoke else SUBSAMPLES
    size = min(arguments.subsample, len(data.x_train) // subsamples)
    return [
        Run(name, data.name, data.image_size, HIDDEN, BATCH_SIZE, rate, damping, subsamples * size, size, seed, last)
        for last in [arguments.iterations]
        for seed in range(arguments.seeds)
        for name, (rate, damping, _) in OPTIMIZERS.items()
    ]


class Network:
    """A network 'pixels, hidden units with tanh, 10 classes' with its optimizer and training images.

    Args:
        data: an `ImageData`.
        optimizer: a key of `OPTIMIZERS`.
        hidden: how many hidden units.
        images: how many of the training images are used, from the first on.
        seed: of weights and batches.
    """

    def __init__(self, data, optimizer: str, hidden: int, images: int, seed: int):
        import keras

        import tf_natgrad as ng

        self.x, self.y = data.x_train[:images], data.y_train[:images]
        self.test = data.x_test, data.y_test
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        uniform = keras.initializers.GlorotUniform
        self.net = keras.Sequential(
            [
                keras.Input((data.image_size**2,)),
                keras.layers.Dense(hidden, activation="tanh", kernel_initializer=uniform(2 * seed)),
                keras.layers.Dense(CLASSES, kernel_initializer=uniform(2 * seed + 1)),
            ]
        )
        rate, damping, _ = OPTIMIZERS[optimizer]
        made = {
            "SGD": lambda: keras.optimizers.SGD(rate),
            "Adam": lambda: keras.optimizers.Adam(rate),
            "natural gradient": lambda: ng.NaturalGradient(rate, damping=damping, max_kl=None, line_search=None),
        }
        self._model = ng.natural_gradient_model(self.net)
        # XLA would take longer to compile than the few steps take.
        self._model.compile(made[optimizer](), self.loss, jit_compile=False)
        self._rng = np.random.default_rng(seed)
        self._left = np.zeros(0, np.int64)

    def step(self) -> None:
        """One update, on the next batch of one shuffled pass after another."""
        while len(self._left) < BATCH_SIZE:
            self._left = np.concatenate([self._left, self._rng.permutation(len(self.x))])
        chosen, self._left = self._left[:BATCH_SIZE], self._left[BATCH_SIZE:]
        self._model.train_on_batch(self.x[chosen], self.y[chosen])

    def evaluate(self) -> dict[str, float]:
        """The loss on the training images and the accuracy on the test set."""
        correct = np.argmax(self.net(self.test[0]), -1) == self.test[1]
        return {"train_loss": float(self.loss(self.y, self.net(self.x))), "test_accuracy": float(correct.mean())}

    def hessian(self, part: slice = slice(None)):
        """The Hessian of the loss of some of the training images, at the present weights."""
        import tf_natgrad as ng

        return ng.operators.Hessian(self.net, self.loss, (self.x[part], self.y[part]))


def measure(hessian, seed: int) -> dict[str, float]:
    """What one row says about one Hessian.

    Args:
        hessian: a `tf_natgrad.operators.Hessian`.
        seed: of the probes.

    Returns:
        The columns `MEASURED`.
    """
    import tensorflow as tf

    import tf_natgrad as ng

    start = time.perf_counter()
    pairs = ng.spectrum.eigsh(hessian, PAIRS, "BE", seed=seed)
    trace = ng.spectrum.hutchinson_trace(hessian, PAIRS, seed=seed)
    gradient = hessian.gradient()
    shares = tf.linalg.matvec(pairs.eigenvectors[:, -CLASSES:], gradient, transpose_a=True)
    return {
        "largest": float(pairs.eigenvalues[-1]),
        "tenth": float(pairs.eigenvalues[-CLASSES]),
        "smallest": float(pairs.eigenvalues[0]),
        "residual": float(pairs.info.residuals.max()),
        "trace": trace.value,
        "trace_error": trace.standard_error,
        "gradient_norm": float(tf.norm(gradient)),
        "overlap": float(tf.reduce_sum(tf.square(shares)) / tf.reduce_sum(tf.square(gradient))),
        "products": pairs.info.products + trace.products,
        "seconds": time.perf_counter() - start,
    }


class Trainer:
    """Makes the runs, and remembers what was measured at the weights that the runs of a seed have in common.

    Args:
        data: an `ImageData`.
        smoke: whether densities are estimated with less effort.
    """

    def __init__(self, data, smoke: bool):
        self._data = data
        self._effort = {"num_probes": 2, "steps": 30} if smoke else {"num_probes": 8, "steps": 90}
        self._initial: dict[tuple, tuple[list[dict], list[dict]]] = {}

    def train(self, run: Run) -> Iterator[tuple[list[dict], list[dict]]]:
        """Makes one run.

        Args:
            run: which one.

        Yields:
            At each checkpoint the rows of the curvature CSV and those of the density CSV, without the key columns.
        """
        network = Network(self._data, run.optimizer, run.hidden, run.train_images, run.seed)
        for iteration in range(run.iterations + 1):
            if iteration == 0:
                common = run.key[KEY_COLUMNS.index("train_images") :]
                if common not in self._initial:
                    self._initial[common] = self._look(run, network, 0)
                yield self._initial[common]
            elif iteration in run.checkpoints:
                yield self._look(run, network, iteration)
            if iteration < run.iterations:
                network.step()

    def _look(self, run: Run, network: Network, iteration: int) -> tuple[list[dict], list[dict]]:
        import tf_natgrad as ng

        size = run.subsample_images
        parts = {str(k): slice(k * size, (k + 1) * size) for k in range(run.train_images // size)}
        is_end = iteration in (0, run.iterations)
        if is_end:
            parts["all"] = slice(None)
        state = {"iteration": iteration, **network.evaluate()}
        rows, densities = [], []
        for number, (name, part) in enumerate(parts.items()):
            # An operator keeps the weights of its construction: each checkpoint needs new ones.
            hessian = network.hessian(part)
            rows.append({"subsample": name, **state, **measure(hessian, seed=number)})
            if name == "all" and run.seed == 0:
                grid = grid_of(rows[-1]["smallest"], rows[-1]["largest"], DENSITY_WIDTH)
                found = ng.spectrum.spectral_density(hessian, **self._effort, grid=grid, width=DENSITY_WIDTH)
                columns = {"eigenvalue": found.grid, "density": found.density, "standard_error": found.standard_error}
                densities = [
                    {"iteration": iteration, **{name: float(values[k]) for name, values in columns.items()}}
                    for k in range(DENSITY_POINTS)
                ]
        return rows, densities


def grid_of(smallest: float, largest: float, width: float) -> np.ndarray:
    """Where a density is given: the range of the eigenvalues, and beyond it as far as a logarithmic axis shows."""
    return np.linspace(smallest - 6.0 * width, largest + 6.0 * width, DENSITY_POINTS)


def run_all(arguments: argparse.Namespace, data, out: pathlib.Path) -> None:
    """Makes all runs and records them."""
    from tf_natgrad._progress import progress_bar

    runs = {run.key: run for run in plan(arguments, data)}
    curvature, density = out / "loss_curvature.csv", out / "loss_curvature_density.csv"
    done = _complete(runs, curvature, density) if arguments.resume else set()
    recorders = [
        Recorder(path, columns, KEY_COLUMNS, arguments.resume, lambda key, rows: key in done)
        for path, columns in ((curvature, COLUMNS), (density, DENSITY_COLUMNS))
    ]
    trainer = Trainer(data, arguments.smoke)
    missing = [run for key, run in runs.items() if key not in done]
    total = sum(len(run.checkpoints) for run in missing)
    with progress_bar(total=total, unit="checkpoint", mininterval=1.0) as bar:
        for run in missing:
            bar.set_description(f"{run.optimizer}, seed {run.seed}")
            columns = {name: getattr(run, name) for name in KEY_COLUMNS}
            for found in trainer.train(run):
                for recorder, rows in zip(recorders, found, strict=True):
                    for row in rows:
                        recorder.append(**columns, **row)
                bar.set_postfix(iteration=found[0][0]["iteration"], loss=f"{found[0][0]['train_loss']:.3f}")
                bar.update()


def _complete(runs: dict[tuple[str, ...], Run], curvature: pathlib.Path, density: pathlib.Path) -> set:
    """The keys of the runs that are complete in both files."""
    if not (curvature.exists() and density.exists()):
        return set()
    by_key, points = _by_key(read_rows(curvature, COLUMNS)), _by_key(read_rows(density, DENSITY_COLUMNS))
    return {
        key
        for key, run in runs.items()
        if run.is_complete(by_key.get(key, [])) and len(points.get(key, [])) == (run.seed == 0) * 2 * DENSITY_POINTS
    }


def _by_key(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in KEY_COLUMNS), []).append(row)
    return found


def run_exact(arguments: argparse.Namespace, data, path: pathlib.Path) -> None:
    """Computes the whole spectrum of one Hessian, estimates its density, and records both."""
    import tf_natgrad as ng
    from tf_natgrad._progress import progress_bar

    hidden, images, iterations = (4, 100, 20) if arguments.smoke else (20, 500, 100)
    effort = {"num_probes": 2, "steps": 30} if arguments.smoke else {"num_probes": 8, "steps": 90}
    parameters = (data.image_size**2 + 1) * hidden + (hidden + 1) * CLASSES
    columns = dict(
        zip(
            EXACT_KEY_COLUMNS,
            (data.name, data.image_size, hidden, parameters, images, iterations, 0),
            strict=True,
        )
    )
    # The row that is written last tells that the others are there.
    recorder = Recorder(
        path,
        EXACT_COLUMNS,
        EXACT_KEY_COLUMNS,
        arguments.resume,
        lambda key, rows: key == tuple(map(as_text, columns.values())) and rows[-1]["quantity"] == "seconds in all",
    )
    if recorder.rows():
        return
    start = time.perf_counter()
    with progress_bar(total=5, unit="part", desc="training") as bar:

        def begin(part: str) -> float:
            bar.update()
            bar.set_description(part)
            return time.perf_counter()

        network = Network(data, EXACT_OPTIMIZER, hidden, images, 0)
        for _ in range(iterations):
            network.step()
        hessian = network.hessian()
        at = begin("extreme eigenvalues")
        pairs = ng.spectrum.eigsh(hessian, PAIRS, "BE")
        width = 0.005 * float(np.ptp(pairs.eigenvalues))
        at = begin("density")
        grid = grid_of(pairs.eigenvalues[0], pairs.eigenvalues[-1], width)
        found = ng.spectrum.spectral_density(hessian, **effort, grid=grid, width=width)
        seconds = {"seconds of the density": time.perf_counter() - at}
        at = begin("dense Hessian")
        dense = hessian.to_dense().numpy()
        seconds["seconds of the dense Hessian"] = time.perf_counter() - at
        at = begin(f"its {parameters:,} eigenvalues (minutes)")
        values, zeros = all_eigenvalues(dense)
        seconds["seconds of its eigenvalues"] = time.perf_counter() - at
        bar.update()
    exact = smoothed(values, found.grid, width)
    add = recorder.append
    add(**columns, quantity="width", value=width)
    add(**columns, quantity="rows that are zero", value=zeros)
    add(**columns, quantity="products of the density", value=found.products)
    # Clear of the peak at zero: how many there are, and how many the quadrature of each probe makes of them.
    threshold = 5.0 * width
    counts = parameters * np.sum(found.weights * (found.nodes > threshold), 1)
    error = counts.std(ddof=1) / math.sqrt(len(counts))
    add(**columns, quantity="exact count", x=threshold, value=int(np.sum(values > threshold)))
    add(**columns, quantity="estimated count", x=threshold, value=float(counts.mean()), standard_error=float(error))
    for rank in kept_ranks(parameters):
        add(**columns, quantity="eigenvalue", x=int(rank), value=float(values[rank]))
    for index, value in enumerate(pairs.eigenvalues):
        rank = index if index < CLASSES else parameters - PAIRS + index
        add(**columns, quantity="eigsh", x=rank, value=float(value), standard_error=float(pairs.info.residuals[index]))
    for point, value, estimate, error in zip(found.grid, exact, found.density, found.standard_error, strict=True):
        add(**columns, quantity="exact density", x=float(point), value=float(value))
        add(**columns, quantity="estimated density", x=float(point), value=float(estimate), standard_error=float(error))
    seconds["seconds in all"] = time.perf_counter() - start
    for quantity, value in seconds.items():
        add(**columns, quantity=quantity, value=value)


def all_eigenvalues(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """All eigenvalues of a symmetric matrix, ascending, and how many of its rows are zero.

    The weights of a pixel that is black in every image have a Hessian of zero: these rows add as many eigenvalues
    of exactly zero, and without them the work, which grows with the cube of the size, is much less.

    Args:
        matrix: `[n, n]`.

    Returns:
        `[n]` float64, and the count.
    """
    import scipy.linalg

    alive = np.flatnonzero(np.abs(matrix).max(1))
    zeros = len(matrix) - len(alive)
    found = scipy.linalg.eigvalsh(matrix[np.ix_(alive, alive)], overwrite_a=True, check_finite=False)
    return np.sort(np.concatenate([found.astype(np.float64), np.zeros(zeros)])), zeros


def kept_ranks(count: int) -> np.ndarray:
    """The ranks of the eigenvalues that are recorded: all near the ends, evenly spaced ones between them."""
    if count <= EXACT_KEPT:
        return np.arange(count)
    middle = np.linspace(EXACT_ENDS, count - EXACT_ENDS - 1, EXACT_KEPT - 2 * EXACT_ENDS).round().astype(int)
    return np.concatenate([np.arange(EXACT_ENDS), middle, np.arange(count - EXACT_ENDS, count)])


def smoothed(values: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    """The density of eigenvalues on a grid, each a normal kernel of this standard deviation."""
    kernel = np.zeros_like(grid)
    for chunk in np.array_split(values, max(1, len(values) // 1000)):
        kernel += np.exp(-0.5 * np.square((grid[:, None] - chunk) / width)).sum(1)
    return kernel / (len(values) * width * math.sqrt(2 * math.pi))


class Results:
    """The recorded runs.

    Args:
        rows: of the curvature CSV.
        densities: of the density CSV.
    """

    def __init__(self, rows: Sequence[Row], densities: Sequence[Row]):
        self.rows = list(_by_key(rows).values())
        self.optimizers = [name for name in OPTIMIZERS if any(run[0]["optimizer"] == name for run in self.rows)]
        self.densities: dict[tuple[str, int], list[Row]] = {}
        for row in densities:
            self.densities.setdefault((row["optimizer"], int(row["iteration"])), []).append(row)
        first = rows[0]
        self.title = title_of(first["dataset"], first["image_size"])
        self.train_images, self.subsample = int(first["train_images"]), int(first["subsample_images"])
        self.pixels, self.hidden = int(first["image_size"]) ** 2, int(first["hidden"])
        self.batch_size = int(first["batch_size"])
        self.parameters = (self.pixels + 1) * self.hidden + (self.hidden + 1) * CLASSES
        self.last = max(int(row["iteration"]) for row in rows)
        self.seeds = len({row["seed"] for row in rows})

    @property
    def network(self) -> str:
        """Its layers."""
        return f"{self.pixels}-{self.hidden}-{CLASSES}"

    @property
    def subsamples(self) -> int:
        """How many subsamples there are."""
        return self.train_images // self.subsample

    def curves(self, optimizer: str) -> list[Curve]:
        """The runs of an optimizer, by seed."""
        return [Curve(rows) for rows in self.rows if rows[0]["optimizer"] == optimizer]

    def whole(self, optimizer: str, column: str) -> float:
        """The mean over seeds at the end, for all training images together."""
        return float(np.mean([curve.whole(column)[1][-1] for curve in self.curves(optimizer)]))

    def at(self, optimizer: str, column: str, iteration: int) -> tuple[float, float]:
        """Mean over seeds and subsamples at a checkpoint, and the spread over subsamples (root mean square)."""
        found = [
            (curve.mean(column)[index], curve.spread(column)[index])
            for curve in self.curves(optimizer)
            for index in np.flatnonzero(curve.iteration == iteration)
        ]
        means, spreads = np.transpose(found)
        return float(means.mean()), float(np.sqrt(np.square(spreads).mean()))


class Curve:
    """What one run recorded, by iteration.

    Args:
        rows: of the run.
    """

    def __init__(self, rows: Sequence[Row]):
        self._parts = [row for row in rows if row["subsample"] != "all"]
        self._whole = {int(row["iteration"]): row for row in rows if row["subsample"] == "all"}
        self.iteration = np.array(sorted({int(row["iteration"]) for row in self._parts}))

    def values(self, column: str) -> np.ndarray:
        """`[iterations, subsamples]`."""
        return np.array(
            [[float(row[column]) for row in self._parts if int(row["iteration"]) == at] for at in self.iteration]
        )

    def mean(self, column: str) -> np.ndarray:
        """The mean over the subsamples, `[iterations]`."""
        return self.values(column).mean(1)

    def spread(self, column: str) -> np.ndarray:
        """The standard deviation over the subsamples, `[iterations]`."""
        return self.values(column).std(1, ddof=1)

    def whole(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Where all training images were looked at together, and the values there."""
        return np.array(list(self._whole)), np.array([float(row[column]) for row in self._whole.values()])


class Exact:
    """The recorded spectrum of the exact check.

    Args:
        rows: of its CSV.
    """

    def __init__(self, rows: Sequence[Row]):
        first = rows[0]
        self.title = title_of(first["dataset"], first["image_size"])
        self.pixels, self.hidden = int(first["image_size"]) ** 2, int(first["hidden"])
        self.parameters, self.images = int(first["parameters"]), int(first["images"])
        self.iterations = int(first["iterations"])
        self._rows = rows
        self.grid, self.density, _ = self.columns("exact density")
        _, self.estimate, self.error = self.columns("estimated density")
        self.rank, self.eigenvalue, _ = self.columns("eigenvalue")

    def columns(self, quantity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`x`, `value` and `standard_error` of a quantity."""
        rows = [row for row in self._rows if row["quantity"] == quantity]
        x, value, error = (
            np.array([float(row[name] or "nan") for row in rows]) for name in ("x", "value", "standard_error")
        )
        return x, value, error

    def number(self, quantity: str) -> float:
        """The value of a quantity that has one."""
        return float(self.columns(quantity)[1][0])

    @property
    def network(self) -> str:
        """Its layers."""
        return f"{self.pixels}-{self.hidden}-{CLASSES}"

    @property
    def share_misplaced(self) -> float:
        """Half the integral of the densities' difference: the share of eigenvalues that are in another place."""
        return 0.5 * float(np.trapezoid(np.abs(self.estimate - self.density), self.grid))

    @property
    def counts(self) -> str:
        """How many eigenvalues are clear of the peak at zero, and how many by the estimate, in words."""
        (threshold,), (count,), _ = self.columns("exact count")
        _, (estimate,), (error,) = self.columns("estimated count")
        return f"{count:.0f} eigenvalues above {threshold:.2g}, and {estimate:.0f} +- {error:.0f} by the estimate"

    @property
    def extremes_off_by(self) -> float:
        """The largest difference of an extreme eigenvalue by Lanczos, in units of the largest eigenvalue."""
        rank, value, _ = self.columns("eigsh")
        exact = dict(zip(self.rank, self.eigenvalue, strict=True))
        off = [abs(v - exact[r]) for r, v in zip(rank, value, strict=True)]
        return float(max(off) / np.abs(self.eigenvalue).max())


def table(results: Results | None, exact: Exact | None) -> str:
    """What was found, for people."""
    lines = []
    if results is not None:
        lines += [
            f"{results.title}, {results.parameters:,} weights, means over {results.seeds} "
            f"seed{'s' if results.seeds > 1 else ''} and {results.subsamples} subsamples (+- their spread)",
            "",
            f"{'':28s}{'largest':>15s}{'smallest':>17s}{'trace':>14s}{'overlap':>15s}{'train loss':>12s}"
            f"{'accuracy':>10s}",
        ]
        at_ends = [(results.optimizers[0], 0)] + [(name, results.last) for name in results.optimizers]
        for name, iteration in at_ends:
            label = f"{name} at {iteration:,}" if iteration else "at the start"
            cells = [
                f"{mean:.{digits}f} +- {spread:.{digits}f}"
                for column, digits in (("largest", 2), ("smallest", 3), ("trace", 1), ("overlap", 2))
                for mean, spread in [results.at(name, column, iteration)]
            ]
            loss, accuracy = (results.at(name, column, iteration)[0] for column in ("train_loss", "test_accuracy"))
            lines.append(
                f"{label:28s}{cells[0]:>15s}{cells[1]:>17s}{cells[2]:>14s}{cells[3]:>15s}{loss:>12.3f}{accuracy:>10.1%}"
            )
    if exact is not None:
        lines += [
            "",
            f"Exact check, {exact.title}, {exact.network}, {exact.parameters:,} weights, {exact.images} images:",
            f"the estimated density has {exact.share_misplaced:.2%} of the eigenvalues in another place;",
            f"there are {exact.counts};",
            f"the {PAIRS} extreme eigenvalues by Lanczos are off by {exact.extremes_off_by:.0e} of the largest;",
            f"{exact.number('seconds of its eigenvalues'):.0f} s for all eigenvalues of the dense Hessian, "
            f"{exact.number('seconds of the density'):.1f} s for the estimate.",
        ]
    return "\n".join(lines).strip("\n")


def draw_curvature(results: Results, path: pathlib.Path) -> None:
    """Draws eigenvalues, trace, overlap and loss along training."""
    figure, axes = pyplot().subplots(2, 3, figsize=(16, 10))
    (largest, smallest, trace), (overlap, loss, against) = axes
    for axis, column, label in (
        (largest, "largest", "largest eigenvalue"),
        (smallest, "smallest", "smallest eigenvalue"),
        (trace, "trace", "trace (sum of the eigenvalues)"),
        (overlap, "overlap", "share of the gradient's squared norm"),
        (loss, "train_loss", "loss on the training images (nats, logarithmic)"),
    ):
        for name in results.optimizers:
            for number, curve in enumerate(results.curves(name)):
                _draw_curve(axis, curve, column, name, number, results)
        axis.set_xscale("log")
        axis.set_xlabel("iteration, from 1 on (logarithmic)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
    for name in results.optimizers:
        for number, curve in enumerate(results.curves(name)):
            x, y, error = curve.mean("train_loss"), curve.mean("largest"), curve.spread("largest")
            colour, dash = OPTIMIZERS[name][2], _dash(number)
            against.errorbar(x, y, error, color=colour, linestyle=dash, marker="o", markersize=3, linewidth=1.3)
    against.set_xscale("log")
    against.invert_xaxis()
    against.set_xlabel("loss on the training images (nats, logarithmic, falling to the right)")
    against.set_ylabel("largest eigenvalue")
    against.grid(alpha=0.25)
    largest.set_title("Largest eigenvalue of the Hessian")
    smallest.set_title("Smallest eigenvalue of the Hessian")
    smallest.axhline(0.0, color=GREY, linewidth=0.8)
    trace.set_title(f"Trace (Hutchinson, {PAIRS} probes a subsample)")
    overlap.set_title(f"Gradient in the top {CLASSES} eigenvectors")
    chance = CLASSES / results.parameters
    overlap.axhline(chance, color=GREY, linestyle=":", label=f"a random vector: {chance:.2%}")
    overlap.set_ylim(-0.03, 1.03)
    loss.set_yscale("log")
    loss.set_title("Training loss")
    against.set_title("Largest eigenvalue at equal loss")
    for axis in (largest, trace):
        axis.set_ylim(bottom=0.0)
    shown = [line for line in overlap.get_lines() if line.get_label().startswith(("a random", "all"))]
    overlap.legend(handles=shown, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.03))
    largest.legend(fontsize=9, loc="lower left")
    figure.suptitle(
        f"Curvature of the training loss along training, {results.network} (tanh), {results.title}", fontsize=15
    )
    set_caption(figure, _curvature_caption(results))
    save(figure, path)


def _dash(seed_number: int) -> str:
    return ("-", "--", ":", "-.")[seed_number % 4]


def _draw_curve(axis, curve: Curve, column: str, name: str, number: int, results: Results) -> None:
    # Error bars at the same iteration would hide one another.
    dodge = 1.0 + 0.05 * (results.optimizers.index(name) - 1 + 0.4 * number)
    rate, damping, colour = OPTIMIZERS[name]
    label = f"{name}, rate {rate:g}" + (f", damping {damping:g}" if damping else "")
    axis.errorbar(
        (1 + curve.iteration) * dodge,
        curve.mean(column),
        curve.spread(column) if column in MEASURED else None,
        color=colour,
        linestyle=_dash(number),
        marker="o",
        markersize=3,
        linewidth=1.3,
        capsize=2,
        label=None if number else label,
    )
    if column in MEASURED:
        x, y = curve.whole(column)
        is_first = number == 0 and name == results.optimizers[-1]
        label = "all training images together" if is_first else None
        axis.plot((1 + x) * dodge, y, "D", color="black", fillstyle="none", markersize=6, linestyle="", label=label)


def _curvature_caption(results: Results) -> str:
    def spoken(column: str, digits: int) -> str:
        return ", ".join(
            f"{results.at(name, column, results.last)[0]:.{digits}f} ({name})" for name in results.optimizers
        )

    start = {column: results.at(results.optimizers[0], column, 0) for column in ("largest", "smallest", "overlap")}
    peaks = []
    for name in results.optimizers:
        curve = results.curves(name)[0]
        traces = [results.at(name, "trace", int(at))[0] for at in curve.iteration]
        peaks.append(f"{max(traces):.0f} at iteration {curve.iteration[int(np.argmax(traces))]:,} ({name})")
    together = ", ".join(f"{results.whole(name, 'overlap'):.2f}" for name in results.optimizers)
    probes = np.mean([float(row["trace_error"]) for run in results.rows for row in run])
    seeds = "one seed" if results.seeds == 1 else f"{results.seeds} seeds (solid, dashed, ...)"
    return (
        f"{results.train_images:,} training images, batches of {results.batch_size}, {seeds}. Dots: means over "
        f"{results.subsamples} disjoint subsamples of {results.subsample:,} images; bars: standard deviations over "
        f"them. Diamonds: the Hessian of all the images, at start and end. The largest eigenvalue goes from "
        f"{start['largest'][0]:.2f} to {spoken('largest', 2)}; the smallest from {start['smallest'][0]:.2f} to "
        f"{spoken('smallest', 3)}. Greatest trace: {', '.join(peaks)}. The {CLASSES} eigenvectors with the largest "
        f"eigenvalues hold {start['overlap'][0]:.0%} of the gradient's squared norm at the start, and at the end "
        f"{spoken('overlap', 2)}; for all the images together {together}. The bars of the trace include the error of "
        f"the probes, {probes:.1f} on average. Gradient and Hessian are those of the same "
        "images; the largest eigenvalue of a subsample is on average at least that of all the images, the smallest at "
        "most."
    )


def draw_density(results: Results | None, exact: Exact | None, path: pathlib.Path) -> None:
    """Draws the densities at start and end, and the exact check beside its estimate where it is recorded."""
    drawn = [] if results is None else [name for name in results.optimizers if (name, 0) in results.densities]
    rows = bool(drawn) + (exact is not None)
    if not rows:
        return
    figure = pyplot().figure(figsize=(16, 1 + 4.6 * rows))
    # Six columns hold three panels as well as two.
    places = figure.add_gridspec(rows, 6)
    for index, name in enumerate(drawn):
        _draw_ends(figure.add_subplot(places[0, 2 * index : 2 * index + 2]), results, name)
    if exact is not None:
        _draw_exact_density(figure.add_subplot(places[-1, :3]), exact)
        _draw_exact_counts(figure.add_subplot(places[-1, 3:]), exact)
    title = "Density of the Hessian's eigenvalues"
    of = (results if drawn else exact).title.split(",")[0]
    figure.suptitle(f"{title}, {of}", fontsize=15)
    set_caption(figure, _density_caption(results if drawn else None, exact))
    save(figure, path)


def _draw_ends(axis, results: Results, name: str) -> None:
    floor = 0.1 / (results.parameters * DENSITY_WIDTH)
    for iteration, colour in ((0, GREY), (results.last, OPTIMIZERS[name][2])):
        rows = results.densities[name, iteration]
        grid, density, error = (
            np.array([float(row[column]) for row in rows]) for column in ("eigenvalue", "density", "standard_error")
        )
        _draw_density(axis, grid, density, error, colour, f"iteration {iteration:,}" if iteration else "start", floor)
    _finish_density(axis, floor)
    axis.set_title(f"{name}: start and end, {results.network}")


def _draw_density(axis, grid, density, error, colour: str, label: str, floor: float) -> None:
    axis.plot(grid, np.maximum(density, floor / 10), color=colour, linewidth=1.2, label=label)
    axis.fill_between(
        grid,
        np.maximum(density - error, floor / 10),
        np.maximum(density + error, floor / 10),
        color=colour,
        alpha=0.25,
        linewidth=0,
    )


def _finish_density(axis, floor: float) -> None:
    axis.set_yscale("log")
    axis.set_ylim(bottom=floor)
    axis.set_xlabel("eigenvalue")
    axis.set_ylabel("density (logarithmic)")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=9, loc="upper right")


def _draw_exact_density(axis, exact: Exact) -> None:
    floor = 0.1 / (exact.parameters * exact.number("width"))
    axis.plot(exact.grid, np.maximum(exact.density, floor / 10), color="black", label="all eigenvalues, exactly")
    _draw_density(axis, exact.grid, exact.estimate, exact.error, RED, "estimate (Lanczos quadrature)", floor)
    _finish_density(axis, floor)
    axis.set_title(f"Exact check: {exact.network}, {exact.parameters:,} weights, {exact.title}")


def _draw_exact_counts(axis, exact: Exact) -> None:
    """How many eigenvalues are beyond a value, on either side."""
    for sign, colour, label in ((1, BLUE, "positive"), (-1, RED, "negative")):
        chosen = sign * exact.eigenvalue > 0
        beyond = exact.parameters - exact.rank if sign > 0 else 1 + exact.rank
        axis.plot(
            sign * exact.eigenvalue[chosen], beyond[chosen], color=colour, label=f"{label}: all eigenvalues, exactly"
        )
        rank, value, _ = exact.columns("eigsh")
        own = sign * value > 0
        count = exact.parameters - rank if sign > 0 else 1 + rank
        axis.plot(
            sign * value[own], count[own], "o", color=colour, fillstyle="none", label=f"{label}: extreme ones, Lanczos"
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(1e-6 * np.abs(exact.eigenvalue).max(), 2.0 * np.abs(exact.eigenvalue).max())
    axis.set_xlabel("magnitude of the eigenvalue (logarithmic)")
    axis.set_ylabel("how many are at least as large (logarithmic)")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=9, loc="lower left")
    axis.set_title("Exact check: eigenvalues counted from both ends")


def _density_caption(results: Results | None, exact: Exact | None) -> str:
    parts = []
    if results is not None:
        parts.append(
            f"Top: Hessian of the loss of all {results.train_images:,} training images, seed 0, stochastic Lanczos "
            f"quadrature with a normal kernel of standard deviation {DENSITY_WIDTH:g}; bands: standard errors over the "
            f"probes. A single one of the {results.parameters:,} eigenvalues, standing alone, makes a peak of height "
            f"{0.4 / (results.parameters * DENSITY_WIDTH):.1g}."
        )
    if exact is not None:
        parts.append(
            f"{'Bottom: ' if results is not None else ''}{exact.network}, {exact.images} images, after "
            f"{exact.iterations} steps of {EXACT_OPTIMIZER}. The dense Hessian in float32 "
            f"({exact.number('seconds of the dense Hessian'):.0f} s) has {exact.number('rows that are zero'):,.0f} "
            "rows of exact zeros (pixels black in every image), which are left out of the decomposition "
            f"({exact.number('seconds of its eigenvalues'):.0f} s) and counted as zero eigenvalues. The estimate, "
            f"{exact.number('products of the density'):,.0f} products, took "
            f"{exact.number('seconds of the density'):.1f} s. "
            f"Smoothed alike (standard deviation {exact.number('width'):.2g}), the two differ in the place of "
            f"{exact.share_misplaced:.2%} of the eigenvalues. Clear of the peak at zero there are {exact.counts}. The "
            f"{PAIRS} extreme eigenvalues by Lanczos differ from the exact ones by at most {exact.extremes_off_by:.0e} "
            "of the largest. Right: values below a millionth of the largest, where float32 rounds, are not drawn."
        )
    return " ".join(parts)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add_dataset(parser)
    add("--seeds", type=positive(int), help="how many runs of each optimizer (default 2; 1 with --smoke)")
    add("--iterations", type=positive(int), help="updates of each run (default 1000; 3 with --smoke)")
    add(
        "--subsample",
        type=positive(int),
        help=f"images of a subsample (default 1000; 100 with --smoke); training uses {SUBSAMPLES} of them (2 with "
        "--smoke), or all that there are",
    )
    add(
        "--exact",
        action="store_true",
        help="compute the whole spectrum of a network of 15,910 weights on MNIST, instead of the training runs; with "
        "--smoke that of a small one",
    )
    add_recording(parser)
    arguments = parser.parse_args(argv)
    check_recording(parser, arguments)
    if arguments.exact and arguments.replot:
        parser.error("--exact computes and --replot only draws: choose one")
    arguments.seeds = arguments.seeds or (1 if arguments.smoke else 2)
    arguments.iterations = arguments.iterations or (3 if arguments.smoke else 1000)
    arguments.subsample = arguments.subsample or (100 if arguments.smoke else 1000)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, records, draws and reports."""
    arguments = parse(argv)
    show_log()
    start = time.perf_counter()
    out = output_folder(arguments, "loss_curvature")
    curvature, density, exact = (out / f"loss_curvature{name}.csv" for name in ("", "_density", "_exact"))
    if arguments.replot:
        missing = [str(path) for path in (curvature, density) if not path.is_file()]
        if missing and not exact.is_file():
            print(f"error: nothing to draw: there is no {' and no '.join(missing)}", file=sys.stderr)
            return 1
    else:
        from tf_natgrad.data import load_images

        try:
            data = load_images(arguments.dataset, 28 if arguments.exact else 14)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        if data.name == "digits":
            LOGGER.warning("data set: scikit-learn's digits, %dx%d; none of it is MNIST", *[data.image_size] * 2)
        if arguments.exact:
            run_exact(arguments, data, exact)
        else:
            run_all(arguments, data, out)
    recorded = curvature.is_file() and density.is_file()
    results = Results(read_rows(curvature, COLUMNS), read_rows(density, DENSITY_COLUMNS)) if recorded else None
    checked = Exact(read_rows(exact, EXACT_COLUMNS)) if exact.is_file() else None
    if results is not None:
        draw_curvature(results, out / "loss_curvature.png")
    draw_density(results, checked, out / "loss_curvature_density.png")
    print(f"\n{table(results, checked)}\n\nCSV files and figures: {out} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
