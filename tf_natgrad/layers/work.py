"""How much work something is: operations, bytes that move through memory, and nodes of a graph."""

from __future__ import annotations

from typing import Any, NamedTuple

# Products of matrices of a few numbers each take so many times as long as they would in large ones.
_SMALL = 64.0


class Work(NamedTuple):
    """An amount of work.

    Attributes:
        flops: floating-point operations in products of matrices and in convolutions.
        bytes: written by everything else.
        nodes: of a graph, each of which takes its time however small it is.
        held: bytes that are held at once.
    """

    flops: float = 0.0
    bytes: float = 0.0
    nodes: float = 0.0
    held: float = 0.0

    def plus(self, *others: Work) -> Work:
        """Returns what this and others are one after the other; of the bytes held the most counts."""
        every = (self, *others)
        return Work(
            sum(w.flops for w in every),
            sum(w.bytes for w in every),
            sum(w.nodes for w in every),
            max(w.held for w in every),
        )

    def times(self, count: float) -> Work:
        """Returns this so many times, one after the other."""
        return self._replace(flops=count * self.flops, bytes=count * self.bytes, nodes=count * self.nodes)


def product_of_rows(rows: float, columns: float, itemsize: int) -> Work:
    """Returns what `B B^T` is, of `B` `[rows, columns]`, the half of which is formed."""
    size = rows * rows
    return Work(1.4 * size * columns, 2 * itemsize * size, 6, itemsize * rows * columns)


def gradients_of_weights(size: int, rows: int, examples: int, positions: int, units: int, itemsize: int) -> Work:
    """Returns what per-example gradients of a layer's weights are, formed at once, and the products of all pairs.

    Args:
        size: the number of weights.
        rows: of the Gram matrix.
        examples: in the batch.
        positions: at which the weights act, for each example.
        units: of the layer's output.
        itemsize: bytes of a number.

    Returns:
        A `Work`.
    """
    numbers = rows * size
    formed = Work(2.0 * numbers * positions, 2.0 * itemsize * numbers, 30)
    inputs = Work(bytes=3.0 * itemsize * examples * positions * size / units)
    return formed.plus(inputs, product_of_rows(rows, size, itemsize))


def positions_of(call: Any) -> int:
    """Returns how many times a layer's call uses each weight for one example: the positions of its output."""
    return call.output.shape[1:-1].num_elements() or 1


def by_channels(products: float) -> Work:
    """Returns what so many products of numbers are, one small product of matrices for each channel, or few of them."""
    return Work(flops=_SMALL * 2.0 * products)


__all__ = ["Work", "by_channels", "gradients_of_weights", "positions_of", "product_of_rows"]
