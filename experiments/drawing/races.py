"""The figures of `races.py`: one a problem."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from drawing.style import (
    BLACK,
    BLUE,
    BROWN,
    GREEN,
    GREY,
    OLIVE,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    pyplot,
    save,
    set_caption,
)
from kit.race_grids import OWN, TUNING_SEED
from kit.race_networks import Problem
from kit.race_results import CONTESTANTS, NAMES, Result, race_of, results_of
from kit.recording import Row
from kit.runs import title_of

# Colour, line and mark: first-order methods are broken lines, natural gradients whole ones.
STYLES = {
    "sgd": (GREY, ":", ""),
    "momentum": (SKY, "-.", ""),
    "adam": (ORANGE, "--", ""),
    "adamw": (RED, (0, (4, 1, 1, 1, 1, 1)), ""),
    OWN: (BROWN, (0, (5, 1)), ""),
    "gram": (GREEN, "-", "s"),
    "cg": (BLUE, "-", "^"),
    "kfac": (BLACK, "-", "s"),
    "ekfac": (OLIVE, "-", "D"),
    "defaults": (PURPLE, "-", "v"),
}


def draw_races(rows: Sequence[Row], problems: Mapping[str, Problem], folder: pathlib.Path) -> None:
    """Draws each problem's race into `races_<problem>.png`: the metric against iterations and against seconds.

    Args:
        rows: of the CSV.
        problems: by name.
        folder: of the pictures.
    """
    results = results_of(rows, problems)
    for name, problem in problems.items():
        races = {c: race_of(results[name, c], problem.targets) for c in CONTESTANTS if (name, c) in results}
        races = {contestant: race for contestant, race in races.items() if race}
        # Where only settings were tried so far there is no race to draw.
        if races:
            own = [row for row in rows if row["problem"] == name]
            _draw_problem(name, problem, races, _caption(own, races), folder / f"races_{name}.png")


def _draw_problem(
    name: str, problem: Problem, races: Mapping[str, Sequence[Result]], caption: str, path: pathlib.Path
) -> None:
    labels = {contestant: _label(contestant, race[0]) for contestant, race in races.items()}
    rows = 0.17 * sum(label.count("\n") + 1 for label in labels.values()) / 2.0 + 0.35
    figure = pyplot().figure(figsize=(WIDTH, 5.9 + rows))
    cells = figure.add_gridspec(2, 2, height_ratios=[4.4, rows])
    left = figure.add_subplot(cells[0, 0])
    pair = left, figure.add_subplot(cells[0, 1], sharey=left)
    for axis, unit in zip(pair, ("iteration", "seconds"), strict=True):
        for contestant, race in races.items():
            _draw_race(axis, race, unit, STYLES[contestant], labels[contestant])
        for target in problem.targets:
            axis.axhline(target, color="black", linewidth=0.8, linestyle=":")
        _logarithmic(axis)
        axis.set_xlabel(f"{unit if unit == 'seconds' else 'iterations'} of training (logarithmic)")
    shown = [r.metric[np.isfinite(r.metric)] for race in races.values() for r in race]
    shown = np.concatenate([values for values in shown if len(values)] or [np.array(problem.targets)])
    low, start = min(*problem.targets, shown.min()), max(r.metric[0] for race in races.values() for r in race)
    # What rises above this has diverged, or is about to.
    left.set_ylim(0.8 * low, 2.0 * start)
    left.set_ylabel(f"{problem.metric} (logarithmic)")
    budget = next(iter(races.values()))[0].first["budget"]
    left.set_title("Against iterations")
    pair[1].set_title(f"Against seconds, budget {budget} s a run")
    figure.suptitle(f"{problem.title} ({name})")
    below = figure.add_subplot(cells[1, :])
    below.axis("off")
    # Beside the curves there is no room for settings, and tight_layout would make some at their cost.
    legend = below.legend(*left.get_legend_handles_labels(), ncols=2, fontsize=9, loc="center", frameon=False)
    legend.set_in_layout(False)
    set_caption(figure, caption)
    save(figure, path)


def _logarithmic(axis) -> None:
    """Logarithmic axes with plain numbers at the side."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x, pos=None):
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(Plain())
    axis.yaxis.set_minor_formatter(Plain(minor_thresholds=(1.6, 0.4)))


def _label(contestant: str, result: Result) -> str:
    """Name and setting as a legend has room for them."""
    setting = result.first["setting"]
    words = {
        "ConjugateGradient": "CG",
        "LevenbergMarquardt": "LM",
        "learning_rate": "rate",
        "max_iterations": "iterations",
        "solver=gram; ": "",
        "solver=": "",
        "stopping=": "",
        "=;": "=None;",
    }
    for long, short in words.items():
        setting = setting.replace(long, short)
    setting += "None" if setting.endswith("=") else ""
    return textwrap.fill(f"{NAMES[contestant]}: {setting}", 66, subsequent_indent="    ")


def _draw_race(axis, race: Sequence[Result], unit: str, style: tuple, label: str) -> None:
    """The median of the seeds with the band from least to greatest; who is done stays where it got."""
    colour, line, mark = style
    xs = [getattr(result, unit) for result in race]
    start, last = min(x[1] for x in xs), max(x[-1] for x in xs)
    grid = np.geomspace(start, last, 300)
    values = []
    for x, result in zip(xs, race, strict=True):
        metric = np.where(np.isfinite(result.metric), np.minimum(result.metric, 1e6), 1e6)
        index = np.searchsorted(x, grid * (1.0 + 1e-9), side="right") - 1
        values.append(np.where((index == len(x) - 1) & result.diverged, 1e6, metric[np.maximum(index, 0)]))
    marks = {"marker": mark, "markevery": (15, 45), "markersize": 4.5}
    axis.plot(grid, np.median(values, 0), color=colour, linestyle=line, linewidth=1.7, label=label, **marks)
    axis.fill_between(grid, np.min(values, 0), np.max(values, 0), color=colour, alpha=0.15, linewidth=0)
    axis.plot(grid[-1], np.median(values, 0)[-1], "o", color=colour, markersize=6)


def _caption(rows: Sequence[Row], races: Mapping[str, Sequence[Result]]) -> str:
    threads, seeds = rows[0]["threads"], sorted({len(race) for race in races.values()})
    counted = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    counted += " seed" if counted == "1" else " seeds"
    machine = next((row["machine"] for row in rows if row["machine"]), "an unknown machine")
    parts = [
        f"Medians over {counted}, bands from the least to the greatest; dotted: targets. A dot is where the last seed "
        "ended: at the tightest target, at its budget, or diverged.",
        f"Seconds of training alone, {threads} thread{'s' if threads != '1' else ''}, {machine}.",
    ]
    if any(row["seed"] == str(TUNING_SEED) for row in rows):
        parts.append(f"Settings: the best of four on seed {TUNING_SEED}; the defaults are not tuned.")
    if any(row["dataset"] == "digits" for row in rows):
        parts.append(f"The images are {title_of('digits', '8x8').split(',')[0]}.")
    if diverged := [contestant for contestant, race in races.items() if any(r.diverged for r in race)]:
        parts.append(f"Diverged in the race: {', '.join(diverged)}.")
    return " ".join(parts)
