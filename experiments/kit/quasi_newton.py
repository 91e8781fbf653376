"""L-BFGS for the contestants of `pde.py`: SciPy's and TensorFlow Probability's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np

from kit.pde_contest import Clock, Contest


class _Over(Exception):
    """The budget is spent."""


def scipy_lbfgs(contest: Contest, clock: Clock, corrections: int, done: int = 0) -> Iterator[tuple[int, float]]:
    """Iterations of SciPy's L-BFGS-B; one that stops by itself is started again where it stopped.

    SciPy calls back after each iteration, so the whole run is made first, and its weights are kept for the evaluations.
    """
    import scipy.optimize
    import tensorflow as tf

    function, flat = contest.value_and_gradient(), contest.flat
    start = flat.read().numpy()
    function(tf.constant(start))
    seen: list[tuple[int, float, float, np.ndarray]] = []
    iteration = done

    def timed(vector):
        value, gradient = function(tf.constant(vector))
        return float(value), gradient.numpy()

    def after(intermediate_result):
        nonlocal iteration, began
        clock.seconds += time.perf_counter() - began
        iteration += 1
        if clock.is_due or clock.is_over:
            seen.append((iteration, clock.seconds, float(intermediate_result.fun), intermediate_result.x.copy()))
        if clock.is_over:
            raise _Over
        began = time.perf_counter()

    options = {"maxcor": corrections, "maxiter": 10**9, "maxfun": 10**9, "ftol": 0.0, "gtol": 0.0, "maxls": 50}
    with contextlib.suppress(_Over):
        while not clock.is_over:
            began, last = time.perf_counter(), iteration
            found = scipy.optimize.minimize(timed, start, jac=True, method="L-BFGS-B", callback=after, options=options)
            clock.seconds += time.perf_counter() - began
            start = found.x
            if iteration == last:
                # Not one iteration: nothing is gained by starting again.
                seen.append((iteration, clock.seconds, float(found.fun), found.x))
                break
    for number, seconds, loss, vector in seen:
        flat.assign(tf.constant(vector))
        clock.seconds = seconds
        yield number, loss


def tfp_lbfgs(contest: Contest, clock: Clock, corrections: int) -> Iterator[tuple[int, float]]:
    """Iterations of TensorFlow Probability's L-BFGS, in one compiled function, some at a time."""
    import keras
    import tensorflow as tf
    import tensorflow_probability as probability

    flat = contest.flat

    def value_and_gradient(vector):
        tensors = flat.unflatten(vector)
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            with keras.StatelessScope(state_mapping=list(zip(contest.variables, tensors, strict=True))):
                value = contest.loss()
        return value, flat.flatten(tape.gradient(value, tensors))

    options = {"num_correction_pairs": corrections, "tolerance": 0.0, "max_line_search_iterations": 50}
    minimize = probability.optimizer.lbfgs_minimize

    @tf.function(autograph=False)
    def begin(vector):
        return minimize(value_and_gradient, vector, max_iterations=0, **options)

    @tf.function(autograph=False)
    def go_on(state, until):
        return minimize(value_and_gradient, None, previous_optimizer_results=state, max_iterations=until, **options)

    state = begin(flat.read())
    go_on(state, tf.constant(1))
    iteration, count = 0, 1
    while not clock.is_over:
        with clock.running():
            state = go_on(state, tf.constant(iteration + count))
            made = int(state.num_iterations) - iteration
            loss = float(state.objective_value)
        flat.assign(state.position)
        iteration += made
        yield iteration, loss
        if made == 0 or bool(state.failed) or bool(state.converged):
            break
        count = min(2 * count, 50)
