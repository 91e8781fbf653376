"""The columns of the policy-curvature files, and what their rows say in words; without TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kit.recording import Row, column

# Of the intervals and of the test against noise.
LEVEL = 0.05

KEY_COLUMNS = ("env", "max_steps", "hidden", "gamma", "baseline", "episodes", "null_draws", "seed", "policy")
COLUMNS = (
    *(*KEY_COLUMNS, "iteration", "parameters", "return", "return_error", "length", "end", "eigenvalue", "low", "high"),
    *("cross_fitted", "cross_low", "cross_high", "null_limit", "p_value", "residual", "seconds"),
)
WALK_COLUMNS = ("rollouts", "points", "radius")
LINE_COLUMNS = (
    *(*KEY_COLUMNS, *WALK_COLUMNS, "iteration", "direction", "step", "return", "return_error"),
    *("change", "change_error", "predicted", "predicted_error"),
)
SURFACE_COLUMNS = (
    *(*KEY_COLUMNS, *WALK_COLUMNS, "iteration", "step_bottom", "step_top", "return", "change", "change_error"),
    "predicted",
)
VARIANCE_KEY_COLUMNS = ("mdp", "horizon", "samples")
VARIANCE_COLUMNS = (*VARIANCE_KEY_COLUMNS, "estimator", "reward_offset", "variance", "factor")
FILES = ("policy_curvature.csv", "policy_lines.csv", "policy_surface.csv", "policy_variance.csv")
ALL_COLUMNS = (COLUMNS, LINE_COLUMNS, SURFACE_COLUMNS, VARIANCE_COLUMNS)


def described(row: Row) -> str:
    """Environment and policy in words."""
    return f"{row['env']}, at most {row['max_steps']} steps, discount {row['gamma']}"


def threshold_of(rows: Sequence[Row]) -> float:
    """Below which the axis of eigenvalues is linear: a round number near the smallest magnitude."""
    least = np.abs(column(rows, "eigenvalue"))
    return 10.0 ** math.floor(math.log10(max(least.min(), 1e-3 * least.max(), 1e-12)))


def table(rows: Sequence[Row]) -> str:
    """What was found at the checkpoints, for people."""
    lines = [
        f"{described(rows[0])}, {rows[0]['parameters']} weights, {rows[0]['episodes']} episodes a checkpoint",
        "",
        f"{'policy':32s}{'return':>9s}{'end':>10s}{'eigenvalue':>12s}{'interval':>20s}{'cross-fitted':>14s}"
        f"{'noise limit':>13s}{'p':>7s}",
    ]
    for row in rows:
        number = {name: float(row[name] or "nan") for name in COLUMNS[COLUMNS.index("eigenvalue") :]}
        lines.append(
            f"{row['policy']:32s}{float(row['return']):>9.1f}{row['end']:>10s}{number['eigenvalue']:>12.3g}"
            f"{number['low']:>11.3g}{number['high']:>9.3g}{number['cross_fitted']:>14.3g}"
            f"{number['null_limit']:>13.3g}{number['p_value']:>7.2g}"
        )
    return "\n".join(lines)
