"""A function of the coordinates with some of its derivatives, and the rules of differentiation for such streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which derivatives are carried.

    Attributes:
        axes: the coordinates of the first derivatives.
        seconds: for each second-order stream the derivatives `D_i D_j` whose sum it is, as pairs of places in `axes`:
            one pair for a second derivative, all pairs `(i, i)` for the Laplacian.
    """

    axes: tuple[int, ...]
    seconds: tuple[tuple[tuple[int, int], ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Streams:
    """A function of the coordinates on a batch: its value, first derivatives and second-order streams.

    Attributes:
        wanted: which derivatives.
        value: `[N, C]`.
        first: for each axis `D_i` `[N, C]`, or `None` for zero whatever the batch.
        second: for each second-order stream `[N, C]`, or `None` for zero.
    """

    wanted: Wanted
    value: tf.Tensor
    first: tuple[tf.Tensor | None, ...]
    second: tuple[tf.Tensor | None, ...]

    @classmethod
    def of_coordinates(cls, x: tf.Tensor, wanted: Wanted) -> Streams:
        """The coordinates `[N, d]` themselves: their derivatives are unit vectors, and then zero."""
        units = tf.eye(x.shape[-1], dtype=x.dtype)
        first = tuple(tf.broadcast_to(units[axis], tf.shape(x)) for axis in wanted.axes)
        return cls(wanted, x, tuple(tf.ensure_shape(f, x.shape) for f in first), (None,) * len(wanted.seconds))

    @property
    def present(self) -> list[tf.Tensor]:
        """The streams that are not zero by structure, the value first."""
        return [self.value, *(s for s in (*self.first, *self.second) if s is not None)]

    def with_present(self, streams: Sequence[tf.Tensor]) -> Streams:
        """The same structure with other tensors in place of those that are `present`."""
        value, *rest = streams
        given = iter(rest)
        first = tuple(None if s is None else next(given) for s in self.first)
        return Streams(self.wanted, value, first, tuple(None if s is None else next(given) for s in self.second))

    def mapped(self, function: Callable[[tf.Tensor], tf.Tensor]) -> Streams:
        """A linear function of each stream."""
        return self.with_present([function(s) for s in self.present])

    def cast(self, dtype: str | tf.DType) -> Streams:
        """The same streams in another precision."""
        return self.mapped(lambda s: tf.cast(s, dtype))

    def with_value(self, value: tf.Tensor) -> Streams:
        """The same derivatives with another value."""
        return dataclasses.replace(self, value=value)

    def composed(self, values: tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]) -> Streams:
        """The streams of `s(f)` for a function s of each entry.

        `D_i s(f) = s' D_i f`, and `D_i D_j s(f) = s'' D_i f D_j f + s' D_i D_j f`.

        Args:
            values: `s`, `s'` and `s''` at the value of `f`; `None` for a derivative that is zero.

        Returns:
            Streams.
        """
        value, slope, bend = values
        first = tuple(_times(slope, f) for f in self.first)
        second = []
        for stream, pairs in zip(self.second, self.wanted.seconds, strict=True):
            squares = _sum([_times(self.first[i], self.first[j]) for i, j in pairs])
            second.append(_sum([_times(bend, squares), _times(slope, stream)]))
        return Streams(self.wanted, value, first, tuple(second))

    def plus(self, other: Streams, sign: int = 1) -> Streams:
        """The sum, or with -1 the difference."""

        def add(f: tf.Tensor | None, g: tf.Tensor | None) -> tf.Tensor | None:
            return _sum([f, g if g is None or sign == 1 else -g])

        return self._by_order(other, add)

    def times(self, other: Streams) -> Streams:
        """The product by entry: `D_i(fg) = f D_i g + g D_i f`, and the second derivatives of a product."""
        f, g = self, other
        first = tuple(_sum([_times(f.value, dg), _times(g.value, df)]) for df, dg in zip(f.first, g.first, strict=True))
        second = []
        for sf, sg, pairs in zip(f.second, g.second, self.wanted.seconds, strict=True):
            mixed = [_times(f.first[i], g.first[j]) for i, j in pairs] + [
                _times(f.first[j], g.first[i]) for i, j in pairs
            ]
            second.append(_sum([_times(f.value, sg), *mixed, _times(g.value, sf)]))
        return Streams(self.wanted, f.value * g.value, first, tuple(second))

    def _by_order(self, other: Streams, function: Callable) -> Streams:
        first = tuple(function(f, g) for f, g in zip(self.first, other.first, strict=True))
        second = tuple(function(f, g) for f, g in zip(self.second, other.second, strict=True))
        return Streams(self.wanted, function(self.value, other.value), first, second)

    def filled(self, stream: tf.Tensor | None) -> tf.Tensor:
        """A stream of these, as a tensor where it is zero by structure."""
        return tf.zeros_like(self.value) if stream is None else stream


def joined(parts: Sequence[Streams]) -> Streams:
    """The streams of functions side by side.

    Args:
        parts: streams `[N, C_k]`.

    Returns:
        Streams `[N, sum of C_k]`.
    """

    def join(streams: Sequence[tf.Tensor | None]) -> tf.Tensor | None:
        if all(s is None for s in streams):
            return None
        return tf.concat([part.filled(s) for part, s in zip(parts, streams, strict=True)], -1)

    first = tuple(join(streams) for streams in zip(*(p.first for p in parts), strict=True))
    second = tuple(join(streams) for streams in zip(*(p.second for p in parts), strict=True))
    return Streams(parts[0].wanted, join([p.value for p in parts]), first, second)


def _times(a: tf.Tensor | None, b: tf.Tensor | None) -> tf.Tensor | None:
    return None if a is None or b is None else a * b


def _sum(terms: Sequence[tf.Tensor | None]) -> tf.Tensor | None:
    present = [t for t in terms if t is not None]
    return sum(present[1:], present[0]) if present else None


__all__ = ["Streams", "Wanted", "joined"]
