"""Checks what is inside of a wheel and an sdist: every module of the checkout, `py.typed`, the extras, the licence."""

import pathlib
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXTRAS = {"docs", "gpu", "rl", "test"}
# What the sdist needs to be built, and what those who read it look for.
SOURCES = {"setup.py", "pyproject.toml", "README.md", "LICENSE"}


def package():
    """The files of the package, as paths within the checkout."""
    files = (path for path in (ROOT / "tf_natgrad").rglob("*") if path.suffix == ".py" or path.name == "py.typed")
    return {path.relative_to(ROOT).as_posix() for path in files}


def check(what, missing):
    """Ends the program where something is missing."""
    if missing:
        sys.exit(f"{what} lacks {', '.join(sorted(missing))}")


def main(folder):
    """Looks at the one wheel and the one sdist of a folder."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    check(wheel.name, package() - names)
    check(wheel.name, {f"extra {extra}" for extra in EXTRAS if f"Provides-Extra: {extra}\n" not in text})
    strangers = {name for name in names if not name.startswith(("tf_natgrad/", "tf_natgrad-"))}
    if strangers:
        sys.exit(f"{wheel.name} has what is not of the package: {', '.join(sorted(strangers))}")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    check(sdist.name, (package() | SOURCES) - inside)
    print(f"{wheel.name}: {len(names)} files; {sdist.name}: {len(inside)} files")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
