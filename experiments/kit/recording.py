"""What the experiment scripts share: rows of a CSV file, written as they come and kept across interruptions."""

from __future__ import annotations

import csv
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Row = dict[str, str]
Key = tuple[str, ...]


def as_text(value: Any) -> str:
    """A value as it stands in the file: floats with six digits, `None` as nothing."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Recorder:
    """A CSV file whose rows belong to runs, a run being the rows with the same values in the key columns.

    Each row is appended by one write, and rows are removed only by replacing the file at once: whenever the process is
    killed, the rows are there, and `read_rows` leaves out what may follow them. See `tf_natgrad._files.CsvFile`.

    Args:
        path: the file; its folder is made where needed.
        columns: names of all columns.
        key_columns: the columns that identify a run.
        resume: whether rows already in the file are kept; without it the file starts empty.
        keep: of the runs found in the file, which to keep, by key and rows; the others (of an interrupted run, or
            of another configuration) are dropped. By default all.

    Raises:
        ValueError: if the file to be resumed has other columns.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        columns: Sequence[str],
        key_columns: Sequence[str],
        resume: bool = False,
        keep: Callable[[Key, list[Row]], bool] = lambda key, rows: True,
    ):
        self.path = pathlib.Path(path)
        self.columns = tuple(columns)
        self.key_columns = tuple(key_columns)
        self._runs: dict[Key, list[Row]] = {}
        if resume and self.path.exists():
            for row in read_rows(self.path, self.columns):
                self._runs.setdefault(self._key_of(row), []).append(row)
            self._runs = {key: rows for key, rows in self._runs.items() if keep(key, rows)}
        # Imported where rows are written, because it brings TensorFlow: what only reads need not wait for that.
        from tf_natgrad._files import CsvFile

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = CsvFile(self.path, self.columns)
        self._file.replace(self.rows())

    def __contains__(self, key: Sequence[Any]) -> bool:
        return tuple(map(as_text, key)) in self._runs

    def rows(self) -> list[Row]:
        """All rows, as text, run by run."""
        return [row for rows in self._runs.values() for row in rows]

    def rows_of(self, key: Sequence[Any]) -> list[Row]:
        """The rows of one run, as text; none where there is no such run."""
        return list(self._runs.get(tuple(map(as_text, key)), []))

    def append(self, **values: Any) -> None:
        """Writes one row; columns that are not named stay empty.

        Raises:
            ValueError: if there is no such column.
            OSError: if the row could not be written as a whole (a full disk); the file is then as it was before.
        """
        unknown = set(values) - set(self.columns)
        if unknown:
            raise ValueError(f"no such columns: {', '.join(sorted(unknown))}; there are {', '.join(self.columns)}")
        row = {column: as_text(values.get(column)) for column in self.columns}
        try:
            self._file.append(row)
        except OSError as error:
            reason = f"{error.strerror}: the row was not recorded, those before it are; make room, and --resume"
            raise OSError(error.errno, reason, str(self.path)) from error
        self._runs.setdefault(self._key_of(row), []).append(row)

    def _key_of(self, row: Row) -> Key:
        return tuple(row[column] for column in self.key_columns)


def read_rows(path: str | os.PathLike, columns: Sequence[str]) -> list[Row]:
    """The rows of a recorded file, without what an interrupted write left at its end.

    Args:
        path: the file.
        columns: the columns that it must have.

    Returns:
        One dictionary of texts per row.

    Raises:
        ValueError: if the columns are others.
    """
    text = pathlib.Path(path).read_text()
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole))
    if tuple(reader.fieldnames or ()) != tuple(columns):
        raise ValueError(f"{path} has the columns {reader.fieldnames}; expected {list(columns)}")
    return list(reader)


def by(rows: Sequence[Row], *names: str) -> dict[Key, list[Row]]:
    """Rows by the values of some columns, in their order."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """A column as numbers, NaN where there is none."""
    return np.array([float(row[name] or "nan") for row in rows])
