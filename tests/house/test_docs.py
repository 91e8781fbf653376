"""The pages of `docs/`: what they link exists, the reference is complete, the picture is what its script draws."""

import importlib
import inspect
import pathlib
import re
import runpy
import unicodedata

import pytest

import tf_natgrad

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md")]
PAGES = FRONT + sorted(DOCS.rglob("*.md"))
# Where a page of the reference takes its names from, where that is not the room's own module.
MODULES = {"tf_natgrad": "tf_natgrad", "callbacks": "tf_natgrad.training.callbacks"}
# Rooms whose page shows what users need of it: they are not part of `tf_natgrad.__all__`.
BESIDE = {"layers", "data"}


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(page):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    for heading in re.findall(r"^#+ (.*)$", without_code(page.read_text()), flags=re.M):
        plain = unicodedata.normalize("NFKD", re.sub(r"[`*]", "", heading)).lower()
        yield re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_links_exists(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", without_code(page.read_text())):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}: no such heading"


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^\s+- ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert sorted(listed) == sorted(pages | {"CONTRIBUTING.md", "CHANGELOG.md"})


def rooms():
    """Room -> its public names, as the interface of the package has them."""
    public = {name: getattr(tf_natgrad, name) for name in tf_natgrad.__all__}
    found = {name: list(module.__all__) for name, module in public.items() if inspect.ismodule(module)}
    return found | {"tf_natgrad": [name for name in public if name not in found]}


def listed(room):
    """The names on a page of the reference, each under the module of its room."""
    module = MODULES.get(room, f"tf_natgrad.{room}")
    return re.findall(rf"^::: {re.escape(module)}\.(\w+)$", (DOCS / "api" / f"{room}.md").read_text(), flags=re.M)


@pytest.mark.parametrize("room", sorted(rooms()))
def test_the_reference_has_every_public_name(room):
    assert sorted(listed(room)) == sorted(rooms()[room])


@pytest.mark.parametrize("room", sorted(BESIDE))
def test_what_else_the_reference_has_exists(room):
    names = listed(room)
    assert names and set(names) <= set(importlib.import_module(f"tf_natgrad.{room}").__all__)


def test_the_reference_has_no_other_pages_and_no_other_names():
    assert {page.stem for page in (DOCS / "api").glob("*.md")} == {*rooms(), *BESIDE, "README"}
    for page in (DOCS / "api").glob("*.md"):
        entries = re.findall(r"^:::", page.read_text(), flags=re.M)
        assert page.stem == "README" or len(entries) == len(listed(page.stem))


def test_the_picture_of_a_step_is_what_its_script_draws():
    drawn = runpy.run_path(str(DOCS / "pictures" / "draw_step.py"))["picture"]()
    assert (DOCS / "pictures" / "step.svg").read_text() == "\n".join(drawn) + "\n"
