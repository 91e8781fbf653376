"""One step from a dense matrix: diagonal scaling, Cholesky, and no share in the null space."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Step(NamedTuple):
    """A full step to be subtracted, its quadratic form in `F + R`, and what it took.

    Attributes:
        value: `[n]`.
        quadratic_form: `d^T (F + R) d`, without the damping.
        iterations: of conjugate gradients; 1 for a factorisation.
    """

    value: tf.Tensor
    quadratic_form: tf.Tensor
    iterations: int


def factorised(matrix: np.ndarray, gradient: tf.Tensor, damping: float) -> Step:
    """Solves for a step by Cholesky, or by eigenvalues where the matrix is not positive semi-definite.

    The matrix is scaled to a unit diagonal first (A. van der Sluis, "Condition numbers and equilibration of matrices",
    Numer. Math. 14 (1969)): what counts as zero does not depend on the units of the features then.

    Args:
        matrix: `F + R` `[n, n]`.
        gradient: `[n]`.
        damping: added to the diagonal.

    Returns:
        A `Step`; where the matrix is singular and the equations are consistent, the one of least norm.
    """
    import scipy.linalg

    g = gradient.numpy()
    matrix = matrix + damping * np.eye(len(matrix), dtype=matrix.dtype)
    diagonal = np.diag(matrix)
    info = np.finfo(matrix.dtype)
    scale = np.where(diagonal > info.tiny, 1.0 / np.sqrt(np.maximum(diagonal, info.tiny)), 1.0).astype(matrix.dtype)
    scaled, rhs = matrix * scale * scale[:, None], scale * g
    # This keeps the share of the null space, which rounding alone gives to g, small; what it changes of the rest is
    # undone by the refinement.
    floor = info.eps ** (2 / 3)
    try:
        factor = scipy.linalg.cho_factor(scaled + floor * np.eye(len(g), dtype=g.dtype), overwrite_a=True)
        solution = scipy.linalg.cho_solve(factor, rhs)
        solution += scipy.linalg.cho_solve(factor, rhs - scaled @ solution)
        null = _null_space(scaled)
    except scipy.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(scaled)
        floor *= np.max(np.abs(values))
        keep = values > floor
        solution = vectors[:, keep] @ ((rhs @ vectors[:, keep]) / values[keep])
        null = vectors[:, np.abs(values) <= floor]
    step = scale * solution
    if null.shape[1]:
        # The scaling moved the null space: of the solutions the shortest one is orthogonal to it in the parameters.
        null = np.linalg.qr(_unit_columns(scale[:, None] * null))[0]
        step -= null @ (null.T @ step)
    form = step @ (matrix @ step) - damping * (step @ step)
    return Step(tf.constant(step, gradient.dtype), tf.constant(form, gradient.dtype), 1)


def _null_space(matrix: np.ndarray) -> np.ndarray:
    """A basis `[n, k]` of the null space of a positive semi-definite matrix, by pivoted Cholesky."""
    import scipy.linalg

    n = len(matrix)
    rounding = 10.0 * n * np.finfo(matrix.dtype).eps
    (pstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (matrix,))
    upper, pivots, rank, _ = pstrf(matrix, tol=rounding, lower=0)
    if rank == n:
        return np.zeros([n, 0], matrix.dtype)
    basis = np.zeros([n, n - rank], matrix.dtype)
    known = -scipy.linalg.solve_triangular(upper[:rank, :rank], upper[:rank, rank:])
    # In units that are far apart, what is rounding here would be large there.
    basis[pivots[:rank] - 1] = np.where(np.abs(known) > rounding, known, 0.0)
    basis[pivots[rank:] - 1] = np.eye(n - rank, dtype=matrix.dtype)
    return basis


def _unit_columns(columns: np.ndarray) -> np.ndarray:
    return columns / np.linalg.norm(columns, axis=0)


__all__ = ["Step", "factorised"]
