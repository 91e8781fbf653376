"""A value function, fitted by regression."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks

# As in Stable-Baselines3.
_ADAM_EPSILON = 1e-5


class Critic:
    """Fits `V(s)`, the expected discounted reward to come, to targets by least squares with Adam.

    >>> network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> critic = Critic(network, learning_rate=0.1, batch_size=4, epochs=50)
    >>> observations, targets = np.eye(3, dtype="float32"), np.array([1.0, 2.0, 3.0])
    >>> critic.fit(observations, targets, seed=(0, 0)) < 0.01
    True
    >>> critic.values(observations).round(0).tolist()
    [1.0, 2.0, 3.0]

    Args:
        network: a Keras model from observations to `[M, 1]`.
        learning_rate: of Adam.
        batch_size: examples of one step; the last batch of an epoch may be smaller.
        epochs: passes over the data in each `fit`.

    Raises:
        ValueError: if the network does not have one output.
    """

    def __init__(self, network: keras.Model, learning_rate: float, batch_size: int, epochs: int):
        if network.output_shape[-1] != 1:
            raise ValueError(
                _checks.message("value_network", f"{network.output_shape[-1]} outputs", "one output, the value")
            )
        self.network = network
        self.optimizer = keras.optimizers.Adam(learning_rate, epsilon=_ADAM_EPSILON)
        self.optimizer.build(network.trainable_variables)
        self.batch_size = batch_size
        self.epochs = epochs
        self._values = tf.function(self._value_of, autograph=False)
        self._fit = tf.function(self._fitted, autograph=False)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that `fit` changes."""
        return [*self.network.variables, *self.optimizer.variables]

    def values(self, observations: np.ndarray) -> np.ndarray:
        """Computes `V` of each observation.

        Args:
            observations: `[M, ...]`.

        Returns:
            `[M]`, float64.
        """
        return self._values(np.asarray(observations, self.network.compute_dtype)).numpy().astype(np.float64)

    def fit(self, observations: np.ndarray, targets: np.ndarray, seed: tuple[int, int]) -> float:
        """Runs some epochs of shuffled minibatches, as one compiled function.

        Args:
            observations: `[M, ...]`.
            targets: `[M]`.
            seed: of the shuffles.

        Returns:
            The mean squared error afterwards.
        """
        dtype = self.network.compute_dtype
        loss = self._fit(np.asarray(observations, dtype), np.asarray(targets, dtype), np.asarray(seed, np.int32))
        return float(loss)

    def _value_of(self, observations: tf.Tensor) -> tf.Tensor:
        return self.network(observations)[..., 0]

    def _fitted(self, observations: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        count = tf.shape(targets)[0]
        batches = -(-count // self.batch_size)
        orders = tf.argsort(tf.random.stateless_uniform([self.epochs, count], seed), axis=-1)
        variables = self.network.trainable_variables

        def step(number: tf.Tensor) -> tuple[tf.Tensor]:
            start = (number % batches) * self.batch_size
            rows = orders[number // batches, start : start + self.batch_size]
            with tf.GradientTape() as tape:
                loss = self._loss(tf.gather(observations, rows), tf.gather(targets, rows))
            self.optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
            return (number + 1,)

        tf.while_loop(lambda number: number < self.epochs * batches, step, (0,), parallel_iterations=1)
        return self._loss(observations, targets)

    def _loss(self, observations: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.square(self._value_of(observations) - targets))


__all__ = ["Critic"]
