"""The differential equations that `pde.py` solves: networks, points, residuals, and solutions in closed form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Points on which the error is taken.
TESTS = 4_000
# Points a side of the pictures.
GRID = 41


@dataclasses.dataclass(frozen=True)
class Equation:
    """An equation on a box, with the network that is to solve it.

    Attributes:
        title: for people.
        widths: of the network's layers: coordinates, hidden tanh units, one output.
        box: the lowest and the highest value of each coordinate.
        exact: the solution, `[N, d]` to `[N, 1]`.
        residuals: makes the terms, by name, of the unknown coefficient (a layer, or `None`).
        counts: points of each term.
        draw: of a generator and the counts, the points of each term.
        weights: of the terms in the sum of squares.
        budget: seconds.
        coordinates: their names.
        coefficient: the true number and where it starts, for an inverse problem.
    """

    title: str
    widths: tuple[int, ...]
    box: tuple[tuple[float, float], ...]
    exact: Callable[[np.ndarray], np.ndarray]
    residuals: Callable[[Any], dict[str, Callable]]
    counts: dict[str, int]
    draw: Callable[[Equation, np.random.Generator], dict[str, np.ndarray]]
    weights: dict[str, float]
    budget: float
    coordinates: tuple[str, ...] = ("x", "y")
    coefficient: tuple[float, float] | None = None

    @property
    def in_plane(self) -> bool:
        """Whether there are two coordinates."""
        return len(self.box) == 2

    def network(self):
        """A network with the weights that Keras's global seed decides."""
        import keras

        first, *hidden, last = self.widths
        layers = [keras.layers.Dense(width, "tanh") for width in hidden]
        return keras.Sequential([keras.Input((first,)), *layers, keras.layers.Dense(last)])

    def unknown(self):
        """The layer of the unknown coefficient, or `None`."""
        import tf_natgrad as ng

        return None if self.coefficient is None else ng.pde.Coefficient(self.coefficient[1])

    def terms(self, unknown: Any) -> dict[str, Callable]:
        """The residuals by name."""
        return self.residuals(unknown)

    def points(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """The points of each term."""
        return self.draw(self, generator)

    def inside(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Uniformly drawn points of the box, `[count, d]`."""
        low, high = np.array(self.box).T
        return low + (high - low) * generator.random((count, len(self.box)))

    def on_sides(
        self, generator: np.random.Generator, count: int, sides: list[tuple[int, int]] | None = None
    ) -> np.ndarray:
        """Uniformly drawn points of the boundary, as many on each side.

        Args:
            generator: of random numbers.
            count: of points, a multiple of the number of sides.
            sides: pairs of a coordinate and 0 for its lowest, 1 for its highest value; by default all.

        Returns:
            `[count, d]`.
        """
        sides = [(axis, end) for axis in range(len(self.box)) for end in (0, 1)] if sides is None else sides
        points = self.inside(generator, count).reshape(len(sides), -1, len(self.box))
        for own, (axis, end) in zip(points, sides, strict=True):
            own[:, axis] = self.box[axis][end]
        return points.reshape(-1, len(self.box))

    def tests(self) -> tuple[np.ndarray, np.ndarray]:
        """Points for the error, and the solution there."""
        x = self.inside(np.random.default_rng(12345), TESTS)
        return x, self.exact(x)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """A grid for pictures in the plane, and the solution there."""
        axes = np.meshgrid(*(np.linspace(*ends, GRID) for ends in self.box), indexing="ij")
        x = np.stack([axis.ravel() for axis in axes], -1)
        return x, self.exact(x)


def _poisson_terms(source: Callable, exact: Callable) -> Callable[[Any], dict[str, Callable]]:
    def residuals(unknown: Any) -> dict[str, Callable]:
        import tf_natgrad as ng

        del unknown
        return {
            "inside": lambda u, x: ng.pde.laplacian(u, x)[2] + source(x),
            "boundary": lambda u, x: u(x) - exact(x),
        }

    return residuals


def _everywhere(equation: Equation, generator: np.random.Generator) -> dict[str, np.ndarray]:
    counts = equation.counts
    return {
        "inside": equation.inside(generator, counts["inside"]),
        "boundary": equation.on_sides(generator, counts["boundary"]),
    }


def _sines(x):
    """`sin(pi x) sin(pi y)`, of arrays and tensors."""
    import keras

    return keras.ops.sin(math.pi * x[:, :1]) * keras.ops.sin(math.pi * x[:, 1:])


def _sines_exact(x: np.ndarray) -> np.ndarray:
    return np.sin(math.pi * x[:, :1]) * np.sin(math.pi * x[:, 1:])


def _cosines(x):
    """`sum_i cos(pi x_i)`, of tensors."""
    import keras

    return keras.ops.sum(keras.ops.cos(math.pi * x), -1, keepdims=True)


# --- Heat: u_t = k u_xx on x in [0, 1], t in [0, 1]; u(x, 0) = sin(pi x), zero at the ends.
DIFFUSIVITY = 0.25


def _heat_exact(x: np.ndarray) -> np.ndarray:
    return np.sin(math.pi * x[:, :1]) * np.exp(-DIFFUSIVITY * math.pi**2 * x[:, 1:])


def _heat_terms(unknown: Any) -> dict[str, Callable]:
    import keras

    import tf_natgrad as ng

    def inside(u, x):
        d = ng.pde.derivatives(u, x, [(1,), (0, 0)])
        k = DIFFUSIVITY if unknown is None else unknown(x)
        return d[1,] - k * d[0, 0]

    # Zero at the ends, too.
    terms = {"inside": inside, "start": lambda u, x: u(x) - keras.ops.sin(math.pi * x[:, :1])}
    if unknown is None:
        return terms | {"ends": lambda u, x: u(x)}

    def data(u, x):
        return u(x) - keras.ops.sin(math.pi * x[:, :1]) * keras.ops.exp(-DIFFUSIVITY * math.pi**2 * x[:, 1:])

    return {"inside": inside, "data": data}


def _heat_points(equation: Equation, generator: np.random.Generator) -> dict[str, np.ndarray]:
    counts = equation.counts
    found = {"inside": equation.inside(generator, counts["inside"])}
    if "data" in counts:
        return found | {"data": equation.inside(generator, counts["data"])}
    found["start"] = equation.on_sides(generator, counts["start"], [(1, 0)])
    return found | {"ends": equation.on_sides(generator, counts["ends"], [(0, 0), (0, 1)])}


# --- Burgers: u_t + u u_x = nu u_xx, a front that travels: u = c - a tanh(a (x - c t) / (2 nu)).
VISCOSITY, SPEED, HEIGHT = 0.05, 0.5, 0.5


def _burgers_exact(x: np.ndarray) -> np.ndarray:
    return SPEED - HEIGHT * np.tanh(HEIGHT * (x[:, :1] - SPEED * x[:, 1:]) / (2.0 * VISCOSITY))


def _burgers_terms(unknown: Any) -> dict[str, Callable]:
    import keras

    import tf_natgrad as ng

    del unknown

    def inside(u, x):
        d = ng.pde.derivatives(u, x, [(), (0,), (1,), (0, 0)])
        return d[1,] + d[()] * d[0,] - VISCOSITY * d[0, 0]

    def boundary(u, x):
        front = keras.ops.tanh(HEIGHT * (x[:, :1] - SPEED * x[:, 1:]) / (2.0 * VISCOSITY))
        return u(x) - (SPEED - HEIGHT * front)

    return {"inside": inside, "boundary": boundary}


def _burgers_points(equation: Equation, generator: np.random.Generator) -> dict[str, np.ndarray]:
    counts = equation.counts
    found = {"inside": equation.inside(generator, counts["inside"])}
    # The start and both ends, not the end of time.
    return found | {"boundary": equation.on_sides(generator, counts["boundary"], [(1, 0), (0, 0), (0, 1)])}


_SQUARE = ((0.0, 1.0), (0.0, 1.0))
_POISSON: dict[str, Any] = {
    "box": _SQUARE,
    "exact": _sines_exact,
    "residuals": _poisson_terms(lambda x: 2.0 * math.pi**2 * _sines(x), _sines),
    "counts": {"inside": 900, "boundary": 120},
    "draw": _everywhere,
    # The source is of the order of 2 pi^2: its square is some hundreds.
    "weights": {"boundary": 100.0},
}
EQUATIONS: dict[str, Equation] = {
    "poisson": Equation("Poisson, 2-32-1", (2, 32, 1), **_POISSON, budget=30.0),
    "poisson_wide": Equation("Poisson, 2-64-64-1", (2, 64, 64, 1), **_POISSON, budget=30.0),
    "heat": Equation(
        "heat, 2-64-1",
        (2, 64, 1),
        _SQUARE,
        _heat_exact,
        _heat_terms,
        {"inside": 900, "start": 60, "ends": 60},
        _heat_points,
        {"start": 10.0, "ends": 10.0},
        30.0,
        ("x", "t"),
    ),
    "poisson5": Equation(
        "Poisson in 5 dimensions, 5-64-64-48-48-1",
        (5, 64, 64, 48, 48, 1),
        ((0.0, 1.0),) * 5,
        lambda x: np.cos(math.pi * x).sum(-1, keepdims=True),
        _poisson_terms(lambda x: math.pi**2 * _cosines(x), _cosines),
        {"inside": 1_000, "boundary": 250},
        _everywhere,
        {"boundary": 100.0},
        60.0,
        tuple("abcde"),
    ),
    "burgers": Equation(
        "Burgers (a travelling front), 2-32-32-1",
        (2, 32, 32, 1),
        ((-1.0, 1.0), (0.0, 1.0)),
        _burgers_exact,
        _burgers_terms,
        {"inside": 900, "boundary": 120},
        _burgers_points,
        {"boundary": 10.0},
        30.0,
        ("x", "t"),
    ),
    "inverse": Equation(
        "heat with unknown diffusivity, 2-32-1",
        (2, 32, 1),
        _SQUARE,
        _heat_exact,
        _heat_terms,
        {"inside": 600, "data": 200},
        _heat_points,
        {"data": 10.0},
        20.0,
        ("x", "t"),
        (DIFFUSIVITY, 1.0),
    ),
}


__all__ = ["EQUATIONS", "Equation"]
