"""What all curvature matrices share: a linear operator `[n, n]` that never becomes dense unasked."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import TensorLike
from tf_natgrad.parameters import FlatParameters

# Bytes that a dense matrix may take unless the caller says otherwise.
DENSE_MEMORY_LIMIT = 4 << 30

# Code that branches on static shapes must not be rewritten when it is called from a user's `tf.function`.
_plain_python = tf.autograph.experimental.do_not_convert


class FactoredRhs(NamedTuple):
    """A right-hand side `A^T u + damping * shift + rest`, for a matrix `A^T A + damping I`.

    Kept apart, the three are solved for without the cancellation that their sum would suffer.

    Attributes:
        u: `[m]`, one number per row of the factor `A`.
        shift: `[n]` or `None`.
        rest: `[n]` or `None`: what does not lie in the range of `A^T`, such as a regulariser's gradient.
    """

    u: tf.Tensor | None
    shift: tf.Tensor | None = None
    rest: tf.Tensor | None = None


class CurvatureOperator(_keras.SquareOperator):
    """A symmetric matrix `[n, n]` over a model's trainable variables, known by its products.

    On one batch it is the matrix at the weights of its construction: it keeps what the forward pass recorded and is
    not changed by later updates of the weights. Over a data set the model is called at each product, at the weights
    of that moment.

    What would silently form the dense matrix or its inverse (`solve`, `inverse`, `cholesky`, `eigvals`, ...) is
    refused; `to_dense` is explicit and estimates its memory first.

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
        """Whether products use one recorded pass, rather than a pass over many batches for each."""
        return True

    @abc.abstractmethod
    def _product(self, vector: tf.Tensor) -> tf.Tensor:
        """The product with a vector `[n]`, as graph code."""

    def prepare(self) -> None:
        """Does once, outside of any loop, what the products share. Called by solvers; cheap to repeat."""

    def compiled(self, key: object, function: Callable) -> Callable:
        """`function` as a graph that closes over this operator's tapes; in a trace, itself.

        Args:
            key: identifies the function, so that it is traced once per operator and shape of its arguments.
            function: of tensors, or of structures of tensors and `None`.

        Returns:
            A callable with the same arguments.
        """
        if self._step_by_step or not tf.executing_eagerly():
            return function
        return self._as_graph(key, function)

    @property
    def _step_by_step(self) -> bool:
        """Whether eager products are left eager, so that their parts can report on their progress."""
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
                    with _checks.graph_of_its_own():
                        return function(*tf.nest.pack_sequence_as(arguments, filled))

                specs = [tf.TensorSpec(t.shape, t.dtype) for t in tensors]
                table[signature] = tf.function(body, autograph=False).get_concrete_function(*specs)
            with _checks.as_value_error():
                return table[signature](*tensors)

        return call

    def kept(self, key: object, make: Callable[[], object]) -> object:
        """What `make()` returned when this key was first asked for: work space that lives as long as the operator.

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

    @_plain_python
    def matvec(self, x: TensorLike, adjoint: bool = False, name: str = "matvec") -> tf.Tensor:
        """The product with one vector.

        Args:
            x: `[n]`.
            adjoint: of no consequence, the matrix being symmetric.
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
            return self.compiled("matvec", self._product)(x)

    @_plain_python
    def matmul(self, x: TensorLike, adjoint: bool = False, adjoint_arg: bool = False, name: str = "matmul"):
        """The product with k vectors at once.

        Args:
            x: `[n, k]`, or `[k, n]` with `adjoint_arg`.
            adjoint: of no consequence, the matrix being symmetric.
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
            return self.compiled("matmul", lambda r: tf.einsum("kn->nk", self._products(r)))(rows)

    def _products(self, rows: tf.Tensor) -> tf.Tensor:
        return self._map_rows(self._product, rows)

    def _map_rows(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        """`function` of each row, as graph code."""
        return tf.vectorized_map(function, rows)

    @_plain_python
    def to_dense(self, *, memory_limit: int = DENSE_MEMORY_LIMIT, name: str = "to_dense") -> tf.Tensor:
        """The matrix itself, after an estimate of its memory.

        Args:
            memory_limit: bytes that it may take.
            name: for TensorFlow's name scopes.

        Returns:
            `[n, n]`.

        Raises:
            ValueError: if it would take more than `memory_limit`.
        """
        self._check_dense_memory(memory_limit)
        with tf.name_scope(name):
            self.prepare()
            return tf.ensure_shape(self.compiled("dense", self._dense)(), [self._flat.size, self._flat.size])

    def _dense(self) -> tf.Tensor:
        return over_units(self._products, self._flat.size, self.dtype)

    def _check_dense_memory(self, limit: int) -> None:
        _checks.check_number("memory_limit", limit, minimum=0)
        needed = self._flat.size**2 * self.dtype.size
        if needed > limit:
            raise ValueError(
                _checks.message(
                    "memory_limit",
                    f"{limit / 2**30:.1f} GiB",
                    f"more: a dense matrix of {self._flat.size:,} x {self._flat.size:,} takes {needed / 2**30:.1f} GiB",
                    "Use `solvers.Gram()` or `solvers.ConjugateGradient()`, which never form it, or raise "
                    "`memory_limit`.",
                )
            )

    @_plain_python
    def diag_part(self, name: str = "diag_part") -> tf.Tensor:
        """The diagonal, exactly, without the dense matrix; it takes as many products as there are rows or columns.

        Args:
            name: for TensorFlow's name scopes.

        Returns:
            `[n]`.
        """
        with tf.name_scope(name):
            self.prepare()
            return self.compiled("diag_part", self._diagonal)()

    def _diagonal(self) -> tf.Tensor:
        return over_units(lambda units: tf.reduce_sum(units * self._products(units), 1), self._flat.size, self.dtype)

    @_plain_python
    def trace(self, name: str = "trace") -> tf.Tensor:
        """The trace, exactly: the sum of `diag_part`. `spectrum.hutchinson_trace` estimates it with fewer products.

        Args:
            name: for TensorFlow's name scopes.

        Returns:
            A scalar.
        """
        return tf.reduce_sum(self.diag_part(name))

    @_plain_python
    def damped(self, damping: TensorLike) -> CurvatureOperator:
        """`self + damping * I`.

        Args:
            damping: a number >= 0, or a scalar tensor.

        Returns:
            A `Damped` operator that keeps `.base` and `.damping`.
        """
        from tf_natgrad.operators.damped import Damped

        return Damped(self, damping)

    def to_scipy(self):
        """The operator as a `scipy.sparse.linalg.LinearOperator` on NumPy arrays.

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


class FactoredOperator(CurvatureOperator):
    """A matrix `A^T A` whose factor `A` `[m, n]` and Gram matrix `K = A A^T` `[m, m]` are known by products."""

    @property
    def is_positive_semi_definite(self) -> bool:
        return True

    @property
    @abc.abstractmethod
    def rows(self) -> int | None:
        """m, where it is known statically."""

    @property
    def gram_refusal(self) -> str | None:
        """Why `gram` is refused for this operator, or `None`."""
        return None

    @property
    def rounding(self) -> float:
        """The spacing of the numbers above one, in the arithmetic that forms the Gram matrix."""
        return float(np.finfo(self.dtype.as_numpy_dtype).eps)

    @abc.abstractmethod
    def _gram(self, scales: Mapping[int, tf.Tensor] | None = None) -> tf.Tensor:
        """`K = A A^T`, or `A diag(scales) A^T` with a positive scalar for each variable, by its `id`; as graph code."""

    @abc.abstractmethod
    def _factor_product(self, vector: tf.Tensor) -> tf.Tensor:
        """`A v`: `[n] -> [m]`, as graph code."""

    @abc.abstractmethod
    def _factor_transpose_product(self, vector: tf.Tensor) -> tf.Tensor:
        """`A^T u`: `[m] -> [n]`, as graph code."""

    @_plain_python
    def gram(self) -> tf.Tensor:
        """`K = A A^T` `[m, m]`: the non-zero eigenvalues of the matrix, in a matrix of the size of the batch.

        Returns:
            A symmetric matrix, formed layer by layer, without the Jacobian.

        Raises:
            ValueError: where `gram_refusal` says why there is none.
        """
        if self.is_one_batch and self.gram_refusal is not None:
            raise ValueError(self.gram_refusal)
        return self.compiled("gram", self._gram)()

    @_plain_python
    def factor_matvec(self, x: TensorLike) -> tf.Tensor:
        """`A x`: `[n] -> [m]`.

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
        return self.compiled("factor", self._factor_product)(x)

    @_plain_python
    def factor_transpose_matvec(self, u: TensorLike) -> tf.Tensor:
        """`A^T u`: `[m] -> [n]`.

        Args:
            u: `[m]`.

        Returns:
            `[n]`.

        Raises:
            ValueError: if `u` is not `[m]`.
        """
        u = self._as_operand("u", u)
        _checks.check_rank_one("u", u, self.rows)
        return self.compiled("factor_transpose", self._factor_transpose_product)(u)

    @_plain_python
    def factor(self) -> tf.Tensor:
        """`A` `[m, n]` itself. It takes `m n` numbers: for small networks and tests."""
        return tf.ensure_shape(self.compiled("dense_factor", self._dense_factor)(), [self.rows, self._flat.size])

    def _dense_factor(self) -> tf.Tensor:
        rows = self.rows
        if rows is None:
            raise ValueError("`factor`: the number of rows is not known statically; give the batch a fixed size.")
        return over_units(self._rows_of_factor, rows, self.dtype)

    def _rows_of_factor(self, coefficients: tf.Tensor) -> tf.Tensor:
        """Combinations of the rows of `A`: `[k, m] -> [k, n]`."""
        return self._map_rows(self._factor_transpose_product, coefficients)

    def _diagonal(self) -> tf.Tensor:
        if self.rows is None or self.rows > self._flat.size:
            return super()._diagonal()

        def squares(units: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.square(self._rows_of_factor(units)), 0, keepdims=True)

        return tf.reduce_sum(over_units(squares, self.rows, self.dtype), 0)

    def _dense(self) -> tf.Tensor:
        if self.rows is not None and self.rows <= self._flat.size:
            factor = self._dense_factor()
            return tf.linalg.matmul(factor, factor, transpose_a=True)
        return super()._dense()


def over_units(function: Callable[[tf.Tensor], tf.Tensor], size: int, dtype: tf.DType, at_once: int = 128) -> tf.Tensor:
    """`function` of all unit vectors of a space, a chunk of them at a time.

    Args:
        function: of units `[k, size]`, to `[j, ...]`.
        size: the dimension of the space.
        dtype: of units and results.
        at_once: units in a chunk.

    Returns:
        The results, joined along their first axis.
    """

    def of_chunk(start: tf.Tensor | int, count: int) -> tf.Tensor:
        return function(tf.one_hot(start + tf.range(count), size, dtype=dtype))

    chunks, rest = divmod(size, at_once)
    parts = [of_chunk(chunks * at_once, rest)] if rest else []
    if chunks:
        whole = tf.map_fn(
            lambda chunk: of_chunk(chunk * at_once, at_once),
            tf.range(chunks),
            fn_output_signature=tf.TensorSpec(None, dtype),
            parallel_iterations=1,
        )
        shape = tf.shape(whole)
        parts.insert(0, tf.reshape(whole, tf.concat([[shape[0] * shape[1]], shape[2:]], 0)))
    return parts[0] if len(parts) == 1 else tf.concat(parts, 0)


def _refuse(name: str) -> Callable:
    def refused(self, *args, **kwargs):
        raise NotImplementedError(
            f"`{name}` would form the dense matrix of {type(self).__name__}. Use the solvers in `tf_natgrad.solvers`, "
            "or `to_dense()` and `tf.linalg` where the matrix is small."
        )

    refused.__name__ = name
    refused.__doc__ = "Refused: it would form the dense matrix."
    return refused


for _name in (
    "add_to_tensor",
    "assert_non_singular",
    "assert_positive_definite",
    "assert_self_adjoint",
    "cholesky",
    "cond",
    "determinant",
    "eigvals",
    "inverse",
    "log_abs_determinant",
    "solve",
    "solvevec",
):
    setattr(CurvatureOperator, _name, _refuse(_name))

__all__ = ["DENSE_MEMORY_LIMIT", "CurvatureOperator", "FactoredOperator", "FactoredRhs", "over_units"]
