"""The middle of `J^T L J`: the output-space matrix `L` as a factor `S S^T`, exact or from labels."""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from tf_natgrad._replicas import Place
from tf_natgrad.distributions import Distribution


class OutputFactor(Protocol):
    """`L = S S^T` for each position of a batch: products with `L`, `S`, `S^T`, and the columns of `S`.

    `S` either acts at each position apart, or (`is_pooled`) takes all positions of an example into one row. Then
    `[..., R]` below is `[N, R]`, and the square roots of the positions' weights belong to the vectors `[..., C]`.
    """

    rank: int
    # Whether `S^T` sums over the positions of an example.
    is_pooled: bool
    # Whether the gradient of the loss is `S score_factor`, so that it lies in the range of the factor.
    is_exact: bool

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
        self.is_exact = True
        self.is_pooled = False

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
        self.is_exact = False
        self.is_pooled = False

    def matvec(self, vector: tf.Tensor) -> tf.Tensor:
        return self.apply(self.apply_transpose(vector))

    def apply(self, vector: tf.Tensor) -> tf.Tensor:
        return tf.einsum("...r,r...c->...c", vector, self._scores)

    def apply_transpose(self, vector: tf.Tensor) -> tf.Tensor:
        return tf.einsum("...c,r...c->...r", vector, self._scores)

    def columns(self) -> tf.Tensor:
        return self._scores


class PooledScoreFactor(ScoreFactor):
    """One column of `S` per example and draw, which reaches over all positions of the example.

    Labels that are drawn at each position are independent given the outputs, so the products of different positions'
    scores vanish in expectation, and a row summed over the positions is as unbiased as a row for each of them.

    Args:
        scores: gradients of the log-probability of the labels, `[R, N, ..., C]`, already divided by `sqrt(R)`.
    """

    def __init__(self, scores: tf.Tensor):
        super().__init__(scores)
        self.is_pooled = True

    def apply(self, vector: tf.Tensor) -> tf.Tensor:
        product = tf.einsum("nr,rnp->np", vector, self._flat())
        return tf.ensure_shape(tf.reshape(product, tf.shape(self._scores)[1:]), self._scores.shape[1:])

    def apply_transpose(self, vector: tf.Tensor) -> tf.Tensor:
        scores = self._flat()
        return tf.einsum("np,rnp->nr", tf.reshape(vector, tf.shape(scores)[1:]), scores)

    def _flat(self) -> tf.Tensor:
        """`[R, N, T C]`."""
        shape = tf.shape(self._scores)
        return tf.reshape(self._scores, [self.rank, shape[1], tf.reduce_prod(shape[2:])])


def sampled_factor(
    pd: Distribution, seed: int | tf.Tensor, samples: int, index: tf.Tensor | int, place: Place | None = None
) -> PooledScoreFactor:
    """The Monte-Carlo factor: labels drawn from the distribution itself, a function of seed and batch alone.

    Args:
        pd: the distribution at the network's outputs.
        seed: fixes the draw.
        samples: labels per position.
        index: the number of the batch.
        place: of these examples in the global batch, for which the labels are drawn; `None`: they are all.

    Returns:
        A factor of rank `samples`: unbiased for the exact `L`, with one row per example and draw.
    """
    first = tf.cast(index, tf.int32) * samples
    seeds = [tf.stack([tf.cast(seed, tf.int32), first + k]) for k in range(samples)]
    scores = tf.stack([_sampled_score(pd, one, place) for one in seeds])
    return PooledScoreFactor(scores * tf.cast(samples, pd.parameters.dtype) ** -0.5)


def _sampled_score(pd: Distribution, seed: tf.Tensor, place: Place | None) -> tf.Tensor:
    """`pd.sampled_score(seed)`; of a share of the global batch, with the labels that one device would draw for it."""
    if place is None:
        return pd.sampled_score(seed)
    # A draw depends on its number in the batch: what stands in the place of other replicas' examples does not matter.
    drawn = pd.with_parameters(place.padded(pd.parameters)).sample(seed)
    return pd.score_of_drawn(place.share(drawn))


def label_factor(pd: Distribution, targets: tf.Tensor) -> ScoreFactor:
    """The factor of the empirical Fisher: one column per position, the score of its own label.

    Args:
        pd: the distribution at the network's outputs.
        targets: the labels, as `pd.log_prob` takes them.

    Returns:
        A `ScoreFactor` of rank one.
    """
    return ScoreFactor(pd.fisher_factor(pd.score_factor(targets))[None])


__all__ = ["ExactFactor", "OutputFactor", "PooledScoreFactor", "ScoreFactor", "label_factor", "sampled_factor"]
