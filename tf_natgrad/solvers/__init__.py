"""Solvers of `(F + damping I) x = g`."""

from tf_natgrad.solvers._base import Solution, Solver
from tf_natgrad.solvers._registry import get, to_config
from tf_natgrad.solvers.auto import Auto, Planned
from tf_natgrad.solvers.cholesky import Cholesky, CholeskyInfo
from tf_natgrad.solvers.conjugate_gradient import CGInfo, ConjugateGradient, StopReason
from tf_natgrad.solvers.gram import Gram, GramInfo
from tf_natgrad.solvers.svd import SVDInfo, SVDPseudoInverse

__all__ = [
    "Auto",
    "CGInfo",
    "Cholesky",
    "CholeskyInfo",
    "ConjugateGradient",
    "Gram",
    "GramInfo",
    "Planned",
    "SVDInfo",
    "SVDPseudoInverse",
    "Solution",
    "Solver",
    "StopReason",
    "get",
    "to_config",
]
