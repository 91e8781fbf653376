"""Agents that learn a policy in an environment by natural-gradient steps."""

from tf_natgrad.rl.agents.agent import NaturalPolicyGradient
from tf_natgrad.rl.agents.log import Record
from tf_natgrad.rl.agents.settings import TrustRegionSettings
from tf_natgrad.rl.agents.trpo import TRPO

__all__ = ["TRPO", "NaturalPolicyGradient", "Record", "TrustRegionSettings"]
