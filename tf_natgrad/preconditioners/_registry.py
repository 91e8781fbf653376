"""Preconditioners by name, and as plain data."""

from __future__ import annotations

from typing import Any

from tf_natgrad import _checks
from tf_natgrad.preconditioners._base import Preconditioner
from tf_natgrad.preconditioners.ekfac import EKFAC
from tf_natgrad.preconditioners.kfac import KFAC

_BY_NAME: dict[str, type[Preconditioner]] = {"ekfac": EKFAC, "kfac": KFAC}
NAMES = tuple(_BY_NAME)


def get(preconditioner: str | dict[str, Any] | Preconditioner) -> Preconditioner:
    """Returns a preconditioner without state by its name, its configuration, or one like it.

    >>> get({"name": "kfac", "ema": 0.9}).ema
    0.9

    Args:
        preconditioner: a name; a dictionary as `to_config` returns it, with such a `"name"` and the arguments; or a
            preconditioner, of which a new one with the same arguments is made.

    Returns:
        A `Preconditioner`.

    Raises:
        ValueError: if the name or an argument is unknown.
        TypeError: if it is none of these.
    """
    if isinstance(preconditioner, Preconditioner):
        return type(preconditioner)(**preconditioner.get_config())
    arguments = dict(preconditioner) if isinstance(preconditioner, dict) else {"name": preconditioner}
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise TypeError(
            _checks.message("preconditioner", type(preconditioner).__name__, "a preconditioner or its name")
        )
    _checks.check_choice("preconditioner", name, NAMES)
    made = _BY_NAME[name]
    unknown = sorted(set(arguments) - set(made().get_config()))
    if unknown:
        raise ValueError(_checks.message("preconditioner", ", ".join(unknown), f"the arguments of {made.__name__}"))
    return made(**arguments)


def to_config(preconditioner: Preconditioner) -> dict[str, Any]:
    """Returns the configuration of a preconditioner as plain data, from which `get` makes one like it.

    >>> to_config(KFAC())["name"]
    'kfac'

    Args:
        preconditioner: one of this package's preconditioners.

    Returns:
        Its name and arguments.

    Raises:
        TypeError: if it is of another class.
    """
    names = {made: name for name, made in _BY_NAME.items()}
    if type(preconditioner) not in names:
        raise TypeError(
            _checks.message(
                "preconditioner", type(preconditioner).__name__, "one of `tf_natgrad.preconditioners`, to be saved"
            )
        )
    return {"name": names[type(preconditioner)], **preconditioner.get_config()}


__all__ = ["NAMES", "get", "to_config"]
