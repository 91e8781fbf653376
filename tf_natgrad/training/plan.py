"""The plan of one training step: the direction of a batch, how far along it to go at most, the loss before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_natgrad import _conditions, _keras, _replicas
from tf_natgrad._conditions import Condition
from tf_natgrad.distributions import Likelihood
from tf_natgrad.linearize import call_model
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.solvers import Solver
from tf_natgrad.steps import kl_shrink, restore
from tf_natgrad.training.direction import BatchDirection, DirectionSettings, batch_direction, penalty_gradient
from tf_natgrad.training.optimizer import NaturalGradient
from tf_natgrad.training.preconditioned import PreconditionedSettings, preconditioned_direction


class Data(NamedTuple):
    """A batch as `fit` gives it."""

    x: Any
    y: Any
    sample_weight: Any


@dataclasses.dataclass
class Plan:
    """The step of one batch, as it is proposed.

    Attributes:
        model: the model.
        natural: its optimizer.
        likelihood: its loss.
        data: the batch.
        direction: of the batch.
        outputs: of the model, before the step.
        damping: with which the direction was solved for.
        loss: of the batch before the step, penalties included; NaN where the batch is refused. In a replica of several
            that of its own examples.
        start: the loss from which a decrease is measured: `loss`, after weight decay where that comes first.
        steps: for each variable of the optimizer, its part of the direction, shortened to `max_kl` and clipped.
        gradients: with their variables, where other optimizers have them.
        rate: the learning rate.
        shrink: the factor by which `max_kl` shortened the step.
        kl_predicted: the KL divergence that the shortened step is predicted to cause, in nats.
        conditions: of the batch and its direction.
        statistics: what the forward pass has changed, with the values before it.
    """

    model: Any
    natural: NaturalGradient
    likelihood: Likelihood
    data: Data
    direction: BatchDirection
    outputs: Any
    damping: tf.Tensor
    loss: tf.Tensor
    start: tf.Tensor
    steps: list[tf.Tensor]
    gradients: list[tuple[tf.Tensor, keras.Variable]]
    rate: tf.Tensor
    shrink: tf.Tensor
    kl_predicted: tf.Tensor
    conditions: list[Condition]
    statistics: tuple[list[keras.Variable], list[tf.Tensor]]

    @property
    def variables(self) -> list[keras.Variable]:
        """Those of the natural-gradient optimizer."""
        return list(self.direction.fisher.flat_parameters.variables)

    @property
    def step_shrink(self) -> tf.Tensor:
        """The factor by which `max_kl` shortened what the quadratic model of the direction is about."""
        return self.shrink if self.direction.shrink is None else tf.ones_like(self.shrink)

    @property
    def measured_limit(self) -> tf.Tensor | None:
        """The KL divergence that a line search allows, in nats; a limit before the momentum is none after it."""
        unlimited = self.natural.max_kl is None or self.direction.shrink is not None
        return None if unlimited else self.natural.max_kl.value

    @property
    def searches(self) -> bool:
        """Whether a line search judges the step."""
        return self.natural.line_search is not None

    @property
    def decays_first(self) -> bool:
        """Whether weight decay precedes the step: it is no part of what the search judges."""
        return self.searches and bool(self.natural.weight_decay)


def plan_step(
    model: Any, natural: NaturalGradient, likelihood: Likelihood, solver: Solver, variables: list, data: Data
) -> Plan:
    """Plans the step of a batch: its direction, how far along it the KL divergence allows to go, its loss.

    Args:
        model: the model.
        natural: its optimizer.
        likelihood: its loss.
        solver: what solves for the direction.
        variables: those of the optimizer.
        data: the batch.

    Returns:
        A `Plan`.

    Raises:
        ValueError: if shapes are known not to fit; the statistics are as they were.
    """
    statistics = [v for v in model.non_trainable_variables if tf.as_dtype(v.dtype).is_floating]
    before = [tf.identity(tf.convert_to_tensor(v.value)) for v in statistics]
    damping = tf.identity(tf.convert_to_tensor(natural.damping.value))
    rate = tf.convert_to_tensor(natural.learning_rate)
    in_parts = natural.micro_batch_size is not None
    try:
        conditions: list[Condition] = []
        if natural.preconditioner is None:
            settings = _settings(natural, solver, variables, damping)
            direction = batch_direction(model, likelihood, data, settings, conditions)
        else:
            preconditioned = _preconditioned(natural, variables, damping, rate)
            direction = preconditioned_direction(model, likelihood, data, preconditioned, conditions)
        direction = direction.agreed()
        outputs = _look(model, likelihood, data, conditions) if in_parts else direction.fisher.outputs
    except BaseException:
        if tf.executing_eagerly():
            restore(statistics, before)
        raise
    usable = _conditions.all_hold(c for c in conditions if not c.finite)
    loss = _loss(model, data, outputs, not in_parts, usable)
    form = tf.cast(direction.model.fisher_form, rate.dtype)
    parts = direction.parts
    if direction.shrink is not None:
        shrink = tf.cast(direction.shrink, rate.dtype)
    else:
        shrink = kl_shrink(form, rate, None if natural.max_kl is None else natural.max_kl.value)
        parts = [d * tf.cast(shrink, d.dtype) for d in parts]
    plan = Plan(
        model=model,
        natural=natural,
        likelihood=likelihood,
        data=data,
        direction=direction,
        outputs=outputs,
        damping=damping if direction.damping is None else tf.cast(direction.damping, damping.dtype),
        loss=loss,
        start=loss,
        # Clipped here already: what a search shortens would be clipped to the same length again and again.
        steps=_keras.clip(natural, parts),
        gradients=_gradients_beside(model, direction, data.y),
        rate=rate,
        shrink=shrink,
        kl_predicted=0.5 * tf.square(rate * shrink) * form,
        conditions=conditions,
        statistics=(statistics, before),
    )
    if plan.decays_first and not _replicas.several():
        plan.start = _unless_refused(usable, loss.dtype, lambda: trial_loss(plan, tf.zeros([], loss.dtype))[0])
    return plan


def _last_direction(natural: NaturalGradient, variables: list[keras.Variable]) -> list[tf.Tensor] | None:
    """One tensor per variable, or `None` where it is not kept."""
    if not natural.last_direction:
        return None
    return [tf.convert_to_tensor(_keras.slot_of(natural, natural.last_direction, v).value) for v in variables]


def _seed(natural: NaturalGradient) -> tf.Tensor:
    """The number of the step, those that came to nothing counted too, so that none draws the labels of another."""
    return tf.cast(natural.iterations.value, tf.int32) + natural.rejected_steps.value + natural.skipped_steps.value


def _preconditioned(
    natural: NaturalGradient, variables: list[keras.Variable], damping: tf.Tensor, rate: tf.Tensor
) -> PreconditionedSettings:
    return PreconditionedSettings(
        preconditioner=natural.preconditioner,
        damping=tf.cast(damping, variables[0].dtype),
        relative=natural.adaptation.initial if natural.adaptation and natural.adaptation.relative else None,
        variables=variables,
        seed=_seed(natural),
        scales=natural.scales_directions,
        last=_last_direction(natural, variables),
        momentum=None if natural.momentum is None else natural.momentum.value,
        rate=rate,
        max_kl=None if natural.max_kl is None else natural.max_kl.value,
        needs_model=natural.line_search is not None or natural.adaptation is not None,
    )


def _settings(
    natural: NaturalGradient, solver: Solver, variables: list[keras.Variable], damping: tf.Tensor
) -> DirectionSettings:
    slots = _last_direction(natural, variables)
    last = None if slots is None else FlatParameters(variables).flatten(slots)

    def times(factor: keras.Variable | None) -> tf.Tensor | None:
        return None if factor is None else tf.cast(factor.value, last.dtype) * last

    return DirectionSettings(
        solver=solver,
        damping=damping,
        training=natural.micro_batch_size is None,
        variables=variables,
        fisher=natural.fisher,
        seed=_seed(natural),
        micro_batch_size=natural.micro_batch_size,
        shift=times(natural.momentum),
        x0=times(natural.warm_start),
        last=last if natural.combines_directions else None,
    )


def _look(model: Any, likelihood: Likelihood, data: Data, conditions: list[Condition]) -> Any:
    """The outputs of a batch that was linearised in parts, with its conditions: those of a loop cannot leave it."""
    outputs = call_model(model, data.x, training=False)
    pd, _, more = likelihood.read(outputs, data.sample_weight)
    conditions += [*more, *likelihood.checked_targets(data.y, pd).conditions]
    return outputs


def _loss(model: Any, data: Data, outputs: Any, training: bool, usable: tf.Tensor) -> tf.Tensor:
    """Keras's loss of a batch, or NaN for one on which it would fail in words of its own."""
    first = tf.nest.flatten(outputs)[0].dtype
    dtype = tf.float32 if first in (tf.float16, tf.bfloat16) else first
    loss = _unless_refused(
        usable,
        dtype,
        lambda: model.compute_loss(
            x=data.x, y=data.y, y_pred=outputs, sample_weight=data.sample_weight, training=training
        ),
    )
    # Keras divides it by the number of replicas.
    return loss * _replicas.count() if _replicas.several() else loss


def _unless_refused(usable: tf.Tensor, dtype: tf.DType, function: Callable[[], tf.Tensor]) -> tf.Tensor:
    static = tf.get_static_value(usable)
    if static is not None:
        return tf.cast(function(), dtype) if static else tf.constant(float("nan"), dtype)
    return tf.cond(usable, lambda: tf.cast(function(), dtype), lambda: tf.constant(float("nan"), dtype))


def _gradients_beside(model: Any, direction: BatchDirection, y: Any) -> list[tuple[tf.Tensor, keras.Variable]]:
    """The gradients of what other optimizers have, penalties included, from the same forward pass."""
    own = {id(v) for v in direction.fisher.flat_parameters.variables}
    others = [v for v in model.trainable_variables if id(v) not in own]
    if not others:
        return []
    gradients = direction.fisher.plain_gradient(y, others)
    penalty = penalty_gradient(FlatParameters(others))
    if penalty is not None:
        # Keras adds up the gradients of all replicas.
        penalty /= _replicas.count()
        gradients = [g + p for g, p in zip(gradients, FlatParameters(others).unflatten(penalty), strict=True)]
    return list(zip(gradients, others, strict=True))


def trial_loss(plan: Plan, scale: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Evaluates the loss of the batch, penalties included, at a multiple of the step, without moving a weight.

    Args:
        plan: the step.
        scale: the multiple of it, a scalar.

    Returns:
        The loss, and the outputs.
    """
    training = plan.direction.fisher.batch_or_none is not None
    # Regularisers read their variables from the scope.
    with keras.StatelessScope(state_mapping=trial_state(plan, scale)):
        outputs = call_model(plan.model, plan.data.x, training)
        loss = plan.model.compute_loss(
            x=plan.data.x, y=plan.data.y, y_pred=outputs, sample_weight=plan.data.sample_weight, training=training
        )
    return loss, outputs


def trial_state(plan: Plan, scale: tf.Tensor) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Computes the variables of the model at a multiple of the step, for a call without effects.

    Args:
        plan: the step.
        scale: the multiple of it, a scalar.

    Returns:
        Variables with their values: weights as the update will have them, seeds and statistics as before the pass.
    """
    batch = plan.direction.fisher.batch_or_none
    weights = {id(v): (v, tf.convert_to_tensor(v.value)) for v in plan.model.trainable_variables}
    for variable, step in zip(plan.variables, plan.steps, strict=True):
        weights[id(variable)] = (variable, _candidate(plan, variable, step, scale))
    state = list(weights.values())
    if batch is not None:
        state += [(v, value) for v, value in batch.snapshot if id(v) not in weights]
    return state


def _candidate(plan: Plan, variable: keras.Variable, step: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Where a multiple of the step leads, as Keras's update will have it."""
    natural = plan.natural
    value = tf.convert_to_tensor(variable.value)
    if natural.weight_decay:
        value = natural.decayed(variable)
    value -= tf.cast(plan.rate, value.dtype) * tf.cast(step * tf.cast(scale, step.dtype), value.dtype)
    return value if variable.constraint is None else tf.cast(variable.constraint(value), value.dtype)


__all__ = ["Data", "Plan", "plan_step", "trial_loss", "trial_state"]
