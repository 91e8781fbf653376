"""The two recipes of training with Kronecker factors, as numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

from tf_natgrad.steps import LevenbergMarquardt, LineSearch


class Recipe(NamedTuple):
    """What `NaturalGradient` does where its arguments are left to the recipe.

    Attributes:
        learning_rate: the learning rate.
        damping: a number, or what adapts it.
        momentum: a number, or `"optimal"`.
        max_kl: the limit of a step's KL divergence in nats, or `None`.
        line_search: a line search, or `None`.
        scales: whether a direction is scaled to the minimum of the damped quadratic model with the exact Fisher.
    """

    learning_rate: float
    damping: Any
    momentum: float | str
    max_kl: float | None
    line_search: LineSearch | None
    scales: bool = False


# By name: the recipe, and how many steps lie between two updates of the factors, and of their inverses.
RECIPES: dict[str, tuple[Recipe, int, int]] = {
    "quadratic": (
        Recipe(1.0, LevenbergMarquardt(initial=3.0, relative=True), "optimal", None, LineSearch(), scales=True),
        5,
        20,
    ),
    "fixed": (Recipe(0.1, 0.01, 0.9, 5e-5, None), 10, 50),
}


__all__ = ["RECIPES", "Recipe"]
