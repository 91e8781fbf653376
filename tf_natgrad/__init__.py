"""Natural gradients and curvature for TensorFlow 2 and Keras 3."""

from tf_natgrad import distributions, errors, operators, parameters, rl, solvers, spectrum
from tf_natgrad.steps import LevenbergMarquardt, LineSearch
from tf_natgrad.training import (
    NaturalGradient,
    NaturalGradientMixin,
    NaturalGradientModel,
    NaturalGradientSequential,
    callbacks,
    fisher_scoring,
    natural_gradient,
    natural_gradient_model,
)

__version__ = "0.1.0"

__all__ = [
    "LevenbergMarquardt",
    "LineSearch",
    "NaturalGradient",
    "NaturalGradientMixin",
    "NaturalGradientModel",
    "NaturalGradientSequential",
    "callbacks",
    "distributions",
    "errors",
    "fisher_scoring",
    "natural_gradient",
    "natural_gradient_model",
    "operators",
    "parameters",
    "rl",
    "solvers",
    "spectrum",
]
