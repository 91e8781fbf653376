"""The choice of a way by a budget of gradients, and of memory."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from tf_natgrad.costs.machine import Machine
from tf_natgrad.costs.network import Network
from tf_natgrad.costs.ways import Prices, Way
from tf_natgrad.preconditioners._recipes import FEW_EXAMPLES

# Iterations of conjugate gradients below which their direction is hardly better than the gradient.
_FEWEST = 10
# Weights for each row of a batch's Fisher from which on K-FAC trained better in the same time (`docs/choosing.md`): few
# rows tell of few directions, and the exact step fits their noise.
_WEIGHTS_PER_ROW = 128
# The share of the free memory that a step may take.
_SHARE = 0.7


def ways_of(network: Network, machine: Machine, budget: float) -> list[Way]:
    """Returns all ways of taking a step, with their costs.

    Args:
        network: the model and the batch.
        machine: what they run on.
        budget: gradients that a step may take: conjugate gradients stop there.

    Returns:
        The exact ways first.
    """
    prices = Prices(network, machine)
    iterations = max(_FEWEST, prices.iterations(budget))
    return [
        prices.gram("exact"),
        prices.dense(),
        prices.conjugate_gradients(iterations),
        prices.gram("mc"),
        prices.kfac("quadratic"),
        prices.kfac("fixed"),
    ]


def choose(ways: Sequence[Way], network: Network, budget: float, memory: float, allowed: Collection[str]) -> Way:
    """Chooses the way of taking a step.

    The exact step where it is within the budget and the batch has rows enough for the number of weights; else K-FAC, by
    the recipe for the size of the batch; else the cheapest one. What takes too much memory, or does not exist, is left
    out.

    Args:
        ways: all of them.
        network: the model and the batch.
        budget: gradients that a step may take.
        memory: bytes that it may hold.
        allowed: the kinds of curvature among which to choose.

    Returns:
        One of the ways.
    """
    possible = [w for w in ways if not w.refusal and w.memory <= memory and w.fisher in allowed]
    # Conjugate gradients hold next to nothing, and always exist.
    possible = possible or [w for w in ways if w.solver == "cg"]
    within = [w for w in possible if w.gradients <= budget]
    rows = network.columns["exact"] * network.examples
    # Of a matrix of all weights there is no need where the Gram matrix is smaller.
    solvers = ("gram", "dense") if network.size < rows else ("gram",)
    solved = [w for w in within if w.fisher == "exact" and w.solver in solvers]
    recipe = "kfac, fixed" if network.examples < FEW_EXAMPLES else "kfac"
    averaged = [w for w in within if w.fisher == recipe]
    first, second = (averaged, solved) if network.size > _WEIGHTS_PER_ROW * rows else (solved, averaged)
    preferred = first or second or within or possible
    return min(preferred, key=lambda w: w.gradients)


def free_memory() -> float:
    """Returns how many bytes a step may hold: most of what is free on this host."""
    try:
        with open("/proc/meminfo") as file:
            sizes = dict(line.split(":") for line in file)
        free = 1024.0 * float(sizes["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        free = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES") / 2.0
    return _SHARE * free


__all__ = ["choose", "free_memory", "ways_of"]
