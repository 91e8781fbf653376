"""Whether a fit exists at all: a search for a direction along which no example's loss ever rises."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad.operators import Fisher
from tf_natgrad.operators._batch import Batch
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.training._factorised import Step

# How far to look, in Newton steps, and what an example may lose on the way, in nats.
_AHEAD, _TOLERANCE = 16.0, 1e-3
# The share of the gain of a Newton step that the loss must at least fall by.
_LEAST_GAIN = 0.1
# Changes of the outputs, relative to what the derivative says, that count as none.
_SMALL = 1e-2
# Units in the last place of the loss that the gain of a Newton step must exceed.
_ROUNDINGS = 10
# The multiple of the step at which a penalty is asked whether it holds the weights back.
_FAR = 1e6


def no_finite_fit(fisher: Fisher, loss: tf.Tensor, gradient: tf.Tensor, step: Step) -> bool:
    """Tells whether the loss has no minimum, by the last step of a fit.

    A convex loss attains no minimum if it falls for ever along a line (a direction of recession). For logistic and
    softmax regression that is the separation of the labels by a hyperplane. Newton's steps converge to such a direction
    where there is one: then they keep their length while the gradient falls geometrically. So the weights of the moment
    are followed by 16 steps of the length at which the quadratic model `t s - t^2 q / 2` has its maximum, where that
    model has the loss rise by 112 of its own gains. There is no minimum in sight if nonetheless

    1. no example's loss rises, apart from rounding;
    2. the sum of the losses and penalties falls by a tenth of that gain or more;
    3. the outputs are linear in the weights along the line, without which it would prove nothing;
    4. penalised weights have no part in it.

    It takes one pass over the data and keeps four numbers of it; none where a step gains no more than rounding.

    Args:
        fisher: over the whole data, with labels. The model's weights are those at which the fit ended.
        loss: at these weights, penalties included.
        gradient: the one that the step was solved for.
        step: the last step, taken or not.

    Returns:
        Whether such a line was found. Without one nothing is known.

    References:
        A. Albert, J. A. Anderson, "On the existence of maximum likelihood estimates in logistic regression models",
        Biometrika 71 (1984). E. Lesaffre, A. Albert, "Partial separation in logistic discrimination", J. R. Stat. Soc.
        B 51 (1989).
        C. J. Geyer, "Likelihood inference in exponential families and directions of recession", Electron. J. Stat. 3
        (2009), theorem 4.
    """
    flat = fisher.flat_parameters
    slope, form = float(tf.tensordot(gradient, step.value, 1)), float(step.quadratic_form)
    # Below that a fall cannot be told from rounding, and the fit has got as far as the arithmetic goes.
    rounding = _ROUNDINGS * np.finfo(loss.dtype.as_numpy_dtype).eps * abs(float(loss))
    if not (slope > 0.0 and form > 0.0 and slope**2 / form > rounding):
        return False
    line = (-_AHEAD * slope / form) * step.value
    held = [_holds(v, part) for v, part in zip(flat.variables, flat.unflatten(line), strict=True)]
    if all(held):
        return False
    held_line = flat.flatten([p * float(h) for p, h in zip(flat.unflatten(line), held, strict=True)])

    def whole(theta: tf.Tensor, line: tf.Tensor, held_line: tf.Tensor) -> tf.Tensor:
        def of_batch(batch: Batch) -> tf.Tensor:
            return _along(fisher, batch, theta, line, held_line)

        return fisher.source.sum("no_finite_fit", of_batch, tf.zeros([4], flat.dtype))

    fall, *against = fisher.compiled("no_finite_fit", whole)(flat.read(), line, held_line).numpy()
    return bool(fall - _penalty_rise(flat, line) >= _LEAST_GAIN * slope**2 / form) and not any(against)


def _along(fisher: Fisher, batch: Batch, theta: tf.Tensor, line: tf.Tensor, held_line: tf.Tensor) -> tf.Tensor:
    """How far the loss of a batch falls along a line; and the weight of its positions that speak against it.

    That is where the loss rises, where the outputs are not linear, and where penalised weights move them.
    """
    flat, pd, y = fisher.flat_parameters, batch.pd, batch.targets()
    change, held_change = (batch.linearization.jvp(flat.unflatten(v)) for v in (line, held_line))
    linear = pd.parameters + change
    there = batch.distribution_at(zip(flat.variables, flat.unflatten(theta + line), strict=True)).parameters
    rise = pd.log_prob(y) - pd.with_parameters(linear).log_prob(y)
    small = _SMALL * (1.0 + tf.reduce_max(tf.abs(change)))
    # What is not a number speaks against it.
    against = [
        ~(rise <= _TOLERANCE),
        ~(tf.reduce_max(tf.abs(there - linear), -1) <= small),
        ~(tf.reduce_max(tf.abs(held_change), -1) <= small),
    ]
    weights = tf.cast(batch.weights, flat.dtype)
    terms = [tf.cast(-rise, flat.dtype), *(tf.cast(a, flat.dtype) for a in against)]
    return tf.stack([tf.reduce_sum(tf.math.multiply_no_nan(term, weights)) for term in terms])


def _holds(variable: keras.Variable, change: tf.Tensor) -> bool:
    """Whether the penalty of a variable grows along a line."""
    regularizer, value = getattr(variable, "regularizer", None), tf.convert_to_tensor(variable)
    return regularizer is not None and bool(regularizer(value + _FAR * change) > regularizer(value))


def _penalty_rise(flat: FlatParameters, line: tf.Tensor) -> float:
    rise = 0.0
    for variable, change in zip(flat.variables, flat.unflatten(line), strict=True):
        if getattr(variable, "regularizer", None) is not None:
            value = tf.convert_to_tensor(variable)
            rise += float(variable.regularizer(value + change) - variable.regularizer(value))
    return rise


__all__ = ["no_finite_fit"]
