"""Progress bars: `tqdm` on a terminal, and a line now and then where the output is kept in a file."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from numbers import Number
from typing import Any

from tqdm import tqdm

# Seconds between two lines, of whichever bars: many short ones may follow each other.
_INTERVAL = 10.0
_LONGEST = 200
_lock = threading.Lock()
_next_line = float("-inf")


def progress_bar(
    iterable: Iterable | None = None,
    *,
    total: float | None = None,
    desc: str | None = None,
    unit: str = "it",
    initial: float = 0,
    leave: bool = True,
    disable: bool = False,
    **options: Any,
) -> tqdm | ProgressLines:
    """Makes a progress bar for the standard error: a moving one on a terminal, lines of text elsewhere.

    >>> [2 * i for i in progress_bar(range(3), disable=True)]
    [0, 2, 4]

    Args:
        iterable: what to count, or `None` for calls of `update`.
        total: how many there will be; by default the length of the iterable, where it has one.
        desc: what is being done.
        unit: what is counted.
        initial: the count at first.
        leave: whether the last state stays on the terminal; elsewhere, whether it gets a line of its own.
        disable: whether nothing is to be shown.
        **options: of `tqdm`, for terminals only.

    Returns:
        A `tqdm`, or a `ProgressLines`: both are iterable, context managers, and have `update`, `set_postfix`,
        `set_description` and `close`.
    """
    given = {"total": total, "desc": desc, "unit": unit, "initial": initial, "leave": leave}
    if disable or _is_terminal(sys.stderr):
        return tqdm(iterable, disable=disable, **given, **options)
    return ProgressLines(iterable, **given)


def _is_terminal(file: Any) -> bool:
    try:
        return file.isatty()
    except (AttributeError, ValueError):
        # A stand-in without that method, no file at all, or a closed one.
        return False


class ProgressLines:
    """What `tqdm` shows, as complete lines without control characters, one every ten seconds at most.

    All bars of the process share the ten seconds. With `leave`, closing writes a last line in any case.

    Args:
        iterable: what to count, or `None`.
        total: how many there will be, or `None`.
        desc: what is being done, or `None`.
        unit: what is counted.
        initial: the count at first.
        leave: whether closing writes a line.
    """

    def __init__(
        self,
        iterable: Iterable | None = None,
        *,
        total: float | None = None,
        desc: str | None = None,
        unit: str = "it",
        initial: float = 0,
        leave: bool = True,
    ):
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)
        self.n, self.total = initial, total
        self._iterable, self._initial, self._unit, self._leave = iterable, initial, unit, leave
        self._desc, self._postfix, self._closed = desc, "", False
        self._file, self._start = sys.stderr, time.monotonic()

    def __iter__(self) -> Iterator:
        with self:
            for item in self._iterable:
                yield item
                self.update()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        """Counts.

        Args:
            n: how many more.
        """
        with _lock:
            self.n += n
            self._write_if_due()

    def set_postfix(self, values: dict[str, Any] | None = None, refresh: bool = True, **more: Any) -> None:
        """Sets what is shown behind the count.

        Args:
            values: by name.
            refresh: of no consequence, lines being written by the clock.
            **more: further values.
        """
        del refresh
        shown = {**(values or {}), **more}
        with _lock:
            self._postfix = ", ".join(
                f"{name}={tqdm.format_num(value) if isinstance(value, Number) else value}"
                for name, value in shown.items()
            )
            self._write_if_due()

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        """Sets what is shown before the count.

        Args:
            desc: what is being done.
            refresh: of no consequence, lines being written by the clock.
        """
        del refresh
        with _lock:
            self._desc = desc
            self._write_if_due()

    def close(self) -> None:
        """Writes the last line; later calls do nothing."""
        with _lock:
            if not self._closed and self._leave:
                self._write(time.monotonic())
            self._closed = True

    def _write_if_due(self) -> None:
        now = time.monotonic()
        if now >= _next_line and not self._closed:
            self._write(now)

    def _write(self, now: float) -> None:
        global _next_line
        _next_line = now + _INTERVAL
        # `tqdm` puts the colon itself.
        text = tqdm.format_meter(
            self.n,
            self.total,
            now - self._start,
            ascii=True,
            prefix=self._desc or "",
            unit=self._unit,
            postfix=self._postfix or None,
            initial=self._initial,
        )
        # The work goes on where its log cannot be written.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._file.write(text.translate({10: 32, 13: 32})[:_LONGEST] + "\n")
            self._file.flush()


__all__ = ["ProgressLines", "progress_bar"]
