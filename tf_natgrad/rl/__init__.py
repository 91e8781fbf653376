"""Reinforcement learning: policies, episodes, the curvature of the expected return, and agents."""

from tf_natgrad.rl.advantages import generalized_advantages
from tf_natgrad.rl.agents import TRPO, NaturalPolicyGradient
from tf_natgrad.rl.curvature import ExtremeCurvature, PolicyHessian, extreme_curvature, step_weights
from tf_natgrad.rl.episodes import Episodes
from tf_natgrad.rl.normalization import ObservationNormalization
from tf_natgrad.rl.policies import CategoricalPolicy, GaussianPolicy, Policy
from tf_natgrad.rl.rollouts import collect

__all__ = [
    "TRPO",
    "CategoricalPolicy",
    "Episodes",
    "ExtremeCurvature",
    "GaussianPolicy",
    "NaturalPolicyGradient",
    "ObservationNormalization",
    "Policy",
    "PolicyHessian",
    "collect",
    "extreme_curvature",
    "generalized_advantages",
    "step_weights",
]
