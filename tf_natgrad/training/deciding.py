"""What `solver="auto"` and `fisher="auto"` come to on a model's first batch, by what a step would cost."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence

import keras

from tf_natgrad import _checks, _replicas
from tf_natgrad._conditions import Condition
from tf_natgrad._typing import LossLike, ModelLike
from tf_natgrad.costs import Way
from tf_natgrad.layers.kronecker import Layout
from tf_natgrad.operators import Fisher
from tf_natgrad.preconditioners._gradients import calls_agree
from tf_natgrad.solvers import Auto, ConjugateGradient, Gram, Planned, SVDPseudoInverse
from tf_natgrad.solvers._base import Algorithm
from tf_natgrad.training.explain import Explanation, explained
from tf_natgrad.training.optimizer import NaturalGradient
from tf_natgrad.training.planning import plan_solver


def plan_step_of(
    model: ModelLike, loss: LossLike, data: tuple, natural: NaturalGradient, variables: Sequence[keras.Variable]
) -> tuple[Planned, bool] | None:
    """Decides how steps are taken on batches like this one, and says so once.

    Args:
        model: a built Keras model.
        loss: see `likelihood_of`.
        data: `(x, y)` or `(x, y, sample_weight)`.
        natural: the model's optimizer; where it is undecided, it is so no more.
        variables: those of the optimizer.

    Returns:
        The solver and whether its Gram matrix was checked to the end, or `None` where a preconditioner was chosen.

    Raises:
        ValueError: if the batch does not fit, or `solver` is `Gram` and cannot be used.
    """
    given = {"training": True, "damping": natural.damping.value, "variables": variables}
    # Several replicas would have to choose alike, each by the clock of its own machine: they take the exact step.
    if not isinstance(natural.solver, Auto) or _replicas.several():
        return plan_solver(model, loss, data, solver=natural.solver, kind=natural.fisher, **given)
    allowed = natural.choices if natural.is_undecided else (natural.fisher,)

    def decide(among: Collection[str]) -> Explanation:
        return explained(model, loss, data, natural.budget, variables=variables, allowed=among)

    found = decide(allowed)
    if found.choice.fisher.startswith("kfac") and not _factors_agree(model, loss, data, variables):
        found = decide([kind for kind in allowed if not kind.startswith("kfac")] or ["exact"])
    _checks.log_once(found.line, key=re.sub(r"[\d.,]+", "", found.line))
    way = found.choice
    if natural.is_undecided:
        natural.settle(way.fisher)
    if natural.preconditioner is not None:
        return None
    iterations = next(w.iterations for w in found.ways if w.iterations)
    auto = dataclasses.replace(natural.solver, max_iterations=natural.solver.max_iterations or iterations)
    preferred = _algorithm(way, auto), found.line
    return plan_solver(model, loss, data, solver=auto, kind=natural.fisher, preferred=preferred, **given)


def _algorithm(way: Way, auto: Auto) -> Algorithm:
    if way.solver == "gram":
        return Gram(auto.rcond)
    if way.solver == "dense":
        return SVDPseudoInverse(auto.rcond)
    return ConjugateGradient(rtol=auto.rtol, max_iterations=auto.max_iterations)


def _factors_agree(model: ModelLike, loss: LossLike, data: tuple, variables: Sequence[keras.Variable]) -> bool:
    """Whether the calls of the layers give the gradient of the weights on this batch, as K-FAC needs it."""
    with keras.StatelessScope():
        conditions: list[Condition] = []
        options = {"training": True, "variables": variables, "conditions": conditions, "record_calls": True}
        fisher = Fisher(model, loss, data, **options)
        return bool(calls_agree(fisher, Layout.of(model, fisher.flat_parameters)))


__all__ = ["plan_step_of"]
