"""The Hessian of the loss, and its generalised Gauss-Newton part."""

from __future__ import annotations

import tensorflow as tf

from tf_natgrad.operators._batch import Batch
from tf_natgrad.operators._model import ModelOperator


class Hessian(ModelOperator):
    """The Hessian `H = d^2 / dtheta^2 sum_i w_i (-log p(y_i | z_i))`, `[n, n]`, at the weights of its construction.

    It is the Hessian of the data loss, without regularisers. A product differentiates the gradient of the loss once
    more; on one batch it needs no new forward pass.

    >>> import keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> Hessian(model, "mse", (tf.ones([5, 3]), tf.zeros([5, 1]))).matvec(tf.ones([4])).numpy().round(4).tolist()
    [8.0, 8.0, 8.0, 8.0]

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a `Distribution` subclass.
        data: one batch `(x, y)`, or a `tf.data.Dataset` of such; see `ModelOperator`.
        **options: `sample_weight`, `training`, `variables`, `progress`; see `ModelOperator`.

    Raises:
        ValueError: if an argument is out of its range, or there are no labels.

    References:
        B. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994).
    """

    _has_labels = True
    _second_order = True

    def prepare(self) -> None:
        """Nothing: the gradient was recorded with the forward pass."""

    def _batch_product(self, batch: Batch, vector: tf.Tensor) -> tf.Tensor:
        return self._flat.flatten(batch.linearization.gradient_jvp(self._flat.unflatten(vector)))


class GaussNewton(ModelOperator):
    """The Gauss-Newton matrix `G = sum_i w_i J_i^T M_i J_i`, `[n, n]`: the Hessian without that of the network.

    `M_i` `[C, C]` is the Hessian of example i's negative log-likelihood in the distribution's own parameters. For
    categorical and Bernoulli logits and for normal means it does not depend on the label, and `G` is the Fisher.

    >>> import keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> GaussNewton(model, "mse", (tf.ones([5, 3]), tf.zeros([5, 1]))).matvec(tf.ones([4])).numpy().round(4).tolist()
    [8.0, 8.0, 8.0, 8.0]

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a `Distribution` subclass.
        data: one batch `(x, y)`, or a `tf.data.Dataset` of such; see `ModelOperator`.
        **options: `sample_weight`, `training`, `variables`, `progress`; see `ModelOperator`.

    Raises:
        ValueError: if an argument is out of its range, or there are no labels.

    References:
        N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", Neural
        Computation 14 (2002).
    """

    _has_labels = True

    def _adopt(self, batch: Batch, index: tf.Tensor | int) -> None:
        # Labels are refused here, and not at the first product.
        batch.targets()

    def _batch_product(self, batch: Batch, vector: tf.Tensor) -> tf.Tensor:
        image = batch.linearization.jvp(self._flat.unflatten(vector))
        z = batch.pd.parameters
        with tf.GradientTape() as tape:
            tape.watch(z)
            score = batch.score()
        curved = tape.gradient(score, z, output_gradients=image, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return self._flat.flatten(batch.linearization.vjp(curved))


__all__ = ["GaussNewton", "Hessian"]
