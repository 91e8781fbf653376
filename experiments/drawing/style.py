"""What the figures share: colours, the caption under the axes."""

from __future__ import annotations

import os
import pathlib
import textwrap

# Okabe and Ito's colours, which the colour-blind can tell apart, and a brown.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY, BROWN, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#888888",
    "#8B5A2B",
    "#000000",
)


def pyplot():
    """`matplotlib.pyplot` without a display; imported only where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def set_caption(figure, text: str) -> None:
    """Sets the text under the axes and makes room for it."""
    width = int(figure.get_figwidth() * 13.2)
    lines = textwrap.wrap(text, width)
    height = (0.25 + 0.19 * len(lines)) / figure.get_figheight()
    figure.tight_layout(rect=(0, height, 1, 0.99), h_pad=1.5)
    figure.text(0.02, height - 0.01, "\n".join(lines), fontsize=10, va="top", ha="left", linespacing=1.25)


def save(figure, path: str | os.PathLike) -> None:
    """Writes the figure as a whole or not at all, and closes it."""
    path = pathlib.Path(path)
    # Of the same suffix, which tells matplotlib the format.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi=130)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    pyplot().close(figure)
