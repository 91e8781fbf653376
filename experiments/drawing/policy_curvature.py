"""The figures of `policy_curvature.py`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from drawing.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, WIDTH, dash, pyplot, save, set_caption
from kit.policy_results import LEVEL, described, threshold_of
from kit.recording import Row, by, column

DIRECTIONS = {"gradient": BLUE, "top eigenvector": RED, "bottom eigenvector": GREEN, "random": GREY}
# Colour, line and mark of the estimators, in the order of the file.
ESTIMATORS = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (PURPLE, "-.", "^"), (RED, ":", "D"))


def draw_curvature(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws return and extreme eigenvalues along training."""
    figure, axes = pyplot().subplots(1, 3, figsize=(WIDTH, 5.4))
    returns, largest, smallest = axes
    for number, of_seed in enumerate(by(rows, "seed").values()):
        ends = {end: of_end for (end,), of_end in by(of_seed, "end").items()}
        x, value, error = (column(ends["largest"], name) for name in ("iteration", "return", "return_error"))
        line = {"linestyle": dash(number), "capsize": 2, "markersize": 4}
        returns.errorbar(x, value, 1.96 * error, color="black", marker="o", **line)
        _draw_ends(largest, ends["largest"], RED, number)
        _draw_ends(smallest, ends["smallest"], GREEN, number)
    for axis, end in ((largest, "largest"), (smallest, "smallest")):
        axis.axhline(0.0, color="black", linewidth=0.6)
        axis.set_yscale("symlog", linthresh=threshold_of(rows))
        axis.set_title(f"{end.capitalize()} eigenvalue")
        axis.legend()
    largest.set_ylabel("return / weight² (symmetric logarithm)")
    returns.set_ylabel("expected discounted return")
    returns.set_title("Expected return")
    for axis in axes:
        axis.set_xlabel("iteration")
    first = rows[0]
    figure.suptitle(f"Curvature of the expected return, {described(first)}")
    set_caption(
        figure,
        f"{first['episodes']} episodes a checkpoint, {first['parameters']} weights; bars: {1 - LEVEL:.0%} intervals "
        "over episodes. Eigenvalues of all episodes are biased outward, cross-fitted ones inward. Grey: what pure "
        f"noise stays within, {LEVEL / 2:.1%} an end ({first['null_draws']} draws). Linear within "
        f"{threshold_of(rows):g} of 0.",
    )
    save(figure, path)


def _draw_ends(axis, rows: Sequence[Row], colour: str, number: int) -> None:
    """One end of the spectrum along training: of all episodes, cross-fitted, and of pure noise."""
    x, line = column(rows, "iteration"), {"linestyle": dash(number), "markersize": 4}
    # Beside one another: bars at the same place would hide one another.
    shift = 0.012 * max(float(np.ptp(x)), 1.0)
    for offset, name, low, high, tint, mark, label in (
        (-shift, "eigenvalue", "low", "high", colour, "o", "all episodes"),
        (shift, "cross_fitted", "cross_low", "cross_high", BLUE, "s", "cross-fitted"),
    ):
        middle = column(rows, name)
        bars = np.abs([middle - column(rows, low), column(rows, high) - middle])
        label = None if number else label
        axis.errorbar(x + offset, middle, bars, color=tint, marker=mark, capsize=2, label=label, **line)
    label = None if number else "limit of pure noise"
    axis.plot(x, column(rows, "null_limit"), color=GREY, marker="_", label=label, **{**line, "markersize": 12})


def draw_lines(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the change of the return along the directions, beside the quadratic."""
    policies = by(sorted(rows, key=lambda row: int(row["iteration"])), "policy")
    size = (WIDTH, 1.7 + 2.8 * len(policies))
    figure, axes = pyplot().subplots(len(policies), len(DIRECTIONS), figsize=size, squeeze=False)
    inside = total = 0
    for row_axes, of_policy in zip(axes, policies.values(), strict=True):
        for axis, (name, colour) in zip(row_axes, DIRECTIONS.items(), strict=True):
            agree, near = _draw_line(axis, [row for row in of_policy if row["direction"] == name], colour)
            inside, total = inside + agree, total + near
            axis.set_title(name if axes[0, 0] in row_axes else "")
        row_axes[0].set_ylabel(f"iteration {of_policy[0]['iteration']}: change")
    for axis in axes[-1]:
        axis.set_xlabel("step (norm)")
    handles = [
        pyplot().Line2D([], [], color=BLUE, marker="o", markersize=4, label="rollouts"),
        pyplot().Line2D([], [], color="black", linestyle="--", label="quadratic"),
    ]
    axes[0, 0].legend(handles=handles)
    first = rows[0]
    figure.suptitle(f"Change of the expected return along directions, {described(first)}")
    set_caption(
        figure,
        f"Dots: {first['rollouts']} episodes with the same random numbers at every step, 95% intervals of the paired "
        f"differences. Dashed: slope and curvature of {first['episodes']} other episodes, 95% band. Of the steps "
        f"shorter than 0.2, {inside} of {total} agree within both intervals. Vertical scales differ.",
    )
    save(figure, path)


def _draw_line(axis, line: Sequence[Row], colour: str) -> tuple[int, int]:
    """Draws one direction; returns how many of the short steps agree with the prediction, and how many there are."""
    step, change, error = (column(line, name) for name in ("step", "change", "change_error"))
    predicted, uncertain = column(line, "predicted"), column(line, "predicted_error")
    agree = np.abs(change - predicted) <= 1.96 * np.hypot(error, uncertain)
    near = (np.abs(step) < 0.2) & (step != 0)
    axis.errorbar(step, change, 1.96 * error, color=colour, marker="o", markersize=4, capsize=2, linewidth=1)
    axis.plot(step, predicted, color="black", linestyle="--", linewidth=1.2)
    low, high = predicted - 1.96 * uncertain, predicted + 1.96 * uncertain
    axis.fill_between(step, low, high, color="black", alpha=0.12, linewidth=0)
    # The rollouts decide what is seen: a parabola leaves the picture where it no longer applies.
    bottom, top = (change - 1.96 * error).min(), (change + 1.96 * error).max()
    margin = 0.35 * max(top - bottom, 1e-9)
    axis.set_ylim(bottom - margin, top + margin)
    return int(agree[near].sum()), int(near.sum())


def draw_surface(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the return over the two extreme eigenvectors, from rollouts and from the quadratic."""
    a, b = (np.unique(column(rows, name)) for name in ("step_bottom", "step_top"))
    found = {name: column(rows, name).reshape(len(a), len(b)).T for name in ("change", "predicted", "change_error")}
    figure, axes = pyplot().subplots(1, 3, figsize=(WIDTH, 4.3))
    off = found["change"] - found["predicted"]
    bound = max(np.abs(found["change"]).max(), 1e-9)
    levels = np.linspace(-bound, bound, 21)
    for axis, title, colours, values in (
        (axes[0], "Rollouts", "RdBu", found["change"]),
        (axes[1], "Quadratic prediction", "RdBu", found["predicted"]),
        (axes[2], "Rollouts less prediction", "PuOr", off),
    ):
        drawn = axis.contourf(a, b, values, levels, cmap=colours, extend="both")
        # Broken below zero: in grey the two ends of the colours look alike.
        axis.contour(a, b, values, levels[1::3], colors="black", linewidths=0.5, negative_linestyles="dashed")
        axis.contour(a, b, values, [0.0], colors="black", linewidths=1.4)
        axis.plot(0, 0, "k+", markersize=10)
        axis.grid(False)
        axis.set_title(title)
        axis.set_xlabel("step, bottom eigenvector")
        bar = figure.colorbar(drawn, ax=axis, shrink=0.62, format="%.3g", ticks=np.linspace(-bound, bound, 5))
        bar.ax.tick_params(labelsize=9)
        axis.set_aspect("equal")
    axes[0].set_ylabel("step, top eigenvector")
    first = rows[0]
    figure.suptitle(f"Change of the expected return, iteration {first['iteration']}, {described(first)}")
    middle = np.abs(off)[np.ix_(np.abs(b) <= 0.5 * b.max(), np.abs(a) <= 0.5 * a.max())]
    set_caption(
        figure,
        f"{first['rollouts']} episodes at each of {len(a)} x {len(b)} points, the same random numbers at all, standard "
        f"errors up to {found['change_error'].max():.2g}; prediction from {first['episodes']} other episodes. Largest "
        f"difference: {middle.max():.2g} in the inner half, {np.abs(off).max():.2g} in all. Thick line: zero; broken "
        "lines: below it.",
    )
    save(figure, path)


def draw_variance(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the variances of the estimators against the horizon."""
    figure, axes = pyplot().subplots(1, 2, figsize=(WIDTH, 5.4))
    for ((name,), of_estimator), (colour, line, mark) in zip(by(rows, "estimator").items(), ESTIMATORS, strict=True):
        own = list(by(of_estimator, "mdp").values())
        horizon = column(own[0], "horizon")
        for axis, quantity in zip(axes, ("variance", "factor"), strict=True):
            values = np.array([column(of_mdp, quantity) for of_mdp in own])
            axis.plot(horizon, values.T, color=colour, linestyle=line, alpha=0.3, linewidth=0.9)
            axis.plot(horizon, np.median(values, 0), color=colour, linestyle=line, marker=mark, linewidth=2, label=name)
    for axis, label, title in zip(
        axes,
        ("variance per episode (logarithmic)", "factor (logarithmic)"),
        ("Variance of the estimated Hessian", "The same over that of causal, state baseline"),
        strict=True,
    ):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(horizon, [f"{h:.0f}" for h in horizon])
        axis.minorticks_off()
        axis.set_xlabel("horizon (steps, logarithmic)")
        axis.set_ylabel(label)
        axis.set_title(title)
    axes[0].legend(loc="upper left")
    count = len(by(rows, "mdp"))
    figure.suptitle("Variance of policy-Hessian estimators against the horizon, tabular problems")
    set_caption(
        figure,
        f"{count} random problems of 3 states and 2 actions, no discount, {int(rows[0]['samples']):,} episodes each; "
        "thin: single problems, thick: medians. Rewards have standard deviation 1 and are centred so that J = 0; an "
        "offset is added to each reward. The state baseline is the exact value function.",
    )
    save(figure, path)
