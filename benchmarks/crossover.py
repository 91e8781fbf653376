"""From which size of the batch on natural gradient is ahead of Adam in seconds: the same points, batches of many sizes.

The regression network of `experiments/races.py` (1-64-64-1, tanh, float64, sin(8 pi x) + x / 2 at 256 points) is
trained to a loss by batches of several sizes, up to the whole data set. Small batches make many cheap, noisy steps. The
larger the batch, the more a step that knows the curvature is worth, and the more it costs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import keras
import numpy as np
from _timing import table

import tf_natgrad as ng
from tf_natgrad._progress import progress_bar

POINTS = 256
X = np.linspace(-1.0, 1.0, POINTS)[:, None]
Y = np.sin(8 * np.pi * X) + X / 2
RATES = (3e-3, 1e-2)
CONTESTANTS = {f"Adam, {rate:g}": lambda rate=rate: keras.optimizers.Adam(rate) for rate in RATES}
CONTESTANTS["natural"] = ng.NaturalGradient
# Share of the time used between two looks at the loss.
_LOOK = 0.02


def model_with(make, seed: int) -> keras.Model:
    """The network with weights from a seed, compiled, and traced on other weights."""
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(64, activation="tanh") for _ in range(2)]
    model = ng.NaturalGradientSequential([keras.Input((1,)), *hidden, keras.layers.Dense(1)])
    model.compile(make(), "mse", jit_compile=False)
    return model


def to_target(make, batch: int, seed: int, target: float, limit: float) -> tuple[float, float]:
    """Iterations and seconds of training until the loss of all points is below the target; infinite if it never is."""
    model = model_with(make, seed)
    model.optimizer.build(model.trainable_variables)
    start = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    model.train_on_batch(X[:batch], Y[:batch])
    for variable, value in zip((*model.variables, *model.optimizer.variables), start, strict=True):
        variable.assign(value)
    rng = np.random.default_rng(seed)
    used, iterations, looked = 0.0, 0, 0.0
    while used < limit:
        order = rng.permutation(POINTS)
        for start in range(0, POINTS, batch):
            x, y = X[order[start : start + batch]], Y[order[start : start + batch]]
            began = time.perf_counter()
            model.train_on_batch(x, y)
            used += time.perf_counter() - began
            iterations += 1
        if used > looked + _LOOK * (used + 1.0):
            looked = used
            if np.mean((model(X).numpy() - Y) ** 2) < target:
                return iterations, used
    return float("inf"), float("inf")


def main() -> None:
    """Runs all sizes and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 256], help="of the batches")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--target", type=float, default=1e-2, help="training loss (default 1e-2)")
    parser.add_argument("--limit", type=float, default=8.0, help="seconds of training at most (default 8)")
    arguments = parser.parse_args()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    rows = []
    for size in progress_bar(arguments.sizes, desc="batch sizes", leave=False):
        medians = {}
        for name, make in CONTESTANTS.items():
            runs = [to_target(make, size, s, arguments.target, arguments.limit) for s in range(arguments.seeds)]
            medians[name] = [statistics.median(column) for column in zip(*runs, strict=True)]
        best = min((name for name in medians if name != "natural"), key=lambda name: medians[name][1])
        ratio = medians[best][1] / medians["natural"][1]
        rows.append([str(size), best, *medians[best], *medians["natural"], ratio])
    print(
        f"To a training loss of {arguments.target:g} within {arguments.limit:g} s, medians of {arguments.seeds} seeds:"
    )
    print(table(["batch", "best Adam", "iterations", "s", "natural: iterations", "s", "Adam / natural, s"], rows))


if __name__ == "__main__":
    main()
