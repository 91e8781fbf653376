"""The replicas of a `tf.distribute` strategy: all sums and exchanges between them, in this one room.

Outside of a replica of several every function here returns what it was given and adds no operation. TensorFlow refuses
an exchange inside `tf.cond` and `tf.while_loop`, so none of these functions may be called there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import tensorflow as tf

T = TypeVar("T")
# A strategy may trace its replicas in threads of their own.
_own = threading.local()


class Place(NamedTuple):
    """Where the examples of this replica are among those of the global batch.

    Attributes:
        start: the number of examples on replicas before this one, a scalar integer tensor.
        own: the number on this one.
        total: the number on all of them.
    """

    start: tf.Tensor
    own: tf.Tensor
    total: tf.Tensor

    def share(self, tensor: tf.Tensor, axis: int = 0) -> tf.Tensor:
        """Returns the examples of this replica, out of those of the global batch.

        Args:
            tensor: with `total` examples along the axis.
            axis: which one has the examples.

        Returns:
            A tensor with `own` examples along the axis.
        """
        return tf.gather(tensor, self.start + tf.range(self.own), axis=axis)

    def padded(self, tensor: tf.Tensor) -> tf.Tensor:
        """Adds zeros in place of the examples of the other replicas.

        Args:
            tensor: `[own, ...]`.

        Returns:
            `[total, ...]`.
        """
        around = [[self.start, self.total - self.start - self.own]]
        padded = tf.pad(tensor, around + [[0, 0]] * (tensor.shape.rank - 1))
        return tf.ensure_shape(padded, [None, *tensor.shape[1:]])


@contextlib.contextmanager
def each_for_itself() -> Iterator[None]:
    """Within, a replica knows of no others: what it computes is of its own examples alone."""
    before, _own.is_alone = is_alone(), True
    try:
        yield
    finally:
        _own.is_alone = before


def is_alone() -> bool:
    """Whether this code runs within `each_for_itself`."""
    return getattr(_own, "is_alone", False)


def count() -> int:
    """Returns the number of replicas that take part in this step; 1 outside of a replica."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None or is_alone() else context.num_replicas_in_sync


def several() -> bool:
    """Whether this code runs in one replica of several."""
    return count() > 1


def place(batch: tf.Tensor) -> Place | None:
    """Finds where the examples of this replica are among all; `None` where there is one replica.

    Args:
        batch: `[N, ...]`, something of each of them.

    Returns:
        A `Place`.
    """
    if not several():
        return None
    own = tf.shape(batch)[0]
    # Integers of 32 bits are on the host, where devices do not exchange.
    sizes = tf.cast(gathered(tf.cast(own, tf.int64)[None]), tf.int32)
    return Place(tf.reduce_sum(sizes[: number()]), own, tf.reduce_sum(sizes))


def total(value: T) -> T:
    """Computes the sum over all replicas, with one exchange for each dtype.

    Args:
        value: a floating or 64-bit integer tensor, or a structure of such, of the same shapes on all replicas.

    Returns:
        The same on all replicas, bit for bit.
    """
    if not several():
        return value
    given = tf.nest.flatten(value)
    flat = [_travelling(tensor) for tensor in given]
    found = list(flat)
    # In one order on all workers.
    for dtype in dict.fromkeys(tensor.dtype for tensor in flat):
        places = [k for k, tensor in enumerate(flat) if tensor.dtype == dtype]
        sums = tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.SUM, [tf.identity(flat[k]) for k in places]
        )
        for k, summed in zip(places, sums, strict=True):
            found[k] = tf.cast(tf.ensure_shape(summed, flat[k].shape), given[k].dtype)
    return tf.nest.pack_sequence_as(value, found)


def gathered(tensor: tf.Tensor, axis: int = 0) -> tf.Tensor:
    """Collects the examples of all replicas, in the order of the replicas.

    Args:
        tensor: of which each replica may have another number of examples, or none.
        axis: which one has the examples.

    Returns:
        The same on all replicas.
    """
    if not several():
        return tensor
    shape = tensor.shape.as_list()
    shape[axis] = None
    # A tensor that comes straight out of a data set is not accepted by several workers.
    found = tf.distribute.get_replica_context().all_gather(tf.identity(_travelling(tensor)), axis=axis)
    return tf.cast(tf.ensure_shape(found, shape), tensor.dtype)


def _travelling(tensor: tf.Tensor) -> tf.Tensor:
    """What is exchanged of a tensor: TensorFlow takes no bfloat16."""
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor


def of_first(value: T) -> T:
    """Returns what the first replica has, on all of them: rounding that differs between devices ends here.

    Args:
        value: a floating tensor, or a structure of such.

    Returns:
        The same on all replicas, bit for bit.
    """
    if not several():
        return value
    first = tf.equal(number(), 0)
    return total(tf.nest.map_structure(lambda t: tf.where(first, t, tf.zeros_like(t)), value))


def hold(conditions: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Computes which conditions hold on all replicas, by one exchange.

    Args:
        conditions: scalar booleans, as many on each replica.

    Returns:
        Scalar booleans.
    """
    if not several() or not conditions:
        return list(conditions)
    failed = total(tf.cast(~tf.stack([tf.convert_to_tensor(c) for c in conditions]), tf.float32))
    return [tf.equal(one, 0) for one in tf.unstack(failed)]


def cond(
    predicate: tf.Tensor | bool, true: Callable[[], T], false: Callable[[], T], by: Callable[..., T] = tf.cond
) -> T:
    """Chooses between two functions that may exchange, unless the choice is known or there are several replicas.

    Args:
        predicate: a scalar boolean, the same on all replicas.
        true: what is computed where it holds.
        false: the same structure otherwise.
        by: what chooses on one replica, in the manner of `tf.cond`.

    Returns:
        What one of them returned; on several replicas both are computed.
    """
    if isinstance(predicate, bool):
        return true() if predicate else false()
    if not several():
        return by(predicate, true, false)
    return tf.nest.map_structure(lambda a, b: tf.where(predicate, a, b), true(), false())


def number() -> tf.Tensor:
    """Returns the number of this replica, from 0."""
    return tf.convert_to_tensor(tf.distribute.get_replica_context().replica_id_in_sync_group)


__all__ = [
    "Place",
    "cond",
    "count",
    "each_for_itself",
    "gathered",
    "hold",
    "is_alone",
    "number",
    "of_first",
    "place",
    "several",
    "total",
]
