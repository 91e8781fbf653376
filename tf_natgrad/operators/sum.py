"""Sums of curvature matrices."""

from __future__ import annotations

import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad.operators._base import CurvatureOperator
from tf_natgrad.operators._factored import FactoredOperator


class Sum(CurvatureOperator):
    """The sum of symmetric curvature matrices over the same variables, `[n, n]`, which `a + b` returns.

    >>> import keras, tensorflow as tf
    >>> from tf_natgrad.operators import Fisher, Penalty
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    >>> fisher = Fisher(model, "mse", tf.ones([5, 3]))
    >>> penalised = fisher + Penalty(model)
    >>> penalised.shape, penalised.factored is fisher
    (TensorShape([4, 4]), True)

    Args:
        *parts: operators of `tf_natgrad.operators`; a sum among them is replaced by its parts.

    Raises:
        ValueError: if there are none, they are over different variables, or one is not symmetric.
        TypeError: if one is not such an operator.
    """

    def __init__(self, *parts: CurvatureOperator):
        if not parts:
            raise ValueError(_checks.message("parts", "none", "at least one operator"))
        for part in parts:
            _checks.check_instance("parts", part, CurvatureOperator, "operators of `tf_natgrad.operators`")
            _check_fits(parts[0], part)
        super().__init__(parts[0].flat_parameters, name="Sum")
        # TensorFlow's search for variables cannot look into an operator inside an operator.
        self._parts = _keras.Untracked(tuple(q for p in parts for q in (p.parts if isinstance(p, Sum) else (p,))))

    @property
    def parts(self) -> tuple[CurvatureOperator, ...]:
        """The operators that are summed; none of them is a sum."""
        return self._parts.value

    @property
    def factored(self) -> FactoredOperator | None:
        """The part with a known factor `A`, or `None` if no part or several parts have one."""
        return factored_part(self)

    @property
    def is_positive_semi_definite(self) -> bool:
        return all(part.is_positive_semi_definite for part in self.parts)

    @property
    def is_one_batch(self) -> bool:
        return all(part.is_one_batch for part in self.parts)

    @property
    def is_step_by_step(self) -> bool:
        return any(part.is_step_by_step for part in self.parts)

    def prepare(self) -> None:
        for part in self.parts:
            part.prepare()

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        return tf.add_n([part.product(vector) for part in self.parts])

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.add_n([part.products(rows) for part in self.parts])

    def diagonal(self) -> tf.Tensor:
        return tf.add_n([part.diagonal() for part in self.parts])

    def dense_matrix(self) -> tf.Tensor:
        return tf.add_n([part.dense_matrix() for part in self.parts])


def factored_part(operator: tf.linalg.LinearOperator) -> FactoredOperator | None:
    """Returns the operator itself if its factor `A` is known, or the one part of a sum that has a factor.

    Args:
        operator: any linear operator.

    Returns:
        A `FactoredOperator`, or `None`.
    """
    parts = operator.parts if isinstance(operator, Sum) else (operator,)
    found = [part for part in parts if isinstance(part, FactoredOperator)]
    return found[0] if len(found) == 1 else None


def _check_fits(first: CurvatureOperator, part: CurvatureOperator) -> None:
    variables, others = (o.flat_parameters.variables for o in (first, part))
    if len(variables) != len(others) or any(a is not b for a, b in zip(variables, others, strict=True)):
        raise ValueError(
            _checks.message(
                "parts",
                f"{type(first).__name__} and {type(part).__name__} over different variables",
                "operators over the same variables in the same order",
                "Pass the same `variables` to both.",
            )
        )
    if part.is_self_adjoint is False:
        remedy = "Take its symmetric part: `operator.symmetrize()`."
        raise ValueError(_checks.message("parts", f"{type(part).__name__}, not symmetric", "symmetric ones", remedy))


__all__ = ["Sum", "factored_part"]
