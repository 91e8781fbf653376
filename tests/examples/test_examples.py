"""The programs of `examples/` run, at a small size, and print what they promise."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Program -> what a line of its output looks like.
PROGRAMS = {
    "keras_two_lines": r"natural_gradient: test loss 0\.\d+, accuracy [89]\d\.\d%",
    "kfac": r"kfac: \d+ steps, test loss \d\.\d+, test error \d+\.\d\d%",
    "spectrum": r"three smallest and three largest eigenvalues: \[-\d",
    "physics": r"20 steps: loss \d\.\de[+-]\d\d, relative error at new points \d\.\de-0\d",
    "policy_hessian": r"largest eigenvalue +-?\d+\.\d \(95% interval .*\), cross-fitted .*, p = \d\.\d+: ",
}


@pytest.fixture
def run(tmp_path):
    """Runs a program at its small size, as a user would, and returns what it printed."""

    def printed(name):
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--smoke"]
        environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        assert not list(tmp_path.iterdir()), "an example leaves no files behind"
        return done.stdout

    return printed


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_runs(run, name):
    assert re.search(PROGRAMS[name], run(name))


def test_two_workers_end_at_the_same_weights(run):
    found = re.findall(r"^worker (\d): (.*)$", run("two_workers"), flags=re.M)
    assert sorted(number for number, _ in found) == ["0", "1"]
    assert found[0][1] == found[1][1] and re.match(r"loss 0\.\d+, accuracy \d\d\.\d%, norm", found[0][1])


def test_each_program_is_of_one_screen_and_is_run():
    programs = sorted((ROOT / "examples").glob("*.py"))
    assert [program.stem for program in programs] == sorted([*PROGRAMS, "two_workers"])
    for program in programs:
        text = program.read_text()
        assert text.startswith('"""') and 25 <= text.count("\n") <= 70, program.name
