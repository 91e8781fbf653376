"""What the recorded runs of `trpo.py` say: returns beside targets and published ones, in words; without TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kit import policy_results
from kit.recording import Key, Row, by, column

FILES = ("trpo_runs.csv", "trpo_curves.csv", "trpo_curvature.csv")
KEY_COLUMNS = ("env", "seed", "set", "algorithm", "settings", "steps", "episodes")
RUN_COLUMNS = (
    *(*KEY_COLUMNS, "deterministic", "deterministic_sd", "stochastic", "stochastic_sd", "target_kl", "largest_kl"),
    *("rejected", "updates", "steps_per_second", "seconds"),
)
CURVE_KEY_COLUMNS = ("env", "seed", "set")
RECORDED = (
    *("steps", "mean_return", "kl_predicted", "kl", "surrogate_predicted", "surrogate", "cg_iterations", "cg_residual"),
    *("line_search_steps", "accepted", "explained_variance"),
)
CURVE_COLUMNS = (*CURVE_KEY_COLUMNS, *RECORDED)
CURVATURE_COLUMNS = ("optimizer", *policy_results.COLUMNS)
# Fresh seeds are for settings that were changed after the confirming seeds had been looked at.
SETS = {"tuning": range(10), "confirming": range(100, 110), "fresh": range(300, 310)}
SET_NAMES = (*SETS, "other")
ACTIONS = {"deterministic": "most probable", "stochastic": "sampled"}
RESAMPLES = 10_000
HEADER = (
    *("environment", "seeds", "actions", "mean over seeds (95%)", "worst seed", "target", "seeds at it", "met"),
    *("published", "largest KL / limit", "rejected updates", "steps/s"),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """What the returns of one kind of evaluation are to reach.

    Attributes:
        value: a mean return over episodes, or over episodes and seeds.
        share: of the seeds that have to reach it; without it the mean over the seeds has to.
    """

    value: float
    share: float | None = None

    def is_met(self, returns: np.ndarray) -> bool:
        """Whether returns, one for each seed, are good enough."""
        if self.share is None:
            return bool(returns.mean() >= self.value)
        return bool(np.mean(returns >= self.value) >= self.share)

    def __str__(self):
        what = "mean" if self.share is None else f"{self.share:.0%} of seeds"
        return f"{what} >= {self.value:g}"


@dataclasses.dataclass(frozen=True)
class Task:
    """How an environment is learned.

    Attributes:
        steps: of the environments, all together.
        settings: of the agent, where they are not its defaults.
        targets: by the kind of evaluation.
        published: what is published, in words, by the kind of evaluation.
        line: a published mean return.
        label: the same in a legend.
        changed: whether the settings were changed after the confirming seeds had been looked at.
    """

    steps: int
    settings: Mapping[str, Any]
    targets: Mapping[str, Target]
    published: Mapping[str, str]
    line: float
    label: str
    changed: bool = False


def set_of(seed: int) -> str:
    """What a seed is for."""
    return next((name for name, seeds in SETS.items() if seed in seeds), "other")


def curve_of(row: Row) -> Key:
    """The key of the curve that belongs to a row of a run."""
    return tuple(row[name] for name in CURVE_KEY_COLUMNS)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The bootstrap's 95% interval of a mean, by percentiles; always of the same resamples."""
    chosen = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values)[chosen].mean(1), [2.5, 97.5])
    return float(low), float(high)


def table(rows: Sequence[Row], tasks: Mapping[str, Task], markdown: bool = False) -> str:
    """What was reached, for each environment, set of seeds and kind of evaluation.

    Args:
        rows: of the runs.
        tasks: by environment.
        markdown: whether to write Markdown.

    Returns:
        Lines.
    """
    cells = [list(HEADER)]
    for (env, which), found in by(in_order(rows, tasks), "env", "set").items():
        task = tasks[env]
        seeds = sorted(int(row["seed"]) for row in found)
        largest = max(float(row["largest_kl"]) / float(row["target_kl"]) for row in found)
        rejected, updates = (sum(int(row[name]) for row in found) for name in ("rejected", "updates"))
        for kind, spoken in ACTIONS.items():
            returns, target = column(found, kind), task.targets.get(kind)
            low, high = interval(returns)
            # Where a kind has no target of its own, its seeds are held against the other's.
            value = (target or next(iter(task.targets.values()))).value
            cells.append(
                [
                    *(env, f"{which}, {seeds[0]}-{seeds[-1]}", spoken),
                    f"{returns.mean():.1f} ({low:.1f} to {high:.1f})",
                    f"{returns.min():.1f}",
                    str(target) if target else "-",
                    f"{(returns >= value).sum()} of {len(returns)}",
                    ("yes" if target.is_met(returns) else "NO") if target else "-",
                    *(task.published.get(kind, "-"), f"{largest:.4f}", f"{rejected} of {updates}"),
                    f"{np.median(column(found, 'steps_per_second')):,.0f}",
                ]
            )
    if markdown:
        return "\n".join(f"| {' | '.join(line)} |" for line in [cells[0], ["---"] * len(HEADER), *cells[1:]])
    widths = [max(map(len, cells_of)) for cells_of in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def curvature_table(rows: Sequence[Row]) -> str:
    """The eigenvalues along both trainings, and what is found in them, for people."""
    tables = [f"{optimizer}\n{policy_results.table(found)}" for (optimizer,), found in by(rows, "optimizer").items()]
    return "\n\n".join([*tables, f"{comparison(rows)} {clear(rows)}".strip()])


def in_order(rows: Sequence[Row], tasks: Mapping[str, Task]) -> list[Row]:
    """Rows by environment and set."""
    return sorted(rows, key=lambda row: (list(tasks).index(row["env"]), SET_NAMES.index(row["set"])))


def runs_of(runs: Sequence[Row], env: str) -> list[Row]:
    """The rows of an environment."""
    return [row for row in runs if row["env"] == env]


def comparison(rows: Sequence[Row]) -> str:
    """The smallest eigenvalues at the returns of Adam's checkpoints, in words; TRPO's are interpolated.

    Args:
        rows: of the curvature.

    Returns:
        A sentence; empty where the returns of the two have nothing in common.
    """
    ends = {key: found for key, found in by(rows, "optimizer", "end").items()}
    if not {("TRPO", "smallest"), ("Adam", "smallest")} <= set(ends):
        return ""
    trpo = sorted(ends["TRPO", "smallest"], key=lambda row: float(row["return"]))
    returns, eigenvalues = column(trpo, "return"), column(trpo, "eigenvalue")
    inside = [row for row in ends["Adam", "smallest"] if returns[0] <= float(row["return"]) <= returns[-1]]
    parts = [
        f"{np.interp(float(row['return']), returns, eigenvalues):.0f} and {float(row['eigenvalue']):.0f} at "
        f"{float(row['return']):.0f}"
        for row in inside
    ]
    return (
        f"Smallest eigenvalue by TRPO (interpolated) and by Adam at equal return: {', '.join(parts)}." if parts else ""
    )


def clear(rows: Sequence[Row]) -> str:
    """At how many checkpoints an eigenvalue is beyond what noise gives, in words."""
    parts = []
    for (optimizer, end), found in by(rows, "optimizer", "end").items():
        # Each end has half of the level.
        beyond = (column(found, "p_value") <= policy_results.LEVEL / 2).sum()
        parts.append(f"the {end} by {optimizer} at {beyond} of {len(found)} checkpoints")
    return f"Beyond pure noise, at a level of {policy_results.LEVEL / 2:.1%} each: {', '.join(parts)}."
