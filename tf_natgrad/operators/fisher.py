"""The Fisher information matrix of a Keras model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._typing import LossLike, ModelLike, TensorLike
from tf_natgrad.distributions import Distribution, Likelihood, likelihood_of
from tf_natgrad.gram import capture
from tf_natgrad.linearize import Linearization, call_model
from tf_natgrad.operators._base import DENSE_MEMORY_LIMIT, FactoredOperator, FactoredRhs
from tf_natgrad.operators._factors import ExactFactor, OutputFactor, sampled_factor
from tf_natgrad.parameters import FlatParameters


class Fisher(FactoredOperator):
    """`F = sum_i w_i J_i^T L_i J_i`, `[n, n]`, of a model on one batch, at the weights of its construction.

    `J_i` `[C, n]` is the Jacobian of the network's outputs at example i, `L_i` `[C, C]` the Fisher of the output
    distribution in its own parameters, `w_i` the weight of the example in the loss (`1 / N` for a mean loss,
    times its `sample_weight`). With `L_i = S_i S_i^T` it is `A^T A`, `A` `[m, n]` the stack of
    `sqrt(w_i) S_i^T J_i`, rows ordered with the columns of `S` major and the examples minor.

    Outputs `[N, T, C]` count as N T positions, as in Keras's losses. For binary cross-entropy and mean squared
    error the mean over the outputs is part of the matrix, as it is of the loss.

    >>> import keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    >>> fisher = Fisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), tf.ones([5, 3]))
    >>> fisher.matvec(tf.ones([16])).shape, fisher.to_dense().shape, fisher.gram().shape
    (TensorShape([16]), TensorShape([16, 16]), TensorShape([15, 15]))

    Args:
        model: a Keras model with one output.
        loss: a Keras loss, its name, or a `Distribution` subclass; see `likelihood_of`. Never guessed.
        data: the inputs of one batch, or `(x, y)`; the labels are not used, the Fisher has none.
        sample_weight: `[N]` non-negative weights, or `None`.
        kind: `"exact"` (the expectation over labels in closed form) or `"mc"` (labels drawn from the model).
        seed: fixes the draw of `"mc"`: the same matrix at each product.
        mc_samples: labels drawn per example, for `"mc"`.
        training: the mode in which the model is called, once.
        variables: the trainable variables that the matrix is about; by default all of the model's.

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
        sample_weight: TensorLike | None = None,
        kind: str = "exact",
        seed: int = 0,
        mc_samples: int = 1,
        training: bool = False,
        variables: Sequence[keras.Variable] | None = None,
    ):
        _checks.check_choice("kind", kind, ("exact", "mc"))
        _checks.check_number("mc_samples", mc_samples, minimum=1, integer=True)
        likelihood = likelihood_of(loss)
        x = _inputs_of(data)
        check_inputs(x)
        snapshot = _snapshot(model)
        with tf.GradientTape(persistent=True) as tape, capture(model) as record:
            outputs = call_model(model, x, training)
            pd = likelihood.distribution(outputs)
        flat = FlatParameters(model.trainable_variables if variables is None else variables)
        super().__init__(flat, name="Fisher")
        self._state = _BatchState(
            model=model,
            x=x,
            snapshot=snapshot or _snapshot(model),
            training=training,
            likelihood=likelihood,
            outputs=outputs,
            pd=pd,
            weights=tf.cast(likelihood.weights(outputs, pd, sample_weight), flat.dtype),
            linearization=Linearization(pd.parameters, tape, flat, model),
            record=record,
            factor=ExactFactor(pd) if kind == "exact" else sampled_factor(pd, seed, mc_samples),
            exact=kind == "exact",
        )

    @property
    def outputs(self) -> tf.Tensor:
        """The model's outputs on the batch."""
        return self._state.outputs

    @property
    def distribution(self) -> Distribution:
        """The output distribution on the batch."""
        return self._state.pd

    @property
    def rows(self) -> int | None:
        state = self._state
        return tf.TensorShape([state.factor.rank, *state.pd.parameters.shape[:-1]]).num_elements()

    @property
    def gram_refusal(self) -> str | None:
        return self._state.record.refusal_for(self._flat)

    @tf.autograph.experimental.do_not_convert
    def loss(self, y: TensorLike) -> tf.Tensor:
        """The batch's loss `-sum_i w_i log p(y_i | z_i)` (for a squared error, up to a constant).

        Args:
            y: the labels.

        Returns:
            A scalar.
        """
        state = self._state
        return -tf.reduce_sum(state.weights * state.pd.log_prob(state.likelihood.targets(y, state.pd)))

    @tf.autograph.experimental.do_not_convert
    def loss_gradient(self, y: TensorLike, sample_weight: TensorLike | None = None) -> FactoredRhs:
        """The gradient of the loss, as a right-hand side that solvers treat without cancellation.

        Args:
            y: the labels, as Keras's loss takes them.
            sample_weight: the weights of the gradient, where they differ from those of the matrix.

        Returns:
            `FactoredRhs(u)` with `A^T u` the gradient, or, for a Monte-Carlo Fisher, `FactoredRhs(None, rest=g)`.

        Raises:
            ValueError: if labels or weights do not fit, or a weight is positive where that of the matrix is zero.
        """
        state = self._state
        weights = state.weights
        if sample_weight is not None:
            weights = tf.cast(state.likelihood.weights(state.outputs, state.pd, sample_weight), self.dtype)
            _checks.require(
                tf.reduce_all((state.weights > 0) | (weights == 0)),
                _checks.message(
                    "sample_weight",
                    "a positive weight for an example that the matrix leaves out",
                    "zero wherever the matrix's own weight is zero",
                ),
            )
        if not state.exact:
            return FactoredRhs(None, rest=self._flat.flatten(self._gradient(y, weights, self._flat)))
        u = tf.cast(state.pd.score_factor(state.likelihood.targets(y, state.pd)), self.dtype)
        return FactoredRhs(self._to_rows(u * tf.math.divide_no_nan(weights, tf.sqrt(state.weights))[..., None]))

    @tf.autograph.experimental.do_not_convert
    def plain_gradient(self, y: TensorLike, variables: Sequence[keras.Variable] | None = None) -> list[tf.Tensor]:
        """The gradient of the loss itself, from the same forward pass.

        Args:
            y: the labels.
            variables: any variables of the model; by default those of the matrix.

        Returns:
            One tensor per variable.
        """
        flat = self._flat if variables is None else FlatParameters(variables)
        return self._gradient(y, self._state.weights, flat)

    def _gradient(self, y: TensorLike, weights: tf.Tensor, flat: FlatParameters) -> list[tf.Tensor]:
        state = self._state
        score = state.pd.fisher_factor(state.pd.score_factor(state.likelihood.targets(y, state.pd)))
        return state.linearization.pullback_to(flat.tensors, score * tf.cast(weights, score.dtype)[..., None])

    @tf.autograph.experimental.do_not_convert
    def to_dense(
        self, *, method: str = "factor", memory_limit: int = DENSE_MEMORY_LIMIT, name: str = "to_dense"
    ) -> tf.Tensor:
        """The matrix itself, after an estimate of its memory.

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
        if not self._state.exact:
            raise ValueError(_checks.message("method", "'hessians' for kind='mc'", "'factor'"))
        self._check_dense_memory(memory_limit)
        with tf.name_scope(name):
            return self.compiled("hessians", self._hessian_of_self_kl)()

    def _hessian_of_self_kl(self) -> tf.Tensor:
        state = self._state
        values = {id(v): value for v, value in state.snapshot}
        theta = self._flat.flatten([values[id(v)] for v in self._flat.variables])
        moving = zip(self._flat.variables, self._flat.unflatten(theta), strict=True)
        with keras.StatelessScope(state_mapping=[*state.snapshot, *moving]):
            pd = state.likelihood.distribution(call_model(state.model, state.x, state.training))
        return tf.hessians(tf.reduce_sum(state.weights * pd.self_kl()), theta)[0]

    def prepare(self) -> None:
        self._state.linearization.prepare_jvp()

    def _map_rows(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        return self._state.linearization.map_rows(function, rows)

    def _product(self, vector: tf.Tensor) -> tf.Tensor:
        state = self._state
        image = state.linearization.jvp(self._flat.unflatten(vector))
        weighted = state.factor.matvec(image) * self._output_weights()
        return self._flat.flatten(state.linearization.vjp(weighted))

    def _factor_product(self, vector: tf.Tensor) -> tf.Tensor:
        state = self._state
        image = state.linearization.jvp(self._flat.unflatten(vector))
        rows = state.factor.apply_transpose(image) * tf.sqrt(self._output_weights())
        return self._to_rows(tf.cast(rows, self.dtype))

    def _factor_transpose_product(self, vector: tf.Tensor) -> tf.Tensor:
        state = self._state
        cotangent = state.factor.apply(self._from_rows(vector)) * tf.sqrt(self._output_weights())
        return self._flat.flatten(state.linearization.vjp(cotangent))

    def _gram(self) -> tf.Tensor:
        state = self._state
        columns = state.factor.columns() * tf.sqrt(self._output_weights())
        if columns.shape.rank > 3:
            columns = _one_position_each(columns)
        return state.record.gram(state.linearization, columns)

    def _output_weights(self) -> tf.Tensor:
        """`w` `[N, ..., 1]` in the dtype of the outputs."""
        state = self._state
        return tf.cast(state.weights, state.pd.parameters.dtype)[..., None]

    def _to_rows(self, per_position: tf.Tensor) -> tf.Tensor:
        """`[N, T..., R] -> [m]`, in the order of the rows of `A`: positions, columns of `S`, examples."""
        axes = [*range(1, per_position.shape.rank), 0]
        return tf.reshape(tf.transpose(per_position, axes), [-1])

    def _from_rows(self, vector: tf.Tensor) -> tf.Tensor:
        """The inverse of `_to_rows`."""
        z = self._state.pd.parameters
        shape = tf.concat([tf.shape(z)[1:-1], [self._state.factor.rank], tf.shape(z)[:1]], 0)
        rank = z.shape.rank
        return tf.transpose(tf.reshape(tf.cast(vector, z.dtype), shape), [rank - 1, *range(rank - 1)])


class _BatchState:
    """What one forward pass left behind; a plain object, so that TensorFlow's tracking leaves it alone."""

    model: ModelLike
    x: Any
    training: bool
    likelihood: Likelihood
    outputs: tf.Tensor
    pd: Distribution
    weights: tf.Tensor
    linearization: Linearization
    factor: OutputFactor
    exact: bool
    # The model's variables with their values before the forward pass, seeds of dropout included.
    snapshot: list[tuple[keras.Variable, tf.Tensor]]

    def __init__(self, **fields: Any):
        self.__dict__.update(fields)


def check_inputs(x: Any) -> None:
    """Refuses an empty batch, or inputs that are not finite.

    Args:
        x: a tensor or a structure of tensors, examples first.

    Raises:
        ValueError: naming `x`.
    """
    tensors = [tf.convert_to_tensor(t) for t in tf.nest.flatten(x)]
    for tensor in tensors:
        if tensor.shape.rank == 0:
            raise ValueError(_checks.message("x", "a scalar", "a batch of shape [N, ...]"))
        size = tensor.shape[0]
        _checks.require(
            tf.shape(tensor)[0] > 0 if size is None else tf.constant(size > 0),
            _checks.message("x", "an empty batch", "at least one example", "Drop empty batches from the data set."),
        )
    _checks.require_finite("x", "finite inputs", *tensors)


def _snapshot(model: ModelLike) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Every variable with its present value; empty before a subclassed model's first call."""
    return [(v, tf.convert_to_tensor(v.value)) for v in model.variables]


def _inputs_of(data: Any) -> Any:
    if isinstance(data, tuple):
        data = keras.utils.unpack_x_y_sample_weight(data)[0]
    return tf.nest.map_structure(tf.convert_to_tensor, data)


def _one_position_each(columns: tf.Tensor) -> tf.Tensor:
    """`[R, N, T..., C] -> [T R, N, T..., C]`: each column looks at one position and is zero elsewhere."""
    shape = tf.shape(columns)
    rank, batch, middle, outputs = shape[0], shape[1], shape[2:-1], shape[-1]
    positions = tf.reduce_prod(middle)
    flat = tf.reshape(columns, [1, rank, batch, positions, outputs])
    selected = flat * tf.reshape(tf.eye(positions, dtype=columns.dtype), [positions, 1, 1, positions, 1])
    result = tf.reshape(selected, tf.concat([[positions * rank, batch], middle, [outputs]], 0))
    return tf.ensure_shape(result, [None, *columns.shape[1:]])


__all__ = ["Fisher", "check_inputs"]
