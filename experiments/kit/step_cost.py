"""What one direction of `mnist_natgrad.py` costs by each solver, and how exact it is."""

from __future__ import annotations

import argparse
import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

from kit.mnist_results import COST_BATCH_SIZE as BATCH_SIZE
from kit.mnist_results import COST_COLUMNS
from kit.mnist_results import COST_SOLVERS as SOLVERS
from kit.recording import Recorder
from kit.softmax_regression import SoftmaxRegression


def run_costs(
    arguments: argparse.Namespace,
    problems: Mapping[int, SoftmaxRegression],
    direction: Callable,
    rcond: float,
    path: pathlib.Path,
) -> None:
    """Times the solvers on each problem and records it; what takes minutes is kept from earlier, unless asked for.

    Args:
        arguments: the command line.
        problems: by image size.
        direction: graph code of a problem, a metric, a solver, a damping and a batch.
        rcond: eigenvalues up to this share of the largest count as zero.
        path: of the CSV file.
    """
    from tf_natgrad._progress import progress_bar

    def is_slow(size: int, solver: str) -> bool:
        return size >= 28 and solver == "svd"

    def is_kept(key, rows) -> bool:
        size, batch_size, solver = int(key[0]), int(key[1]), key[2]
        asked_for_anew = arguments.dense_28 and not arguments.resume
        recorded_once = is_slow(size, solver) and not asked_for_anew
        return size in problems and batch_size == BATCH_SIZE and (arguments.resume or recorded_once)

    costs = Recorder(path, COST_COLUMNS, ("image_size", "batch_size", "solver"), resume=True, keep=is_kept)
    wanted = [
        (size, solver) for size in problems for solver in SOLVERS if arguments.dense_28 or not is_slow(size, solver)
    ]
    for size, solver in progress_bar(wanted, unit="solver", desc="step cost"):
        if (size, BATCH_SIZE, solver) not in costs:
            repetitions = 30 if solver != "svd" else 1 if arguments.smoke or is_slow(size, solver) else 5
            problem = problems[size]
            compiled = problem.compiled(functools.partial(direction, problem, "logits", solver, 0.0), BATCH_SIZE)
            costs.append(solver=solver, **measure(problem, compiled, repetitions, rcond))


def measure(problem: SoftmaxRegression, direction: Callable, repetitions: int, rcond: float) -> dict[str, object]:
    """Times an undamped direction at the weights of seed 0, and compares it with a least-squares solution in float64.

    Args:
        problem: the model and its data.
        direction: compiled, of inputs and labels: the loss, the direction, its rank.
        repetitions: how often it is timed.
        rcond: eigenvalues up to this share of the largest count as zero.

    Returns:
        The columns of the CSV, without the solver.
    """
    import tensorflow as tf

    problem.reset(0)
    x, y = next(problem.batches(0, BATCH_SIZE))
    batch = tf.constant(x), tf.constant(y)
    durations = []
    # The first call allocates; where a call takes minutes that is nothing, and it is the only one.
    for _ in range(repetitions + (repetitions > 1)):
        start = time.perf_counter()
        _, value, rank = direction(*batch)
        value, rank = value.numpy(), int(rank)
        durations.append(time.perf_counter() - start)
    reference = least_squares_direction(problem.weights.numpy(), x, y, rcond)
    return {
        "image_size": problem.data.image_size,
        "parameters": problem.parameters,
        "batch_size": BATCH_SIZE,
        "milliseconds": 1e3 * statistics.median(durations[-repetitions:]),
        "relative_difference": float(np.linalg.norm(value - reference) / np.linalg.norm(reference)),
        "rank": None if rank < 0 else rank,
    }


def least_squares_direction(weights: np.ndarray, x: np.ndarray, y: np.ndarray, rcond: float) -> np.ndarray:
    """The natural gradient `F^+ g = A^+ u` of softmax regression, by NumPy in float64, without this library.

    Args:
        weights: `[pixels, C]`.
        x: `[N, pixels]`.
        y: `[N]` classes.
        rcond: eigenvalues of the Fisher up to this share of the largest count as zero.

    Returns:
        `[pixels * C]`.
    """
    weights, x = weights.astype(np.float64), x.astype(np.float64)
    p = np.exp(x @ weights)
    p /= p.sum(1, keepdims=True)
    root = np.sqrt(p)
    one_hot = np.eye(p.shape[1])[y]
    factor = np.einsum("nc,ca->nca", root, np.eye(p.shape[1])) - np.einsum("nc,na->nca", p, root)
    a = np.einsum("nf,nca->nafc", x, factor).reshape(-1, weights.size) / math.sqrt(len(x))
    u = (root - one_hot / root).reshape(-1) / math.sqrt(len(x))
    # Singular values of A are the square roots of the Fisher's.
    return np.linalg.lstsq(a, u, rcond=math.sqrt(rcond))[0]
