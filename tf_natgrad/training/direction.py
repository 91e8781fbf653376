"""The natural gradient of one batch: it forms the Fisher and the right-hand side, and solves the system."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_natgrad import _checks, _replicas
from tf_natgrad._conditions import Condition
from tf_natgrad._typing import LossLike, ModelLike, TensorLike
from tf_natgrad.operators import CurvatureOperator, Damped, FactoredRhs, Fisher, Penalty
from tf_natgrad.operators._penalised import penalised
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.solvers import GramInfo, Solver
from tf_natgrad.solvers.auto import may_take_gram, refuse_gram_of_a_sum
from tf_natgrad.training.quadratic_model import QuadraticModel, best_combination


@dataclasses.dataclass(frozen=True)
class DirectionSettings:
    """How the direction of a batch is computed.

    Attributes:
        solver: a solver.
        damping: a number >= 0 or a scalar tensor; the number 0 asks for the pseudo-inverse.
        training: the mode in which the model is called.
        variables: those that the direction is about; `None` for all trainable ones.
        fisher: `"exact"` or `"mc"`.
        seed: of the labels of `"mc"`.
        micro_batch_size: see `Fisher`.
        shift: `[n]`, where the damping pulls the direction to, or `None` for zero.
        x0: `[n]`, where an iterative solver starts, or `None` for zero.
        last: `[n]`, the last direction, to be combined with this one so that the damped quadratic model with the exact
            Fisher is minimal (Martens and Grosse 2015, section 7), or `None`.
    """

    solver: Solver
    damping: TensorLike
    training: bool = True
    variables: Sequence[keras.Variable] | None = None
    fisher: str = "exact"
    seed: int | tf.Tensor = 0
    micro_batch_size: int | None = None
    shift: tf.Tensor | None = None
    x0: tf.Tensor | None = None
    last: tf.Tensor | None = None


class BatchDirection(NamedTuple):
    """What one batch gives.

    Attributes:
        value: the direction `d = (F + R + damping I)^-1 (g + damping shift)`, `[n]`, with `R` the curvature of the
            weight regularisers.
        parts: the same, one tensor per variable.
        info: the solver's report.
        fisher: the Fisher of the batch.
        model: the quadratic model of the loss along the direction.
        state: of a preconditioner after the batch, or `None`.
        damping: with which it was computed, where that is not the optimizer's own, or `None`.
        shrink: the factor by which a limit of the KL divergence shortened the direction already, or `None`.
        is_summed: whether `value` is, but for what all replicas have, a sum over them.
    """

    value: tf.Tensor
    parts: list[tf.Tensor]
    info: Any
    fisher: Fisher
    model: QuadraticModel
    state: Any = None
    damping: tf.Tensor | None = None
    shrink: tf.Tensor | None = None
    is_summed: bool = False

    def agreed(self) -> BatchDirection:
        """Returns the direction of the first replica: each has solved the same system, with rounding of its own."""
        if not _replicas.several():
            return self
        # The exact direction by the Gram matrix is a sum over the replicas already.
        names = ["model", "damping", "shrink", *([] if self.is_summed else ["parts"])]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return self._replace(**_replicas.of_first(given))


def batch_direction(
    model: ModelLike,
    loss: LossLike,
    data: tuple,
    settings: DirectionSettings,
    conditions: list[Condition] | None = None,
) -> BatchDirection:
    """Computes the natural gradient of a batch's loss after one forward pass, eagerly or inside a trace.

    The model's weight regularisers enter with gradient and curvature. The direction that a Monte-Carlo Fisher gives is
    scaled to the minimum of the damped quadratic model with the exact one (Martens and Grosse 2015, section 6.4): what
    few samples do not see it would take too large a step along.

    Args:
        model: a Keras model.
        loss: see `likelihood_of`.
        data: `(x, y, sample_weight)`, the last of them perhaps `None`.
        settings: how it is computed.
        conditions: a list to which the conditions on values are added; by default they are judged at once.

    Returns:
        A `BatchDirection`.

    Raises:
        ValueError: if an argument does not fit.
    """
    fisher = Fisher(
        model,
        loss,
        data,
        kind=settings.fisher,
        seed=settings.seed,
        training=settings.training,
        variables=settings.variables,
        micro_batch_size=settings.micro_batch_size,
        conditions=conditions,
        record_calls=may_take_gram(settings.solver),
    )
    refuse_activity_losses(model)
    rhs = fisher.loss_gradient()
    penalty = penalty_gradient(fisher.flat_parameters)
    if penalty is not None:
        rhs = rhs.plus(penalty)
    rhs = rhs._replace(shift=settings.shift)
    operator, curvature = penalised(fisher, settings.damping, conditions)
    damping = operator.damping if isinstance(operator, Damped) else 0.0
    refuse_gram_of_a_sum(settings.solver, operator, conditions)
    d, info = settings.solver.solve(operator, _without_shift(rhs, operator), settings.x0, conditions)
    if settings.last is not None or settings.fisher == "mc":
        vectors = [d] if settings.last is None else [d, settings.last]
        value, quadratic = best_combination(fisher, curvature, rhs, damping, vectors)
        return BatchDirection(value, fisher.flat_parameters.unflatten(value), info, fisher, quadratic)
    form = whole = tf.cast(info.quadratic_form, d.dtype)
    if curvature is not None:
        penalised_form = tf.reduce_sum(d * curvature.product(d))
        # Of what it solves for, the Gram solver reports the factored part alone.
        if isinstance(info, GramInfo):
            whole = form + penalised_form
        else:
            form = tf.maximum(whole - penalised_form, 0.0)
    # (F + R + damping I) d = g + damping shift - residual.
    slope = whole + damping * tf.reduce_sum(tf.square(d)) + tf.cast(getattr(info, "residual_product", 0.0), d.dtype)
    if settings.shift is not None:
        slope -= damping * tf.reduce_sum(settings.shift * d)
    quadratic, parts = QuadraticModel(slope, form, whole), fisher.flat_parameters.unflatten(d)
    return BatchDirection(d, parts, info, fisher, quadratic, is_summed=isinstance(info, GramInfo))


def _without_shift(rhs: FactoredRhs, operator: CurvatureOperator) -> FactoredRhs:
    """The same right-hand side for a damping that differs by variable: only the damping itself pulls to the shift."""
    if rhs.shift is None or not isinstance(operator, Damped) or operator.damping_by_variable is None:
        return rhs
    return rhs._replace(shift=None).plus(operator.damping * rhs.shift)


def penalty_gradient(flat: FlatParameters) -> tf.Tensor | None:
    """The gradient of the weight regularisers.

    Args:
        flat: the variables.

    Returns:
        `[n]`, or `None` where no variable is regularised.
    """
    penalty = Penalty(flat)
    return None if penalty.is_zero else penalty.gradient()


def refuse_activity_losses(model: ModelLike) -> None:
    """Refuses losses that depend on activations: neither the gradient nor the Fisher here would contain them.

    Args:
        model: after its first call.

    Raises:
        ValueError: if it has such losses.
    """
    regularised = sum(getattr(v, "regularizer", None) is not None for v in model.trainable_variables)
    if len(getattr(model, "losses", ())) > regularised:
        raise ValueError(
            _checks.message(
                "model",
                "activity regularisers or `add_loss`",
                "no losses besides that of `compile` and the weight regularisers",
                "Move the penalty to `kernel_regularizer`, or train with a first-order optimizer.",
            )
        )


__all__ = ["BatchDirection", "DirectionSettings", "batch_direction", "penalty_gradient", "refuse_activity_losses"]
