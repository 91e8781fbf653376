"""The inversions that are due, of all blocks; several replicas share them out."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_natgrad import _conditions, _replicas
from tf_natgrad.preconditioners._blocks import BlockState


def invert_all(
    states: Sequence[BlockState],
    averages: Sequence[list[tf.Tensor]],
    inverses: Sequence[list[tf.Tensor]],
    dampings: Sequence[tf.Tensor],
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Computes the inverses of all blocks, as graph code. Of several replicas each inverts some, and all get all.

    Args:
        states: of the blocks.
        averages: of each block.
        inverses: those before, which stay where the new ones are not finite.
        dampings: of each block.

    Returns:
        The tensors of all inverses, one block after the other; and how often a damping had to be raised tenfold.
    """
    found, raised = [], [tf.zeros([], tf.int64)]
    owners = shared_out([_work(before) for before in inverses], _replicas.count())
    for state, a, before, damping, owner in zip(states, averages, inverses, dampings, owners, strict=True):
        if not before:
            continue

        def inverted(state=state, a=a, before=before, damping=damping) -> list[tf.Tensor]:
            parts, tries = state.inverted(a, damping, before)
            return [*_conditions.chosen(_conditions.is_finite(*parts), parts, before), tf.cast(tries, tf.int64)]

        def left(before=before) -> list[tf.Tensor]:
            return [*map(tf.zeros_like, before), tf.zeros([], tf.int64)]

        if _replicas.several():
            *parts, tries = tf.cond(tf.equal(_replicas.number(), owner), inverted, left)
        else:
            *parts, tries = inverted()
        found += parts
        raised.append(tries)
    found, raised = _replicas.total((found, raised))
    return found, tf.cast(tf.reduce_max(tf.stack(raised)), tf.int32)


def shared_out(work: Sequence[float], count: int) -> list[int]:
    """Shares out pieces of work: the largest first, each to whom has least so far.

    >>> shared_out([1.0, 8.0, 4.0, 4.0], 2)
    [0, 0, 1, 1]

    Args:
        work: of each piece.
        count: of those who share it.

    Returns:
        For each piece who does it, from 0.
    """
    loads, owners = [0.0] * count, [0] * len(work)
    for piece in sorted(range(len(work)), key=lambda k: -work[k]):
        owners[piece] = loads.index(min(loads))
        loads[owners[piece]] += work[piece]
    return owners


def _work(inverses: list[tf.Tensor]) -> float:
    return float(sum(max(t.shape) ** 3 for t in inverses if t.shape.rank == 2))


__all__ = ["invert_all", "shared_out"]
