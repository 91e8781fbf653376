"""What the recorded runs of `loss_curvature.py` say: columns, curves, the exact check, the table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kit.recording import Row, by
from kit.runs import title_of

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
# Ten pairs from each end of the spectrum. As many probes: the product of as many vectors is traced once for both.
PAIRS = 2 * CLASSES
DENSITY_POINTS = 500
# Narrow enough to tell the large eigenvalues apart, and the same everywhere, so that densities can be compared.
DENSITY_WIDTH = 0.02


class Results:
    """The recorded runs.

    Args:
        rows: of the curvature CSV.
        densities: of the density CSV.
    """

    def __init__(self, rows: Sequence[Row], densities: Sequence[Row]):
        self.rows = list(by(rows, *KEY_COLUMNS).values())
        self.optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
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

    @property
    def settings(self) -> tuple[str, str]:
        """Learning rate and damping, as text."""
        return self._parts[0]["learning_rate"], self._parts[0]["damping"]

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
