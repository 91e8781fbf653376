"""The Krylov space of a symmetric operator, built up on the device that holds the operator."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _conditions
from tf_natgrad._typing import TensorLike
from tf_natgrad.operators import CurvatureOperator
from tf_natgrad.operators._base import product_of

# A vector that loses more than this share of its norm to a projection is projected once more.
_LOSS = 0.7


# Vectors that are added before they join the basis: a vector of a large array is not replaced without a copy of it.
_BLOCK = 8


class Krylov:
    """An orthonormal basis `V` `[j, n]`, the projection `T = V H V^T` `[j, j]`, and the residual direction.

    Every new vector is orthogonalised against the whole basis by two matrix products, a second time where
    cancellation asks for it. Vectors stay on the device; only `T` and norms come to the host.

    Args:
        operator: symmetric, `[n, n]`.
        size: the largest basis.
    """

    def __init__(self, operator: tf.linalg.LinearOperator, size: int):
        self._n = operator.shape[-1]
        self._size = size
        self._dtype = operator.dtype
        self._multiply = product_of(operator)
        if isinstance(operator, CurvatureOperator):
            operator.prepare()
        vector, basis = tf.TensorSpec([self._n], self._dtype), tf.TensorSpec([None, self._n], self._dtype)
        # Concrete functions: TensorFlow would warn of retracing where there are many operators.
        self._extend = tf.function(self._extend_graph, autograph=False).get_concrete_function(
            basis, vector, tf.TensorSpec([], tf.int32)
        )
        self._orthonormal = tf.function(self._orthonormal_graph, autograph=False).get_concrete_function(basis, vector)
        self.clear()

    def clear(self) -> None:
        """Begins anew, with no vector."""
        self.products = 0
        self.projection = np.zeros([self._size, self._size])
        self.residual_norm = 0.0
        self._basis = tf.zeros([0, self._n], self._dtype)
        self._next: tf.Tensor | None = None

    @property
    def steps(self) -> int:
        """The number of basis vectors."""
        return self._basis.shape[0]

    def start(self, vector: tf.Tensor) -> None:
        """Makes `vector` the first direction."""
        self.clear()
        self._next = self._orthonormal(self._basis, vector)

    def extend(self, steps: int, generator: np.random.Generator) -> None:
        """Adds basis vectors until there are `steps`, one product each.

        Args:
            steps: the size of the basis afterwards.
            generator: for a fresh direction where the space is exhausted.
        """
        while self.steps < steps:
            before, wanted = self.steps, min(_BLOCK, steps - self.steps)
            with _conditions.as_value_error():
                block, following, done, coefficients, norms = self._extend(self._basis, self._next, tf.constant(wanted))
            done, coefficients, norms = int(done), coefficients.numpy(), norms.numpy()
            check_finite(coefficients[:done])
            for k in range(done):
                row = before + k
                self.projection[row, : row + 1] = coefficients[k, : row + 1]
                self.projection[: row + 1, row] = coefficients[k, : row + 1]
            self._basis = tf.concat([self._basis, block[:done]], 0)
            self._next = following
            self.products += done
            self.residual_norm = float(norms[done - 1])
            if done < wanted or self.residual_norm == 0.0:
                # An invariant subspace: go on in another direction, to which it is not coupled.
                self.residual_norm = 0.0
                fresh = tf.constant(generator.standard_normal(self._n), self._dtype)
                self._next = self._orthonormal(self._basis, fresh)

    def restart(self, rotation: np.ndarray, values: np.ndarray) -> None:
        """Keeps the Ritz vectors `rotation^T V` and goes on from them (thick restart).

        Args:
            rotation: `[steps, kept]`, orthonormal columns.
            values: the Ritz values, `[kept]`.
        """
        kept = np.arange(len(values))
        self._basis = tf.linalg.matmul(tf.constant(rotation, self._dtype), self._basis, transpose_a=True)
        self.projection[:] = 0.0
        self.projection[kept, kept] = values

    def combine(self, coefficients: np.ndarray) -> tf.Tensor:
        """The vectors `V^T c` for the columns of `coefficients` `[steps, k]`: `[n, k]`."""
        return tf.linalg.matmul(self._basis, tf.constant(coefficients, self._dtype), transpose_a=True)

    def _orthonormal_graph(self, basis: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
        # Scaled first, in case that it is tiny.
        vector, _ = _orthogonalise([basis], vector / tf.reduce_max(tf.abs(vector)))
        return vector / norm(vector)

    def _extend_graph(self, basis: tf.Tensor, first: tf.Tensor, wanted: tf.Tensor):
        """Up to `wanted` new vectors, the direction after them, how many, their coefficients and residual norms."""
        eps = 10.0 * np.finfo(self._dtype.as_numpy_dtype).eps
        width = tf.shape(basis)[0] + _BLOCK

        def body(k, going, block, vector, coefficients, norms):
            block = tf.tensor_scatter_nd_update(block, [[k]], vector[None])
            image = self._multiply(vector)
            residual, c = _orthogonalise([basis, block], image)
            length = norm(residual)
            going = length > eps * norm(image)
            length = tf.where(going, length, tf.zeros_like(length))
            coefficients = tf.tensor_scatter_nd_update(coefficients, [[k]], c[None])
            norms = tf.tensor_scatter_nd_update(norms, [[k]], length[None])
            return k + 1, going, block, tf.math.divide_no_nan(residual, length), coefficients, norms

        k, _, block, following, coefficients, norms = tf.while_loop(
            lambda k, going, *_: (k < wanted) & going,
            body,
            (
                tf.constant(0),
                tf.constant(True),
                tf.zeros([_BLOCK, self._n], self._dtype),
                first,
                tf.zeros([_BLOCK, width], self._dtype),
                tf.zeros([_BLOCK], self._dtype),
            ),
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([]),
                tf.TensorShape([_BLOCK, self._n]),
                tf.TensorShape([self._n]),
                tf.TensorShape([_BLOCK, None]),
                tf.TensorShape([_BLOCK]),
            ),
            parallel_iterations=1,
        )
        return block, following, k, coefficients, norms


def _orthogonalise(parts: list[tf.Tensor], vector: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The part of `vector` orthogonal to the rows of `parts`, and its coefficients in them."""

    def project(v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        coefficients = [tf.linalg.matmul(v[None], part, transpose_b=True) for part in parts]
        shadows = [tf.linalg.matmul(c, part)[0] for c, part in zip(coefficients, parts, strict=True)]
        return v - tf.add_n(shadows), tf.concat([c[0] for c in coefficients], 0)

    first, coefficients = project(vector)

    def again() -> tuple[tf.Tensor, tf.Tensor]:
        second, more = project(first)
        return second, coefficients + more

    return tf.cond(norm(first) < _LOSS * norm(vector), again, lambda: (first, coefficients))


def norm(vectors: tf.Tensor) -> tf.Tensor:
    """The norm of each column, whose squares may be too small or too large for the precision.

    Args:
        vectors: `[n]` or `[n, k]`.

    Returns:
        A scalar, or `[k]`.
    """
    largest = tf.reduce_max(tf.abs(vectors), 0)
    return largest * tf.norm(tf.math.divide_no_nan(vectors, largest), axis=0)


def size_of(operator: tf.linalg.LinearOperator) -> int:
    """The number of rows and columns, after a check that there are as many of the one as of the other.

    Args:
        operator: a linear operator.

    Returns:
        n.

    Raises:
        ValueError: if it is not square, a batch of matrices, or of a size that is not known.
        TypeError: if it is no linear operator, or not of real numbers.
    """
    expected = "a real linear operator [n, n]"
    if not isinstance(operator, tf.linalg.LinearOperator):
        remedy = "Wrap an array: `tf.linalg.LinearOperatorFullMatrix(array, is_self_adjoint=True)`."
        raise TypeError(_checks.message("operator", type(operator).__name__, expected, remedy))
    if not operator.dtype.is_floating:
        raise TypeError(_checks.message("operator", f"dtype {operator.dtype.name}", expected))
    shape = operator.shape
    if shape.rank != 2 or shape[0] is None or shape[0] != shape[1]:
        raise ValueError(_checks.message("operator", f"shape {shape}", expected))
    return shape[0]


def check_finite(products: TensorLike) -> None:
    """Refuses an operator whose products are not finite: no eigenvalue comes of them, only failures further on.

    Args:
        products: of the operator, or what was computed from them.

    Raises:
        ValueError: if an entry is not finite.
    """
    if not _conditions.is_finite(tf.convert_to_tensor(products)):
        raise ValueError(
            _checks.message(
                "operator",
                "one whose products are NaN or infinite",
                "finite products",
                "Check the weights of the model and the data.",
            )
        )


def krylov_of(operator: tf.linalg.LinearOperator, size: int) -> Krylov:
    """A Krylov space of this size, kept with the operator so that it is traced once.

    Args:
        operator: symmetric, `[n, n]`.
        size: the largest basis.

    Returns:
        An empty `Krylov`.
    """
    if not isinstance(operator, CurvatureOperator):
        return Krylov(operator, size)
    return operator.kept(("krylov", size), lambda: Krylov(operator, size))


__all__ = ["Krylov", "check_finite", "krylov_of", "norm", "size_of"]
