"""Normal distributions with diagonal covariance."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._typing import TensorLike
from tf_natgrad.distributions._base import Distribution, unit_columns

_LOG_2_PI = math.log(2.0 * math.pi)


class _NormalPd(Distribution):
    """Base class of both parametrisations: computes everything from the mean and the log of the standard deviation."""

    @property
    def mean(self) -> tf.Tensor:
        """Mean `[..., D]`."""
        raise NotImplementedError

    @property
    def log_std(self) -> tf.Tensor:
        """Log of the standard deviation, `[..., D]` or a scalar."""
        raise NotImplementedError

    @property
    def event_size(self) -> int:
        """D."""
        return self.parameters.shape[-1]

    def mode(self) -> tf.Tensor:
        return self.mean

    def log_prob(self, value: TensorLike) -> tf.Tensor:
        """Computes the log-density of `value` `[..., D]`, summed over D."""
        return -tf.reduce_sum(0.5 * tf.square(self._standardised(value)) + self.log_std + 0.5 * _LOG_2_PI, -1)

    def entropy(self) -> tf.Tensor:
        return tf.reduce_sum(self.log_std + 0.5 * (1.0 + _LOG_2_PI) + tf.zeros_like(self.mean), -1)

    def sample(self, seed: TensorLike) -> tf.Tensor:
        _checks.check_words("seed", seed)
        noise = tf.random.stateless_normal(tf.shape(self.mean), seed, dtype=self.mean.dtype)
        return self.mean + tf.exp(self.log_std) * noise

    def kl(self, other: _NormalPd) -> tf.Tensor:
        self._same_kind(other, _NormalPd)
        log_ratio = self.log_std - other.log_std
        shift = (self.mean - other.mean) * tf.exp(-other.log_std)
        return tf.reduce_sum(0.5 * (tf.square(shift) + tf.math.expm1(2.0 * log_ratio)) - log_ratio, -1)

    def fisher_factor(self, vector: TensorLike) -> tf.Tensor:
        return self._diagonal() * self._operand(vector, self.fisher_rank)

    def fisher_factor_transpose(self, vector: TensorLike) -> tf.Tensor:
        return self._diagonal() * self._operand(vector, self.fisher_rank)

    def fisher_factor_columns(self) -> tf.Tensor:
        return unit_columns(self.parameters) * self._diagonal()

    @property
    def fisher_rank(self) -> int:
        return self.parameters.shape[-1]

    def _standardised(self, value: TensorLike) -> tf.Tensor:
        return (tf.cast(self._value(value), self.parameters.dtype) - self.mean) * tf.exp(-self.log_std)

    def _diagonal(self) -> tf.Tensor:
        """The diagonal of `S`, broadcastable to `parameters`."""
        raise NotImplementedError


class DiagGaussianPd(_NormalPd):
    """D independent normal variables, parametrised by their means and the logs of their standard deviations.

    The Fisher is `diag(1 / sigma^2, 2)`, its factor `diag(1 / sigma, sqrt(2))`.

    >>> import tensorflow as tf
    >>> pd = DiagGaussianPd(tf.constant([[1.0, 0.0]]))  # one variable: mean 1, standard deviation 1
    >>> round(float(pd.log_prob(tf.constant([[1.0]]))[0]), 4)
    -0.9189

    Args:
        parameters: floating-point tensor `[..., 2 D]`: D means, then D logs of standard deviations.

    Raises:
        ValueError: if the last dimension is odd.
    """

    def __init__(self, parameters: TensorLike):
        super().__init__(parameters)
        if not self.parameters.shape.rank or self.parameters.shape[-1] % 2:
            raise ValueError(
                _checks.message(
                    "parameters",
                    f"shape {self.parameters.shape}",
                    "shape [..., 2 D]: D means, then D logs of standard deviations",
                    "For a fixed standard deviation use `DiagGaussianPd.with_fixed_std`.",
                )
            )

    @classmethod
    def with_fixed_std(cls, mean: TensorLike, std: float) -> FixedStdGaussianPd:
        """Makes normal variables whose only parameters are their means `[..., D]`; `std` is a constant > 0."""
        return FixedStdGaussianPd(mean, std)

    @property
    def event_size(self) -> int:
        """D."""
        return self.parameters.shape[-1] // 2

    @property
    def mean(self) -> tf.Tensor:
        return self.parameters[..., : self.parameters.shape[-1] // 2]

    @property
    def log_std(self) -> tf.Tensor:
        return self.parameters[..., self.parameters.shape[-1] // 2 :]

    def score_factor(self, value: TensorLike) -> tf.Tensor:
        z = self._standardised(value)
        return tf.concat([-z, (1.0 - tf.square(z)) / math.sqrt(2.0)], -1)

    def _diagonal(self) -> tf.Tensor:
        return tf.concat([tf.exp(-self.log_std), math.sqrt(2.0) * tf.ones_like(self.log_std)], -1)


class FixedStdGaussianPd(_NormalPd):
    """D independent normal variables of one known standard deviation, parametrised by their means.

    Made by `DiagGaussianPd.with_fixed_std`; the Fisher is `1 / std^2` times the identity. Keras's mean squared
    error over D outputs is its negative log-likelihood at `std = sqrt(D / 2)`, up to a constant.

    Args:
        mean: floating-point tensor `[..., D]`.
        std: the standard deviation, > 0.

    Raises:
        ValueError: if `std` is not a positive number.
    """

    def __init__(self, mean: TensorLike, std: float):
        super().__init__(mean)
        _checks.check_number("std", std, minimum=0.0, exclusive=True)
        self.std = float(std)

    @property
    def mean(self) -> tf.Tensor:
        return self.parameters

    @property
    def log_std(self) -> tf.Tensor:
        return tf.constant(math.log(self.std), self.parameters.dtype)

    def with_parameters(self, parameters: tf.Tensor) -> FixedStdGaussianPd:
        return FixedStdGaussianPd(parameters, self.std)

    def score_factor(self, value: TensorLike) -> tf.Tensor:
        return -self._standardised(value)

    def _diagonal(self) -> tf.Tensor:
        return tf.ones_like(self.parameters) / self.std


__all__ = ["DiagGaussianPd", "FixedStdGaussianPd"]
