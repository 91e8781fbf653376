"""What travels between replicas in a step: numbers counted while the step is traced, and on paper for more replicas.

One step of each way is taken on logical CPUs. What each replica hands over to the others is counted there; what a sum
or a collection then costs on a network is computed for rings: `2 (R - 1) / R` times the bytes that are summed, and
`R - 1` times those that are collected. The seconds on paper are bytes by a bandwidth plus multiplications by a rate,
both assumed, with a fixed number of examples on each replica (weak scaling); nothing is overlapped.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import unittest.mock
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from _problems import LOSS, batch_for
from _timing import table

import tf_natgrad as ng
from tf_natgrad import _replicas

INPUTS, WIDTHS = 784, (512, 512, 10)
ITERATIONS = 10
ON_PAPER = (2, 8, 64, 1024)


@dataclasses.dataclass
class Traffic:
    """Bytes that one replica hands over in a step.

    Attributes:
        summed: to sums over replicas.
        collected: to collections of all replicas' examples.
    """

    summed: int = 0
    collected: int = 0

    def received(self, replicas: int) -> float:
        """Bytes that a replica receives, in rings."""
        return 2 * (replicas - 1) / replicas * self.summed + (replicas - 1) * self.collected


@contextlib.contextmanager
def counted(examples: int, replicas: int) -> Iterator[Traffic]:
    """Counts what is handed over while a step is traced, once for each replica; `examples` stands for unknown sizes."""
    traffic, own_total, own_gathered = Traffic(), _replicas.total, _replicas.gathered

    def size(value: object) -> int:
        tensors = [t for t in tf.nest.flatten(value) if tf.is_tensor(t)]
        shapes = [[examples if d is None else d for d in t.shape.as_list()] for t in tensors]
        return sum(int(np.prod(shape)) * t.dtype.size for shape, t in zip(shapes, tensors, strict=True))

    def total(value):
        traffic.summed += size(value) if _replicas.several() and not tf.executing_eagerly() else 0
        return own_total(value)

    def gathered(tensor, axis=0):
        traffic.collected += size(tensor) if _replicas.several() and not tf.executing_eagerly() else 0
        return own_gathered(tensor, axis)

    with unittest.mock.patch.multiple(_replicas, total=total, gathered=gathered):
        yield traffic
    traffic.summed //= replicas
    traffic.collected //= replicas


def ways() -> dict[str, ng.NaturalGradient]:
    """The optimizers that are compared, each step taken whole."""
    plain = {"damping": 0.1, "max_kl": None, "line_search": None}
    cg = ng.solvers.ConjugateGradient(max_iterations=ITERATIONS)
    kfac = {"fisher": ng.KFAC("fixed", update_every=2, invert_every=4), "momentum": 0.0}
    return {
        "Gram, exact": ng.NaturalGradient(0.5, solver="gram", **plain),
        "Gram, Monte-Carlo": ng.NaturalGradient(0.5, solver="gram", fisher="mc", **plain),
        f"CG, {ITERATIONS} iterations": ng.NaturalGradient(0.5, solver=cg, **plain),
        "K-FAC, update": ng.NaturalGradient(0.1, **kfac | plain),
        "K-FAC, other steps": ng.NaturalGradient(0.1, **kfac | plain),
        "with a line search": ng.NaturalGradient(0.5, solver="gram", damping=0.1, max_kl=None),
    }


def measured(name: str, strategy: tf.distribute.Strategy, examples: int) -> Traffic:
    """The traffic of one step of a way, with so many examples on each replica."""
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        stack = [keras.layers.Dense(width, activation="tanh") for width in WIDTHS[:-1]]
        model = ng.NaturalGradientSequential([keras.Input((INPUTS,)), *stack, keras.layers.Dense(WIDTHS[-1])])
        model.compile(ways()[name], LOSS)
    x, y = batch_for(model, examples * replicas)
    steps = 3 if name == "K-FAC, other steps" else 0
    fit = {"batch_size": examples * replicas, "shuffle": False, "verbose": 0}
    if steps:
        model.fit(x, y, epochs=steps, **fit)
    with counted(examples, replicas) as traffic:
        model.fit(x, y, epochs=1, **fit)
    return traffic


def multiplications(name: str, examples: int, replicas: int) -> float:
    """Multiplications of a step on one replica, to leading order."""
    sides = list(zip((INPUTS, *WIDTHS[:-1]), WIDTHS, strict=True))
    weights = sum(a * b for a, b in sides)
    gradient = 3 * weights * examples
    columns = WIDTHS[-1] - 1 if name.startswith(("Gram, exact", "with")) else 1
    rows = columns * examples * replicas
    if name.startswith(("Gram", "with")):
        products = sum(rows**2 * b + (examples * replicas) ** 2 * a for a, b in sides)
        return gradient * (1 + columns / 2) + products + rows**3 / 6
    if name.startswith("CG"):
        return gradient * (1 + 1.25 * ITERATIONS)
    # Shared out among the replicas.
    inverses = sum(a**3 + b**3 for a, b in sides) / replicas if name.endswith("update") else 0
    return gradient + inverses + sum(a * b * (a + b) for a, b in sides)


def main() -> None:
    """Counts, computes, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=64, help="on each replica")
    parser.add_argument("--replicas", type=int, default=2, help="logical CPUs on which the bytes are counted")
    parser.add_argument("--bandwidth", type=float, default=10e9, help="bytes a second, for the figures on paper")
    parser.add_argument("--rate", type=float, default=20e12, help="multiplications a second, for the same")
    options = parser.parse_args()
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * options.replicas)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(options.replicas)])
    found = {name: measured(name, strategy, options.examples) for name in ways()}
    print(f"\n{options.examples} examples on each replica, network {INPUTS}-{'-'.join(map(str, WIDTHS))}, float32\n")
    rows = [[name, f"{t.summed / 1e6:.2f}", f"{t.collected / 1e6:.2f}"] for name, t in found.items()]
    print(table(["way", "MB to sums", "MB to collections"], rows))
    print("\nOn paper, MB received by a replica in a step, and seconds:\n")
    rows = []
    for name, traffic in found.items():
        cells = []
        for replicas in ON_PAPER:
            received = traffic.received(replicas)
            work = multiplications(name, options.examples, replicas)
            cells.append(f"{received / 1e6:,.1f} MB, {received / options.bandwidth + work / options.rate:.3g} s")
        rows.append([name, *cells])
    print(table(["way", *(f"{r} replicas" for r in ON_PAPER)], rows))


if __name__ == "__main__":
    main()
