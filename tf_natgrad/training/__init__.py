"""Training by natural gradient in Keras: the optimizer, the models, and the step that they take."""

from tf_natgrad.training import callbacks
from tf_natgrad.training.explain import Explanation, explain
from tf_natgrad.training.fisher_scoring import fisher_scoring
from tf_natgrad.training.models import (
    NaturalGradientMixin,
    NaturalGradientModel,
    NaturalGradientSequential,
    natural_gradient_model,
)
from tf_natgrad.training.natural_gradient import natural_gradient
from tf_natgrad.training.optimizer import NaturalGradient
from tf_natgrad.training.workers import wait_for_workers

__all__ = [
    "Explanation",
    "NaturalGradient",
    "NaturalGradientMixin",
    "NaturalGradientModel",
    "NaturalGradientSequential",
    "callbacks",
    "explain",
    "fisher_scoring",
    "natural_gradient",
    "natural_gradient_model",
    "wait_for_workers",
]
