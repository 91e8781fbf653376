"""The whole spectrum of one Hessian, computed densely, beside the estimate of its density."""

from __future__ import annotations

import argparse
import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kit.loss_network import Network, effort, grid_of
from kit.loss_results import CLASSES, EXACT_COLUMNS, EXACT_KEY_COLUMNS, PAIRS
from kit.recording import Recorder, as_text

EXACT_ENDS = 100
EXACT_KEPT = 2000


def run_exact(arguments: argparse.Namespace, data, optimizer, batch_size: int, path: pathlib.Path) -> None:
    """Computes the whole spectrum of one Hessian, estimates its density, and records both."""
    from tf_natgrad._progress import progress_bar

    hidden, images, iterations = (4, 100, 20) if arguments.smoke else (20, 500, 100)
    parameters = (data.image_size**2 + 1) * hidden + (hidden + 1) * CLASSES
    values = (data.name, data.image_size, hidden, parameters, images, iterations, 0)
    columns = dict(zip(EXACT_KEY_COLUMNS, values, strict=True))
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

        def begin(part: str) -> None:
            bar.update()
            bar.set_description(part)

        network = Network(data, optimizer, hidden, images, batch_size, 0)
        for _ in range(iterations):
            network.step()
        found = _compute(network.hessian(), arguments.smoke, begin)
        bar.update()
    for row in _rows(parameters, **found):
        recorder.append(**columns, **row)
    recorder.append(**columns, quantity="seconds in all", value=time.perf_counter() - start)


def _compute(hessian, smoke: bool, begin: Callable[[str], None]) -> dict[str, Any]:
    """The extreme pairs, the density, all eigenvalues, and how long each took: the arguments of `_rows`."""
    import tf_natgrad as ng

    seconds = {}

    @contextlib.contextmanager
    def timed(part: str):
        start = time.perf_counter()
        yield
        seconds[f"seconds of {part}"] = time.perf_counter() - start

    begin("extreme eigenvalues")
    pairs = ng.spectrum.eigsh(hessian, PAIRS, "BE")
    width = 0.005 * float(np.ptp(pairs.eigenvalues))
    begin("density")
    with timed("the density"):
        grid = grid_of(pairs.eigenvalues[0], pairs.eigenvalues[-1], width)
        density = ng.spectrum.spectral_density(hessian, **effort(smoke), grid=grid, width=width)
    begin("dense Hessian")
    with timed("the dense Hessian"):
        dense = hessian.to_dense().numpy()
    begin(f"its {len(dense):,} eigenvalues (minutes)")
    with timed("its eigenvalues"):
        values, zeros = all_eigenvalues(dense)
    return {"pairs": pairs, "width": width, "density": density, "values": values, "zeros": zeros, "seconds": seconds}


def _rows(parameters: int, *, pairs, width: float, density, values, zeros: int, seconds) -> Iterator[dict[str, Any]]:
    """The columns from `quantity` on."""
    yield {"quantity": "width", "value": width}
    yield {"quantity": "rows that are zero", "value": zeros}
    yield {"quantity": "products of the density", "value": density.products}
    # Clear of the peak at zero: how many there are, and how many the quadrature of each probe makes of them.
    threshold = 5.0 * width
    counts = parameters * np.sum(density.weights * (density.nodes > threshold), 1)
    error, mean = float(counts.std(ddof=1) / math.sqrt(len(counts))), float(counts.mean())
    yield {"quantity": "exact count", "x": threshold, "value": int(np.sum(values > threshold))}
    yield {"quantity": "estimated count", "x": threshold, "value": mean, "standard_error": error}
    for rank in kept_ranks(parameters):
        yield {"quantity": "eigenvalue", "x": int(rank), "value": float(values[rank])}
    for index, value in enumerate(pairs.eigenvalues):
        rank, error = index if index < CLASSES else parameters - PAIRS + index, float(pairs.info.residuals[index])
        yield {"quantity": "eigsh", "x": rank, "value": float(value), "standard_error": error}
    exact = smoothed(values, density.grid, width)
    for point, value, estimate, error in zip(density.grid, exact, density.density, density.standard_error, strict=True):
        yield {"quantity": "exact density", "x": float(point), "value": float(value)}
        estimated = {"value": float(estimate), "standard_error": float(error)}
        yield {"quantity": "estimated density", "x": float(point), **estimated}
    for quantity, value in seconds.items():
        yield {"quantity": quantity, "value": value}


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
