"""What is looked at of an optimizer's options."""

from __future__ import annotations

from typing import Any

import keras

from tf_natgrad import _checks


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


__all__ = ["check_combinations", "check_keras_options", "check_variables", "option_of"]
