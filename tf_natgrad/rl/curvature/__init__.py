"""The curvature of the expected return of a policy, estimated from episodes."""

from tf_natgrad.rl.curvature.baselines import step_weights
from tf_natgrad.rl.curvature.policy_hessian import PolicyHessian
from tf_natgrad.rl.curvature.significance import ExtremeCurvature, extreme_curvature

__all__ = ["ExtremeCurvature", "PolicyHessian", "extreme_curvature", "step_weights"]
