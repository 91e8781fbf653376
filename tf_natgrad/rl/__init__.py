"""Reinforcement learning: policies, episodes, and the curvature of the expected return."""

from tf_natgrad.rl.baselines import step_weights
from tf_natgrad.rl.episodes import Episodes
from tf_natgrad.rl.policies import CategoricalPolicy, GaussianPolicy, Policy
from tf_natgrad.rl.policy_hessian import PolicyHessian
from tf_natgrad.rl.rollouts import collect
from tf_natgrad.rl.significance import ExtremeCurvature, extreme_curvature

__all__ = [
    "CategoricalPolicy",
    "Episodes",
    "ExtremeCurvature",
    "GaussianPolicy",
    "Policy",
    "PolicyHessian",
    "collect",
    "extreme_curvature",
    "step_weights",
]
