"""Solvers by name, and as plain data."""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_natgrad import _checks
from tf_natgrad.solvers._base import Solver
from tf_natgrad.solvers.auto import Auto
from tf_natgrad.solvers.cholesky import Cholesky
from tf_natgrad.solvers.conjugate_gradient import ConjugateGradient
from tf_natgrad.solvers.gram import Gram
from tf_natgrad.solvers.svd import SVDPseudoInverse

_BY_NAME: dict[str, type[Solver]] = {
    "auto": Auto,
    "cg": ConjugateGradient,
    "cholesky": Cholesky,
    "gram": Gram,
    "svd": SVDPseudoInverse,
}


def get(solver: str | dict[str, Any] | Solver) -> Solver:
    """Returns a solver by its name or by its configuration.

    >>> get("gram")
    Gram(rcond=1e-06)

    Args:
        solver: `"auto"`, `"cg"`, `"cholesky"`, `"gram"`, `"svd"`; a dictionary as `to_config` returns it, with such a
            `"name"` and the solver's arguments; or a solver object, which is returned as it is.

    Returns:
        A solver.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if it is none of these.
    """
    if isinstance(solver, Solver):
        return solver
    arguments = dict(solver) if isinstance(solver, dict) else {"name": solver}
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise TypeError(
            _checks.message("solver", type(solver).__name__, "a solver of `tf_natgrad.solvers` or its name")
        )
    _checks.check_choice("solver", name, tuple(_BY_NAME))
    _checks.check_fields("solver", arguments, _BY_NAME[name])
    return _BY_NAME[name](**arguments)


def to_config(solver: Solver) -> dict[str, Any]:
    """Returns a solver's configuration as plain data, from which `get` makes an equal solver.

    >>> to_config(Gram(rcond=1e-4))
    {'name': 'gram', 'rcond': 0.0001}

    Args:
        solver: one of this package's solvers.

    Returns:
        Its name and arguments.

    Raises:
        TypeError: if it is of another class, or has an argument that is not plain data.
    """
    names = {cls: name for name, cls in _BY_NAME.items()}
    if type(solver) not in names:
        raise TypeError(
            _checks.message("solver", type(solver).__name__, "a solver of `tf_natgrad.solvers`, to be saved")
        )
    arguments = {field.name: getattr(solver, field.name) for field in dataclasses.fields(solver)}
    for name, value in arguments.items():
        if callable(value):
            raise TypeError(
                _checks.message(name, "a function", "plain data, to be saved", "Save the weights alone instead.")
            )
    return {"name": names[type(solver)], **arguments}


__all__ = ["get", "to_config"]
