"""Differential equations: derivatives of a network in its inputs, carried forward, and residuals made of them."""

from tf_natgrad.pde.derivatives import derivatives, laplacian
from tf_natgrad.pde.features import FourierFeatures, HardBoundary
from tf_natgrad.pde.optimizer import natural_gradient
from tf_natgrad.pde.residuals import Coefficient, ResidualModel

__all__ = [
    "Coefficient",
    "FourierFeatures",
    "HardBoundary",
    "ResidualModel",
    "derivatives",
    "laplacian",
    "natural_gradient",
]
