"""A data set that a `tf.distribute` strategy shares out among its replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_natgrad import _checks, _conditions, _replicas
from tf_natgrad._progress import progress_bar
from tf_natgrad._typing import ModelLike
from tf_natgrad.operators._inputs import unpack
from tf_natgrad.operators.sources import InParts, check_same, count_of, fingerprint

_IN_A_GRAPH = "Compute products in eager code: TensorFlow allows no exchange between replicas in the loop of a graph."


class DistributedDataSet(InParts):
    """The batches of a distributed data set: each replica sums over its share of a batch, and the sums are added.

    The sum is that over all examples, each weighted by its share in the whole, as `DataSet` weights it.

    Args:
        dataset: what `strategy.experimental_distribute_dataset` gave, of `x`, `(x, y)` or `(x, y, sample_weight)`.
        model: made within the scope of the same strategy.
        reduction: Keras's name of how losses are summed up.
        progress: whether passes show a progress bar.

    Raises:
        ValueError: if the model was made outside of a strategy's scope, or the data set is empty or gives other batches
            when it is read again.
    """

    def __init__(
        self, dataset: tf.distribute.DistributedDataset, model: ModelLike, reduction: str, progress: bool = False
    ):
        super().__init__()
        # Layers have none.
        self._strategy = getattr(model, "distribute_strategy", tf.distribute.get_strategy())
        if not _has_scope(self._strategy):
            raise ValueError(
                _checks.message(
                    "data",
                    "a distributed data set for a model of no strategy",
                    "a model that was made within the `strategy.scope()` of the data",
                )
            )
        self._dataset, self._reduction, self._progress = dataset, reduction, progress
        self._steps: dict[str, Callable] = {}
        first, second = ([self._fingerprint(batch) for batch in dataset] for _ in range(2))
        check_same(first, second)
        self.batches = len(first)

    @property
    def is_step_by_step(self) -> bool:
        return True

    def first(self) -> Any:
        """What the first replica of this process has of the first batch."""
        return next(self._shares(next(iter(self._dataset))))

    def _shares(self, batch: Any) -> Iterator[Any]:
        """The shares of a batch that are on this machine."""
        flat = [self._strategy.experimental_local_results(part) for part in tf.nest.flatten(batch)]
        return (tf.nest.pack_sequence_as(batch, list(share)) for share in zip(*flat, strict=True))

    def _fingerprint(self, batch: Any) -> list[tuple]:
        return [fingerprint(share) for share in self._shares(batch)]

    def _sum(self, name: str, function: Callable, initial: tf.Tensor, operands: Sequence[tf.Tensor]) -> tf.Tensor:
        if not tf.executing_eagerly():
            raise ValueError(
                _checks.message("data", "a distributed data set, within a graph", "eager code", _IN_A_GRAPH)
            )
        if name not in self._steps:
            self._steps[name] = self._step(function)
        total, count = initial, tf.zeros([], tf.float64)
        bar = progress_bar(self._dataset, total=self.batches, disable=not self._progress, leave=False)
        for number, batch in enumerate(bar):
            with _conditions.as_value_error():
                value, more = self._steps[name](batch, tf.constant(number), initial, *operands)
            total, count = total + value, count + more
        return total if self._reduction == "sum" else tf.math.divide_no_nan(total, tf.cast(count, total.dtype))

    def _step(self, function: Callable) -> Callable:
        """The sum over one batch, as a graph of all replicas."""
        strategy, reduction = self._strategy, self._reduction

        def of_share(batch: Any, number: tf.Tensor, initial: tf.Tensor, *operands: tf.Tensor) -> tuple:
            nothing = tf.zeros_like(initial), tf.zeros([], tf.float64)
            replica = tf.cast(_replicas.number(), number.dtype)
            x, y, sample_weight = unpack(batch)

            def of_examples() -> tuple[tf.Tensor, tf.Tensor]:
                # As if the shares were batches, one after the other.
                index = number * strategy.num_replicas_in_sync + replica
                value, positions = function(x, y, sample_weight, index, *operands)
                count = count_of(positions, sample_weight, reduction)
                return tf.cast(count, value.dtype) * value, count

            examples = tf.nest.flatten(x)[0]
            with _replicas.each_for_itself():
                if examples.shape[0] is not None:
                    return of_examples() if examples.shape[0] else nothing
                return tf.cond(tf.shape(examples)[0] > 0, of_examples, lambda: nothing)

        @tf.function(autograph=False)
        def step(*given: Any) -> tuple[tf.Tensor, tf.Tensor]:
            found = strategy.run(of_share, args=given)
            return tuple(strategy.reduce(tf.distribute.ReduceOp.SUM, part, axis=None) for part in found)

        return step


def _has_scope(strategy: tf.distribute.Strategy) -> bool:
    """Whether this is a strategy that somebody made, and the one of the scope that this code is in, if any."""
    if tf.distribute.has_strategy():
        return tf.distribute.get_strategy() is strategy
    with strategy.scope():
        return tf.distribute.has_strategy()


__all__ = ["DistributedDataSet"]
