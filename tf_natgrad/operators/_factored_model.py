"""Curvature matrices of a model with a factor `A`, made of a factor `S` of the output space and the Jacobian."""

from __future__ import annotations

import abc
from collections.abc import Mapping

import tensorflow as tf

from tf_natgrad import _checks, _replicas
from tf_natgrad._conditions import Condition, note, noted
from tf_natgrad._typing import TensorLike, plain_python
from tf_natgrad.operators._batch import Batch
from tf_natgrad.operators._factored import FactoredOperator, FactoredRhs
from tf_natgrad.operators._factors import OutputFactor
from tf_natgrad.operators._model import ModelOperator


class FactoredModelOperator(ModelOperator, FactoredOperator):
    """A matrix `sum_i w_i J_i^T S_i S_i^T J_i`, with `S_i` a factor of the output space.

    In a replica of several it is that of the global batch, and so are the rows of `A`, on all replicas alike; each has
    the Jacobian of its own examples only.
    """

    @abc.abstractmethod
    def _factor(self, batch: Batch, index: tf.Tensor | int) -> OutputFactor:
        """`S` on one batch."""

    def _adopt(self, batch: Batch, index: tf.Tensor | int) -> None:
        batch.factor = self._factor(batch, index)

    @property
    def rows(self) -> int | None:
        if not self.is_one_batch:
            return None
        positions = self.batch.pd.parameters.shape[: 1 if self.batch.factor.is_pooled else -1].as_list()
        if self.batch.place is not None:
            positions[0] = tf.get_static_value(self.batch.place.total)
        return tf.TensorShape([self.batch.factor.rank, *positions]).num_elements()

    @property
    def gram_refusal(self) -> str | None:
        return self._source.gram_refusal

    @property
    def gram_checked(self) -> bool:
        """Whether the Gram matrix was compared with the Jacobian and agreed; this happens in eager code only."""
        return self.is_one_batch and self.batch.gram_checked

    @property
    def rounding(self) -> float:
        return self.batch.linearization.rounding if self.is_one_batch else super().rounding

    @plain_python
    def loss_gradient(self, y: TensorLike | None = None, sample_weight: TensorLike | None = None) -> FactoredRhs:
        """Computes the gradient of the loss, as a right-hand side that solvers use without cancellation.

        Args:
            y: the labels, as Keras's loss takes them, if they are not part of the data; on one batch only.
            sample_weight: the sample weights of the gradient, if other than those of the matrix; on one batch only.

        Returns:
            `FactoredRhs(u)` with `A^T u` the gradient if the factor is exact; else `FactoredRhs(None, rest=g)`.

        Raises:
            ValueError: if labels or sample weights do not fit, or one is positive where that of the matrix is zero.
        """
        if not self.is_one_batch:
            if sample_weight is not None:
                raise ValueError(
                    _checks.message("sample_weight", "a value, for many batches", "None", "Weights come with the data.")
                )
            return FactoredRhs(None, rest=self.gradient(y))
        batch = self.batch
        weights = batch.weights
        if sample_weight is not None:
            checked = batch.likelihood.checked_weights(batch.outputs, batch.pd, sample_weight)
            weights = tf.cast(noted(checked, batch.conditions), self.dtype)
            text = _checks.message(
                "sample_weight",
                "a positive weight for an example that the matrix leaves out",
                "zero wherever the matrix's own weight is zero",
            )
            inside = tf.reduce_all((batch.weights > 0) | (weights == 0))
            note([Condition(inside, text)], batch.conditions)
        if not batch.factor.is_exact:
            gradient = self._flat.flatten(batch.gradient(self._flat.tensors, y, weights))
            return FactoredRhs(None, rest=_replicas.total(gradient))
        u = tf.cast(batch.pd.score_factor(batch.targets(y)), self.dtype)
        return FactoredRhs(self._to_rows(u * tf.math.divide_no_nan(weights, tf.sqrt(batch.weights))[..., None]))

    def _batch_product(self, batch: Batch, vector: tf.Tensor) -> tf.Tensor:
        image = batch.linearization.jvp(self._flat.unflatten(vector))
        if batch.factor.is_pooled:
            root = tf.sqrt(batch.output_weights)
            weighted = batch.factor.matvec(image * root) * root
        else:
            weighted = batch.factor.matvec(image) * batch.output_weights
        return self._flat.flatten(batch.linearization.vjp(weighted))

    def factor_product(self, vector: tf.Tensor) -> tf.Tensor:
        return self._rows_by(self.batch.factor, vector)

    def _rows_by(self, factor: OutputFactor, vector: tf.Tensor) -> tf.Tensor:
        """`sqrt(w) S^T J v` for a factor `S` of the output space."""
        image = self.batch.linearization.jvp(self._flat.unflatten(vector))
        root = tf.sqrt(self.batch.output_weights)
        rows = factor.apply_transpose(image * root) if factor.is_pooled else factor.apply_transpose(image) * root
        return self._to_rows(tf.cast(rows, self.dtype))

    def factor_transpose_product(self, vector: tf.Tensor) -> tf.Tensor:
        cotangent = self.batch.factor.apply(self._from_rows(vector)) * tf.sqrt(self.batch.output_weights)
        return _replicas.total(self._flat.flatten(self.batch.linearization.vjp(cotangent)))

    def gram_matrix(self, scales: Mapping[int, tf.Tensor] | None = None) -> tf.Tensor:
        columns, record = self.columns_of(self.batch), self.batch.record
        # Made before the linearization is read: a second pass brings one of its own.
        return record.gram(self.batch.linearization, columns, scales, self.batch.place is not None)

    def columns_of(self, batch: Batch) -> tf.Tensor:
        """Computes what the rows of `A` on one batch pull back through the network, as graph code.

        Args:
            batch: a batch of this operator.

        Returns:
            `[Q, N, ..., C]`, the roots of the weights included; row (q, i) of `A` is the gradient of
            `<columns[q, i], z[i]>`.
        """
        columns = batch.factor.columns() * tf.sqrt(batch.output_weights)
        several = columns.shape.rank > 3 and not batch.factor.is_pooled
        return _one_position_each(columns) if several else columns

    def _to_rows(self, per_position: tf.Tensor) -> tf.Tensor:
        """`[N, T..., R]` (pooled: `[N, R]`) `-> [m]`, in the order of `A`: positions, columns of `S`, examples."""
        axes = [*range(1, per_position.shape.rank), 0]
        return tf.reshape(tf.transpose(_replicas.gathered(per_position), axes), [-1])

    def _from_rows(self, vector: tf.Tensor) -> tf.Tensor:
        """The inverse of `_to_rows`."""
        z, factor, place = self.batch.pd.parameters, self.batch.factor, self.batch.place
        middle, rank = (tf.shape(z)[1:1], 2) if factor.is_pooled else (tf.shape(z)[1:-1], z.shape.rank)
        examples = tf.shape(z)[:1] if place is None else place.total[None]
        shape = tf.concat([middle, [factor.rank], examples], 0)
        found = tf.transpose(tf.reshape(tf.cast(vector, z.dtype), shape), [rank - 1, *range(rank - 1)])
        return found if place is None else place.share(found)


def _one_position_each(columns: tf.Tensor) -> tf.Tensor:
    """`[R, N, T..., C] -> [T R, N, T..., C]`: each column looks at one position and is zero elsewhere."""
    shape = tf.shape(columns)
    rank, batch, middle, outputs = shape[0], shape[1], shape[2:-1], shape[-1]
    positions = tf.reduce_prod(middle)
    flat = tf.reshape(columns, [1, rank, batch, positions, outputs])
    selected = flat * tf.reshape(tf.eye(positions, dtype=columns.dtype), [positions, 1, 1, positions, 1])
    result = tf.reshape(selected, tf.concat([[positions * rank, batch], middle, [outputs]], 0))
    return tf.ensure_shape(result, [None, *columns.shape[1:]])


__all__ = ["FactoredModelOperator"]
