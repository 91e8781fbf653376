"""Who imports whom: the layers of the package, enforced on its source."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

import tf_natgrad

ROOT = pathlib.Path(tf_natgrad.__file__).parent

# A module imports from its own row and from the rows above. The first name that fits is a module's row.
LAYERS = [
    {
        "_typing",
        "_checks",
        "_conditions",
        "_files",
        "_keras",
        "_moved",
        "_progress",
        "_replicas",
        "errors",
        "parameters",
    },
    {"distributions"},
    {"linearize", "layers", "operators"},
    {"solvers", "spectrum"},
    {"steps"},
    {"preconditioners", "costs"},
    {"training", "pde"},
    {"rl", "data"},
]
# Within a row, what else is forbidden, of rooms and of rooms within rooms: importer -> imported.
FORBIDDEN = {
    "linearize": {"layers", "operators"},
    "layers": {"operators"},
    "solvers": {"spectrum"},
    "spectrum": {"solvers"},
    "preconditioners": {"costs"},
    "training.explain": {"training.optimizer", "training.models", "training.step", "training.planning"},
    "training.deciding": {"training.models", "training.step", "training.train_function"},
    "training.objective": {"training.models", "training.step"},
    "training.optimizer": {"training.models", "training.direction", "training.step"},
    "training.direction": {"training.optimizer", "training.models", "training.step", "training.natural_gradient"},
    "training.preconditioned": {"training.optimizer", "training.models", "training.step"},
    "training.planning": {"training.optimizer", "training.models", "training.step", "training.direction"},
    "training.step": {"training.models", "training.train_function", "training.natural_gradient"},
    "training.natural_gradient": {"training.models", "training.optimizer", "training.train_function"},
    "training.train_function": {"training.models", "training.direction"},
    "training.fisher_scoring": {"training.models", "training.optimizer", "training.step"},
    "data": {"rl"},
    "rl": {"data"},
    "rl.curvature": {"rl.agents"},
    "rl.agents": {"rl.curvature"},
}
# Third-party packages and the only rooms that may import them, and whether only inside a function.
ONLY_IN = {
    "matplotlib": set(),
    "tensorflow_probability": {"rl"},
    "gymnasium": {"rl"},
    "sklearn": {"data", "rl"},
    "tensorflow_datasets": {"data"},
}
LAZY = {"tensorflow_probability", "tensorflow_datasets", "sklearn", "gymnasium"}


def _modules():
    """Dotted name within the package -> syntax tree."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


MODULES = _modules()


def _imports(tree, inside_functions=True):
    """Absolute dotted names of everything that a module imports."""
    nodes = list(ast.walk(tree))
    if not inside_functions:
        functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
        lazy = {id(inner) for function in functions for inner in ast.walk(function)}
        nodes = [n for n in nodes if id(n) not in lazy]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer that they point to"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(dotted):
    """`tf_natgrad.solvers.svd.SVDInfo` -> `solvers`; `None` outside the package or for its own name."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "tf_natgrad" and len(parts) > 1 else None


def _row(room):
    rows = [number for number, row in enumerate(LAYERS) if room in row]
    assert rows, f"{room!r} is in no layer: add it to the table"
    return rows[0]


def _resolved(dotted):
    """The module that an import loads: the longest prefix of the name that is one."""
    parts = dotted.split(".")[1:]
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


INNER = sorted(name for name in MODULES if name)


@pytest.mark.parametrize("module", INNER)
def test_imports_point_upwards(module):
    own = _room(f"tf_natgrad.{module}")
    for dotted in _imports(MODULES[module]):
        if dotted.split(".")[0] != "tf_natgrad":
            continue
        other = _room(dotted)
        assert _resolved(dotted), f"{module} imports the package itself: {dotted}"
        assert _row(other) <= _row(own), f"{module} (layer {_row(own)}) imports {dotted} (layer {_row(other)})"
        assert not _forbidden(module, dotted), f"{module} imports {dotted}"


def _within(dotted, room):
    return f"{dotted}.".startswith(f"{room}.")


def _forbidden(module, dotted):
    """The rooms that `FORBIDDEN` keeps a module out of and that an import leads into."""
    imported = dotted.removeprefix("tf_natgrad.")
    rooms = [room for importer, others in FORBIDDEN.items() if _within(module, importer) for room in others]
    return [room for room in rooms if _within(imported, room)]


@pytest.mark.parametrize(
    "module, dotted, forbidden",
    [
        ("rl.curvature.significance", "tf_natgrad.rl.agents.critic.Critic", True),
        ("rl.agents.learner", "tf_natgrad.rl.curvature", True),
        ("rl.agents.learner", "tf_natgrad.rl.agents.critic.Critic", False),
        ("rl.curvature", "tf_natgrad.rl.agents_and_more", False),
        ("training.step", "tf_natgrad.training.models", True),
        ("solvers.svd", "tf_natgrad.spectrum.trace", True),
    ],
)
def test_rooms_within_rooms_are_kept_apart(module, dotted, forbidden):
    assert bool(_forbidden(module, dotted)) is forbidden


def test_forbidden_rooms_exist():
    assert {*FORBIDDEN, *(room for others in FORBIDDEN.values() for room in others)} <= set(MODULES)


def test_every_room_has_a_row():
    assert {_row(_room(f"tf_natgrad.{name}")) for name in INNER} >= set(range(len(LAYERS)))


def _module_level_graph():
    graph = {}
    for name, tree in MODULES.items():
        own = [d for d in _imports(tree, inside_functions=False) if d.split(".")[0] == "tf_natgrad"]
        graph[name] = {_resolved(dotted) for dotted in own} - {name}
    return graph


def test_no_cycles_at_module_level():
    # A package's `__init__` re-exports: its modules do not import it, so even that is no cycle.
    order = list(graphlib.TopologicalSorter(_module_level_graph()).static_order())
    assert set(order) == set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_third_party_packages_stay_in_their_rooms(module):
    room = module.split(".")[0]
    for dotted in _imports(MODULES[module]):
        package = dotted.split(".")[0]
        assert room in ONLY_IN.get(package, {room}), f"{module} imports {package}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_optional_packages_are_imported_where_they_are_used(module):
    eager = {dotted.split(".")[0] for dotted in _imports(MODULES[module], inside_functions=False)}
    assert not eager & LAZY


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_library_never_prints(module):
    names = [node.func for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)]
    called = {node.id for node in names if isinstance(node, ast.Name)}
    called |= {ast.unparse(node) for node in names if isinstance(node, ast.Attribute)}
    assert not called & {"print", "tf.print", "keras.utils.print_msg", "sys.stdout.write"}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if _room(f"tf_natgrad.{name}") == "distributions"))
def test_distributions_never_see_variables(module):
    source = ast.unparse(MODULES[module])
    assert "trainable_variables" not in source and "GradientTape" not in source


@pytest.mark.parametrize("module", sorted(name for name in MODULES if _room(f"tf_natgrad.{name}") == "solvers"))
def test_solvers_never_see_keras(module):
    assert "keras" not in {dotted.split(".")[0] for dotted in _imports(MODULES[module])}


def test_the_optimizer_opens_no_tape():
    assert "GradientTape" not in ast.unparse(MODULES["training.optimizer"])


LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 350, 60


SMALL = [*sorted(ROOT.rglob("*.py")), *sorted((ROOT.parent / "experiments").rglob("*.py"))]


@pytest.mark.parametrize("path", SMALL, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= LINES_OF_A_FILE or "because" in text.split("\n")[0], f"{lines} lines without a reason in the first"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None
            first = node.body[1] if documented and len(node.body) > 1 else node.body[0]
            length = node.end_lineno - first.lineno + 1
            assert length <= LINES_OF_A_FUNCTION, f"{node.name} has {length} lines below its docstring"


@pytest.fixture(scope="module")
def loaded():
    """The top-level packages that `import tf_natgrad` loads, beside what TensorFlow loads by itself."""
    code = "import sys, tensorflow, keras; before = set(sys.modules); import tf_natgrad; "
    code += "sys.stdout.write(' '.join({m.split('.')[0] for m in set(sys.modules) - before}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return set(done.stdout.split())


@pytest.mark.parametrize("package", sorted({*ONLY_IN, "tf_keras"}))
def test_import_does_not_load(package, loaded):
    assert "tf_natgrad" in loaded
    assert package not in loaded


def test_public_interface():
    assert sorted(tf_natgrad.__all__) == list(tf_natgrad.__all__)
    assert all(hasattr(tf_natgrad, name) for name in tf_natgrad.__all__)
