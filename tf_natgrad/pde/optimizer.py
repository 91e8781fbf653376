"""The settings of natural gradient descent for residuals of differential equations."""

from __future__ import annotations

from typing import Any

from tf_natgrad.steps import LevenbergMarquardt
from tf_natgrad.training import NaturalGradient


def natural_gradient(**overrides: Any) -> NaturalGradient:
    """Returns a `NaturalGradient` with the settings for residuals: full batches, whole steps, damping down to 1e-14.

    Residuals have no noise: the loss falls by ten orders of magnitude and more, and the damping with it. Steps are
    Gauss-Newton steps (learning rate 1, no limit of a KL divergence, which residuals do not have) by the exact Gram
    matrix; the line search shortens a step that does not lower the loss. Train in float64
    (`keras.config.set_floatx("float64")` and `set_dtype_policy("float64")`), with all points in one batch.

    >>> optimizer = natural_gradient()
    >>> float(optimizer.learning_rate), optimizer.adaptation.minimum
    (1.0, 1e-14)

    Args:
        **overrides: arguments of `NaturalGradient` that are to be others, such as `momentum=0.9` or `solver="cg"`.

    Returns:
        An optimizer, for a `ResidualModel` or any model that trains by natural gradient.

    Raises:
        TypeError: if there is no such argument, or it is of the wrong type.
        ValueError: if a value does not fit.

    References:
        J. Müller, M. Zeinhofer, "Achieving high accuracy with PINNs via energy natural gradient descent", ICML (2023).
    """
    settings: dict[str, Any] = {
        "learning_rate": 1.0,
        "damping": LevenbergMarquardt(initial=1.0, decay=0.7, period=1, low=0.05, high=0.1, minimum=1e-14),
        "solver": "gram",
        "max_kl": None,
    }
    return NaturalGradient(**settings | overrides)


__all__ = ["natural_gradient"]
