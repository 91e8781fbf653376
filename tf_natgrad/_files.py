"""Files that survive a kill and a full disk: CSV files that grow row by row, and files that are replaced at once."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import pathlib
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class CsvFile:
    """Appends rows to a CSV file so that neither a kill nor a full disk harms the rows that are there.

    Each row is one write at the end of the file, and the header is written together with the first row. If a row does
    not fit on the disk, the part that was written is removed, and `append` raises. If the process is killed within the
    write of a row, which the system may cut where it crosses the border of two pages, `resume` removes the part.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = CsvFile(pathlib.Path(folder, "log.csv"))
    ...     file.append({"step": 1, "loss": 0.5})
    ...     file.append({"step": 2})
    ...     file.path.read_text().split()
    ['step,loss', '1,0.5', '2,']

    Args:
        path: of the file.
        columns: names of all columns; by default those of the first row.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str] | None = None):
        # Absolute: the folder of the process may change between two rows.
        self.path = pathlib.Path(os.path.abspath(path))
        self.columns = None if columns is None else tuple(columns)
        # The size of what is known to be whole rows.
        self._size = 0
        # Whether a part of a row may follow it, which could not be removed.
        self._torn = False

    def replace(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """Replaces the file at once by the header and some rows.

        Args:
            rows: by column.

        Raises:
            OSError: if it cannot be written; the file is then as it was before.
        """
        content = self._lines([self._header(), *rows])
        write_atomically(self.path, content)
        self._size, self._torn = len(content), False

    def clear(self) -> None:
        """Makes the file empty; the header comes with the first row.

        Raises:
            OSError: if it cannot be opened.
        """
        # What is there belongs to another run: should this fail, the next row does not follow it.
        self._size, self._torn = 0, True
        with self._opened() as file:
            self._cut(file)

    def header(self) -> str | None:
        """Reads the first line of the file.

        Returns:
            The line without its end; `None` where there is no finished one, or no regular file.

        Raises:
            OSError: if it cannot be read.
        """
        if not os.path.isfile(self.path):
            return None
        with open(self.path, "rb") as file:
            line = file.readline()
        return line[:-1].decode(errors="replace").rstrip("\r") if line.endswith(b"\n") else None

    def resume(self) -> None:
        """Goes on with a file that exists: takes its columns, and removes a last row that is not finished.

        Raises:
            OSError: if it cannot be read or written.
        """
        header = self.header()
        if header is not None:
            self.columns = tuple(next(csv.reader([header]), ()))
        with self._opened() as file:
            self._size = 0
            if _size_of(file):
                with open(self.path, "rb") as content:
                    self._size = content.read().rfind(b"\n") + 1
            self._cut(file)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row at the end.

        Args:
            row: by column; columns that it lacks stay empty, and other names are left out.

        Raises:
            OSError: if it could not be written as a whole; the file is then as it was before.
        """
        if self.columns is None:
            self.columns = tuple(row)
        with self._opened() as file:
            if self._torn:
                self._cut(file)
            if self._torn:
                raise OSError(errno.EIO, "the part of a row at its end cannot be removed")
            size = _size_of(file)
            # Of a device or a pipe the size is not known.
            self._size = self._size if size is None else size
            line = self._lines([row] if self._size else [self._header(), row])
            try:
                _write_all(file, line)
            except BaseException:
                self._cut(file)
                raise
            self._size += len(line)

    def _opened(self) -> io.RawIOBase:
        # Unbuffered, and each write goes to the end.
        return open(self.path, "ab", buffering=0)

    def _header(self) -> dict[str, str]:
        return dict(zip(self.columns, self.columns, strict=True))

    def _lines(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n").writerows(rows)
        return text.getvalue().encode()

    def _cut(self, file: io.RawIOBase) -> None:
        """Removes what follows the whole rows, or notes that it is still there."""
        self._torn = True
        # What is no regular file keeps nothing that could be removed.
        with contextlib.suppress(OSError):
            if (_size_of(file) or 0) > self._size:
                file.truncate(self._size)
            self._torn = False


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Replaces a file at once: whatever happens, its place holds the old file or the new one.

    Args:
        path: of the file.
        content: all of it.

    Raises:
        OSError: if it cannot be written.
    """
    path = os.fspath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        # A device such as /dev/full is written to: a file in its place would be its end.
        with open(path, "wb", buffering=0) as file:
            _write_all(file, content)
        return
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(beside)
        raise


def _size_of(file: io.RawIOBase) -> int | None:
    """The size of a regular file; `None` for a device or a pipe."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _write_all(file: io.RawIOBase, content: bytes) -> None:
    # A full disk begins with a short write, and says so at the next.
    while content:
        content = content[file.write(content) :]


__all__ = ["CsvFile", "write_atomically"]
