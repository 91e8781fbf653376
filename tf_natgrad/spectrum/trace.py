"""Stochastic estimates of the trace, with their standard errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.spectrum._krylov import check_finite, size_of


class TraceEstimate(NamedTuple):
    """An estimate of a trace.

    Attributes:
        value: the estimate.
        standard_error: its standard error over the probes.
        products: the number of products with the operator.
    """

    value: float
    standard_error: float
    products: int


def hutchinson_trace(operator: tf.linalg.LinearOperator, num_probes: int = 32, *, seed: int = 0) -> TraceEstimate:
    """Estimates the trace by the mean of `z^T H z` over Rademacher probes `z`.

    >>> import tensorflow as tf
    >>> hutchinson_trace(tf.linalg.LinearOperatorDiag(tf.constant([1.0, 2.0])), 4).value
    3.0

    Args:
        operator: `[n, n]`.
        num_probes: the number of probes, at least 2.
        seed: of the probes.

    Returns:
        A `TraceEstimate`, unbiased.

    Raises:
        ValueError: if `num_probes` is too small, or the products are not finite.
        TypeError: if `operator` is no linear operator.

    References:
        M. Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989).
    """
    _checks.check_operator("operator", operator)
    _checks.check_seed("seed", seed)
    _checks.check_number("num_probes", num_probes, minimum=2, integer=True)
    probes = _rademacher(operator, num_probes, np.random.default_rng(seed))
    forms = _forms(operator, probes)
    return TraceEstimate(float(forms.mean()), float(forms.std(ddof=1) / np.sqrt(num_probes)), num_probes)


def hutchpp_trace(operator: tf.linalg.LinearOperator, num_products: int = 48, *, seed: int = 0) -> TraceEstimate:
    """Estimates the trace by Hutch++: exactly on a sketched range, by Hutchinson's estimator on the rest.

    If the spectrum decays, the error falls like one over the number of products, that of `hutchinson_trace` like one
    over its square root.

    >>> import tensorflow as tf
    >>> estimate = hutchpp_trace(tf.linalg.LinearOperatorDiag(tf.linspace(1.0, 2.0, 50)), 30)
    >>> abs(estimate.value - 75.0) < 5 * estimate.standard_error + 1e-3
    True

    Args:
        operator: symmetric, `[n, n]`.
        num_products: the number of products with the operator; a third each for the sketch, its image and the probes.
        seed: of sketch and probes.

    Returns:
        A `TraceEstimate`, unbiased; its standard error is that of the part that is not exact.

    Raises:
        ValueError: if `num_products` is below 6, or the products are not finite.
        TypeError: if `operator` is no linear operator.

    References:
        R. Meyer, C. Musco, C. Musco, D. Woodruff, "Hutch++: optimal stochastic trace estimation", SOSA (2021),
        algorithm 1.
    """
    _checks.check_operator("operator", operator)
    _checks.check_seed("seed", seed)
    _checks.check_number("num_products", num_products, minimum=6, integer=True)
    generator = np.random.default_rng(seed)
    third = min(num_products // 3, size_of(operator))
    sketch = operator.matmul(_rademacher(operator, third, generator))
    check_finite(sketch)
    basis, _ = tf.linalg.qr(sketch)
    exact = tf.reduce_sum(basis * operator.matmul(basis))
    probes = _rademacher(operator, num_products - 2 * third, generator)
    probes -= tf.linalg.matmul(basis, tf.linalg.matmul(basis, probes, transpose_a=True))
    forms = _forms(operator, probes)
    error = forms.std(ddof=1) / np.sqrt(len(forms))
    return TraceEstimate(float(exact) + float(forms.mean()), float(error), 2 * third + len(forms))


def _forms(operator: tf.linalg.LinearOperator, probes: tf.Tensor) -> np.ndarray:
    """`z^T H z` for each column."""
    forms = tf.reduce_sum(probes * operator.matmul(probes), 0)
    check_finite(forms)
    return forms.numpy().astype(np.float64)


def _rademacher(operator: tf.linalg.LinearOperator, count: int, generator: np.random.Generator) -> tf.Tensor:
    signs = generator.integers(0, 2, [size_of(operator), count]) * 2 - 1
    return tf.constant(signs, operator.dtype)


__all__ = ["TraceEstimate", "hutchinson_trace", "hutchpp_trace"]
