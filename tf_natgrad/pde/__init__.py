"""Differential equations: derivatives of a network in its inputs, carried forward, and residuals made of them."""

from tf_natgrad.pde.derivatives import derivatives, laplacian
from tf_natgrad.pde.features import FourierFeatures, HardBoundary

__all__ = ["FourierFeatures", "HardBoundary", "derivatives", "laplacian"]
