"""What is looked at of an optimizer's options."""

from __future__ import annotations

from typing import Any, Literal

import keras

from tf_natgrad import _checks, preconditioners
from tf_natgrad.preconditioners import Preconditioner
from tf_natgrad.preconditioners._recipes import Recipe
from tf_natgrad.solvers import Auto, get
from tf_natgrad.steps import LevenbergMarquardt, LineSearch

# What an argument is left to the recipe by.
AUTO: Literal["auto"] = "auto"
# The Fisher of one batch: its kinds, and what goes with it.
_KINDS = ("exact", "mc")
_OF_ONE_BATCH = Recipe(0.7, LevenbergMarquardt(), 0.0, 0.1, LineSearch())


def preconditioner_of(fisher: Any) -> Preconditioner | None:
    """The preconditioner that an argument stands for; `None` for the Fisher of one batch."""
    if isinstance(fisher, str):
        _checks.check_choice("fisher", fisher, (*_KINDS, *preconditioners.NAMES))
        return None if fisher in _KINDS else preconditioners.get(fisher)
    named = isinstance(fisher, dict) and isinstance(fisher.get("name"), str)
    if not named and not isinstance(fisher, Preconditioner):
        expected = "'exact', 'mc', or a preconditioner or its name"
        raise TypeError(_checks.message("fisher", type(fisher).__name__, expected))
    return preconditioners.get(fisher)


def with_recipe(preconditioner: Any, *arguments: Any) -> tuple[dict[str, Any], dict[str, Any], Recipe]:
    """Fills in what is left to the recipe.

    Args:
        preconditioner: of the optimizer, or `None` for the Fisher of one batch.
        *arguments: the first fields of a `Recipe` as the user gave them.

    Returns:
        The arguments by name, the same filled in, and the recipe.
    """
    given = dict(zip(Recipe._fields, arguments, strict=False))
    recipe = _OF_ONE_BATCH if preconditioner is None else preconditioner.recipe
    left = {name for name, value in given.items() if isinstance(value, str) and value == AUTO}
    return given, {name: getattr(recipe, name) if name in left else value for name, value in given.items()}, recipe


def left_to_recipe(config: dict[str, Any], given: dict[str, Any], resolved: dict[str, Any]) -> dict[str, str]:
    """Finds what of a configuration was left to the recipe and is as that gave it.

    Args:
        config: of the optimizer as it is now.
        given: the arguments.
        resolved: those that `with_recipe` returned.

    Returns:
        `"auto"` for each such name.
    """
    found = {}
    for name, value in given.items():
        if not isinstance(value, str) or value != AUTO:
            continue
        now, then = config[name], resolved[name]
        # A schedule that took the place of a number is no number any more.
        same = isinstance(now, float) == isinstance(then, float)
        if same and isinstance(now, float):
            same = abs(now - then) <= 1e-6 * abs(then)
        if same:
            found[name] = AUTO
    return found


def check_preconditioned(
    preconditioner: Any, damping: float, solver: Any, warm_start: float, micro_batch_size: int | None
) -> None:
    """Refuses options that belong to the system of one batch, beside curvature that outlives it."""
    beside = f"with `fisher={type(preconditioner).__name__}`"
    given = (
        ("solver", get(solver), Auto()),
        ("warm_start", warm_start, 0.0),
        ("micro_batch_size", micro_batch_size, None),
    )
    for name, value, neutral in given:
        if value != neutral:
            remedy = "No system is solved for each batch there."
            raise ValueError(_checks.message(name, f"{value!r} {beside}", repr(neutral), remedy))
    if damping == 0.0:
        raise ValueError(_checks.message("damping", f"0 {beside}", "a number above 0"))


def check_relative(adaptation: LevenbergMarquardt | None, preconditioner: Any) -> None:
    """Refuses a damping relative to eigenvalues that nothing estimates."""
    if adaptation is not None and adaptation.relative and preconditioner is None:
        remedy = "Give the damping itself as `initial`."
        raise ValueError(
            _checks.message("damping", "`relative=True` without a preconditioner", "`relative=False`", remedy)
        )


def check_numbers(
    damping: float, momentum: float, warm_start: float, max_kl: float | None, micro_batch_size: int | None
) -> None:
    """Refuses numbers that are out of their range."""
    for name, value in (("damping", damping), ("momentum", momentum), ("warm_start", warm_start)):
        _checks.check_number(name, value, minimum=0.0)
    if momentum >= 1.0:
        raise ValueError(_checks.message("momentum", momentum, "a number below 1"))
    if momentum and not damping:
        raise ValueError(
            _checks.message("momentum", momentum, "0 without damping", "Set a `damping` above 0: momentum acts by it.")
        )
    if max_kl is not None:
        _checks.check_number("max_kl", max_kl, minimum=0.0, exclusive=True)
    if micro_batch_size is not None:
        _checks.check_number("micro_batch_size", micro_batch_size, minimum=1, integer=True)


def check_keras_options(options: dict[str, Any]) -> None:
    """Refuses numbers and flags that Keras takes as they are and stumbles over in a step."""
    for name in ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm"):
        if options.get(name) is not None:
            _checks.check_number(name, options[name], minimum=0.0, exclusive=name != "weight_decay")
    if options.get("ema_overwrite_frequency") is not None:
        _checks.check_number("ema_overwrite_frequency", options["ema_overwrite_frequency"], minimum=1, integer=True)
    if options.get("gradient_accumulation_steps"):
        raise ValueError(
            _checks.message(
                "gradient_accumulation_steps",
                options["gradient_accumulation_steps"],
                "None",
                "The Fisher of an accumulated batch is not the sum of what is accumulated; use a larger batch.",
            )
        )
    if "use_ema" in options:
        _checks.check_flag("use_ema", options["use_ema"])
    if "ema_momentum" in options:
        _checks.check_number("ema_momentum", options["ema_momentum"], minimum=0.0)
        if options["ema_momentum"] > 1.0:
            raise ValueError(_checks.message("ema_momentum", options["ema_momentum"], "a number in [0, 1]"))


def check_combinations(
    combines_directions: bool, fisher: str, micro_batch_size: int | None, line_search: Any, options: dict[str, Any]
) -> None:
    """Refuses options that are each right and do not go together."""
    if micro_batch_size is not None and combines_directions:
        raise ValueError(
            _checks.message("momentum", "'optimal' with `micro_batch_size`", "a number", "Use `warm_start`.")
        )
    if micro_batch_size is not None and fisher == "mc":
        received = f"{micro_batch_size} with `fisher='mc'`"
        raise ValueError(_checks.message("micro_batch_size", received, "None, or `fisher='exact'`"))
    if options.get("ema_overwrite_frequency") and line_search is not None:
        raise ValueError(
            _checks.message(
                "ema_overwrite_frequency",
                options["ema_overwrite_frequency"],
                "None together with a line search, which would take the overwriting back",
                "Leave it out and take the average at the end, as Keras does, or pass `line_search=None`.",
            )
        )


def check_variables(variables: Any) -> list[keras.Variable]:
    """Refuses what is no list of Keras variables, and returns the list."""
    expected = "a list of Keras variables"
    variables = _checks.as_list("variables", variables, expected)
    for variable in variables:
        _checks.check_instance("variables", variable, keras.Variable, expected)
    return variables


def option_of(argument: str, value: Any, kind: type) -> Any:
    """An object of a class, from itself or from its fields as a saved model has them."""
    if isinstance(value, dict):
        _checks.check_fields(argument, value, kind)
        return kind(**value)
    if not isinstance(value, kind):
        expected = f"a `{kind.__name__}`" + (" or a number >= 0" if argument == "damping" else " or `None`")
        raise TypeError(_checks.message(argument, f"{value!r} ({type(value).__name__})", expected))
    return value


__all__ = [
    "AUTO",
    "check_combinations",
    "check_keras_options",
    "check_numbers",
    "check_preconditioned",
    "check_relative",
    "check_variables",
    "left_to_recipe",
    "option_of",
    "preconditioner_of",
    "with_recipe",
]
