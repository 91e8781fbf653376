"""The choice of a solver for a model's batches, made in Python on a real batch before anything is traced."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._conditions import Condition, judge
from tf_natgrad._typing import LossLike, ModelLike, TensorLike
from tf_natgrad.linearize import ensure_built
from tf_natgrad.operators import Fisher
from tf_natgrad.operators._penalised import penalised
from tf_natgrad.solvers import Auto, Gram, Planned, Solver
from tf_natgrad.solvers._base import Algorithm
from tf_natgrad.solvers.auto import NO_GRAM_OF_A_SUM, refuse_gram_of_a_sum


def needs_plan(solver: Solver) -> bool:
    """Returns whether the behaviour of this solver depends on the size of a batch or on a check of its Gram matrix."""
    return isinstance(solver, Auto | Gram)


def plan_solver(
    model: ModelLike,
    loss: LossLike,
    data: tuple,
    *,
    solver: Solver,
    training: bool,
    variables: Sequence[keras.Variable] | None = None,
    kind: str = "exact",
    damping: TensorLike = 1.0,
    preferred: tuple[Algorithm, str] | None = None,
) -> tuple[Planned, bool]:
    """The choice of `solver` for batches like this one, the Gram matrix having been checked on it.

    The model is called once, eagerly, and its state is left as it was.

    Args:
        model: a Keras model.
        loss: see `likelihood_of`.
        data: `(x, y)` or `(x, y, sample_weight)`.
        solver: one that `needs_plan`.
        training: the mode in which the model is called.
        variables: those that the direction is about; by default all trainable ones.
        kind: of the Fisher, `"exact"` or `"mc"`.
        damping: the current damping. With weight regularisers it matters whether it is zero.
        preferred: an algorithm, with the reason, that is taken instead of what `solver` would choose, unless it is a
            Gram matrix that does not exist.

    Returns:
        The choice, and whether the check came to a result (a batch with NaN shows nothing).

    Raises:
        ValueError: if the batch does not fit, or `solver` is `Gram` and cannot be used.
    """
    ensure_built(model, data[0])
    # What the call would change, statistics and the states of random numbers, goes no further than this scope.
    with keras.StatelessScope():
        conditions: list[Condition] = []
        fisher = Fisher(
            model,
            loss,
            data,
            kind=kind,
            training=training,
            variables=variables,
            conditions=conditions,
            # What "auto" chooses may do without the record.
            record_calls=isinstance(solver if preferred is None else preferred[0], Gram),
        )
        # What is not finite is for the step to deal with.
        judge(c for c in conditions if not c.finite)
        operator, _ = penalised(fisher, damping)
        refuse_gram_of_a_sum(solver, operator)
        if preferred is None:
            algorithm, why = solver.choose(operator)
        else:
            algorithm, why = Planned(*preferred, otherwise=solver).choose(operator)
        algorithm.check(operator)
    refusal = None if fisher.batch.recorded is None else fisher.gram_refusal
    # Where sizes alone decided, nothing was replaced.
    if isinstance(solver, Auto) and ((refusal is not None and refusal in why) or NO_GRAM_OF_A_SUM in why):
        log_replacement(why)
    return Planned(algorithm, why, solver), fisher.gram_checked or not isinstance(algorithm, Gram)


def without_gram(solver: Auto, size: int, error: ValueError) -> Planned:
    """The choice of `"auto"` after the Gram matrix of a later batch turned out to be wrong.

    Args:
        solver: the optimizer's.
        size: n, the number of weights.
        error: what the refused step was refused with.

    Returns:
        The choice.
    """
    algorithm, why = solver.without_gram(size, str(error))
    log_replacement(why)
    return Planned(algorithm, why, solver)


def log_replacement(why: str) -> None:
    """Says once, for each kind of reason, that `"auto"` does not take the Gram matrix."""
    # Names and numbers make no other kind of it.
    kind = re.sub(r"'[^']*'|[\d.,]+", "", why)
    _checks.log_once(f"solver='auto' does without the Gram matrix: {why}", key=kind)


def shapes_of(data: Any) -> tuple[tf.TensorShape, ...]:
    """The shapes of all tensors of a batch, those inside of ragged ones included.

    Args:
        data: a structure of tensors, arrays or `None`.

    Returns:
        One shape each.
    """
    flat: Sequence[TensorLike] = [t for t in tf.nest.flatten(data, expand_composites=True) if t is not None]
    return tuple(tf.TensorShape(t.shape) for t in flat)


__all__ = ["needs_plan", "plan_solver", "shapes_of", "without_gram"]
