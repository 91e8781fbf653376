"""What the recorded runs of `mnist_natgrad.py` say: columns, curves, tables; nothing here needs TensorFlow."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np

from kit.recording import Row, by
from kit.runs import title_of

COLUMNS = (
    *("run", "dataset", "image_size", "batch_size", "learning_rate", "damping", "metric", "solver", "seed"),
    *("iteration", "loss", "test_loss", "test_accuracy", "seconds"),
)
KEY_COLUMNS = COLUMNS[: COLUMNS.index("iteration")]
COST_COLUMNS = ("image_size", "parameters", "batch_size", "solver", "milliseconds", "relative_difference", "rank")
# The author's three recipes, the first of which the others change in one thing.
AUTHOR = ("March script", "June script", "blog text")
OTHERS = ("gradient descent", "corrected")
COST_BATCH_SIZE = 32
COST_SOLVERS = ("svd", "gram", "cg")

EXPLODED_LOSS = 10.0
TARGET_TEST_LOSS = 0.55
SOLVER_NAMES = {"svd": "dense Hessian + SVD", "gram": "Gram matrix", "cg": "conjugate gradients"}


def has_exploded(loss: float) -> bool:
    """Whether a batch's loss is above 10 or not finite; softmax regression starts at log 10 = 2.3."""
    return not loss <= EXPLODED_LOSS


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
        self.groups: dict[tuple[str, int, bool], list[Curve]] = {}
        for group in by(rows, *KEY_COLUMNS).values():
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
    def variations(self) -> list[str]:
        """The configurations that change the first of the author's in one thing."""
        names = dict.fromkeys(name for name, _, _ in self.groups)
        return [name for name in names if name not in (*AUTHOR, *OTHERS)]

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
    for name in AUTHOR:
        gram, dense, window = results.curves(name), results.curves(name, dense=True), results.window(name)
        if not gram:
            continue
        seeds = "none" if window is None else f"{window[0]} to {window[1]}, {window[2]} of {window[3]}"
        at = dash(dense[0].exploded_at) if dense else ""
        first = gram[0].first
        label = f"{name}: {first['metric']}, rate {first['learning_rate']}, batch {first['batch_size']}"
        lines.append(f"{label:40s}{at:>11s}{dash(gram[0].exploded_at):>7s}{seeds:>26s}")
    to_target = f"to test loss {TARGET_TEST_LOSS:g}"
    lines += [
        "",
        f"{'iterations (median), at the end':40s}{to_target:>19s}{'test loss':>11s}{'accuracy':>10s}  stayed finite",
    ]
    rows = [(name, results.size) for name in OTHERS]
    rows += [("corrected", size) for size in results.other_sizes]
    rows += [(name, results.size) for name in results.variations]
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
