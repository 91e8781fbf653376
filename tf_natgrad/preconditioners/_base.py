"""Curvature that outlives a batch: its state in Keras variables, the phases of its update, and its product."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _conditions, _keras, _replicas
from tf_natgrad._conditions import Condition
from tf_natgrad._typing import LossLike, ModelLike, TensorLike, plain_python
from tf_natgrad.layers.kronecker import Block, Layout, calls_of_blocks, kronecker_sums
from tf_natgrad.layers.self_check import CAUSE
from tf_natgrad.operators import Fisher, Penalty
from tf_natgrad.operators.damped import positive_damping
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.preconditioners._blocks import BlockState, DiagonalState, Gradient
from tf_natgrad.preconditioners._gradients import calls_agree, gradients_of
from tf_natgrad.preconditioners._inverting import invert_all
from tf_natgrad.preconditioners._labels import columns_of
from tf_natgrad.preconditioners._recipes import Recipe, enough
from tf_natgrad.preconditioners._records import Phase, Preconditioned, PreconditionerInfo, State
from tf_natgrad.preconditioners._state import Storage

# The first steps at which inverses are made anew, before their period.
_EARLY = (1, 4, 16)
# Inversions between two looks at whether the layers' calls give the gradient.
_CHECK_EVERY = 10
_DISAGREES = _checks.message(
    "fisher",
    "a Kronecker-factored preconditioner, for a model in which the inputs of the layers and the gradients at their "
    f"outputs do not give the gradient of the weights: {CAUSE}",
    "a model whose weights act through the calls of their layers alone",
    "Use `fisher='exact'` with `solver='cg'`, or a first-order optimizer.",
)


class Preconditioner(abc.ABC):
    """An approximation of the inverse Fisher with running averages, for `NaturalGradient(fisher=...)`.

    Attributes:
        phase: what a step of several replicas does, which may not exchange in a branch; `None`: the graph decides.

    Args:
        options: the arguments of the constructor, for `get_config`.
    """

    # Whether XLA compiles it into something usable.
    supports_jit = True
    phase: Phase | None = None

    def __init__(self, options: dict[str, Any]):
        self._options = options
        self.ema: float = options["ema"]
        self.approximation: str = options["approximation"]
        self.fisher: str = options["fisher"]
        self.mc_samples: int = options["mc_samples"]
        self._layout: Layout | None = None
        self._storage = Storage(type(self).__name__.lower())

    @property
    @abc.abstractmethod
    def recipe(self) -> Recipe:
        """What `NaturalGradient` does where its arguments are left to the recipe."""

    @property
    @abc.abstractmethod
    def periods(self) -> tuple[int, int]:
        """The numbers of steps between two updates of the averages, and of the inverses."""

    @abc.abstractmethod
    def _state_of(self, block: Block) -> BlockState:
        """How the state of a block that is a matrix is kept."""

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return dict(self._options)

    @property
    def built(self) -> bool:
        """Whether the state exists."""
        return self._layout is not None

    @property
    def variables(self) -> list[keras.Variable]:
        """The state: counts of steps and updates, averages, inverses."""
        return self._storage.variables

    def build(
        self,
        model: ModelLike,
        variables: Sequence[keras.Variable] | None = None,
        add_variable: Callable[..., keras.Variable] | None = None,
    ) -> None:
        """Makes the state for a model; called again after layers were frozen or unfrozen, that of new layers.

        `NaturalGradient` does this by itself, when its model is compiled or first trained.

        Args:
            model: a built Keras model.
            variables: the trainable variables to be preconditioned; by default all of the model's.
            add_variable: makes a Keras variable of `shape`, `initializer`, `dtype` and `name`.

        Raises:
            ValueError: if a variable belongs to no layer of its own.
        """
        _checks.check_model("model", model)
        flat = FlatParameters(model.trainable_variables if variables is None else variables)
        layout = Layout.of(model, flat)
        self._storage.use(layout.blocks, self._any_state_of, flat.dtype, add_variable)
        self._layout = layout

    def _any_state_of(self, block: Block) -> BlockState:
        return DiagonalState(block) if block.matrix is None else self._state_of(block)

    def values(self) -> State:
        """Returns the state as it is in the variables."""
        if not self.built:
            raise ValueError(
                _checks.message(
                    type(self).__name__,
                    "one without state",
                    "one that was built",
                    "Call `build(model)`; for `fit`, compile a model that is built.",
                )
            )
        return self._storage.values()

    def keep(self, state: State, where: tf.Tensor | bool = True) -> None:
        """Puts a state into the variables.

        Args:
            state: what `advance` or `precondition` returned.
            where: a scalar boolean: if false, the variables stay as they are.
        """
        self._storage.keep(state, where)

    @plain_python
    def update(
        self,
        model: ModelLike,
        loss: LossLike,
        data: Any,
        damping: TensorLike,
        *,
        training: bool = True,
    ) -> PreconditionerInfo:
        """Lets a batch enter the running averages, if an update is due, for a training loop of one's own.

        Args:
            model: the model of `build`.
            loss: see `likelihood_of`.
            data: `(x, y)` or `(x, y, sample_weight)`.
            damping: a number > 0 or a scalar tensor, in the scale of the loss.
            training: the mode in which the model is called.

        Returns:
            A `PreconditionerInfo`.

        Raises:
            ValueError: if the batch does not fit, or `build` was not called.
        """
        values = self.values()
        damping = positive_damping(damping, self._layout.flat.dtype)
        fisher = Fisher(model, loss, data, training=training, variables=self._layout.flat.variables, record_calls=True)
        state, _, info, conditions = self.advance(values, fisher, damping, values.step)
        _conditions.judge(conditions)
        self.keep(state)
        return info

    @plain_python
    def solve(self, gradient: TensorLike, damping: TensorLike) -> tf.Tensor:
        """Computes the preconditioned gradient, for a training loop of one's own.

        Args:
            gradient: `[n]`, see `FlatParameters.flatten`.
            damping: of layers whose inverse is not kept with its damping; those of `damping_split="pi"` have that of
                the last inversion.

        Returns:
            `[n]`.

        Raises:
            ValueError: if `build` was not called, or a shape does not fit.
        """
        values = self.values()
        damping = positive_damping(damping, self._layout.flat.dtype)
        gradient = _checks.as_tensor("gradient", gradient, self._layout.flat.dtype)
        parts = [Gradient(part) for part in self._layout.split(gradient)]
        return self._layout.flat.flatten(self._solved(values, parts, damping)[0])

    def precondition(
        self,
        fisher: Fisher,
        y: TensorLike,
        damping: tf.Tensor,
        seed: int | tf.Tensor,
        relative: float | None = None,
    ) -> Preconditioned:
        """Computes the direction of a batch, as graph code, without assigning to a variable.

        Args:
            fisher: of the batch, with its calls recorded.
            y: the labels.
            damping: a scalar.
            seed: of the labels of `fisher="mc"`.
            relative: at the first step the damping is this multiple of the mean eigenvalue; `None`: it is `damping`.

        Returns:
            A `Preconditioned`.
        """
        state, damping, info, conditions = self.advance(self.values(), fisher, damping, seed, relative)
        direction, slope = self._solved(state, gradients_of(fisher, self._layout, self._storage.states, y), damping)
        return Preconditioned(direction, slope, damping, state, info, conditions)

    def advance(
        self,
        values: State,
        fisher: Fisher,
        damping: tf.Tensor,
        seed: int | tf.Tensor,
        relative: float | None = None,
    ) -> tuple[State, tf.Tensor, PreconditionerInfo, list[Condition]]:
        """Computes the state after a batch, as graph code, without assigning to a variable.

        Args:
            values: the state before.
            fisher: of the batch, with its calls recorded.
            damping: a scalar.
            seed: of the labels of `fisher="mc"`.
            relative: see `precondition`.

        Returns:
            The state, the damping, the report, and conditions on the batch.
        """
        # Refused before any branch is traced.
        calls_of_blocks(self._layout.blocks, fisher.batch.record, fisher.batch.linearization)
        update_due, invert_due = self._due(values.step)
        columns = columns_of(fisher, self.fisher, self.mc_samples, seed)
        old = [t for block in values.averages for t in block]

        def updated() -> tuple[list[tf.Tensor], tf.Tensor]:
            new = self._averages_of(fisher, columns())
            # What is not finite would never leave an average.
            finite = _conditions.is_finite(*new)
            share = 1.0 - tf.minimum(1.0 - 1.0 / tf.cast(values.updates + 1, fisher.dtype), self.ema)
            mixed = [o + share * (n - o) for o, n in zip(old, new, strict=True)]
            return _conditions.chosen(finite, mixed, old), values.updates + tf.cast(finite, values.updates.dtype)

        flat, updates = _replicas.cond(update_due, updated, lambda: (old, values.updates), _keras.seldom)
        averages = tf.nest.pack_sequence_as(values.averages, flat)
        if relative is not None:
            damping = tf.where(tf.equal(values.step, 0), relative * self._mean_eigenvalue(averages), damping)
        last = [t for block in values.inverses for t in block]

        def inverted() -> tuple[list[tf.Tensor], tf.Tensor]:
            dampings = [damping + share for share in self._shares()]
            return invert_all(self._storage.states, averages, values.inverses, dampings)

        flat, raised = _replicas.cond(invert_due, inverted, lambda: (last, tf.constant(0)), _keras.seldom)
        # Not `seldom`: what a function takes from the graph around it, a backward pass here, is computed at each step.
        check_due = self._check_due(values.step)
        agrees = _replicas.cond(check_due, lambda: calls_agree(fisher, self._layout), lambda: tf.constant(True))
        inverses = self._corrected(tf.nest.pack_sequence_as(values.inverses, flat), fisher, values.step, columns)
        was_due = map(tf.convert_to_tensor, (update_due, invert_due))
        info = PreconditionerInfo(type(self).__name__, *was_due, raised, self.describe())
        state = State(values.step + 1, updates, averages, inverses, changed=update_due)
        return state, damping, info, [Condition(agrees, _DISAGREES)]

    def _corrected(
        self, inverses: list[list[tf.Tensor]], fisher: Fisher, step: tf.Tensor, columns: Callable[[], tf.Tensor]
    ) -> list[list[tf.Tensor]]:
        """The inverses after a batch, for preconditioners that update them more often than they make them anew."""
        return inverses

    def describe(self) -> str:
        """Returns the form in which each layer's inverse is kept, in words."""
        pairs = zip(self._layout.blocks, self._storage.states, strict=True)
        return ", ".join(f"{block.variables[0].path}: {state.describe()}" for block, state in pairs)

    def _mean_eigenvalue(self, averages: list[list[tf.Tensor]]) -> tf.Tensor:
        traces = [state.trace(a) for state, a in zip(self._storage.states, averages, strict=True)]
        return tf.add_n(traces) / self._layout.flat.size

    def next_phase(self) -> Phase:
        """Returns what the next step is to do, by the number of steps so far."""
        step = tf.constant(self._storage.steps)
        return Phase(*(bool(due) for due in (*self._due(step), self._check_due(step))))

    def _due(self, step: tf.Tensor) -> tuple[tf.Tensor | bool, tf.Tensor | bool]:
        """Whether averages and inverses are to be updated: sooner at the start, where the weights move fast."""
        if self.phase is not None:
            return self.phase.update, self.phase.invert
        update, invert = self.periods
        invert_due = tf.equal(step % invert, 0) | tf.reduce_any(tf.equal(step, self._early()))
        update_due = tf.equal(step % update, 0)
        return update_due | invert_due, invert_due

    def _check_due(self, step: tf.Tensor) -> tf.Tensor | bool:
        """Whether the calls are to be looked at: rarely, as it costs more than a gradient."""
        if self.phase is not None:
            return self.phase.check
        rare = tf.equal(step % (_CHECK_EVERY * self.periods[1]), 0)
        # Weights that start at zero have moved by then.
        return rare | tf.equal(step, max(self._early(), default=0))

    def _early(self) -> list[int]:
        return [step for step in _EARLY if step < self.periods[1]]

    def _averages_of(self, fisher: Fisher, columns: tf.Tensor) -> list[tf.Tensor]:
        """What a batch contributes to the averages."""
        blocks, batch = self._layout.blocks, fisher.batch
        sums = kronecker_sums(
            blocks, batch.record, batch.linearization, columns, batch.weights, self.approximation, _enough
        )
        parts = iter(_replicas.total(sums))
        return [t for state in self._storage.states for t in state.of_sums(parts)]

    def _shares(self) -> list[float]:
        """What weight regularisers add to the damping of each block."""
        flat = self._layout.flat
        constants = Penalty(flat).diagonal_by_variable() or [0.0] * len(flat.variables)
        by_variable = dict(zip(map(id, flat.variables), constants, strict=True))
        return [max(by_variable[id(v)] for v in block.variables) for block in self._layout.blocks]

    def _solved(
        self, values: State, gradients: list[Gradient], damping: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        parts, slopes = [], []
        given = zip(self._storage.states, gradients, values.averages, values.inverses, self._shares(), strict=True)
        for state, gradient, averages, inverses, share in given:
            d, slope = state.solve(gradient, averages, inverses, damping + share)
            parts.append(d)
            slopes.append(slope)
        return self._layout.pieces(parts), tf.add_n(slopes)


def _enough(size: int) -> int:
    """The rows of one batch that are enough for the average of a factor of this size; each replica adds its share."""
    return -(-enough(size) // _replicas.count())


__all__ = ["Preconditioner"]
