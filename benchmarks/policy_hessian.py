"""What a product with the policy Hessian costs: in policy gradients, and against the note's loop over episodes.

Everything that is compared runs in turns within one process; figures are medians after tracing. Episodes are random
numbers of CartPole's shape: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from _timing import side_by_side, table

import tf_natgrad.rl as rl

OBSERVATIONS = 4
ACTIONS = 2
# Episodes, steps and hidden units; the first two have goals.
GOALS = {(100, 200): 2.5, (1000, 100): 3.0}
LOOP_GOAL = 8.0
COMPILED, EAGER = "episode by episode, compiled", "episode by episode, eager"
BASE = (100, 200, 64)
GROWTH = {
    "episodes": [(10, 200, 64), BASE, (300, 200, 64), (1000, 200, 64)],
    "horizon": [(100, 20, 64), BASE, (100, 600, 64), (100, 1000, 64)],
    "parameters": [(100, 200, 16), BASE, (100, 200, 128), (100, 200, 256)],
}


def policy_of(hidden: int) -> rl.CategoricalPolicy:
    """A policy 4-hidden-hidden-2 with tanh."""
    layers = [keras.Input((OBSERVATIONS,)), *(keras.layers.Dense(hidden, activation="tanh") for _ in range(2))]
    return rl.CategoricalPolicy(keras.Sequential([*layers, keras.layers.Dense(ACTIONS)]))


def episodes_of(count: int, steps: int) -> rl.Episodes:
    """Random episodes, all of the same length."""
    rng = np.random.default_rng(0)
    return rl.Episodes.from_arrays(
        rng.standard_normal([count, steps, OBSERVATIONS]),
        rng.integers(0, ACTIONS, [count, steps]),
        rng.standard_normal([count, steps]),
    )


def gradient_of(policy: rl.Policy, episodes: rl.Episodes, weights: np.ndarray):
    """The compiled gradient of `sum_t w_t log pi(a_t | s_t)` over all steps."""
    observations, actions = tf.constant(episodes.observations, tf.float32), tf.constant(episodes.actions)
    weights = tf.constant(weights / episodes.num_episodes, tf.float32)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(weights * policy.log_prob(observations, actions))
        return flat(tape.gradient(total, policy.trainable_variables))

    return gradient


def flat(tensors) -> tf.Tensor:
    """Gradients as one vector."""
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)


def loop_of(policy: rl.Policy, episodes: rl.Episodes, weights: np.ndarray, vector: tf.Tensor, compiled: bool):
    """The note's Algorithm 1: one call per episode, the whole episode being the batch."""
    variables = policy.trainable_variables

    def of_episode(observations, actions, returns, vector):
        with tf.GradientTape() as outer:
            with tf.GradientTape(persistent=True) as tape:
                log_probs = policy.log_prob(observations, actions)
                total, weighted = tf.reduce_sum(log_probs), tf.reduce_sum(log_probs * returns)
            along = tf.tensordot(flat(tape.gradient(weighted, variables)), vector, 1)
        # Whatever enters the log-probabilities linearly has no second derivatives.
        second = outer.gradient(along, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return along * flat(tape.gradient(total, variables)) + flat(second)

    of_episode = tf.function(of_episode) if compiled else of_episode
    ends = np.cumsum(episodes.lengths)
    parts = [
        (
            tf.constant(episodes.observations[start:end], tf.float32),
            tf.constant(episodes.actions[start:end]),
            tf.constant(weights[start:end], tf.float32),
        )
        for start, end in zip(episodes.starts, ends, strict=True)
    ]

    def product():
        total = tf.zeros_like(vector)
        for part in parts:
            total += of_episode(*part, vector)
        return total / len(parts)

    return product


def compare(count: int, steps: int, hidden: int, rounds: int, estimators: tuple[str, ...], loop: bool) -> list[dict]:
    """The gradient, a product by each estimator, and the loop over episodes."""
    keras.utils.set_random_seed(0)
    policy, episodes = policy_of(hidden), episodes_of(count, steps)
    size = policy.network.count_params()
    vector = tf.constant(np.random.default_rng(1).standard_normal(size), tf.float32)
    hessians = {name: rl.PolicyHessian(policy, episodes, name, gamma=0.99) for name in estimators}
    weights = next(iter(hessians.values())).step_weights
    functions = {"policy gradient": gradient_of(policy, episodes, weights)}
    for name, hessian in hessians.items():
        functions[name] = lambda hessian=hessian: hessian.matvec(vector)
    label = f"{count:,} x {steps}, {size:,} parameters"
    repeats = 1 if count * steps > 10_000 else 5
    times = side_by_side(functions, rounds, repeats, label)
    if loop:
        # The whole return of an episode, with which the note's algorithm and `trajectory` are the same matrix.
        returns = hessians["trajectory"].step_weights
        loops = {name: loop_of(policy, episodes, returns, vector, name == COMPILED) for name in (COMPILED, EAGER)}
        expected = hessians["trajectory"].matvec(vector)
        for name, slow in loops.items():
            difference = float(tf.norm(slow() - expected) / tf.norm(expected))
            if difference > 1e-3:
                raise RuntimeError(f"{name}: another product, by {difference:.1e}")
        found = side_by_side({"fast": functions["trajectory"], **loops}, max(3, rounds // 3), 1, f"{label}, loops")
        # In units of the runs above, whatever else the machine was doing then.
        times |= {name: times["trajectory"] * found[name] / found["fast"] for name in loops}
    shape = {"episodes": count, "steps": steps, "hidden": hidden, "parameters": size}
    return [
        {**shape, "quantity": name, "milliseconds": 1e3 * seconds, "gradients": seconds / times["policy gradient"]}
        for name, seconds in times.items()
    ]


def main() -> None:
    """Runs the comparisons, prints tables and keeps the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns per comparison (default 15)")
    parser.add_argument("--no-growth", action="store_true", help="leave out the growth with sizes")
    parser.add_argument("--json", type=pathlib.Path, help="file in which the figures are kept")
    arguments = parser.parse_args()
    rows = []
    for (count, steps), goal in GOALS.items():
        found = compare(count, steps, BASE[2], arguments.rounds, ("causal", "trajectory"), loop=True)
        rows += [{"table": "product", **row} for row in found]
        by_name = {row["quantity"]: row["milliseconds"] for row in found}
        print(f"\n{count:,} episodes x {steps} steps, policy 4-64-64-2, {found[0]['parameters']:,} parameters")
        print(table(["", "milliseconds", "gradients"], [list(r.values())[-3:] for r in found]))
        for name in ("causal", "trajectory"):
            print(
                f"{name}: {by_name[name] / by_name['policy gradient']:.2f} policy gradients (goal: at most {goal:g}); "
                f"{by_name[COMPILED] / by_name[name]:.1f} times faster than the compiled loop over episodes, "
                f"{by_name[EAGER] / by_name[name]:.1f} times than the eager one (goal: at least {LOOP_GOAL:g})"
            )
    if not arguments.no_growth:
        for name, shapes in GROWTH.items():
            found = [compare(*shape, max(3, arguments.rounds // 2), ("causal",), loop=False) for shape in shapes]
            rows += [{"table": name, **row} for pair in found for row in pair]
            print(f"\ngrowth with {name}")
            cells = [
                [
                    f"{gradient['episodes']:,} x {gradient['steps']:,}, {gradient['parameters']:,} parameters",
                    *(gradient["milliseconds"], product["milliseconds"], product["gradients"]),
                ]
                for gradient, product in found
            ]
            print(table(["", "gradient, ms", "causal product, ms", "gradients"], cells))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
