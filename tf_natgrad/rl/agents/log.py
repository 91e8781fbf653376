"""What an agent records of each update: a row in its log, a CSV file, TensorBoard's event files, a progress bar."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._files import CsvFile
from tf_natgrad._progress import progress_bar


class Record(NamedTuple):
    """One update of an agent.

    Attributes:
        steps: environment steps of the agent's life, after the update.
        updates: updates of the agent's life, this one included.
        episodes: episodes that ended in the rollout.
        mean_return: their mean return, undiscounted and unscaled; NaN where none ended.
        kl_predicted: `1/2 d^T F d` of the step taken, in nats; 0 where it was rejected.
        kl: measured `KL(old || new)` of the step taken, in nats; 0 where it was rejected.
        surrogate_predicted: first-order improvement of the surrogate; 0 where the step was rejected.
        surrogate: its measured improvement; 0 where the step was rejected.
        cg_iterations: of conjugate gradients.
        cg_residual: relative to the gradient.
        line_search_steps: the number of times the step was shortened.
        accepted: whether the policy moved.
        explained_variance: `1 - var(targets - V) / var(targets)`, before the value function was fitted.
        value_loss: its mean squared error afterwards.
        entropy: of the policy before the step, in nats.
        steps_per_second: of the whole update.
    """

    steps: int
    updates: int
    episodes: int
    mean_return: float
    kl_predicted: float
    kl: float
    surrogate_predicted: float
    surrogate: float
    cg_iterations: int
    cg_residual: float
    line_search_steps: int
    accepted: bool
    explained_variance: float
    value_loss: float
    entropy: float
    steps_per_second: float


class CsvLog:
    """Writes a CSV file with a line for each update of the agent's life.

    After a resumption it is the file of an uninterrupted run. If a line cannot be written, training goes on, a warning
    is logged once, and the next update tries to write the whole file anew.

    Args:
        path: of the file; one that exists is replaced.
        rows: the records of the agent, to which each update adds its own.
    """

    def __init__(self, path: str | os.PathLike, rows: Sequence[dict[str, Any]]):
        self._file = CsvFile(path, Record._fields)
        self._rows = rows
        self._complete = False
        self._try(lambda: self._file.replace(rows))

    def write(self, record: Record) -> None:
        """Appends a line.

        Args:
            record: of the update, the last of the rows.
        """
        if self._complete:
            self._try(lambda: self._file.append(record._asdict()))
        else:
            self._try(lambda: self._file.replace(self._rows))

    def close(self) -> None:
        """Does nothing: the file is opened for each line."""

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
            self._complete = True
        except OSError as error:
            self._complete = False
            path = os.fspath(self._file.path)
            _checks.log_once(f"The log {path!r} could not be written ({error}); training goes on")


class TensorBoardLog:
    """Writes event files for TensorBoard, which need not be installed.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: str | os.PathLike):
        self._writer = tf.summary.create_file_writer(os.fspath(folder))

    def write(self, record: Record) -> None:
        """Writes one scalar for each field, at the number of steps.

        Args:
            record: of the update.
        """
        metadata = _keras.scalar_summary_metadata()
        with self._writer.as_default(step=record.steps):
            for name, value in record._asdict().items():
                if name != "steps" and math.isfinite(value):
                    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
        self._writer.flush()

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()


class ProgressBar:
    """Shows a bar over environment steps, with the return and the KL divergence of the last update.

    Args:
        total: of the agent's life, where the run ends.
        done: steps so far.
        shown: whether there is a bar.
    """

    def __init__(self, total: int, done: int, shown: bool):
        self._bar = progress_bar(total=total, initial=done, disable=not shown, unit="step", leave=False)
        self._done = done

    def write(self, record: Record) -> None:
        """Moves the bar.

        Args:
            record: of the update.
        """
        self._bar.set_postfix({"return": f"{record.mean_return:.4g}", "KL": f"{record.kl:.2g}"}, refresh=False)
        self._bar.update(record.steps - self._done)
        self._done = record.steps

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()


@contextlib.contextmanager
def logs(
    rows: Sequence[dict[str, Any]],
    *,
    total: int,
    done: int,
    progress: bool,
    log_path: str | os.PathLike | None,
    tensorboard: str | os.PathLike | None,
) -> Iterator[list[Any]]:
    """Opens everything that a run writes to, and closes it at the end.

    Args:
        rows: the records so far.
        total: steps at which the run ends.
        done: steps so far.
        progress: whether to show a bar.
        log_path: of a CSV file, or `None`.
        tensorboard: a folder for event files, or `None`.

    Yields:
        Objects with `write(record)`.
    """
    with contextlib.ExitStack() as stack:
        opened = [ProgressBar(total, done, progress)]
        if log_path is not None:
            opened.append(CsvLog(log_path, rows))
        if tensorboard is not None:
            opened.append(TensorBoardLog(tensorboard))
        for log in opened:
            stack.callback(log.close)
        yield opened


__all__ = ["CsvLog", "ProgressBar", "Record", "TensorBoardLog", "logs"]
