"""The figures of `mnist_natgrad.py`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from drawing.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, WIDTH, pyplot, save, set_caption
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

AUTHOR_STOPPED = 63
# Colour and line.
STYLES = {
    "March script": (ORANGE, "-"),
    "June script": (RED, "-"),
    "blog text": (PURPLE, "--"),
    "rate 0.0004": (BLUE, "-."),
    "rate 0.01": (GREEN, "--"),
    "damping 0.001": (RED, "--"),
    "damping 0.01": (PURPLE, ":"),
    "damping 0.1": (SKY, "-."),
    "gradient descent": (GREY, "-"),
    "corrected": (GREEN, "-"),
}


def draw_convergence(results: Results, path: pathlib.Path, recorded: Sequence[pathlib.Path] = ()) -> None:
    """Draws the four panels: the blog's figure, and metric, learning rate and damping varied one at a time."""
    figure, axes = pyplot().subplots(2, 2, figsize=(WIDTH, 9.6), sharex=True)
    (blog, metric), (rate, damping) = axes

    _draw_blog(blog, results, recorded)
    _draw_test(metric, results, "rate 0.0004", "true logits" + _fate(results, "rate 0.0004"))
    _draw_exploding(metric, results, "June script", "probabilities as logits", test=True)
    _draw_exploding(metric, results, "blog text", "rate 0.001, batch 32", test=True)
    metric.set_title("The metric alone (rate 0.0004)")

    _draw_exploding(rate, results, "March script", "rate 0.1", test=True)
    for name in ("rate 0.01", "rate 0.0004"):
        _draw_test(rate, results, name, name + _fate(results, name))
    _draw_test(rate, results, "gradient descent", "gradient descent, rate 0.1")
    rate.set_title("The learning rate alone (true logits)")

    _draw_exploding(damping, results, "March script", "damping 0", test=True)
    for name in ("damping 0.001", "damping 0.01", "damping 0.1"):
        _draw_test(damping, results, name, name + _fate(results, name))
    for size, style in zip((results.size, *results.other_sizes), (STYLES["corrected"], (BLACK, ":")), strict=False):
        if curves := results.curves("corrected", size):
            label = f"corrected, {size}x{size}: {_settings(curves[0])}"
            _draw_test(damping, results, "corrected", label, size, style)
    damping.axhline(TARGET_TEST_LOSS, color=BLACK, linewidth=0.8, linestyle=":")
    damping.set_title("The damping alone (true logits, rate 0.1)")

    for axis in axes.flat:
        axis.set_xscale("log")
        # The upper half is for the legends; what reaches it is on its way out.
        axis.set_ylim(0, 4.6)
        axis.set_ylabel("loss of the batch (nats)" if axis is blog else "loss on the test set (nats)")
        axis.set_xlabel("iteration, from 1 on (logarithmic)")
        axis.tick_params(labelbottom=True)
        legend = axis.legend(fontsize=9, loc="upper left", framealpha=1.0)
        for handle in legend.legend_handles:
            handle.set(alpha=1.0, linewidth=1.8)
    figure.suptitle(f"Softmax regression by natural gradient, {results.title}")
    set_caption(figure, _convergence_caption(results))
    save(figure, path)


def _draw_blog(axis, results: Results, recorded: Sequence[pathlib.Path]) -> None:
    _draw_exploding(axis, results, "March script", "March script", test=False)
    for name, colour, line, label in (
        ("gradient descent", BLUE, "--", "gradient descent, rate 0.1, batch 16"),
        ("corrected", *STYLES["corrected"], "corrected"),
    ):
        if curves := results.curves(name):
            label = label if name != "corrected" else f"{label}: {_settings(curves[0])}"
            x, loss = curves[0].iteration + 1, curves[0].loss
            axis.plot(x, loss, color=colour, alpha=0.18, linewidth=0.6)
            axis.plot(x, running_mean(loss), color=colour, linestyle=line, linewidth=1.7, label=label)
    for path, style in zip(recorded, ("-", "--", ":"), strict=False):
        losses = np.loadtxt(path, ndmin=1)
        label = f"recorded: {path.name}"
        axis.plot(1 + np.arange(len(losses)), running_mean(losses), color="black", linestyle=style, label=label)
    axis.axvline(AUTHOR_STOPPED, color="black", linewidth=1.0, linestyle="--")
    axis.annotate(
        f"the author\nstopped at {AUTHOR_STOPPED}",
        (AUTHOR_STOPPED, 2.45),
        (-5, 0),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=9,
    )
    axis.set_title("The blog's figure, redrawn")


def running_mean(values: np.ndarray, width: int = 10) -> np.ndarray:
    """The mean of each value and of up to `width - 1` before it: fewer at first, where the curve is steep."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = end - np.minimum(width, 1 + end // 4)
    return (sums[end] - sums[start]) / (end - start)


def _draw_exploding(axis, results: Results, name: str, label: str, *, test: bool) -> None:
    curves, window, (colour, line) = results.curves(name), results.window(name), STYLES[name]
    for index, curve in enumerate(curves):
        values = curve.test_loss if test else running_mean(curve.loss[: -1 if curve.exploded_at else None])
        seen = np.flatnonzero(~np.isnan(values))
        x, y = 1 + curve.iteration[seen], values[seen]
        text = None if index else label + _fate(results, name)
        # Far above the axes the lines would only make the file larger and the rasteriser overflow.
        y = np.minimum(y, 1e3)
        axis.plot(x, y, color=colour, linestyle=line, linewidth=0.9, alpha=0.45, label=text)
    if window:
        axis.axvspan(1 + window[0], 1 + window[1], color=colour, alpha=0.13, linewidth=0)


def _draw_test(
    axis, results: Results, name: str, label: str, size: int | None = None, style: tuple | None = None
) -> None:
    curves, (colour, line) = results.curves(name, size), style or STYLES[name]
    if not curves:
        return
    shortest = min(len(curve.iteration) for curve in curves)
    values = np.stack([curve.test_loss[:shortest] for curve in curves])
    seen = np.flatnonzero(~np.isnan(values).any(0))
    x, values = 1 + curves[0].iteration[seen], np.minimum(values[:, seen], 1e3)
    axis.plot(x, np.median(values, 0), color=colour, linestyle=line, linewidth=1.7, label=label)
    if len(curves) > 1:
        axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def _settings(curve: Curve) -> str:
    row = curve.first
    return f"rate {row['learning_rate']}, damping {row['damping']}, batch {row['batch_size']}"


def _fate(results: Results, name: str) -> str:
    window, curves = results.window(name), results.curves(name)
    if not curves:
        return ""
    if window is None:
        return f": all {int(curves[0].iteration[-1]):,} iterations finite"
    at = f"{window[0]}" if window[0] == window[1] else f"{window[0]} to {window[1]}"
    return f": explodes at {at} ({window[2]} of {window[3]})"


def _convergence_caption(results: Results) -> str:
    parts = [
        f"Exploded: a batch's loss is above {EXPLODED_LOSS:g} (in brackets: seeds); shaded: where. Batch 16, no "
        "damping, if not said otherwise. Thin: single seeds, batch losses; bands: least to greatest over seeds."
    ]
    gradient, corrected = results.curves("gradient descent"), results.curves("corrected")
    if gradient and corrected:
        fast = median_or_none([curve.reached_at for curve in corrected])
        slow = median_or_none([curve.reached_at for curve in gradient])
        parts.append(
            f"Dotted: test loss {TARGET_TEST_LOSS:g}, reached after {dash(fast)} iterations (corrected) and "
            f"{dash(slow)} (gradient descent), medians."
        )
    same = [
        name
        for name in AUTHOR
        if results.curves(name, dense=True)
        and results.curves(name, dense=True)[0].exploded_at == results.curves(name)[0].exploded_at is not None
    ]
    if len(same) == len(AUTHOR):
        parts.append("By dense Hessian + SVD the same seeds explode at the same iterations.")
    return " ".join(parts)


def draw_step_cost(results: Results, path: pathlib.Path) -> None:
    """Draws the time of one direction by solver and image size, with how exact it is."""
    rows = [{**row, "value": float(row["milliseconds"])} for row in results.costs]
    sizes = sorted({int(row["image_size"]) for row in rows})
    figure, axis = pyplot().subplots(figsize=(WIDTH, 6.2))
    ticks = {}
    for group, size in enumerate(sizes):
        of_size = [row for row in rows if int(row["image_size"]) == size]
        of_size.sort(key=lambda row: COST_SOLVERS.index(row["solver"]))
        for index, row in enumerate(of_size):
            seen = any(int(other["image_size"]) in sizes[:group] and other["solver"] == row["solver"] for other in rows)
            _draw_bar(axis, 4 * group + index, row, None if seen else SOLVER_NAMES[row["solver"]])
        if of_size:
            middle = 4 * group + (len(of_size) - 1) / 2
            ticks[middle] = f"{size}x{size}\n{int(of_size[0]['parameters']):,} parameters"
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_yscale("log")
    values = [row["value"] for row in rows]
    axis.set_ylim(min(values) / 3, max(values) * 60)
    axis.set_ylabel("milliseconds per direction (logarithmic)")
    axis.grid(False, axis="x")
    axis.legend(loc="upper center", ncols=3)
    name = results.title.split(",")[0]
    axis.set_title(f"One undamped natural gradient of softmax regression, {name}, batch {COST_BATCH_SIZE}")
    caption = (
        "Median time of a compiled forward pass, gradient and solve, float32, on a CPU. 'off by': relative difference "
        "to the least-squares solution in float64. The rank is the number of eigenvalues used, at most 9 per example."
    )
    if 28 in sizes and not any(int(row["image_size"]) == 28 and row["solver"] == "svd" for row in rows):
        caption += " The dense SVD at 28x28 was not run here (--dense-28 does)."
    set_caption(figure, caption)
    save(figure, path)


def _draw_bar(axis, position: int, row: dict, label: str | None) -> None:
    colour, hatch = {"svd": (RED, ""), "gram": (GREEN, "//"), "cg": (BLUE, "..")}[row["solver"]]
    value = row["value"]
    axis.bar(position, value, color=colour, width=0.85, label=label, hatch=hatch, edgecolor="white", linewidth=0)
    lines = [f"{value:,.3g} ms" if value < 1e3 else f"{value / 1e3:,.3g} s"]
    lines.append(f"off by {float(row['relative_difference']):.0e}")
    lines += [f"rank {row['rank']}"] if row["rank"] else []
    above = {"textcoords": "offset points", "ha": "center", "fontsize": 10}
    axis.annotate("\n".join(lines), (position, value), (0, 3), **above)
