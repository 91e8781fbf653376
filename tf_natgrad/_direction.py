"""The natural gradient of one batch: Fisher, right-hand side, solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._typing import LossLike, ModelLike, TensorLike
from tf_natgrad.operators import FactoredRhs, Fisher
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.solvers import Solver
from tf_natgrad.solvers.auto import may_take_gram

# The share of two vectors' independence, in curvature, below which the second one is left out of a combination.
_DEPENDENT = 1e-4


class BatchDirection(NamedTuple):
    """What one batch gives.

    Attributes:
        value: the direction `d = (F + damping I)^-1 (g + damping shift)`, `[n]`.
        info: the solver's report.
        fisher: the Fisher of the batch.
        slope: `g^T d`, a scalar.
        quadratic_form: `d^T F d`, a scalar, with the exact Fisher (of micro-batches, with the one that was solved for).
    """

    value: tf.Tensor
    info: Any
    fisher: Fisher
    slope: tf.Tensor
    quadratic_form: tf.Tensor

    def predicted_decrease(self, scale: tf.Tensor) -> tf.Tensor:
        """The decrease of the loss that its quadratic model, without damping, predicts for a step of `-scale d`.

        Args:
            scale: a scalar.

        Returns:
            A scalar.
        """
        scale = tf.cast(scale, self.slope.dtype)
        return scale * self.slope - 0.5 * tf.square(scale) * self.quadratic_form


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
) -> BatchDirection:
    """One forward pass, and the natural gradient of its loss, eagerly or inside a trace.

    The gradients of the model's weight regularisers enter the right-hand side, not the Fisher. The direction that a
    Monte-Carlo Fisher gives is scaled to the minimum of the damped quadratic model with the exact one (Martens and
    Grosse 2015, section 6.4): what few samples do not see it would take too large a step along.

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

    Returns:
        A `BatchDirection`.

    Raises:
        ValueError: if an argument does not fit.
    """
    fisher = Fisher(
        model,
        loss,
        (x, y) if sample_weight is None else (x, y, sample_weight),
        kind=kind,
        seed=seed,
        training=training,
        variables=variables,
        micro_batch_size=micro_batch_size,
        record_calls=may_take_gram(solver),
    )
    refuse_activity_losses(model)
    rhs = fisher.loss_gradient()
    penalty = penalty_gradient(fisher.flat_parameters)
    if penalty is not None:
        rhs = rhs._replace(rest=penalty if rhs.rest is None else rhs.rest + penalty)
    rhs = rhs._replace(shift=shift)
    undamped = not tf.is_tensor(damping) and not hasattr(damping, "assign") and damping == 0
    operator = fisher if undamped else fisher.damped(damping)
    d, info = solver.solve(operator, rhs, x0)
    damping = 0.0 if undamped else operator.damping
    if last is not None or kind == "mc":
        return _at_the_minimum(fisher, rhs, damping, info, [d] if last is None else [d, last])
    form = tf.cast(info.quadratic_form, d.dtype)
    # (F + damping I) d = g + damping shift - residual.
    slope = form + damping * tf.reduce_sum(tf.square(d)) + tf.cast(getattr(info, "residual_product", 0.0), d.dtype)
    if shift is not None:
        slope -= damping * tf.reduce_sum(shift * d)
    return BatchDirection(d, info, fisher, slope, form)


def _at_the_minimum(
    fisher: Fisher, rhs: FactoredRhs, damping: tf.Tensor | float, info: Any, vectors: list[tf.Tensor]
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
    damped = [
        [form + damping * tf.reduce_sum(a * b) for form, b in zip(row, vectors, strict=True)]
        for row, a in zip(forms, vectors, strict=True)
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
    form = tf.reduce_sum(k * tf.linalg.matvec(tf.stack([tf.stack(row) for row in forms]), k))
    return BatchDirection(value, info, fisher, slope, form)


def penalty_gradient(flat: FlatParameters) -> tf.Tensor | None:
    """The gradient of the weight regularisers.

    Args:
        flat: the variables.

    Returns:
        `[n]`, or `None` where no variable is regularised.
    """
    penalised = [v for v in flat.variables if getattr(v, "regularizer", None) is not None]
    if not penalised:
        return None
    with tf.GradientTape() as tape:
        penalty = tf.add_n([tf.cast(v.regularizer(v), flat.dtype) for v in penalised])
    gradients = tape.gradient(penalty, flat.tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return flat.flatten([tf.convert_to_tensor(g) for g in gradients])


def refuse_activity_losses(model: ModelLike) -> None:
    """Refuses losses that hang on activations: neither the gradient nor the Fisher here would contain them.

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
