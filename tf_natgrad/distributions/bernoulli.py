"""Independent Bernoulli distributions, from logits and from probabilities."""

from __future__ import annotations

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._conditions import Checked, Condition
from tf_natgrad._typing import TensorLike
from tf_natgrad.distributions._base import Distribution, event_targets, unit_columns

# Least log of p (1 - p), for the same reason as in `categorical`.
_MIN_LOG_VARIANCE = -60.0


class BernoulliPd(Distribution):
    """D independent Bernoulli variables, parametrised by their log-odds.

    The Fisher in the logits is `diag(p (1 - p))`, its factor `diag(sqrt(p (1 - p)))`.

    >>> import tensorflow as tf
    >>> pd = BernoulliPd(tf.constant([[0.0]]))
    >>> round(float(pd.log_prob(tf.constant([[1.0]]))[0]), 4)
    -0.6931

    Args:
        logits: floating-point tensor `[..., D]`.
    """

    @classmethod
    def from_probabilities(cls, probabilities: TensorLike) -> BernoulliProbabilitiesPd:
        """Makes the distribution whose parameters are the probabilities of a one, `[..., D]`."""
        return BernoulliProbabilitiesPd(probabilities)

    @property
    def logits(self) -> tf.Tensor:
        """Log-odds `[..., D]`."""
        return self.parameters

    @property
    def probabilities(self) -> tf.Tensor:
        """Probability of a one, `[..., D]`."""
        return tf.sigmoid(self.logits)

    @property
    def fisher_rank(self) -> int:
        return self.parameters.shape[-1]

    @property
    def event_size(self) -> int:
        """D."""
        return self.parameters.shape[-1]

    def checked_targets(self, value: TensorLike) -> Checked:
        """Converts zeros and ones, or soft targets between them, to `[..., D]` (also from `[...]` for D = 1).

        Args:
            value: the labels.

        Returns:
            `[..., D]` in the dtype of the parameters, on condition that all are finite and in [0, 1].

        Raises:
            ValueError: if the shape is known to be another one.
        """
        y, conditions = event_targets(value, self.parameters, self.event_size)
        text = _checks.message("y", "a target outside [0, 1]", "targets between 0 and 1", "They are chances of a one.")
        # Whether all are finite is a condition of its own.
        inside = Condition(tf.reduce_all(((y >= 0) & (y <= 1)) | ~tf.math.is_finite(y)), text)
        return Checked(y, [*conditions, inside])

    def mode(self) -> tf.Tensor:
        return tf.cast(self.logits > 0, tf.int64)

    def log_prob(self, value: TensorLike) -> tf.Tensor:
        """Computes the log-probability of zeros and ones (or of soft targets) `[..., D]`, summed over D."""
        y = tf.cast(self._value(value), self.parameters.dtype)
        return tf.reduce_sum(y * self._log_p() + (1.0 - y) * self._log_q(), -1)

    def entropy(self) -> tf.Tensor:
        p, q = self._p_and_q()
        return -tf.reduce_sum(p * self._log_p() + q * self._log_q(), -1)

    def sample(self, seed: TensorLike) -> tf.Tensor:
        _checks.check_words("seed", seed)
        p = self.probabilities
        return tf.cast(tf.random.stateless_uniform(tf.shape(p), seed, dtype=p.dtype) < p, p.dtype)

    def kl(self, other: BernoulliPd) -> tf.Tensor:
        self._same_kind(other, BernoulliPd)
        p, q = self._p_and_q()
        return tf.reduce_sum(p * (self._log_p() - other._log_p()) + q * (self._log_q() - other._log_q()), -1)

    def fisher_factor(self, vector: TensorLike) -> tf.Tensor:
        return self._scale() * self._operand(vector, self.fisher_rank)

    def fisher_factor_transpose(self, vector: TensorLike) -> tf.Tensor:
        return self._scale() * self._operand(vector, self.fisher_rank)

    def fisher_factor_columns(self) -> tf.Tensor:
        return unit_columns(self.parameters) * self._scale()

    def score_factor(self, value: TensorLike) -> tf.Tensor:
        y = tf.cast(self._value(value), self.parameters.dtype)
        p, q = self._p_and_q()
        # p - y without the cancellation at p ~ 1 = y.
        return ((1.0 - y) * p - y * q) / self._deviation()

    def _log_p(self) -> tf.Tensor:
        return tf.math.log_sigmoid(self.logits)

    def _log_q(self) -> tf.Tensor:
        return tf.math.log_sigmoid(-self.logits)

    def _p_and_q(self) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.sigmoid(self.logits), tf.sigmoid(-self.logits)

    def _deviation(self) -> tf.Tensor:
        """The clamped standard deviation `sqrt(p (1 - p))`."""
        return tf.exp(0.5 * tf.maximum(self._log_p() + self._log_q(), _MIN_LOG_VARIANCE))

    def _scale(self) -> tf.Tensor:
        """The diagonal of `S`."""
        return self._deviation()


class BernoulliProbabilitiesPd(BernoulliPd):
    """D independent Bernoulli variables, parametrised by the probabilities of a one.

    Made by `BernoulliPd.from_probabilities`; the Fisher is `diag(1 / (p (1 - p)))`.

    Args:
        probabilities: floating-point tensor `[..., D]` in [0, 1].
    """

    @property
    def logits(self) -> tf.Tensor:
        return self._log_p() - self._log_q()

    @property
    def probabilities(self) -> tf.Tensor:
        return self.parameters

    def _log_p(self) -> tf.Tensor:
        return _clamped_log(self.parameters)

    def _log_q(self) -> tf.Tensor:
        return _clamped_log(1.0 - self.parameters)

    def _p_and_q(self) -> tuple[tf.Tensor, tf.Tensor]:
        return self.parameters, 1.0 - self.parameters

    def _scale(self) -> tf.Tensor:
        return 1.0 / self._deviation()


def _clamped_log(p: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.maximum(p, tf.exp(tf.constant(_MIN_LOG_VARIANCE, p.dtype))))


__all__ = ["BernoulliPd", "BernoulliProbabilitiesPd"]
