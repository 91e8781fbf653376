"""The labels of Kronecker factors: drawn from the model, all of them in expectation, or those of the data."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.operators import Fisher
from tf_natgrad.operators._factors import label_factor, sampled_factor

KINDS = ("mc", "exact", "empirical")


def columns_of(fisher: Fisher, kind: str, samples: int, seed: int | tf.Tensor) -> Callable[[], tf.Tensor]:
    """Prepares what is pulled back to the layers, outside of any branch of a graph.

    Args:
        fisher: of a batch, with its calls recorded.
        kind: one of `KINDS`.
        samples: draws per example, for `"mc"`.
        seed: of the draws.

    Returns:
        A function without arguments, for within a branch, that computes the columns `[Q, N, ..., C]`, the roots of the
        weights included.

    Raises:
        ValueError: if the expectation over labels is asked for, and its columns, pulled back together, would mix
            examples, as BatchNormalization in training mode does; or if there are no labels of the data.
    """
    batch = fisher.batch
    mixing = batch.record.mixing
    if kind == "exact" and mixing is not None:
        received = "'exact' for a model that mixes the examples of a batch"
        raise ValueError(_checks.message("fisher", received, "'mc' or 'empirical'", f"Draw the labels. {mixing}"))
    targets = batch.targets() if kind == "empirical" else None

    def columns() -> tf.Tensor:
        if kind == "exact":
            return fisher.columns_of(batch)
        drawn = targets is None
        factor = sampled_factor(batch.pd, seed, samples, 0, batch.place) if drawn else label_factor(batch.pd, targets)
        return factor.columns() * tf.sqrt(batch.output_weights)

    return columns


__all__ = ["KINDS", "columns_of"]
