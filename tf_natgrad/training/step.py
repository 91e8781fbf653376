"""One training step as values: a plan, a verdict on it, and then one update.

Nothing is moved before the verdict is known, but for what only Keras can tell by moving it: the statistics of the
forward pass, and the weights of other optimizers beside this one. Where the step is rejected they are put back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_natgrad import _checks, _conditions, _keras
from tf_natgrad._conditions import Condition
from tf_natgrad.distributions import Likelihood
from tf_natgrad.linearize import call_model
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.solvers import Solver
from tf_natgrad.steps import StepReport, Trial, accept, kl_radius, restore
from tf_natgrad.training.direction import BatchDirection, batch_direction, penalty_gradient
from tf_natgrad.training.optimizer import NaturalGradient, apply_beside

NOT_FINITE = (
    "The loss or the natural-gradient direction of this batch is not finite, or its labels or weights are out of "
    "range, or its outputs are no probabilities (logits need `from_logits=True` in the loss); the weights were left as "
    "they were. Check the batch, lower the learning rate or raise `damping`; or pass "
    "`on_nonfinite='skip'` to leave such batches out."
)


class Data(NamedTuple):
    """A batch as `fit` gives it."""

    x: Any
    y: Any
    sample_weight: Any


class Verdict(NamedTuple):
    """What is to become of a planned step.

    Attributes:
        sound: whether the batch and its direction are to be used at all.
        accepted: whether the weights are to move.
        report: of the line search or of the measured decrease; `None` where nothing was measured.
    """

    sound: tf.Tensor
    accepted: tf.Tensor
    report: StepReport | None

    @property
    def scale(self) -> tf.Tensor:
        """The multiple of the planned step to be taken."""
        return tf.cast(self.accepted, tf.float32) if self.report is None else self.report.scale


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
        loss: of the batch before the step, penalties included; NaN where the batch is refused.
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
    in_parts = natural.micro_batch_size is not None
    try:
        direction = _direction(model, natural, likelihood, solver, variables, data, damping)
        conditions = list(direction.conditions)
        outputs = _look(model, likelihood, data, conditions) if in_parts else direction.fisher.outputs
    except BaseException:
        if tf.executing_eagerly():
            restore(statistics, before)
        raise
    usable = _conditions.all_hold(c for c in conditions if not c.finite)
    loss = _loss(model, data, outputs, not in_parts, usable)
    rate = tf.convert_to_tensor(natural.learning_rate)
    form = tf.cast(direction.quadratic_form, rate.dtype)
    shrink = tf.ones([], rate.dtype)
    if natural.max_kl is not None:
        shrink = tf.minimum(shrink, tf.math.divide_no_nan(kl_radius(form, natural.max_kl.value), rate))
    flat = direction.fisher.flat_parameters
    parts = [d * tf.cast(shrink, d.dtype) for d in flat.unflatten(direction.value)]
    plan = Plan(
        model=model,
        natural=natural,
        likelihood=likelihood,
        data=data,
        direction=direction,
        outputs=outputs,
        damping=damping,
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
    if plan.decays_first:
        plan.start = _unless_refused(usable, loss.dtype, lambda: _trial_loss(plan, tf.zeros([], loss.dtype))[0])
    return plan


def _direction(
    model: Any,
    natural: NaturalGradient,
    likelihood: Likelihood,
    solver: Solver,
    variables: list[keras.Variable],
    data: Data,
    damping: tf.Tensor,
) -> BatchDirection:
    last = None
    if natural.last_direction:
        slots = [_keras.slot_of(natural, natural.last_direction, v).value for v in variables]
        last = FlatParameters(variables).flatten(slots)

    def times(factor: keras.Variable | None) -> tf.Tensor | None:
        return None if factor is None else tf.cast(factor.value, last.dtype) * last

    # Of steps that came to nothing too, so that none draws the labels of another.
    steps = tf.cast(natural.iterations.value, tf.int32) + natural.rejected_steps.value + natural.skipped_steps.value
    return batch_direction(
        model,
        likelihood,
        *data,
        damping=damping,
        solver=solver,
        training=natural.micro_batch_size is None,
        variables=variables,
        kind=natural.fisher,
        seed=steps,
        micro_batch_size=natural.micro_batch_size,
        shift=times(natural.momentum),
        x0=times(natural.warm_start),
        last=last if natural.combines_directions else None,
        judges=False,
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
    return _unless_refused(
        usable,
        dtype,
        lambda: model.compute_loss(
            x=data.x, y=data.y, y_pred=outputs, sample_weight=data.sample_weight, training=training
        ),
    )


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
        gradients = [g + p for g, p in zip(gradients, FlatParameters(others).unflatten(penalty), strict=True)]
    return list(zip(gradients, others, strict=True))


class Beside:
    """The other optimizers of a `MultiOptimizer`: they go first, and are put back if the step is rejected.

    Args:
        plan: the step.
    """

    def __init__(self, plan: Plan):
        optimizer, natural = plan.model.optimizer, plan.natural
        own = {id(v) for v in natural.variables}
        self._variables = [*(v for _, v in plan.gradients), *(v for v in optimizer.variables if id(v) not in own)]
        self._before = [tf.identity(tf.convert_to_tensor(v.value)) for v in self._variables]
        if optimizer is not natural:
            apply_beside(natural, optimizer, plan.gradients)
            _keras.count_step(optimizer)

    def settle(self, accepted: tf.Tensor) -> None:
        """Keeps what they did, or puts it back.

        Args:
            accepted: a scalar boolean.
        """
        put_back(self._variables, self._before, ~accepted)


def judge_step(plan: Plan) -> Verdict:
    """Judges a planned step: whether the batch is sound, and how far to go.

    The loss is evaluated at trial points without moving a weight, with the dropout masks of the forward pass.

    Args:
        plan: the step.

    Returns:
        A `Verdict`.
    """
    finite = _conditions.is_finite(plan.loss, plan.rate, *plan.steps, *(g for g, _ in plan.gradients))
    sound = _conditions.all_hold(plan.conditions) & finite
    if not plan.searches and plan.natural.adaptation is None:
        return Verdict(sound, sound, None)
    start = plan.start

    def judged() -> StepReport:
        def evaluate(scale: tf.Tensor) -> Trial:
            trial_loss, outputs = _trial_loss(plan, scale)
            whole = tf.cast(plan.rate * plan.shrink, scale.dtype)
            return Trial(trial_loss, _kl(plan, outputs), plan.direction.predicted_decrease(scale * whole))

        if not plan.searches:
            return accept(evaluate, start)
        limit = None if plan.natural.max_kl is None else plan.natural.max_kl.value
        return plan.natural.line_search.search(evaluate, start, max_kl=limit)

    def left_out() -> StepReport:
        zero = tf.zeros([], start.dtype)
        return StepReport(tf.constant(False), zero, tf.constant(0), zero, zero, zero, zero)

    report = tf.cond(sound, judged, left_out)
    return Verdict(sound, sound & report.accepted, report)


def _trial_loss(plan: Plan, scale: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """The loss of the batch, penalties included, and the outputs, at a multiple of the step."""
    batch = plan.direction.fisher.batch_or_none
    training = batch is not None
    weights = {id(v): (v, tf.convert_to_tensor(v.value)) for v in plan.model.trainable_variables}
    for variable, step in zip(plan.variables, plan.steps, strict=True):
        weights[id(variable)] = (variable, _candidate(plan, variable, step, scale))
    state = list(weights.values())
    if training:
        state += [(v, value) for v, value in batch.snapshot if id(v) not in weights]
    # Regularisers read their variables from the scope.
    with keras.StatelessScope(state_mapping=state):
        outputs = call_model(plan.model, plan.data.x, training)
        loss = plan.model.compute_loss(
            x=plan.data.x, y=plan.data.y, y_pred=outputs, sample_weight=plan.data.sample_weight, training=training
        )
    return loss, outputs


def _candidate(plan: Plan, variable: keras.Variable, step: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Where a multiple of the step leads, as Keras's update will have it."""
    natural = plan.natural
    value = tf.convert_to_tensor(variable.value)
    if natural.weight_decay:
        value = natural.decayed(variable)
    value -= tf.cast(plan.rate, value.dtype) * tf.cast(step * tf.cast(scale, step.dtype), value.dtype)
    return value if variable.constraint is None else tf.cast(variable.constraint(value), value.dtype)


def _kl(plan: Plan, outputs: Any) -> tf.Tensor:
    """`KL(before || there)`, weighted as the loss is, in nats."""
    pd, weights, _ = plan.likelihood.read(plan.outputs, plan.data.sample_weight)
    kl = pd.kl(plan.likelihood.distribution(outputs))
    return tf.reduce_sum(tf.cast(weights, kl.dtype) * kl)


def update(plan: Plan, verdict: Verdict) -> None:
    """Updates weights and optimizer, once; what a rejected step must not change is put back.

    Args:
        plan: the step.
        verdict: on it.
    """
    natural = plan.natural
    number = tf.identity(natural.iterations.value)
    # The step's own numbers and slots are set below.
    slots = []
    if natural.last_direction:
        slots = [_keras.slot_of(natural, natural.last_direction, v) for v in plan.variables]
    set_here = {id(v) for v in (*slots, natural.damping, natural.rejected_steps, natural.skipped_steps)}
    state = [v for v in natural.variables if id(v) not in set_here]
    before = [tf.identity(tf.convert_to_tensor(v.value)) for v in state]
    kept = [tf.identity(tf.convert_to_tensor(v.value)) for v in plan.variables]
    if plan.decays_first:
        # It stays where the search rejects the step.
        for k, variable in enumerate(plan.variables):
            decayed = tf.where(verdict.sound, natural.decayed(variable), kept[k])
            variable.assign(decayed)
            kept[k] = decayed
    scale = verdict.scale
    steps = [tf.where(verdict.accepted, s * tf.cast(scale, s.dtype), tf.zeros_like(s)) for s in plan.steps]
    natural.apply_direction(steps, plan.variables, decayed=plan.decays_first)
    put_back([*plan.variables, *state], [*kept, *before], ~verdict.accepted)
    put_back(*plan.statistics, ~verdict.sound)
    _note(plan, verdict, slots, number)


def _note(plan: Plan, verdict: Verdict, slots: list[keras.Variable], number: tf.Tensor) -> None:
    """Counts the step, keeps its direction, and adapts the damping."""
    natural, report = plan.natural, verdict.report
    # Momentum restarts after a step that failed: damping that grows would turn the next one into the last.
    held = verdict.accepted if report is None else verdict.accepted & tf.equal(report.backtracks, 0)
    directions = plan.direction.fisher.flat_parameters.unflatten(plan.direction.value)
    for slot, direction in zip(slots, directions if slots else [], strict=True):
        new = tf.where(held, tf.cast(direction, slot.dtype), tf.zeros_like(slot.value))
        slot.assign(tf.where(verdict.sound, new, slot.value))
    rejected = verdict.sound & ~verdict.accepted
    natural.rejected_steps.assign_add(tf.cast(rejected, natural.rejected_steps.dtype))
    natural.skipped_steps.assign_add(tf.cast(~verdict.sound, natural.skipped_steps.dtype))
    if natural.adaptation is not None:
        adapted = natural.adaptation.after(natural.damping.value, number, report)
        natural.damping.assign(tf.where(verdict.sound, adapted, natural.damping.value))


def put_back(variables: list[keras.Variable], values: list[tf.Tensor], where: tf.Tensor) -> None:
    """Sets variables back to earlier values where a condition says so, in one unconditional assignment each.

    Args:
        variables: Keras variables.
        values: one tensor each.
        where: a scalar boolean.
    """
    for variable, value in zip(variables, values, strict=True):
        variable.assign(tf.where(where, value, tf.convert_to_tensor(variable.value)))


def logs_of(plan: Plan, verdict: Verdict) -> dict[str, tf.Tensor]:
    """What the log shows of a step: what was predicted, and measured where it was judged; zeros where it was left out.

    Args:
        plan: the step.
        verdict: on it.

    Returns:
        Scalars.
    """
    info, report = plan.direction.info, verdict.report
    size = {name: getattr(info, name) for name in ("rank", "iterations") if hasattr(info, name)}
    if report is None:
        shown = {"kl": plan.kl_predicted}
    else:
        names = ("predicted_decrease", "actual_decrease", "reduction_ratio", "kl")
        shown = {name: getattr(report, name) for name in names}
        shown["step_scale"] = report.scale * tf.cast(plan.shrink, report.scale.dtype)
    shown = {name: tf.where(verdict.sound, value, tf.zeros_like(value)) for name, value in shown.items()}
    logs = {"damping": plan.damping, **size, **shown}
    if plan.searches:
        logs["rejected_steps"] = tf.convert_to_tensor(plan.natural.rejected_steps.value)
    if plan.natural.on_nonfinite == "skip":
        logs["skipped_steps"] = tf.convert_to_tensor(plan.natural.skipped_steps.value)
    return logs


def refusals_of(plan: Plan, verdict: Verdict) -> list[Condition]:
    """The conditions under which a step was one, in the order in which they are to be reported.

    Args:
        plan: the step.
        verdict: on it.

    Returns:
        Those of labels, weights and outputs; and, where such batches are not left out, that all is finite, by the name
        of what is to blame.
    """
    found = [c for c in plan.conditions if not c.finite]
    if plan.natural.on_nonfinite == "skip":
        return found
    remedy = "Clean the batch, or leave such batches out with `on_nonfinite='skip'`."
    for name, given in zip(Data._fields, plan.data, strict=True):
        tensors = [] if given is None else [tf.convert_to_tensor(t) for t in tf.nest.flatten(given)]
        text = _checks.message(name, "NaN or infinite values", "finite values", remedy)
        found.append(Condition(_conditions.is_finite(*tensors), text, finite=True))
    return [*found, Condition(verdict.sound, NOT_FINITE, finite=True)]


__all__ = [
    "NOT_FINITE",
    "Beside",
    "Data",
    "Plan",
    "Verdict",
    "judge_step",
    "logs_of",
    "plan_step",
    "put_back",
    "refusals_of",
    "update",
]
