"""The settings of the agents: one frozen dataclass, and the settings that each algorithm fixes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from tf_natgrad import _checks
from tf_natgrad.rl.advantages import check_gae_lambda
from tf_natgrad.rl.episodes import check_gamma
from tf_natgrad.steps import LineSearch

_CHECK = "check"


def _number(default: float, minimum: float, *, exclusive: bool = False, below: float | None = None) -> Any:
    """A field for a number in a range; an integer where the default is one."""
    integer = isinstance(default, int)

    def checked(name: str, value: Any) -> float:
        _checks.check_number(name, value, minimum=minimum, exclusive=exclusive, integer=integer)
        if below is not None and value >= below:
            raise ValueError(_checks.message(name, value, f"a number below {below:g}"))
        return type(default)(value)

    return dataclasses.field(default=default, metadata={_CHECK: checked})


def _factor(default: float, check: Callable[[float], None]) -> Any:
    """A field for a number in [0, 1], with a check that names it."""

    def checked(name: str, value: Any) -> float:
        check(value)
        return float(value)

    return dataclasses.field(default=default, metadata={_CHECK: checked})


def _flag(default: bool) -> Any:
    """A field for `True` or `False`."""

    def checked(name: str, value: Any) -> bool:
        _checks.check_flag(name, value)
        return bool(value)

    return dataclasses.field(default=default, metadata={_CHECK: checked})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrustRegionSettings:
    """The numbers and choices of a natural-gradient agent, each checked by its name.

    >>> TrustRegionSettings(n_steps=512).target_kl
    0.01

    Args:
        learning_rate: of Adam, for the value function.
        n_steps: steps of each environment in an update.
        batch_size: of the regression of the value function.
        gamma: the discount factor, in [0, 1].
        cg_max_steps: the largest number of conjugate gradient iterations.
        cg_damping: the number added to the diagonal of the Fisher matrix.
        n_critic_updates: epochs of the regression in an update.
        gae_lambda: of the advantages: from 0 (TD errors) to 1 (returns).
        normalize_advantage: whether advantages are shifted to mean 0 and divided by their standard deviation.
        target_kl: of one update, in nats, mean over the observations.
        sub_sampling_factor: k, where the Fisher matrix uses each k-th observation only.
        n_envs: the number of environments that run side by side in one process.
        normalize_observations: whether the networks see observations less their running mean, over their running
            standard deviation.
        normalize_rewards: whether rewards are divided by the running standard deviation of discounted returns.
        line_search_shrinking_factor: the factor by which a step is shortened, below 1.
        line_search_max_iter: the largest number of lengths that are tried; 1 takes or rejects the whole step.
        limit_kl: whether a step is rejected if its measured KL divergence is above `target_kl`.
        seed: of weights, environments, actions and shuffles; a non-negative integer.

    Raises:
        TypeError: if a field is of the wrong type.
        ValueError: if a field is out of range.
    """

    learning_rate: float = _number(1e-3, 0.0, exclusive=True)
    n_steps: int = _number(2048, 1)
    batch_size: int = _number(128, 1)
    gamma: float = _factor(0.99, check_gamma)
    cg_max_steps: int = _number(15, 1)
    cg_damping: float = _number(0.1, 0.0)
    n_critic_updates: int = _number(10, 1)
    gae_lambda: float = _factor(0.95, check_gae_lambda)
    normalize_advantage: bool = _flag(True)
    target_kl: float = _number(0.01, 0.0, exclusive=True)
    sub_sampling_factor: int = _number(1, 1)
    n_envs: int = _number(1, 1)
    normalize_observations: bool = _flag(False)
    normalize_rewards: bool = _flag(False)
    line_search_shrinking_factor: float = _number(0.8, 0.0, exclusive=True, below=1.0)
    line_search_max_iter: int = _number(10, 1)
    limit_kl: bool = _flag(True)
    seed: int = _number(0, 0)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = field.metadata[_CHECK](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.sub_sampling_factor > self.steps_per_update:
            raise ValueError(
                _checks.message(
                    "sub_sampling_factor",
                    self.sub_sampling_factor,
                    f"at most {self.steps_per_update}, the observations of an update",
                )
            )

    @property
    def steps_per_update(self) -> int:
        """The number of environment steps in an update, over all environments."""
        return self.n_steps * self.n_envs

    @property
    def line_search(self) -> LineSearch:
        """The search that accepts, shortens or rejects a step."""
        return LineSearch(
            max_backtracks=self.line_search_max_iter - 1,
            shrink=self.line_search_shrinking_factor,
        )

    @property
    def max_kl(self) -> float | None:
        """The limit of the measured KL divergence, in nats; `None` for no limit."""
        return self.target_kl if self.limit_kl else None


FIELDS = {field.name: field for field in dataclasses.fields(TrustRegionSettings)}


class Preset:
    """The settings that an algorithm fixes; its users choose the others.

    >>> Preset(limit_kl=False).settings({"n_steps": 8}).max_kl is None
    True

    Args:
        **fixed: values of fields of `TrustRegionSettings`.
    """

    def __init__(self, **fixed: Any):
        self.fixed = fixed
        self.names = tuple(name for name in FIELDS if name not in fixed)

    def settings(self, chosen: dict[str, Any]) -> TrustRegionSettings:
        """Checks the settings that a user chose, and adds the fixed ones.

        Args:
            chosen: by name.

        Returns:
            The settings.

        Raises:
            TypeError: if there is no such setting, or a value is of the wrong type.
            ValueError: if a value is out of range.
        """
        for name, value in chosen.items():
            if name not in self.names:
                received = f"{_checks.described(value)} as an argument of this name"
                raise TypeError(_checks.message(name, received, f"one of {', '.join(self.names)}"))
        return TrustRegionSettings(**chosen, **self.fixed)

    def chosen(self, settings: TrustRegionSettings) -> dict[str, Any]:
        """The settings that are not fixed, by name: `settings` makes the same ones of them again."""
        return {name: getattr(settings, name) for name in self.names}

    def signed(self, init: Callable) -> Callable:
        """Names the settings, with their defaults, in the signature of a constructor that takes them as `**settings`.

        Args:
            init: the constructor.

        Returns:
            The same function.
        """
        signature = inspect.signature(init)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        named = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for name, field in FIELDS.items()
            if name in self.names
        ]
        init.__signature__ = signature.replace(parameters=[*own, *named])
        return init


# The natural policy gradient takes a step as it is; TRPO shortens it until it is within the trust region.
WHOLE_STEPS = Preset(limit_kl=False, line_search_max_iter=1, line_search_shrinking_factor=0.8)
TRUST_REGION = Preset(limit_kl=True)

__all__ = ["FIELDS", "TRUST_REGION", "WHOLE_STEPS", "Preset", "TrustRegionSettings"]
