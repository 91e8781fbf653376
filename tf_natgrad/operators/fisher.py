"""The Fisher information matrix of a Keras model, and the empirical Fisher."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_natgrad import _checks, _replicas
from tf_natgrad._typing import LossLike, ModelLike
from tf_natgrad.operators._batch import Batch
from tf_natgrad.operators._dense import DENSE_MEMORY_LIMIT, check_dense_memory
from tf_natgrad.operators._factored_model import FactoredModelOperator
from tf_natgrad.operators._factors import ExactFactor, OutputFactor, label_factor, sampled_factor


class Fisher(FactoredModelOperator):
    """The Fisher `F = sum_i w_i J_i^T L_i J_i`, `[n, n]`, of a model on data, at the weights of its construction.

    `J_i` `[C, n]` is the Jacobian of the network's outputs at example i, `L_i` `[C, C]` the Fisher of the output
    distribution in its own parameters, `w_i` the weight of the example in the loss (`1 / N` for a mean loss, times the
    sample weight). With `L_i = S_i S_i^T` it is `A^T A`, `A` `[m, n]` the stack of
    `sqrt(w_i) S_i^T J_i`, rows ordered with the columns of `S` major and the examples minor.

    Outputs `[N, T, C]` have N T positions, as in Keras's losses. Each position has rows of `A` of its own; with
    `kind="mc"` the rows of an example are summed. For binary cross-entropy and mean squared error the mean over the
    outputs is part of the matrix, as it is of the loss.

    >>> import keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    >>> fisher = Fisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), tf.ones([5, 3]))
    >>> fisher.matvec(tf.ones([16])).shape, fisher.to_dense().shape, fisher.gram().shape
    (TensorShape([16]), TensorShape([16, 16]), TensorShape([15, 15]))

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a `Distribution` subclass; see `likelihood_of`. For several outputs a list or
            dictionary of losses; see `joint_likelihood`.
        data: one batch, or a `tf.data.Dataset`; see `ModelOperator`. The Fisher does not depend on the labels.
        kind: `"exact"` (the expectation over labels in closed form) or `"mc"` (labels drawn from the model, at each
            position of an example independently).
        seed: of the labels of `"mc"`, an integer or a scalar tensor of one. All products use the same labels.
        mc_samples: the number of draws per example, for `"mc"`. `A` has one row for each draw:
            `sum_t sqrt(w_it) score_it^T J_it` over the positions t of example i, divided by `sqrt(mc_samples)`.
        **options: `sample_weight`, `training`, `variables`, `progress`, `micro_batch_size`; see `ModelOperator`.

    Raises:
        ValueError: if an argument is out of its range, or the batch is empty or not finite.

    References:
        S. Amari, "Natural gradient works efficiently in learning", Neural Computation 10 (1998).
        J. Martens, "New insights and perspectives on the natural gradient method", JMLR 21 (2020), section 9.
    """

    def __init__(
        self,
        model: ModelLike,
        loss: LossLike,
        data: Any,
        *,
        kind: str = "exact",
        seed: int | tf.Tensor = 0,
        mc_samples: int = 1,
        **options: Any,
    ):
        _checks.check_choice("kind", kind, ("exact", "mc"))
        _checks.check_number("mc_samples", mc_samples, minimum=1, integer=True)
        if not tf.is_tensor(seed):
            _checks.check_number("seed", seed, integer=True)
        elif not seed.dtype.is_integer or seed.shape.rank not in (0, None):
            raise TypeError(_checks.message("seed", _checks.described(seed), "an integer, or a scalar tensor of one"))
        self._kind, self._seed, self._mc_samples = kind, seed, mc_samples
        super().__init__(model, loss, data, **options)

    def _factor(self, batch: Batch, index: tf.Tensor | int) -> OutputFactor:
        if self._kind == "exact":
            return ExactFactor(batch.pd)
        return sampled_factor(batch.pd, self._seed, self._mc_samples, index, batch.place)

    def exact_factor_product(self, vector: tf.Tensor) -> tf.Tensor:
        """Computes `A v` with the factor of the exact Fisher, whatever the kind of this one, as graph code.

        Args:
            vector: `[n]`.

        Returns:
            One number per row of that factor.

        Raises:
            ValueError: if the operator has many batches.
        """
        return self._rows_by(ExactFactor(self.batch.pd), vector)

    def to_dense(
        self, *, method: str = "factor", memory_limit: int = DENSE_MEMORY_LIMIT, name: str = "to_dense"
    ) -> tf.Tensor:
        """Computes the dense matrix, after an estimate of its memory.

        Args:
            method: `"factor"` (`A^T A`) or `"hessians"` (`tf.hessians` of the mean self-KL, as in the blog: it
                calls the model again, at the weights of the construction, and is slow).
            memory_limit: bytes that it may take.
            name: for TensorFlow's name scopes.

        Returns:
            `[n, n]`.

        Raises:
            ValueError: if it would take more than `memory_limit`, or `method` is unknown or does not apply.
        """
        _checks.check_choice("method", method, ("factor", "hessians"))
        if method == "factor":
            return super().to_dense(memory_limit=memory_limit, name=name)
        if self._kind != "exact":
            raise ValueError(_checks.message("method", "'hessians' for kind='mc'", "'factor'"))
        check_dense_memory(self._flat.size, self.dtype, memory_limit)
        with tf.name_scope(name):
            return self.compiled("hessians", self._hessian_of_self_kl)()

    def _hessian_of_self_kl(self) -> tf.Tensor:
        batch = self.batch
        values = {id(v): value for v, value in batch.snapshot}
        theta = self._flat.flatten([values[id(v)] for v in self._flat.variables])
        pd = batch.distribution_at(zip(self._flat.variables, self._flat.unflatten(theta), strict=True))
        return _replicas.total(tf.hessians(tf.reduce_sum(batch.weights * tf.cast(pd.self_kl(), self.dtype)), theta)[0])


class EmpiricalFisher(FactoredModelOperator):
    """The empirical Fisher `sum_i w_i g_i g_i^T`, `[n, n]`, `g_i` being the gradient of example i's loss at its label.

    It is not the Fisher: its labels are those of the data, not drawn from the model, and it is zero where the data are
    fitted exactly.

    >>> import keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> EmpiricalFisher(model, "mse", (tf.ones([5, 3]), tf.zeros([5, 1]))).shape
    TensorShape([4, 4])

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a `Distribution` subclass; for several outputs a list or dictionary of losses.
        data: one batch `(x, y)`, or a `tf.data.Dataset` of such; see `ModelOperator`.
        **options: `sample_weight`, `training`, `variables`, `progress`, `micro_batch_size`; see `ModelOperator`.

    Raises:
        ValueError: if an argument is out of its range, or there are no labels.

    References:
        F. Kunstner, L. Balles, P. Hennig, "Limitations of the empirical Fisher approximation for natural gradient
        descent", NeurIPS (2019), equation 3.
    """

    _has_labels = True

    def _factor(self, batch: Batch, index: tf.Tensor | int) -> OutputFactor:
        return label_factor(batch.pd, batch.targets())


__all__ = ["EmpiricalFisher", "Fisher"]
