"""What is dense about curvature matrices: who may form them, at what memory, and how."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_natgrad import _checks, _keras

# Bytes that a dense matrix may take unless the caller says otherwise.
DENSE_MEMORY_LIMIT = 4 << 30


def check_dense_memory(size: int, dtype: tf.DType, limit: int) -> None:
    """Refuses a dense matrix that would take too much memory.

    Args:
        size: n.
        dtype: of its entries.
        limit: bytes that it may take.

    Raises:
        ValueError: if `[n, n]` takes more.
    """
    _checks.check_number("memory_limit", limit, minimum=0)
    needed = size**2 * dtype.size
    if needed > limit:
        raise ValueError(
            _checks.message(
                "memory_limit",
                f"{limit / 2**30:.1f} GiB",
                f"more: a dense matrix of {size:,} x {size:,} takes {needed / 2**30:.1f} GiB",
                "Use `solvers.Gram()` or `solvers.ConjugateGradient()`, which never form it, or raise `memory_limit`.",
            )
        )


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


def _refused(name: str) -> Callable:
    def refused(self, *args, **kwargs):
        raise NotImplementedError(
            f"`{name}` would form the dense matrix of {type(self).__name__}. Use the solvers in `tf_natgrad.solvers`, "
            "or `to_dense()` and `tf.linalg` where the matrix is small."
        )

    refused.__name__ = name
    refused.__doc__ = "Refused: it would form the dense matrix."
    return refused


class ExplicitlyDense(_keras.SquareOperator):
    """A linear operator that refuses what TensorFlow would do by silently forming the dense matrix or its inverse."""


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
    setattr(ExplicitlyDense, _name, _refused(_name))

__all__ = ["DENSE_MEMORY_LIMIT", "ExplicitlyDense", "check_dense_memory", "over_units"]
