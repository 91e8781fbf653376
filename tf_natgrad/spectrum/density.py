"""The density of eigenvalues by stochastic Lanczos quadrature."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.spectrum._krylov import krylov_of, size_of
from tf_natgrad.spectrum.extreme import check_symmetry


class SpectralDensity(NamedTuple):
    """An estimate of the density of eigenvalues.

    Attributes:
        grid: eigenvalues at which the density is given, `[G]`.
        density: the mean over the probes, `[G]`; it integrates to one.
        standard_error: of that mean over the probes, `[G]`.
        nodes: Ritz values per probe, `[probes, steps]`.
        weights: their shares of the spectrum, `[probes, steps]`, each row with sum one.
        products: the number of products with the operator.
    """

    grid: np.ndarray
    density: np.ndarray
    standard_error: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray
    products: int


def spectral_density(
    operator: tf.linalg.LinearOperator,
    num_probes: int = 8,
    steps: int = 90,
    *,
    grid: np.ndarray | None = None,
    num_points: int = 1000,
    width: float | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """Estimates the density of eigenvalues, smoothed with a normal kernel, and its standard error over random probes.

    >>> import tensorflow as tf
    >>> matrix = tf.linalg.LinearOperatorDiag(tf.linspace(0.0, 1.0, 200), is_self_adjoint=True)
    >>> density = spectral_density(matrix, num_probes=4, steps=30)
    >>> bool(abs(np.trapezoid(density.density, density.grid) - 1) < 0.01)
    True

    Args:
        operator: symmetric, `[n, n]`.
        num_probes: the number of random start vectors, at least 2.
        steps: the number of Lanczos steps per probe; more than n are cut to n.
        grid: eigenvalues at which the density is computed; by default `num_points` over the range of the Ritz values
            and a margin.
        num_points: of the default grid.
        width: standard deviation of the kernel, in units of the eigenvalues; by default 1% of that range.
        seed: of the probes.

    Returns:
        A `SpectralDensity`.

    Raises:
        ValueError: if a number is out of its range, `grid` is no vector of finite numbers, or the operator is not
            symmetric or its products are not finite.
        TypeError: if `operator` is no linear operator.

    References:
        B. Ghorbani, S. Krishnan, Y. Xiao, "An investigation into neural net optimization via Hessian eigenvalue
        density", ICML (2019), algorithm 1.
    """
    _checks.check_operator("operator", operator)
    _checks.check_seed("seed", seed)
    _checks.check_number("num_probes", num_probes, minimum=2, integer=True)
    _checks.check_number("steps", steps, minimum=1, integer=True)
    _checks.check_number("num_points", num_points, minimum=1, integer=True)
    if width is not None:
        _checks.check_number("width", width, minimum=0.0, exclusive=True)
    if grid is not None:
        grid = _checks.as_array("grid", grid).astype(np.float64)
        if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all():
            raise ValueError(_checks.message("grid", _checks.described(grid), "finite numbers, [G]"))
    n = size_of(operator)
    steps = min(steps, n)
    generator = np.random.default_rng(seed)
    check_symmetry(operator, generator)
    krylov = krylov_of(operator, steps)
    nodes, weights, products = [], [], 0
    for _ in range(num_probes):
        krylov.start(tf.constant(generator.standard_normal(n), operator.dtype))
        krylov.extend(steps, generator)
        values, vectors = np.linalg.eigh(krylov.projection)
        nodes.append(values)
        weights.append(np.square(vectors[0]))
        products += krylov.products
    nodes, weights = np.array(nodes), np.array(weights)
    low, high = nodes.min(), nodes.max()
    extent = max(high - low, np.finfo(np.float32).eps * max(abs(low), abs(high), 1e-30))
    if width is None:
        width = 0.01 * extent
    if grid is None:
        grid = np.linspace(low - 4 * width, high + 4 * width, num_points)
    kernel = np.exp(-0.5 * np.square((grid[None, :, None] - nodes[:, None, :]) / width))
    single = np.sum(kernel * weights[:, None, :], -1) / (width * np.sqrt(2 * np.pi))
    return SpectralDensity(grid, single.mean(0), single.std(0, ddof=1) / np.sqrt(num_probes), nodes, weights, products)


__all__ = ["SpectralDensity", "spectral_density"]
