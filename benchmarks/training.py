"""What training costs: milliseconds per `fit` step beside stock Keras with Adam, retracing, and memory.

What is compared runs in turns of `fit` within one process, tracing left out; figures are medians. Inputs are random
numbers of MNIST's shape: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from _timing import side_by_side, table

import tf_natgrad as ng
from tf_natgrad._progress import progress_bar

INPUTS = 784
# Batch, widths of the hidden layers, outputs; the first is what the others vary.
REFERENCE = (32, (512, 512), 10)
GROWTH = {
    "batch": [(8, (512, 512), 10), (32, (512, 512), 10), (128, (512, 512), 10)],
    "width": [(32, (128, 128), 10), (32, (512, 512), 10), (32, (1024, 1024), 10)],
    "outputs": [(32, (512, 512), 2), (32, (512, 512), 10), (32, (512, 512), 40)],
}


class CountTraces(keras.layers.Layer):
    """Passes its input on, and counts how often Python runs through it: once per trace."""

    calls = 0

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """The input."""
        self.calls += 1
        return x


# What is compared: stock Keras, each step taken whole, and with line search and adaptive damping as they come.
OPTIMIZERS = {
    "adam": lambda: "adam",
    "plain": lambda: ng.NaturalGradient(0.1, damping=0.1, solver="gram", max_kl=None, line_search=None),
    "default": lambda: ng.NaturalGradient(0.1, solver="gram"),
}


def model_of(widths: tuple[int, ...], outputs: int, optimizer: str) -> keras.Model:
    """A compiled network with relu between its layers."""
    hidden = [keras.layers.Dense(width, activation="relu") for width in widths]
    stack = [keras.Input((INPUTS,)), CountTraces(), *hidden, keras.layers.Dense(outputs)]
    model = (keras.Sequential if optimizer == "adam" else ng.NaturalGradientSequential)(stack)
    model.compile(OPTIMIZERS[optimizer](), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def data_of(batch: int, outputs: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels for so many steps."""
    rng = np.random.default_rng(0)
    x = rng.random((batch * steps, INPUTS), dtype=np.float32)
    return x, rng.integers(0, outputs, batch * steps)


def milliseconds(batch: int, widths: tuple[int, ...], outputs: int, steps: int, rounds: int) -> dict[str, float]:
    """One step of `fit` with each optimizer."""
    x, y = data_of(batch, outputs, steps)

    def run(model: keras.Model):
        return lambda: model.fit(x, y, batch_size=batch, verbose=0)

    runs = {name: run(model_of(widths, outputs, name)) for name in OPTIMIZERS}
    seconds = side_by_side(runs, rounds=rounds, repeats=1, progress=f"{batch} {widths} {outputs}")
    return {name: value / steps * 1e3 for name, value in seconds.items()}


def resident() -> float:
    """Memory of this process, in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def endurance(steps: int, chunk: int = 100) -> dict[str, object]:
    """Traces and memory over many steps of the reference problem, and after every `chunk` of them."""
    batch, widths, outputs = REFERENCE
    model = model_of(widths, outputs, "default")
    x, y = data_of(batch, outputs, chunk)
    counter = model.layers[0]
    model.fit(x, y, batch_size=batch, verbose=0)
    traced, memory = counter.calls, [resident()]
    for _ in progress_bar(range(steps // chunk), desc="endurance", leave=False):
        model.fit(x, y, batch_size=batch, verbose=0)
        memory.append(resident())
    return {"steps": steps, "new_traces": counter.calls - traced, "memory_mib": memory}


def main() -> None:
    """Runs the comparisons and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns per comparison (default 9)")
    parser.add_argument("--steps", type=int, default=50, help="steps of `fit` per turn (default 50)")
    parser.add_argument("--endurance", type=int, default=2000, help="steps for traces and memory (default 2000)")
    parser.add_argument("--no-growth", action="store_true", help="only 784-512-512-10 at batch 32")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE as well")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    problems = {("reference", REFERENCE)}
    if not arguments.no_growth:
        problems |= {(what, problem) for what, series in GROWTH.items() for problem in series}
    figures, rows = [], []
    order = ["reference", *GROWTH]
    problems = sorted(problems, key=lambda p: (order.index(p[0]), p[1]))
    for what, problem in progress_bar(problems, desc="problems", leave=False):
        batch, widths, outputs = problem
        times = milliseconds(*problem, arguments.steps, arguments.rounds)
        ratios = [times[name] / times["adam"] for name in ("plain", "default")]
        name = "-".join(map(str, (INPUTS, *widths, outputs)))
        figures.append({"varied": what, "network": name, "batch": batch, **times, "ratios": ratios})
        rows.append([what, name, str(batch), *times.values(), *ratios])
    long = endurance(arguments.endurance)
    print(
        table(
            ["varied", "network", "batch", "Adam, ms", "plain, ms", "default, ms", "plain/Adam", "default/Adam"], rows
        )
    )
    memory = long["memory_mib"]
    print(
        f"\n{long['steps']:,} steps: {long['new_traces']} new traces; memory {memory[0]:,.0f} MiB after the first "
        f"100, {memory[len(memory) // 2]:,.0f} halfway, {memory[-1]:,.0f} at the end"
    )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"fit_steps": figures, "endurance": long}, file, indent=1)


if __name__ == "__main__":
    main()
