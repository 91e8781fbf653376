"""A whole data set in batches, looked at before anything else happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _conditions
from tf_natgrad._typing import TensorLike
from tf_natgrad.operators._inputs import unpack

# Examples of arrays that are taken at once.
_CHUNK = 2048


def as_dataset(data: Any, sample_weight: TensorLike | None) -> tf.data.Dataset:
    """Arrays in chunks, or the data set that was given.

    Args:
        data: arrays `(x, y)` or `(x, y, sample_weight)`, or a data set of such batches.
        sample_weight: weights of the examples, where `data` are arrays.

    Returns:
        Batches.

    Raises:
        ValueError: if anything is not finite or does not fit, or all weights are zero.
    """
    if isinstance(data, tf.data.Dataset):
        if sample_weight is not None:
            raise ValueError(
                _checks.message("sample_weight", "a value together with a data set", "`(x, y, sample_weight)` in it")
            )
        if data.cardinality() != tf.data.INFINITE_CARDINALITY:
            weighs = []
            for batch in data:
                x, y, weights = unpack(batch)
                _refuse_non_finite(x, y, weights)
                weighs.append(_weighs(weights))
            _refuse_no_weight(weighs)
        return data
    x, y, weights = unpack(data)
    weights = weights if sample_weight is None else sample_weight
    if y is None:
        raise ValueError(_checks.message("data", "inputs without labels", "`(x, y)` or a `tf.data.Dataset` of it"))
    weights = None if weights is None else _checks.as_tensor("sample_weight", weights)
    _refuse_non_finite(x, y, weights)
    _refuse_no_weight([_weighs(weights)])
    parts = (x, y) if weights is None else (x, y, weights)
    sizes = {name: len(tf.nest.flatten(p)[0]) for name, p in zip(("x", "y", "sample_weight"), parts, strict=False)}
    if len(set(sizes.values())) > 1:
        raise ValueError(_checks.message("data", f"{sizes} examples", "as many labels and weights as inputs"))
    size = sizes["x"]
    whole = size // _CHUNK * _CHUNK
    rest = tf.nest.map_structure(lambda t: t[whole:], parts)
    if not whole:
        return tf.data.Dataset.from_tensors(rest)
    chunks = tf.nest.map_structure(lambda t: tf.reshape(t[:whole], [-1, _CHUNK, *t.shape[1:]]), parts)
    dataset = tf.data.Dataset.from_tensor_slices(chunks)
    return dataset.concatenate(tf.data.Dataset.from_tensors(rest)) if size > whole else dataset


def _refuse_non_finite(x: Any, y: Any, sample_weight: Any) -> None:
    for name, value in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        tensors = [tf.convert_to_tensor(t) for t in tf.nest.flatten(value) if t is not None]
        if any(tensor.shape.rank == 0 for tensor in tensors):
            raise ValueError(_checks.message(name, "a scalar", "an array [N, ...]"))
        if not _conditions.is_finite(*tensors):
            raise ValueError(
                _checks.message(name, "NaN or infinite values", "finite ones", "Clean the data before the fit.")
            )


def _weighs(sample_weight: TensorLike | None) -> bool:
    """Whether any example of a batch counts; an empty one is refused elsewhere."""
    return sample_weight is None or not np.size(sample_weight) or bool(np.any(np.asarray(sample_weight) != 0))


def _refuse_no_weight(weighs: list[bool]) -> None:
    if weighs and not any(weighs):
        raise ValueError(
            _checks.message(
                "sample_weight",
                "zeros only",
                "a positive weight for at least one example",
                "Leave the weights out to count all examples alike.",
            )
        )


__all__ = ["as_dataset"]
