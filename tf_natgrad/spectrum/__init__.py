"""Eigenvalues of curvature matrices: extreme pairs, traces, densities."""

from tf_natgrad.spectrum.density import SpectralDensity, spectral_density
from tf_natgrad.spectrum.extreme import Eigenpairs, EigshInfo, eigsh
from tf_natgrad.spectrum.trace import TraceEstimate, hutchinson_trace, hutchpp_trace

__all__ = [
    "Eigenpairs",
    "EigshInfo",
    "SpectralDensity",
    "TraceEstimate",
    "eigsh",
    "hutchinson_trace",
    "hutchpp_trace",
    "spectral_density",
]
