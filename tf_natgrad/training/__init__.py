"""Training by natural gradient in Keras: the optimizer, the models, and the step that they take."""

from tf_natgrad.training.models import (
    NaturalGradientMixin,
    NaturalGradientModel,
    NaturalGradientSequential,
    natural_gradient_model,
)
from tf_natgrad.training.optimizer import NaturalGradient

__all__ = [
    "NaturalGradient",
    "NaturalGradientMixin",
    "NaturalGradientModel",
    "NaturalGradientSequential",
    "natural_gradient_model",
]
