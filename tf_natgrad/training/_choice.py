"""The part of the optimizer that `fisher="auto"` leaves open until the first batch."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from tf_natgrad import _checks, _keras
from tf_natgrad.preconditioners import Preconditioner
from tf_natgrad.solvers import Auto, Solver
from tf_natgrad.steps import LevenbergMarquardt, LineSearch
from tf_natgrad.training._options import AUTO, preconditioner_of, with_recipe

_NO_STATE = (
    "The checkpoint has {} variables of the optimizer, which has {} with those of its preconditioner: it was saved "
    "with another `fisher`. The model's weights are loaded; averages, momentum and counts start anew."
)
# What may be chosen; a checkpoint has the number.
CHOICES: dict[str, Any] = {
    "exact": "exact",
    "mc": "mc",
    "kfac": {"name": "kfac", "recipe": "quadratic"},
    "kfac, fixed": {"name": "kfac", "recipe": "fixed"},
}


def left_open(fisher: Any) -> tuple[bool, str | None, Any]:
    """Reads the argument `fisher`.

    Args:
        fisher: as the user or a saved model gives it.

    Returns:
        Whether it is left to a choice, what was chosen before, and the argument to begin with.
    """
    if isinstance(fisher, str) and fisher == AUTO:
        return True, None, "exact"
    if isinstance(fisher, dict) and fisher.get("name") == AUTO:
        chosen = fisher.get("chosen")
        _checks.check_choice("fisher['chosen']", chosen, tuple(CHOICES))
        return True, chosen, "exact"
    return False, None, fisher


class Undecided(keras.optimizers.Optimizer):
    """What an optimizer needs whose `fisher` is decided at the first batch, and saved with the state."""

    preconditioner: Preconditioner | None
    fisher: Any
    solver: Solver
    adaptation: LevenbergMarquardt | None
    line_search: LineSearch | None
    # The arguments that are left to a recipe: as given, and as they were filled in.
    _options: tuple[dict[str, Any], dict[str, Any]]
    # The name of what was chosen; `None` before.
    chosen: str | None = None
    _is_open = False
    _code: keras.Variable | None = None
    _state: dict[str, np.ndarray] | None = None

    def _leave_open(self, chosen: str | None) -> None:
        """Leaves the choice to the first batch, or makes the one that was saved."""
        self._is_open = True
        self._code = self.add_variable((), initializer="zeros", dtype="int32", name="choice")
        if chosen is not None:
            self.settle(chosen)

    @property
    def is_undecided(self) -> bool:
        """Whether `fisher="auto"` waits for its first batch."""
        return self._is_open and self.chosen is None

    @property
    def choices(self) -> tuple[str, ...]:
        """What `fisher="auto"` may still become.

        What a checkpoint says; else the Fisher of the batch where numbers that belong to it were given, or anything.
        """
        code = int(self._code.numpy()) if self._state is None else int(self._state[self._key_of_code()])
        if code:
            return (tuple(CHOICES)[code - 1],)
        config = self.get_config()
        numbers = [config[name] for name in self._options[0]]
        beside = config["warm_start"] or config["micro_batch_size"] or self.use_ema
        free = numbers == [AUTO] * len(numbers) and not beside and isinstance(self.solver, Auto)
        return tuple(CHOICES) if free else ("exact",)

    def _key_of_code(self) -> str:
        return next(str(i) for i, v in enumerate(self.variables) if v is self._code)

    def settle(self, chosen: str) -> None:
        """Makes the choice: what was left to the recipe becomes that of the preconditioner.

        Args:
            chosen: the name of a choice.

        Raises:
            ValueError: if it is unknown, or there is nothing to choose.
        """
        _checks.check_choice("chosen", chosen, tuple(CHOICES))
        if not self.is_undecided:
            raise ValueError(
                _checks.message("chosen", chosen, "no choice", "`fisher` was given, or was chosen already.")
            )
        self.chosen = chosen
        self._code.assign(1 + list(CHOICES).index(chosen))
        preconditioner = preconditioner_of(CHOICES[chosen])
        self.fisher = CHOICES[chosen] if preconditioner is None else preconditioner
        if preconditioner is not None:
            self._adopt(preconditioner)

    def _adopt(self, preconditioner: Preconditioner) -> None:
        given, options, recipe = with_recipe(preconditioner, *self._options[0].values())
        left = {name for name, value in self.get_config().items() if isinstance(value, str) and value == AUTO}
        self.preconditioner = preconditioner
        self._options = given, options
        self.scales_directions = recipe.scales or recipe.momentum == "optimal"
        if "learning_rate" in left:
            self.learning_rate = recipe.learning_rate
        if "damping" in left:
            adapts = isinstance(recipe.damping, LevenbergMarquardt)
            self.adaptation = recipe.damping if adapts else None
            self._damping.assign(recipe.damping.initial if adapts else recipe.damping)
        if "momentum" in left:
            self.combines_directions = recipe.momentum == "optimal"
            if not self.combines_directions and recipe.momentum:
                self._momentum = self._add_number("momentum", recipe.momentum)
        if "max_kl" in left:
            if recipe.max_kl is None:
                self._max_kl = None
            else:
                self._max_kl.assign(recipe.max_kl)
        if "line_search" in left:
            self.line_search = recipe.line_search
        if self.built and (self.combines_directions or self._momentum is not None):
            self._last_direction = self.add_optimizer_variables(_keras.optimized_variables(self), "last_direction")

    def load_own_variables(self, store: Any) -> None:
        """Loads the state; of a preconditioner that is not chosen yet, once it is.

        Args:
            store: what Keras read.
        """
        given = len(store.keys())
        if self.is_undecided and given > len(self.variables):
            self._state = {key: np.array(store[key]) for key in store.keys()}  # noqa: SIM118  (an h5 group)
            return
        if self.preconditioner is not None and given < len(self.variables):
            warnings.warn(_NO_STATE.format(given, len(self.variables)), stacklevel=2)
            return
        super().load_own_variables(store)

    def finish_loading(self) -> None:
        """Loads the state that was read before the choice, now that its variables are there."""
        state, self._state = self._state, None
        if state is not None:
            self.load_own_variables(state)


__all__ = ["CHOICES", "Undecided", "left_open"]
