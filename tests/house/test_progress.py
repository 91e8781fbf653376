"""Progress bars: lines in a file, few and complete; `tqdm` on a terminal."""

import io
import pathlib
import sys
import threading
import types

import pytest
from tqdm import tqdm

import tf_natgrad
from tf_natgrad import _progress
from tf_natgrad._progress import ProgressLines, progress_bar

ROOT = pathlib.Path(tf_natgrad.__file__).parent.parent


class Clock:
    """Seconds that pass where the test says so."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    monkeypatch.setattr(_progress, "_next_line", float("-inf"))
    return clock


@pytest.fixture
def file(monkeypatch):
    file = io.StringIO()
    # Not `sys.stderr` itself, which pytest sets anew between a fixture and its test.
    monkeypatch.setattr(_progress, "sys", types.SimpleNamespace(stderr=file))
    return file


def test_a_file_gets_a_line_every_ten_seconds_and_a_last_one(clock, file):
    with progress_bar(total=100_000, desc="training", unit="step", mininterval=1.0) as bar:
        for step in range(100_000):
            bar.set_postfix(loss=0.5, step=f"{step:06d}")
            bar.update()
            clock.now += 0.001
    text = file.getvalue()
    lines = text.splitlines()
    # 100 seconds: one line at once, nine more, and the last one.
    assert len(lines) == 11 and len(text) < 11 * 120 and "\r" not in text and text.endswith("\n")
    assert lines[0].startswith("training:   0%|") and "0/100000 [00:00<" in lines[0]
    assert lines[-1].startswith("training: 100%|##########| 100000/100000 [01:40<00:00, 1000")
    assert lines[-1].endswith("step/s, loss=0.5, step=099999]")


def test_many_short_bars_share_the_ten_seconds(clock, file):
    for _ in range(1000):
        for _ in progress_bar(range(5), leave=False):
            clock.now += 0.005
    assert file.getvalue().count("\n") == 3 and "\r" not in file.getvalue()


def test_every_bar_that_stays_has_a_last_line(clock, file):
    for name in "ab":
        assert list(progress_bar(iter(range(3)), desc=name)) == [0, 1, 2]
    lines = file.getvalue().splitlines()
    assert [line for line in lines if line.startswith(("a: 3it [", "b: 3it ["))] == [lines[1], lines[2]]


def test_a_loop_that_fails_tells_how_far_it_came(clock, file):
    with pytest.raises(RuntimeError), progress_bar(total=10) as bar:
        bar.update(4)
        clock.now += 1.0
        bar.update(3)
        raise RuntimeError
    assert " 7/10 [" in file.getvalue().splitlines()[-1]
    bar.close()
    bar.update()
    bar.set_description("late")
    assert file.getvalue().count("\n") == 2


def test_a_line_holds_no_control_characters_and_is_of_bounded_length(clock, file):
    with progress_bar(total=2) as bar:
        bar.set_description("one\rtwo\nthree")
        bar.set_postfix({"return": 1.23456789, "text": "x" * 1000, "none": None})
    lines = file.getvalue().split("\n")
    assert len(lines) == 3 and lines[-1] == "" and "\r" not in file.getvalue()
    assert lines[0].startswith("one two three:   0%|") and "return=1.23, text=xxx" in lines[1]
    assert len(lines[1]) == 200


def test_initial_count(clock, file):
    with progress_bar(total=10, initial=4) as bar:
        clock.now += 2.0
        bar.update(2)
    assert " 6/10 [00:02<00:04" in file.getvalue().splitlines()[-1] and "1.00it/s" in file.getvalue()


def test_threads_lose_no_count(clock, file):
    bar = progress_bar(total=8000)
    threads = [threading.Thread(target=lambda: [bar.update() for _ in range(1000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bar.close()
    assert bar.n == 8000 and file.getvalue().count("\n") == 2


def test_nothing_is_written_where_it_is_disabled(clock, file):
    bar = progress_bar(range(3), disable=True)
    assert list(bar) == [0, 1, 2] and file.getvalue() == ""


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("stderr", [None, Broken(), "closed"], ids=["none", "broken", "closed"])
def test_the_work_goes_on_where_nothing_can_be_written(clock, monkeypatch, stderr):
    if stderr == "closed":
        stderr = io.StringIO()
        stderr.close()
    monkeypatch.setattr(_progress, "sys", types.SimpleNamespace(stderr=stderr))
    assert list(progress_bar(range(3))) == [0, 1, 2]


def test_a_terminal_gets_a_moving_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(total=3, desc="training", mininterval=0.0) as bar:
        assert type(bar) is tqdm and not isinstance(bar, ProgressLines)
        bar.update(3)
    assert "\rtraining: 100%" in capsys.readouterr().err


def test_nothing_else_uses_tqdm():
    files = [path for folder in ("tf_natgrad", "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    users = {path.name for path in files if "tqdm" in path.read_text()}
    assert len(files) > 60 and users == {"_progress.py"}
