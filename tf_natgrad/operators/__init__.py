"""Curvature matrices as linear operators `[n, n]`."""

from tf_natgrad.operators._base import CurvatureOperator, FactoredOperator, FactoredRhs
from tf_natgrad.operators.damped import Damped
from tf_natgrad.operators.fisher import Fisher

__all__ = ["CurvatureOperator", "Damped", "FactoredOperator", "FactoredRhs", "Fisher"]
