"""The Gram matrix `K = A A^T` of a network, layer by layer, without its Jacobian."""

from tf_natgrad.gram._base import LayerCall, Rule
from tf_natgrad.gram.capture import Record, capture, register_rule

__all__ = ["LayerCall", "Record", "Rule", "capture", "register_rule"]
