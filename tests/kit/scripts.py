"""A script as a module, and a fresh process in which the tests' own modules can be imported."""

import contextlib
import importlib
import os
import pathlib
import sys

KIT = pathlib.Path(__file__).resolve().parent
ROOT = KIT.parents[1]


def environment(*folders):
    """Variables for a child process that imports the package, the tests' helpers and modules in those folders."""
    path = os.pathsep.join(str(folder) for folder in (ROOT, KIT, KIT.parent, *folders))
    return {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


@contextlib.contextmanager
def imported(name, folder="experiments"):
    """The script of that name, with its neighbours importable while the tests of a module run."""
    path = str(ROOT / folder)
    sys.path.insert(0, path)
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(path)


def refuses_without_mnist(script, folder, monkeypatch, capsys):
    """MNIST that is not there is an error that says how to get it, and nothing is written."""
    from tf_natgrad import data

    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "nowhere"))
    monkeypatch.setattr(data, "_source_answers", lambda: False)
    assert script.main(["--smoke", "--dataset", "mnist", "--out", str(folder)]) == 1
    assert "TFDS_DATA_DIR" in capsys.readouterr().err
    assert not list(folder.iterdir())
