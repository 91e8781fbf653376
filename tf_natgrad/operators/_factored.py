"""Matrices `A^T A` with a known factor `A`, and right-hand sides in terms of `A`."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._typing import TensorLike
from tf_natgrad.operators._base import CurvatureOperator, plain_python
from tf_natgrad.operators._dense import over_units


class FactoredRhs(NamedTuple):
    """A right-hand side `A^T u + damping * shift + rest`, for a matrix `A^T A + damping I`.

    Solvers use the three parts separately, which avoids the cancellation that their sum would cause.

    Attributes:
        u: `[m]`, one number per row of the factor `A`.
        shift: `[n]` or `None`.
        rest: `[n]` or `None`: the part that is not in the range of `A^T`, such as a regulariser's gradient.
    """

    u: tf.Tensor | None
    shift: tf.Tensor | None = None
    rest: tf.Tensor | None = None

    def plus(self, vector: tf.Tensor) -> FactoredRhs:
        """Returns the sum with a vector `[n]`."""
        return self._replace(rest=vector if self.rest is None else self.rest + vector)


class FactoredOperator(CurvatureOperator):
    """A matrix `A^T A` with products of its factor `A` `[m, n]` and a Gram matrix `K = A A^T` `[m, m]`."""

    @property
    def is_positive_semi_definite(self) -> bool:
        return True

    @property
    @abc.abstractmethod
    def rows(self) -> int | None:
        """The number of rows of `A`, m, or `None` if it is not known statically."""

    @property
    def gram_refusal(self) -> str | None:
        """The reason why this operator has no Gram matrix, or `None`."""
        return None

    @property
    def rounding(self) -> float:
        """The spacing of floating-point numbers above one, in the precision in which the Gram matrix is formed."""
        return float(np.finfo(self.dtype.as_numpy_dtype).eps)

    @abc.abstractmethod
    def gram_matrix(self, scales: Mapping[int, tf.Tensor] | None = None) -> tf.Tensor:
        """Computes `K = A A^T`, as graph code, if `gram_refusal` is `None`; `gram` has the check.

        Args:
            scales: a positive scalar for each variable, by its `id`, for `A diag(scales) A^T`; or `None` for all ones.

        Returns:
            `[m, m]`.
        """

    @abc.abstractmethod
    def factor_product(self, vector: tf.Tensor) -> tf.Tensor:
        """Computes `A v`, as graph code; `factor_matvec` has the checks.

        Args:
            vector: `[n]`.

        Returns:
            `[m]`.
        """

    @abc.abstractmethod
    def factor_transpose_product(self, vector: tf.Tensor) -> tf.Tensor:
        """Computes `A^T u`, as graph code; `factor_transpose_matvec` has the checks.

        Args:
            vector: `[m]`.

        Returns:
            `[n]`.
        """

    @plain_python
    def gram(self) -> tf.Tensor:
        """Computes `K = A A^T` `[m, m]`, which has the non-zero eigenvalues of the matrix and the size of the batch.

        Returns:
            A symmetric matrix, formed layer by layer, without the Jacobian.

        Raises:
            ValueError: if `gram_refusal` is a reason.
        """
        if self.is_one_batch and self.gram_refusal is not None:
            raise ValueError(self.gram_refusal)
        return self.compiled("gram", self.gram_matrix)()

    @plain_python
    def factor_matvec(self, x: TensorLike) -> tf.Tensor:
        """Computes `A x`: `[n] -> [m]`.

        Args:
            x: `[n]`.

        Returns:
            `[m]`.

        Raises:
            ValueError: if `x` is not `[n]`.
        """
        x = self._as_operand("x", x)
        _checks.check_rank_one("x", x, self._flat.size)
        self.prepare()
        return self.compiled("factor", self.factor_product)(x)

    @plain_python
    def factor_transpose_matvec(self, u: TensorLike) -> tf.Tensor:
        """Computes `A^T u`: `[m] -> [n]`.

        Args:
            u: `[m]`.

        Returns:
            `[n]`.

        Raises:
            ValueError: if `u` is not `[m]`.
        """
        u = self._as_operand("u", u)
        _checks.check_rank_one("u", u, self.rows)
        return self.compiled("factor_transpose", self.factor_transpose_product)(u)

    @plain_python
    def factor(self) -> tf.Tensor:
        """Computes the dense factor `A` `[m, n]`, for small networks and tests."""
        return tf.ensure_shape(self.compiled("dense_factor", self._dense_factor)(), [self.rows, self._flat.size])

    def _dense_factor(self) -> tf.Tensor:
        rows = self.rows
        if rows is None:
            raise ValueError("`factor`: the number of rows is not known statically; give the batch a fixed size.")
        return over_units(self._rows_of_factor, rows, self.dtype)

    def _rows_of_factor(self, coefficients: tf.Tensor) -> tf.Tensor:
        """Combinations of the rows of `A`: `[k, m] -> [k, n]`."""
        return self.map_rows(self.factor_transpose_product, coefficients)

    def diagonal(self) -> tf.Tensor:
        if self.rows is None or self.rows > self._flat.size:
            return super().diagonal()

        def squares(units: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.square(self._rows_of_factor(units)), 0, keepdims=True)

        return tf.reduce_sum(over_units(squares, self.rows, self.dtype), 0)

    def dense_matrix(self) -> tf.Tensor:
        if self.rows is not None and self.rows <= self._flat.size:
            factor = self._dense_factor()
            return tf.linalg.matmul(factor, factor, transpose_a=True)
        return super().dense_matrix()


__all__ = ["FactoredOperator", "FactoredRhs"]
