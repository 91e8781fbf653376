"""Output distributions with their Fisher algebra, and the table from Keras losses to them."""

from tf_natgrad.distributions._base import Distribution
from tf_natgrad.distributions.bernoulli import BernoulliPd
from tf_natgrad.distributions.categorical import CategoricalPd
from tf_natgrad.distributions.gaussian import DiagGaussianPd
from tf_natgrad.distributions.likelihood import Likelihood
from tf_natgrad.distributions.losses import NegativeLogLikelihood, joint_likelihood, likelihood_of

__all__ = [
    "BernoulliPd",
    "CategoricalPd",
    "DiagGaussianPd",
    "Distribution",
    "Likelihood",
    "NegativeLogLikelihood",
    "joint_likelihood",
    "likelihood_of",
]
