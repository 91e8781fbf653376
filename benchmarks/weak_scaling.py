"""Weak scaling over processes of this machine: seconds a step where each worker has as many examples as one alone.

Each worker is a process on one core of its own, and the workers talk through the loopback address. With no more to do
on each of them a step of `R` workers would take the time of one alone: a ratio of 1. What is above it is exchange,
waiting, and work that grows with the global batch (a Gram matrix of all examples).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
INPUTS, WIDTHS, CLASSES = 784, (512, 512), 10
ITERATIONS = 10
WAYS = ("adam", "gram", "mc", "cg", "kfac")
STEPS, EPOCHS = 10, 6


def worker(way: str, examples: int) -> None:
    """Trains one way as the worker that `TF_CONFIG` says, or alone; prints the seconds of a step."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    several = "TF_CONFIG" in os.environ
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if several else tf.distribute.get_strategy()
    import keras

    import tf_natgrad as ng

    optimizers = {
        "adam": lambda: keras.optimizers.Adam(),
        "gram": lambda: ng.NaturalGradient(solver="gram"),
        "mc": lambda: ng.NaturalGradient(fisher="mc", solver="gram"),
        "cg": lambda: ng.NaturalGradient(solver=ng.solvers.ConjugateGradient(max_iterations=ITERATIONS)),
        "kfac": lambda: ng.NaturalGradient(fisher=ng.KFAC("fixed")),
    }
    size = examples * strategy.num_replicas_in_sync
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(size, INPUTS)).astype("float32"), rng.integers(0, CLASSES, size)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(size).repeat().with_options(options)
    with strategy.scope():
        hidden = [keras.layers.Dense(width, "relu") for width in WIDTHS]
        model = ng.NaturalGradientSequential([keras.Input((INPUTS,)), *hidden, keras.layers.Dense(CLASSES)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizers[way](), loss, jit_compile=False)

    class Clock(keras.callbacks.Callback):
        """Seconds of each epoch."""

        def __init__(self):
            super().__init__()
            self.seconds = []

        def on_epoch_begin(self, epoch, logs=None):
            self._start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append(time.perf_counter() - self._start)

    clock = Clock()
    model.fit(data, epochs=EPOCHS, steps_per_epoch=STEPS, verbose=0, callbacks=[clock])
    # The first two have the tracing of all phases in them.
    print(json.dumps(statistics.median(clock.seconds[2:]) / STEPS), flush=True)


def seconds_of(way: str, workers: int, examples: int) -> float:
    """Seconds of a step of so many workers, each a process on a core of its own; the slowest of them."""
    sockets = [socket.socket() for _ in range(workers)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    hosts = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    processes = []
    for index in range(workers):
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
        if workers > 1:
            task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            environment["TF_CONFIG"] = json.dumps(task)
        command = [sys.executable, __file__, "--worker", way, "--examples", str(examples)]
        core = {sorted(os.sched_getaffinity(0))[index]}
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda core=core: os.sched_setaffinity(0, core),
            )
        )
    found = [process.communicate(timeout=1200) for process in processes]
    for process, (_, errors) in zip(processes, found, strict=True):
        if process.returncode:
            raise RuntimeError(f"a worker ended with {process.returncode}:\n{errors[-2000:]}")
    return max(json.loads(out.splitlines()[-1]) for out, _ in found)


def main() -> None:
    """Measures all ways and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=64, help="of each worker (default 64)")
    parser.add_argument("--workers", type=int, default=2, help="processes, at most as many as cores (default 2)")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.examples)
        return
    if not 2 <= options.workers <= len(os.sched_getaffinity(0)):
        parser.error(f"--workers must be between 2 and the number of cores, {len(os.sched_getaffinity(0))}")
    from _timing import table

    rows = []
    for way in WAYS:
        alone, together = (seconds_of(way, count, options.examples) for count in (1, options.workers))
        rows.append([way, f"{1e3 * alone:.1f}", f"{1e3 * together:.1f}", f"{together / alone:.2f}"])
    network = "-".join(map(str, (INPUTS, *WIDTHS, CLASSES)))
    print(f"\n{options.examples} examples on each worker, {network}, float32, one core each, milliseconds a step\n")
    print(table(["way", "one alone", f"{options.workers} workers", "ratio"], rows))


if __name__ == "__main__":
    main()
