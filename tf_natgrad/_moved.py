"""Modules under the names that they once had: importing one works, warns, and names the new place."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from typing import Any

# Old name -> new name, within the package.
MOVED = {
    "gram": "layers",
    "models": "training.models",
    "optimizers": "training.optimizer",
    "step": "steps",
    "rl.agent_log": "rl.agents.log",
    "rl.baselines": "rl.curvature.baselines",
    "rl.checkpoint": "rl.agents.checkpoint",
    "rl.critic": "rl.agents.critic",
    "rl.policy_hessian": "rl.curvature.policy_hessian",
    "rl.policy_step": "rl.agents.policy_step",
    "rl.significance": "rl.curvature.significance",
}
_PACKAGE = __package__


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes the modules of the table, with the contents of those that took their place."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.removeprefix(f"{_PACKAGE}.") not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: types.ModuleType) -> None:
        new = f"{_PACKAGE}.{MOVED[module.__name__.removeprefix(f'{_PACKAGE}.')]}"
        warnings.warn(f"{module.__name__} is now {new}; import from there.", FutureWarning, stacklevel=2)
        place = importlib.import_module(new)
        for name in dir(place):
            if not name.startswith("__"):
                setattr(module, name, getattr(place, name))


def install() -> None:
    """Lets Python find them, before a folder that an older version may have left behind."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def attribute(package: str, name: str) -> types.ModuleType:
    """A moved module as an attribute of its package.

    Args:
        package: the full name of the package.
        name: of the attribute.

    Returns:
        The module.

    Raises:
        AttributeError: if there is none of that name.
    """
    if f"{package}.{name}".removeprefix(f"{_PACKAGE}.") not in MOVED:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return importlib.import_module(f"{package}.{name}")


__all__ = ["MOVED", "attribute", "install"]
