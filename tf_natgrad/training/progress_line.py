"""What Keras shows of a natural-gradient step while it trains: the loss, the metrics, and a few numbers more."""

from __future__ import annotations

from typing import Any

import keras

# Beside the loss and the metrics; the rejected steps only where there are some.
_SHOWN, _COUNTED = ("damping", "kl"), "rejected_steps"
# What else a step reports, which is all in `History` and in `callbacks.StepLogger`: by its mean, or that of the last.
_OF_MEAN = ("predicted_decrease", "actual_decrease", "reduction_ratio", "step_scale")
_OF_LAST = ("rank", "iterations", "skipped_steps")


class ProgressLine(keras.callbacks.ProgbarLogger):
    """Keras's progress line with the numbers of a natural-gradient step that one looks at."""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Shows a step."""
        super().on_train_batch_end(batch, _shown(logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Shows an epoch."""
        super().on_epoch_end(epoch, _shown(logs))


def _shown(logs: dict[str, Any] | None) -> dict[str, Any]:
    """The loss first, then metrics, then what is shown of the step."""
    logs = dict(logs or {})
    last = {name: logs.pop(name) for name in (*_SHOWN, _COUNTED) if name in logs}
    if not last.get(_COUNTED, 0):
        last.pop(_COUNTED, None)
    return {name: value for name, value in logs.items() if name not in (*_OF_MEAN, *_OF_LAST)} | last


class EpochMeans:
    """Running means of what steps report, over an epoch; counts and sizes are those of the last step."""

    def __init__(self):
        self.reset(0)

    def reset(self, skipped: int) -> None:
        """Begins an epoch.

        Args:
            skipped: how many steps were left out so far.
        """
        self._sums: dict[str, float] = {}
        self._steps, self._skipped = 0, skipped

    def after(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Takes in the report of a step.

        Args:
            logs: of the step, metrics included.

        Returns:
            The same with means in place of what is reported of the step.
        """
        before, self._skipped = self._skipped, int(logs.get("skipped_steps", self._skipped))
        if self._skipped > before:
            # A batch that is left out enters no mean.
            return {**logs, **{name: total / self._steps for name, total in self._sums.items()}}
        self._steps += 1
        names = [name for name in (*_SHOWN, *_OF_MEAN) if name in logs]
        for name in names:
            self._sums[name] = self._sums.get(name, 0.0) + float(logs[name])
        return {**logs, **{name: self._sums[name] / self._steps for name in names}}


__all__ = ["EpochMeans", "ProgressLine"]
