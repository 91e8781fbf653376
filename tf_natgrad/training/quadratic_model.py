"""The quadratic model of the loss along a direction: what a step promises, and the best combination of two."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_natgrad.operators import CurvatureOperator, FactoredRhs, Fisher

# The share of two vectors' independence, in curvature, below which the second one is left out of a combination.
_DEPENDENT = 1e-4


class QuadraticModel(NamedTuple):
    """The loss at `theta - s d`, to second order: `L - s g^T d + 1/2 s^2 d^T (F + R) d`.

    Attributes:
        slope: `g^T d`, a scalar.
        fisher_form: `d^T F d`, a scalar, with the exact Fisher (of micro-batches, with the one that was solved for).
        curvature_form: `d^T (F + R) d`, a scalar, `R` the curvature of the weight regularisers.
    """

    slope: tf.Tensor
    fisher_form: tf.Tensor
    curvature_form: tf.Tensor

    def predicted_decrease(self, scale: tf.Tensor) -> tf.Tensor:
        """Returns the decrease of the loss that the model, without damping, predicts for a step of `-scale d`.

        Args:
            scale: a scalar.

        Returns:
            A scalar.
        """
        scale = tf.cast(scale, self.slope.dtype)
        return scale * self.slope - 0.5 * tf.square(scale) * self.curvature_form


def best_combination(
    fisher: Fisher,
    curvature: CurvatureOperator | None,
    rhs: FactoredRhs,
    damping: tf.Tensor | float,
    vectors: list[tf.Tensor],
) -> tuple[tf.Tensor, QuadraticModel]:
    """Computes the combination of one or two vectors that minimises the damped quadratic model with the exact Fisher.

    A second vector that adds nothing, such as zero, is left out; so is a first one that does not point downhill.

    Args:
        fisher: of the batch.
        curvature: `R`, or `None` where it is zero.
        rhs: the gradient, with the shift to which the damping pulls.
        damping: a scalar.
        vectors: one or two of `[n]`.

    Returns:
        The combination `[n]`, and the quadratic model along it.

    References:
        J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML (2015),
        sections 6.4 and 7.
    """
    rows = [fisher.exact_factor_product(v) for v in vectors]
    slopes = [_slope(rhs, v, image) for v, image in zip(vectors, rows, strict=True)]
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
    return value, QuadraticModel(slope, form, whole)


def model_along(
    fisher: Fisher, curvature: CurvatureOperator | None, rhs: FactoredRhs, vector: tf.Tensor
) -> QuadraticModel:
    """Computes the quadratic model of the loss with the exact Fisher along a vector.

    Args:
        fisher: of the batch.
        curvature: `R`, or `None` where it is zero.
        rhs: the gradient.
        vector: `[n]`.

    Returns:
        A `QuadraticModel`.
    """
    image = fisher.exact_factor_product(vector)
    form = tf.reduce_sum(tf.square(image))
    whole = form if curvature is None else form + tf.reduce_sum(vector * curvature.product(vector))
    return QuadraticModel(_slope(rhs, vector, image), form, whole)


def _slope(rhs: FactoredRhs, vector: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """`g^T v`; a right-hand side that is factored belongs to the exact Fisher."""
    slope = tf.zeros([], vector.dtype) if rhs.rest is None else tf.reduce_sum(rhs.rest * vector)
    return slope if rhs.u is None else slope + tf.reduce_sum(image * rhs.u)


__all__ = ["QuadraticModel", "best_combination", "model_along"]
