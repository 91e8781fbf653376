"""What MkDocs does beyond its configuration: files outside of `docs/` that the pages link become part of the site.

Pages link `../figures/races.png` or `../CONTRIBUTING.md` as it is right in the repository. The site has no folder above
its root, so such a link loses one `../`, and the file is copied to where it then points. MkDocs checks the result.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Pages of their own in the navigation.
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))")


def outside(page, target):
    """The path from the repository's root of a link that leaves `docs/`, or `None`."""
    if "://" in target or target.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith("docs/") or path == "docs" else path


def linked():
    """The files outside of `docs/` that its pages link."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for _, target, _ in LINK.findall(page.read_text()):
            path = outside(page.relative_to(ROOT / "docs").as_posix(), target)
            if path is not None and (ROOT / path).is_file():
                yield path


def on_files(files, config):
    """Adds them to the site."""
    for path in sorted({*PAGES, *linked()}):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads the links to them."""
    source = page.file.src_uri
    from_root = source in PAGES

    def led(match):
        before, target, after = match.groups()
        if from_root:
            inside = target.removeprefix("docs/")
            return before + inside + after if inside != target or target in PAGES else match.group(0)
        path = outside(source, target)
        if path is None:
            return match.group(0)
        return before + posixpath.relpath(path, posixpath.dirname(source) or ".") + after

    return LINK.sub(led, markdown)
