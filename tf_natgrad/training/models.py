"""Keras models that train by natural gradient where their optimizer is `NaturalGradient`, and as ever otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras, _replicas
from tf_natgrad._conditions import judge
from tf_natgrad.linearize import ensure_built
from tf_natgrad.solvers import Planned
from tf_natgrad.training._beside import without_loss_scale
from tf_natgrad.training._replicated import REFUSED, refusal_of
from tf_natgrad.training._replicated_function import ReplicatedFunction, check_replicated
from tf_natgrad.training.deciding import plan_step_of
from tf_natgrad.training.objective import likelihood_of_model
from tf_natgrad.training.optimizer import NaturalGradient
from tf_natgrad.training.plan import Data, Plan, plan_step
from tf_natgrad.training.progress_line import ProgressLine
from tf_natgrad.training.step import Beside, Verdict, judge_step, logs_of, refusals_of, side_effects, update
from tf_natgrad.training.train_function import TrainFunction


class NaturalGradientMixin(_keras.UnderStrategies):
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

    # What `supports_jit` was set to.
    _jit_allowed = True

    @property
    def supports_jit(self) -> bool:
        """Whether `jit_compile="auto"` may compile this model: not with a solver that needs SVD or eigh."""
        natural = natural_gradient_optimizer(self)
        return self._jit_allowed and (natural is None or natural.supports_jit)

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:
        _keras.attach(self, "_jit_allowed", value)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Stock Keras's; the state of `fisher="kfac"` and the like is made before it is loaded.

        Args:
            config: as Keras saved it.
        """
        super().compile_from_config(config)
        self._build_preconditioner()

    def _build_preconditioner(self) -> None:
        natural = natural_gradient_optimizer(self)
        if natural is None or natural.preconditioner is None or not self.built or not self.trainable_variables:
            return
        variables = self._natural_variables(natural)
        if variables:
            natural.preconditioner.build(self, variables, natural.add_variable)

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
        data = Data(*keras.utils.unpack_x_y_sample_weight(data))
        if data.y is None:
            raise ValueError(_checks.message("y", "None", "labels", "Pass them to `fit` beside the inputs."))
        ensure_built(self, data.x)
        likelihood, variables = likelihood_of_model(self), self._natural_variables(natural)
        if natural.micro_batch_size is not None:
            _refuse_parts(self, variables)
        solver = getattr(self.train_function, "planned", None) or natural.solver
        plan = plan_step(self, natural, likelihood, solver, variables, data)
        beside = Beside(plan)
        verdict = judge_step(plan)
        update(plan, verdict)
        beside.settle(verdict.accepted)
        logs = {**logs_of(plan, verdict), **self._metrics_after(plan, verdict)}
        if _replicas.several():
            return logs | {REFUSED: refusal_of(refusals_of(plan, verdict))}
        # An assertion that fails ends the graph: it comes after all that is to be as the step left it.
        with tf.control_dependencies([*tf.nest.flatten(logs), *side_effects()]):
            judge(refusals_of(plan, verdict))
        return logs

    def _metrics_after(self, plan: Plan, verdict: Verdict) -> dict[str, tf.Tensor]:
        """The metrics, which a batch that was left out does not enter."""
        x, y, sample_weight = plan.data
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        examples = tf.shape(tf.nest.flatten(plan.outputs)[0])[0]
        tracker.update_state(
            tf.where(verdict.sound, plan.loss, tf.zeros_like(plan.loss)),
            sample_weight=tf.where(verdict.sound, examples, 0),
        )
        return tf.cond(
            verdict.sound,
            lambda: self.compute_metrics(x, y, plan.outputs, sample_weight=sample_weight),
            self.get_metrics_result,
        )

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Stock Keras's, with a progress line that shows the few numbers of a step that one looks at.

        Args:
            x: inputs, or a data set; this and what follows as in Keras.
            y: labels.
            batch_size: of arrays.
            epochs: how many passes over the data.
            verbose: what is shown.
            callbacks: Keras's.
            *args: the rest of Keras's arguments.
            **kwargs: the same by name.

        Returns:
            Keras's history, which has all numbers, as means over each epoch.
        """
        as_list = callbacks is None or isinstance(callbacks, keras.callbacks.Callback | list | tuple)
        with self.distribute_strategy.scope():
            # A `MultiOptimizer` is built here, where it was not.
            natural = natural_gradient_optimizer(self)
        if natural is not None and as_list:
            given = tf.nest.flatten(callbacks) if callbacks else []
            if not any(isinstance(c, keras.callbacks.CallbackList | keras.callbacks.ProgbarLogger) for c in given):
                callbacks = [*given, ProgressLine()]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def reset_metrics(self) -> None:
        """Stock Keras's; means over the steps begin anew too."""
        super().reset_metrics()
        if isinstance(self.train_function, TrainFunction):
            self.train_function.means.reset(int(natural_gradient_optimizer(self).skipped_steps.numpy()))

    def make_train_function(self, force: bool = False) -> Callable | None:
        """Stock Keras's, with this package's refusals turned into `ValueError`s.

        Args:
            force: whether to make it anew.

        Returns:
            The function, where it existed already.
        """
        if self.train_function is not None and not force:
            return self.train_function
        natural = natural_gradient_optimizer(self)
        if natural is None:
            super().make_train_function(force)
            return None

        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync > 1:
            check_replicated(self, natural, strategy)
        with strategy.scope():
            # Variables cannot be made while a step is traced in the replicas.
            if strategy.num_replicas_in_sync > 1 and self.built and not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
            self._build_preconditioner()

        def keras_function() -> Callable:
            own = self.train_function
            super(NaturalGradientMixin, self).make_train_function(force=True)
            made, self.train_function = self.train_function, own
            return made

        as_given = type(self).train_step is NaturalGradientMixin.train_step
        plan = self._plan_solver if as_given else None
        function = TrainFunction if strategy.num_replicas_in_sync == 1 else ReplicatedFunction
        self.train_function = function(self, natural, keras_function, plan)
        return None

    def _plan_solver(self, data: tuple) -> tuple[Planned | None, bool]:
        """The solver for batches like this one, and whether that was checked; `None` for a preconditioner."""
        natural = natural_gradient_optimizer(self)
        x, y, sample_weight = data
        ensure_built(self, x)
        variables = self._natural_variables(natural)
        batch = (x, y) if sample_weight is None else (x, y, sample_weight)
        found = plan_step_of(self, likelihood_of_model(self), batch, natural, variables)
        if found is None:
            self._build_preconditioner()
        natural.finish_loading()
        return found or (None, True)

    def _natural_variables(self, natural: NaturalGradient) -> list[keras.Variable]:
        """The variables that are `NaturalGradient`'s: all, unless a `MultiOptimizer` leaves some to others."""
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        optimizer = without_loss_scale(self.optimizer)
        everybody = [natural, *getattr(optimizer, "optimizers", ())]
        known = {id(v) for one in everybody for v in _keras.optimized_variables(one)}
        unknown = [v.path for v in self.trainable_variables if id(v) not in known]
        if unknown:
            raise ValueError(
                _checks.message(
                    "optimizer",
                    f"one that was built without {', '.join(unknown)}",
                    "one that was built with all trainable variables",
                    "After unfreezing layers compile with a new optimizer.",
                )
            )
        own = {id(v) for v in _keras.optimized_variables(natural)}
        return [v for v in self.trainable_variables if id(v) in own]


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


def _refuse_parts(model: keras.Model, variables: list[keras.Variable]) -> None:
    """Refuses micro-batches beside other optimizers, and for a model that would have to be called in training mode."""
    if len(variables) < len(model.trainable_variables):
        raise ValueError(
            _checks.message("micro_batch_size", "a number, in a `MultiOptimizer`", "None beside other optimizers")
        )
    stateful = [
        layer.name
        for layer in _keras.all_layers(model, include_self=False)
        if getattr(layer, "seed_generator", None) is not None or (layer.trainable and _keras.state_of_layer(layer))
    ]
    if stateful:
        raise ValueError(
            _checks.message(
                "micro_batch_size",
                f"a number, for a model with {', '.join(stateful)}",
                "None, for layers that behave otherwise in training",
                "Each product calls the model again, where dropout and BatchNormalization would not give a matrix; "
                "leave out these layers (BatchNormalization may be frozen), or use a smaller batch.",
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
    optimizer = without_loss_scale(getattr(model, "optimizer", None))
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
