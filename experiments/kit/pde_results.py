"""What the recorded runs of `pde.py` say: errors at the end, seconds to targets, the table; without TensorFlow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kit.equations import EQUATIONS
from kit.recording import Row
from kit.runs import complete_runs

# Adam's learning rates are tried on it.
TUNING_SEED = 100

TARGETS = (1e-3, 1e-4, 1e-5, 1e-6)
NAMES = {
    "natural": "natural gradient",
    "adam": "Adam, decayed",
    "lbfgs": "L-BFGS-B (SciPy)",
    "tfp": "L-BFGS (TensorFlow Probability)",
    "adam_lbfgs": "Adam, then L-BFGS-B",
}
CONTESTANTS = tuple(NAMES)
KEY_COLUMNS = ("problem", "contestant", "setting", "seed", "budget", "threads")
COLUMNS = (*KEY_COLUMNS, "iteration", "seconds", "loss", "error", "coefficient", "end", "machine")
SUMMARY_COLUMNS = (
    *("problem", "contestant", "setting", "budget", "seeds", "error", "error_min", "error_max", "iterations"),
    *(f"seconds_to_{target:g}" for target in TARGETS),
)
SOLUTION_COLUMNS = ("problem", "contestant", "x", "y", "solution", "error")


def runs_of(rows: Sequence[Row]) -> dict[tuple[str, str], list[list[Row]]]:
    """The complete runs that count, by problem and contestant, in the order of the tables."""
    found: dict[tuple[str, str], list[list[Row]]] = {(p, c): [] for p in EQUATIONS for c in CONTESTANTS}
    for group in complete_runs(rows, KEY_COLUMNS):
        if group[0]["seed"] != str(TUNING_SEED):
            found[group[0]["problem"], group[0]["contestant"]].append(group)
    return {key: groups for key, groups in found.items() if groups}


def last_error(rows: Sequence[Row]) -> float:
    """The error at the end of a run; infinite where it diverged."""
    error = float(rows[-1]["error"])
    return error if rows[-1]["end"] != "diverged" and math.isfinite(error) else math.inf


def seconds_to(rows: Sequence[Row], target: float) -> float:
    """Seconds to the first evaluation with an error at the target; infinite if there is none."""
    return next((float(row["seconds"]) for row in rows if float(row["error"]) <= target), math.inf)


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per problem and contestant: errors at the end, and median seconds to each target."""
    summary = []
    for (problem, contestant), groups in runs_of(rows).items():
        errors = [last_error(group) for group in groups]
        seconds = {t: statistics.median(seconds_to(group, t) for group in groups) for t in TARGETS}
        summary.append(
            {
                "problem": problem,
                "contestant": contestant,
                "setting": groups[0][0]["setting"],
                "budget": groups[0][0]["budget"],
                "seeds": len(groups),
                "error": statistics.median(errors),
                "error_min": min(errors),
                "error_max": max(errors),
                "iterations": statistics.median(int(group[-1]["iteration"]) for group in groups),
                **{f"seconds_to_{t:g}": s if math.isfinite(s) else None for t, s in seconds.items()},
            }
        )
    return summary


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The table of the docs, in Markdown: median errors at the end, and how far the natural gradient is ahead."""
    by_problem: dict[str, dict[str, float]] = {}
    budgets = {row["problem"]: row["budget"] for row in summary}
    for row in summary:
        by_problem.setdefault(row["problem"], {})[row["contestant"]] = float(row["error"])
    head = ["equation", "seconds", *NAMES.values(), "Adam's error / natural", "best L-BFGS's error / natural"]
    lines = [head, ["---"] * len(head)]
    for problem, errors in by_problem.items():
        own = errors.get("natural", math.nan)
        quasi = min((errors[c] for c in ("lbfgs", "tfp", "adam_lbfgs") if c in errors), default=math.nan)
        cells = [f"{errors[c]:.1e}" if c in errors else "not run" for c in CONTESTANTS]
        ratios = [f"{errors.get('adam', math.nan) / own:,.2g}", f"{quasi / own:,.2g}"]
        lines.append([EQUATIONS[problem].title, budgets[problem], *cells, *ratios])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
