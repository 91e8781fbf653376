"""One training step as values: a plan, a verdict on it, and then one update.

Nothing is moved before the verdict is known, but for what only Keras can tell by moving it: the statistics of the
forward pass, and the weights of other optimizers beside this one. Where the step is rejected they are put back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_natgrad import _checks, _conditions, _keras, _replicas
from tf_natgrad._conditions import Condition
from tf_natgrad.errors import NonFiniteError
from tf_natgrad.steps import StepReport, Trial, accept
from tf_natgrad.training._beside import apply_beside, without_loss_scale
from tf_natgrad.training._replicated import judge_together
from tf_natgrad.training.optimizer import NaturalGradient
from tf_natgrad.training.plan import Data, Plan, trial_loss

NOT_FINITE = (
    "The loss or the natural-gradient direction of this batch is not finite, or its labels or weights are out of "
    "range, or its outputs are no probabilities (logits need `from_logits=True` in the loss); the weights were left as "
    "they were. Check the batch, lower the learning rate or raise `damping`; or pass "
    "`on_nonfinite='skip'` to leave such batches out."
)


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


class Beside:
    """The other optimizers of a `MultiOptimizer`: they go first, and are put back if the step is rejected.

    Args:
        plan: the step.
    """

    def __init__(self, plan: Plan):
        optimizer, natural = without_loss_scale(plan.model.optimizer), plan.natural
        own = {id(v) for v in natural.variables}
        self._variables = [*(v for _, v in plan.gradients), *(v for v in optimizer.variables if id(v) not in own)]
        self._before = [tf.identity(tf.convert_to_tensor(v.value)) for v in self._variables]
        if optimizer is not natural:
            # Not even a step is counted of a batch that could not be read.
            with tf.control_dependencies([gradient for gradient, _ in plan.gradients]):
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
    if _replicas.several():
        (sound,) = _replicas.hold([sound])
        report = judge_together(plan, sound)
        return Verdict(sound, sound if report is None else sound & report.accepted, report)
    if not plan.searches and plan.natural.adaptation is None:
        return Verdict(sound, sound, None)
    start = plan.start

    def judged() -> StepReport:
        def evaluate(scale: tf.Tensor) -> Trial:
            loss, outputs = trial_loss(plan, scale)
            whole = tf.cast(plan.rate * plan.step_shrink, scale.dtype)
            return Trial(loss, _kl(plan, outputs), plan.direction.model.predicted_decrease(scale * whole))

        if not plan.searches:
            return accept(evaluate, start)
        return plan.natural.line_search.search(evaluate, start, max_kl=plan.measured_limit)

    def left_out() -> StepReport:
        zero = tf.zeros([], start.dtype)
        return StepReport(tf.constant(False), zero, tf.constant(0), zero, zero, zero, zero)

    report = tf.cond(sound, judged, left_out)
    return Verdict(sound, sound & report.accepted, report)


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
    if natural.preconditioner is not None:
        # What was seen of the curvature stays where the search rejects the step.
        natural.preconditioner.keep(plan.direction.state, verdict.sound)
        set_here |= {id(v) for v in natural.preconditioner.variables}
    state = [v for v in natural.variables if id(v) not in set_here]
    if plan.decays_first:
        # It stays where the search rejects the step.
        for variable in plan.variables:
            value = tf.convert_to_tensor(variable.value)
            variable.assign(tf.where(verdict.sound, natural.decayed(variable), value))
    # A value that is held makes the update of a variable copy it.
    state += [v for v in plan.variables if not _stays_at_zero(plan, v)]
    before = [tf.identity(tf.convert_to_tensor(v.value)) for v in state]
    scaled = plan.steps
    if verdict.report is not None:
        scaled = [s * tf.cast(verdict.report.scale, s.dtype) for s in plan.steps]
    steps = _conditions.chosen(verdict.accepted, scaled, [tf.zeros_like(s) for s in plan.steps])
    # Not even a step is counted of a batch that could not be read.
    with tf.control_dependencies([verdict.accepted]):
        natural.apply_direction(steps, plan.variables, decayed=plan.decays_first)
    put_back(state, before, ~verdict.accepted)
    put_back(*plan.statistics, ~verdict.sound)
    _note(plan, verdict, slots, number)


def _stays_at_zero(plan: Plan, variable: keras.Variable) -> bool:
    """Whether Keras's update with a step of zeros leaves a variable as it is."""
    natural = plan.natural
    plain = type(natural).update_step is NaturalGradient.update_step and not natural.ema_overwrite_frequency
    written = variable.constraint is not None or getattr(variable, "overwrite_with_gradient", False)
    return plain and not written and (plan.decays_first or not natural.weight_decay)


def _note(plan: Plan, verdict: Verdict, slots: list[keras.Variable], number: tf.Tensor) -> None:
    """Counts the step, keeps its direction, and adapts the damping."""
    natural, report = plan.natural, verdict.report
    directions = [tf.cast(d, slot.dtype) for slot, d in zip(slots, plan.direction.parts if slots else [], strict=True)]
    if report is not None:
        # Momentum restarts after a step that failed: damping that grows would turn the next one into the last.
        held = verdict.accepted & tf.equal(report.backtracks, 0)
        directions = _conditions.chosen(held, directions, [tf.zeros(slot.shape, slot.dtype) for slot in slots])
    put_back(slots, directions, verdict.sound)
    rejected = verdict.sound & ~verdict.accepted
    natural.rejected_steps.assign_add(tf.cast(rejected, natural.rejected_steps.dtype))
    natural.skipped_steps.assign_add(tf.cast(~verdict.sound, natural.skipped_steps.dtype))
    if natural.adaptation is not None:
        adapted = natural.adaptation.after(plan.damping, number, report)
        natural.damping.assign(tf.where(verdict.sound, adapted, natural.damping.value))


def put_back(variables: list[keras.Variable], values: list[tf.Tensor], where: tf.Tensor) -> None:
    """Sets variables back to earlier values where a condition says so, in one unconditional assignment each.

    Args:
        variables: Keras variables.
        values: one tensor each.
        where: a scalar boolean.
    """
    current = [tf.convert_to_tensor(v.value) for v in variables]
    for variable, value in zip(variables, _conditions.chosen(where, values, current), strict=True):
        variable.assign(value)


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
        found.append(Condition(_conditions.is_finite(*tensors), text, NonFiniteError, finite=True))
    return [*found, Condition(verdict.sound, NOT_FINITE, NonFiniteError, finite=True)]


def side_effects() -> list[tf.Operation]:
    """Lists the operations of the graph that is being traced that have effects.

    Returns:
        Operations; none in eager code, where all are done.
    """
    graph = _keras.graph_now()
    # To read all variables instead took longer than to write them.
    operations = [] if graph is None else graph.get_operations()
    return [op for op in operations if op.op_def.is_stateful and op.type not in ("ReadVariableOp", "Placeholder")]


__all__ = [
    "NOT_FINITE",
    "Beside",
    "Verdict",
    "judge_step",
    "logs_of",
    "put_back",
    "refusals_of",
    "side_effects",
    "update",
]
