"""Bad input at every public door: refused in this package's words, by the argument's name, with nothing changed."""

import functools
import importlib
import inspect
import pathlib
import re
import traceback

import pytest

import tf_natgrad

ROOT = str(pathlib.Path(tf_natgrad.__file__).parent)
AREAS = ("operators", "solvers", "preconditioners", "training", "distributions", "pde", "rl")
# Public names that are no doors, or are tried through others.
NO_DOORS = {
    "tf_natgrad": {"NaturalGradientMixin", "NaturalGradientModel", "NaturalGradientSequential"},
    "errors": {"GramMismatchError", "NonFiniteError"},
    "operators": {"CurvatureOperator", "FactoredOperator", "FactoredRhs", "KroneckerBlock"},
    "preconditioners": {"NAMES", "Preconditioner", "PreconditionerInfo"},
    "solvers": {"CGInfo", "CholeskyInfo", "GramInfo", "Planned", "SVDInfo", "Solution", "Solver", "StopReason"},
    "spectrum": {"Eigenpairs", "EigshInfo", "SpectralDensity", "TraceEstimate"},
    "distributions": {"Distribution", "Likelihood"},
    "rl": {"ExtremeCurvature", "ObservationNormalization", "Policy"},
}


@functools.cache
def table(area):
    """The module with the doors of one area: its models are made when they are needed, and once."""
    return importlib.import_module(f"doors_{area}")


def shown(value):
    return re.sub(r"\s+", " ", repr(value))[:90]


def state(area):
    """All that no refused call may change; a batch that was left out is counted, and its shapes settle a choice."""
    counted = ("skipped_steps", "choice")
    owners = [importlib.import_module("doors").MODEL, *getattr(table(area), "OWNERS", ())]
    return [v.numpy().tobytes() for owner in owners for v in owner.variables if v.name not in counted]


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
        place = f"{pathlib.Path(frame.filename).name}:{frame.lineno}"
        return f"{type(error).__name__} of {place}: {' '.join(str(error).split())[:160]}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return f"taken, and {shown(came)} returned"


def met(area):
    """How each bad value of an area was met, where that was wrong."""
    before, failures = state(area), []
    for door in table(area).DOORS:
        for argument, value in door.cases():
            found = outcome(door, argument, value)
            if (now := state(area)) != before:
                found, before = f"a model or an optimizer was changed ({found})", now
            if found is not None:
                failures.append(f"{door.name}({argument}={shown(value)}): {found}")
    return failures


@pytest.mark.parametrize("area", AREAS)
def test_bad_input_is_refused_by_name_and_changes_nothing(area):
    failures = met(area)
    assert not failures, f"{len(failures)} failures\n" + "\n".join(failures)


@pytest.mark.parametrize("area", AREAS)
def test_the_same_calls_are_right_without_the_bad_value(area):
    for door in table(area).DOORS:
        door.call(**door.right)


def test_there_are_cases_enough():
    assert sum(len(values) for area in AREAS for door in table(area).DOORS for values in door.wrong.values()) >= 300


@pytest.mark.parametrize("area", AREAS)
def test_each_argument_of_a_door_is_in_its_table(area):
    for door in table(area).DOORS:
        arguments = {p.name for p in inspect.signature(door.call).parameters.values() if p.kind != p.VAR_KEYWORD}
        assert arguments <= {*door.wrong, *door.free}, f"{door.name}: {arguments - {*door.wrong, *door.free}}"


def test_each_public_name_has_a_door():
    rooms = {name: getattr(tf_natgrad, name) for name in tf_natgrad.__all__}
    public = {name for name, found in rooms.items() if not inspect.ismodule(found)} - NO_DOORS["tf_natgrad"]
    for room, module in rooms.items():
        if inspect.ismodule(module):
            public |= {f"{room}.{name}" for name in {*module.__all__} - NO_DOORS.get(room, set())}
    assert public <= {door.name for area in AREAS for door in table(area).DOORS}
