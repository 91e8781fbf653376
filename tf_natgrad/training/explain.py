"""What each way of taking a step would cost, before one is taken."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import keras

from tf_natgrad import _checks
from tf_natgrad._conditions import note
from tf_natgrad._typing import LossLike, ModelLike
from tf_natgrad.costs import Way, choose, free_memory, measured, network_of, ways_of
from tf_natgrad.linearize import ensure_built
from tf_natgrad.operators._inputs import as_inputs, check_fits, input_conditions

_ALL = ("exact", "mc", "kfac", "kfac, fixed")


class Explanation(NamedTuple):
    """The ways of taking a step on batches like one, with their costs; as text it is a table.

    Attributes:
        ways: all of them, each a `costs.Way`.
        choice: the one that `NaturalGradient()` takes.
        budget: the gradients that a step may take.
        memory: the bytes that a step may hold.
    """

    ways: list[Way]
    choice: Way
    budget: float
    memory: float

    @property
    def gradient(self) -> float:
        """Seconds of a gradient (forward and backward pass, and update of the weights), as predicted."""
        return self.choice.seconds / self.choice.gradients

    @property
    def line(self) -> str:
        """The choice in one line, and what the others would cost."""
        others = [f"{w.name} {_gradients(w)}" for w in self.ways if w is not self.choice and not w.refusal]
        return f"{_described(self.choice)}; other ways: {', '.join(others)}"

    def __str__(self) -> str:
        rows = [("way", "gradients a step", "memory", "size", "")]
        for way in self.ways:
            note = "chosen" if way is self.choice else "refused" if way.refusal else ""
            if not note and way.memory > self.memory:
                note = "too much memory"
            rows.append((way.name, f"{way.gradients:,.1f}", _bytes(way.memory), way.detail, note))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        end = f"one gradient: about {1e3 * self.gradient:.2g} ms; budget: {self.budget:g} gradients"
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], end])


def explain(
    model: ModelLike,
    loss: LossLike,
    x: Any,
    y: Any = None,
    *,
    budget: float = 8.0,
    training: bool = True,
) -> Explanation:
    """Predicts what each way of taking a natural-gradient step costs on batches like this one.

    The model is traced once, and nothing of it is computed. Rates of the machine are measured once per process.

    >>> import keras, tensorflow as tf, tf_natgrad as ng
    >>> model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(4)])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> found = ng.explain(model, loss, tf.ones([5, 30]), tf.zeros([5], tf.int32))
    >>> found.choice.name, found.choice.detail
    ('exact Gram step', '15 rows')

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a `Distribution` subclass; for several outputs a list or dictionary of losses.
        x: the inputs of one batch; their shapes matter, not their values.
        y: the labels, or `None`.
        budget: gradients that a step may take.
        training: the mode in which the model is called.

    Returns:
        An `Explanation`.

    Raises:
        ValueError: if the batch does not fit, is empty or not finite, or `budget` is not positive.
        TypeError: if `model` is not a Keras model, or `x` cannot be a tensor.
    """
    _checks.check_model("model", model)
    _checks.check_number("budget", budget, minimum=0.0, exclusive=True)
    _checks.check_flag("training", training)
    x = as_inputs(x)
    note(input_conditions(x), None)
    ensure_built(model, x)
    return explained(model, loss, (x, y), budget, training=training)


def explained(
    model: ModelLike,
    loss: LossLike,
    data: tuple,
    budget: float,
    *,
    training: bool = True,
    variables: Sequence[keras.Variable] | None = None,
    allowed: Collection[str] = _ALL,
) -> Explanation:
    """What `explain` does, for some variables and some kinds of curvature.

    Args:
        model: a built Keras model.
        loss: see `likelihood_of`.
        data: `(x, y)` or `(x, y, sample_weight)`.
        budget: gradients that a step may take.
        training: the mode in which the model is called.
        variables: those of the direction; by default all trainable ones.
        allowed: the kinds of curvature among which to choose.

    Returns:
        An `Explanation`.
    """
    x, *rest = data
    x = as_inputs(x)
    check_fits(model, x)
    network = network_of(model, loss, (x, *rest), training=training, variables=variables)
    ways, memory = ways_of(network, measured(network.dtype), budget), free_memory()
    return Explanation(ways, choose(ways, network, budget, memory, allowed), budget, memory)


def _described(way: Way) -> str:
    return f"{way.name}, {way.detail}, {_gradients(way)}, {_bytes(way.memory)}"


def _gradients(way: Way) -> str:
    return f"about {way.gradients:,.2g} gradients" if way.gradients < 100 else f"about {way.gradients:,.0f} gradients"


def _bytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 1e10 else f"{count / 1e9:,.0f} GB"


__all__ = ["Explanation", "explain", "explained"]
