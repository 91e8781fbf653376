"""Estimates of the Hessian of a return: what they share, and the symmetric part of the one that is not symmetric."""

from __future__ import annotations

import abc
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import TensorLike
from tf_natgrad.operators._base import CurvatureOperator


class ReturnHessian(CurvatureOperator):
    """The base class of estimates of the Hessian of a return, one of which is not symmetric."""

    @property
    @abc.abstractmethod
    def estimator(self) -> str:
        """The name of the estimator."""

    @property
    def is_self_adjoint(self) -> bool:
        """Whether the estimate is symmetric, sample by sample."""
        return self.estimator != "algorithm1"

    @abc.abstractmethod
    def adjoint_product(self, vector: tf.Tensor) -> tf.Tensor:
        """Computes the product of the transposed matrix with a vector, as graph code.

        Args:
            vector: `[n]`.

        Returns:
            `[n]`.
        """

    @abc.abstractmethod
    def episode_forms(self, vector: tf.Tensor) -> tf.Tensor:
        """Computes `v^T M_e v` of each episode, as graph code; `quadratic_forms` has the checks.

        Args:
            vector: `[n]`.

        Returns:
            `[N]`.
        """

    def quadratic_forms(self, vector: TensorLike) -> tf.Tensor:
        """Computes `v^T M_e v` of each episode, without the episode's weight; the episodes are independent.

        Args:
            vector: `v`, `[n]`.

        Returns:
            `[N]`.
        """
        vector = self._as_operand("vector", vector)
        _checks.check_rank_one("vector", vector, self._flat.size)
        return self.compiled("quadratic_forms", self.episode_forms)(vector)

    def symmetrize(self) -> CurvatureOperator:
        """Returns `(H + H^T) / 2` for the estimator that is not symmetric, else the operator itself.

        Returns:
            A symmetric operator.
        """
        return self if self.is_self_adjoint else _Symmetrized(self)

    def matvec(self, x: TensorLike, adjoint: bool = False, name: str = "matvec") -> tf.Tensor:
        """Computes the product with one vector; with `adjoint`, of the transposed matrix.

        Args:
            x: `[n]`.
            adjoint: whether to transpose.
            name: for TensorFlow's name scopes.

        Returns:
            `[n]`.
        """
        if not adjoint or self.is_self_adjoint:
            return super().matvec(x, name=name)
        x = self._as_operand("x", x)
        _checks.check_rank_one("x", x, self._flat.size)
        with tf.name_scope(name):
            return self.compiled("adjoint", self.adjoint_product)(x)

    def matmul(self, x: TensorLike, adjoint: bool = False, adjoint_arg: bool = False, name: str = "matmul"):
        """Computes the products with k vectors at once; with `adjoint`, of the transposed matrix.

        Args:
            x: `[n, k]`, or `[k, n]` with `adjoint_arg`.
            adjoint: whether to transpose the matrix.
            adjoint_arg: whether `x` is to be transposed first.
            name: for TensorFlow's name scopes.

        Returns:
            `[n, k]`.
        """
        if not adjoint or self.is_self_adjoint:
            return super().matmul(x, adjoint_arg=adjoint_arg, name=name)
        x = self._as_operand("x", x)
        if x.shape.rank != 2:
            raise ValueError(_checks.message("x", f"shape {tuple(x.shape)}", f"shape [{self._flat.size}, k]"))
        columns = x if adjoint_arg else tf.transpose(x)
        return tf.stack([self.matvec(c, adjoint=True, name=name) for c in tf.unstack(columns)], 1)

    def dense_matrix(self) -> tf.Tensor:
        # The images of the unit vectors are columns.
        return tf.transpose(super().dense_matrix())

    def to_scipy(self):
        """Returns the operator as a `scipy.sparse.linalg.LinearOperator` on NumPy arrays."""
        import scipy.sparse.linalg

        def maps(adjoint):
            return (
                lambda x: self.matvec(np.reshape(x, [-1]), adjoint=adjoint).numpy(),
                lambda x: self.matmul(x, adjoint=adjoint).numpy(),
            )

        (product, products), (adjoint, adjoints) = maps(False), maps(True)
        return scipy.sparse.linalg.LinearOperator(
            tuple(self.shape), product, adjoint, products, self.dtype.as_numpy_dtype, adjoints
        )


class _Symmetrized(CurvatureOperator):
    """`(H + H^T) / 2` of an estimate that is not symmetric."""

    def __init__(self, base: ReturnHessian):
        super().__init__(base.flat_parameters, name="Symmetrized")
        self._base = _keras.Untracked(base)

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        base = self._base.value
        return 0.5 * (base.product(vector) + base.adjoint_product(vector))

    def map_rows(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        return self._base.value.map_rows(function, rows)


__all__ = ["ReturnHessian"]
