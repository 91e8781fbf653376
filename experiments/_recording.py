"""What the experiment scripts share: rows of a CSV file, written as they come and kept across interruptions."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, str]
Key = tuple[str, ...]


def as_text(value: Any) -> str:
    """A value as it stands in the file: floats with six digits, `None` as nothing."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Recorder:
    """A CSV file whose rows belong to runs, a run being the rows with the same values in the key columns.

    Each row is one write of one whole line, and whatever removes rows replaces the file as a whole, so that the
    file is a valid one at whichever moment the process is killed.

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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.path, self._lines([dict(zip(self.columns, self.columns, strict=True)), *self.rows()]))

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
        line = self._lines([row]).encode()
        with open(self.path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                # Where there is room for a part of the line only, that part is written, without an error.
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                file.truncate(size)
                reason = f"{error.strerror}: the row was not recorded, those before it are; make room, and --resume"
                raise OSError(error.errno, reason, str(self.path)) from error
        self._runs.setdefault(self._key_of(row), []).append(row)

    def _key_of(self, row: Row) -> Key:
        return tuple(row[column] for column in self.key_columns)

    def _lines(self, rows: Iterable[Row]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


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


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file so that it is there as a whole or, if anything goes wrong, as it was before."""
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def replacing(path: pathlib.Path):
    """A temporary path beside `path`, which takes its place when the body is done.

    Yields:
        The temporary path, with the same suffix.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
