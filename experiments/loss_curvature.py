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
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from drawing.loss_curvature import draw_curvature, draw_density
from kit import arguments as options
from kit.exact_spectrum import run_exact
from kit.loss_network import Network, Run, complete, effort, grid_of
from kit.loss_results import (
    CLASSES,
    COLUMNS,
    DENSITY_COLUMNS,
    DENSITY_POINTS,
    DENSITY_WIDTH,
    EXACT_COLUMNS,
    KEY_COLUMNS,
    PAIRS,
    Exact,
    Results,
    table,
)
from kit.recording import Recorder, read_rows

# TensorFlow and matplotlib are imported where they are used: `--help` and `--replot` need not wait for TensorFlow.

LOGGER = logging.getLogger("tf_natgrad")

# --- The recipe -------------------------------------------------------------------------------------------------------

# Name: learning rate, damping. The rates were chosen so that each learns fast and none diverges.
OPTIMIZERS = {"SGD": (0.5, None), "Adam": (0.003, None), "natural gradient": (0.7, 0.1)}
HIDDEN = 32
BATCH_SIZE = 64
SUBSAMPLES = 4
# The exact check: its weights are those after a few steps of Adam, when large and small eigenvalues are apart.
EXACT_OPTIMIZER = "Adam"


def optimizer_of(name: str):
    """An optimizer of the table."""
    import keras

    import tf_natgrad as ng

    rate, damping = OPTIMIZERS[name]
    if name == "natural gradient":
        return ng.NaturalGradient(rate, damping=damping, max_kl=None, line_search=None)
    return {"SGD": keras.optimizers.SGD, "Adam": keras.optimizers.Adam}[name](rate)


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


def plan(arguments: argparse.Namespace, data) -> list[Run]:
    """All runs, seed by seed, so that the optimizers of a seed share what is measured before the first step."""
    subsamples = 2 if arguments.smoke else SUBSAMPLES
    size = min(arguments.subsample, len(data.x_train) // subsamples)
    return [
        Run(name, data.name, data.image_size, HIDDEN, BATCH_SIZE, rate, damping, subsamples * size, size, seed, last)
        for last in [arguments.iterations]
        for seed in range(arguments.seeds)
        for name, (rate, damping) in OPTIMIZERS.items()
    ]


class Trainer:
    """Makes the runs, and remembers what was measured at the weights that the runs of a seed have in common.

    Args:
        data: an `ImageData`.
        smoke: whether densities are estimated with less effort.
    """

    def __init__(self, data, smoke: bool):
        self._data = data
        self._effort = effort(smoke)
        self._initial: dict[tuple, tuple[list[dict], list[dict]]] = {}

    def train(self, run: Run) -> Iterator[tuple[list[dict], list[dict]]]:
        """Makes one run.

        Args:
            run: which one.

        Yields:
            At each checkpoint the rows of the curvature CSV and those of the density CSV, without the key columns.
        """
        network = Network(
            self._data, optimizer_of(run.optimizer), run.hidden, run.train_images, run.batch_size, run.seed
        )
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


def run_all(arguments: argparse.Namespace, data, out: pathlib.Path) -> None:
    """Makes all runs and records them."""
    from tf_natgrad._progress import progress_bar

    runs = {run.key: run for run in plan(arguments, data)}
    curvature, density = out / "loss_curvature.csv", out / "loss_curvature_density.csv"
    done = complete(runs, curvature, density) if arguments.resume else set()
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
            for found in trainer.train(run):
                for recorder, rows in zip(recorders, found, strict=True):
                    for row in rows:
                        recorder.append(**run.columns, **row)
                bar.set_postfix(iteration=found[0][0]["iteration"], loss=f"{found[0][0]['train_loss']:.3f}")
                bar.update()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser_of(__doc__)
    add = parser.add_argument
    options.add_dataset(parser)
    add("--seeds", type=options.positive(int), help="how many runs of each optimizer (default 2; 1 with --smoke)")
    add("--iterations", type=options.positive(int), help="updates of each run (default 1000; 3 with --smoke)")
    add(
        "--subsample",
        type=options.positive(int),
        help=f"images of a subsample (default 1000; 100 with --smoke); training uses {SUBSAMPLES} of them (2 with "
        "--smoke), or all that there are",
    )
    add(
        "--exact",
        action="store_true",
        help="compute the whole spectrum of a network of 15,910 weights on MNIST, instead of the training runs; with "
        "--smoke that of a small one",
    )
    options.add_recording(parser)
    arguments = parser.parse_args(argv)
    options.check_recording(parser, arguments)
    if arguments.exact and arguments.replot:
        parser.error("--exact computes and --replot only draws: choose one")
    arguments.seeds = arguments.seeds or (1 if arguments.smoke else 2)
    arguments.iterations = arguments.iterations or (3 if arguments.smoke else 1000)
    arguments.subsample = arguments.subsample or (100 if arguments.smoke else 1000)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, records, draws and reports."""
    arguments = parse(argv)
    options.show_log()
    start = time.perf_counter()
    out = options.output_folder(arguments, "loss_curvature")
    curvature, density, exact = (out / f"loss_curvature{name}.csv" for name in ("", "_density", "_exact"))
    if arguments.replot:
        missing = options.none_of((curvature, density))
        if missing and not exact.is_file():
            return options.failed(f"nothing to draw: {missing}")
    else:
        from tf_natgrad.data import load_images

        try:
            data = load_images(arguments.dataset, 28 if arguments.exact else 14)
        except ValueError as error:
            return options.failed(error)
        if data.name == "digits":
            LOGGER.warning("data set: scikit-learn's digits, %dx%d; none of it is MNIST", *[data.image_size] * 2)
        if arguments.exact:
            run_exact(arguments, data, optimizer_of(EXACT_OPTIMIZER), BATCH_SIZE, exact)
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
