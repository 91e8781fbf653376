"""Keras models that train by natural gradient where their optimizer is `NaturalGradient`, and as ever otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._direction import BatchDirection, batch_direction, penalty_gradient
from tf_natgrad.distributions import Likelihood, likelihood_of
from tf_natgrad.linearize import ensure_built
from tf_natgrad.optimizers import NaturalGradient
from tf_natgrad.parameters import FlatParameters

# Nats of a step beyond which the quadratic model of the KL, and so the step, is not to be trusted.
_FAR = 1.0
_TOO_FAR = (
    "A step of natural gradient is predicted to move the outputs' distribution by {:.1f} nats (KL), too far for the "
    "quadratic model that it rests on, and the loss may rise. Raise `damping`, or set `max_kl` (0.1, say)."
)
_NOT_FINITE = (
    "The loss or the natural-gradient direction of this batch is not finite, or its labels or weights are out of "
    "range; the weights were left as they were. Check the batch, lower the learning rate or raise `damping`; or pass "
    "`on_nonfinite='skip'` to leave such batches out."
)


class NaturalGradientMixin:
    """Gives a Keras model class the training step of natural gradient descent.

    Put it before the Keras class. With a `NaturalGradient` optimizer `fit`, `train_on_batch` and the like take
    natural-gradient steps; with any other optimizer the model is stock Keras.

    >>> import keras
    >>> class MyModel(NaturalGradientMixin, keras.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.head = keras.layers.Dense(3)
    ...     def call(self, x):
    ...         return self.head(x)
    >>> MyModel().compile("adam", "mse")
    """

    @property
    def supports_jit(self) -> bool:
        """Whether `jit_compile="auto"` may compile this model: not with a solver that needs SVD or eigh."""
        natural = natural_gradient_optimizer(self)
        return self.__dict__.get("_supports_jit", True) and (natural is None or natural.solver.supports_jit)

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:
        self.__dict__["_supports_jit"] = value

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step: the natural gradient of the batch, or stock Keras's step with another optimizer.

        Args:
            data: a batch as Keras gives it.

        Returns:
            The metrics.
        """
        natural = natural_gradient_optimizer(self)
        if natural is None:
            return super().train_step(data)
        _refuse_replicas()
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if y is None:
            raise ValueError(_checks.message("y", "None", "labels", "Pass them to `fit` beside the inputs."))
        ensure_built(self, x)
        # A forward pass that is not finite spoils the statistics of BatchNorm: they are put back after it.
        statistics = [v for v in self.non_trainable_variables if tf.as_dtype(v.dtype).is_floating]
        before = [(v, tf.convert_to_tensor(v.value)) for v in statistics]
        with _checks.collected(finite_only_collected=True) as conditions:
            result = batch_direction(
                self,
                self._likelihood(),
                x,
                y,
                sample_weight,
                damping=natural.damping.value,
                solver=natural.solver,
                training=True,
                variables=self._natural_variables(natural),
            )
        outputs = result.fisher.outputs
        # After the checks: Keras's loss fails in its own words on labels out of range.
        with tf.control_dependencies(conditions):
            loss = self.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True)
        report = _report(result.info, natural.learning_rate)
        if natural.max_kl is not None:
            kl = report["kl"]
            shrink = tf.where(kl > natural.max_kl, tf.sqrt(tf.math.divide_no_nan(natural.max_kl, kl)), tf.ones_like(kl))
            result = result._replace(value=result.value * tf.cast(shrink, result.value.dtype))
            report["kl"] *= tf.square(shrink)
        updates = self._updates(result, y)
        finite = _checks.is_finite(loss, tf.convert_to_tensor(natural.learning_rate), *updates)
        sound = self._take_step(natural, updates, before, tf.reduce_all(tf.stack([finite, *conditions])))
        if natural.on_nonfinite == "raise":
            with tf.control_dependencies([sound]):
                _refuse_nonfinite(x, y, finite)
        # A batch that was left out would turn the epoch's mean into NaN.
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(
            tf.where(sound, loss, tf.zeros_like(loss)), sample_weight=tf.where(sound, tf.shape(outputs)[0], 0)
        )
        logs = {"damping": tf.convert_to_tensor(natural.damping.value), **report}
        logs["kl"] = tf.where(sound, logs["kl"], tf.zeros_like(logs["kl"]))
        if natural.on_nonfinite == "skip":
            logs["skipped_steps"] = tf.convert_to_tensor(natural.skipped_steps.value)
        return {**logs, **self.compute_metrics(x, y, outputs, sample_weight=sample_weight)}

    def make_train_function(self, force: bool = False) -> Callable | None:
        """Stock Keras's, with this package's refusals turned into `ValueError`s.

        Args:
            force: whether to make it anew.

        Returns:
            The function, where it existed already.
        """
        if self.train_function is not None and not force:
            return self.train_function
        super().make_train_function(force)
        natural = natural_gradient_optimizer(self)
        if natural is not None:
            step = self.train_function
            # XLA drops assertions; there the count of steps left out tells.
            watched = self.jit_compile and natural.on_nonfinite == "raise"

            def train_function(iterator: Any) -> Any:
                before = int(natural.skipped_steps) if watched else 0
                with _checks.as_value_error():
                    logs = step(iterator)
                if watched and int(natural.skipped_steps) > before:
                    raise ValueError(_NOT_FINITE)
                if logs["kl"] > _FAR:
                    _checks.log_once(_TOO_FAR.format(float(logs["kl"])))
                return logs

            self.train_function = train_function
        return None

    def _likelihood(self) -> Likelihood:
        if type(self).compute_loss is not keras.Model.compute_loss:
            raise ValueError(
                _checks.message(
                    "model",
                    f"{type(self).__name__} with a `compute_loss` of its own",
                    "the loss in `compile`",
                    "Write a `tf_natgrad.distributions.Distribution` for a loss of your own.",
                )
            )
        loss = getattr(self, "loss", None)
        if loss is None or isinstance(loss, dict | list | tuple):
            raise ValueError(
                _checks.message(
                    "loss",
                    "none" if loss is None else f"{len(loss)} losses",
                    "one loss in `compile`",
                    "Concatenate the outputs of a model with several, or train its heads one by one.",
                )
            )
        # `get_compile_config` would read variables, which a trace cannot.
        loss_weights = self._compile_config.config.get("loss_weights")
        if loss_weights is not None:
            raise ValueError(
                _checks.message("loss_weights", loss_weights, "None", "Scale `damping` and `learning_rate` instead.")
            )
        return likelihood_of(loss)

    def _natural_variables(self, natural: NaturalGradient) -> list[keras.Variable]:
        """The variables that are `NaturalGradient`'s: all, unless a `MultiOptimizer` leaves some to others."""
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        own = {id(v) for v in natural._trainable_variables}
        return [v for v in self.trainable_variables if id(v) in own]

    def _updates(self, result: BatchDirection, y: Any) -> list[tf.Tensor]:
        """One per trainable variable: its part of the direction, or its gradient where another optimizer has it."""
        flat = result.fisher.flat_parameters
        updates = {id(v): d for v, d in zip(flat.variables, flat.unflatten(result.value), strict=True)}
        others = [v for v in self.trainable_variables if id(v) not in updates]
        if others:
            gradients = result.fisher.plain_gradient(y, others)
            penalty = penalty_gradient(FlatParameters(others))
            if penalty is not None:
                parts = FlatParameters(others).unflatten(penalty)
                gradients = [g + p for g, p in zip(gradients, parts, strict=True)]
            updates |= {id(v): g for v, g in zip(others, gradients, strict=True)}
        return [updates[id(v)] for v in self.trainable_variables]

    def _take_step(
        self,
        natural: NaturalGradient,
        updates: list[tf.Tensor],
        before: list[tuple[keras.Variable, tf.Tensor]],
        sound: tf.Tensor,
    ) -> tf.Tensor:
        """Applies the updates if the batch is sound; else leaves the model as it was, and counts. Returns `sound`."""

        def apply() -> tf.Tensor:
            # A wrapper that scales losses divides by its scale what it is given.
            scaled = [self.optimizer.scale_loss(update) for update in updates]
            natural.apply_direction(scaled, self.trainable_variables, through=self.optimizer)
            return tf.constant(True)

        def skip() -> tf.Tensor:
            for variable, value in before:
                variable.assign(value)
            natural.skipped_steps.assign_add(1)
            return tf.constant(False)

        return tf.cond(sound, apply, skip)


@keras.saving.register_keras_serializable(package="tf_natgrad")
class NaturalGradientModel(NaturalGradientMixin, keras.Model):
    """`keras.Model` with natural-gradient training: `NaturalGradientModel(inputs, outputs)`, or subclass it."""


@keras.saving.register_keras_serializable(package="tf_natgrad")
class NaturalGradientSequential(NaturalGradientMixin, keras.Sequential):
    """`keras.Sequential` with natural-gradient training."""


def natural_gradient_model(model: keras.Model) -> NaturalGradientModel:
    """A model that shares layers and weights with `model` and can train by natural gradient.

    >>> import keras
    >>> base = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> natural_gradient_model(base).layers[-1] is base.layers[-1]
    True

    Args:
        model: a Functional or built Sequential model.

    Returns:
        A `NaturalGradientModel`; training it trains `model`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if it has no inputs and outputs to share (a subclassed model: use `NaturalGradientMixin`).
    """
    if isinstance(model, NaturalGradientMixin):
        return model
    if not isinstance(model, keras.Model):
        raise TypeError(_checks.message("model", type(model).__name__, "a `keras.Model`"))
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            _checks.message(
                "model", "a Sequential model without weights", "a built one", "Begin it with `keras.Input(shape)`."
            )
        )
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise ValueError(
            _checks.message(
                "model",
                f"the subclassed model {type(model).__name__}",
                "a Functional or Sequential model",
                f"Derive it with the mixin: `class {type(model).__name__}(ng.NaturalGradientMixin, keras.Model)`.",
            )
        )

    def single(tensors: list) -> Any:
        return tensors[0] if len(tensors) == 1 else tensors

    return NaturalGradientModel(single(inputs), single(outputs), name=model.name)


def _report(info: Any, learning_rate: tf.Tensor) -> dict[str, tf.Tensor]:
    """What the fit log shows of a step: rank or iterations, and the KL that the step is predicted to move."""
    logs = {name: getattr(info, name) for name in ("rank", "iterations") if hasattr(info, name)}
    rate = tf.convert_to_tensor(learning_rate)
    return logs | {"kl": 0.5 * tf.square(rate) * tf.cast(info.quadratic_form, rate.dtype)}


def _refuse_nonfinite(x: Any, y: Any, finite: tf.Tensor) -> None:
    """Refuses a batch that is not finite, or whose step is not, by the name of what is to blame."""
    clean = tf.constant(True)
    for name, given in (("x", x), ("y", y)):
        own = _checks.is_finite(*map(tf.convert_to_tensor, tf.nest.flatten(given)))
        remedy = "Clean the batch, or leave such batches out with `on_nonfinite='skip'`."
        _checks.require(own, _checks.message(name, "NaN or infinite values", "finite values", remedy))
        clean &= own
    _checks.require(finite | ~clean, _NOT_FINITE)


def _refuse_replicas() -> None:
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        raise ValueError(
            _checks.message(
                "strategy",
                f"{replicas} replicas",
                "one",
                "The Fisher of the whole batch is not the mean of the replicas' directions; train on one device.",
            )
        )


def natural_gradient_optimizer(model: keras.Model) -> NaturalGradient | None:
    """The model's `NaturalGradient`, out of a loss-scale wrapper or `MultiOptimizer` if need be, or `None`.

    Args:
        model: a Keras model, compiled or not.

    Returns:
        The optimizer or `None`.

    Raises:
        ValueError: if there are several.
    """
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        if not optimizer.built and model.trainable_variables:
            # Made from a function of the variable, it knows its optimizers only then.
            optimizer.build(model.trainable_variables)
        inner = [o for o in optimizer.optimizers if isinstance(o, NaturalGradient)]
        if len(inner) > 1:
            raise ValueError(
                _checks.message(
                    "optimizer",
                    f"{len(inner)} `NaturalGradient`s in one `MultiOptimizer`",
                    "one, which couples all of its variables",
                )
            )
        optimizer = inner[0] if inner else None
    return optimizer if isinstance(optimizer, NaturalGradient) else None


__all__ = [
    "NaturalGradientMixin",
    "NaturalGradientModel",
    "NaturalGradientSequential",
    "natural_gradient_model",
]
