"""Former name of `tf_natgrad.steps`."""

from tf_natgrad.steps import LevenbergMarquardt, LineSearch, Objective, StepReport, kl_radius, restore, take

__all__ = ["LevenbergMarquardt", "LineSearch", "Objective", "StepReport", "kl_radius", "restore", "take"]
