"""The table from layer classes to rules."""

from __future__ import annotations

import keras

from tf_natgrad.layers._base import Rule
from tf_natgrad.layers.convolution import ConvolutionRule
from tf_natgrad.layers.dense import DenseRule
from tf_natgrad.layers.einsum_dense import EinsumDenseRule
from tf_natgrad.layers.embedding import EmbeddingRule
from tf_natgrad.layers.fallback import FallbackRule
from tf_natgrad.layers.normalization import NormalizationRule
from tf_natgrad.layers.separable_convolution import SeparableConvolutionRule
from tf_natgrad.layers.transposed_convolution import TransposedConvolutionRule

_layers = keras.layers
_RULES: dict[type, Rule] = {
    _layers.Dense: DenseRule(),
    _layers.EinsumDense: EinsumDenseRule(),
    _layers.Embedding: EmbeddingRule(),
    **dict.fromkeys(
        (_layers.Conv1D, _layers.Conv2D, _layers.Conv3D, _layers.DepthwiseConv1D, _layers.DepthwiseConv2D),
        ConvolutionRule(),
    ),
    **dict.fromkeys(
        (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose), TransposedConvolutionRule()
    ),
    **dict.fromkeys((_layers.SeparableConv1D, _layers.SeparableConv2D), SeparableConvolutionRule()),
    **dict.fromkeys(
        (_layers.BatchNormalization, _layers.LayerNormalization, _layers.RMSNormalization), NormalizationRule()
    ),
}
FALLBACK = FallbackRule()


def register_rule(layer_class: type, rule: Rule) -> None:
    """Registers the rule of a layer class (of exactly that class: a subclass may compute something else).

    Args:
        layer_class: a subclass of `keras.layers.Layer`.
        rule: computes the share of the layer's calls in the Gram matrix.
    """
    _RULES[layer_class] = rule


def has_rule(layer: keras.layers.Layer) -> bool:
    """Returns whether a rule is registered for the layer's class."""
    return type(layer) in _RULES


def registered_rule(layer: keras.layers.Layer) -> Rule:
    """Returns the rule registered for the layer's class, even if it is not right for this instance."""
    return _RULES.get(type(layer), FALLBACK)


def rule_for(layer: keras.layers.Layer) -> Rule:
    """Returns the rule registered for the layer's class if it is right for this instance, else the fallback."""
    rule = registered_rule(layer)
    return rule if rule.supports(layer) else FALLBACK


__all__ = ["FALLBACK", "has_rule", "register_rule", "registered_rule", "rule_for"]
