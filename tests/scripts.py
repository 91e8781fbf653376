"""What the tests of the experiments share: a script as a module."""

import contextlib
import importlib
import pathlib
import sys

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"


@contextlib.contextmanager
def imported(name):
    """The script of that name, with its neighbours importable while the tests of a module run."""
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(EXPERIMENTS))
