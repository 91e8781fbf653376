"""The Gram matrix `K = A A^T` of a network, layer by layer, without its Jacobian."""

from tf_natgrad.gram._base import LayerCall, Rule, WeightGradientRule
from tf_natgrad.gram.capture import Record, capture
from tf_natgrad.gram.registry import register_rule, rule_for

__all__ = ["LayerCall", "Record", "Rule", "WeightGradientRule", "capture", "register_rule", "rule_for"]
