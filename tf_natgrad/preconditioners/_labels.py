"""The labels of Kronecker factors: drawn from the model, all of them in expectation, or those of the data."""

from __future__ import annotations

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.operators import Fisher
from tf_natgrad.operators._factors import label_factor, sampled_factor

KINDS = ("mc", "exact", "empirical")


def refuse_mixing(fisher: Fisher, kind: str) -> None:
    """Refuses the expectation over labels where its columns, pulled back together, would mix examples.

    Args:
        fisher: of a batch, with its calls recorded.
        kind: one of `KINDS`.

    Raises:
        ValueError: if the model mixes the examples of a batch, as BatchNormalization in training mode does.
    """
    mixing = fisher.batch.record.mixing
    if kind == "exact" and mixing is not None:
        received = "'exact' for a model that mixes the examples of a batch"
        raise ValueError(_checks.message("fisher", received, "'mc' or 'empirical'", f"Draw the labels. {mixing}"))


def columns_of(fisher: Fisher, kind: str, samples: int, seed: int | tf.Tensor) -> tf.Tensor:
    """Computes what is pulled back to the layers.

    Args:
        fisher: of a batch.
        kind: one of `KINDS`.
        samples: draws per example, for `"mc"`.
        seed: of the draws.

    Returns:
        `[Q, N, ..., C]`, the roots of the weights included.
    """
    batch = fisher.batch
    if kind == "exact":
        return fisher.columns_of(batch)
    of_data = kind == "empirical"
    factor = label_factor(batch.pd, batch.targets()) if of_data else sampled_factor(batch.pd, seed, samples, 0)
    return factor.columns() * tf.sqrt(batch.output_weights)


__all__ = ["KINDS", "columns_of", "refuse_mixing"]
