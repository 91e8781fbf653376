"""Every example in a docstring runs, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
import types

import pytest

import tf_natgrad

NAMES = ["tf_natgrad", *(m.name for m in pkgutil.walk_packages(tf_natgrad.__path__, "tf_natgrad."))]
# The package exports functions under the names of their modules: `getattr` would find those.
MODULES = {name: importlib.import_module(name) for name in NAMES}


def _examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name, module in MODULES.items():
        for test in finder.find(module, name):
            if test.examples:
                yield test


EXAMPLES = {test.name: test for test in _examples()}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example(name, monkeypatch):
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(EXAMPLES[name], out=report.append, clear_globs=False)
    assert runner.failures == 0, "".join(report)


def test_there_are_examples():
    exported = {"Fisher", "Gram", "NaturalGradient", "natural_gradient", "CategoricalPd", "FlatParameters"}
    assert exported <= {name.split(".")[-1] for name in EXAMPLES}


def _public_names():
    """`__all__` of the package and of the packages and modules that it exports."""
    public = [tf_natgrad, *(v for v in vars(tf_natgrad).values() if isinstance(v, types.ModuleType))]
    for module in public:
        if module.__name__.startswith("tf_natgrad") and hasattr(module, "__all__"):
            yield from ((module.__name__, name) for name in module.__all__)


PUBLIC = sorted(set(_public_names()))


@pytest.mark.parametrize("module, name", PUBLIC)
def test_public_name_has_a_docstring(module, name):
    found = getattr(MODULES[module], name)
    assert inspect.getdoc(found), f"{module}.{name} has no docstring"


@pytest.mark.parametrize("module", NAMES)
def test_module_has_a_docstring_and_exports_what_exists(module):
    assert MODULES[module].__doc__
    assert all(hasattr(MODULES[module], name) for name in getattr(MODULES[module], "__all__", ()))


@pytest.mark.parametrize(
    "module, name", [pair for pair in PUBLIC if inspect.isclass(getattr(MODULES[pair[0]], pair[1]))]
)
def test_public_methods_have_docstrings(module, name):
    cls = getattr(MODULES[module], name)
    for attribute, value in vars(cls).items():
        if not attribute.startswith("_") and callable(value):
            assert inspect.getdoc(getattr(cls, attribute)), f"{name}.{attribute} has no docstring"
