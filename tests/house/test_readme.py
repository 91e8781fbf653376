"""Every Python example of the pages for readers runs as it stands."""

import pathlib
import re

import keras
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _examples():
    guides = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    for page in ("README.md", "CONTRIBUTING.md", *guides):
        blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.S | re.M)
        yield from (pytest.param(block, id=f"{page}-{index}") for index, block in enumerate(blocks))


@pytest.mark.parametrize("block", list(_examples()))
def test_example_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = keras.config.floatx(), keras.config.dtype_policy()
    try:
        exec(compile(block, "example", "exec"), {"__name__": "example"})
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def test_the_commands_name_files_that_exist():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"python (\S+\.py)", text) + re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert named and all((ROOT / name).exists() for name in named)


def test_optimizer_and_operator_examples_are_short():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.S | re.M)
    lines = {name: len([x for x in b.splitlines() if x.strip()]) for b in blocks for name in _names(b)}
    assert lines["optimizer"] <= 8 and lines["operators"] <= 8


def test_the_front_page_is_one_page_with_one_picture():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 110 and text.count("![") == 1


def _names(block):
    return [
        name for name, mark in {"optimizer": "load_digits", "operators": "spectral_density"}.items() if mark in block
    ]
