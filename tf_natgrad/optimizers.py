"""The optimizer: hyper-parameters and state of natural gradient descent. It owns no model."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.solvers import Solver, get, to_config


@keras.saving.register_keras_serializable(package="tf_natgrad")
class NaturalGradient(keras.optimizers.Optimizer):
    """Natural gradient descent: `theta <- theta - learning_rate * (F + damping I)^-1 g`.

    `F` is the exact Fisher of the batch and `g` its gradient. The direction couples all weights, so it is formed by
    the model: compile it into a `NaturalGradientModel` (or what `natural_gradient_model` returns). A stock Keras
    model gives its optimizer plain gradients, which this one refuses.

    >>> import keras, numpy as np, tf_natgrad as ng
    >>> model = ng.natural_gradient_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(ng.NaturalGradient(0.7, damping=0.1), loss)
    >>> history = model.fit(np.eye(3), np.array([0, 1, 1]), epochs=3, verbose=0)
    >>> history.history["loss"][-1] < history.history["loss"][0]
    True

    Args:
        learning_rate: a number, a `keras.optimizers.schedules.LearningRateSchedule` or a callable. With a damping
            like the default's, 0.1 to 1.
        damping: a number >= 0, in the scale of the loss; 0 asks for the pseudo-inverse. A tracked variable: assign
            to `optimizer.damping` at any time.
        solver: `"auto"`, `"gram"`, `"cg"`, `"svd"`, or a solver of `tf_natgrad.solvers`.
        max_kl: the KL divergence, in nats, that a step may be predicted to move the model's predictions; a longer step
            is shortened to it. `None` for no limit. 0.1 tames the first steps of networks with BatchNorm and dropout.
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
    """

    def __init__(
        self,
        learning_rate: Any = 0.7,
        damping: float = 0.1,
        solver: str | Solver | dict = "auto",
        max_kl: float | None = None,
        on_nonfinite: str = "raise",
        name: str = "natural_gradient",
        **kwargs: Any,
    ):
        _checks.check_number("damping", damping, minimum=0.0)
        if max_kl is not None:
            _checks.check_number("max_kl", max_kl, minimum=0.0, exclusive=True)
        _checks.check_choice("on_nonfinite", on_nonfinite, ("raise", "skip"))
        if kwargs.get("gradient_accumulation_steps"):
            raise ValueError(
                _checks.message(
                    "gradient_accumulation_steps",
                    kwargs["gradient_accumulation_steps"],
                    "None",
                    "The Fisher of an accumulated batch is not the sum of what is accumulated; use a larger batch.",
                )
            )
        if isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, bool):
            _checks.check_number("learning_rate", learning_rate, minimum=0.0)
            learning_rate = float(learning_rate)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.solver = get(solver)
        self.max_kl = max_kl
        self.on_nonfinite = on_nonfinite
        self._damping = self.add_variable((), initializer="zeros", dtype=keras.config.floatx(), name="damping")
        # Keras's `Constant` would round to float32.
        self._damping.assign(damping)
        self._skipped_steps = self.add_variable((), initializer="zeros", dtype="int32", name="skipped_steps")
        self._takes_direction = False

    @property
    def damping(self) -> keras.Variable:
        """The damping, a scalar variable."""
        return self._damping

    @damping.setter
    def damping(self, value: float) -> None:
        _checks.check_number("damping", value, minimum=0.0)
        self._damping.assign(value)

    @property
    def skipped_steps(self) -> keras.Variable:
        """How many steps `on_nonfinite="skip"` left out, a scalar integer variable."""
        return self._skipped_steps

    def apply_direction(
        self,
        direction: Sequence[tf.Tensor],
        variables: Sequence[keras.Variable],
        through: keras.optimizers.Optimizer | None = None,
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
            through: the optimizer that wraps this one (for loss scales, or beside others), if any.
        """
        self._takes_direction = True
        try:
            (through or self).apply(direction, variables)
        finally:
            self._takes_direction = False

    def apply(self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Refuses plain gradients; `apply_direction` is the way in.

        Args:
            grads: one tensor per variable.
            trainable_variables: the variables.

        Raises:
            ValueError: if called with the plain gradients of a stock Keras model.
        """
        if not self._takes_direction:
            raise ValueError(
                "`NaturalGradient` was given plain gradients. A stock Keras model cannot form natural gradients: wrap "
                "it with `tf_natgrad.natural_gradient_model(model)`, or build it as `tf_natgrad.NaturalGradientModel` "
                "or `NaturalGradientSequential`, and compile again. In a loop of your own call "
                "`tf_natgrad.natural_gradient` and `optimizer.apply_direction`."
            )
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Subtracts the scaled direction from one variable."""
        self.assign_sub(variable, tf.cast(learning_rate, variable.dtype) * tf.cast(gradient, variable.dtype))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the solver serialised, the damping as it is now."""
        return super().get_config() | {
            "damping": float(self._damping),
            "solver": to_config(self.solver),
            "max_kl": self.max_kl,
            "on_nonfinite": self.on_nonfinite,
        }


__all__ = ["NaturalGradient"]
