"""The base class of all curvature matrices, a linear operator `[n, n]` that becomes dense only on request."""

from __future__ import annotations

import abc
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _conditions, _keras
from tf_natgrad._typing import TensorLike, plain_python
from tf_natgrad.operators._dense import DENSE_MEMORY_LIMIT, ExplicitlyDense, check_dense_memory, over_units
from tf_natgrad.parameters import FlatParameters


class CurvatureOperator(ExplicitlyDense):
    """A symmetric matrix `[n, n]` over a model's trainable variables, given by its products with vectors.

    An operator on one batch keeps the forward pass of its construction: later updates of the weights do not change it.
    An operator over a data set calls the model at each product, with the current weights.

    Methods that would silently form the dense matrix or its inverse (`solve`, `inverse`, `cholesky`, `eigvals`, ...)
    raise an error. `to_dense` forms the matrix after an estimate of its memory.

    Args:
        flat_parameters: the layout of `[n]`.
        name: for TensorFlow's name scopes.
    """

    def __init__(self, flat_parameters: FlatParameters, name: str):
        self._flat = flat_parameters
        self._compiled_functions: _keras.Untracked[dict[object, Callable]] = _keras.Untracked({})
        parameters = {"flat_parameters": flat_parameters, "name": name}
        super().__init__(
            flat_parameters.size, dtype=flat_parameters.dtype, is_self_adjoint=True, name=name, parameters=parameters
        )

    @property
    def flat_parameters(self) -> FlatParameters:
        """The layout of the vectors `[n]`: the model's trainable variables, in order."""
        return self._flat

    @property
    def is_positive_semi_definite(self) -> bool:
        """Whether the matrix is positive semi-definite by construction."""
        return False

    @property
    def is_one_batch(self) -> bool:
        """Whether products use one recorded pass; if not, each product takes a pass over many batches."""
        return True

    @abc.abstractmethod
    def product(self, vector: tf.Tensor) -> tf.Tensor:
        """Computes the product with one vector, as graph code: it checks nothing, and may be part of a loop.

        Call `prepare` first, outside of the loop; `matvec` does both, with checks.

        Args:
            vector: `[n]`.

        Returns:
            `[n]`.
        """

    def prepare(self) -> None:
        """Computes what all products share, once and outside of any loop. Solvers call it; repeating it is cheap."""

    def compiled(self, key: object, function: Callable) -> Callable:
        """Returns `function` as a graph that closes over this operator's tapes; in a trace, `function` itself.

        Args:
            key: identifies the function, so that it is traced once per operator and shape of its arguments.
            function: of tensors, or of structures of tensors and `None`.

        Returns:
            A callable with the same arguments.
        """
        if self.is_step_by_step or not tf.executing_eagerly():
            return function
        return self._as_graph(key, function)

    @property
    def is_step_by_step(self) -> bool:
        """Whether eager products are not compiled as a whole, so that they can show their progress."""
        return False

    def _as_graph(self, key: object, function: Callable) -> Callable:
        def call(*arguments):
            flat = tf.nest.flatten(arguments)
            tensors = [tf.convert_to_tensor(a) for a in flat if a is not None]
            signature = (key, tuple((t.shape, t.dtype) for t in tensors), tuple(a is None for a in flat))
            table = self._compiled_functions.value
            if signature not in table:

                def body(*tensors):
                    given = iter(tensors)
                    filled = [None if a is None else next(given) for a in flat]
                    return function(*tf.nest.pack_sequence_as(arguments, filled))

                specs = [tf.TensorSpec(t.shape, t.dtype) for t in tensors]
                table[signature] = tf.function(body, autograph=False).get_concrete_function(*specs)
            with _conditions.as_value_error():
                return table[signature](*tensors)

        return call

    def kept(self, key: object, make: Callable[[], object]) -> object:
        """Returns an object that lives as long as the operator: `make()` makes it at the first call with this key.

        Args:
            key: identifies it.
            make: makes it.

        Returns:
            The one object of that key.
        """
        table = self._compiled_functions.value
        if key not in table:
            table[key] = make()
        return table[key]

    @plain_python
    def matvec(self, x: TensorLike, adjoint: bool = False, name: str = "matvec") -> tf.Tensor:
        """Computes the product with one vector.

        Args:
            x: `[n]`.
            adjoint: has no effect, as the matrix is symmetric.
            name: for TensorFlow's name scopes.

        Returns:
            `[n]`.

        Raises:
            ValueError: if `x` is not `[n]`.
        """
        del adjoint
        x = self._as_operand("x", x)
        _checks.check_rank_one("x", x, self._flat.size)
        with tf.name_scope(name):
            self.prepare()
            return self.compiled("matvec", self.product)(x)

    @plain_python
    def matmul(self, x: TensorLike, adjoint: bool = False, adjoint_arg: bool = False, name: str = "matmul"):
        """Computes the products with k vectors at once.

        Args:
            x: `[n, k]`, or `[k, n]` with `adjoint_arg`.
            adjoint: has no effect, as the matrix is symmetric.
            adjoint_arg: whether `x` is to be transposed first.
            name: for TensorFlow's name scopes.

        Returns:
            `[n, k]`.

        Raises:
            ValueError: if the shape does not fit.
        """
        del adjoint
        x = self._as_operand("x", x)
        _checks.check_flag("adjoint_arg", adjoint_arg)
        if x.shape.rank != 2 or not x.shape[int(adjoint_arg) :][:1].is_compatible_with([self._flat.size]):
            raise ValueError(_checks.message("x", f"shape {tuple(x.shape)}", f"shape [{self._flat.size}, k]"))
        # As einsum: a tall thin transpose is faster there than by `tf.transpose`.
        rows = x if adjoint_arg else tf.einsum("nk->kn", x)
        with tf.name_scope(name):
            self.prepare()
            return self.compiled("matmul", lambda r: tf.einsum("kn->nk", self.products(r)))(rows)

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        """Computes the products with several vectors, as graph code; `matmul` has the checks.

        Args:
            rows: `[k, n]`.

        Returns:
            `[k, n]`.
        """
        return self.map_rows(self.product, rows)

    def map_rows(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        """Computes `function`, which contains products of this operator, of each row; as graph code.

        Args:
            function: of one row, to a tensor.
            rows: `[k, ...]`.

        Returns:
            What `function` returned, stacked.
        """
        return tf.vectorized_map(function, rows)

    @plain_python
    def to_dense(self, *, memory_limit: int = DENSE_MEMORY_LIMIT, name: str = "to_dense") -> tf.Tensor:
        """Computes the dense matrix, after an estimate of its memory.

        Args:
            memory_limit: bytes that it may take.
            name: for TensorFlow's name scopes.

        Returns:
            `[n, n]`.

        Raises:
            ValueError: if it would take more than `memory_limit`.
        """
        check_dense_memory(self._flat.size, self.dtype, memory_limit)
        with tf.name_scope(name):
            self.prepare()
            return tf.ensure_shape(self.compiled("dense", self.dense_matrix)(), [self._flat.size, self._flat.size])

    def dense_matrix(self) -> tf.Tensor:
        """Computes the dense matrix `[n, n]`, as graph code; `to_dense` estimates its memory first."""
        return over_units(self.products, self._flat.size, self.dtype)

    @plain_python
    def diag_part(self, name: str = "diag_part") -> tf.Tensor:
        """Computes the exact diagonal without the dense matrix; it takes as many products as there are rows or columns.

        Args:
            name: for TensorFlow's name scopes.

        Returns:
            `[n]`.
        """
        with tf.name_scope(name):
            self.prepare()
            return self.compiled("diag_part", self.diagonal)()

    def diagonal(self) -> tf.Tensor:
        """Computes the diagonal `[n]`, as graph code; see `diag_part`."""
        return over_units(lambda units: tf.reduce_sum(units * self.products(units), 1), self._flat.size, self.dtype)

    @plain_python
    def trace(self, name: str = "trace") -> tf.Tensor:
        """Computes the exact trace, the sum of `diag_part`; `spectrum.hutchinson_trace` estimates it more cheaply.

        Args:
            name: for TensorFlow's name scopes.

        Returns:
            A scalar.
        """
        return tf.reduce_sum(self.diag_part(name))

    @plain_python
    def damped(self, damping: TensorLike) -> CurvatureOperator:
        """Returns `self + damping * I`.

        Args:
            damping: a number >= 0, or a scalar tensor.

        Returns:
            A `Damped` operator that keeps `.base` and `.damping`.
        """
        from tf_natgrad.operators.damped import Damped

        return Damped(self, damping)

    def __add__(self, other: CurvatureOperator) -> CurvatureOperator:
        """Returns `self + other`, over the same variables; damping stays outside of the sum.

        Args:
            other: a curvature operator.

        Returns:
            A `Sum`, or a `Damped` one.
        """
        from tf_natgrad.operators.damped import Damped
        from tf_natgrad.operators.sum import Sum

        if not isinstance(other, CurvatureOperator):
            return NotImplemented
        dampings = [o.damping for o in (self, other) if isinstance(o, Damped)]
        total = Sum(*(o.whole if isinstance(o, Damped) else o for o in (self, other)))
        return total.damped(tf.add_n(dampings)) if dampings else total

    def to_scipy(self):
        """Returns the operator as a `scipy.sparse.linalg.LinearOperator` on NumPy arrays.

        Returns:
            A SciPy operator of the same shape and dtype.
        """
        import scipy.sparse.linalg

        def product(x):
            return self.matmul(x).numpy() if np.ndim(x) == 2 else self.matvec(np.reshape(x, [-1])).numpy()

        return scipy.sparse.linalg.LinearOperator(
            (self._flat.size, self._flat.size), product, product, product, self.dtype.as_numpy_dtype, product
        )

    def _as_operand(self, argument: str, x: TensorLike) -> tf.Tensor:
        if tf.is_tensor(x) and x.dtype != self.dtype:
            raise TypeError(
                _checks.message(argument, f"dtype {x.dtype.name}", f"dtype {self.dtype.name}", "Cast it first.")
            )
        return _checks.as_tensor(argument, x, self.dtype)


def product_of(operator: tf.linalg.LinearOperator) -> Callable[[tf.Tensor], tf.Tensor]:
    """The product of any linear operator with a vector `[n]`, as graph code.

    Args:
        operator: of this package, or another `tf.linalg.LinearOperator`.

    Returns:
        A function `[n] -> [n]`.
    """
    return operator.product if isinstance(operator, CurvatureOperator) else operator.matvec


__all__ = ["CurvatureOperator", "plain_python", "product_of"]
