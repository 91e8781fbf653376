"""Categorical distributions, from logits (as in the blog) and from probabilities."""

from __future__ import annotations

import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._conditions import Checked, Condition
from tf_natgrad._typing import TensorLike
from tf_natgrad.distributions._base import Distribution, event_targets, of_shape, unit_columns

# Below this log-probability a class counts as having it: sqrt(exp(-60)) and its reciprocal, and the products
# that the Gram form takes of them, stay far inside the range of float32.
_MIN_LOG_PROB = -60.0

# How far the sum of soft targets may be from one, and an entry below zero: they may come in half precision.
_SUM_TOLERANCE, _ENTRY_TOLERANCE = 1e-2, 1e-3


class CategoricalPd(Distribution):
    """Categorical distribution over C classes, parametrised by unnormalised log-probabilities.

    The Fisher in the logits is `L = diag(p) - p p^T`. Its factor is `diag(s) - p s^T`, `s = sqrt(p)`, which has
    the null vector `s`; a Householder reflection that sends `s` to the last unit vector removes that column, so
    `S` is `[C, C - 1]` with full column rank. Log-probabilities are clamped at -60 in `S` and in `score_factor`
    alike, so that their product is the exact gradient at any scale of the logits.

    >>> import tensorflow as tf
    >>> pd = CategoricalPd(tf.constant([[0.0, 1.0, 3.0]]))
    >>> int(pd.mode()[0]), round(float(pd.entropy()[0]), 4)
    (2, 0.5243)

    Args:
        logits: floating-point tensor `[..., C]`, C >= 2.

    Raises:
        ValueError: if there are fewer than two classes.

    References:
        S. Amari, "Natural gradient works efficiently in learning", Neural Computation 10 (1998).
    """

    _argument = "logits"

    def __init__(self, logits: TensorLike):
        super().__init__(logits)
        if self.parameters.shape.rank in (None, 0) or (self.parameters.shape[-1] or 0) < 2:
            raise ValueError(
                _checks.message(
                    "logits",
                    f"shape {self.parameters.shape}",
                    "shape [..., C] with at least 2 classes",
                    "For one output per example use `BernoulliPd` (binary cross-entropy).",
                )
            )

    @classmethod
    def from_probabilities(cls, probabilities: TensorLike) -> ProbabilitiesPd:
        """Makes the distribution whose parameters are the probabilities `[..., C]`, each row summing to one."""
        return ProbabilitiesPd(probabilities)

    @property
    def logits(self) -> tf.Tensor:
        """Unnormalised log-probabilities `[..., C]`."""
        return self.parameters

    @property
    def log_probabilities(self) -> tf.Tensor:
        """Normalised log-probabilities `[..., C]`."""
        return tf.nn.log_softmax(self.parameters)

    @property
    def probabilities(self) -> tf.Tensor:
        """Probabilities `[..., C]`."""
        return tf.nn.softmax(self.parameters)

    @property
    def fisher_rank(self) -> int:
        return self.parameters.shape[-1] - 1

    def mode(self) -> tf.Tensor:
        return tf.argmax(self.parameters, axis=-1)

    def checked_targets(self, value: TensorLike) -> Checked:
        """Converts class indices `[...]` (also `[..., 1]`) to integers, or soft targets `[..., C]` to numbers.

        Args:
            value: the labels. One-hot rows are soft targets.

        Returns:
            Integers `[...]`, or `[..., C]` in the dtype of the parameters.

        Raises:
            ValueError: if the shape is another one, an index is out of range, or a row is no distribution.
        """
        value = tf.convert_to_tensor(value)
        rank = self.parameters.shape.rank
        if value.shape.rank is not None and value.shape.rank >= rank and value.shape[rank - 1] != 1:
            return soft_targets(value, self)
        return class_indices(value, self, "Soft targets have one number for each class.")

    def log_prob(self, value: TensorLike) -> tf.Tensor:
        """Computes the log-probability of class indices `[...]`, or minus the cross-entropy of soft targets."""
        return tf.reduce_sum(tf.math.multiply_no_nan(self.log_probabilities, self._targets(value)), -1)

    def entropy(self) -> tf.Tensor:
        return -tf.reduce_sum(tf.math.multiply_no_nan(self.log_probabilities, self.probabilities), -1)

    def sample(self, seed: TensorLike) -> tf.Tensor:
        _checks.check_words("seed", seed)
        shape = tf.shape(self.parameters)
        flat = tf.reshape(self.log_probabilities, [-1, shape[-1]])
        return tf.reshape(tf.random.stateless_categorical(flat, 1, seed), shape[:-1])

    def kl(self, other: CategoricalPd) -> tf.Tensor:
        self._same_kind(other, CategoricalPd)
        difference = self.log_probabilities - other.log_probabilities
        return tf.reduce_sum(tf.math.multiply_no_nan(difference, self.probabilities), -1)

    def fisher_matvec(self, vector: TensorLike) -> tf.Tensor:
        vector = self._operand(vector, self.parameters.shape[-1])
        return self.probabilities * self._centre_transpose(vector)

    def fisher_factor(self, vector: TensorLike) -> tf.Tensor:
        vector = self._operand(vector, self.fisher_rank)
        s = self._root()
        scaled = s[..., :-1] * vector
        last = -tf.reduce_sum(scaled, -1, keepdims=True) * _reflection(s)
        return self._centre(tf.concat([scaled, last], -1))

    def fisher_factor_transpose(self, vector: TensorLike) -> tf.Tensor:
        vector = self._operand(vector, self.parameters.shape[-1])
        s = self._root()
        centred = self._centre_transpose(vector)
        return s[..., :-1] * (centred[..., :-1] - _reflection(s) * centred[..., -1:])

    def fisher_factor_columns(self) -> tf.Tensor:
        s, p = self._root(), self.probabilities
        units = unit_columns(p)
        centred = units * self._complement() - (1.0 - units) * p
        columns = centred[:-1] - _reflection(s) * centred[-1:]
        return _columns_first(s)[:-1] * columns

    def score_factor(self, value: TensorLike) -> tf.Tensor:
        s, y = self._root(), self._targets(value)
        # s - y / s, written without the cancellation at p ~ 1 = y.
        u = (1.0 - y) * s - y * self._complement() / s
        # s . u is 1 - sum(y), known without cancellation.
        along = (1.0 - tf.reduce_sum(y, -1, keepdims=True) + u[..., -1:]) / (1.0 + s[..., -1:])
        return u[..., :-1] - s[..., :-1] * along

    def _complement(self) -> tf.Tensor:
        """`1 - p`, exact to rounding also where p is close to one: there it is the sum of the others."""
        p = self.probabilities
        top = self._top()
        others = tf.reduce_sum((1.0 - top) * p, -1, keepdims=True)
        return top * others + (1.0 - top) * (1.0 - p)

    def _centre(self, vector: tf.Tensor) -> tf.Tensor:
        """`v - p sum(v)`, without cancellation at the most probable class."""
        p, top = self.probabilities, self._top()
        others = tf.reduce_sum((1.0 - top) * vector, -1, keepdims=True)
        at_top = tf.reduce_sum(top * vector, -1, keepdims=True)
        exact = self._complement() * vector - p * others
        return top * exact + (1.0 - top) * (vector - p * (at_top + others))

    def _centre_transpose(self, vector: tf.Tensor) -> tf.Tensor:
        """`v - p . v`, without cancellation at the most probable class."""
        p, top = self.probabilities, self._top()
        others = tf.reduce_sum((1.0 - top) * p * vector, -1, keepdims=True)
        at_top = tf.reduce_sum(top * p * vector, -1, keepdims=True)
        exact = self._complement() * vector - others
        return top * exact + (1.0 - top) * (vector - (at_top + others))

    def _top(self) -> tf.Tensor:
        """One-hot `[..., C]` of the most probable class."""
        return tf.one_hot(self.mode(), self.parameters.shape[-1], dtype=self.parameters.dtype)

    def _root(self) -> tf.Tensor:
        return tf.exp(0.5 * tf.maximum(self.log_probabilities, _MIN_LOG_PROB))

    def _targets(self, value: TensorLike) -> tf.Tensor:
        """Targets `[..., C]`, from class indices or as they are."""
        value = self._value(value)
        if value.shape.rank == self.parameters.shape.rank:
            return tf.cast(value, self.parameters.dtype)
        return tf.one_hot(tf.cast(value, tf.int32), self.parameters.shape[-1], dtype=self.parameters.dtype)


class ProbabilitiesPd(CategoricalPd):
    """Categorical distribution over C classes, parametrised by probabilities, for a network that ends in a softmax.

    The parameters are read as `p / sum(p)`, so the score is `y / p - 1` and the Fisher `diag(1 / p) - 1 1^T`.
    Through a softmax it gives the same factor, Gram matrix and Fisher of the model as the logits do. Made by
    `CategoricalPd.from_probabilities`.

    >>> import tensorflow as tf
    >>> pd = CategoricalPd.from_probabilities(tf.constant([[0.25, 0.75]]))
    >>> [round(float(v), 4) for v in pd.log_probabilities[0]]
    [-1.3863, -0.2877]

    Args:
        probabilities: floating-point tensor `[..., C]`, each row non-negative with sum one.
    """

    @property
    def logits(self) -> tf.Tensor:
        return self.log_probabilities

    @property
    def log_probabilities(self) -> tf.Tensor:
        p = self.probabilities
        return tf.math.log(tf.maximum(p, tf.exp(tf.constant(_MIN_LOG_PROB, p.dtype))))

    @property
    def probabilities(self) -> tf.Tensor:
        return self.parameters / tf.reduce_sum(self.parameters, -1, keepdims=True)

    def fisher_matvec(self, vector: TensorLike) -> tf.Tensor:
        vector = self._operand(vector, self.parameters.shape[-1])
        return vector / tf.square(self._root()) - tf.reduce_sum(vector, -1, keepdims=True)

    def fisher_factor(self, vector: TensorLike) -> tf.Tensor:
        vector = self._operand(vector, self.fisher_rank)
        s = self._root()
        total = tf.reduce_sum(s[..., :-1] * vector, -1, keepdims=True) / (1.0 + s[..., -1:])
        return tf.concat([vector / s[..., :-1], -total / s[..., -1:]], -1) - total

    def fisher_factor_transpose(self, vector: TensorLike) -> tf.Tensor:
        vector = self._operand(vector, self.parameters.shape[-1])
        s = self._root()
        total = tf.reduce_sum(vector, -1, keepdims=True) + vector[..., -1:] / s[..., -1:]
        return vector[..., :-1] / s[..., :-1] - s[..., :-1] * total / (1.0 + s[..., -1:])

    def fisher_factor_columns(self) -> tf.Tensor:
        s = self._root()
        units = unit_columns(s)
        first = _columns_first(s)[:-1]
        return units[:-1] / first - first * (1.0 + units[-1:] / s[..., -1:]) / (1.0 + s[..., -1:])

    def score_factor(self, value: TensorLike) -> tf.Tensor:
        s, y = self._root(), self._targets(value)
        u = -y / s
        along = (u[..., -1:] - tf.reduce_sum(y, -1, keepdims=True)) / (1.0 + s[..., -1:])
        return u[..., :-1] - s[..., :-1] * along


def class_indices(value: TensorLike, pd: Distribution, remedy: str = "") -> Checked:
    """Labels as integers `[...]`.

    Args:
        value: whole numbers of any dtype, `[...]` or `[..., 1]`.
        pd: a distribution whose parameters are `[..., C]`.
        remedy: what the user can do about a wrong shape, for the message.

    Returns:
        Integers, on condition that each is a class.

    Raises:
        ValueError: if the shape is known to be another one.
    """
    parameters = pd.parameters
    y = tf.convert_to_tensor(value)
    received = f"shape {tuple(y.shape)}" if y.shape.rank is not None else "other labels"
    if y.shape.rank == parameters.shape.rank and y.shape[-1] == 1:
        y = tf.squeeze(y, -1)
    y, conditions = of_shape(y, parameters, [], received, "class indices", remedy)
    classes = parameters.shape[-1]
    # No integer type loses anything, and a small one can hold the number of classes.
    exact = tf.cast(y, tf.float64)
    in_range = Condition(
        tf.reduce_all((exact >= 0) & (exact < classes) & tf.equal(exact, tf.floor(exact))),
        _checks.message("y", "a label out of range", f"class indices 0 to {classes - 1}", "Check the labels."),
    )
    return Checked(tf.cast(y, tf.int32), [*conditions, in_range])


def soft_targets(value: TensorLike, pd: Distribution) -> Checked:
    """Probabilities of the classes `[..., C]`.

    Args:
        value: rows that sum to one, one-hot rows for example.
        pd: a distribution whose parameters are `[..., C]`.

    Returns:
        A tensor in the dtype of the parameters, on condition that each row is a distribution.

    Raises:
        ValueError: if the shape is known to be another one.
    """
    y, conditions = event_targets(value, pd.parameters, pd.parameters.shape[-1])
    total = tf.reduce_sum(y, -1)
    least = tf.reduce_min(y, -1)
    of_rows = Condition(
        # Whether all are finite is a condition of its own.
        tf.reduce_all(
            ((least >= -_ENTRY_TOLERANCE) & (tf.abs(total - 1.0) <= _SUM_TOLERANCE)) | ~tf.math.is_finite(total)
        ),
        _checks.message(
            "y",
            "soft targets with a negative entry, or a row that does not sum to 1",
            "one distribution over the classes in each row",
            "For several classes at once use `BinaryCrossentropy`; rows of weight zero need a class too.",
        ),
    )
    return Checked(y, [*conditions, of_rows])


def _reflection(s: tf.Tensor) -> tf.Tensor:
    """Share of the last column that the Householder reflection mixes into the others, `[..., 1]`.

    `s` goes to minus the last unit vector: with `s >= 0` that sign avoids the cancellation in `s_C - 1`.
    """
    return s[..., -1:] / (1.0 + s[..., -1:])


def _columns_first(s: tf.Tensor) -> tf.Tensor:
    """`[..., C] -> [C, ..., 1]`."""
    return tf.transpose(s, [s.shape.rank - 1, *range(s.shape.rank - 1)])[..., None]


__all__ = ["CategoricalPd", "ProbabilitiesPd", "class_indices", "soft_targets"]
