"""The episodes that a policy Hessian is a sum over: all at once, in chunks, or with values that change."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_natgrad.operators import ScoreFunctionHessian
from tf_natgrad.operators.sources import Source
from tf_natgrad.rl.policies import Policy

Part = ScoreFunctionHessian
# Of a part and the operands.
OfPart = Callable[..., tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A policy and the steps of episodes drawn with it, as tensors or variables.

    Attributes:
        policy: the policy.
        estimator: the name of the estimator.
        observations: `[M, ...]`.
        actions: `[M]` or `[M, D]`.
        weights: `w_t`, `[M]`.
        ids: the episode of each step, ascending from 0, `[M]`.
        shares: the weights of the episodes, `[N]`.
    """

    policy: Policy
    estimator: str
    observations: Any
    actions: Any
    weights: Any
    ids: Any
    shares: Any

    @property
    def values(self) -> list[Any]:
        """The tensors or variables."""
        return [self.observations, self.actions, self.weights, self.ids, self.shares]

    def hessian(self, *values: Any) -> Part:
        """The operator of these steps, or of others of the same policy, after a forward pass; also inside a trace."""
        observations, actions, weights, ids, shares = map(tf.convert_to_tensor, values or self.values)
        return ScoreFunctionHessian(
            lambda: self.policy.log_prob(observations, actions),
            self.policy.trainable_variables,
            weights,
            ids,
            episode_weights=shares,
            estimator=self.estimator,
            model=self.policy,
        )

    def piece(self, steps: slice, episodes: slice) -> list[tf.Tensor]:
        """The values of some whole episodes."""
        *by_step, ids = (t[steps] for t in self.values[:4])
        return [*by_step, ids - ids[0], self.shares[episodes]]


class EpisodeSource(Source):
    """The episodes of a policy Hessian."""

    @abc.abstractmethod
    def concatenated(self, name: str, function: OfPart, *operands: tf.Tensor) -> tf.Tensor:
        """What `function(part, *operands)` gives for each episode of a part, of all parts: `[N, ...]`."""


class AllEpisodes(EpisodeSource):
    """All episodes after one forward pass: a sum over them is a call."""

    def __init__(self, drawn: Drawn):
        self._part = drawn.hessian()

    def part(self) -> Part:
        """Returns the operator of all episodes."""
        return self._part

    def sum(self, name, function, like, *operands, record_calls=False):
        del like, record_calls
        return self.concatenated(name, function, *operands)

    def concatenated(self, name, function, *operands):
        del name
        return function(self.part(), *operands)

    def map_rows(self, function, rows):
        return self._part.map_rows(function, rows)


class ChangingEpisodes(AllEpisodes):
    """All episodes, of which some values are variables: the policy is called for each sum."""

    def __init__(self, drawn: Drawn):
        self._drawn = drawn

    def part(self) -> Part:
        """Returns the operator of all episodes at the present values."""
        return self._drawn.hessian()

    def map_rows(self, function, rows):
        return tf.vectorized_map(function, rows)


class EpisodeChunks(EpisodeSource):
    """Whole episodes in chunks, one after the other: the policy is called on each chunk for each sum.

    Args:
        drawn: the steps of all episodes.
        first: the first step of each episode, `[N]`.
        lengths: the number of steps of each episode, `[N]`.
        size: the approximate number of steps in a chunk.
    """

    def __init__(self, drawn: Drawn, first: np.ndarray, lengths: np.ndarray, size: int):
        self._drawn = drawn
        self._chunks = _chunks(first, lengths, size)
        self._functions: dict[Any, Any] = {}

    def sum(self, name, function, like, *operands, record_calls=False):
        del like, record_calls
        return tf.add_n(self._of_chunks(name, function, operands))

    def concatenated(self, name, function, *operands):
        return tf.concat(self._of_chunks(name, function, operands), 0)

    def _of_chunks(self, name: str, function: OfPart, operands: tuple[tf.Tensor, ...]) -> list[tf.Tensor]:
        values = self._drawn.values
        key = (name, *(tuple(t.shape) for t in operands))
        if key not in self._functions:
            # One graph for chunks of all sizes.
            specs = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in values]
            specs += [tf.TensorSpec(t.shape, t.dtype) for t in operands]
            self._functions[key] = tf.function(
                lambda *args: function(self._drawn.hessian(*args[: len(values)]), *args[len(values) :]),
                input_signature=specs,
                autograph=False,
            )
        return [self._functions[key](*self._drawn.piece(*chunk), *operands) for chunk in self._chunks]


def _chunks(first: np.ndarray, lengths: np.ndarray, size: int) -> list[tuple[slice, slice]]:
    """The steps and the episodes of each chunk of about `size` steps."""
    ends = first + lengths
    found, episode = [], 0
    while episode < len(first):
        start = first[episode]
        end = max(episode + 1, int(np.searchsorted(ends, start + size, side="right")))
        found.append((slice(int(start), int(ends[end - 1])), slice(episode, end)))
        episode = end
    return found


__all__ = ["AllEpisodes", "ChangingEpisodes", "Drawn", "EpisodeChunks", "EpisodeSource"]
