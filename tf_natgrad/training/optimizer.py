"""The optimizer: hyper-parameters and state of natural gradient descent. It owns no model."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras, preconditioners
from tf_natgrad.preconditioners import Preconditioner
from tf_natgrad.solvers import Solver, get, to_config
from tf_natgrad.steps import LevenbergMarquardt, LineSearch
from tf_natgrad.training._beside import apply_beside
from tf_natgrad.training._choice import Undecided, left_open
from tf_natgrad.training._options import (
    AUTO,
    check_combinations,
    check_keras_options,
    check_numbers,
    check_preconditioned,
    check_relative,
    check_variables,
    left_to_recipe,
    option_of,
    preconditioner_of,
    with_recipe,
)


@keras.saving.register_keras_serializable(package="tf_natgrad")
class NaturalGradient(_keras.SeparateWeightDecay, _keras.SameOnAllReplicas, Undecided):
    """Natural gradient descent: `theta <- theta - learning_rate * (F + damping I)^-1 g`.

    `F` is the exact Fisher of the batch and `g` its gradient. The direction couples all weights, so it is formed by
    the model: compile it into a `NaturalGradientModel` (or what `natural_gradient_model` returns). A stock Keras
    model gives its optimizer plain gradients, which this one refuses.

    By default the damping adapts itself, a step is shortened to a KL divergence of 0.1 nats, and the loss of the batch
    is evaluated once more after the step, which is shortened or taken back where that rose. The plain update, each step
    whole and of one damping, is `NaturalGradient(0.7, damping=0.1, max_kl=None, line_search=None)`.

    >>> import keras, numpy as np, tf_natgrad as ng
    >>> model = ng.natural_gradient_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(ng.NaturalGradient(), loss)
    >>> history = model.fit(np.eye(3), np.array([0, 1, 1]), epochs=3, verbose=0)
    >>> history.history["loss"][-1] < history.history["loss"][0]
    True

    Args:
        learning_rate: a number, a `keras.optimizers.schedules.LearningRateSchedule` or a callable. Here and in four
            more arguments `"auto"` stands for what belongs to `fisher`: 0.7 for the Fisher of one batch.
        damping: a number >= 0, in the scale of the loss; 0 asks for the pseudo-inverse. Or a `LevenbergMarquardt`,
            which adapts it (`"auto"`, for one batch). A tracked variable: assign to `optimizer.damping` at any time.
        solver: `"auto"`, `"gram"`, `"cg"`, `"svd"`, `"cholesky"`, or a solver of `tf_natgrad.solvers`. `"auto"` is the
            most exact one whose step takes at most `budget` gradients, or the cheapest; `ng.explain` shows them all.
        fisher: `"auto"`, which is decided at the first batch by what a step would cost: `"exact"` where it is within
            the budget and there are at most 128 weights for each row of the batch's Fisher, else `"kfac"`. It is
            `"exact"` on several replicas, and where a solver, a rate, a damping or another number that belongs to it is
            given. `"exact"`, or `"mc"`: one label per example (for outputs `[N, T, C]`, one at each of its positions)
            is drawn from the model at each step. The Gram matrix is then of the size of the batch, whatever the number
            of outputs and positions: each example is one row, summed over its positions. The direction is scaled to the
            minimum of the damped quadratic model with the exact Fisher, which takes one more product with the Jacobian.
            Or `"kfac"`, `"ekfac"`, or one of `tf_natgrad.preconditioners`: curvature that is averaged over batches; of
            the object a new one with the same arguments is used, `optimizer.preconditioner`.
        momentum: for one batch (`"auto"`: 0) the multiple `mu` of the last direction `d` to which the damping pulls:
            `(F + damping I)^-1 (g + damping mu d)`, below 1. 0 for none. It needs a damping. Or `"optimal"`: the
            combination of this direction and the last one at which the damped quadratic model with the exact Fisher is
            minimal, for directions that are inexact (`fisher="mc"`, few iterations of conjugate gradients); it takes
            two products more with the Jacobian. With a preconditioner a number is that of heavy-ball momentum.
        warm_start: the multiple of the last direction from which conjugate gradients start; other solvers ignore it.
        max_kl: the KL divergence, in nats, that a step may be predicted to move the model's predictions; a longer step
            is shortened to it. With a line search the measured divergence is held to it as well. `None` for no limit.
            With heavy-ball momentum it holds for the new direction alone, before the momentum.
        line_search: a `LineSearch`, which evaluates the loss of the batch after the step, shortens a step that does not
            lower it, and takes back (weights and optimizer state, bit for bit) one that cannot be mended; those are
            counted in `optimizer.rejected_steps`. Weight decay is applied before it and stays. Beside other optimizers
            (`MultiOptimizer`) their part of a step is judged, and taken back, with it. `None` takes each step.
        micro_batch_size: examples that are linearised at once, where a batch does not fit in memory. The solver is then
            conjugate gradients, and the model may not have layers that behave otherwise in training. With the exact
            Fisher only.
        budget: gradients that a step may take where `solver="auto"` chooses. One gradient is a forward and a backward
            pass and the update of the weights.
        on_nonfinite: `"raise"` (an error, weights unchanged) or `"skip"` (the step is left out and counted in
            `optimizer.skipped_steps`) where a loss or direction is not finite.
        name: the optimizer's name.
        **kwargs: what every Keras optimizer takes: `weight_decay`, `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `ema_overwrite_frequency`. Clipping applies to the direction.

    Raises:
        ValueError: if a number is out of its range, or an option unknown or unsupported.
        TypeError: if `solver` is of the wrong type.

    References:
        S. Amari, "Natural gradient works efficiently in learning", Neural Computation 10 (1998), theorem 1.
        G. Goldshlager, N. Abrahamsen, L. Lin, "A Kaczmarz-inspired approach to accelerate the optimization of neural
        network wavefunctions", J. Comput. Phys. 516 (2024), algorithm 1 (`momentum`).
        J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML (2015),
        sections 6.4 and 7 (`fisher="mc"`, `momentum="optimal"`).
        J. Martens, "Deep learning via Hessian-free optimization", ICML (2010), section 4 (`warm_start`).
    """

    def __init__(
        self,
        learning_rate: Any = AUTO,
        damping: float | LevenbergMarquardt | dict | Literal["auto"] = AUTO,
        solver: str | Solver | dict = "auto",
        fisher: str | Preconditioner | dict = AUTO,
        momentum: float | Literal["optimal", "auto"] = AUTO,
        warm_start: float = 0.0,
        max_kl: float | Literal["auto"] | None = AUTO,
        line_search: LineSearch | dict | Literal["auto"] | None = AUTO,
        micro_batch_size: int | None = None,
        budget: float = 8.0,
        on_nonfinite: str = "raise",
        name: str = "natural_gradient",
        **kwargs: Any,
    ):
        check_keras_options(kwargs)
        is_open, chosen, fisher = left_open(fisher)
        preconditioner = preconditioner_of(fisher)
        given = (learning_rate, damping, momentum, max_kl, line_search)
        given, options, recipe = with_recipe(preconditioner, *given)
        learning_rate, damping, momentum, max_kl, line_search = options.values()
        adaptation = None
        if not isinstance(damping, numbers.Real) or isinstance(damping, bool):
            adaptation = option_of("damping", damping, LevenbergMarquardt)
            damping = adaptation.initial
        combines = isinstance(momentum, str)
        if combines:
            _checks.check_choice("momentum", momentum, ("optimal",))
            momentum = 0.0
        numbers_given = {"damping": damping, "momentum": momentum, "warm_start": warm_start, "max_kl": max_kl}
        check_numbers(**numbers_given, micro_batch_size=micro_batch_size)
        check_relative(adaptation, preconditioner)
        if preconditioner is not None:
            check_preconditioned(preconditioner, damping, solver, warm_start, micro_batch_size)
        _checks.check_number("budget", budget, minimum=0.0, exclusive=True)
        _checks.check_choice("on_nonfinite", on_nonfinite, ("raise", "skip"))
        check_combinations(combines, fisher, micro_batch_size, line_search, kwargs)
        # A schedule is callable; a dictionary is one as a saved model has it.
        if not callable(learning_rate) and not isinstance(learning_rate, dict):
            _checks.check_number("learning_rate", learning_rate, minimum=0.0, remedy="Or pass a schedule.")
            learning_rate = float(learning_rate)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.adaptation = adaptation
        self.solver = get(solver)
        self.preconditioner = preconditioner
        self.fisher = fisher if preconditioner is None else preconditioner
        self.scales_directions = recipe.scales or combines
        self._options = given, options
        self.line_search = option_of("line_search", line_search, LineSearch) if line_search is not None else None
        self.micro_batch_size = micro_batch_size
        self.combines_directions = combines
        self.on_nonfinite = on_nonfinite
        self._damping = self._add_number("damping", damping)
        self._momentum = self._add_number("momentum", momentum) if momentum else None
        self._warm_start = self._add_number("warm_start", warm_start) if warm_start else None
        self._max_kl = None if max_kl is None else self._add_number("max_kl", max_kl)
        self._skipped_steps = self.add_variable((), initializer="zeros", dtype="int32", name="skipped_steps")
        self._rejected_steps = self.add_variable((), initializer="zeros", dtype="int32", name="rejected_steps")
        self._last_direction: list[keras.Variable] = []
        self.budget = float(budget)
        if is_open:
            self._leave_open(chosen)

    def _add_number(self, name: str, value: float) -> keras.Variable:
        variable = self.add_variable((), initializer="zeros", dtype=keras.config.floatx(), name=name)
        # Keras's `Constant` would round to float32.
        variable.assign(value)
        return variable

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the state: with momentum or a warm start, the last direction.

        Args:
            variables: the trainable variables.
        """
        keeps_last = self.combines_directions or self._momentum is not None or self._warm_start is not None
        if not self.built and keeps_last:
            self._last_direction = self.add_optimizer_variables(variables, "last_direction")
        super().build(variables)

    @property
    def supports_jit(self) -> bool:
        """Whether XLA compiles the solver or preconditioner into something usable."""
        return (self.solver if self.preconditioner is None else self.preconditioner).supports_jit

    @property
    def damping(self) -> keras.Variable:
        """The damping, a scalar variable."""
        return self._damping

    @damping.setter
    def damping(self, value: float) -> None:
        _checks.check_number("damping", value, minimum=0.0)
        self._damping.assign(value)

    @property
    def momentum(self) -> keras.Variable | None:
        """The momentum, a scalar variable, or `None` where it is no number above 0."""
        return self._momentum

    @property
    def warm_start(self) -> keras.Variable | None:
        """The multiple of the last direction from which the solver starts, a scalar variable, or `None`."""
        return self._warm_start

    @property
    def max_kl(self) -> keras.Variable | None:
        """The limit of a step's KL divergence in nats, a scalar variable, or `None`."""
        return self._max_kl

    @property
    def last_direction(self) -> list[keras.Variable]:
        """The direction of the last step, one variable per weight; empty without momentum and warm start."""
        return self._last_direction

    @property
    def rejected_steps(self) -> keras.Variable:
        """How many steps the line search took back, a scalar integer variable."""
        return self._rejected_steps

    @property
    def skipped_steps(self) -> keras.Variable:
        """How many steps were left out, as something was not finite, a scalar integer variable.

        With `on_nonfinite="raise"` each of them was an error too.
        """
        return self._skipped_steps

    def apply_direction(
        self,
        direction: Sequence[tf.Tensor],
        variables: Sequence[keras.Variable],
        through: keras.optimizers.Optimizer | None = None,
        decayed: bool = False,
    ) -> None:
        """Moves the variables against a natural-gradient direction: clipping, weight decay, update, EMA.

        >>> import keras, tensorflow as tf
        >>> variable = keras.Variable([1.0, 2.0])
        >>> NaturalGradient(learning_rate=0.5).apply_direction([tf.constant([2.0, 2.0])], [variable])
        >>> variable.numpy().tolist()
        [0.0, 1.0]

        Args:
            direction: one tensor per variable.
            variables: the variables, in the same order.
            through: the optimizer that this one is part of (`MultiOptimizer`), if any. What belongs to the others there
                is given to them as their gradient.
            decayed: whether the weight decay of this step has been applied already.
        """
        _checks.check_flag("decayed", decayed)
        if through is not None:
            _checks.check_instance("through", through, keras.optimizers.Optimizer, "a Keras optimizer")
        variables = check_variables(variables)
        expected = f"{len(variables)} tensors, one for each variable"
        direction = _checks.as_list("direction", direction, expected)
        if len(direction) != len(variables):
            raise ValueError(_checks.message("direction", f"{len(direction)} tensors", expected))
        direction = [_checks.as_tensor("direction", d) for d in direction]
        for d, variable in zip(direction, variables, strict=True):
            if not d.shape.is_compatible_with(variable.shape):
                raise ValueError(
                    _checks.message("direction", f"shape {d.shape}", f"{tuple(variable.shape)}, as its variable")
                )
        pairs = list(zip(direction, variables, strict=True))
        if through is not None:
            if not through.built:
                through.build(variables)
            own = {id(v) for v in _keras.optimized_variables(self)}
            apply_beside(self, through, [(d, v) for d, v in pairs if id(v) not in own])
            pairs = [(d, v) for d, v in pairs if id(v) in own]
            _keras.count_step(through)
        variables = [v for _, v in pairs]
        if not decayed:
            self.decay(variables)
        # Keras divides by the scale of the loss, where there is one.
        super().apply([self.scale_loss(d) for d, _ in pairs], variables)

    def decay_weights(self, variables: Sequence[keras.Variable]) -> None:
        """Applies the weight decay of one step, which the next `apply_direction(..., decayed=True)` leaves out.

        Args:
            variables: the trainable variables.
        """
        self.decay(check_variables(variables))

    def apply(self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Refuses plain gradients; `apply_direction` is the way in.

        Args:
            grads: one tensor per variable.
            trainable_variables: the variables.

        Raises:
            ValueError: always. A stock Keras model gives its optimizer plain gradients.
        """
        raise ValueError(
            "`NaturalGradient` was given plain gradients. A stock Keras model cannot form natural gradients: wrap "
            "it with `tf_natgrad.natural_gradient_model(model)`, or build it as `tf_natgrad.NaturalGradientModel` "
            "or `NaturalGradientSequential`, and compile again. In a loop of your own call "
            "`tf_natgrad.natural_gradient` and `optimizer.apply_direction`."
        )

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Subtracts the scaled direction from one variable."""
        # Zeros leave the variable as it is, whatever the rate: a step that is left out need not be put back.
        step = tf.math.multiply_no_nan(tf.cast(learning_rate, variable.dtype), tf.cast(gradient, variable.dtype))
        self.assign_sub(variable, step)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the solver serialised; the damping as it is now, unless it adapts itself.

        What was left to the recipe, and not changed since, is `"auto"` again.
        """
        config = super().get_config() | {
            "damping": dataclasses.asdict(self.adaptation) if self.adaptation else float(self._damping.numpy()),
            "solver": to_config(self.solver),
            "fisher": self._fisher_config(),
            "momentum": "optimal" if self.combines_directions else _number(self._momentum),
            "warm_start": _number(self._warm_start),
            "max_kl": None if self._max_kl is None else float(self._max_kl.numpy()),
            "line_search": dataclasses.asdict(self.line_search) if self.line_search else None,
            "micro_batch_size": self.micro_batch_size,
            "budget": self.budget,
            "on_nonfinite": self.on_nonfinite,
        }
        return config | left_to_recipe(config, *self._options)

    def _fisher_config(self) -> Any:
        if self._is_open:
            return AUTO if self.chosen is None else {"name": AUTO, "chosen": self.chosen}
        return self.fisher if self.preconditioner is None else preconditioners.to_config(self.preconditioner)


def _number(variable: keras.Variable | None) -> float:
    return 0.0 if variable is None else float(variable.numpy())


__all__ = ["NaturalGradient"]
