"""Extreme eigenpairs of a symmetric operator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import tensorflow as tf

from tf_natgrad import _checks, _conditions
from tf_natgrad._typing import TensorLike
from tf_natgrad.operators import CurvatureOperator, Damped, FactoredOperator
from tf_natgrad.spectrum._krylov import check_finite, krylov_of, norm, size_of

_WHICH = ("LA", "SA", "LM", "BE")
_METHODS = ("auto", "lanczos", "arpack", "gram", "dense")
# Sizes up to which a dense matrix, or the Gram matrix, is decomposed whole.
_DENSE_SIZE = 500
_GRAM_ROWS = 2000


class EigshInfo(NamedTuple):
    """Report of `eigsh`.

    Attributes:
        method: the method that was used, `"lanczos"`, `"arpack"`, `"gram"` or `"dense"`.
        products: the number of products with the operator, residuals included.
        residuals: `||H v - lambda v||` of each pair, `[k]`.
        converged: whether each pair reached the tolerance, `[k]`.
        restarts: the number of times that the Krylov space was compressed.
    """

    method: str
    products: int
    residuals: np.ndarray
    converged: np.ndarray
    restarts: int


class Eigenpairs(NamedTuple):
    """Eigenvalues, ascending, `[k]`; unit eigenvectors, `[n, k]`, largest entry positive; and a report."""

    eigenvalues: np.ndarray
    eigenvectors: tf.Tensor
    info: EigshInfo


def eigsh(
    operator: tf.linalg.LinearOperator,
    k: int = 6,
    which: str = "LA",
    *,
    method: str = "auto",
    tol: float = 1e-4,
    max_products: int = 2000,
    ncv: int | None = None,
    seed: int = 0,
    v0: TensorLike | None = None,
) -> Eigenpairs:
    """Computes the `k` extreme eigenpairs of a symmetric operator.

    `"auto"` decomposes a small matrix as a whole, a low-rank matrix exactly by its Gram matrix, and uses Lanczos with
    thick restarts and full reorthogonalisation otherwise; no vector leaves the device. Of an eigenvalue that occurs
    several times, Lanczos may find one copy only; `"dense"` and `"gram"` find all.

    >>> import tensorflow as tf
    >>> matrix = tf.linalg.LinearOperatorDiag(tf.constant([3.0, -5.0, 1.0, 2.0]), is_self_adjoint=True)
    >>> pairs = eigsh(matrix, k=2, which="BE")
    >>> [round(float(v), 4) for v in pairs.eigenvalues]
    [-5.0, 3.0]

    Args:
        operator: symmetric, `[n, n]`; the symmetry of an operator of another package is checked by random products.
        k: the number of pairs, 1 to n (less than n for `"arpack"`).
        which: `"LA"` largest, `"SA"` smallest, `"LM"` largest in magnitude, `"BE"` half from each end (one more from
            the high end if k is odd).
        method: `"auto"`, `"lanczos"`, `"arpack"` (SciPy), `"gram"` or `"dense"`.
        tol: a pair has converged when its residual is below `tol` times the largest eigenvalue magnitude.
        max_products: the largest number of products.
        ncv: size of the Krylov space; by default as large as 1 GiB and `max(4 k, 100)` allow.
        seed: of the start vector.
        v0: a start vector `[n]`.

    Returns:
        `Eigenpairs(eigenvalues, eigenvectors, info)`. Pairs that did not converge are returned too; see
        `info.converged`.

    Raises:
        ValueError: if `k`, `which`, `method` or another option is out of range, the operator is not symmetric, its
            products are not finite, or ARPACK fails.
        TypeError: if `operator` is no linear operator.

    References:
        K. Wu, H. Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J. Matrix Anal.
        Appl. 22 (2000), algorithm 3.
    """
    _checks.check_operator("operator", operator)
    _checks.check_seed("seed", seed)
    n = size_of(operator)
    _checks.check_choice("which", which, _WHICH)
    _checks.check_choice("method", method, _METHODS)
    _checks.check_number("k", k, minimum=1, integer=True)
    _checks.check_number("tol", tol, minimum=0.0)
    _checks.check_number("max_products", max_products, minimum=1, integer=True)
    if k > n:
        raise ValueError(_checks.message("k", k, f"at most {n} for this {n} x {n} operator"))
    if method == "arpack" and k == n:
        expected = f"at most {n - 1} for this {n} x {n} operator with 'arpack'"
        raise ValueError(_checks.message("k", k, expected, "Use method='dense'."))
    if ncv is not None:
        _checks.check_number("ncv", ncv, minimum=1, integer=True)
        if ncv <= k:
            raise ValueError(_checks.message("ncv", ncv, f"more than k = {k}"))
    generator = np.random.default_rng(seed)
    check_symmetry(operator, generator)
    start = generator.standard_normal(n) if v0 is None else v0
    start = _checks.as_tensor("v0", start, operator.dtype)
    _checks.check_rank_one("v0", start, n)
    if not (_conditions.is_finite(start) and tf.reduce_any(start != 0)):
        raise ValueError(_checks.message("v0", "zero, NaN or infinite values", "a finite vector other than zero"))

    method = _choose(operator, k, which) if method == "auto" else method
    if method == "gram":
        values, vectors, products, restarts, scale = _by_gram(operator, k, which, generator)
    elif method == "dense":
        values, vectors, products, restarts, scale = _by_dense(operator, k, which)
    elif method == "arpack":
        values, vectors, products, restarts, scale = _by_arpack(
            operator, k, which, tol, max_products, ncv, start, generator
        )
    else:
        values, vectors, products, restarts, scale = _by_lanczos(
            operator, k, which, tol, max_products, ncv, start, generator
        )
    vectors = _signed(vectors)
    residuals = norm(operator.matmul(vectors) - vectors * tf.constant(values, vectors.dtype)).numpy()
    scale = max(scale, np.finfo(vectors.dtype.as_numpy_dtype).tiny)
    slack = 10 * np.finfo(vectors.dtype.as_numpy_dtype).eps
    info = EigshInfo(method, products + k, residuals, residuals <= (tol + slack) * scale, restarts)
    if not info.converged.all():
        _checks.log_once(f"eigsh: {int((~info.converged).sum())} of {k} pairs did not reach the tolerance")
    return Eigenpairs(values, vectors, info)


def check_symmetry(operator: tf.linalg.LinearOperator, generator: np.random.Generator) -> None:
    """Refuses an operator that is not symmetric; one of this package's own is symmetric by construction.

    Args:
        operator: the operator.
        generator: for the probe.

    Raises:
        ValueError: if it is not symmetric.
    """
    if operator.is_self_adjoint is not False:
        if isinstance(operator, CurvatureOperator):
            return
        u, v = (tf.constant(generator.standard_normal(operator.shape[-1]), operator.dtype) for _ in range(2))
        hu, hv = operator.matvec(u), operator.matvec(v)
        check_finite(tf.stack([hu, hv]))
        gap = tf.abs(tf.tensordot(u, hv, 1) - tf.tensordot(v, hu, 1))
        scale = tf.norm(u) * tf.norm(hv) + tf.norm(v) * tf.norm(hu)
        if gap <= np.finfo(operator.dtype.as_numpy_dtype).eps ** 0.5 * scale:
            return
    raise ValueError(
        _checks.message(
            "operator",
            f"{type(operator).__name__}, which is not symmetric",
            "a symmetric operator",
            "Symmetrise it first, as (H + H^T) / 2 (`symmetrize()` where the operator has it).",
        )
    )


def _without_damping(operator: tf.linalg.LinearOperator) -> tuple[tf.linalg.LinearOperator, float]:
    """The matrix that has the same eigenvectors, and what its eigenvalues lack."""
    if isinstance(operator, Damped) and operator.damping_by_variable is None:
        return operator.base, float(operator.damping)
    return operator, 0.0


def _choose(operator: tf.linalg.LinearOperator, k: int, which: str) -> str:
    n = operator.shape[-1]
    base, _ = _without_damping(operator)
    rows = base.rows if isinstance(base, FactoredOperator) else None
    if rows is not None and base.gram_refusal is None and k <= rows <= min(_GRAM_ROWS, n) and which in ("LA", "LM"):
        return "gram"
    return "dense" if n <= _DENSE_SIZE or 2 * k >= n else "lanczos"


def _wanted(values: np.ndarray, k: int, which: str) -> np.ndarray:
    """The indices of the wanted among ascending values, ascending."""
    count = len(values)
    if which == "LA":
        return np.arange(count - k, count)
    if which == "SA":
        return np.arange(k)
    if which == "LM":
        return np.sort(np.argsort(-np.abs(values), kind="stable")[:k])
    low = k // 2
    return np.concatenate([np.arange(low), np.arange(count - (k - low), count)])


def _by_dense(operator: tf.linalg.LinearOperator, k: int, which: str):
    dense = operator.to_dense()
    check_finite(dense)
    values, vectors = tf.linalg.eigh(dense)
    wanted = _wanted(values.numpy(), k, which)
    return values.numpy()[wanted], tf.gather(vectors, wanted, axis=1), 0, 0, np.max(np.abs(values))


def _by_gram(operator: CurvatureOperator, k: int, which: str, generator: np.random.Generator):
    base, damping = _without_damping(operator)
    if not isinstance(base, FactoredOperator) or base.gram_refusal is not None or which not in ("LA", "LM"):
        raise ValueError(
            _checks.message(
                "method",
                f"'gram' for {type(base).__name__} and which={which!r}",
                "an operator with a Gram matrix, and 'LA' or 'LM'",
                "Use method='lanczos'.",
            )
        )
    gram = base.gram()
    check_finite(gram)
    values, vectors = tf.linalg.eigh(gram)
    if k > values.shape[0]:
        raise ValueError(_checks.message("k", k, f"at most the {values.shape[0]} rows of the Gram matrix"))
    values, vectors = values[-k:].numpy(), vectors[:, -k:]
    # An eigenvalue of rounding size says nothing of its vector: there, any one orthogonal to the others is right.
    rounding = 10 * values[-1] * len(gram) * np.finfo(values.dtype).eps
    columns = [
        base.factor_transpose_matvec(vectors[:, i])
        if values[i] > rounding
        else tf.constant(generator.standard_normal(base.shape[-1]), base.dtype)
        for i in reversed(range(k))
    ]
    # Orthogonalised in the order in which they are accurate.
    basis, _ = tf.linalg.qr(tf.math.l2_normalize(tf.stack(columns, 1), 0))
    return values + damping, tf.reverse(basis, [1]), 0, 0, values[-1] + damping


def _by_arpack(operator, k, which, tol, max_products, ncv, start, generator):
    counted = _Counted(operator)
    ncv = min(max(2 * k + 1, 20) if ncv is None else ncv, operator.shape[-1])
    # After the first `ncv` products, each restart takes up to `ncv - k` of them.
    restarts = max(1, 1 + (max_products - ncv) // (ncv - k))
    # ARPACK refuses one pair of both ends; it is the highest.
    which = "LA" if which == "BE" and k == 1 else which
    try:
        values, vectors = scipy.sparse.linalg.eigsh(
            counted.scipy, k, which=which, tol=tol, maxiter=restarts, ncv=ncv, v0=start.numpy()
        )
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
        if len(values) < k:
            raise ValueError(
                _checks.message("max_products", max_products, f"enough for k = {k}: ARPACK found {len(values)}")
            ) from None
    except scipy.sparse.linalg.ArpackError as error:
        values, vectors = _after_failure(counted, k, generator, error)
    order = np.argsort(values)
    return values[order], tf.constant(vectors[:, order], operator.dtype), counted.products, 0, counted.largest


def _after_failure(counted, k, generator, error):
    """The pairs of a matrix of zeros, in whose range ARPACK cannot start; any other failure is told."""
    n, annihilated = counted.scipy.shape[0], counted.largest == 0.0
    counted.scipy.matvec(generator.standard_normal(n).astype(counted.scipy.dtype))
    if counted.largest == 0.0:
        basis, _ = np.linalg.qr(generator.standard_normal([n, k]))
        return np.zeros(k, counted.scipy.dtype), basis
    remedy = "Use method='lanczos'."
    if annihilated:
        expected = "one that ARPACK can start from"
        raise ValueError(_checks.message("v0", "a vector that the operator sends to zero", expected, remedy)) from None
    received = f"'arpack', which failed ({error})"
    raise ValueError(_checks.message("method", received, "one that solves this problem", remedy)) from None


class _Counted:
    """A SciPy operator that counts its products and notes how much they stretch a vector at most."""

    def __init__(self, operator: tf.linalg.LinearOperator):
        self.products = 0
        self.largest = 0.0

        def product(x):
            self.products += 1
            image = operator.matvec(tf.constant(np.reshape(x, [-1]), operator.dtype)).numpy()
            check_finite(image)
            # SciPy's norm neither overflows nor underflows.
            length = max(scipy.linalg.norm(np.reshape(x, [-1])), np.finfo(x.dtype).tiny)
            self.largest = max(self.largest, scipy.linalg.norm(image) / length)
            return image

        n = operator.shape[-1]
        self.scipy = scipy.sparse.linalg.LinearOperator((n, n), product, dtype=operator.dtype.as_numpy_dtype)


def _by_lanczos(operator, k, which, tol, max_products, ncv, start, generator):
    n = operator.shape[-1]
    if ncv is None:
        fits = (1 << 30) // (n * operator.dtype.size) - 1
        ncv = max(2 * k + 1, min(max(4 * k, 100), fits))
    size = min(ncv, n)
    krylov = krylov_of(operator, size)
    krylov.start(start)
    restarts, step = 0, min(size, 2 * k + 1)
    while True:
        # At least k + 1 vectors, whatever `max_products` says.
        within = krylov.steps + max(1, max_products - krylov.products)
        krylov.extend(min(step, max(within, min(n, k + 1))), generator)
        values, rotation = np.linalg.eigh(krylov.projection[: krylov.steps, : krylov.steps])
        wanted = _wanted(values, min(k, len(values)), which)
        residuals = krylov.residual_norm * np.abs(rotation[-1, wanted])
        scale = np.max(np.abs(values))
        enough = krylov.steps >= min(n, k + 1)
        if enough and ((residuals <= tol * scale).all() or krylov.steps == n or krylov.products >= max_products):
            return values[wanted], krylov.combine(rotation[:, wanted]), krylov.products, restarts, scale
        if krylov.steps == size:
            # The wanted and their neighbours: what is kept beyond k speeds convergence up.
            kept = _wanted(values, min(size - 1, k + (size - k) // 3), which)
            krylov.restart(rotation[:, kept], values[kept])
            restarts += 1
        step = min(size, krylov.steps + max(8, krylov.steps // 8))


def _signed(vectors: tf.Tensor) -> tf.Tensor:
    """Turns each column so that its entry of largest magnitude is positive."""
    index = tf.argmax(tf.abs(vectors), axis=0)
    largest = tf.gather(tf.transpose(vectors), index, batch_dims=1)
    return vectors * tf.sign(largest)


__all__ = ["Eigenpairs", "EigshInfo", "check_symmetry", "eigsh"]
