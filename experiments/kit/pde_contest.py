"""A contestant of `pde.py` on an equation: its network, points, loss and gradient, and the clock."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from kit.equations import EQUATIONS
from kit.pde_results import KEY_COLUMNS, SOLUTION_COLUMNS
from kit.runs import KeyedRun


@dataclasses.dataclass(frozen=True)
class Run(KeyedRun):
    """One training run; its fields are the key columns.

    Attributes:
        problem: a key of `EQUATIONS`.
        contestant: a key of `NAMES`.
        setting: Adam's learning rate, or nothing.
        seed: of weights and points.
        budget: seconds.
        threads: of TensorFlow.
    """

    key_columns = KEY_COLUMNS
    problem: str
    contestant: str
    setting: float | None
    seed: int
    budget: float
    threads: int


class Clock:
    """Seconds of training, evaluation left out, and when the next evaluation is due: later and later.

    Args:
        budget: seconds.
    """

    def __init__(self, budget: float):
        self.budget, self.seconds = budget, 0.0
        self._due = budget / 1000.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Counts what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.seconds >= self.budget

    @property
    def is_due(self) -> bool:
        """Whether to evaluate now; asked once, it is due again a tenth of the time so far later."""
        if self.seconds < self._due and not self.is_over:
            return False
        self._due = max(1.1 * self.seconds, self.seconds + self.budget / 1000.0)
        return True


class Contest:
    """A contestant on an equation, traced and ready to start.

    Args:
        run: which one.
    """

    def __init__(self, run: Run):
        import keras
        import tensorflow as tf

        import tf_natgrad as ng
        from tf_natgrad.parameters import FlatParameters

        self.run, self.equation = run, EQUATIONS[run.problem]
        keras.utils.set_random_seed(run.seed)
        self.network, self.unknown = self.equation.network(), self.equation.unknown()
        beside = [] if self.unknown is None else [self.unknown]
        self.model = ng.pde.ResidualModel(
            self.network, self.equation.terms(self.unknown), self.equation.weights, coefficients=beside
        )
        points = self.equation.points(np.random.default_rng(run.seed))
        self.batch = next(iter(self.model.batches(points)))
        self.model.compile(ng.pde.natural_gradient(), "mse")
        self.model(self.batch[0])
        self.variables = self.model.trainable_variables
        self.model.optimizer.build(self.variables)
        self.flat = FlatParameters(self.variables)
        self._tests = self.equation.tests()
        self._outputs = tf.function(lambda x: self.network(x))
        self.error()

    def error(self) -> float:
        """The relative L2 error of the solution."""
        x, exact = self._tests
        return float(np.linalg.norm(self._outputs(x).numpy() - exact) / np.linalg.norm(exact))

    def coefficient(self) -> float | None:
        """The unknown number of the equation as it is now, if there is one."""
        return None if self.unknown is None else float(self.unknown.number.numpy())

    def loss(self):
        """The weighted sum of squares, a scalar tensor."""
        import tensorflow as tf

        inputs, _, weights = self.batch
        return tf.reduce_mean(weights * tf.reduce_mean(tf.square(self.model(inputs)), -1))

    def value_and_gradient(self):
        """A compiled function of all weights in one vector, which it assigns: loss and gradient."""
        import tensorflow as tf

        @tf.function(autograph=False, jit_compile=True)
        def compiled():
            with tf.GradientTape() as tape:
                value = self.loss()
            return value, self.flat.flatten(tape.gradient(value, [v.value for v in self.variables]))

        def of(vector):
            self.flat.assign(vector)
            return compiled()

        return of


def solution_rows(contest: Contest) -> list[dict[str, Any]]:
    """The solution on a grid, for equations in the plane."""
    x, exact = contest.equation.grid()
    found = contest.network(x).numpy()
    # Six digits of both would not tell their difference.
    columns = zip(x[:, 0], x[:, 1], found[:, 0], (found - exact)[:, 0], strict=True)
    own = {"problem": contest.run.problem, "contestant": contest.run.contestant}
    return [own | dict(zip(SOLUTION_COLUMNS[2:], map(float, values), strict=True)) for values in columns]
