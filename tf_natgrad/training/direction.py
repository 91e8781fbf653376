"""The natural gradient of one batch: it forms the Fisher and the right-hand side, and solves the system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._conditions import Condition
from tf_natgrad._typing import LossLike, ModelLike, TensorLike
from tf_natgrad.operators import CurvatureOperator, Damped, FactoredRhs, Fisher, Penalty
from tf_natgrad.operators._penalised import penalised
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.solvers import Gram, Solver
from tf_natgrad.solvers.auto import may_take_gram, refuse_gram_of_a_sum

# The share of two vectors' independence, in curvature, below which the second one is left out of a combination.
_DEPENDENT = 1e-4


class BatchDirection(NamedTuple):
    """What one batch gives.

    Attributes:
        value: the direction `d = (F + R + damping I)^-1 (g + damping shift)`, `[n]`, with `R` the curvature of the
            weight regularisers.
        info: the solver's report.
        fisher: the Fisher of the batch.
        slope: `g^T d`, a scalar.
        quadratic_form: `d^T F d`, a scalar, with the exact Fisher (of micro-batches, with the one that was solved for).
        curvature_form: `d^T (F + R) d`, a scalar.
        conditions: on the values that went in, where they were not judged at once.
    """

    value: tf.Tensor
    info: Any
    fisher: Fisher
    slope: tf.Tensor
    quadratic_form: tf.Tensor
    curvature_form: tf.Tensor
    conditions: list[Condition]

    def predicted_decrease(self, scale: tf.Tensor) -> tf.Tensor:
        """The decrease of the loss that its quadratic model, without damping, predicts for a step of `-scale d`.

        Args:
            scale: a scalar.

        Returns:
            A scalar.
        """
        scale = tf.cast(scale, self.slope.dtype)
        return scale * self.slope - 0.5 * tf.square(scale) * self.curvature_form


def batch_direction(
    model: ModelLike,
    loss: LossLike,
    x: Any,
    y: TensorLike,
    sample_weight: TensorLike | None,
    *,
    damping: TensorLike,
    solver: Solver,
    training: bool,
    variables: Sequence[keras.Variable] | None = None,
    kind: str = "exact",
    seed: int | tf.Tensor = 0,
    micro_batch_size: int | None = None,
    shift: tf.Tensor | None = None,
    x0: tf.Tensor | None = None,
    last: tf.Tensor | None = None,
    judges: bool = True,
) -> BatchDirection:
    """One forward pass, and the natural gradient of its loss, eagerly or inside a trace.

    The model's weight regularisers enter with gradient and curvature. The direction that a Monte-Carlo Fisher gives is
    scaled to the minimum of the damped quadratic model with the exact one (Martens and Grosse 2015, section 6.4): what
    few samples do not see it would take too large a step along.

    Args:
        model: a Keras model.
        loss: see `likelihood_of`.
        x: the inputs of the batch.
        y: its labels.
        sample_weight: its weights, or `None`.
        damping: a number >= 0 or a scalar tensor; the number 0 asks for the pseudo-inverse.
        solver: a solver.
        training: the mode in which the model is called.
        variables: those that the direction is about; by default all trainable ones.
        kind: of the Fisher, `"exact"` or `"mc"`.
        seed: of the labels of `"mc"`.
        micro_batch_size: see `Fisher`.
        shift: `[n]`, where the damping pulls the direction to, or `None` for zero.
        x0: `[n]`, where an iterative solver starts, or `None` for zero.
        last: `[n]`, the last direction, to be combined with this one so that the damped quadratic model with the exact
            Fisher is minimal (Martens and Grosse 2015, section 7), or `None`.
        judges: whether conditions on values are judged at once, rather than returned.

    Returns:
        A `BatchDirection`.

    Raises:
        ValueError: if an argument does not fit.
    """
    conditions = None if judges else []
    fisher = Fisher(
        model,
        loss,
        (x, y) if sample_weight is None else (x, y, sample_weight),
        kind=kind,
        seed=seed,
        training=training,
        variables=variables,
        micro_batch_size=micro_batch_size,
        conditions=conditions,
        record_calls=may_take_gram(solver),
    )
    refuse_activity_losses(model)
    rhs = fisher.loss_gradient()
    penalty = penalty_gradient(fisher.flat_parameters)
    if penalty is not None:
        rhs = rhs._replace(rest=penalty if rhs.rest is None else rhs.rest + penalty)
    rhs = rhs._replace(shift=shift)
    operator, curvature = penalised(fisher, damping, conditions)
    damping = operator.damping if isinstance(operator, Damped) else 0.0
    refuse_gram_of_a_sum(solver, operator)
    d, info = solver.solve(operator, _without_shift(rhs, operator), x0, conditions)
    conditions = conditions or []
    if last is not None or kind == "mc":
        return _at_the_minimum(fisher, curvature, rhs, damping, info, [d] if last is None else [d, last], conditions)
    form = whole = tf.cast(info.quadratic_form, d.dtype)
    if curvature is not None:
        penalised_form = tf.reduce_sum(d * curvature.product(d))
        # Of what it solves for, the Gram solver reports the factored part alone.
        if info.solver == Gram.__name__:
            whole = form + penalised_form
        else:
            form = tf.maximum(whole - penalised_form, 0.0)
    # (F + R + damping I) d = g + damping shift - residual.
    slope = whole + damping * tf.reduce_sum(tf.square(d)) + tf.cast(getattr(info, "residual_product", 0.0), d.dtype)
    if shift is not None:
        slope -= damping * tf.reduce_sum(shift * d)
    return BatchDirection(d, info, fisher, slope, form, whole, conditions)


def _without_shift(rhs: FactoredRhs, operator: CurvatureOperator) -> FactoredRhs:
    """The same right-hand side for a damping that differs by variable: only the damping itself pulls to the shift."""
    if rhs.shift is None or not isinstance(operator, Damped) or operator.damping_by_variable is None:
        return rhs
    pull = operator.damping * rhs.shift
    return rhs._replace(shift=None, rest=pull if rhs.rest is None else rhs.rest + pull)


def _at_the_minimum(
    fisher: Fisher,
    curvature: CurvatureOperator | None,
    rhs: FactoredRhs,
    damping: tf.Tensor | float,
    info: Any,
    vectors: list[tf.Tensor],
    conditions: list[Condition],
) -> BatchDirection:
    """The combination of one or two vectors that minimises the damped quadratic model with the exact Fisher.

    A second vector that adds nothing, such as zero, is left out; so is a first one that does not point downhill.
    """
    rows = [fisher.exact_factor_product(v) for v in vectors]

    def slope_of(v: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        # A right-hand side that is factored belongs to the exact Fisher.
        slope = tf.zeros([], v.dtype) if rhs.rest is None else tf.reduce_sum(rhs.rest * v)
        return slope if rhs.u is None else slope + tf.reduce_sum(image * rhs.u)

    slopes = [slope_of(v, image) for v, image in zip(vectors, rows, strict=True)]
    # The model that the direction minimises is drawn to the shift too.
    pulls = slopes
    if rhs.shift is not None:
        pulls = [s + damping * tf.reduce_sum(rhs.shift * v) for s, v in zip(slopes, vectors, strict=True)]
    forms = [[tf.reduce_sum(a * b) for b in rows] for a in rows]
    wholes = forms
    if curvature is not None:
        images = [curvature.product(v) for v in vectors]
        wholes = [
            [form + tf.reduce_sum(a * image) for form, image in zip(row, images, strict=True)]
            for row, a in zip(forms, vectors, strict=True)
        ]
    damped = [
        [form + damping * tf.reduce_sum(a * b) for form, b in zip(row, vectors, strict=True)]
        for row, a in zip(wholes, vectors, strict=True)
    ]
    zero = tf.zeros_like(slopes[0])
    coefficients = [tf.where(pulls[0] > 0, tf.math.divide_no_nan(pulls[0], damped[0][0]), zero)]
    if len(vectors) == 2:
        (a, b), (_, c) = damped
        determinant = a * c - b * b
        independent = determinant > _DEPENDENT * a * c
        both = [c * pulls[0] - b * pulls[1], a * pulls[1] - b * pulls[0]]
        both = [tf.math.divide_no_nan(x, determinant) for x in both]
        coefficients = [tf.where(independent, x, y) for x, y in zip(both, [coefficients[0], zero], strict=True)]
    value = tf.add_n([k * v for k, v in zip(coefficients, vectors, strict=True)])
    slope = tf.add_n([k * s for k, s in zip(coefficients, slopes, strict=True)])
    k = tf.stack(coefficients)
    form, whole = (
        tf.reduce_sum(k * tf.linalg.matvec(tf.stack([tf.stack(row) for row in table]), k)) for table in (forms, wholes)
    )
    return BatchDirection(value, info, fisher, slope, form, whole, conditions)


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


__all__ = ["BatchDirection", "batch_direction", "penalty_gradient", "refuse_activity_losses"]
