"""The figures of `trpo.py`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from drawing.style import BLUE, GREEN, ORANGE, PURPLE, RED, WIDTH, pyplot, save, set_caption
from kit.policy_results import described, threshold_of
from kit.recording import Row, by, column
from kit.trpo_results import ACTIONS, Task, curve_of, in_order, interval, runs_of

# Colour, line and mark of a set of seeds; of an optimizer.
SETS = {
    "tuning": (ORANGE, "--", "s"),
    "confirming": (BLUE, "-", "o"),
    "fresh": (GREEN, "-.", "^"),
    "other": (PURPLE, ":", "D"),
}
OPTIMIZERS = {"TRPO": (RED, "-", "o"), "Adam": (BLUE, "--", "s")}


def draw_learning(curves: Sequence[Row], runs: Sequence[Row], tasks: Mapping[str, Task], path: pathlib.Path) -> None:
    """Draws the returns along training, and those of the final evaluations below."""
    complete = {curve_of(row) for row in runs}
    curves = in_order([row for row in curves if curve_of(row) in complete], tasks)
    runs = in_order(runs, tasks)
    envs = [env for env in tasks if runs_of(runs, env)]
    figure, axes = pyplot().subplots(2, len(envs), figsize=(WIDTH, 8.6), squeeze=False, height_ratios=(1.5, 1))
    for (learned, evaluated), env in zip(axes.T, envs, strict=True):
        task = tasks[env]
        for axis in (learned, evaluated):
            axis.axhline(task.line, color="black", linestyle=":", linewidth=1.4, label=task.label)
        for which, found in by([row for row in curves if row["env"] == env], "set").items():
            _draw_curves(learned, which[0], list(by(found, "seed").values()))
        _draw_evaluations(evaluated, by(runs_of(runs, env), "set"))
        learned.set_title(env)
        learned.set_xlabel("environment steps")
        learned.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:,.0f}k" if x else "0")
        learned.locator_params(axis="x", nbins=6)
        learned.legend(fontsize=8.5, loc="lower right")
    axes[0, 0].set_ylabel("return of an episode")
    axes[1, 0].set_ylabel("return after training")
    figure.suptitle("TRPO: return against environment steps, and after training")
    changed = [env for env in envs if tasks[env].changed]
    set_caption(
        figure,
        "Above: sampled actions, mean over the seeds with its bootstrap 95% interval; thin: seeds (not tuning). Below: "
        f"{runs[0]['episodes']} episodes of each agent, the same starts for all; small marks: seeds, large "
        "ones: their mean. Settings were chosen on the tuning seeds"
        + (f", and for {', '.join(changed)} once more after a run of the confirming ones." if changed else "."),
    )
    save(figure, path)


def _draw_curves(axis, which: str, of_seeds: Sequence[Sequence[Row]]) -> None:
    (colour, line, _), steps = SETS[which], column(of_seeds[0], "steps")
    returns = np.array([column(of_seed, "mean_return") for of_seed in of_seeds])
    low, high = zip(*(interval(at) for at in returns.T), strict=True)
    if which != "tuning":
        axis.plot(steps, returns.T, color=colour, linewidth=0.5, alpha=0.4)
    label = f"{which}, {len(of_seeds)} seeds"
    axis.plot(steps, returns.mean(0), color=colour, linestyle=line, linewidth=2, label=label)
    axis.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)


def _draw_evaluations(axis, runs: Mapping[tuple[str, ...], Sequence[Row]]) -> None:
    places = [(which, kind) for which in SETS if (which,) in runs for kind in ACTIONS]
    for x, (which, kind) in enumerate(places):
        values, (colour, _, mark) = column(runs[which,], kind), SETS[which]
        axis.plot(x + np.linspace(-0.25, 0.05, len(values)), values, mark, color=colour, markersize=4, alpha=0.5)
        middle, (low, high) = values.mean(), interval(values)
        bars = [[middle - low], [high - middle]]
        axis.errorbar(x + 0.2, middle, bars, color=colour, marker="D", markersize=7, mfc="white", capsize=4)
    labels = [f"{which}, {ACTIONS[kind]}" for which, kind in places]
    axis.set_xticks(range(len(places)), labels, fontsize=8.5, rotation=28, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.5, len(places) - 0.5)


def draw_curvature(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the return against the updates, and the extreme eigenvalues against the return, of both optimizers."""
    figure, axes = pyplot().subplots(1, 3, figsize=(WIDTH, 6.0))
    learned, smallest, largest = axes
    for optimizer, (colour, line, mark) in OPTIMIZERS.items():
        ends = {end: found for (o, end), found in by(rows, "optimizer", "end").items() if o == optimizer}
        if not ends:
            continue
        value, error = (column(ends["largest"], name) for name in ("return", "return_error"))
        x = column(ends["largest"], "iteration")
        style = dict(color=colour, linestyle=line, markersize=4, capsize=2)
        learned.errorbar(x, value, 1.96 * error, marker=mark, label=optimizer, **style)
        for axis, end in ((smallest, "smallest"), (largest, "largest")):
            _draw_end(axis, ends[end], value, optimizer)
    # Below ten all is noise here.
    threshold = max(threshold_of(rows), 10.0)
    for axis, end in ((smallest, "smallest"), (largest, "largest")):
        axis.axhline(0.0, color="black", linewidth=0.6)
        axis.set_yscale("symlog", linthresh=threshold)
        axis.set_xlabel("expected discounted return")
        axis.set_title(f"{end.capitalize()} eigenvalue")
    smallest.set_ylabel("return / weight² (symmetric logarithm)")
    learned.set_xlabel("update")
    learned.set_ylabel("expected discounted return")
    learned.set_title("Expected return")
    learned.legend()
    # Above the largest eigenvalues: there is room beyond those of noise.
    low, high = largest.get_ylim()
    largest.set_ylim(low, 40.0 * high)
    largest.legend(fontsize=8.5, loc="upper left")
    first = rows[0]
    figure.suptitle(f"Curvature along TRPO and Adam, {described(first)}")
    set_caption(
        figure,
        f"One policy of {first['parameters']} weights, from the same start, seed {first['seed']}; {first['episodes']} "
        "episodes a checkpoint, 95% intervals over them. Eigenvalues of all episodes are biased outward, cross-fitted "
        f"ones inward. Linear within {threshold:g} of 0.",
    )
    save(figure, path)


def _draw_end(axis, rows: Sequence[Row], value: np.ndarray, optimizer: str) -> None:
    """One end of the spectrum against the return: of all episodes, cross-fitted, and of pure noise."""
    colour, line, mark = OPTIMIZERS[optimizer]
    style = dict(color=colour, markersize=4, capsize=2)
    middle = column(rows, "eigenvalue")
    bars = np.abs([middle - column(rows, "low"), column(rows, "high") - middle])
    axis.errorbar(value, middle, bars, marker=mark, linestyle=line, label=f"{optimizer}, all episodes", **style)
    middle = column(rows, "cross_fitted")
    bars = np.abs([middle - column(rows, "cross_low"), column(rows, "cross_high") - middle])
    options = dict(style, marker=mark, linestyle="", alpha=0.5, mfc="white")
    axis.errorbar(value, middle, bars, label=f"{optimizer}, cross-fitted", **options)
    limit = column(rows, "null_limit")
    if np.isfinite(limit).any():
        axis.plot(value, limit, color=colour, linestyle=":", label=f"{optimizer}, limit of pure noise")
