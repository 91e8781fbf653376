"""What the tests of the experiments share: a script as a module."""

import contextlib
import importlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def imported(name, folder="experiments"):
    """The script of that name, with its neighbours importable while the tests of a module run."""
    path = str(ROOT / folder)
    sys.path.insert(0, path)
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(path)
