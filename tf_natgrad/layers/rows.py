"""Which examples of the batch a layer sees: a part of a model may be called on some of them only."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from tf_natgrad import _checks

# A number, or a scalar tensor where it is not known while a graph is traced.
Count = int | tf.Tensor


class Rows(NamedTuple):
    """Consecutive examples of a batch.

    Attributes:
        start, stop: the first of them, and the one behind the last.
        total: the number of examples in the batch.
    """

    start: Count
    stop: Count
    total: Count

    @property
    def is_static(self) -> bool:
        """Whether the numbers are known."""
        return all(isinstance(number, int) for number in self)

    @property
    def count(self) -> int | None:
        """How many examples these are, `None` where that is not known."""
        return self.stop - self.start if self.is_static else None

    def indicator(self, dtype: tf.DType) -> tf.Tensor:
        """One for these examples, zero for the others, `[total]`."""
        number = tf.range(self.total)
        return tf.cast((number >= self.start) & (number < self.stop), dtype)

    def padded(self, tensor: tf.Tensor, axis: int) -> tf.Tensor:
        """Adds zeros for the other examples.

        Args:
            tensor: with `stop - start` examples along the axis.
            axis: which one has the examples.

        Returns:
            A tensor with `total` examples along the axis.
        """
        paddings = [[0, 0]] * tensor.shape.rank
        paddings[axis] = [self.start, self.total - self.stop]
        return tf.pad(tensor, paddings)

    def repeated(self, tensor: tf.Tensor) -> tf.Tensor:
        """Adds the first and the last example again in place of the others: any layer is defined there.

        Args:
            tensor: `[stop - start, ...]`.

        Returns:
            `[total, ...]`.
        """
        number = tf.clip_by_value(tf.range(self.total), self.start, self.stop - 1)
        return tf.gather(tensor, number - self.start)


_CURRENT: contextvars.ContextVar[Rows | None] = contextvars.ContextVar("tf_natgrad_rows", default=None)


@contextlib.contextmanager
def rows(start: Count, stop: Count, total: Count) -> Iterator[None]:
    """Says which examples of the batch the layers see that are called within this context.

    `capture` keeps it with the calls that it records. Elsewhere it does nothing.

    >>> import keras, tensorflow as tf
    >>> from tf_natgrad.layers import capture
    >>> layer = keras.layers.Dense(1)
    >>> with capture(layer) as record, rows(2, 5, 8):
    ...     _ = layer(tf.ones([3, 4]))
    >>> record.calls[0].rows.start, record.calls[0].inputs.shape
    (2, TensorShape([8, 4]))

    Args:
        start: the number of the first example.
        stop: that behind the last.
        total: the number of examples in the batch.

    Yields:
        Nothing.

    Raises:
        ValueError: within another such context, or if the numbers do not fit.
    """
    given = Rows(start, stop, total)
    if given.is_static and not 0 <= start < stop <= total:
        raise ValueError(_checks.message("rows", f"{start} to {stop} of {total}", "0 <= start < stop <= total"))
    if _CURRENT.get() is not None:
        raise ValueError(_checks.message("rows", "a context within another one", "one at a time"))
    token = _CURRENT.set(given)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_rows() -> Rows | None:
    """Returns what `rows` says here, or `None` for all examples."""
    return _CURRENT.get()


__all__ = ["Count", "Rows", "current_rows", "rows"]
