"""The pseudo-inverse of the dense matrix by singular value decomposition, as in the blog."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from tf_natgrad import _checks, _conditions
from tf_natgrad.operators import Damped
from tf_natgrad.solvers._base import Algorithm, flat_rhs, undamped


class SVDInfo(NamedTuple):
    """Report of `SVDPseudoInverse`.

    Attributes:
        solver: its name.
        rank: the number of singular values kept.
        condition_number: the ratio of the largest to the smallest one kept.
        discarded_gradient_energy: the share of the right-hand side's squared norm outside of the span kept.
        quadratic_form: `x^T F x` of the solution, `F` without its damping.
        why: the reason for this solver, if it was chosen automatically.
    """

    solver: str
    rank: tf.Tensor
    condition_number: tf.Tensor
    discarded_gradient_energy: tf.Tensor
    quadratic_form: tf.Tensor
    why: str = ""


@dataclasses.dataclass(frozen=True)
class SVDPseudoInverse(Algorithm):
    """Computes `F^+ g` (or `(F + damping I)^-1 g`) by the SVD of the dense matrix: `O(n^3)`, for small networks.

    >>> import tensorflow as tf
    >>> matrix = tf.linalg.LinearOperatorFullMatrix(tf.constant([[2.0, 0.0], [0.0, 0.0]]), is_self_adjoint=True)
    >>> solution = SVDPseudoInverse().solve(matrix, tf.constant([1.0, 0.0]))
    >>> solution.value.numpy().tolist(), int(solution.info.rank)
    ([0.5, 0.0], 1)

    Args:
        rcond: singular values up to `rcond` times the largest count as zero. With damping above zero nothing is
            discarded.

    Raises:
        ValueError: if `rcond` is not in [0, 1).
    """

    rcond: float = 1e-6
    supports_jit = False

    def __post_init__(self):
        check_rcond(self.rcond)

    def compute(self, operator: Any, rhs: Any, x0: tf.Tensor | None) -> tuple[tf.Tensor, tuple]:
        del x0
        _, damping, _ = undamped(operator)
        dense = operator.to_dense()
        b = flat_rhs(operator, rhs)
        finite = _conditions.is_finite(dense)
        singular, left, right = tf.linalg.svd(tf.where(finite, dense, tf.zeros_like(dense)))
        keep = (singular > self.rcond * singular[0]) | (operator.is_positive if isinstance(operator, Damped) else False)
        coordinates = tf.linalg.matvec(left, b, transpose_a=True)
        inverse = tf.where(keep, tf.math.divide_no_nan(tf.ones_like(singular), singular), tf.zeros_like(singular))
        value = tf.linalg.matvec(right, inverse * coordinates)
        smallest = tf.reduce_min(tf.where(keep, singular, singular[0]))
        discarded = 1.0 - tf.math.divide_no_nan(
            tf.reduce_sum(tf.where(keep, tf.square(coordinates), tf.zeros_like(coordinates))),
            tf.reduce_sum(tf.square(b)),
        )
        numbers = (
            tf.reduce_sum(tf.cast(keep, tf.int32)),
            tf.math.divide_no_nan(singular[0], smallest),
            tf.maximum(discarded, 0.0),
            tf.reduce_sum(value * (tf.linalg.matvec(dense, value) - damping * value)),
        )
        return poison_unless(finite, value), numbers

    def report(self, numbers: tuple) -> SVDInfo:
        return SVDInfo(type(self).__name__, *numbers)


def check_rcond(rcond: float) -> None:
    """Checks a relative cut-off for small eigenvalues.

    Args:
        rcond: what the user gave.

    Raises:
        ValueError: if it is not in [0, 1).
    """
    _checks.check_number("rcond", rcond, minimum=0.0)
    if rcond >= 1.0:
        raise ValueError(_checks.message("rcond", rcond, "a number in [0, 1)"))


def poison_unless(finite: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """`value`, or NaN throughout where the matrix it was computed from was not finite.

    Args:
        finite: scalar boolean.
        value: any tensor.

    Returns:
        A tensor of the shape of `value`.
    """
    return value + tf.where(finite, tf.zeros([], value.dtype), tf.constant(float("nan"), value.dtype))


__all__ = ["SVDInfo", "SVDPseudoInverse", "check_rcond", "poison_unless"]
