"""A step on several replicas: what they have to agree on, and the loss of the global batch, which each knows in part.

TensorFlow refuses an exchange inside `tf.cond` and `tf.while_loop`, and an exception in the graph of one replica would
leave the others waiting. So the shares of all trial points are computed first and summed then, and what is refused is
a number in the log, out of which Python makes the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _replicas
from tf_natgrad._conditions import Condition
from tf_natgrad.distributions import Distribution
from tf_natgrad.linearize import call_model
from tf_natgrad.steps import StepReport, Trial, accept
from tf_natgrad.training.plan import Plan, trial_state

# In the logs of a step on several replicas: the number of the refusal, or -1.
REFUSED = "refused"
_KNOWN: list[tuple[type[ValueError], str]] = []


def _share(plan: Plan, targets: tf.Tensor, pd: Distribution, penalties: Sequence[tf.Tensor]) -> tf.Tensor:
    """What the examples of this replica contribute to loss and KL divergence at a point, `[2]`.

    The loss is the negative log-likelihood with the weights of the global batch: Keras's, but for a constant.
    """
    batch = plan.direction.fisher.batch
    weights = batch.output_weights[..., 0]
    log_prob, kl = (tf.cast(value, weights.dtype) for value in (pd.log_prob(targets), batch.pd.kl(pd)))
    loss = -tf.reduce_sum(weights * log_prob)
    if penalties:
        # All replicas have the same.
        loss += tf.add_n([tf.cast(p, loss.dtype) for p in penalties]) / _replicas.count()
    return tf.stack([loss, tf.reduce_sum(weights * kl)])


def _trial_share(plan: Plan, targets: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """The same at a multiple of the step, without moving a weight."""
    batch = plan.direction.fisher.batch
    with keras.StatelessScope(state_mapping=trial_state(plan, scale)):
        there = batch.likelihood.parameters(call_model(plan.model, plan.data.x, training=True))
        penalties = list(plan.model.losses)
    return _share(plan, targets, batch.pd.with_parameters(there), penalties)


def judge_together(plan: Plan, sound: tf.Tensor) -> StepReport | None:
    """Judges a step by the loss of the global batch, as `judge_step` does on one device.

    Args:
        plan: the step.
        sound: whether the batch is to be used, the same on all replicas.

    Returns:
        The report, the same on all replicas; `None` where nothing is measured.
    """
    natural = plan.natural
    if not plan.searches and natural.adaptation is None:
        return None
    batch = plan.direction.fisher.batch
    dtype, targets = batch.output_weights.dtype, batch.targets()

    def trials(scales: tf.Tensor, wanted: tf.Tensor) -> Trial:
        def computed() -> tf.Tensor:
            if scales.shape[0] == 1:
                return _trial_share(plan, targets, scales[0])[None]
            return tf.map_fn(lambda scale: _trial_share(plan, targets, scale), scales, parallel_iterations=1)

        shares = tf.cond(wanted, computed, lambda: tf.zeros([scales.shape[0], 2], dtype))
        loss, kl = tf.unstack(_replicas.total(tf.ensure_shape(shares, [scales.shape[0], 2])), axis=1)
        whole = tf.cast(plan.rate * plan.step_shrink, dtype)
        return Trial(loss, kl, plan.direction.model.predicted_decrease(scales * whole))

    if plan.decays_first:
        start = trials(tf.zeros([1], dtype), sound).loss[0]
    else:
        start = _replicas.total(_share(plan, targets, batch.pd, plan.model.losses))[0]
    if plan.searches:
        report = natural.line_search.search_at_once(trials, start, sound, plan.measured_limit)
    else:
        report = accept(lambda scale: Trial(*(part[0] for part in trials(scale[None], sound))), start)
    return StepReport(*(tf.where(sound, value, tf.zeros_like(value)) for value in report))


def refusal_of(conditions: list[Condition]) -> tf.Tensor:
    """Computes the number of the first condition that does not hold on some replica, or -1.

    Args:
        conditions: in the order in which they are to be reported.

    Returns:
        A scalar, for the logs; `raise_refusal` makes the error of it.

    Raises:
        ValueError: at once, where a condition is known to fail.
    """
    open_ones = []
    for condition in conditions:
        static = tf.get_static_value(condition.ok)
        if static is None:
            open_ones.append(condition)
        elif not static:
            raise condition.error(condition.text)
    numbers = [_number_of(condition) for condition in open_ones]
    found = tf.constant(-1.0)
    for number, ok in reversed(list(zip(numbers, _replicas.hold([c.ok for c in open_ones]), strict=True))):
        found = tf.where(ok, found, float(number))
    return found


def raise_refusal(logs: dict[str, Any]) -> dict[str, Any]:
    """Raises what the logs of a step say that it was refused for.

    Args:
        logs: of a step on several replicas.

    Returns:
        The logs without that number.

    Raises:
        ValueError: in the words of the condition that failed.
    """
    number = round(float(logs.pop(REFUSED, -1.0)))
    if number >= 0:
        error, text = _KNOWN[number]
        raise error(text)
    return logs


def _number_of(condition: Condition) -> int:
    key = (condition.error, condition.text)
    if key not in _KNOWN:
        _KNOWN.append(key)
    return _KNOWN.index(key)


__all__ = ["REFUSED", "judge_together", "raise_refusal", "refusal_of"]
