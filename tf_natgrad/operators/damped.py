"""Damping: a multiple of the identity added to a curvature matrix."""

from __future__ import annotations

import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import TensorLike
from tf_natgrad.operators._base import CurvatureOperator


class Damped(CurvatureOperator):
    """`base + damping * I`, `[n, n]`; what `operator.damped(damping)` returns.

    Solvers look at `.base` and `.damping`: the Gram form needs them apart.

    Attributes:
        damping: scalar tensor >= 0.
        static_damping: its value, where it is known while tracing, or `None`.

    Args:
        base: a curvature operator.
        damping: a number >= 0, or a scalar tensor or variable whose value is >= 0.

    Raises:
        ValueError: if `damping` is negative, NaN or not a scalar; an assertion is added to a graph that does not yet
            know its value.
        TypeError: if `base` is not a curvature operator, or `damping` not a number.
    """

    def __init__(self, base: CurvatureOperator, damping: TensorLike):
        if not isinstance(base, CurvatureOperator):
            raise TypeError(_checks.message("base", type(base).__name__, "an operator of `tf_natgrad.operators`"))
        _check_damping(damping)
        super().__init__(base.flat_parameters, name="Damped")
        if isinstance(base, Damped):
            damping = base.damping + (tf.cast(damping, self.dtype) if tf.is_tensor(damping) else damping)
            base = base.base
        # TensorFlow's search for variables cannot look into an operator inside an operator.
        self._base = _keras.Untracked(base)
        known = tf.is_tensor(damping) or hasattr(damping, "assign")
        self.damping = tf.cast(tf.convert_to_tensor(damping), self.dtype) if known else tf.constant(damping, self.dtype)
        static = tf.get_static_value(self.damping)
        self.static_damping = None if static is None else float(static)

    @property
    def base(self) -> CurvatureOperator:
        """The matrix without damping."""
        return self._base.value

    @property
    def is_positive_semi_definite(self) -> bool:
        return self.base.is_positive_semi_definite

    @property
    def is_step_by_step(self) -> bool:
        return self.base.is_step_by_step

    def prepare(self) -> None:
        self.base.prepare()

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        return self.base.product(vector) + self.damping * vector

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        return self.base.products(rows) + self.damping * rows

    def diagonal(self) -> tf.Tensor:
        return self.base.diagonal() + self.damping

    def dense_matrix(self) -> tf.Tensor:
        dense = self.base.dense_matrix()
        return tf.linalg.set_diag(dense, tf.linalg.diag_part(dense) + self.damping)


def _check_damping(damping: TensorLike) -> None:
    """Refuses a damping that is not a scalar >= 0: at once where it has a value, in the graph otherwise."""
    if not tf.is_tensor(damping) and not hasattr(damping, "assign"):
        _checks.check_number("damping", damping, minimum=0.0)
        return
    value = tf.convert_to_tensor(damping)
    _checks.check_scalar("damping", value)
    static = tf.get_static_value(value)
    if static is None:
        _checks.require(value >= 0, _checks.message("damping", "a negative number or NaN", "a scalar >= 0"))
    elif not static >= 0:
        raise ValueError(_checks.message("damping", static, "a scalar >= 0"))


__all__ = ["Damped"]
