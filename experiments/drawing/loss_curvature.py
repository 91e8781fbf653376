"""The figures of `loss_curvature.py`."""

from __future__ import annotations

import pathlib

import numpy as np

from drawing.style import BLUE, GREEN, GREY, ORANGE, RED, WIDTH, dash, pyplot, save, set_caption
from kit.loss_results import CLASSES, DENSITY_WIDTH, MEASURED, Curve, Exact, Results
from kit.recording import column

# Colour and mark; seeds differ in their lines.
OPTIMIZERS = {"SGD": (BLUE, "o"), "Adam": (ORANGE, "s"), "natural gradient": (GREEN, "^")}


def draw_curvature(results: Results, path: pathlib.Path) -> None:
    """Draws eigenvalues, trace, overlap and loss along training."""
    figure, axes = pyplot().subplots(2, 3, figsize=(WIDTH, 8.0))
    (largest, smallest, trace), (overlap, loss, against) = axes
    for axis, name, title in (
        (largest, "largest", "Largest eigenvalue"),
        (smallest, "smallest", "Smallest eigenvalue"),
        (trace, "trace", "Trace"),
        (overlap, "overlap", f"Gradient in the top {CLASSES} eigenvectors"),
        (loss, "train_loss", "Training loss (nats)"),
    ):
        for optimizer in results.optimizers:
            for number, curve in enumerate(results.curves(optimizer)):
                _draw_curve(axis, curve, name, optimizer, number, results)
        axis.set_xscale("log")
        axis.set_xlabel("iteration, from 1 on")
        axis.set_title(title)
    _draw_at_equal_loss(against, results)
    smallest.axhline(0.0, color=GREY, linewidth=0.8)
    chance = CLASSES / results.parameters
    overlap.axhline(chance, color=GREY, linestyle=":", label=f"a random vector: {chance:.2%}")
    overlap.set_ylim(-0.03, 1.03)
    overlap.set_ylabel("share of its squared norm")
    loss.set_yscale("log")
    for axis in (largest, trace):
        axis.set_ylim(bottom=0.0)
    shown = [line for line in overlap.get_lines() if line.get_label().startswith("a random")]
    overlap.legend(handles=shown, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.0, 0.03))
    loss.legend(fontsize=8.5, loc="lower left")
    figure.suptitle(f"Hessian of the training loss, {results.network} (tanh), {results.title}")
    seeds = "one seed" if results.seeds == 1 else f"{results.seeds} seeds (solid, dashed, ...)"
    set_caption(
        figure,
        f"{results.train_images:,} training images, batches of {results.batch_size}, {seeds}. Marks: means over "
        f"{results.subsamples} disjoint subsamples of {results.subsample:,} images; bars: standard deviations over "
        "them. Diamonds: all the images. A subsample's extremes are on average at least as far out as those of all "
        "the images.",
    )
    save(figure, path)


def _draw_at_equal_loss(axis, results: Results) -> None:
    for optimizer in results.optimizers:
        colour, mark = OPTIMIZERS[optimizer]
        for number, curve in enumerate(results.curves(optimizer)):
            x, y, error = curve.mean("train_loss"), curve.mean("largest"), curve.spread("largest")
            axis.errorbar(x, y, error, color=colour, linestyle=dash(number), marker=mark, markersize=4, linewidth=1.3)
    axis.set_xscale("log")
    axis.invert_xaxis()
    axis.set_xlabel("training loss (nats), falling")
    axis.set_title("Largest eigenvalue at equal loss")


def _draw_curve(axis, curve: Curve, name: str, optimizer: str, number: int, results: Results) -> None:
    # Error bars at the same iteration would hide one another.
    dodge = 1.0 + 0.05 * (results.optimizers.index(optimizer) - 1 + 0.4 * number)
    colour, mark = OPTIMIZERS[optimizer]
    rate, damping = curve.settings
    label = f"{optimizer}, {rate}" + (f", damping {damping}" if damping else "")
    axis.errorbar(
        (1 + curve.iteration) * dodge,
        curve.mean(name),
        curve.spread(name) if name in MEASURED else None,
        color=colour,
        linestyle=dash(number),
        marker=mark,
        markersize=4,
        linewidth=1.3,
        capsize=2,
        label=None if number else label,
    )
    if name in MEASURED:
        x, y = curve.whole(name)
        axis.plot((1 + x) * dodge, y, "D", color="black", fillstyle="none", markersize=6, linestyle="")


def draw_density(results: Results | None, exact: Exact | None, path: pathlib.Path) -> None:
    """Draws the densities at start and end, and the exact check beside its estimate where it is recorded."""
    drawn = [] if results is None else [name for name in results.optimizers if (name, 0) in results.densities]
    rows = bool(drawn) + (exact is not None)
    if not rows:
        return
    figure = pyplot().figure(figsize=(WIDTH, 1.2 + 3.6 * rows))
    # Six columns hold three panels as well as two.
    places = figure.add_gridspec(rows, 6)
    for index, name in enumerate(drawn):
        axis = figure.add_subplot(places[0, 2 * index : 2 * index + 2])
        _draw_ends(axis, results, name)
        axis.set_ylabel("" if index else "density (logarithmic)")
    if exact is not None:
        _draw_exact_density(figure.add_subplot(places[-1, :3]), exact)
        _draw_exact_counts(figure.add_subplot(places[-1, 3:]), exact)
    of = (results if drawn else exact).title.split(",")[0]
    network = f", {results.network}" if drawn else ""
    figure.suptitle(f"Density of the Hessian's eigenvalues, {of}{network}")
    set_caption(figure, _density_caption(results if drawn else None, exact))
    save(figure, path)


def _draw_ends(axis, results: Results, name: str) -> None:
    floor = 0.1 / (results.parameters * DENSITY_WIDTH)
    for iteration, colour, line in ((0, GREY, "--"), (results.last, OPTIMIZERS[name][0], "-")):
        rows = results.densities[name, iteration]
        grid, density, error = (column(rows, which) for which in ("eigenvalue", "density", "standard_error"))
        label = f"iteration {iteration:,}" if iteration else "start"
        _draw_density(axis, (grid, density, error), colour, line, label, floor)
    _finish_density(axis, floor)
    axis.set_title(name)


def _draw_density(axis, found: tuple, colour: str, line: str, label: str, floor: float) -> None:
    grid, density, error = found
    axis.plot(grid, np.maximum(density, floor / 10), color=colour, linestyle=line, linewidth=1.4, label=label)
    low, high = (np.maximum(density + sign * error, floor / 10) for sign in (-1, 1))
    axis.fill_between(grid, low, high, color=colour, alpha=0.25, linewidth=0)


def _finish_density(axis, floor: float) -> None:
    axis.set_yscale("log")
    axis.set_ylim(bottom=floor)
    axis.set_xlabel("eigenvalue")
    axis.legend(fontsize=8.5, loc="upper right")


def _draw_exact_density(axis, exact: Exact) -> None:
    floor = 0.1 / (exact.parameters * exact.number("width"))
    axis.plot(exact.grid, np.maximum(exact.density, floor / 10), color="black", label="all eigenvalues, exactly")
    found = (exact.grid, exact.estimate, exact.error)
    _draw_density(axis, found, RED, "--", "estimate (Lanczos quadrature)", floor)
    _finish_density(axis, floor)
    axis.set_ylabel("density (logarithmic)")
    axis.set_title(f"Exact check: {exact.network}, {exact.parameters:,} weights")


def _draw_exact_counts(axis, exact: Exact) -> None:
    """How many eigenvalues are beyond a value, on either side."""
    for sign, colour, line, mark, label in ((1, BLUE, "-", "o", "positive"), (-1, RED, "--", "s", "negative")):
        chosen = sign * exact.eigenvalue > 0
        beyond = exact.parameters - exact.rank if sign > 0 else 1 + exact.rank
        all_of = f"{label}: all, exactly"
        axis.plot(sign * exact.eigenvalue[chosen], beyond[chosen], color=colour, linestyle=line, label=all_of)
        rank, value, _ = exact.columns("eigsh")
        own = sign * value > 0
        count = exact.parameters - rank if sign > 0 else 1 + rank
        axis.plot(sign * value[own], count[own], mark, color=colour, fillstyle="none", label=f"{label}: Lanczos")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(1e-6 * np.abs(exact.eigenvalue).max(), 2.0 * np.abs(exact.eigenvalue).max())
    axis.set_xlabel("magnitude of the eigenvalue (logarithmic)")
    axis.set_ylabel("how many are as large")
    axis.legend(fontsize=8.5, loc="lower left")
    axis.set_title("Exact check: counted from both ends")


def _density_caption(results: Results | None, exact: Exact | None) -> str:
    parts = []
    if results is not None:
        parts.append(
            f"Top: all {results.train_images:,} training images, seed 0, Lanczos quadrature, kernel of width "
            f"{DENSITY_WIDTH:g}; one eigenvalue alone makes a peak of {0.4 / (results.parameters * DENSITY_WIDTH):.1g}."
        )
    if exact is not None:
        parts.append(
            f"{'Bottom: ' if results is not None else ''}{exact.images} images after {exact.iterations} steps; kernel "
            f"of width {exact.number('width'):.2g}. The estimate puts {exact.share_misplaced:.2%} of the eigenvalues "
            "elsewhere. Right: nothing below a millionth of the largest, where float32 rounds."
        )
    return " ".join(parts)
