"""The baselines that are subtracted from returns, and the weights of steps that remain."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_natgrad import _checks
from tf_natgrad.operators.score_function import ESTIMATORS
from tf_natgrad.rl.episodes import Episodes, check_episodes, check_gamma

Baseline = Any
_NAMES = ("leave_one_out", "time", "value")
_FOLDS = 5


def step_weights(episodes: Episodes, estimator: str, baseline: Baseline, gamma: float) -> np.ndarray:
    """Computes `w_t`, the weight of each step in an estimator of the policy Hessian.

    For `"trajectory"` it is `R - b`, the same within an episode; for the others `Psi_t - gamma^t b_t`, the discounted
    reward to go less the baseline.

    | baseline | for `"trajectory"` | for `"causal"` | unbiased |
    |---|---|---|---|
    | `None` | 0 | 0 | yes |
    | a number | the number | the number | yes, if it does not come from these episodes |
    | `"leave_one_out"` | mean return of the other episodes | their mean discounted reward to go at that time | yes |
    | `"time"` | the same as `"leave_one_out"` | the same | yes |
    | `"value"` | fitted at the first observation | fitted at each observation, on other episodes | yes |
    | a function `b(observations, times)` | at the first observation | at each observation | yes, if frozen |

    Args:
        episodes: N episodes, M steps.
        estimator: `"trajectory"`, or one that weights each step by itself.
        baseline: see above.
        gamma: the discount factor.

    Returns:
        `[M]`, float64.

    Raises:
        ValueError: if the baseline is unknown, or needs more episodes or equal weights.
    """
    check_episodes(episodes)
    _checks.check_choice("estimator", estimator, ESTIMATORS)
    check_gamma(gamma)
    discount = np.power(float(gamma), episodes.times)
    to_go = episodes.rewards_to_go(gamma)
    whole = estimator == "trajectory"
    weights = to_go[np.repeat(episodes.starts, episodes.lengths)] if whole else to_go
    if baseline is None:
        return weights
    if isinstance(baseline, str):
        _checks.check_choice("baseline", baseline, _NAMES)
        if episodes.weights is not None:
            raise ValueError(
                _checks.message(
                    "baseline", f"{baseline!r} for weighted episodes", "`None`, a number or a function", "Freeze it."
                )
            )
        if baseline == "value":
            values = _cross_fitted_values(episodes, to_go, discount)
        else:
            return weights - _leave_one_out(episodes, to_go, whole)
    elif callable(baseline):
        values = _checks.as_array("baseline", baseline(episodes.observations, episodes.times), "numbers [M]")
        values = values.astype(np.float64)
        if values.shape != (episodes.num_steps,):
            raise ValueError(
                _checks.message("baseline", f"values of shape {values.shape}", f"shape [{episodes.num_steps}]")
            )
        if not np.isfinite(values).all():
            raise ValueError(_checks.message("baseline", "values that are not finite", "finite ones"))
    else:
        _checks.check_number("baseline", baseline)
        values = np.full(episodes.num_steps, float(baseline))
    if whole:
        return weights - values[np.repeat(episodes.starts, episodes.lengths)]
    return weights - discount * values


def _leave_one_out(episodes: Episodes, to_go: np.ndarray, whole: bool) -> np.ndarray:
    """Averages the discounted reward to go at the same time over the other episodes; it is 0 after their end."""
    others = episodes.num_episodes - 1
    if others < 1:
        raise ValueError(
            _checks.message("baseline", "one episode", "at least two for a leave-one-out baseline", "Draw more.")
        )
    if whole:
        returns = to_go[episodes.starts]
        return ((returns.sum() - returns) / others)[episodes.episode_ids]
    totals = np.bincount(episodes.times, weights=to_go)
    return (totals[episodes.times] - to_go) / others


def _cross_fitted_values(episodes: Episodes, to_go: np.ndarray, discount: np.ndarray) -> np.ndarray:
    """Predicts the value of each observation by a regression on the episodes of other folds."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    folds = min(_FOLDS, episodes.num_episodes)
    if folds < 2:
        raise ValueError(_checks.message("baseline", "one episode", "at least two to fit values on others"))
    flat = episodes.observations.reshape(episodes.num_steps, -1).astype(np.float64)
    features = np.concatenate([flat, episodes.times[:, None]], 1)
    degree = 2 if features.shape[1] <= 20 else 1
    targets = np.divide(to_go, discount, out=np.zeros_like(to_go), where=discount > 0)
    fold = episodes.episode_ids % folds
    values = np.empty(episodes.num_steps)
    for held_out in range(folds):
        model = make_pipeline(
            StandardScaler(),
            PolynomialFeatures(degree, include_bias=False),
            StandardScaler(),
            RidgeCV(np.logspace(-3, 3, 7)),
        )
        model.fit(features[fold != held_out], targets[fold != held_out])
        values[fold == held_out] = model.predict(features[fold == held_out])
    return values


__all__ = ["Baseline", "step_weights"]
