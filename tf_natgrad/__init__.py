"""Natural gradients and curvature for TensorFlow 2 and Keras 3."""

from tf_natgrad import distributions, operators, parameters, rl, solvers, spectrum
from tf_natgrad._direction import natural_gradient
from tf_natgrad.models import (
    NaturalGradientMixin,
    NaturalGradientModel,
    NaturalGradientSequential,
    natural_gradient_model,
)
from tf_natgrad.optimizers import NaturalGradient

__version__ = "0.1.0"

__all__ = [
    "NaturalGradient",
    "NaturalGradientMixin",
    "NaturalGradientModel",
    "NaturalGradientSequential",
    "distributions",
    "natural_gradient",
    "natural_gradient_model",
    "operators",
    "parameters",
    "rl",
    "solvers",
    "spectrum",
]
