"""Draws `step.svg`, the picture of the concepts page: what a natural-gradient step is made of.

Run it after a change: `python docs/pictures/draw_step.py`. A test compares the file with what this draws.
"""

import html
import pathlib

WIDTH, HEIGHT = 840, 372
# x, y, width, height, title, lines, fill
BOXES = {
    "model": (20, 20, 180, 84, "network", ["weights → outputs z", "J = dz / dweights"], "#dbe9f6"),
    "loss": (20, 134, 180, 84, "loss", ["a Keras loss", "is -log p(y | z)"], "#dbe9f6"),
    "distribution": (230, 134, 180, 84, "distribution", ["p(y | z)", "its Fisher L = S Sᵀ"], "#e5f2e0"),
    "factor": (230, 20, 180, 84, "factor", ["A = √w Sᵀ J", "F = AᵀA, gradient g"], "#e5f2e0"),
    "solve": (440, 20, 180, 84, "solve", ["(F + damping I) d = g", "Gram, CG, or K-FAC"], "#fdf0d5"),
    "step": (650, 20, 170, 84, "step", ["weights - scale · d", "KL limit, line search"], "#f8dfdc"),
    "damping": (650, 134, 170, 84, "next damping", ["actual decrease", "over predicted"], "#f8dfdc"),
    "spectrum": (440, 134, 180, 84, "spectrum", ["eigenvalues, trace,", "density of any matrix"], "#fdf0d5"),
}
ARROWS = [
    (200, 62, 226, 62),
    (200, 176, 226, 176),
    (320, 134, 320, 108),
    (410, 62, 436, 62),
    (620, 62, 646, 62),
    (735, 104, 735, 130),
    (410, 90, 446, 130),
]
ROOMS = [
    (20, "layers, linearize", "#dbe9f6"),
    (230, "distributions, operators", "#e5f2e0"),
    (440, "solvers, preconditioners,\nspectrum", "#fdf0d5"),
    (650, "steps, training", "#f8dfdc"),
]


def text(x, y, words, size=14, weight="normal"):
    style = f'font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {style}>{html.escape(words)}</text>'


def box(x, y, width, height, title, lines, fill):
    yield f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="#444"/>'
    yield text(x + 12, y + 25, title, 16, "bold")
    yield from (text(x + 12, y + 49 + 20 * number, line) for number, line in enumerate(lines))


def arrow(x1, y1, x2, y2):
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#444" stroke-width="2" marker-end="url(#tip)"/>'


def back():
    """From the next damping to the next solve, below the boxes."""
    path = "M 735 218 V 244 H 426 V 80 H 436"
    return f'<path d="{path}" fill="none" stroke="#444" stroke-dasharray="5 4" marker-end="url(#tip)"/>'


def picture():
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    yield '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
    yield '<path d="M0,0 L6,3 L0,6 z" fill="#444"/></marker></defs>'
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    for values in BOXES.values():
        yield from box(*values)
    yield from (arrow(*ends) for ends in ARROWS)
    yield back()
    yield text(440, 262, "the next step uses the new damping", 12)
    yield text(20, 300, "Rooms of the package that own it:", 14, "bold")
    for x, words, fill in ROOMS:
        yield f'<rect x="{x}" y="316" width="14" height="14" fill="{fill}" stroke="#444"/>'
        yield from (text(x, 350 + 16 * number, line, 12) for number, line in enumerate(words.split("\n")))
    yield "</svg>"


if __name__ == "__main__":
    pathlib.Path(__file__).with_name("step.svg").write_text("\n".join(picture()) + "\n")
