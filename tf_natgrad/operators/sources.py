"""The sources of examples: one batch, whole or over replicas or in micro-batches, or a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._conditions import Condition, note, require
from tf_natgrad._progress import progress_bar
from tf_natgrad.operators._inputs import input_conditions, unpack
from tf_natgrad.operators._source import Examples, InParts, OneBatch, Replicated, Source


class DataSet(InParts):
    """The batches of a `tf.data.Dataset`, each weighted by its share in the whole.

    A mean over the data set is a mean over the positions (or the sample weights) of all batches, whatever the sizes of
    the batches. The data set is read twice on construction, to count the batches and to check that it gives the same
    batches each time; otherwise each product would belong to another matrix.

    Args:
        dataset: batches `x`, `(x, y)` or `(x, y, sample_weight)`.
        reduction: Keras's name of how losses are summed up.
        progress: whether passes in eager mode show a progress bar.

    Raises:
        ValueError: if it is empty, infinite, or gives other batches when it is read again.
    """

    def __init__(self, dataset: tf.data.Dataset, reduction: str, progress: bool = False):
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                _checks.message("data", "an infinite data set", "a finite one", "Remove `repeat()`, or use `take`.")
            )
        super().__init__()
        self._dataset = dataset
        self._progress = progress
        first, second = ([fingerprint(batch) for batch in dataset] for _ in range(2))
        check_same(first, second)
        self.batches = len(first)
        self._reduction = reduction

    @property
    def is_step_by_step(self) -> bool:
        return self._progress

    def first(self) -> Any:
        """The first batch."""
        return next(iter(self._dataset))

    def _sum(self, name: str, function: Callable, initial: tf.Tensor, operands: Sequence[tf.Tensor]) -> tf.Tensor:
        def term(x, y, sample_weight, index, *operands):
            value, positions = function(x, y, sample_weight, index, *operands)
            count = count_of(positions, sample_weight, self._reduction)
            return tf.cast(count, value.dtype) * value, count

        count = tf.zeros([], tf.float64)
        if tf.executing_eagerly():
            term = self._compiled(("batch", name), term)
            total, seen = initial, 0
            bar = progress_bar(self._dataset, total=self.batches, disable=not self._progress, leave=False)
            for seen, batch in enumerate(bar, 1):
                value, more = term(*unpack(batch), tf.constant(seen - 1), *operands)
                total, count = total + value, count + more
        else:
            iterator = iter(self._dataset)

            def body(optional, total, count, seen):
                value, more = term(*unpack(optional.get_value()), seen, *operands)
                total = tf.ensure_shape(total + value, initial.shape)
                return iterator.get_next_as_optional(), total, count + more, seen + 1

            _, total, count, seen = tf.while_loop(
                lambda optional, *_: optional.has_value(),
                body,
                (iterator.get_next_as_optional(), initial, count, tf.constant(0)),
                parallel_iterations=1,
            )
        require(
            tf.convert_to_tensor(tf.equal(seen, self.batches)),
            _checks.message("data", "another number of batches than at first", f"{self.batches} batches each time"),
        )
        return total if self._reduction == "sum" else tf.math.divide_no_nan(total, tf.cast(count, total.dtype))


class MicroBatches(InParts):
    """One batch in micro-batches, for a batch whose forward pass does not fit in memory.

    Args:
        x: the inputs.
        y: the labels, or `None`.
        sample_weight: the sample weights, or `None`.
        size: the number of examples in a micro-batch; the last one may have fewer.
        reduction: Keras's name of how losses are summed up.
        conditions: a list to which the conditions on the inputs are added; by default they are judged at once.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        size: int,
        reduction: str,
        conditions: list[Condition] | None = None,
    ):
        super().__init__()
        note(input_conditions(x), conditions)
        self._data = (x, y, None if sample_weight is None else tf.convert_to_tensor(sample_weight))
        sizes = {t.shape[0] for t in tf.nest.flatten(self._data) if t is not None} - {None}
        if len(sizes) > 1:
            came = f"a batch with {', '.join(map(str, sorted(sizes)))} rows"
            raise ValueError(
                _checks.message(
                    "micro_batch_size", came, "inputs, labels and weights of the same examples", "Leave it out."
                )
            )
        self._size = size
        self._reduction = reduction

    def _sum(self, name: str, function: Callable, initial: tf.Tensor, operands: Sequence[tf.Tensor]) -> tf.Tensor:
        x, _, sample_weight = self._data
        by_weight = self._reduction == "mean_with_sample_weight" and sample_weight is not None
        first = tf.nest.flatten(x)[0]
        examples = first.shape[0]
        total = tf.reduce_sum(tf.cast(sample_weight, initial.dtype)) if by_weight else tf.shape(first)[0]

        def term(x, y, sample_weight, index, total, *operands):
            share = _share(x, sample_weight, self._reduction, total, initial.dtype)
            value, _ = function(x, y, sample_weight, index, *operands)
            return share * value

        term = self._compiled(("batch", name), term) if tf.executing_eagerly() else term

        def piece(start: tf.Tensor, size: int | tf.Tensor, index: tf.Tensor) -> tf.Tensor:
            def cut(tensor: tf.Tensor) -> tf.Tensor:
                part = tf.slice(
                    tensor,
                    tf.concat([[start], tf.zeros([tf.rank(tensor) - 1], tf.int32)], 0),
                    tf.concat([[size], tf.shape(tensor)[1:]], 0),
                )
                return tf.ensure_shape(part, [size if isinstance(size, int) else None, *tensor.shape[1:]])

            data = [None if part is None else tf.nest.map_structure(cut, part) for part in self._data]
            return term(*data, index, total, *operands)

        if examples is None:
            # TensorFlow does not know the number of micro-batches: the last one is cut to the examples that are left.
            count = tf.shape(first)[0]
            pieces, rest = -(-count // self._size), 0
        else:
            count = examples
            pieces, rest = divmod(examples, self._size)

        def body(index: tf.Tensor, so_far: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            start = index * self._size
            size = self._size if examples is not None else tf.minimum(self._size, count - start)
            return index + 1, tf.ensure_shape(so_far + piece(start, size, index), initial.shape)

        result = initial
        if examples is None or pieces:
            _, result = tf.while_loop(
                lambda index, _: index < pieces, body, (tf.constant(0), initial), parallel_iterations=1
            )
        if rest:
            result += piece(tf.constant(pieces * self._size), rest, tf.constant(pieces))
        return result


def fingerprint(batch: Any) -> tuple[int, tuple]:
    """Numbers by which a batch that has changed is told.

    Args:
        batch: `x`, `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        The number of examples, and one number of each part.
    """
    x, y, sample_weight = unpack(batch)
    examples = tf.nest.flatten(x)[0].shape[0]
    content = tuple(
        float(np.sum(np.asarray(t, np.float64) * np.cos(np.arange(np.size(t))).reshape(np.shape(t))))
        for t in tf.nest.flatten((x, y, sample_weight))
        if t is not None and np.asarray(t).dtype.kind in "fiub"
    )
    return examples, content


def check_same(first: list, second: list) -> None:
    """Refuses a data set that is empty, or of which two passes differ.

    Args:
        first: the fingerprints of the first pass.
        second: of the second one.

    Raises:
        ValueError: see above.
    """
    if not first:
        raise ValueError(_checks.message("data", "an empty data set", "at least one batch"))
    # As text: NaN, which is refused elsewhere, is not equal to itself.
    if repr(first) != repr(second):
        raise ValueError(
            _checks.message(
                "data",
                "a data set that gives other batches when it is read again",
                "the same batches each time",
                "Use `shuffle(..., reshuffle_each_iteration=False)`, and random augmentation before `cache()`.",
            )
        )


def count_of(positions: tf.Tensor, sample_weight: Any, reduction: str) -> tf.Tensor:
    """What a batch's mean loss was divided by.

    Args:
        positions: their number.
        sample_weight: the sample weights, or `None`.
        reduction: Keras's name of how losses are summed up.

    Returns:
        A scalar.
    """
    if reduction == "sum":
        return tf.ones([], tf.float64)
    if reduction == "mean_with_sample_weight" and sample_weight is not None:
        return tf.reduce_sum(tf.cast(sample_weight, tf.float64))
    return tf.cast(positions, tf.float64)


def _share(x: Any, sample_weight: Any, reduction: str, total: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The weight of a micro-batch's mean loss in that of its batch; `total` is the denominator of the batch's mean."""
    if reduction == "sum":
        return tf.ones([], dtype)
    # All examples of one batch have the same number of positions.
    examples = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], dtype)
    if reduction == "mean_with_sample_weight" and sample_weight is not None:
        examples = tf.reduce_sum(tf.cast(sample_weight, dtype))
    return tf.math.divide_no_nan(examples, tf.cast(total, dtype))


__all__ = [
    "DataSet",
    "Examples",
    "InParts",
    "MicroBatches",
    "OneBatch",
    "Replicated",
    "Source",
    "check_same",
    "count_of",
    "fingerprint",
]
