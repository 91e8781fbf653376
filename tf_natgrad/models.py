"""Keras models that train by natural gradient where their optimizer is `NaturalGradient`, and as ever otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._direction import BatchDirection, batch_direction, penalty_gradient
from tf_natgrad._planning import plan_solver
from tf_natgrad._train_function import NOT_FINITE, TrainFunction
from tf_natgrad.distributions import Likelihood, likelihood_of
from tf_natgrad.linearize import call_model, ensure_built
from tf_natgrad.optimizers import NaturalGradient
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.solvers import Solver
from tf_natgrad.step import StepReport, kl_radius, restore, take


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

    # What `supports_jit` was set to.
    _jit_allowed = True

    @property
    def supports_jit(self) -> bool:
        """Whether `jit_compile="auto"` may compile this model: not with a solver that needs SVD or eigh."""
        natural = natural_gradient_optimizer(self)
        return self._jit_allowed and (natural is None or natural.solver.supports_jit)

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:
        _keras.attach(self, "_jit_allowed", value)

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
        _refuse_replicas(self)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if y is None:
            raise ValueError(_checks.message("y", "None", "labels", "Pass them to `fit` beside the inputs."))
        ensure_built(self, x)
        # A forward pass that is not finite spoils the statistics of BatchNorm: they are put back after it.
        statistics = [v for v in self.non_trainable_variables if tf.as_dtype(v.dtype).is_floating]
        before = [tf.convert_to_tensor(v.value) for v in statistics]
        damping = tf.convert_to_tensor(natural.damping.value)

        def put_back() -> None:
            restore(statistics, before)

        with _checks.collected(finite_only_collected=True, undo=put_back) as conditions:
            step = self._plan_step(natural, damping, x, y, sample_weight)
        outputs = step.outputs
        # After the checks: Keras's loss fails in its own words on labels out of range.
        with tf.control_dependencies(conditions):
            loss = self.compute_loss(
                x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=natural.micro_batch_size is None
            )
        updates = self._updates(step.direction, y)
        finite = _checks.is_finite(loss, step.rate, *updates)
        sound, logs = self._take_step(
            natural, step, updates, loss, put_back, tf.reduce_all(tf.stack([finite, *conditions]))
        )
        if natural.on_nonfinite == "raise":
            with tf.control_dependencies([sound]):
                _refuse_nonfinite(x, y, sample_weight, finite)
        # A batch that was left out would turn the epoch's mean into NaN.
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(
            tf.where(sound, loss, tf.zeros_like(loss)), sample_weight=tf.where(sound, tf.shape(outputs)[0], 0)
        )
        logs = {"damping": damping, **_size_of_solve(step.direction.info), **logs}
        if natural.on_nonfinite == "skip":
            logs["skipped_steps"] = tf.convert_to_tensor(natural.skipped_steps.value)
            metrics = tf.cond(
                sound,
                lambda: self.compute_metrics(x, y, outputs, sample_weight=sample_weight),
                self.get_metrics_result,
            )
            return {**logs, **metrics}
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
        natural = natural_gradient_optimizer(self)
        if natural is None:
            super().make_train_function(force)
            return None

        def keras_function() -> Callable:
            own = self.train_function
            super(NaturalGradientMixin, self).make_train_function(force=True)
            made, self.train_function = self.train_function, own
            return made

        as_given = type(self).train_step is NaturalGradientMixin.train_step
        plan = self._plan_solver if as_given else None
        self.train_function = TrainFunction(self, natural, keras_function, plan)
        return None

    def _plan_solver(self, data: tuple) -> tuple[Solver, bool]:
        """The solver for batches like this one, and whether that was checked to the end."""
        natural = natural_gradient_optimizer(self)
        _refuse_replicas(self)
        x, y, sample_weight = data
        ensure_built(self, x)
        return plan_solver(
            self,
            self._likelihood(),
            (x, y) if sample_weight is None else (x, y, sample_weight),
            solver=natural.solver,
            training=True,
            variables=self._natural_variables(natural),
            kind=natural.fisher,
            damping=natural.damping.value,
        )

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
        loss_weights = _keras.loss_weights_of(self)
        if loss_weights is not None:
            raise ValueError(
                _checks.message("loss_weights", loss_weights, "None", "Scale `damping` and `learning_rate` instead.")
            )
        return likelihood_of(loss)

    def _natural_variables(self, natural: NaturalGradient) -> list[keras.Variable]:
        """The variables that are `NaturalGradient`'s: all, unless a `MultiOptimizer` leaves some to others."""
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        own = {id(v) for v in _keras.optimized_variables(natural)}
        return [v for v in self.trainable_variables if id(v) in own]

    def _plan_step(self, natural: NaturalGradient, damping: tf.Tensor, x: Any, y: Any, sample_weight: Any) -> _Step:
        """The direction of a batch, and how far along it to go."""
        likelihood = self._likelihood()
        variables = self._natural_variables(natural)
        in_parts = natural.micro_batch_size is not None
        if in_parts:
            _refuse_training_mode(self)
            if len(variables) < len(self.trainable_variables):
                raise ValueError(
                    _checks.message(
                        "micro_batch_size", "a number, in a `MultiOptimizer`", "None beside other optimizers"
                    )
                )
        last = None
        if natural.last_direction:
            flat = FlatParameters(variables)
            last = flat.flatten([_keras.slot_of(natural, natural.last_direction, v).value for v in variables])

        def times(factor: keras.Variable | None) -> tf.Tensor | None:
            return None if factor is None else tf.cast(factor.value, last.dtype) * last

        direction = batch_direction(
            self,
            likelihood,
            x,
            y,
            sample_weight,
            damping=damping,
            solver=getattr(self.train_function, "planned", None) or natural.solver,
            training=not in_parts,
            variables=variables,
            kind=natural.fisher,
            # Of steps that came to nothing too, so that none draws the labels of another.
            seed=tf.cast(natural.iterations.value, tf.int32)
            + natural.rejected_steps.value
            + natural.skipped_steps.value,
            micro_batch_size=natural.micro_batch_size,
            shift=times(natural.momentum),
            x0=times(natural.warm_start),
            last=last if natural.combines_directions else None,
        )
        outputs = call_model(self, x, training=False) if in_parts else direction.fisher.outputs
        if in_parts:
            # Outputs and labels are looked at once more outside of the loop over the parts, where `collected` sees it.
            pd = likelihood.distribution(outputs)
            likelihood.check_outputs(outputs, pd, likelihood.weights(outputs, pd, sample_weight))
            likelihood.targets(y, pd)
        rate = tf.convert_to_tensor(natural.learning_rate)
        form = tf.cast(direction.quadratic_form, rate.dtype)
        shrink = tf.ones([], rate.dtype)
        if natural.max_kl is not None:
            shrink = tf.minimum(shrink, tf.math.divide_no_nan(kl_radius(form, natural.max_kl.value), rate))
        return _Step(
            model=self,
            direction=direction,
            x=x,
            y=y,
            sample_weight=sample_weight,
            outputs=outputs,
            shrink=shrink,
            rate=rate,
            kl_predicted=0.5 * tf.square(rate * shrink) * form,
        )

    def _updates(self, direction: BatchDirection, y: Any) -> list[tf.Tensor]:
        """One per trainable variable: its part of the direction, or its gradient where another optimizer has it."""
        flat = direction.fisher.flat_parameters
        updates = {id(v): d for v, d in zip(flat.variables, flat.unflatten(direction.value), strict=True)}
        others = [v for v in self.trainable_variables if id(v) not in updates]
        if others:
            gradients = direction.fisher.plain_gradient(y, others)
            penalty = penalty_gradient(FlatParameters(others))
            if penalty is not None:
                parts = FlatParameters(others).unflatten(penalty)
                gradients = [g + p for g, p in zip(gradients, parts, strict=True)]
            updates |= {id(v): g for v, g in zip(others, gradients, strict=True)}
        return [updates[id(v)] for v in self.trainable_variables]

    def _take_step(
        self,
        natural: NaturalGradient,
        step: _Step,
        updates: list[tf.Tensor],
        loss: tf.Tensor,
        put_back: Callable[[], None],
        sound: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Takes the step if the batch is sound; else leaves the model as it was, and counts.

        Returns:
            `sound`, and what the log shows of the step.
        """
        own = {id(v) for v in step.direction.fisher.flat_parameters.variables}
        moved = [*self.trainable_variables, *self.optimizer.variables]

        is_own = [id(variable) in own for variable in self.trainable_variables]
        # Clipped here already: what a search shortens would be clipped to the same length again and again.
        whole = [u * tf.cast(step.shrink, u.dtype) for u, mine in zip(updates, is_own, strict=True) if mine]
        clipped = iter(_keras.clip(natural, whole))
        planned = [next(clipped) if mine else u for u, mine in zip(updates, is_own, strict=True)]
        decays_first = natural.line_search is not None and bool(natural.weight_decay)

        def move(scale: tf.Tensor) -> None:
            scaled = [u * tf.cast(scale, u.dtype) if mine else u for u, mine in zip(planned, is_own, strict=True)]
            # A wrapper that scales losses divides by its scale what it is given.
            scaled = [self.optimizer.scale_loss(update) for update in scaled]
            natural.apply_direction(scaled, self.trainable_variables, through=self.optimizer, decayed=decays_first)

        def apply() -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            number = tf.identity(natural.iterations.value)
            start = loss
            if decays_first:
                # Decay is no part of what the search judges.
                natural.decay_weights([v for v, mine in zip(self.trainable_variables, is_own, strict=True) if mine])
                start = step.loss()
            if natural.line_search is not None:
                limit = None if natural.max_kl is None else natural.max_kl.value
                report = natural.line_search.run(step, move, moved, max_kl=limit, start=start)
            elif natural.adaptation is not None:
                report = take(step, move, start=start)
            else:
                move(tf.ones([], step.rate.dtype))
                report = None
            accepted = tf.constant(True) if report is None else report.accepted
            # Momentum restarts after a step that failed: damping that grows would turn the next one into the last.
            held = accepted if report is None else accepted & tf.equal(report.backtracks, 0)
            for slot, update in self._slots(natural, updates):
                slot.assign(tf.where(held, tf.cast(update, slot.dtype), tf.zeros_like(slot.value)))
            natural.rejected_steps.assign_add(tf.cast(~accepted, natural.rejected_steps.dtype))
            if natural.adaptation is not None:
                natural.damping.assign(natural.adaptation.after(natural.damping.value, number, report))
            return tf.constant(True), step.logs(report)

        def skip() -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            put_back()
            natural.skipped_steps.assign_add(1)
            return tf.constant(False), tf.nest.map_structure(tf.zeros_like, step.logs(nothing))

        judged = natural.line_search is not None or natural.adaptation is not None
        nothing = StepReport(*[tf.zeros([], loss.dtype)] * len(StepReport._fields)) if judged else None
        sound, logs = tf.cond(sound, apply, skip)
        if natural.line_search is not None:
            logs["rejected_steps"] = tf.convert_to_tensor(natural.rejected_steps.value)
        return sound, logs

    def _slots(self, natural: NaturalGradient, updates: list[tf.Tensor]) -> Iterator[tuple[keras.Variable, tf.Tensor]]:
        """Where the optimizer keeps the last direction, with the direction to keep."""
        if natural.last_direction:
            for variable, update in zip(self.trainable_variables, updates, strict=True):
                slot = _keras.slot_of(natural, natural.last_direction, variable)
                if slot is not None:
                    yield slot, update


@dataclasses.dataclass
class _Step:
    """A planned step and what it is judged by: the loss of its batch, with the dropout masks of its forward pass.

    Attributes:
        model: the model.
        direction: of the batch.
        x: the inputs.
        y: the labels.
        sample_weight: the weights, or `None`.
        outputs: of the model, before the step.
        shrink: the factor by which `max_kl` shortens the step.
        rate: the learning rate.
        kl_predicted: the KL divergence that the shortened step is predicted to cause, in nats.
    """

    model: Any
    direction: BatchDirection
    x: Any
    y: Any
    sample_weight: Any
    outputs: tf.Tensor
    shrink: tf.Tensor
    rate: tf.Tensor
    kl_predicted: tf.Tensor
    _now: tf.Tensor | None = None

    def loss(self) -> tf.Tensor:
        """The loss of the batch, regularisers included, at the weights of the moment."""
        batch = self.direction.fisher.batch_or_none
        training = batch is not None
        # Regularisers read their variables from the scope.
        state = [(v, tf.convert_to_tensor(v.value)) for v in self.model.trainable_variables]
        if training:
            moved = {id(v) for v, _ in state}
            state += [(v, value) for v, value in batch.snapshot if id(v) not in moved]
        with keras.StatelessScope(state_mapping=state):
            self._now = call_model(self.model, self.x, training)
            return self.model.compute_loss(
                x=self.x, y=self.y, y_pred=self._now, sample_weight=self.sample_weight, training=training
            )

    def kl(self) -> tf.Tensor:
        """`KL(before || now)`, weighted as the loss is, in nats."""
        likelihood = self.model._likelihood()
        pd = likelihood.distribution(self.outputs)
        weights = likelihood.weights(self.outputs, pd, self.sample_weight)
        kl = pd.kl(likelihood.distribution(self._now))
        return tf.reduce_sum(tf.cast(weights, kl.dtype) * kl)

    def predicted(self, scale: tf.Tensor) -> tf.Tensor:
        """The decrease that the quadratic model predicts, before clipping and weight decay."""
        return self.direction.predicted_decrease(scale * tf.cast(self.rate * self.shrink, scale.dtype))

    def logs(self, report: StepReport | None) -> dict[str, tf.Tensor]:
        """What the log shows of the step: predicted, and measured where it was judged."""
        if report is None:
            return {"kl": self.kl_predicted}
        names = ("predicted_decrease", "actual_decrease", "reduction_ratio", "kl")
        logs = {name: getattr(report, name) for name in names}
        return logs | {"step_scale": report.scale * tf.cast(self.shrink, report.scale.dtype)}


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


def _size_of_solve(info: Any) -> dict[str, tf.Tensor]:
    return {name: getattr(info, name) for name in ("rank", "iterations") if hasattr(info, name)}


def _refuse_training_mode(model: keras.Model) -> None:
    """Refuses micro-batches for a model that would have to be called in training mode."""
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


def _refuse_nonfinite(x: Any, y: Any, sample_weight: Any, finite: tf.Tensor) -> None:
    """Refuses a batch that is not finite, or whose step is not, by the name of what is to blame."""
    clean = tf.constant(True)
    for name, given in (("x", x), ("y", y), ("sample_weight", () if sample_weight is None else sample_weight)):
        own = _checks.is_finite(*map(tf.convert_to_tensor, tf.nest.flatten(given)))
        remedy = "Clean the batch, or leave such batches out with `on_nonfinite='skip'`."
        _checks.require(own, _checks.message(name, "NaN or infinite values", "finite values", remedy))
        clean &= own
    _checks.require(finite | ~clean, NOT_FINITE)


def _refuse_replicas(model: keras.Model) -> None:
    # Outside of the strategy's scope only the model knows.
    replicas = max(s.num_replicas_in_sync for s in (tf.distribute.get_strategy(), model.distribute_strategy))
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
