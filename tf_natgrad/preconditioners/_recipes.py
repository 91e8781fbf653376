"""The two recipes of training with Kronecker factors, as numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

from tf_natgrad.steps import LevenbergMarquardt, LineSearch

# Examples below which the minimum of a batch's own quadratic model is mostly that of its noise.
FEW_EXAMPLES = 200


def enough(size: int) -> int:
    """The rows of one batch that are enough for the average of a factor of this size."""
    return max(2 * size, 2048)


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


class Upkeep(NamedTuple):
    """What is done for the factors where the arguments of `KFAC` are left to the recipe.

    Attributes:
        update_every: the number of steps between two updates of the averages.
        invert_every: the number of steps between two inversions.
        rank: the number of eigenpairs of the inverse of a large factor.
        largest: the size above which a factor is large.
    """

    update_every: int
    invert_every: int
    rank: int
    largest: int


RECIPES: dict[str, tuple[Recipe, Upkeep]] = {
    "quadratic": (
        Recipe(1.0, LevenbergMarquardt(initial=3.0, relative=True), "optimal", None, LineSearch(), scales=True),
        Upkeep(5, 20, rank=256, largest=2048),
    ),
    # At this damping few eigenvalues matter: dense inverses took as many steps, and a third more time.
    "fixed": (Recipe(0.1, 0.01, 0.9, 5e-5, None), Upkeep(10, 50, rank=64, largest=256)),
}


__all__ = ["FEW_EXAMPLES", "RECIPES", "Recipe", "Upkeep", "enough"]
