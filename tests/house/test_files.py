"""Files that stay whole: a kill, a full disk or another process's half row leave whole rows, or the file before."""

import contextlib
import csv
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest

import tf_natgrad
from tf_natgrad import _files
from tf_natgrad._files import CsvFile, write_atomically


@contextlib.contextmanager
def room(path, bytes_left):
    """No file of this process may grow beyond the size of one and so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def begun(tmp_path):
    """A file with one row of two columns."""
    file = CsvFile(tmp_path / "log.csv")
    file.append({"a": 1, "b": 2.5})
    return file


def test_rows_have_the_columns_of_the_first(begun):
    begun.append({"b": "x,y", "c": 3})
    assert begun.path.read_text() == 'a,b\n1,2.5\n,"x,y"\n'


def test_columns_may_be_given(tmp_path):
    file = CsvFile(tmp_path / "log.csv", ("b", "a"))
    file.append({"a": 1})
    assert file.path.read_text() == "b,a\n,1\n"


@pytest.mark.parametrize("bytes_left", [0, 3])
def test_a_full_disk_raises_and_leaves_the_rows_before(begun, bytes_left):
    before = begun.path.read_text()
    with room(begun.path, bytes_left), pytest.raises(OSError, match="File too large"):
        begun.append({"a": 123, "b": 456})
    assert begun.path.read_text() == before
    begun.append({"a": 3, "b": 4})
    assert begun.path.read_text() == before + "3,4\n"


def test_a_part_of_a_row_that_cannot_be_removed_is_removed_later(begun, monkeypatch):
    cut = CsvFile._cut
    monkeypatch.setattr(CsvFile, "_cut", lambda self, file: setattr(self, "_torn", True))
    for _ in range(2):
        with room(begun.path, 3), pytest.raises(OSError):
            begun.append({"a": 123, "b": 456})
    assert begun.path.read_text() == "a,b\n1,2.5\n123"
    monkeypatch.setattr(CsvFile, "_cut", cut)
    begun.append({"a": 3, "b": 4})
    assert begun.path.read_text() == "a,b\n1,2.5\n3,4\n"


def test_an_interruption_within_a_write_leaves_whole_rows(begun, monkeypatch):
    def interrupted(file, content):
        file.write(content[:2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_files, "_write_all", interrupted)
        begun.append({"a": 5, "b": 6})
    assert begun.path.read_text() == "a,b\n1,2.5\n"


def test_resuming_takes_the_columns_and_removes_half_a_row(begun):
    with open(begun.path, "a") as file:
        file.write("7,8\n9,")
    again = CsvFile(begun.path)
    again.resume()
    again.append({"b": 1, "c": 2})
    assert begun.path.read_text() == "a,b\n1,2.5\n7,8\n,1\n"


@pytest.mark.parametrize("content", ["", "a,b"])
def test_resuming_without_a_header_begins_anew(tmp_path, content):
    file = CsvFile(tmp_path / "log.csv")
    file.path.write_text(content)
    assert file.header() is None
    file.resume()
    file.append({"c": 1})
    assert file.path.read_text() == "c\n1\n"


def test_the_header_comes_again_where_the_file_was_removed(begun):
    begun.path.unlink()
    begun.append({"a": 3})
    assert begun.path.read_text() == "a,b\n3,\n"


def test_replacing_and_clearing(begun):
    begun.replace([{"a": 1}, {"b": 2}])
    begun.append({"a": 3})
    assert begun.path.read_text() == "a,b\n1,\n,2\n3,\n"
    begun.clear()
    assert begun.path.read_text() == ""
    begun.append({"a": 4})
    assert begun.path.read_text() == "a,b\n4,\n"


def test_a_change_of_folder_between_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    file = CsvFile("log.csv")
    file.append({"a": 1})
    monkeypatch.chdir(tmp_path / "other")
    file.append({"a": 2})
    assert (tmp_path / "log.csv").read_text() == "a\n1\n2\n" and not os.listdir()


KILLED = """
import importlib.util, itertools, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
file = files.CsvFile(sys.argv[2])
for i in itertools.count():
    if i % 50 == 49:
        file.replace([{"number": i, "text": "x" * 3000}] * 20)
    file.append({"number": i, "text": "x" * 3000})
"""


@pytest.mark.parametrize("seconds", [0.02, 0.05, 0.08])
def test_a_kill_leaves_whole_rows_and_at_most_a_part_of_the_last(tmp_path, seconds):
    file = CsvFile(tmp_path / "log.csv")
    process = subprocess.Popen([sys.executable, "-S", "-c", KILLED, _files.__file__, str(file.path)])
    while not (file.path.exists() and file.path.stat().st_size):
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The system may cut a row of this length where it crosses the border of two pages of the file.
    left = file.path.read_text()
    file.resume()
    text = file.path.read_text()
    assert left.startswith(text) and "\n" not in left[len(text) :]
    assert text.startswith("number,text\n") and text.endswith("\n")
    numbers = [(int(row["number"]), len(row["text"])) for row in csv.DictReader(text.splitlines())]
    assert all(length == 3000 for _, length in numbers)
    assert [number for number, _ in numbers] == sorted(number for number, _ in numbers)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_interrupted_replacement_leaves_the_file_before(begun, monkeypatch, moment):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    before = begun.path.read_text()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_files.os, moment, interrupted)
        begun.replace([{"a": 1}] * 3)
    assert begun.path.read_text() == before and os.listdir(begun.path.parent) == ["log.csv"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_device_is_written_to_and_not_replaced():
    file = CsvFile("/dev/full", ("a",))
    for write in (file.replace, lambda: file.append({"a": 1}), lambda: write_atomically("/dev/full", b"a")):
        with pytest.raises(OSError, match="No space left"):
            write()
    file.clear()
    file.resume()
    assert file.header() is None
    assert pathlib.Path("/dev/full").is_char_device()


def test_one_writer_of_csv_files():
    """Files that grow are written by one class, in the package as in the experiments."""
    package = pathlib.Path(tf_natgrad.__file__).parent
    sources = [*package.rglob("*.py"), *(package.parent / "experiments").rglob("*.py")]
    found = {
        path.name for path in sources if "csv.DictWriter(" in path.read_text() or "csv.writer(" in path.read_text()
    }
    assert found == {"_files.py"}
