"""What the runs of optimizers share: keys and rows, batches, precision, a step that leaves no trace, the machine."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from kit.recording import Key, Row, as_text, by


class KeyedRun:
    """A run whose key columns are attributes of it.

    Attributes:
        key_columns: their names.
    """

    key_columns: ClassVar[tuple[str, ...]]

    @property
    def columns(self) -> dict[str, Any]:
        """The key columns."""
        return {name: getattr(self, name) for name in self.key_columns}

    @property
    def key(self) -> Key:
        """The values of the key columns, as text."""
        return tuple(as_text(value) for value in self.columns.values())


def is_complete(rows: Sequence[Row]) -> bool:
    """Whether a run came to its end."""
    return bool(rows[-1]["end"])


def complete_runs(rows: Sequence[Row], key_columns: Sequence[str]) -> list[list[Row]]:
    """The rows of each run that came to its end."""
    return [group for group in by(rows, *key_columns).values() if is_complete(group)]


@contextlib.contextmanager
def put_back(variables: Callable[[], Iterable[Any]]) -> Iterator[None]:
    """Puts variables back to what they were before: for a step that is made to be traced.

    Args:
        variables: returns them; asked before and after.

    Yields:
        Nothing.

    Raises:
        RuntimeError: if there are new ones.
    """
    before = {id(v): (v, v.numpy()) for v in variables()}
    yield
    if any(id(v) not in before for v in variables()):
        raise RuntimeError("the first step made variables that were not there before it: they cannot be put back")
    for variable, value in before.values():
        variable.assign(value)


def shuffled(seed: int, count: int, size: int) -> Iterator[np.ndarray]:
    """Indices of batches without end: one shuffled pass through `count` examples after another, `[size]` each."""
    rng = np.random.default_rng(seed)
    left = np.zeros(0, np.int64)
    while True:
        while len(left) < size:
            left = np.concatenate([left, rng.permutation(count)])
        chosen, left = left[:size], left[size:]
        yield chosen


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Keras's `floatx` and the policy of its layers within a run, both put back after it."""
    import keras

    before = keras.config.floatx(), keras.config.dtype_policy()
    # Layers follow the policy, which Keras takes from `floatx` once.
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def machine() -> str:
    """The processor, in words."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def title_of(dataset: str, image_size: int | str) -> str:
    """The data set in words."""
    name = "MNIST" if dataset == "mnist" else "scikit-learn's digits (not MNIST)"
    return f"{name}, {image_size}x{image_size}"
