"""A record of training, one line per step."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._files import CsvFile
from tf_natgrad.training.models import natural_gradient_optimizer

_LOGGER = logging.getLogger("tf_natgrad")

_WHOLE = ("epoch", "step", "rank", "iterations", "rejected_steps", "skipped_steps")
_COLUMNS = (
    "epoch",
    "step",
    "loss",
    "learning_rate",
    "damping",
    "predicted_decrease",
    "actual_decrease",
    "reduction_ratio",
    "kl",
    "step_scale",
    "rank",
    "iterations",
    "rejected_steps",
    "skipped_steps",
    "seconds",
)


class StepLogger(keras.callbacks.Callback):
    """Writes one line per training step: to the logger `tf_natgrad` at level INFO, and to a CSV file.

    The columns are `epoch`, `step` (the optimizer's `iterations` after it, which a rejected step does not raise),
    `loss`, `learning_rate`, `damping`, `predicted_decrease`, `actual_decrease`, `reduction_ratio`, `kl`, `step_scale`,
    `rank` or `iterations` (of the solver), `rejected_steps`, `skipped_steps` and `seconds`: those that are in the log
    of the first step. It works with any optimizer. `loss` is the number that Keras shows, the mean over the epoch so
    far. With `steps_per_execution` there is one line per execution: `seconds` is the time of all its steps, the
    learning rate that of the first step, and the other numbers those of the last.

    Each line is one write. If the process is killed, the lines before remain, and `append=True` continues the file. If
    a line cannot be written, for example on a full disk, a warning is logged once, training continues, and later lines
    are written as soon as there is space.

    >>> import csv, pathlib, tempfile
    >>> import keras, numpy as np, tf_natgrad as ng
    >>> model = ng.NaturalGradientSequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> model.compile(ng.NaturalGradient(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "steps.csv")
    ...     logger = ng.callbacks.StepLogger(path)
    ...     _ = model.fit(np.eye(3), np.array([0, 1, 1]), epochs=2, verbose=0, callbacks=[logger])
    ...     with path.open() as file:
    ...         rows = list(csv.DictReader(file))
    >>> [row["step"] for row in rows]
    ['1', '2']
    >>> float(rows[1]["loss"]) < float(rows[0]["loss"])
    True

    Args:
        path: of the CSV file, or `None` for no file.
        every: the number of steps between two lines.
        append: whether to continue a file that exists, with its columns, after removing an unfinished last line.
            Otherwise the file is overwritten, unless this object has begun it.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if `every` is below 1; or, when training begins, if the file to go on with is not of this class.
    """

    def __init__(self, path: str | os.PathLike | None = None, every: int = 1, append: bool = False):
        super().__init__()
        _checks.check_number("every", every, minimum=1, integer=True)
        _checks.check_flag("append", append)
        if path is not None:
            _checks.check_path("path", path)
        self.path = None if path is None else os.fspath(path)
        self.every = every
        self.append = append
        self._file = None if path is None else CsvFile(self.path)
        self._writes = False
        self._warned = False
        self._epoch = 0
        self._since = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Prepares the file."""
        self._since = 0
        self._writes = False
        if self._file is None:
            return
        try:
            # A file that this object began is never overwritten by it.
            if self.append or self._file.columns is not None:
                self._check_header()
                self._file.resume()
            else:
                self._file.clear()
            self._writes = True
        except OSError as error:
            self._warn(error)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the time and the learning rate, which a schedule changes with the step."""
        self._batch = batch
        self._optimizer = natural_gradient_optimizer(self.model) or self.model.optimizer
        self._rate = float(tf.convert_to_tensor(self._optimizer.learning_rate).numpy())
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the line."""
        seconds = time.perf_counter() - self._start
        self._since += batch - self._batch + 1
        if self._since < self.every:
            return
        self._since = 0
        # The step's own numbers: what Keras is given are means over the epoch.
        own = getattr(self.model.train_function, "last_logs", {})
        values = (
            dict(logs or {})
            | own
            | {
                "epoch": self._epoch,
                "step": self._optimizer.iterations,
                "learning_rate": self._rate,
                "seconds": seconds,
            }
        )
        values = {name: (int if name in _WHOLE else float)(values[name]) for name in _COLUMNS if name in values}
        texts = (f"{name} {value}" if name in _WHOLE else f"{name} {value:.4g}" for name, value in values.items())
        _LOGGER.info("%s", ", ".join(texts))
        if self._writes:
            try:
                self._file.append(values)
            except OSError as error:
                self._warn(error)

    def _check_header(self) -> None:
        """Refuses a file of another kind."""
        header = self._file.header()
        if header is not None and not set(header.strip().split(",")) <= set(_COLUMNS):
            raise ValueError(
                _checks.message(
                    "path",
                    f"{self.path}, whose first line is {header[:80]!r}",
                    "a file that `StepLogger` wrote",
                    "Give another path, or `append=False` to overwrite it.",
                )
            )

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _LOGGER.warning("`StepLogger` could not record a step in %s, and training goes on: %s", self.path, error)


__all__ = ["StepLogger"]
