"""The Gram matrix `K = A A^T` of a network, layer by layer, without its Jacobian."""

from tf_natgrad.layers._base import LayerCall, Rule, WeightGradientRule
from tf_natgrad.layers.capture import Record, capture
from tf_natgrad.layers.registry import register_rule, rule_for
from tf_natgrad.layers.self_check import CAUSE, gram_mismatch, tolerated_mismatch

__all__ = [
    "CAUSE",
    "LayerCall",
    "Record",
    "Rule",
    "WeightGradientRule",
    "capture",
    "gram_mismatch",
    "register_rule",
    "rule_for",
    "tolerated_mismatch",
]
