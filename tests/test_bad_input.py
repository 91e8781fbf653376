"""Bad input at every public door: refused in this package's words, by the argument's name, with nothing changed."""

import inspect
import pathlib
import re
import traceback

import doors
import pytest
from test_docstrings import PUBLIC

import tf_natgrad

ROOT = str(pathlib.Path(tf_natgrad.__file__).parent)
CASES = [
    (door.name, argument, number)
    for door in doors.DOORS.values()
    for argument, values in door.wrong.items()
    for number in range(len(values))
]


def shown(value):
    try:
        text = repr(value)
    except Exception:
        text = object.__repr__(value)
    return re.sub(r"\s+", " ", text)[:90]


def state():
    return [v.numpy().tobytes() for v in doors.variables() if v.name != "skipped_steps"]


def outcome(door, argument, value):
    """What is wrong with how a bad value was met, or `None`."""
    try:
        came = door.call(**door.right | {argument: value})
    except (TypeError, ValueError) as error:
        names = (argument, *door.also.get(argument, ()))
        said = any(re.search(rf"`{re.escape(name)}`: received .*; expected ", str(error), re.DOTALL) for name in names)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if said and frame.filename.startswith(ROOT):
            return None
        where = pathlib.Path(frame.filename).name
        return f"{type(error).__name__} of {where}:{frame.lineno}: {' '.join(str(error).split())[:160]}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return f"taken, and {shown(came)} returned"


@pytest.mark.parametrize("name", doors.DOORS)
def test_bad_input_is_refused_by_name_and_changes_nothing(name):
    door, failures = doors.DOORS[name], []
    before = state()
    for argument, values in door.wrong.items():
        for value in values:
            found = outcome(door, argument, value)
            now = state()
            if now != before:
                found, before = f"a model or an optimizer was changed; {found}", now
            if found is not None:
                failures.append(f"{name}({argument}={shown(value)}): {found}")
    assert not failures, f"{len(failures)} failures\n" + "\n".join(failures)


@pytest.mark.parametrize("name", doors.DOORS)
def test_the_call_is_right_without_the_bad_value(name):
    doors.DOORS[name].call(**doors.DOORS[name].right)


def test_there_are_cases_enough():
    assert len(CASES) >= 300
