"""The figures of `pde.py`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from drawing.style import BLUE, GREEN, ORANGE, PURPLE, SKY, WIDTH, pyplot, save, set_caption
from kit.equations import EQUATIONS
from kit.pde_results import CONTESTANTS, NAMES, SOLUTION_COLUMNS, TUNING_SEED, runs_of
from kit.recording import Row, column

# Colour, line and mark.
STYLES = {
    "natural": (GREEN, "-", "s"),
    "adam": (ORANGE, "--", ""),
    "lbfgs": (BLUE, "-.", ""),
    "tfp": (SKY, ":", ""),
    "adam_lbfgs": (PURPLE, (0, (6, 1)), "^"),
}


def draw_errors(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the error against iterations and against seconds, a row of panels per equation."""
    runs = runs_of(rows)
    names = [name for name in EQUATIONS if any(problem == name for problem, _ in runs)]
    size = (WIDTH, 1.5 + 2.45 * len(names))
    figure, axes = pyplot().subplots(len(names), 2, figsize=size, squeeze=False, sharey="row")
    for pair, name in zip(axes, names, strict=True):
        for axis, unit in zip(pair, ("iteration", "seconds"), strict=True):
            for contestant in CONTESTANTS:
                if groups := runs.get((name, contestant), []):
                    _draw_runs(axis, groups, unit, STYLES[contestant], NAMES[contestant])
            axis.set_xscale("log")
            axis.set_yscale("log")
        budget = next(groups[0][0]["budget"] for (problem, _), groups in runs.items() if problem == name)
        pair[0].set_title(EQUATIONS[name].title)
        pair[1].set_title(f"budget {budget} s")
        pair[0].set_ylabel("relative L2 error")
    for axis, unit in zip(axes[-1], ("iterations", "seconds of training"), strict=True):
        axis.set_xlabel(f"{unit} (logarithmic)")
    # Above all panels: within one it would hide curves.
    figure.suptitle(" ")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", ncols=len(CONTESTANTS), frameon=False)
    set_caption(figure, _caption(rows, runs))
    save(figure, path)


def _caption(rows: Sequence[Row], runs: Mapping[tuple[str, str], Sequence[Sequence[Row]]]) -> str:
    rates = {row["setting"] for row in rows if row["seed"] == str(TUNING_SEED)}
    threads = " or ".join(dict.fromkeys(row["threads"] for row in rows))
    seeds = sorted({len(groups) for groups in runs.values()})
    counted = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    where = next((row["machine"] for row in rows if row["machine"]), "an unknown machine")
    return (
        f"Medians over {counted} seed(s), bands from the least to the greatest; who is done keeps the last error. Same "
        f"weights, points and sum of squares for all, float64, {threads} thread(s) on {where}. "
        f"Adam's learning rate is the best of {len(rates)} on seed {TUNING_SEED}."
    )


def _draw_runs(axis, groups: Sequence[Sequence[Row]], unit: str, style: tuple, label: str) -> None:
    """The median of the seeds with the band from least to greatest."""
    colour, line, mark = style
    xs = [column(group, unit) for group in groups]
    errors = [column(group, "error") for group in groups]
    start, last = min(x[1] for x in xs), max(x[-1] for x in xs)
    grid = np.geomspace(start, max(last, 1.001 * start), 300)
    values = [e[np.searchsorted(x, grid * (1.0 + 1e-9), side="right") - 1] for x, e in zip(xs, errors, strict=True)]
    marks = {"marker": mark, "markevery": (20, 60), "markersize": 4.5}
    axis.plot(grid, np.median(values, 0), color=colour, linestyle=line, linewidth=1.7, label=label, **marks)
    axis.fill_between(grid, np.min(values, 0), np.max(values, 0), color=colour, alpha=0.15, linewidth=0)


def draw_solutions(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the solutions in the plane, and their errors: two equations side by side."""
    names = [name for name in EQUATIONS if any(row["problem"] == name for row in rows)]
    lines = (len(names) + 1) // 2
    figure, axes = pyplot().subplots(lines, 4, figsize=(WIDTH, 0.6 + 2.6 * lines), squeeze=False)
    pairs = axes.reshape(-1, 2)
    for pair, name in zip(pairs, names, strict=False):
        own = [row for row in rows if row["problem"] == name]
        x, y, found, error = (column(own, name) for name in SOLUTION_COLUMNS[2:])
        shape = (len(np.unique(x)), len(np.unique(y)))
        equation = EQUATIONS[name]
        # From dark to bright in both, so that signs can be told in grey.
        for axis, values, title, colours in (
            (pair[0], found, equation.title.replace(", ", ",\n", 1), "viridis"),
            (pair[1], error, "\nerror", "cividis"),
        ):
            image = axis.pcolormesh(*(a.reshape(shape) for a in (x, y, values)), cmap=colours, shading="nearest")
            bar = figure.colorbar(image, ax=axis)
            bar.formatter.set_powerlimits((-2, 2))
            bar.ax.tick_params(labelsize=8)
            axis.grid(False)
            axis.set_xlabel(equation.coordinates[0])
            axis.set_ylabel(equation.coordinates[1])
            axis.set_title(title, fontsize=10)
    for axis in pairs[len(names) :].flat:
        axis.axis("off")
    set_caption(figure, "What the natural gradient found on seed 0 at the end of its budget, and how far it is off.")
    save(figure, path)
