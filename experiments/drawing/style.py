"""What the figures share: one width and size of letters, colours, lines that differ in grey too, the caption."""

from __future__ import annotations

import os
import pathlib
import textwrap

# Okabe and Ito's colours, which the colour-blind can tell apart, a brown, and an olive in place of their pale yellow.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, OLIVE, GREY, BROWN, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#7A7A00",
    "#888888",
    "#8B5A2B",
    "#000000",
)
# Inches. All figures have the same width, so that letters have the same size in all, and can be read at half of it.
WIDTH = 11.0
DPI = 150
SETTINGS = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 9.5,
    "legend.handlelength": 2.6,
    "figure.titlesize": 14,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def pyplot():
    """`matplotlib.pyplot` without a display and with the letters of all figures; imported only to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(SETTINGS)
    return plt


def dash(number: int) -> str:
    """A style of line for the first, second, ... seed."""
    return ("-", "--", ":", "-.")[number % 4]


def set_caption(figure, text: str) -> None:
    """Sets the text under the axes, three lines or less, and makes room for it: more numbers belong into tables."""
    lines = textwrap.wrap(text, int(figure.get_figwidth() * 13.2))
    height = (0.25 + 0.19 * len(lines)) / figure.get_figheight()
    figure.tight_layout(rect=(0, height, 1, 0.99), h_pad=1.5)
    figure.text(0.02, height - 0.01, "\n".join(lines), fontsize=10, va="top", ha="left", linespacing=1.25)


def save(figure, path: str | os.PathLike) -> None:
    """Writes the figure as a whole or not at all, and closes it."""
    path = pathlib.Path(path)
    # Of the same suffix, which tells matplotlib the format.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi=DPI)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    pyplot().close(figure)
