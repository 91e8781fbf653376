"""Curvature matrices as linear operators `[n, n]`."""

from tf_natgrad.operators._base import CurvatureOperator
from tf_natgrad.operators._factored import FactoredOperator, FactoredRhs
from tf_natgrad.operators._kronecker import KroneckerBlock
from tf_natgrad.operators.damped import Damped
from tf_natgrad.operators.fisher import EmpiricalFisher, Fisher
from tf_natgrad.operators.hessian import GaussNewton, Hessian
from tf_natgrad.operators.kronecker import KroneckerFisher
from tf_natgrad.operators.penalty import Penalty
from tf_natgrad.operators.score_function import ScoreFunctionHessian
from tf_natgrad.operators.sum import Sum

__all__ = [
    "CurvatureOperator",
    "Damped",
    "EmpiricalFisher",
    "FactoredOperator",
    "FactoredRhs",
    "Fisher",
    "GaussNewton",
    "Hessian",
    "KroneckerBlock",
    "KroneckerFisher",
    "Penalty",
    "ScoreFunctionHessian",
    "Sum",
]
