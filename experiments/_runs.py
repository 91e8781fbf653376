"""What the races of optimizers share: runs and their rows, a step that leaves no trace, the machine."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from _recording import Key, Row, as_text


class KeyedRun:
    """A run whose key columns are attributes of it.

    Attributes:
        key_columns: their names.
    """

    key_columns: ClassVar[tuple[str, ...]]

    @property
    def columns(self) -> dict[str, Any]:
        """The key columns."""
        return {name: getattr(self, name) for name in self.key_columns}

    @property
    def key(self) -> Key:
        """The values of the key columns, as text."""
        return tuple(as_text(value) for value in self.columns.values())


def is_complete(rows: Sequence[Row]) -> bool:
    """Whether a run came to its end."""
    return bool(rows[-1]["end"])


def complete_runs(rows: Iterable[Row], key_columns: Sequence[str]) -> list[list[Row]]:
    """The rows of each run that came to its end."""
    runs: dict[Key, list[Row]] = {}
    for row in rows:
        runs.setdefault(tuple(row[column] for column in key_columns), []).append(row)
    return [group for group in runs.values() if is_complete(group)]


@contextlib.contextmanager
def put_back(variables: Callable[[], Iterable[Any]]) -> Iterator[None]:
    """Puts variables back to what they were before: for a step that is made to be traced.

    Args:
        variables: returns them; asked before and after.

    Yields:
        Nothing.

    Raises:
        RuntimeError: if there are new ones.
    """
    before = {id(v): (v, v.numpy()) for v in variables()}
    yield
    if any(id(v) not in before for v in variables()):
        raise RuntimeError("the first step made variables that were not there before it: they cannot be put back")
    for variable, value in before.values():
        variable.assign(value)


def machine() -> str:
    """The processor, in words."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
