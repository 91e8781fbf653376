"""One batch after one forward pass, and many batches one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._progress import progress_bar
from tf_natgrad._typing import ModelLike, TensorLike
from tf_natgrad.distributions import Distribution, Likelihood
from tf_natgrad.gram import CAUSE, Record, capture, gram_mismatch, tolerated_mismatch
from tf_natgrad.linearize import Linearization, call_model, ensure_built
from tf_natgrad.operators._factors import OutputFactor
from tf_natgrad.parameters import FlatParameters


@dataclasses.dataclass
class Batch:
    """What one forward pass left behind.

    Attributes:
        x: the inputs.
        y: the labels, or `None`.
        outputs: the model's outputs.
        pd: the distribution that they stand for.
        weights: `w` `[N, ...]`, one per position, in the dtype of the variables.
        linearization: the Jacobian of the distribution's parameters.
        record: the calls of the layers, for the Gram matrix.
        snapshot: the model's variables with their values before the pass, seeds of dropout included.
        likelihood: the loss.
        training: the mode in which the model was called.
        factor: the output-space factor of the operator that uses the batch, if it has one.
        gram_checked: whether the Gram matrix of the recorded calls was found to be that of the Jacobian.
    """

    x: Any
    y: Any
    outputs: tf.Tensor
    pd: Distribution
    weights: tf.Tensor
    linearization: Linearization
    record: Record
    snapshot: list[tuple[keras.Variable, tf.Tensor]]
    likelihood: Likelihood
    training: bool
    factor: OutputFactor | None = None
    gram_checked: bool = False

    def gram_refusal(self) -> str | None:
        """Why there is no Gram matrix, or `None`; where values are at hand, by a random product as well.

        Returns:
            The reason in words.
        """
        linear = self.linearization
        refusal = self.record.refusal_for(linear.flat_parameters, linear.outputs.shape[0])
        if refusal is not None or self.gram_checked or not linear.has_values:
            return refusal
        mismatch = float(gram_mismatch(self.record, linear, tf.sign(self.output_weights)))
        tolerated = tolerated_mismatch(linear)
        # NaN says nothing, and is refused elsewhere.
        self.gram_checked = mismatch <= tolerated
        if mismatch > tolerated:
            self.record.refusal = (
                f"The Gram matrix that is formed from the recorded calls of the layers is off by {mismatch:.1e} of its "
                f"trace, where rounding allows {tolerated:.1e}: {CAUSE}. Use `solver='auto'`, `'cg'` or, for few "
                "weights, `'svd'`."
            )
        return self.record.refusal

    @property
    def output_weights(self) -> tf.Tensor:
        """`w` `[N, ..., 1]` in the dtype of the outputs."""
        return tf.cast(self.weights, self.pd.parameters.dtype)[..., None]

    def targets(self, y: TensorLike | None = None) -> tf.Tensor:
        """The labels in the form that the distribution takes.

        Args:
            y: other labels than the batch's own.

        Returns:
            A tensor.

        Raises:
            ValueError: if there are none.
        """
        y = self.y if y is None else y
        if y is None:
            raise ValueError(_checks.message("data", "inputs without labels", "`(x, y)`", "This quantity has labels."))
        return self.likelihood.targets(y, self.pd)

    def loss(self, y: TensorLike | None = None) -> tf.Tensor:
        """The loss of the batch, `-sum_i w_i log p(y_i | z_i)`.

        Args:
            y: other labels than the batch's own.

        Returns:
            A scalar in the dtype of the outputs.
        """
        return -tf.reduce_sum(self.output_weights[..., 0] * self.pd.log_prob(self.targets(y)))

    def score(self) -> tf.Tensor:
        """The gradient of the loss in the outputs `[N, ..., C]`, by differentiation: it can be differentiated again."""
        with tf.GradientTape() as tape:
            tape.watch(self.pd.parameters)
            loss = self.loss()
        return tape.gradient(loss, self.pd.parameters)


def run_batch(
    model: ModelLike,
    likelihood: Likelihood,
    x: Any,
    y: Any,
    sample_weight: TensorLike | None,
    *,
    training: bool,
    variables: Sequence[keras.Variable] | None,
    flat_parameters: FlatParameters | None = None,
    second_order: bool = False,
) -> Batch:
    """Calls a model once on a batch and keeps what curvature needs of it.

    Args:
        model: a Keras model with one output.
        likelihood: the loss.
        x: the inputs.
        y: the labels, or `None`.
        sample_weight: the examples' weights, or `None`.
        training: the mode in which the model is called.
        variables: the variables of interest; `None` for all trainable ones.
        flat_parameters: the same as a layout, where it exists already.
        second_order: whether the gradient of the loss is recorded too, to be differentiated once more.

    Returns:
        A `Batch`.

    Raises:
        ValueError: if the batch is empty, not finite, or does not fit.
    """
    check_inputs(x)
    ensure_built(model, x)
    snapshot = [(v, tf.convert_to_tensor(v.value)) for v in model.variables]
    outer = tf.GradientTape(persistent=True) if second_order else None
    with outer or contextlib.nullcontext():
        with tf.GradientTape(persistent=True) as tape, capture(model) as record:
            with _keras.twice_differentiable_moments() if second_order else contextlib.nullcontext():
                outputs = call_model(model, x, training)
            pd = likelihood.distribution(outputs)
        if flat_parameters is None:
            flat_parameters = FlatParameters(model.trainable_variables if variables is None else variables)
        weights = likelihood.weights(outputs, pd, sample_weight)
        likelihood.check_outputs(outputs, pd, weights)
        batch = Batch(
            x=x,
            y=y,
            outputs=outputs,
            pd=pd,
            weights=tf.cast(weights, flat_parameters.dtype),
            linearization=Linearization(pd.parameters, tape, flat_parameters, model),
            record=record,
            snapshot=snapshot,
            likelihood=likelihood,
            training=training,
        )
        if second_order:
            batch.linearization.record_gradient(outer, batch.score())
    return batch


def check_inputs(x: Any) -> None:
    """Refuses an empty batch, or inputs that are not finite.

    Args:
        x: a tensor or a structure of tensors, examples first.

    Raises:
        ValueError: naming `x`.
    """
    tensors = [tf.convert_to_tensor(t) for t in tf.nest.flatten(x)]
    if not tensors:
        raise ValueError(_checks.message("x", "nothing", "a batch of shape [N, ...]"))
    for tensor in tensors:
        if tensor.shape.rank == 0:
            raise ValueError(_checks.message("x", "a scalar", "a batch of shape [N, ...]"))
        size = tensor.shape[0]
        _checks.require(
            tf.shape(tensor)[0] > 0 if size is None else tf.constant(size > 0),
            _checks.message("x", "an empty batch", "at least one example", "Drop empty batches from the data set."),
        )
    _checks.require_finite("x", "finite inputs", *tensors)


def unpack(data: Any) -> tuple[Any, Any, Any]:
    """`(x, y, sample_weight)` of what a user or a data set gives, with `None` for what is missing.

    Args:
        data: inputs, or a tuple `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        Tensors.
    """
    # Keras would take a list of two inputs for `(x, y)`.
    data = data if isinstance(data, tuple) else (data,)
    if not 1 <= len(data) <= 3:
        raise ValueError(_checks.message("data", f"a tuple of {len(data)}", "`x`, `(x, y)` or `(x, y, sample_weight)`"))
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if sample_weight is not None:
        sample_weight = _checks.as_tensor("sample_weight", sample_weight)
    return as_inputs(x), None if y is None else _checks.as_tensor("y", y), sample_weight


def as_inputs(x: Any) -> Any:
    """A model's inputs as tensors. Words are inputs too: a model may begin with a layer that reads them.

    Args:
        x: arrays, or a structure of them.

    Returns:
        Tensors in the same structure.

    Raises:
        TypeError: if one cannot be a tensor.
    """

    def converted(value: Any) -> tf.Tensor:
        try:
            return tf.convert_to_tensor(value)
        except (TypeError, ValueError, tf.errors.OpError):
            raise TypeError(_checks.message("x", _checks.described(value), "an array [N, ...]")) from None

    return tf.nest.map_structure(converted, x)


def check_fits(model: ModelLike, x: Any) -> None:
    """Refuses inputs that are not of the shape that a Functional or Sequential model was made for.

    Args:
        model: a Keras model.
        x: tensors or their specifications, examples first.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if words or complex numbers come where real numbers are expected.
    """
    inputs, given = getattr(model, "inputs", None), tf.nest.flatten(x)
    if not inputs or len(inputs) != 1 or len(given) != 1:
        # Of several inputs Keras knows which is whose.
        return
    (tensor,), wanted = given, inputs[0]
    real = tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool
    if not real and wanted.dtype not in (tensor.dtype.name, "string"):
        raise TypeError(_checks.message("x", f"inputs of dtype {tensor.dtype.name}", f"inputs of dtype {wanted.dtype}"))
    if getattr(wanted, "sparse", False) or getattr(wanted, "ragged", False) or not tensor.shape.rank:
        return
    axes = list(wanted.shape[1:])
    # Keras adds or takes away a last axis of one.
    allowed = [axes, [*axes, 1], *([axes[:-1]] if axes[-1:] == [1] else [])]
    if not any(tensor.shape[1:].is_compatible_with(one) for one in allowed):
        raise ValueError(
            _checks.message(
                "x", f"inputs of shape {tensor.shape}", f"shape {wanted.shape}, which the model was made for"
            )
        )


class DataSet:
    """The batches of a `tf.data.Dataset`, each with its share in the whole.

    A mean over the whole is one over the positions (or the weights) of all batches, however many a batch has. The
    data set is read twice on construction: once to count, and once more to see that it gives the same batches
    again, without which a sum over it would be another one at each product.

    Args:
        dataset: batches `x`, `(x, y)` or `(x, y, sample_weight)`.
        reduction: Keras's name of how losses are summed up.
        progress: whether passes in eager mode show a progress bar.

    Raises:
        ValueError: if it is empty, infinite, or gives other batches when it is read again.
    """

    def __init__(self, dataset: tf.data.Dataset, reduction: str, progress: bool = False):
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                _checks.message("data", "an infinite data set", "a finite one", "Remove `repeat()`, or use `take`.")
            )
        self._dataset = dataset
        self.progress = progress
        first, second = ([self._fingerprint(batch) for batch in dataset] for _ in range(2))
        if not first:
            raise ValueError(_checks.message("data", "an empty data set", "at least one batch"))
        # As text: NaN, which is refused elsewhere, is not equal to itself.
        if repr(first) != repr(second):
            raise ValueError(
                _checks.message(
                    "data",
                    "a data set that gives other batches when it is read again",
                    "the same batches each time",
                    "Use `shuffle(..., reshuffle_each_iteration=False)`, and random augmentation before `cache()`.",
                )
            )
        self.batches = len(first)
        self._reduction = reduction

    @staticmethod
    def _fingerprint(batch: Any) -> tuple[int, tuple]:
        x, y, sample_weight = unpack(batch)
        examples = tf.nest.flatten(x)[0].shape[0]
        content = tuple(
            float(np.sum(np.asarray(t, np.float64) * np.cos(np.arange(np.size(t))).reshape(np.shape(t))))
            for t in tf.nest.flatten((x, y, sample_weight))
            if t is not None and np.asarray(t).dtype.kind in "fiub"
        )
        return examples, content

    def sum(
        self, function: Callable, initial: tf.Tensor, operands: Sequence[tf.Tensor], compiled: Callable
    ) -> tf.Tensor:
        """`sum_b share_b function(x_b, y_b, sample_weight_b, b, *operands)`, eagerly or as graph code.

        Args:
            function: of one batch, its number and the operands, to a tensor like `initial` and the number of positions.
            initial: zeros.
            operands: what is the same for all batches.
            compiled: makes a graph of a function, for eager use.

        Returns:
            The sum.

        Raises:
            ValueError: if the data set ends earlier or later than it did on construction.
        """

        def term(x, y, sample_weight, index, *operands):
            value, positions = function(x, y, sample_weight, index, *operands)
            count = _count(positions, sample_weight, self._reduction)
            return tf.cast(count, value.dtype) * value, count

        count = tf.zeros([], tf.float64)
        if tf.executing_eagerly():
            term = compiled(term)
            total, seen = initial, 0
            bar = progress_bar(self._dataset, total=self.batches, disable=not self.progress, leave=False)
            for seen, batch in enumerate(bar, 1):
                value, more = term(*unpack(batch), tf.constant(seen - 1), *operands)
                total, count = total + value, count + more
        else:
            iterator = iter(self._dataset)

            def body(optional, total, count, seen):
                value, more = term(*unpack(optional.get_value()), seen, *operands)
                total = tf.ensure_shape(total + value, initial.shape)
                return iterator.get_next_as_optional(), total, count + more, seen + 1

            _, total, count, seen = tf.while_loop(
                lambda optional, *_: optional.has_value(),
                body,
                (iterator.get_next_as_optional(), initial, count, tf.constant(0)),
                parallel_iterations=1,
            )
        _checks.require(
            tf.convert_to_tensor(tf.equal(seen, self.batches)),
            _checks.message("data", "another number of batches than at first", f"{self.batches} batches each time"),
        )
        return total if self._reduction == "sum" else tf.math.divide_no_nan(total, tf.cast(count, total.dtype))


class MicroBatches:
    """One batch in pieces, for curvature whose record of the whole batch would not fit in memory.

    Args:
        x: the inputs.
        y: the labels, or `None`.
        sample_weight: the examples' weights, or `None`.
        size: examples in a piece; the last one may have fewer.
        reduction: Keras's name of how losses are summed up.
    """

    progress = False

    def __init__(self, x: Any, y: Any, sample_weight: Any, size: int, reduction: str):
        check_inputs(x)
        self._data = (x, y, None if sample_weight is None else tf.convert_to_tensor(sample_weight))
        self._size = size
        self._reduction = reduction

    def sum(
        self, function: Callable, initial: tf.Tensor, operands: Sequence[tf.Tensor], compiled: Callable
    ) -> tf.Tensor:
        """The sum over the pieces; see `DataSet.sum`."""
        x, _, sample_weight = self._data
        by_weight = self._reduction == "mean_with_sample_weight" and sample_weight is not None
        first = tf.nest.flatten(x)[0]
        examples = first.shape[0]
        total = tf.reduce_sum(tf.cast(sample_weight, initial.dtype)) if by_weight else tf.shape(first)[0]

        def term(x, y, sample_weight, index, total, *operands):
            share = _share(x, sample_weight, self._reduction, total, initial.dtype)
            # Conditions of a loop's body cannot leave it; that the inputs are finite was looked at before.
            with _checks.collected(finite_only_collected=True):
                value, _ = function(x, y, sample_weight, index, *operands)
            return share * value

        term = compiled(term) if tf.executing_eagerly() else term

        def piece(start: tf.Tensor, size: int | tf.Tensor, index: tf.Tensor) -> tf.Tensor:
            def cut(tensor: tf.Tensor) -> tf.Tensor:
                part = tf.slice(
                    tensor,
                    tf.concat([[start], tf.zeros([tf.rank(tensor) - 1], tf.int32)], 0),
                    tf.concat([[size], tf.shape(tensor)[1:]], 0),
                )
                return tf.ensure_shape(part, [size if isinstance(size, int) else None, *tensor.shape[1:]])

            data = [None if part is None else tf.nest.map_structure(cut, part) for part in self._data]
            return term(*data, index, total, *operands)

        if examples is None:
            # A whole number of pieces is not known to TensorFlow: the last one is cut to what there is.
            count = tf.shape(first)[0]
            pieces, rest = -(-count // self._size), 0
        else:
            count = examples
            pieces, rest = divmod(examples, self._size)

        def body(index: tf.Tensor, so_far: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            start = index * self._size
            size = self._size if examples is not None else tf.minimum(self._size, count - start)
            return index + 1, tf.ensure_shape(so_far + piece(start, size, index), initial.shape)

        result = initial
        if examples is None or pieces:
            _, result = tf.while_loop(
                lambda index, _: index < pieces, body, (tf.constant(0), initial), parallel_iterations=1
            )
        if rest:
            result += piece(tf.constant(pieces * self._size), rest, tf.constant(pieces))
        return result


def _count(positions: tf.Tensor, sample_weight: Any, reduction: str) -> tf.Tensor:
    """What a batch's mean loss was divided by."""
    if reduction == "sum":
        return tf.ones([], tf.float64)
    if reduction == "mean_with_sample_weight" and sample_weight is not None:
        return tf.reduce_sum(tf.cast(sample_weight, tf.float64))
    return tf.cast(positions, tf.float64)


def _share(x: Any, sample_weight: Any, reduction: str, total: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The weight of a piece's mean loss in that of its batch; `total` counts the whole as the reduction does."""
    if reduction == "sum":
        return tf.ones([], dtype)
    # All examples of one batch have the same number of positions.
    examples = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], dtype)
    if reduction == "mean_with_sample_weight" and sample_weight is not None:
        examples = tf.reduce_sum(tf.cast(sample_weight, dtype))
    return tf.math.divide_no_nan(examples, tf.cast(total, dtype))


__all__ = ["Batch", "DataSet", "MicroBatches", "as_inputs", "check_fits", "check_inputs", "run_batch", "unpack"]
