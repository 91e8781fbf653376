"""Prints the lowest versions that `setup.py` promises to work with, as a constraints file of pip."""

import ast
import pathlib
import re
import sys

SETUP = pathlib.Path(__file__).resolve().parent.parent / "setup.py"
EXTRA = "test"


def requirements(source):
    """What `setup(...)` requires, the tests' extra included, as written."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "setup"]
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    return ast.literal_eval(given["install_requires"]) + ast.literal_eval(given["extras_require"])[EXTRA]


def pinned(requirement):
    """The requirement at its lower bound; one without a bound promises what nobody checks."""
    found = re.fullmatch(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", requirement)
    if found is None:
        sys.exit(f"setup.py: received {requirement!r}; expected NAME>=VERSION. Give the lowest version that works.")
    return "==".join(found.groups())


if __name__ == "__main__":
    print("\n".join(map(pinned, requirements(SETUP.read_text()))))
