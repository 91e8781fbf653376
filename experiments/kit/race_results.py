"""What the recorded runs of `races.py` say: the settings that were chosen, summary and table; without TensorFlow."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kit.race_grids import FIRST_ORDER, OWN, TUNING_SEED, grid, setting_text
from kit.race_networks import Problem
from kit.recording import Row
from kit.runs import complete_runs

NAMES = {
    "sgd": "SGD",
    "momentum": "SGD, Nesterov momentum 0.9",
    "adam": "Adam",
    "adamw": "AdamW",
    OWN: "Adam, its own batch",
    "gram": "natural gradient, Gram",
    "cg": "natural gradient, CG",
    "kfac": "natural gradient, K-FAC",
    "ekfac": "natural gradient, EKFAC",
    "defaults": "natural gradient, defaults",
}
CONTESTANTS = tuple(NAMES)
KEY_COLUMNS = ("problem", "dataset", "contestant", "setting", "seed", "budget", "threads")
COLUMNS = (*KEY_COLUMNS, "iteration", "seconds", "cpu_seconds", "metric", "loss", "train_loss", "end", "machine")
SUMMARY_COLUMNS = (
    *("problem", "metric", "contestant", "setting", "at_the_edge_of_the_grid", "target", "seeds", "reached"),
    *("iterations", "iterations_min", "iterations_max", "seconds", "seconds_min", "seconds_max"),
    *("seconds_per_iteration", "metric_at_the_end", "diverged", "diverged_while_tuning"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run recorded.

    Attributes:
        first: its first row, for the configuration.
        iteration: `[T]`.
        seconds: `[T]`.
        metric: `[T]`.
        end: `"budget"`, `"target"`, `"diverged"`, or nothing where it was interrupted.
    """

    first: Row
    iteration: np.ndarray
    seconds: np.ndarray
    metric: np.ndarray
    end: str

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Result:
        """The result of the rows of one run."""
        columns = [np.array([float(row[name]) for row in rows]) for name in ("iteration", "seconds", "metric")]
        return cls(rows[0], *columns, rows[-1]["end"])

    @property
    def diverged(self) -> bool:
        """Whether it diverged."""
        return self.end == "diverged"

    def reached(self, target: float) -> tuple[float, float]:
        """Iterations and seconds at the first evaluation where the metric is at the target; infinite if never."""
        below = np.flatnonzero(self.metric <= target)
        if not len(below):
            return math.inf, math.inf
        return float(self.iteration[below[0]]), float(self.seconds[below[0]])

    def rank(self, targets: Sequence[float]) -> tuple:
        """What the best setting has the least of: not diverged; tightest target, seconds to it, metric at the end."""
        at = [self.reached(target)[1] for target in targets]
        count = sum(math.isfinite(seconds) for seconds in at)
        last = float(self.metric[-1])
        return (
            self.diverged,
            -count,
            at[count - 1] if count else math.inf,
            last if math.isfinite(last) else math.inf,
        )


def results_of(rows: Sequence[Row], problems: Mapping[str, Problem]) -> dict[tuple[str, str], list[Result]]:
    """The complete runs by problem and contestant, in the order of the tables."""
    found: dict[tuple[str, str], list[Result]] = {
        (problem, contestant): [] for problem in problems for contestant in CONTESTANTS
    }
    for group in complete_runs(rows, KEY_COLUMNS):
        found[group[0]["problem"], group[0]["contestant"]].append(Result.of(group))
    return {key: group for key, group in found.items() if group}


def best_setting(results: Sequence[Result], targets: Sequence[float]) -> str | None:
    """The setting that did best on the tuning seed; the only one where there was nothing to choose.

    Args:
        results: of one contestant on one problem.
        targets: of the problem.

    Returns:
        The setting as text, or `None` where it was not tuned.
    """
    tuned = [result for result in results if result.first["seed"] == str(TUNING_SEED)]
    settings = {result.first["setting"] for result in results}
    if not tuned:
        return settings.pop() if len(settings) == 1 else None
    return min(tuned, key=lambda result: result.rank(targets)).first["setting"]


def race_of(results: Sequence[Result], targets: Sequence[float]) -> list[Result]:
    """The runs that count: those of the best setting on the seeds of the race."""
    setting = best_setting(results, targets)
    return [r for r in results if r.first["setting"] == setting and r.first["seed"] != str(TUNING_SEED)]


def summarize(rows: Sequence[Row], problems: Mapping[str, Problem]) -> list[dict[str, Any]]:
    """One row per problem, contestant and target; a target that a seed did not reach counts as infinitely late.

    Args:
        rows: of the CSV of the races.
        problems: by name.

    Returns:
        The columns of the summary.
    """
    summary = []
    for (name, contestant), results in results_of(rows, problems).items():
        problem = problems[name]
        race = race_of(results, problem.targets)
        if not race:
            continue
        tuned = [r for r in results if r.first["seed"] == str(TUNING_SEED)]
        setting = race[0].first["setting"]
        texts = [setting_text(s) for s in grid(name, contestant)]
        common = {
            "problem": name,
            "metric": problem.metric,
            "contestant": contestant,
            "setting": setting,
            "at_the_edge_of_the_grid": "yes" if len(tuned) > 1 and setting in (texts[0], texts[-1]) else "no",
            "seeds": len(race),
            "seconds_per_iteration": statistics.median(r.seconds[-1] / max(r.iteration[-1], 1) for r in race),
            "metric_at_the_end": statistics.median(
                r.metric[-1] if math.isfinite(r.metric[-1]) else math.inf for r in race
            ),
            "diverged": sum(r.diverged for r in race),
            "diverged_while_tuning": sum(r.diverged for r in tuned),
        }
        for target in problem.targets:
            at = [r.reached(target) for r in race]
            columns = {"target": target, "reached": sum(math.isfinite(iterations) for iterations, _ in at)}
            for unit, values in zip(("iterations", "seconds"), zip(*at, strict=True), strict=True):
                found = (("", statistics.median(values)), ("_min", min(values)), ("_max", max(values)))
                columns |= {f"{unit}{what}": value if math.isfinite(value) else None for what, value in found}
            summary.append(common | columns)
    return summary


# Natural gradients with a grid, and their columns.
_TUNED = {"gram": "Gram", "cg": "CG", "kfac": "K-FAC", "ekfac": "EKFAC"}


def table(summary: Sequence[Row]) -> str:
    """The table of the docs, in Markdown.

    Args:
        summary: rows of the summary.

    Returns:
        Lines; the last columns are seconds of the best first-order contestant, at the problem's batch and at its own,
        over those of the best tuned natural one.
    """
    head = (
        "problem",
        "target",
        "best first-order",
        "Gram",
        "CG",
        "K-FAC",
        "EKFAC",
        "defaults",
        "first-order / natural gradient, seconds",
        "the same at Adam's own batch",
    )
    lines = [_line(head), _line(["---"] * len(head))]
    by_target: dict[tuple[str, str], dict[str, Row]] = {}
    for row in summary:
        by_target.setdefault((row["problem"], row["target"]), {})[row["contestant"]] = row
    for (name, target), found in by_target.items():
        first = min((found[c] for c in FIRST_ORDER if c in found), key=_lateness, default=None)
        natural = min((found[c] for c in _TUNED if c in found), key=_lateness, default=None)
        metric = next(iter(found.values()))["metric"]
        cells = [_cell(first, named=True), *(_cell(found.get(c)) for c in (*_TUNED, "defaults"))]
        ratios = [_ratio(first, natural), _ratio(found[OWN], natural) if OWN in found else ""]
        lines.append(_line([name, f"{metric} {target}", *cells, *ratios]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lateness(row: Row) -> tuple[float, float]:
    """Seconds to the target; where it is not reached by most seeds, the metric at the end."""
    return float(row["seconds"] or math.inf), float(row["metric_at_the_end"])


def _cell(row: Row | None, named: bool = False) -> str:
    if row is None:
        return "not run"
    parts = [NAMES[row["contestant"]] + ":"] if named else []
    if row["seconds"]:
        parts.append(f"{float(row['iterations']):,.0f} iterations, {float(row['seconds']):.2g} s")
    else:
        parts.append(f"not reached, {float(row['metric_at_the_end']):.3g} at the end")
    if row["seconds"] and row["reached"] != row["seeds"]:
        parts.append(f"({row['reached']} of {row['seeds']} seeds)")
    if int(row["diverged"]):
        parts.append(f"({row['diverged']} of {row['seeds']} seeds diverge)")
    return " ".join(parts)


def _ratio(first: Row | None, natural: Row | None) -> str:
    if first is None or natural is None:
        return ""
    name = _TUNED[natural["contestant"]]
    if not first["seconds"] and not natural["seconds"]:
        return "neither"
    if not first["seconds"]:
        return f"won: only {name} reaches it"
    if not natural["seconds"]:
        return "lost: only first-order reaches it"
    ratio = float(first["seconds"]) / float(natural["seconds"])
    return f"{ratio:.2g}, {'won' if ratio > 1.0 else 'lost'} ({name})"


def disturbed(rows: Sequence[Row]) -> list[Row]:
    """The last rows of the runs that had less than 90% of a core: their seconds are other processes' too."""
    ends = [row for row in rows if row["end"]]
    return [row for row in ends if float(row["cpu_seconds"] or "nan") < 0.9 * float(row["seconds"])]
