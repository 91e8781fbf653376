"""Ways of taking a step, with what each costs in gradients and in bytes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tf_natgrad.costs.machine import Machine
from tf_natgrad.costs.network import Network
from tf_natgrad.layers.work import Work
from tf_natgrad.preconditioners._recipes import RECIPES, enough

# What a pass takes, of what its operations would at the rates of large ones.
_PASS = 2.2
# A pass is a multiple of the forward pass: back to the weights, back to the layers' outputs, and forward along a
# tangent, which is the derivative of a backward pass.
_BACKWARD, _TO_OUTPUTS, _TANGENT = 2.0, 1.2, 3.0
# Nodes of an update of one variable by Keras, and of what every step does besides.
_UPDATE_NODES, _STEP_NODES = 12.0, 400.0
# Passes through the Gram matrix for its check, its solution and its norm.
_GRAM_PASSES = 14.0
# Arrays of its size that are held at once.
_GRAM_COPIES = 5.0
# Products with unit vectors that run at once where a matrix is formed by them.
_UNITS_AT_ONCE = 128.0


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of taking a step.

    Attributes:
        name: in words.
        fisher: which curvature: `"exact"`, `"mc"`, `"kfac"` or `"kfac, fixed"`.
        solver: `"gram"`, `"dense"`, `"cg"`; empty where nothing is solved for each batch.
        gradients: what a step takes, in gradients: forward and backward pass on the same batch, and update.
        seconds: the same on this machine.
        memory: bytes that are held beyond those of a gradient.
        detail: what decides the cost, in words.
        refusal: why there is no such step for this model, or empty.
        iterations: of conjugate gradients.
    """

    name: str
    fisher: str
    solver: str
    gradients: float
    seconds: float
    memory: float
    detail: str
    refusal: str = ""
    iterations: int = 0


class Prices:
    """What the passes of a network cost on a machine.

    Args:
        network: as shapes.
        machine: as rates.
    """

    def __init__(self, network: Network, machine: Machine):
        self._network, self._machine = network, machine
        updates = Work(bytes=4.0 * network.itemsize * network.size, nodes=_UPDATE_NODES * network.variables)
        self._update = updates.plus(Work(nodes=_STEP_NODES))
        self.gradient = machine.seconds(self._passes(1.0 + _BACKWARD).plus(self._update))

    def _passes(self, count: float) -> Work:
        return self._network.forward.times(_PASS * count)

    def _way(self, names: tuple[str, str, str], work: Work, solved: float, detail: str, **more: Any) -> Way:
        """A way of so much work, and seconds in which factors are decomposed."""
        seconds = self._machine.seconds(work) + solved
        return Way(*names, seconds / self.gradient, seconds, work.held, detail, **more)

    def gram(self, fisher: str) -> Way:
        """The exact step, or that of drawn labels, by the Gram matrix."""
        network = self._network
        columns = network.columns[fisher]
        rows = columns * network.examples
        name = f"{'exact' if fisher == 'exact' else 'Monte-Carlo'} Gram step"
        # Forward, back to the layers' outputs for each column, back for the solution, and the loss after the step.
        passes = 1.0 + _TO_OUTPUTS * columns + _BACKWARD + 1.0 + (2.0 * _TANGENT if fisher == "mc" else 0.0)
        square = network.itemsize * float(rows) ** 2
        work = self._passes(passes).plus(
            network.gram[fisher],
            self._update.times(1.5),
            Work(bytes=_GRAM_PASSES * square, nodes=300.0),
        )
        work = work._replace(held=network.gram[fisher].held + _GRAM_COPIES * square)
        solved = rows**3 / 3.0 / self._machine.cholesky
        refusal = network.refusals[fisher] or ""
        return self._way((name, fisher, "gram"), work, solved, f"{rows:,} rows", refusal=refusal)

    def dense(self) -> Way:
        """The exact step by the matrix of all weights."""
        network = self._network
        rows, size = network.columns["exact"] * network.examples, network.size
        # Products with all units, many at a time: of the rows of the factor, or of the matrix.
        count, passes = (rows, _BACKWARD) if rows <= size else (size, _TANGENT + _BACKWARD)
        every = self._passes(count * passes)
        every = every._replace(nodes=every.nodes / _UNITS_AT_ONCE, flops=every.flops + 2.0 * min(rows, size) * size**2)
        square = network.itemsize * float(size) ** 2
        work = every.plus(self._passes(1.0 + _BACKWARD + 1.0), self._update.times(1.5))
        work = work.plus(Work(bytes=20.0 * square, nodes=600.0))
        work = work._replace(held=4.0 * square)
        # All eigenvectors, at about the rate of a Cholesky decomposition.
        solved = 9.0 * size**3 / self._machine.cholesky
        return self._way(("exact dense step", "exact", "dense"), work, solved, f"{size:,} weights, {rows:,} rows")

    def iterations(self, budget: float) -> int:
        """How many iterations of conjugate gradients fit into so many gradients."""
        one = self._machine.seconds(self._iteration())
        rest = budget * self.gradient - self._machine.seconds(self._around())
        return max(0, math.floor(rest / one))

    def _iteration(self) -> Work:
        # A product forward and one back, and a few vectors.
        vectors = Work(bytes=12.0 * self._network.itemsize * self._network.size, nodes=40.0)
        return self._passes(_TANGENT + _BACKWARD).plus(vectors)

    def _around(self) -> Work:
        # The gradient, the residual at the end, the loss after the step.
        return self._passes(1.0 + _BACKWARD + 1.0).plus(self._iteration().times(1.0), self._update.times(1.5))

    def conjugate_gradients(self, iterations: int) -> Way:
        """The exact step as far as so many iterations go."""
        work = self._around().plus(self._iteration().times(iterations))
        work = work._replace(held=10.0 * self._network.itemsize * self._network.size)
        names = ("exact step by conjugate gradients", "exact", "cg")
        return self._way(names, work, 0.0, f"{iterations} iterations", iterations=iterations)

    def kfac(self, recipe: str) -> Way:
        """A step of K-FAC, with its share of the updates and inversions."""
        network, machine = self._network, self._machine
        options, upkeep = RECIPES[recipe]
        products = 2.0 * _TANGENT + 1.0 if options.scales else 0.0
        work = self._passes(1.0 + _BACKWARD + products).plus(self._update.times(2.0))
        updates, solved, held = self._passes(_TO_OUTPUTS).plus(network.diagonal_work), 0.0, 0.0
        for rows, columns, positions, is_table in network.factors:
            seen = min(network.examples * positions, enough(rows))
            sides = [columns] if is_table else [rows, columns]
            updates = updates.plus(*(Work(2.0 * seen * side**2, 0.0, 10.0) for side in sides))
            held += 2.0 * network.itemsize * sum(side**2 for side in sides)
            small = [side for side in sides if side <= upkeep.largest]
            large = [side for side in sides if side > upkeep.largest]
            flops = 2.0 * rows * columns * (sum(small) + 2.0 * upkeep.rank * len(large))
            work = work.plus(Work(flops, 4.0 * network.itemsize * rows * columns, 30.0))
            solved += sum(2.0 * side**3 / machine.cholesky for side in small)
            solved += sum(6.0 * side**2 * upkeep.rank / machine.product for side in large)
        work = work.plus(updates.times(1.0 / upkeep.update_every))._replace(held=held)
        names = (f"K-FAC step, recipe {recipe!r}", "kfac" if recipe == "quadratic" else f"kfac, {recipe}", "")
        detail = f"{len(network.factors)} layers, {network.diagonal:,} weights on the diagonal"
        return self._way(names, work, solved / upkeep.invert_every, detail, refusal=network.refusal or "")


__all__ = ["Prices", "Way"]
