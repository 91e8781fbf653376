"""Products with the Jacobian of a network and its transpose: one forward pass, any number of products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _keras
from tf_natgrad._typing import ModelLike, TensorLike, TensorList
from tf_natgrad.parameters import FlatParameters

# Spacing of the numbers above one.
_ROUNDING = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_TF32_ROUNDING = 2.0**-10

# A tape of the map `u -> J^T u`, its argument, and its value.
_Transpose = tuple[tf.GradientTape, tf.Tensor, list[tf.Tensor]]

# Examples times parameters beyond which vectors taken at once save nothing: their products are then large matrix
# products already, and batched ones are slower.
_VECTORIZED_WORK = 1 << 22
# Rows up to which a loop in Python takes less time than tracing does.
_FEW_ROWS = 2


class Linearization:
    """The Jacobian `J = dz/dtheta` on one batch, where `z` are the outputs that the tape recorded.

    The model ran once, when the tape was recorded: no product calls it again, so dropout masks are frozen and
    BatchNorm statistics move once. Both maps differentiate the tape: `J^T u` backward, `J v` backward through
    that backward pass (the transpose of the linear map `u -> J^T u`), which every layer supports.

    Attributes:
        outputs: `z`, `[N, ..., C]`.
        flat_parameters: the layout of `[n]`.
        rounding: the spacing of floating-point numbers above one, in the lowest precision used by the pass.

    Args:
        outputs: a tensor recorded on `tape`.
        tape: a persistent tape, no longer recording.
        flat_parameters: the variables to which `J` is the derivative.
        model: the model that was called; its layers tell the precision, and whether products can be vectorised.
    """

    def __init__(self, outputs: tf.Tensor, tape: tf.GradientTape, flat_parameters: FlatParameters, model: ModelLike):
        layers = _keras.all_layers(model) if isinstance(model, keras.layers.Layer) else []
        # float16 underflows at 6e-8: the products then keep within its range.
        self._float16 = any(getattr(layer, "compute_dtype", None) == "float16" for layer in layers)
        self.rounding = _rounding(flat_parameters.dtype, layers)
        # TensorFlow vectorises neither the kernel gradient of a grouped convolution nor second derivatives of loops.
        self._vectorizes = all(
            getattr(layer, "groups", 1) == 1
            and not hasattr(layer, "depth_multiplier")
            and not isinstance(layer, keras.layers.RNN)
            for layer in layers
        )
        self.outputs = outputs
        self.flat_parameters = flat_parameters
        self._tape = tape
        self._sources = flat_parameters.tensors
        self._eager = tf.executing_eagerly()
        self._graph = _keras.graph_now()
        self._transpose: _Transpose | None = None
        self._gradient: tuple[tf.GradientTape, list[tf.Tensor]] | None = None

    @property
    def is_eager(self) -> bool:
        """Whether the pass ran eagerly."""
        return self._eager

    @property
    def has_values(self) -> bool:
        """Whether the pass ran eagerly, and this is eager code too: its tensors have values."""
        return self._eager and tf.executing_eagerly()

    def prepare_jvp(self) -> None:
        """Records the backward pass that `jvp` differentiates; to be called before loops that use it, once is enough.

        Elsewhere it is recorded when it is needed: tracing it takes as long as a backward pass.
        """
        if self._transpose is None and self._graph is _keras.graph_now():
            self._transpose = self._record_transpose()

    def jvp(self, tangents: TensorList) -> tf.Tensor:
        """Computes `J v`: one tensor per variable -> `[N, ..., C]`."""
        self.prepare_jvp()
        # Inside a graph that closes over the tape from outside, the record belongs to that graph, and is not kept.
        outer, seed, pullback = self._transpose or self._record_transpose()
        scale = self._scale(tangents)
        image = outer.gradient(
            pullback,
            seed,
            output_gradients=[t / scale for t in tangents] if self._float16 else list(tangents),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return image * scale if self._float16 else image

    def record_gradient(self, outer: tf.GradientTape, cotangent: tf.Tensor) -> None:
        """Records the gradient `J^T u` on a tape that recorded the forward pass too, for `gradient_jvp`.

        Args:
            outer: a persistent tape, still recording.
            cotangent: `u`, as a function of the outputs that `outer` recorded.
        """
        self._gradient = outer, self._tape_gradient(self._sources, cotangent)

    def gradient_jvp(self, tangents: TensorList) -> list[tf.Tensor]:
        """Computes the derivative of the gradient of `record_gradient` along `v`, the Hessian product `H v`.

        Args:
            tangents: `v`, one tensor per variable.

        Returns:
            One tensor per variable.
        """
        outer, gradient = self._gradient
        products = outer.gradient(
            gradient,
            self._sources,
            output_gradients=list(tangents),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [tf.convert_to_tensor(p) for p in products]

    def _record_transpose(self) -> _Transpose:
        with tf.GradientTape(persistent=True) as outer:
            seed = tf.zeros_like(self.outputs)
            outer.watch(seed)
            pullback = self._tape_gradient(self._sources, seed)
        return outer, seed, pullback

    def vjp(self, cotangent: tf.Tensor) -> list[tf.Tensor]:
        """Computes `J^T u`: `[N, ..., C]` -> one tensor per variable."""
        return self.pullback_to(self._sources, cotangent)

    def pullback_to(self, sources: TensorList, cotangent: tf.Tensor) -> list[tf.Tensor]:
        """Computes `(dz/dsources)^T u` for variables or intermediate tensors of the same forward pass."""
        if not self._float16:
            return self._tape_gradient(sources, cotangent)
        scale = self._scale([cotangent])
        gradients = self._tape_gradient(sources, cotangent / scale)
        return [tf.cast(g, cotangent.dtype) * scale for g in gradients]

    def map_rows(self, function: Callable[[tf.Tensor], Any], rows: tf.Tensor, signature: Any = None) -> Any:
        """Computes `function`, which contains products, of each row: vectorised if possible, else one by one.

        Args:
            function: of one row, to a tensor or a structure of tensors.
            rows: `[k, ...]`.
            signature: the `tf.TensorSpec`s of what `function` returns, where that is not like a row.

        Returns:
            What `function` returned, stacked.
        """
        if tf.executing_eagerly() and rows.shape[0] <= _FEW_ROWS:
            return tf.nest.map_structure(lambda *parts: tf.stack(parts), *map(function, rows))
        if self._vectorizes:
            return tf.vectorized_map(function, rows)
        return tf.map_fn(function, rows, parallel_iterations=1, fn_output_signature=signature)

    def map_products(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        """Computes `function`, a whole product, of each row: vectorised if the products are small, else one by one.

        Args:
            function: of one row, to a tensor like a row.
            rows: `[k, ...]`.

        Returns:
            What `function` returned, stacked.
        """
        examples = self.outputs.shape[0]
        if examples is not None and examples * self.flat_parameters.size > _VECTORIZED_WORK:
            return tf.map_fn(function, rows, parallel_iterations=4)
        return self.map_rows(function, rows)

    def _tape_gradient(self, sources: TensorList, cotangent: tf.Tensor) -> list[tf.Tensor]:
        gradients = self._tape.gradient(
            self.outputs,
            list(sources),
            output_gradients=cotangent,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [tf.convert_to_tensor(g) for g in gradients]

    def _scale(self, tensors: TensorList) -> tf.Tensor:
        """The largest entry, or one: float16 underflows at 6e-8, so what goes through it is of order one."""
        if not self._float16:
            return tf.ones([], tensors[0].dtype)
        largest = tf.reduce_max(tf.stack([tf.reduce_max(tf.abs(t)) for t in tensors]))
        return tf.where(largest > 0, largest, tf.ones_like(largest))


def linearize(
    model: ModelLike,
    x: TensorLike,
    *,
    training: bool = False,
    flat_parameters: FlatParameters | None = None,
    head: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> Linearization:
    """Runs a model once and returns its outputs with the maps `v -> J v` and `u -> J^T u`.

    >>> import keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> j = linearize(model, tf.ones([4, 3]))
    >>> j.outputs.shape, [tuple(g.shape) for g in j.vjp(tf.ones([4, 2]))]
    (TensorShape([4, 2]), [(3, 2), (2,)])

    Args:
        model: a Keras model.
        x: its inputs, a batch.
        training: the mode in which the model is called.
        flat_parameters: the variables of interest; by default all trainable ones.
        head: applied to the outputs before they are linearised, such as a cast or the choice of the logits.

    Returns:
        A `Linearization`.
    """
    with tf.GradientTape(persistent=True) as tape:
        outputs = call_model(model, x, training)
        outputs = outputs if head is None else head(outputs)
    # A model's variables may not exist before its first call.
    flat_parameters = flat_parameters or FlatParameters(model.trainable_variables)
    return Linearization(outputs, tape, flat_parameters, model)


def _rounding(dtype: tf.DType, layers: list[keras.layers.Layer]) -> float:
    inner = [layer for layer in layers if not isinstance(layer, keras.layers.InputLayer)]
    # A container computes nothing: its own policy may be any.
    leaves = [layer for layer in inner if not _keras.all_layers(layer, include_self=False)]
    names = {dtype.name, *(getattr(leaf, "compute_dtype", None) for leaf in leaves)}
    coarsest = max(_ROUNDING.get(name, 0.0) for name in names)
    on_gpu = tf.config.experimental.tensor_float_32_execution_enabled() and tf.config.list_physical_devices("GPU")
    return max(coarsest, _TF32_ROUNDING) if on_gpu and coarsest == _ROUNDING["float32"] else coarsest


def call_model(model: ModelLike, x: TensorLike, training: bool) -> tf.Tensor:
    """Calls a model, with `training` where it takes that argument (as `fit` does)."""
    if _keras.takes_training(model):
        return model(x, training=training)
    return model(x)


def ensure_built(model: ModelLike, x: Any) -> None:
    """Makes the variables of layers that were never called; on symbols, so that no seed or statistic moves.

    Args:
        model: a Keras model.
        x: a batch of its inputs.
    """
    if all(layer.built for layer in _keras.all_layers(model)):
        return
    symbols = tf.nest.map_structure(lambda t: keras.KerasTensor(t.shape, keras.backend.standardize_dtype(t.dtype)), x)
    call_model(model, symbols, training=True)


__all__ = ["Linearization", "call_model", "ensure_built", "linearize"]
