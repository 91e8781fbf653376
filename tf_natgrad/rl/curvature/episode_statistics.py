"""Confidence intervals and p-values from numbers per episode, in NumPy, for arrays with any leading axes."""

from __future__ import annotations

import numpy as np
import scipy.stats

_RESAMPLES = 999
# The number of episodes that the variance over redrawn actions counts for. Chosen by `benchmarks/significance.py`.
_PRIOR_EPISODES = 100
_BLOCK = 2**22


def mean_interval(
    values: np.ndarray, redrawn: np.ndarray | None, level: float, generator: np.random.Generator
) -> np.ndarray:
    """Computes the confidence interval of the mean of independent values, at least as wide as Student's.

    The lower end is `mean - q s / sqrt(N)`. `q` is the greatest of the quantile of Student's t and two of the bootstrap
    of the t statistic, one for each end by itself and one for both; it follows the skewness that few values show. `s^2`
    is the sample variance, or, where that is greater, its average with the variance over redrawn actions, which
    includes rare actions that do not occur in few episodes.

    >>> mean_interval(np.arange(5.0), None, 0.05, np.random.default_rng(0)).round(1).tolist()
    [-0.3, 4.3]

    Args:
        values: `[..., N]`, N at least 2.
        redrawn: `[D, ..., N]`, the same for actions drawn anew, of mean 0 in expectation; `None` for the sample
            variance alone.
        level: one minus the confidence.
        generator: of the resamples, which are the same for all leading axes.

    Returns:
        `[..., 2]`.

    References:
        P. Hall, "Theoretical comparison of bootstrap confidence intervals", Annals of Statistics 16 (1988), section 2.
        G. Smyth, "Linear models and empirical Bayes methods for assessing differential expression in microarray
        experiments", Statistical Applications in Genetics and Molecular Biology 3 (2004), section 3: variances that are
        averages of two.
    """
    count = values.shape[-1]
    variance = values.var(-1, ddof=1)
    if redrawn is not None:
        known = np.square(redrawn).mean((0, -1))
        average = (_PRIOR_EPISODES * known + (count - 1) * variance) / (_PRIOR_EPISODES + count - 1)
        variance = np.maximum(variance, average)
    error = np.sqrt(variance / count)
    student = scipy.stats.t.ppf(1.0 - level / 2.0, count - 1)
    low, high = (np.maximum(student, quantile) for quantile in _bootstrapped_quantiles(values, level, generator))
    mean = values.mean(-1)
    return np.stack([mean - low * error, mean + high * error], -1)


def _bootstrapped_quantiles(
    values: np.ndarray, level: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the numbers of standard errors below and above the mean, by the bootstrap of the t statistic."""
    count = values.shape[-1]
    centred = (values - values.mean(-1, keepdims=True)).reshape(-1, count)
    spread = centred.std(-1, keepdims=True)
    scaled = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0.0)
    statistics = np.concatenate(
        [_resampled(scaled, size, generator) for size in _blocks(_RESAMPLES, max(1, _BLOCK // count))], 1
    )
    rank = int(np.ceil((_RESAMPLES + 1) * (1.0 - level / 2.0))) - 1
    rank_of_both = int(np.ceil((_RESAMPLES + 1) * (1.0 - level))) - 1
    both = np.sort(np.abs(statistics), 1)[:, min(rank_of_both, _RESAMPLES - 1)]
    ordered = np.sort(statistics, 1)
    low, high = ordered[:, min(rank, _RESAMPLES - 1)], -ordered[:, max(_RESAMPLES - 1 - rank, 0)]
    shape = values.shape[:-1]
    return np.maximum(low, both).reshape(shape), np.maximum(high, both).reshape(shape)


def _resampled(scaled: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """The t statistics, `[S, size]`, of resamples of rows `[S, N]` of mean 0 and variance 1."""
    count = scaled.shape[1]
    drawn = generator.integers(count, size=[size, count]) + count * np.arange(size)[:, None]
    shares = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).T / count
    means = scaled @ shares
    variances = np.square(scaled) @ shares - np.square(means)
    # A resample of equal values has no variance; the floor keeps its statistic finite.
    return means * np.sqrt((count - 1) / np.maximum(variances, count**-2.0))


def _blocks(total: int, size: int) -> list[int]:
    """Sizes that add up to the total, none above `size`."""
    return [min(size, total - start) for start in range(0, total, size)]


def studentised(eigenvalues: np.ndarray, forms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divides extreme eigenvalues by one standard error for both ends.

    The unit is `sqrt((var_smallest + var_largest) / N)`, from the quadratic forms along the two eigenvectors. A unit of
    its own for each end would be 0 where the eigenvalue is, as along directions that do not change the policy.

    Args:
        eigenvalues: `[..., 2]`.
        forms: `v^T M_e v` of each episode along their eigenvectors, `[..., 2, N]`.

    Returns:
        `(statistics, unit)`, `[..., 2]` and `[..., 1]`; all statistics are 0 where the unit is.
    """
    unit = np.sqrt(forms.var(-1, ddof=1).sum(-1, keepdims=True) / forms.shape[-1])
    return np.divide(eigenvalues, unit, out=np.zeros_like(eigenvalues), where=unit > 0.0), unit


def monte_carlo_p_values(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Computes the share of `1 + D` statistics that are as extreme as the observed one of them, for both ends.

    Where all `1 + D` are exchangeable under the null hypothesis, `P(p <= level) <= level` for any D.

    Args:
        observed: `[..., 2]`, smallest and largest.
        null: `[D, ..., 2]`.

    Returns:
        `[..., 2]`.
    """
    beyond = np.stack([null[..., 0] <= observed[..., 0], null[..., 1] >= observed[..., 1]], -1)
    return (1.0 + beyond.sum(0)) / (1.0 + len(null))


__all__ = ["mean_interval", "monte_carlo_p_values", "studentised"]
