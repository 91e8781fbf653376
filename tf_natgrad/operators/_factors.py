"""The middle of `J^T L J`: the output-space matrix `L` as a factor `S S^T`, exact or from labels."""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from tf_natgrad.distributions import Distribution


class OutputFactor(Protocol):
    """`L = S S^T` for each position of a batch: products with `L`, `S`, `S^T`, and the columns of `S`."""

    rank: int

    def matvec(self, vector: tf.Tensor) -> tf.Tensor:
        """`L v`: `[..., C] -> [..., C]`."""

    def apply(self, vector: tf.Tensor) -> tf.Tensor:
        """`S v`: `[..., R] -> [..., C]`."""

    def apply_transpose(self, vector: tf.Tensor) -> tf.Tensor:
        """`S^T v`: `[..., C] -> [..., R]`."""

    def columns(self) -> tf.Tensor:
        """The columns of `S`, `[R, ..., C]`."""


class ExactFactor:
    """`L` is the Fisher of the distribution: the expectation over its own labels, in closed form.

    Args:
        pd: the distribution at the network's outputs.
    """

    def __init__(self, pd: Distribution):
        self._pd = pd
        self.rank = pd.fisher_rank

    def matvec(self, vector: tf.Tensor) -> tf.Tensor:
        return self._pd.fisher_matvec(vector)

    def apply(self, vector: tf.Tensor) -> tf.Tensor:
        return self._pd.fisher_factor(vector)

    def apply_transpose(self, vector: tf.Tensor) -> tf.Tensor:
        return self._pd.fisher_factor_transpose(vector)

    def columns(self) -> tf.Tensor:
        return self._pd.fisher_factor_columns()


class ScoreFactor:
    """`L` is an average of outer products of scores, one column of `S` per label.

    Args:
        scores: gradients of the log-probability of the labels, `[R, ..., C]`, already divided by `sqrt(R)`.
    """

    def __init__(self, scores: tf.Tensor):
        self._scores = scores
        self.rank = scores.shape[0]

    def matvec(self, vector: tf.Tensor) -> tf.Tensor:
        return self.apply(self.apply_transpose(vector))

    def apply(self, vector: tf.Tensor) -> tf.Tensor:
        return tf.einsum("...r,r...c->...c", vector, self._scores)

    def apply_transpose(self, vector: tf.Tensor) -> tf.Tensor:
        return tf.einsum("...c,r...c->...r", vector, self._scores)

    def columns(self) -> tf.Tensor:
        return self._scores


def sampled_factor(pd: Distribution, seed: int, samples: int) -> ScoreFactor:
    """The Monte-Carlo factor: labels drawn from the distribution itself, a function of `seed` alone.

    Args:
        pd: the distribution at the network's outputs.
        seed: fixes the draw.
        samples: labels per position.

    Returns:
        A `ScoreFactor` of rank `samples`, unbiased for the exact `L`.
    """
    scores = [
        pd.fisher_factor(pd.score_factor(pd.sample(tf.constant([seed, index], tf.int32)))) for index in range(samples)
    ]
    return ScoreFactor(tf.stack(scores) * tf.cast(samples, pd.parameters.dtype) ** -0.5)


__all__ = ["ExactFactor", "OutputFactor", "ScoreFactor", "sampled_factor"]
