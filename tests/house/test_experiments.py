"""Who imports whom in `experiments/`: scripts the kit and the drawing, drawing the kit, and no one a script."""

import ast

import pytest
import scripts

FOLDER = scripts.ROOT / "experiments"
SCRIPTS = {path.stem for path in FOLDER.glob("*.py")}
MODULES = sorted(FOLDER.rglob("*.py"))
LINES_OF_A_SCRIPT = 320
# What takes seconds to import: nothing of it is needed to draw, or before the command line is read.
HEAVY = {"tensorflow", "keras", "tf_natgrad", "gymnasium", "matplotlib", "scipy", "tensorflow_probability"}


def _imported(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module


def _packages(path):
    return {name.split(".")[0] for name in _imported(ast.walk(ast.parse(path.read_text())))}


def test_there_are_scripts():
    assert len(SCRIPTS) == 6


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_one_imports_a_script(path):
    assert not _packages(path) & SCRIPTS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_heavy_packages_are_imported_where_they_are_used(path):
    eager = {name.split(".")[0] for name in _imported(ast.parse(path.read_text()).body)}
    assert not eager & HEAVY


@pytest.mark.parametrize("path", sorted((FOLDER / "kit").glob("*.py")), ids=lambda path: path.stem)
def test_the_kit_draws_nothing(path):
    assert not _packages(path) & {"drawing", "matplotlib"}


@pytest.mark.parametrize("path", sorted((FOLDER / "drawing").glob("*.py")), ids=lambda path: path.stem)
def test_drawing_computes_nothing(path):
    assert not _packages(path) & (HEAVY - {"matplotlib"})


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_is_a_recipe(name):
    assert (FOLDER / f"{name}.py").read_text().count("\n") <= LINES_OF_A_SCRIPT
