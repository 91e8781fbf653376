"""The figures of `mnist_natgrad.py`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from kit.mnist_results import (
    AUTHOR,
    COST_BATCH_SIZE,
    COST_SOLVERS,
    EXPLODED_LOSS,
    SOLVER_NAMES,
    TARGET_TEST_LOSS,
    Curve,
    Results,
    dash,
    median_or_none,
)

from drawing.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, pyplot, save, set_caption

AUTHOR_STOPPED = 63


def draw_convergence(results: Results, path: pathlib.Path, recorded: Sequence[pathlib.Path] = ()) -> None:
    """Draws the four panels: the blog's figure, and metric, learning rate and damping varied one at a time."""
    figure, axes = pyplot().subplots(2, 2, figsize=(13, 10.6), sharex=True)
    (blog, metric), (rate, damping) = axes

    _draw_blog(blog, results, recorded)
    small = "true logits" + _seeds(results.curves("rate 0.0004"))
    _draw_test(metric, results, "rate 0.0004", BLUE, small)
    _draw_exploding(metric, results, "June script", RED, "probabilities as logits", test=True)
    _draw_exploding(metric, results, "blog text", PURPLE, "the same at rate 0.001, batch 32 (blog text)", test=True)
    metric.set_title("The metric alone (rate 0.0004, no damping, batch 16)")

    _draw_exploding(rate, results, "March script", ORANGE, "rate 0.1", test=True)
    _draw_test(rate, results, "rate 0.01", GREEN, "rate 0.01" + _fate(results, "rate 0.01"))
    _draw_test(rate, results, "rate 0.0004", BLUE, "rate 0.0004" + _fate(results, "rate 0.0004"))
    _draw_test(rate, results, "gradient descent", GREY, "gradient descent, rate 0.1")
    rate.set_title("The learning rate alone (true logits, no damping, batch 16)")

    _draw_exploding(damping, results, "March script", ORANGE, "damping 0", test=True)
    for name, colour in (("damping 0.001", RED), ("damping 0.01", PURPLE), ("damping 0.1", SKY)):
        _draw_test(damping, results, name, colour, name + _fate(results, name))
    for size, colour in zip((results.size, *results.other_sizes), (GREEN, "black"), strict=False):
        curves = results.curves("corrected", size)
        if curves:
            label = f"corrected, {size}x{size}: {_settings(curves[0])}"
            _draw_test(damping, results, "corrected", colour, label, size)
    damping.axhline(TARGET_TEST_LOSS, color=GREY, linewidth=0.8, linestyle=":")
    damping.set_title("The damping alone (true logits, rate 0.1, batch 16)")

    for axis in axes.flat:
        axis.set_xscale("log")
        # The upper half is for the legends; what reaches it is on its way out.
        axis.set_ylim(0, 4.6)
        axis.set_ylabel("loss of the batch (nats)" if axis is blog else "loss on the test set (nats)")
        axis.set_xlabel("iteration, from 1 on (logarithmic)")
        axis.tick_params(labelbottom=True)
        axis.grid(alpha=0.25)
        legend = axis.legend(fontsize=8.5, loc="upper left", framealpha=1.0)
        for handle in legend.legend_handles:
            if hasattr(handle, "get_linewidth") and hasattr(handle, "set_marker"):
                handle.set(alpha=1.0, linewidth=1.8)
    figure.suptitle(f"Softmax regression by natural gradient, {results.title}", fontsize=15)
    set_caption(figure, _convergence_caption(results))
    save(figure, path)


def _draw_blog(axis, results: Results, recorded: Sequence[pathlib.Path]) -> None:
    _draw_exploding(axis, results, "March script", ORANGE, "natural gradient as in the March script", test=False)
    for name, colour, label in (
        ("gradient descent", BLUE, "gradient descent, rate 0.1, batch 16"),
        ("corrected", GREEN, "natural gradient, corrected"),
    ):
        curves = results.curves(name)
        if curves:
            label = label if name != "corrected" else f"{label}: {_settings(curves[0])}"
            axis.plot(curves[0].iteration + 1, curves[0].loss, color=colour, alpha=0.18, linewidth=0.6)
            axis.plot(curves[0].iteration + 1, running_mean(curves[0].loss), color=colour, label=label)
    for path, style in zip(recorded, ("-", "--", ":"), strict=False):
        losses = np.loadtxt(path, ndmin=1)
        label = f"recorded: {path.name}"
        axis.plot(1 + np.arange(len(losses)), running_mean(losses), color="black", linestyle=style, label=label)
    axis.axvline(AUTHOR_STOPPED, color="black", linewidth=1.0, linestyle="--")
    axis.annotate(
        f"the author stopped\nat {AUTHOR_STOPPED}",
        (AUTHOR_STOPPED, 2.45),
        (-5, 0),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
    )
    axis.set_title("The blog's figure, redrawn (means over up to 10 iterations)")


def running_mean(values: np.ndarray, width: int = 10) -> np.ndarray:
    """The mean of each value and of up to `width - 1` before it: fewer at first, where the curve is steep."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = end - np.minimum(width, 1 + end // 4)
    return (sums[end] - sums[start]) / (end - start)


def _draw_exploding(axis, results: Results, name: str, colour: str, label: str, *, test: bool) -> None:
    curves, window = results.curves(name), results.window(name)
    for index, curve in enumerate(curves):
        values = curve.test_loss if test else running_mean(curve.loss[: -1 if curve.exploded_at else None])
        seen = np.flatnonzero(~np.isnan(values))
        x, y = 1 + curve.iteration[seen], values[seen]
        text = None if index else f"{label} ({len(curves)} seeds)"
        # Far above the axes the lines would only make the file larger and the rasteriser overflow.
        axis.plot(x, np.minimum(y, 1e3), color=colour, linewidth=0.9, alpha=0.45, label=text)
    if window:
        text = f"explodes at {window[0]} to {window[1]} ({window[2]} of {window[3]} seeds)"
        axis.axvspan(1 + window[0], 1 + window[1], color=colour, alpha=0.13, linewidth=0, label=text)


def _draw_test(axis, results: Results, name: str, colour: str, label: str, size: int | None = None) -> None:
    curves = results.curves(name, size)
    if not curves:
        return
    shortest = min(len(curve.iteration) for curve in curves)
    values = np.stack([curve.test_loss[:shortest] for curve in curves])
    seen = np.flatnonzero(~np.isnan(values).any(0))
    x, values = 1 + curves[0].iteration[seen], np.minimum(values[:, seen], 1e3)
    axis.plot(x, np.median(values, 0), color=colour, label=label)
    if len(curves) > 1:
        axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def _settings(curve: Curve) -> str:
    row = curve.first
    return f"rate {row['learning_rate']}, damping {row['damping']}, batch {row['batch_size']}"


def _seeds(curves: Sequence[Curve]) -> str:
    return f" ({len(curves)} seed{'s' if len(curves) != 1 else ''})"


def _fate(results: Results, name: str) -> str:
    window, curves = results.window(name), results.curves(name)
    if not curves:
        return ""
    if window is None:
        return f": all {int(curves[0].iteration[-1]):,} iterations finite"
    at = f"{window[0]}" if window[0] == window[1] else f"{window[0]} to {window[1]}"
    return f": explodes at {at}"


def _convergence_caption(results: Results) -> str:
    window, gradient, corrected = (
        results.window("March script"),
        results.curves("gradient descent"),
        results.curves("corrected"),
    )
    parts = []
    if window:
        stopped = window[0] <= AUTHOR_STOPPED <= window[1]
        parts.append(
            "Top left: the undamped natural gradient falls faster than gradient descent, and then explodes (batch "
            f"loss above {EXPLODED_LOSS:g}) on {window[2]} of {window[3]} seeds between iterations {window[0]} and "
            f"{window[1]} (shaded); the author's record ends at {AUTHOR_STOPPED}, "
            f"{'inside' if stopped else 'outside'} that window."
        )
    same = [
        name
        for name in AUTHOR
        if results.curves(name, dense=True)
        and results.curves(name, dense=True)[0].exploded_at == results.curves(name)[0].exploded_at is not None
    ]
    if same:
        parts.append(
            "By dense Hessian + SVD and by the Gram matrix the same seed explodes at the same iteration "
            f"({', '.join(same)})."
        )
    parts.append("The other panels change one thing at a time.")
    for where, name, what in (
        ("Top right", "June script", "probabilities taken for logits make a metric too small and steps too long"),
        ("Top right", "rate 0.0004", "true logits at the same rate"),
        ("Bottom left", "rate 0.01", "a tenth of the rate of the March script"),
        ("Bottom right", "damping 0.1", "damping at the rate of the March script"),
    ):
        found, curves = results.window(name), results.curves(name)
        if curves:
            parts.append(f"{where}: {what} ({found[2] if found else 0} of {len(curves)} seeds explode).")
    if gradient and corrected:
        fast = median_or_none([curve.reached_at for curve in corrected])
        slow = median_or_none([curve.reached_at for curve in gradient])
        parts.append(
            f"Test loss {TARGET_TEST_LOSS:g} (dotted) is reached after {dash(fast)} iterations by the corrected "
            f"natural gradient and after {dash(slow)} by gradient descent (medians of {len(corrected)} and "
            f"{len(gradient)} seeds). Bands: least to greatest over seeds."
        )
    return " ".join(parts)


def draw_step_cost(results: Results, path: pathlib.Path) -> None:
    """Draws the time of one direction by solver and image size, with how exact it is."""
    rows = [{**row, "value": float(row["milliseconds"])} for row in results.costs]
    sizes = sorted({int(row["image_size"]) for row in rows})
    colours = {"svd": RED, "gram": GREEN, "cg": BLUE}
    figure, axis = pyplot().subplots(figsize=(9.5, 6.2))
    ticks = {}
    for group, size in enumerate(sizes):
        of_size = [row for row in rows if int(row["image_size"]) == size]
        of_size.sort(key=lambda row: COST_SOLVERS.index(row["solver"]))
        for index, row in enumerate(of_size):
            position = 4 * group + index
            seen = any(int(other["image_size"]) in sizes[:group] and other["solver"] == row["solver"] for other in rows)
            label = None if seen else SOLVER_NAMES[row["solver"]]
            axis.bar(position, row["value"], color=colours[row["solver"]], width=0.85, label=label)
            difference = f"off by {float(row['relative_difference']):.0e}"
            text = "\n".join(
                [f"{row['value']:,.3g} ms" if row["value"] < 1e3 else f"{row['value'] / 1e3:,.3g} s", difference]
                + ([f"rank {row['rank']}"] if row["rank"] else [])
            )
            axis.annotate(text, (position, row["value"]), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        if of_size:
            middle = 4 * group + (len(of_size) - 1) / 2
            ticks[middle] = f"{size}x{size}\n{int(of_size[0]['parameters']):,} parameters"
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_yscale("log")
    values = [row["value"] for row in rows]
    axis.set_ylim(min(values) / 3, max(values) * 60)
    axis.set_ylabel("milliseconds per direction (logarithmic)")
    axis.set_xlabel("image size")
    axis.grid(axis="y", alpha=0.25)
    axis.legend(loc="upper center", ncols=3, fontsize=9)
    name = results.title.split(",")[0]
    axis.set_title(f"One undamped natural gradient of softmax regression, {name}, batch {COST_BATCH_SIZE}")
    caption = (
        "Median time of a compiled forward pass, gradient and solve at the initial weights of seed 0, in float32 "
        "on a CPU. 'off by': relative difference to the least-squares solution in float64; pseudo-inverse with rcond "
        "1e-06. The rank is the number of eigenvalues used, at most 9 per example."
    )
    if 28 in sizes and not any(int(row["image_size"]) == 28 and row["solver"] == "svd" for row in rows):
        caption += " The dense SVD at 28x28 was not run here (--dense-28 does; it takes many minutes)."
    set_caption(figure, caption)
    save(figure, path)
