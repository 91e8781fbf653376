"""Damping: a multiple of the identity added to a curvature matrix."""

from __future__ import annotations

import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._conditions import Condition, check_collector, judge, note
from tf_natgrad._typing import TensorLike
from tf_natgrad.operators._base import CurvatureOperator
from tf_natgrad.operators.penalty import Penalty
from tf_natgrad.operators.sum import Sum


class Damped(CurvatureOperator):
    """The damped matrix `base + damping * I`, `[n, n]`, which `operator.damped(damping)` returns.

    The Gram form needs `.base` and `.damping` separately. If `base` is a `Sum` of one factored matrix and a `Penalty`
    that is a constant for each variable, the constants are added to the damping: `.base` is then the factored matrix
    alone, and `.damping_by_variable` holds the numbers that are added to its diagonal.

    Attributes:
        damping: scalar tensor >= 0.
        static_damping: its value if it is known while tracing, else `None`.
        damping_by_variable: `damping` plus the penalty's constant, a positive scalar tensor for each variable; `None`
            if one number damps all variables. A damping that is not known while tracing must be positive, unless all
            constants are.

    Args:
        base: a curvature operator.
        damping: a number >= 0, or a scalar tensor or variable whose value is >= 0.
        conditions: a list to which the condition on a value not yet known is added; by default it is judged at once.

    Raises:
        ValueError: if `damping` is negative, NaN or not a scalar; an assertion is added to a graph that does not yet
            know its value.
        TypeError: if `base` is not a curvature operator, or `damping` not a number.
    """

    damping_by_variable: list[tf.Tensor] | None = None

    def __init__(self, base: CurvatureOperator, damping: TensorLike, conditions: list[Condition] | None = None):
        if not isinstance(base, CurvatureOperator):
            raise TypeError(_checks.message("base", type(base).__name__, "an operator of `tf_natgrad.operators`"))
        check_collector("conditions", conditions)
        note(damping_conditions(damping), conditions)
        super().__init__(base.flat_parameters, name="Damped")
        if isinstance(base, Damped):
            damping = base.damping + (tf.cast(damping, self.dtype) if tf.is_tensor(damping) else damping)
            base = base.whole
        # TensorFlow's search for variables cannot look into an operator inside an operator.
        self._whole = self._base = _keras.Untracked(base)
        self.damping = as_damping(damping, self.dtype)
        static = tf.get_static_value(self.damping)
        self.static_damping = None if static is None else float(static)
        constants = _constants(base)
        if constants is not None and (self.static_damping != 0.0 or min(constants) > 0.0):
            self._base = _keras.Untracked(base.factored)
            self.damping_by_variable = [self.damping + tf.constant(c, self.dtype) for c in constants]

    @property
    def base(self) -> CurvatureOperator:
        """The matrix without the damping, and without the penalties that were added to the damping."""
        return self._base.value

    @property
    def whole(self) -> CurvatureOperator:
        """The matrix without the damping, penalties included."""
        return self._whole.value

    @property
    def is_positive(self) -> tf.Tensor:
        """Whether every number that is added to the diagonal of the base is positive, a scalar boolean tensor."""
        if self.damping_by_variable is None:
            return self.damping > 0
        return tf.reduce_min(tf.stack(self.damping_by_variable)) > 0

    @property
    def is_positive_semi_definite(self) -> bool:
        return self.base.is_positive_semi_definite

    @property
    def is_one_batch(self) -> bool:
        return self.base.is_one_batch

    @property
    def is_step_by_step(self) -> bool:
        return self.base.is_step_by_step

    def prepare(self) -> None:
        self.base.prepare()

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        return self.base.product(vector) + self._spread() * vector

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        return self.base.products(rows) + self._spread() * rows

    def diagonal(self) -> tf.Tensor:
        return self.base.diagonal() + self._spread()

    def dense_matrix(self) -> tf.Tensor:
        dense = self.base.dense_matrix()
        return tf.linalg.set_diag(dense, tf.linalg.diag_part(dense) + self._spread())

    def _spread(self) -> tf.Tensor:
        """What is added to the diagonal: a scalar, or `[n]`."""
        if self.damping_by_variable is None:
            return self.damping
        # Not `tf.repeat`: XLA does not know its shape.
        return tf.concat([tf.fill([n], d) for n, d in zip(self._flat.sizes, self.damping_by_variable, strict=True)], 0)


def _constants(base: CurvatureOperator) -> list[float] | None:
    """The constants of the penalties in a sum, one per variable, if the rest of it is one factored matrix."""
    if not isinstance(base, Sum) or base.factored is None:
        return None
    others = [part for part in base.parts if part is not base.factored]
    found = [p.diagonal_by_variable() if isinstance(p, Penalty) else None for p in others]
    return None if None in found or not found else [sum(constants) for constants in zip(*found, strict=True)]


def damping_conditions(damping: TensorLike, positive: bool = False) -> list[Condition]:
    """Refuses a damping that is known to be out of range, and returns the condition on one that is not known.

    Args:
        damping: a number, or a scalar tensor or variable.
        positive: whether zero is out of range too.

    Returns:
        At most one condition.

    Raises:
        ValueError: if it is known to be negative, NaN or, with `positive`, zero.
        TypeError: if it is no number.
    """
    if not _is_tensor(damping):
        _checks.check_number("damping", damping, minimum=0.0, exclusive=positive)
        return []
    value = tf.convert_to_tensor(damping)
    _checks.check_scalar("damping", value)
    expected, static = "a scalar > 0" if positive else "a scalar >= 0", tf.get_static_value(value)
    if static is None:
        received = "zero, a negative number or NaN" if positive else "a negative number or NaN"
        in_range = value > 0 if positive else value >= 0
        return [Condition(in_range, _checks.message("damping", received, expected))]
    if not (static > 0 if positive else static >= 0):
        raise ValueError(_checks.message("damping", static, expected))
    return []


def as_damping(damping: TensorLike, dtype: tf.DType) -> tf.Tensor:
    """A damping as a tensor; a Python number keeps its double precision.

    Args:
        damping: a number, or a scalar tensor or variable.
        dtype: of the matrix.

    Returns:
        A scalar.
    """
    return tf.cast(tf.convert_to_tensor(damping), dtype) if _is_tensor(damping) else tf.constant(damping, dtype)


def positive_damping(damping: TensorLike, dtype: tf.DType) -> tf.Tensor:
    """A damping above zero as a tensor, checked.

    Args:
        damping: a number, or a scalar tensor or variable.
        dtype: of the matrix.

    Returns:
        A scalar.

    Raises:
        ValueError: if it is not positive; an assertion is added to a graph that does not yet know its value.
        TypeError: if it is no number.
    """
    judge(damping_conditions(damping, positive=True))
    return as_damping(damping, dtype)


def _is_tensor(damping: TensorLike) -> bool:
    return tf.is_tensor(damping) or hasattr(damping, "assign")


__all__ = ["Damped", "as_damping", "damping_conditions", "positive_damping"]
