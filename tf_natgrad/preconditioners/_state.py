"""The state of a preconditioner: tensors in Keras variables, block by block."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from tf_natgrad import _conditions, _replicas
from tf_natgrad.layers.kronecker import Block
from tf_natgrad.preconditioners._blocks import BlockState
from tf_natgrad.preconditioners._inverses import Part
from tf_natgrad.preconditioners._records import State

_COUNTS = ("step", "updates")


class Storage:
    """The variables of all blocks that ever were; some of them are in use.

    Attributes:
        states: of the blocks in use.

    Args:
        name: the beginning of the names of the counts.
    """

    def __init__(self, name: str):
        self.states: list[BlockState] = []
        self._name = name
        self._counts: list[keras.Variable] = []
        # By the ids of a block's variables.
        self._kept: dict[tuple[int, ...], tuple[BlockState, list[keras.Variable]]] = {}
        self._used: list[keras.Variable] = []

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables."""
        return [*self._counts, *(v for _, variables in self._kept.values() for v in variables)]

    @property
    def steps(self) -> int:
        """How many steps were taken, as it is in the variables."""
        return int(self._counts[0].numpy())

    def use(
        self,
        blocks: list[Block],
        state_of: Callable[[Block], BlockState],
        dtype: tf.DType,
        make: Callable[..., keras.Variable] | None,
    ) -> None:
        """Takes these blocks into use; makes the variables of those that are new.

        Args:
            blocks: of the model.
            state_of: how the state of a block is kept.
            dtype: of the variables.
            make: makes a variable of `shape`, `initializer`, `dtype` and `name`.
        """
        make = make or _plain_variable
        if not self._counts:
            self._counts = [
                make((), initializer="zeros", dtype="int32", name=f"{self._name}_{name}") for name in _COUNTS
            ]
        self.states, self._used = [], list(self._counts)
        for block in blocks:
            key = tuple(map(id, block.variables))
            if key not in self._kept:
                state = state_of(block)
                made = [_made(make, block, part, dtype) for part in (*state.averages(), *state.inverses())]
                self._kept[key] = state, made
            state, variables = self._kept[key]
            self.states.append(state)
            self._used += variables

    def values(self) -> State:
        """Returns the state as it is in the variables."""
        step, updates, *rest = [tf.convert_to_tensor(v.value) for v in self._used]
        values = iter(rest)
        averages, inverses = [], []
        for state in self.states:
            averages.append([next(values) for _ in state.averages()])
            inverses.append([next(values) for _ in state.inverses()])
        return State(step, updates, averages, inverses)

    def keep(self, state: State, where: tf.Tensor | bool) -> None:
        """Puts a state into the variables where a condition holds."""
        where, counts = tf.convert_to_tensor(where), len(_COUNTS)
        for variable, value in zip(self._used[:counts], (state.step, state.updates), strict=True):
            variable.assign(tf.where(where, value, variable.value))
        if state.changed is False:
            return
        variables = self._used[counts:]
        values = tf.nest.flatten(list(zip(state.averages, state.inverses, strict=True)))

        def assign(values: list[tf.Tensor] = values) -> None:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

        if _replicas.several():
            # The variables of a strategy are not written inside a condition.
            before = [tf.convert_to_tensor(v.value) for v in variables]
            assign(_conditions.chosen(where & state.changed, values, before))
        else:
            # Most steps change no more than the counts; to write the rest anew takes long where layers are small.
            tf.cond(where & state.changed, assign, lambda: None)


def _plain_variable(
    shape: tuple, initializer: str | keras.initializers.Initializer, dtype: str, name: str
) -> keras.Variable:
    made = keras.initializers.get(initializer)
    return keras.Variable(made, shape=shape, dtype=dtype, trainable=False, name=name)


def _made(make: Callable[..., keras.Variable], block: Block, part: Part, dtype: tf.DType) -> keras.Variable:
    initializer = keras.initializers.Orthogonal(seed=0) if part.is_basis else "zeros"
    name = f"{block.variables[0].path}_{part.name}".replace("/", "_")
    return make(part.shape, initializer=initializer, dtype=dtype.name, name=name)


__all__ = ["Storage"]
