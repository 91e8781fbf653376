"""What this machine does in a second, measured once per process."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_natgrad.layers.work import Work

# Sizes of what is measured: large enough to be steady, small enough to take no notable time.
_SIZE, _NUMBERS, _NODES, _ROUNDS = 384, 1 << 20, 100, 4


class Machine(NamedTuple):
    """The rates of a machine in one precision.

    Attributes:
        product: floating-point operations a second in a product of matrices.
        cholesky: the same in a Cholesky decomposition.
        memory: bytes a second that an operation on each entry writes.
        node: seconds that the smallest node of a graph takes.
    """

    product: float
    cholesky: float
    memory: float
    node: float

    def seconds(self, work: Work) -> float:
        """Returns how long some work takes."""
        return work.flops / self.product + work.bytes / self.memory + work.nodes * self.node


@functools.cache
def measured(dtype: str) -> Machine:
    """Measures the rates of this machine, where TensorFlow places the operations.

    Args:
        dtype: the name of a floating-point type.

    Returns:
        A `Machine`; the same object at each call within a process.
    """
    with tf.init_scope():
        square = tf.random.stateless_normal([_SIZE, _SIZE], [1, 2], dtype=dtype)
        definite = tf.linalg.matmul(square, square, transpose_b=True) + _SIZE * tf.eye(_SIZE, dtype=dtype)
        many = tf.random.stateless_normal([_NUMBERS], [3, 4], dtype=dtype)

        def chain(x: tf.Tensor) -> tf.Tensor:
            for _ in range(_NODES):
                # Of another operand each time, or the optimizer of graphs would fold them.
                x = tf.maximum(x, tf.random.stateless_uniform([], [1, 2], dtype=x.dtype))
            return x

        seconds = [
            _seconds_of(lambda: tf.linalg.matmul(square, square)),
            _seconds_of(lambda: tf.linalg.cholesky(definite)),
            _seconds_of(lambda: many + many),
            _seconds_of(tf.function(functools.partial(chain, square[0, 0]), autograph=False)),
        ]
    flops = [2 * _SIZE**3, _SIZE**3 / 3, _NUMBERS * tf.as_dtype(dtype).size]
    rates = [count / duration for count, duration in zip(flops, seconds, strict=False)]
    return Machine(*rates, seconds[-1] / (2 * _NODES))


def _seconds_of(function: Callable[[], tf.Tensor]) -> float:
    """The least of a few durations, after a first one."""
    durations = []
    for _ in range(1 + _ROUNDS):
        start = time.perf_counter()
        # A device may go on after it has returned; it has not when the numbers are here.
        tf.reshape(function(), [-1])[0].numpy()
        durations.append(time.perf_counter() - start)
    return min(durations[1:])


__all__ = ["Machine", "measured"]
