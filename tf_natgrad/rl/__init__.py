"""Reinforcement learning: policies, episodes, the curvature of the expected return, and agents."""

from tf_natgrad.rl.advantages import generalized_advantages
from tf_natgrad.rl.agents import TRPO, NaturalPolicyGradient
from tf_natgrad.rl.baselines import step_weights
from tf_natgrad.rl.episodes import Episodes
from tf_natgrad.rl.normalization import ObservationNormalization
from tf_natgrad.rl.policies import CategoricalPolicy, GaussianPolicy, Policy
from tf_natgrad.rl.policy_hessian import PolicyHessian
from tf_natgrad.rl.rollouts import collect
from tf_natgrad.rl.significance import ExtremeCurvature, extreme_curvature

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
