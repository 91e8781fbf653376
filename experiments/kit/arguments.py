"""What the command lines of the experiments share."""

from __future__ import annotations

import argparse
import logging
import math
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Sequence

LOGGER = logging.getLogger("tf_natgrad")
FIGURES = pathlib.Path(__file__).resolve().parents[2] / "figures"


def positive(kind: type):
    """A parser of positive numbers for `argparse`."""

    def parse(text: str):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
        return value

    parse.__name__ = kind.__name__
    return parse


def some_of(known: Sequence[str]):
    """A parser of names separated by commas."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"{text}: expected some of {', '.join(known)}, separated by commas")
        return [name for name in known if name in names]

    return parse


def non_negative(text: str) -> float:
    """A parser of numbers from 0 on for `argparse`."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 on")
    return value


def parser_of(documentation: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's documentation as it stands."""
    return argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Adds `--dataset`."""
    parser.add_argument(
        "--dataset",
        choices=("auto", "mnist", "digits"),
        default="auto",
        help="auto (default): MNIST where it is prepared (in TFDS_DATA_DIR) or can be downloaded, elsewhere "
        "scikit-learn's digits of 8x8 pixels",
    )


def add_recording(parser: argparse.ArgumentParser) -> None:
    """Adds `--smoke`, `--out`, `--resume` and `--replot`."""
    add = parser.add_argument
    add(
        "--smoke",
        action="store_true",
        help="a short trial, under a minute, written to a temporary folder unless --out is given",
    )
    add("--out", type=pathlib.Path, help="folder of the CSV files and figures (default: figures/ of the repository)")
    add("--resume", action="store_true", help="keep the complete runs of the CSV files in --out and make the others")
    add("--replot", action="store_true", help="draw the figures from the CSV files in --out, without running anything")


def check_recording(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Stops where `--resume` or `--replot` have no folder to look into."""
    if arguments.smoke and not arguments.out and (arguments.resume or arguments.replot):
        parser.error("--smoke writes to a new temporary folder each time: --resume and --replot need --out")


def check_table(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Stops where `--table` has no folder to look into."""
    if arguments.table and arguments.smoke and not arguments.out:
        parser.error("--smoke writes to a new temporary folder each time: --table needs --out")


def output_folder(arguments: argparse.Namespace, name: str) -> pathlib.Path:
    """The folder to write to; a new temporary one for a trial."""
    if arguments.out:
        return arguments.out
    return pathlib.Path(tempfile.mkdtemp(prefix=f"{name}_")) if arguments.smoke else FIGURES


def failed(reason: object) -> int:
    """Tells why nothing is shown, and returns the exit status."""
    print(f"error: {reason}", file=sys.stderr)
    return 1


def none_of(paths: Iterable[pathlib.Path]) -> str:
    """Which files are not there, in words; empty where all are."""
    missing = [str(path) for path in paths if not path.is_file()]
    return f"there is no {' and no '.join(missing)}" if missing else ""


def show_log() -> None:
    """Lets the person at the terminal see what the scripts and the package log."""
    logging.basicConfig(format="%(message)s")
    LOGGER.setLevel(logging.INFO)


def set_threads(threads: int) -> None:
    """Sets TensorFlow's threads, which it takes only before its first operation."""
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        LOGGER.warning("TensorFlow runs already: its threads stay as they are, not %d", threads)
