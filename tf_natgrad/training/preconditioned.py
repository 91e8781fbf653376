"""The direction of one batch by curvature that outlives it: a preconditioned gradient, scaled, and with momentum."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_natgrad import _checks, _replicas
from tf_natgrad._conditions import Condition
from tf_natgrad._typing import LossLike, ModelLike
from tf_natgrad.operators import Fisher
from tf_natgrad.operators._penalised import penalised
from tf_natgrad.preconditioners import Preconditioner
from tf_natgrad.preconditioners._recipes import FEW_EXAMPLES
from tf_natgrad.steps import kl_shrink
from tf_natgrad.training.direction import BatchDirection, penalty_gradient, refuse_activity_losses
from tf_natgrad.training.quadratic_model import QuadraticModel, best_combination, model_along

_FITS_NOISE = (
    "K-FAC's recipe 'quadratic' takes each batch to the minimum of its own quadratic model, and this batch has {} "
    "examples: on noisy data it fits their noise, and the validation loss may rise. For small batches there is "
    "`KFAC(recipe='fixed')`."
)


@dataclasses.dataclass(frozen=True)
class PreconditionedSettings:
    """How the direction of a batch is computed.

    Attributes:
        preconditioner: with its state.
        damping: a scalar > 0.
        relative: what it is at the first step, as a multiple of the mean eigenvalue, or `None`.
        variables: those that the direction is about.
        seed: of the labels that are drawn.
        scales: whether the direction is scaled to the minimum of the damped quadratic model with the exact Fisher.
        last: the last direction, one tensor per variable, or `None`.
        momentum: its multiple, for heavy-ball momentum; `None`: the best one, where `scales`.
        rate: the learning rate.
        max_kl: the limit of `1/2 rate^2 g^T d` before the momentum is added, in nats, or `None`.
        needs_model: whether the quadratic model along the direction is needed with the exact Fisher.
    """

    preconditioner: Preconditioner
    damping: tf.Tensor
    relative: float | None
    variables: Sequence[keras.Variable]
    seed: int | tf.Tensor
    scales: bool
    last: list[tf.Tensor] | None
    momentum: tf.Tensor | None
    rate: tf.Tensor
    max_kl: tf.Tensor | None
    needs_model: bool


def preconditioned_direction(
    model: ModelLike, loss: LossLike, data: tuple, settings: PreconditionedSettings, conditions: list[Condition]
) -> BatchDirection:
    """Computes the direction of a batch after one forward pass, and the state of the preconditioner after it.

    Args:
        model: a Keras model.
        loss: see `likelihood_of`.
        data: `(x, y, sample_weight)`, the last of them perhaps `None`.
        settings: how it is computed.
        conditions: a list to which the conditions on values are added.

    Returns:
        A `BatchDirection`.

    Raises:
        ValueError: if an argument does not fit.

    References:
        J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML (2015),
        sections 6.4 and 7. J. Ba, R. Grosse, J. Martens, "Distributed second-order optimization using
        Kronecker-factored approximations", ICLR (2017), section 5.
    """
    given = {"training": True, "variables": settings.variables, "conditions": conditions}
    fisher = Fisher(model, loss, data, record_calls=True, **given)
    refuse_activity_losses(model)
    found = settings.preconditioner.precondition(fisher, data[1], settings.damping, settings.seed, settings.relative)
    conditions += found.conditions
    examples = fisher.batch.linearization.outputs.shape[0]
    if settings.scales and examples is not None and examples * _replicas.count() < FEW_EXAMPLES:
        _checks.log_once(_FITS_NOISE.format(examples * _replicas.count()), key=_FITS_NOISE)
    parts, slope, flat = found.direction, found.slope, fisher.flat_parameters
    made = {"info": found.info, "fisher": fisher, "state": found.state, "damping": found.damping}
    if not settings.scales and not settings.needs_model:
        shrink, parts = _with_momentum(parts, slope, settings)
        along = QuadraticModel(slope, slope, slope)
        return BatchDirection(flat.flatten(parts), parts, model=along, shrink=shrink, **made)
    rhs = fisher.loss_gradient()
    penalty = penalty_gradient(flat)
    rhs = rhs if penalty is None else rhs.plus(penalty)
    _, curvature = penalised(fisher, found.damping, conditions)
    shrink, value = None, flat.flatten(parts)
    if settings.scales:
        combines = settings.last is not None and settings.momentum is None
        vectors = [value, flat.flatten(settings.last)] if combines else [value]
        value, along = best_combination(fisher, curvature, rhs, found.damping, vectors)
        slope, parts = along.slope, flat.unflatten(value)
    if settings.momentum is not None or not settings.scales:
        shrink, parts = _with_momentum(parts, slope, settings)
        value = flat.flatten(parts)
        along = model_along(fisher, curvature, rhs, value)
    return BatchDirection(value, parts, model=along, shrink=shrink, **made)


def _with_momentum(
    parts: list[tf.Tensor], slope: tf.Tensor, settings: PreconditionedSettings
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The factor by which a new direction is shortened, and what it is with the momentum."""
    # g^T d is d^T (F + damping I) d where the preconditioner is right.
    shrink = kl_shrink(slope, settings.rate, settings.max_kl)
    parts = [shrink * d for d in parts]
    if settings.momentum is not None:
        # A variable would be read once for each product.
        momentum = tf.cast(tf.convert_to_tensor(settings.momentum), slope.dtype)
        parts = [d + momentum * last for d, last in zip(parts, settings.last, strict=True)]
    return shrink, parts


__all__ = ["PreconditionedSettings", "preconditioned_direction"]
