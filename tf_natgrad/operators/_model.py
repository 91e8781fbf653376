"""Curvature matrices of a model: on one batch that is linearised once, or over a data set read at each product."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _replicas
from tf_natgrad._conditions import Condition, check_collector
from tf_natgrad._typing import LossLike, ModelLike, TensorLike, plain_python
from tf_natgrad.distributions import Distribution, Likelihood, likelihood_of
from tf_natgrad.distributions.joint import JointLikelihood
from tf_natgrad.linearize import ensure_built
from tf_natgrad.operators._base import CurvatureOperator
from tf_natgrad.operators._batch import Batch, run_batch
from tf_natgrad.operators._dense import over_units
from tf_natgrad.operators._distributed import DistributedDataSet
from tf_natgrad.operators._inputs import check_fits, unpack
from tf_natgrad.operators.sources import DataSet, Examples, MicroBatches, OneBatch, Replicated
from tf_natgrad.parameters import FlatParameters

_IN_PARTS = "A batch that is spread over replicas cannot come in parts as well: use more replicas, or smaller batches."


class ModelOperator(CurvatureOperator):
    """A curvature matrix of a model's loss on data.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a `Distribution` subclass; for several outputs a list or dictionary of losses.
        data: one batch, `x`, `(x, y)` or `(x, y, sample_weight)`, on which the model is called once; or a finite
            `tf.data.Dataset` of such batches, on which the model is called at each product, in inference mode. Batches
            are weighted by their sizes. A data set that `strategy.experimental_distribute_dataset` shared out is summed
            up by all replicas of the model's strategy.
        sample_weight: sample weights of one batch, or `None`.
        training: the mode in which the model is called on one batch.
        variables: the trainable variables over which the matrix is formed; by default all of the model's.
        progress: whether products over a data set show a progress bar.
        micro_batch_size: the number of examples in a micro-batch, for a batch that does not fit in memory. The model is
            then called on each micro-batch at each product, as over a data set.
        conditions: a list to which the conditions on values (labels in range, finite inputs) are added; the caller
            judges them. By default they are judged at once.
        record_calls: whether the forward pass also records the layer calls that the Gram matrix needs. If not, the
            model is called again when the Gram matrix is needed; this is an error if the weights have changed since.

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
        conditions: list[Condition] | None = None,
        record_calls: bool = False,
    ):
        _checks.check_model("model", model)
        likelihood = likelihood_of(loss).for_model(model)
        several = isinstance(likelihood, JointLikelihood)
        _checks.check_flag("training", training)
        _checks.check_flag("progress", progress)
        _checks.check_flag("record_calls", record_calls)
        check_collector("conditions", conditions)
        if micro_batch_size is not None:
            _checks.check_number("micro_batch_size", micro_batch_size, minimum=1, integer=True)
        is_data_set = isinstance(data, tf.data.Dataset | tf.distribute.DistributedDataset)
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
        if in_parts and _replicas.several():
            raise ValueError(_checks.message("data", "a batch in parts, on several replicas", "one batch", _IN_PARTS))
        parts = _parts_of(data, model, likelihood.reduction, progress) if is_data_set else None
        x, y, weights = unpack(parts.first() if is_data_set else data, several)
        check_fits(model, x)
        weights = weights if sample_weight is None else sample_weight
        if self._has_labels and y is None:
            raise ValueError(
                _checks.message("data", "inputs without labels", "`(x, y)`", f"{type(self).__name__} has labels.")
            )
        if in_parts:
            parts = parts or MicroBatches(x, y, weights, micro_batch_size, likelihood.reduction, conditions)
            ensure_built(model, x)
            flat = FlatParameters(model.trainable_variables if variables is None else variables)
            parts.bind(self._runner(model, likelihood, flat, conditions is not None), self._as_graph)
            source = parts
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
                conditions=conditions,
                record_calls=record_calls,
            )
            flat = batch.linearization.flat_parameters
            self._adopt(batch, 0)
            source = OneBatch(batch) if batch.place is None else Replicated(batch)
        if variables is not None:
            _check_own(flat, model)
        super().__init__(flat, name=type(self).__name__)
        self._source: Examples = source

    def _runner(
        self, model: ModelLike, likelihood: Likelihood, flat: FlatParameters, known: bool
    ) -> Callable[..., Batch]:
        """How a part of the data becomes a batch of this operator; `known`: its conditions are judged elsewhere."""

        def run(x: Any, y: Any, sample_weight: Any, index: tf.Tensor, record_calls: bool) -> Batch:
            batch = run_batch(
                model,
                likelihood,
                x,
                y,
                sample_weight,
                training=False,
                variables=None,
                flat_parameters=flat,
                second_order=self._second_order,
                # Conditions of a loop's body cannot leave it.
                conditions=[] if known else None,
                record_calls=record_calls,
            )
            self._adopt(batch, index)
            return batch

        return run

    @property
    def source(self) -> Examples:
        """The source of the examples."""
        return self._source

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
        """The one batch of this operator, or `None` if it has many."""
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
        self._source.prepare()

    @abc.abstractmethod
    def _batch_product(self, batch: Batch, vector: tf.Tensor) -> tf.Tensor:
        """The product of one batch's matrix with a vector `[n]`, as graph code."""

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        return self._source.sum("matvec", self._batch_product, vector, vector)

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        return self._source.sum("matmul", self._batch_products, rows, rows)

    def _batch_products(self, batch: Batch, rows: tf.Tensor) -> tf.Tensor:
        return batch.linearization.map_products(lambda row: self._batch_product(batch, row), rows)

    def dense_matrix(self) -> tf.Tensor:
        if not isinstance(self._source, Replicated):
            return super().dense_matrix()
        n = self._flat.size

        def of_batch(batch: Batch) -> tf.Tensor:
            return over_units(lambda units: self._batch_products(batch, units), n, self.dtype)

        return self._source.sum("dense", of_batch, tf.zeros([n, n], self.dtype))

    def diagonal(self) -> tf.Tensor:
        if not isinstance(self._source, Replicated):
            return super().diagonal()

        def of_batch(batch: Batch) -> tf.Tensor:
            def of_units(units: tf.Tensor) -> tf.Tensor:
                return tf.reduce_sum(units * self._batch_products(batch, units), 1)

            return over_units(of_units, self._flat.size, self.dtype)

        return self._source.sum("diagonal", of_batch, tf.zeros([self._flat.size], self.dtype))

    @property
    def is_one_batch(self) -> bool:
        return self._source.batch is not None

    @property
    def is_step_by_step(self) -> bool:
        return self._source.is_step_by_step

    def map_rows(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        return self._source.map_rows(function, rows)

    def _check_labels(self, y: TensorLike | None) -> None:
        """Refuses other labels than those of the data where these come in many batches."""
        if y is not None and not self.is_one_batch:
            raise ValueError(
                _checks.message("y", "labels, for many batches", "None", "Labels of many batches come with the data.")
            )

    def total(
        self, name: str, of_batch: Callable[[Batch], tf.Tensor], like: tf.Tensor, record_calls: bool = False
    ) -> tf.Tensor:
        """Computes a sum over the examples that is asked for from outside; over one batch it is not worth a graph.

        Args:
            name: identifies the function among those of this operator.
            of_batch: of a `Batch`, to a tensor.
            like: a tensor of the shape and dtype of the result.
            record_calls: whether the function looks at the recorded calls of the layers.

        Returns:
            A tensor like `like`.
        """

        def whole() -> tf.Tensor:
            return self._source.sum(name, of_batch, like, record_calls=record_calls)

        return whole() if self.is_one_batch else self.compiled(name, whole)()

    @plain_python
    def loss(self, y: TensorLike | None = None) -> tf.Tensor:
        """Computes the loss `-sum_i w_i log p(y_i | z_i)` (for a squared error, up to a constant).

        Args:
            y: the labels, where they did not come with the data.

        Returns:
            A scalar.
        """
        self._check_labels(y)

        def of_batch(batch: Batch) -> tf.Tensor:
            return tf.cast(batch.loss(y), self.dtype)

        return self.total("loss", of_batch, tf.zeros([], self.dtype))

    @plain_python
    def gradient(self, y: TensorLike | None = None) -> tf.Tensor:
        """Computes the gradient of the loss, `[n]`.

        Args:
            y: the labels, where they did not come with the data.

        Returns:
            `[n]`.
        """
        self._check_labels(y)

        def of_batch(batch: Batch) -> tf.Tensor:
            return self._flat.flatten(batch.gradient(self._flat.tensors, y, batch.weights))

        return self.total("gradient", of_batch, tf.zeros([self._flat.size], self.dtype))

    @plain_python
    def plain_gradient(self, y: TensorLike, variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
        """Computes the gradient of the loss in any variables of the model, from the same forward pass.

        Args:
            y: the labels.
            variables: variables of the model, which need not be those of the matrix.

        Returns:
            One tensor per variable.
        """
        return self.batch.gradient(FlatParameters(variables).tensors, y, self.batch.weights)


def _parts_of(
    data: tf.data.Dataset | tf.distribute.DistributedDataset, model: ModelLike, reduction: str, progress: bool
) -> DataSet | DistributedDataSet:
    if isinstance(data, tf.data.Dataset):
        return DataSet(data, reduction, progress)
    return DistributedDataSet(data, model, reduction, progress)


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


__all__ = ["ModelOperator"]
