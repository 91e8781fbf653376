"""Side-by-side timing: what is compared runs in turns, so that a busy machine slows all of it alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from tf_natgrad._progress import progress_bar


def side_by_side(
    functions: Mapping[str, Callable[[], object]], rounds: int = 15, repeats: int = 10, progress: str = ""
) -> dict[str, float]:
    """Median seconds of one call of each function.

    Args:
        functions: by name; each is called once beforehand, so that tracing does not count.
        rounds: turns; within each, every function is called `repeats` times in a row and its median taken.
        repeats: calls in a row, fewer where one call takes longer than a tenth of a second.
        progress: label of the progress bar, none if empty.

    Returns:
        The median over the rounds, by name.
    """
    counts = {}
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        function()
        counts[name] = repeats if time.perf_counter() - start < 0.1 else 1
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in progress_bar(range(rounds), desc=progress, disable=not progress, leave=False):
        for name, function in functions.items():
            times = []
            for _ in range(counts[name]):
                start = time.perf_counter()
                function()
                times.append(time.perf_counter() - start)
            samples[name].append(statistics.median(times))
    return {name: statistics.median(values) for name, values in samples.items()}


def table(header: list[str], rows: list[list[object]]) -> str:
    """A plain-text table, numbers to the right.

    Args:
        header: column names.
        rows: cells, strings or numbers.

    Returns:
        The table, a line per row.
    """
    cells = [header] + [[c if isinstance(c, str) else f"{c:,.3g}" for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
