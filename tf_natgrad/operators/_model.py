"""Curvature matrices of a model: one batch that stays linearised, or a data set that is gone through anew."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import LossLike, ModelLike, TensorLike
from tf_natgrad.distributions import Distribution, likelihood_of
from tf_natgrad.linearize import ensure_built
from tf_natgrad.operators._base import CurvatureOperator, FactoredOperator, FactoredRhs
from tf_natgrad.operators._batch import Batch, DataSet, MicroBatches, check_fits, run_batch, unpack
from tf_natgrad.operators._factors import OutputFactor
from tf_natgrad.parameters import FlatParameters


class ModelOperator(CurvatureOperator):
    """A curvature matrix of a model's loss on data.

    Args:
        model: a Keras model with one output.
        loss: a Keras loss, its name, or a `Distribution` subclass; never guessed.
        data: one batch, `x`, `(x, y)` or `(x, y, sample_weight)`, on which the model is called once; or a finite
            `tf.data.Dataset` of such batches, on which it is called at each product, in inference mode, and which is
            weighted by the sizes of its batches.
        sample_weight: weights of the examples of one batch, or `None`.
        training: the mode in which the model is called on one batch.
        variables: the trainable variables that the matrix is about; by default all of the model's.
        progress: whether products over a data set show a progress bar.
        micro_batch_size: where the record of one batch would not fit in memory, the examples of the pieces into which
            it is cut. The model is then called at each product, as it is over a data set.

    Raises:
        ValueError: if an argument is out of its range, or the data are empty or not finite, or a data set is to be
            used in training mode or gives other batches when it is read again.
    """

    # Whether the matrix needs labels, and whether it needs the derivative of the gradient.
    _has_labels = False
    _second_order = False

    def __init__(
        self,
        model: ModelLike,
        loss: LossLike,
        data: Any,
        *,
        sample_weight: TensorLike | None = None,
        training: bool = False,
        variables: Sequence[keras.Variable] | None = None,
        progress: bool = False,
        micro_batch_size: int | None = None,
    ):
        _checks.check_model("model", model)
        likelihood = likelihood_of(loss)
        _checks.check_flag("training", training)
        _checks.check_flag("progress", progress)
        if micro_batch_size is not None:
            _checks.check_number("micro_batch_size", micro_batch_size, minimum=1, integer=True)
        is_data_set = isinstance(data, tf.data.Dataset)
        in_parts = is_data_set or micro_batch_size is not None
        if (in_parts and training) or (is_data_set and sample_weight is not None):
            raise ValueError(
                _checks.message(
                    "training" if training else "sample_weight",
                    "a value together with " + ("a data set" if is_data_set else "`micro_batch_size`"),
                    "its default",
                    "Over many batches the model is called at each product, where dropout and BatchNormalization in "
                    "training mode would not give a matrix; weights of a data set come as `(x, y, sample_weight)`.",
                )
            )
        parts = DataSet(data, likelihood.reduction, progress) if is_data_set else None
        x, y, weights = unpack(next(iter(data)) if is_data_set else data)
        check_fits(model, x)
        weights = weights if sample_weight is None else sample_weight
        if self._has_labels and y is None:
            raise ValueError(
                _checks.message("data", "inputs without labels", "`(x, y)`", f"{type(self).__name__} has labels.")
            )
        batch = None
        if in_parts:
            parts = parts or MicroBatches(x, y, weights, micro_batch_size, likelihood.reduction)
            ensure_built(model, x)
            flat = FlatParameters(model.trainable_variables if variables is None else variables)
        else:
            batch = run_batch(
                model,
                likelihood,
                x,
                y,
                weights,
                training=training,
                variables=variables,
                second_order=self._second_order,
            )
            flat = batch.linearization.flat_parameters
            self._adopt(batch, 0)
        if variables is not None:
            _check_own(flat, model)
        super().__init__(flat, name=type(self).__name__)
        self._source = _Source(model, likelihood, parts, batch)

    @property
    def batch(self) -> Batch:
        """The one batch of this operator.

        Raises:
            ValueError: if the operator runs over a data set.
        """
        if self._source.batch is None:
            raise ValueError(
                _checks.message("data", "a data set", "one batch, for this quantity", "Pass `(x, y)` as arrays.")
            )
        return self._source.batch

    @property
    def batch_or_none(self) -> Batch | None:
        """The one batch of this operator, or `None` where it goes through many."""
        return self._source.batch

    @property
    def outputs(self) -> tf.Tensor:
        """The model's outputs on the batch."""
        return self.batch.outputs

    @property
    def distribution(self) -> Distribution:
        """The output distribution on the batch."""
        return self.batch.pd

    def _adopt(self, batch: Batch, index: tf.Tensor | int) -> None:
        """Adds what this kind of matrix needs to a batch, number `index` of the data set."""

    def prepare(self) -> None:
        if self._source.batch is not None:
            self._source.batch.linearization.prepare_jvp()

    @abc.abstractmethod
    def _batch_product(self, batch: Batch, vector: tf.Tensor) -> tf.Tensor:
        """The product of one batch's matrix with a vector `[n]`, as graph code."""

    def _product(self, vector: tf.Tensor) -> tf.Tensor:
        if self._source.batch is not None:
            return self._batch_product(self._source.batch, vector)
        return self._sum_over_batches("matvec", self._batch_product, vector, vector)

    def _products(self, rows: tf.Tensor) -> tf.Tensor:
        if self._source.batch is not None:
            return super()._products(rows)

        def of_batch(batch: Batch, rows: tf.Tensor) -> tf.Tensor:
            return batch.linearization.map_products(lambda row: self._batch_product(batch, row), rows)

        return self._sum_over_batches("matmul", of_batch, rows, rows)

    @property
    def is_one_batch(self) -> bool:
        return self._source.batch is not None

    @property
    def _step_by_step(self) -> bool:
        return self._source.parts is not None and self._source.parts.progress

    def _sum_over_batches(
        self, name: str, function: Callable[..., tf.Tensor], like: tf.Tensor, *operands: tf.Tensor
    ) -> tf.Tensor:
        """The sum of `function(batch, *operands)`; `name` tells it from other functions of this operator."""
        source = self._source

        def of_batch(x, y, sample_weight, index, *operands):
            batch = run_batch(
                source.model,
                source.likelihood,
                x,
                y,
                sample_weight,
                training=False,
                variables=None,
                flat_parameters=self._flat,
                second_order=self._second_order,
            )
            if _keras.mask_of(batch.outputs) is not None and source.likelihood.reduction != "sum":
                raise ValueError(
                    _checks.message(
                        "data",
                        "a data set for a model whose outputs are masked",
                        "one batch, or a loss with reduction='sum'",
                        "The mean over the unmasked positions of all batches is not a mean of the batches' means.",
                    )
                )
            self._adopt(batch, index)
            return function(batch, *operands), tf.size(batch.weights)

        def compiled(term: Callable) -> Callable:
            return self._as_graph(("batch", name), term)

        return source.parts.sum(of_batch, tf.zeros_like(like), operands, compiled)

    def _map_rows(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        if self._source.batch is None:
            return tf.map_fn(function, rows, parallel_iterations=1)
        return self._source.batch.linearization.map_products(function, rows)

    @tf.autograph.experimental.do_not_convert
    def loss(self, y: TensorLike | None = None) -> tf.Tensor:
        """The loss `-sum_i w_i log p(y_i | z_i)` (for a squared error, up to a constant).

        Args:
            y: the labels, where they did not come with the data.

        Returns:
            A scalar.
        """

        def of_batch(batch: Batch) -> tf.Tensor:
            return tf.cast(batch.loss(y), self.dtype)

        if self._source.batch is not None:
            return of_batch(self._source.batch)
        return self.compiled("loss", lambda: self._sum_over_batches("loss", of_batch, tf.zeros([], self.dtype)))()

    @tf.autograph.experimental.do_not_convert
    def gradient(self, y: TensorLike | None = None) -> tf.Tensor:
        """The gradient of the loss, `[n]`.

        Args:
            y: the labels, where they did not come with the data.

        Returns:
            `[n]`.
        """

        def of_batch(batch: Batch) -> tf.Tensor:
            return self._flat.flatten(loss_gradient(batch, y, batch.weights, self._flat))

        if self._source.batch is not None:
            return of_batch(self._source.batch)
        return self.compiled(
            "gradient", lambda: self._sum_over_batches("gradient", of_batch, tf.zeros([self._flat.size], self.dtype))
        )()

    @tf.autograph.experimental.do_not_convert
    def plain_gradient(self, y: TensorLike, variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
        """The gradient of the loss in any variables of the model, from the same forward pass.

        Args:
            y: the labels.
            variables: variables of the model, which need not be those of the matrix.

        Returns:
            One tensor per variable.
        """
        return loss_gradient(self.batch, y, self.batch.weights, FlatParameters(variables))


class FactoredModelOperator(ModelOperator, FactoredOperator):
    """A matrix `sum_i w_i J_i^T S_i S_i^T J_i`: a factor of the output space between Jacobians."""

    @abc.abstractmethod
    def _factor(self, batch: Batch, index: tf.Tensor | int) -> OutputFactor:
        """`S` on one batch."""

    def _adopt(self, batch: Batch, index: tf.Tensor | int) -> None:
        batch.factor = self._factor(batch, index)

    @property
    def rows(self) -> int | None:
        if self._source.batch is None:
            return None
        positions = self.batch.pd.parameters.shape[: 1 if self.batch.factor.is_pooled else -1]
        return tf.TensorShape([self.batch.factor.rank, *positions]).num_elements()

    @property
    def gram_refusal(self) -> str | None:
        if self._source.batch is None:
            return "The Gram matrix of a data set of many batches is not formed. Use `solver=ConjugateGradient()`."
        return self.batch.gram_refusal()

    @property
    def gram_checked(self) -> bool:
        """Whether the Gram matrix was found to be that of the Jacobian; known in eager code, once it was asked for."""
        return self._source.batch is not None and self._source.batch.gram_checked

    @property
    def rounding(self) -> float:
        return super().rounding if self._source.batch is None else self._source.batch.linearization.rounding

    @tf.autograph.experimental.do_not_convert
    def loss_gradient(self, y: TensorLike | None = None, sample_weight: TensorLike | None = None) -> FactoredRhs:
        """The gradient of the loss, as a right-hand side that solvers treat without cancellation.

        Args:
            y: the labels, as Keras's loss takes them, where they did not come with the data.
            sample_weight: the weights of the gradient, where they differ from those of the matrix.

        Returns:
            `FactoredRhs(u)` with `A^T u` the gradient where the factor is exact; else `FactoredRhs(None, rest=g)`.

        Raises:
            ValueError: if labels or weights do not fit, or a weight is positive where that of the matrix is zero.
        """
        if self._source.batch is None:
            return FactoredRhs(None, rest=self.gradient())
        batch = self.batch
        weights = batch.weights
        if sample_weight is not None:
            weights = tf.cast(batch.likelihood.weights(batch.outputs, batch.pd, sample_weight), self.dtype)
            _checks.require(
                tf.reduce_all((batch.weights > 0) | (weights == 0)),
                _checks.message(
                    "sample_weight",
                    "a positive weight for an example that the matrix leaves out",
                    "zero wherever the matrix's own weight is zero",
                ),
            )
        if not batch.factor.is_exact:
            return FactoredRhs(None, rest=self._flat.flatten(loss_gradient(batch, y, weights, self._flat)))
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

    def _factor_product(self, vector: tf.Tensor) -> tf.Tensor:
        return self._rows_by(self.batch.factor, vector)

    def _rows_by(self, factor: OutputFactor, vector: tf.Tensor) -> tf.Tensor:
        """`sqrt(w) S^T J v` for a factor `S` of the output space."""
        image = self.batch.linearization.jvp(self._flat.unflatten(vector))
        root = tf.sqrt(self.batch.output_weights)
        rows = factor.apply_transpose(image * root) if factor.is_pooled else factor.apply_transpose(image) * root
        return self._to_rows(tf.cast(rows, self.dtype))

    def _factor_transpose_product(self, vector: tf.Tensor) -> tf.Tensor:
        cotangent = self.batch.factor.apply(self._from_rows(vector)) * tf.sqrt(self.batch.output_weights)
        return self._flat.flatten(self.batch.linearization.vjp(cotangent))

    def _gram(self, scales: Mapping[int, tf.Tensor] | None = None) -> tf.Tensor:
        columns = self.batch.factor.columns() * tf.sqrt(self.batch.output_weights)
        if columns.shape.rank > 3 and not self.batch.factor.is_pooled:
            columns = _one_position_each(columns)
        return self.batch.record.gram(self.batch.linearization, columns, scales)

    def _to_rows(self, per_position: tf.Tensor) -> tf.Tensor:
        """`[N, T..., R]` (pooled: `[N, R]`) `-> [m]`, in the order of `A`: positions, columns of `S`, examples."""
        axes = [*range(1, per_position.shape.rank), 0]
        return tf.reshape(tf.transpose(per_position, axes), [-1])

    def _from_rows(self, vector: tf.Tensor) -> tf.Tensor:
        """The inverse of `_to_rows`."""
        z, factor = self.batch.pd.parameters, self.batch.factor
        middle, rank = (tf.shape(z)[1:1], 2) if factor.is_pooled else (tf.shape(z)[1:-1], z.shape.rank)
        shape = tf.concat([middle, [factor.rank], tf.shape(z)[:1]], 0)
        return tf.transpose(tf.reshape(tf.cast(vector, z.dtype), shape), [rank - 1, *range(rank - 1)])


def _check_own(flat: FlatParameters, model: ModelLike) -> None:
    """Refuses variables of other models: the matrix would be zero along them."""
    own = {id(t) for v in model.variables for t in (v, v.value)}
    others = [v.name for v in flat.variables if id(v) not in own]
    if others:
        raise ValueError(
            _checks.message(
                "variables", f"{', '.join(others)}, not of this model", "some of `model.trainable_variables`"
            )
        )


class _Source:
    """Where a matrix comes from; a plain object, so that TensorFlow's tracking leaves it alone."""

    def __init__(self, model: ModelLike, likelihood: Any, parts: DataSet | MicroBatches | None, batch: Batch | None):
        self.model = model
        self.likelihood = likelihood
        self.parts = parts
        self.batch = batch


def loss_gradient(batch: Batch, y: TensorLike | None, weights: tf.Tensor, flat: FlatParameters) -> list[tf.Tensor]:
    """The gradient of a batch's loss, one tensor per variable.

    Args:
        batch: after its forward pass.
        y: the labels, or `None` for the batch's own.
        weights: of the positions, `[N, ...]`.
        flat: the variables.

    Returns:
        One tensor per variable.
    """
    score = batch.pd.fisher_factor(batch.pd.score_factor(batch.targets(y)))
    return batch.linearization.pullback_to(flat.tensors, score * tf.cast(weights, score.dtype)[..., None])


def _one_position_each(columns: tf.Tensor) -> tf.Tensor:
    """`[R, N, T..., C] -> [T R, N, T..., C]`: each column looks at one position and is zero elsewhere."""
    shape = tf.shape(columns)
    rank, batch, middle, outputs = shape[0], shape[1], shape[2:-1], shape[-1]
    positions = tf.reduce_prod(middle)
    flat = tf.reshape(columns, [1, rank, batch, positions, outputs])
    selected = flat * tf.reshape(tf.eye(positions, dtype=columns.dtype), [positions, 1, 1, positions, 1])
    result = tf.reshape(selected, tf.concat([[positions * rank, batch], middle, [outputs]], 0))
    return tf.ensure_shape(result, [None, *columns.shape[1:]])


__all__ = ["FactoredModelOperator", "ModelOperator"]
