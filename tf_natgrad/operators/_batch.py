"""One batch after one forward pass, and what is looked at before it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras, _replicas
from tf_natgrad._conditions import Condition, note, noted
from tf_natgrad._typing import ModelLike, TensorLike
from tf_natgrad.distributions import Distribution, Likelihood
from tf_natgrad.layers import CAUSE, Record, capture, gram_mismatch, tolerated_mismatch
from tf_natgrad.linearize import Linearization, call_model, ensure_built
from tf_natgrad.operators._factors import OutputFactor
from tf_natgrad.operators._inputs import input_conditions
from tf_natgrad.parameters import FlatParameters

# Roundings by which the outputs of two passes that are the same may differ.
_SAME = 1e3


@dataclasses.dataclass
class Batch:
    """What one forward pass left behind.

    Attributes:
        model: the model that was called.
        x: the inputs.
        y: the labels, or `None`.
        outputs: the model's outputs.
        pd: the distribution that they stand for.
        weights: `w` `[N, ...]`, one per position, in the dtype of the variables.
        linearization: the Jacobian of the distribution's parameters.
        snapshot: the model's variables with their values before the pass, seeds of dropout included.
        likelihood: the loss.
        training: the mode in which the model was called.
        factor: the output-space factor of the operator that uses the batch, if it has one.
        gram_checked: whether the Gram matrix of the recorded calls was found to be that of the Jacobian.
        conditions: where conditions on the batch's values go; `None` where they are judged at once.
        recorded: the calls of the layers, where the pass kept them; see `record`.
        place: of these examples in the global batch, or `None` where they are all of it.
    """

    model: ModelLike
    x: Any
    y: Any
    outputs: tf.Tensor
    pd: Distribution
    weights: tf.Tensor
    linearization: Linearization
    snapshot: list[tuple[keras.Variable, tf.Tensor]]
    likelihood: Likelihood
    training: bool
    factor: OutputFactor | None = None
    gram_checked: bool = False
    conditions: list[Condition] | None = None
    recorded: Record | None = None
    place: _replicas.Place | None = None

    @property
    def record(self) -> Record:
        """The calls of the layers, for the Gram matrix.

        Where the pass did not keep them the model is called once more, with the same dropout and the same statistics,
        and `linearization` becomes that of the second pass.

        Raises:
            ValueError: if a second pass would not be the same.
        """
        if self.recorded is None:
            refusal = self._changed_weights() or self._record_again()
            if refusal is not None:
                raise ValueError(refusal)
        return self.recorded

    def _changed_weights(self) -> str | None:
        """Why the model cannot be called again as it was, or `None`; inside a graph values are not known."""
        if not self.linearization.is_eager:
            return None
        with tf.init_scope():
            values = [(v, before.numpy(), v.numpy()) for v, before in self.snapshot if self._is_weight(v)]
        changed = [v.path for v, before, now in values if before.tobytes() != now.tobytes()]
        if not changed:
            return None
        return (
            f"The weights have changed since this matrix was made ({', '.join(changed[:3])}), and the Gram matrix "
            "needs the model at those of then. Ask for it before the weights change, make the matrix with "
            "`record_calls=True`, make it anew, or use `solver='cg'`."
        )

    def _is_weight(self, variable: keras.Variable) -> bool:
        own = (*self.model.trainable_variables, *self.linearization.flat_parameters.variables)
        return any(variable is v for v in own)

    def _record_again(self) -> str | None:
        """Records a second pass like the first, or says why there is none."""
        if not self.linearization.is_eager or tf.executing_eagerly():
            linear, record, same = self._second_pass()
        else:
            # A graph that is being traced asks for what must not belong to it: eager code runs on another thread.
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                linear, record, same = thread.submit(self._second_pass).result()
        text = (
            "The model gives other outputs when it is called again on the same batch with the same weights and seeds, "
            "so that its layers' calls cannot be recorded afterwards. Make the matrix with `record_calls=True`, or use "
            "`solver='cg'`."
        )
        if not linear.is_eager:
            note([Condition(same, text)], self.conditions)
        elif not same.numpy():
            return text
        self.linearization, self.recorded = linear, record
        return None

    def _second_pass(self) -> tuple[Linearization, Record, tf.Tensor]:
        """The first pass again with the calls of its layers, and whether its outputs are the same."""
        flat = self.linearization.flat_parameters
        state = [(v, value) for v, value in self.snapshot if not self._is_weight(v)]
        scope = keras.StatelessScope(state_mapping=state)
        with tf.GradientTape(persistent=True) as tape, capture(self.model) as record, scope:
            # Of several outputs this distribution knows the weights.
            there = self.likelihood.parameters(call_model(self.model, self.x, self.training))
            pd = self.pd.with_parameters(there)
        linear = Linearization(pd.parameters, tape, flat, self.model)
        return linear, record, _is_close(pd.parameters, self.pd.parameters, _SAME * linear.rounding)

    def gram_refusal(self) -> str | None:
        """Why there is no Gram matrix, or `None`; where values are at hand, by a random product as well.

        Returns:
            The reason in words.
        """
        if self.recorded is None:
            refusal = self._changed_weights() or self._record_again()
            if refusal is not None:
                return refusal
        linear = self.linearization
        refusal = self.record.refusal_for(linear.flat_parameters, linear.outputs.shape[0])
        if refusal is not None or self.gram_checked or not linear.has_values:
            return refusal
        # Each replica looks at its own examples.
        mismatch = float(_replicas.total(gram_mismatch(self.record, linear, tf.sign(self.output_weights))))
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
        checked = self.likelihood.checked_targets(y, self.pd)
        return noted(checked, self.conditions)

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

    def gradient(self, variables: Sequence[tf.Tensor], y: TensorLike | None, weights: tf.Tensor) -> list[tf.Tensor]:
        """The gradient of the loss in any variables of the model.

        Args:
            variables: what to differentiate by.
            y: the labels, or `None` for the batch's own.
            weights: of the positions, `[N, ...]`.

        Returns:
            One tensor per variable.
        """
        score = self.pd.fisher_factor(self.pd.score_factor(self.targets(y)))
        return self.linearization.pullback_to(variables, score * tf.cast(weights, score.dtype)[..., None])

    def distribution_at(self, moved: Sequence[tuple[keras.Variable, tf.Tensor]]) -> Distribution:
        """The distribution of another call on the same inputs, with the same dropout, at other weights.

        Args:
            moved: variables and their values; the others have those of before the pass.

        Returns:
            A distribution.
        """
        with keras.StatelessScope(state_mapping=[*self.snapshot, *moved]):
            there = self.likelihood.parameters(call_model(self.model, self.x, self.training))
        # Of several outputs this one knows the weights.
        return self.pd.with_parameters(there)


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
    conditions: list[Condition] | None = None,
    record_calls: bool = False,
) -> Batch:
    """Calls a model once on a batch and keeps what curvature needs of it.

    Args:
        model: a Keras model.
        likelihood: the loss.
        x: the inputs.
        y: the labels, or `None`.
        sample_weight: the examples' weights, or `None`.
        training: the mode in which the model is called.
        variables: the variables of interest; `None` for all trainable ones.
        flat_parameters: the same as a layout, where it exists already.
        second_order: whether the gradient of the loss is recorded too, to be differentiated once more.
        conditions: a list to which the conditions on values are added; by default they are judged at once.
        record_calls: whether the layers' calls are recorded, for the Gram matrix.

    Returns:
        A `Batch`.

    Raises:
        ValueError: if the batch is empty, not finite, or does not fit.
    """
    note(input_conditions(x), conditions)
    ensure_built(model, x)
    snapshot = [(v, tf.convert_to_tensor(v.value)) for v in model.variables]
    outer = tf.GradientTape(persistent=True) if second_order else None
    with outer or contextlib.nullcontext():
        recording = capture(model) if record_calls else contextlib.nullcontext()
        with tf.GradientTape(persistent=True) as tape:
            moments = _keras.twice_differentiable_moments() if second_order else contextlib.nullcontext()
            with moments, recording as record:
                outputs = call_model(model, x, training)
            # Replicas take turns where they exchange: a model is as it was by then.
            pd, weights, found = likelihood.read(outputs, sample_weight)
        note(found, conditions)
        if flat_parameters is None:
            flat_parameters = FlatParameters(model.trainable_variables if variables is None else variables)
        batch = Batch(
            model=model,
            x=x,
            y=y,
            outputs=outputs,
            pd=pd,
            weights=tf.cast(weights, flat_parameters.dtype),
            linearization=Linearization(pd.parameters, tape, flat_parameters, model),
            recorded=record,
            snapshot=snapshot,
            likelihood=likelihood,
            training=training,
            conditions=conditions,
            place=_replicas.place(pd.parameters),
        )
        if second_order:
            batch.linearization.record_gradient(outer, batch.score())
    return batch


def _is_close(a: tf.Tensor, b: tf.Tensor, tolerance: float) -> tf.Tensor:
    """Whether two tensors differ by rounding; what is not finite in one must be the same in the other."""
    allowed = tolerance * (1.0 + tf.reduce_max(tf.where(tf.math.is_finite(b), tf.abs(b), tf.zeros_like(b))))
    return tf.reduce_all((tf.abs(a - b) <= allowed) | tf.equal(a, b) | (tf.math.is_nan(a) & tf.math.is_nan(b)))


__all__ = ["Batch", "run_batch"]
