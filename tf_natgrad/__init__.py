"""Natural gradients and curvature for TensorFlow 2 and Keras 3."""

import sys
from typing import TYPE_CHECKING, Any

from tf_natgrad import _moved, distributions, errors, operators, parameters, pde, preconditioners, rl, solvers, spectrum
from tf_natgrad.preconditioners import EKFAC, KFAC
from tf_natgrad.steps import LevenbergMarquardt, LineSearch
from tf_natgrad.training import (
    NaturalGradient,
    NaturalGradientMixin,
    NaturalGradientModel,
    NaturalGradientSequential,
    callbacks,
    explain,
    fisher_scoring,
    natural_gradient,
    natural_gradient_model,
    wait_for_workers,
)

__version__ = "0.2.0"

_moved.install()
# `import tf_natgrad.callbacks` finds it, wherever its file is.
sys.modules[f"{__name__}.callbacks"] = callbacks


if not TYPE_CHECKING:
    # A type checker would take any name for one of the package's.
    def __getattr__(name: str) -> Any:
        return _moved.attribute(__name__, name)


__all__ = [
    "EKFAC",
    "KFAC",
    "LevenbergMarquardt",
    "LineSearch",
    "NaturalGradient",
    "NaturalGradientMixin",
    "NaturalGradientModel",
    "NaturalGradientSequential",
    "callbacks",
    "distributions",
    "errors",
    "explain",
    "fisher_scoring",
    "natural_gradient",
    "natural_gradient_model",
    "operators",
    "parameters",
    "pde",
    "preconditioners",
    "rl",
    "solvers",
    "spectrum",
    "wait_for_workers",
]
