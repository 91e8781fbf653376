"""How far to go along a direction, whether to take the step, and what damping to use the next time."""

from tf_natgrad.steps.damping import LevenbergMarquardt
from tf_natgrad.steps.line_search import LineSearch, Objective, accept, restore, take
from tf_natgrad.steps.report import StepReport, Trial
from tf_natgrad.steps.trust_region import kl_radius

__all__ = [
    "LevenbergMarquardt",
    "LineSearch",
    "Objective",
    "StepReport",
    "Trial",
    "accept",
    "kl_radius",
    "restore",
    "take",
]
