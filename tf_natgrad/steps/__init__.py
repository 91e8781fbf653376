"""The length of a step along a direction, its acceptance, and the damping of the next step."""

from tf_natgrad.steps.damping import LevenbergMarquardt
from tf_natgrad.steps.line_search import LineSearch, Objective, accept, restore, take
from tf_natgrad.steps.report import StepReport, Trial
from tf_natgrad.steps.trust_region import kl_radius, kl_shrink

__all__ = [
    "LevenbergMarquardt",
    "LineSearch",
    "Objective",
    "StepReport",
    "Trial",
    "accept",
    "kl_radius",
    "kl_shrink",
    "restore",
    "take",
]
