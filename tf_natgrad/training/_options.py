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
    if "use_ema" in options:
        _checks.check_flag("use_ema", options["use_ema"])
    if "ema_momentum" in options:
        _checks.check_number("ema_momentum", options["ema_momentum"], minimum=0.0)
        if options["ema_momentum"] > 1.0:
            raise ValueError(_checks.message("ema_momentum", options["ema_momentum"], "a number in [0, 1]"))


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


__all__ = ["check_keras_options", "check_variables", "option_of"]
