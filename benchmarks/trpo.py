"""Environment steps per second of TRPO on CartPole-v1 with the settings of `experiments/trpo.py`, and where they go.

Each run is an agent of its own that learns for the whole of the experiment's steps; its first update, during which all
is compiled, is timed by itself. Beside wall time stands the process's CPU time, which other processes do not lengthen.
The shares are those of one more run, in which the parts are timed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import gymnasium as gym
import tensorflow as tf
from _timing import table

import tf_natgrad.rl as rl
from tf_natgrad._progress import progress_bar
from tf_natgrad.rl import rollouts
from tf_natgrad.rl.agents import learner

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "experiments"))
from trpo import TASKS

ENV = "CartPole-v1"
GOAL = 6500
CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}


def times(agent: rl.TRPO, total: int) -> dict[str, float]:
    """Seconds that it takes to learn up to a number of steps, by clock."""
    starts = {name: clock() for name, clock in CLOCKS.items()}
    agent.learn(total, progress=False)
    return {name: clock() - starts[name] for name, clock in CLOCKS.items()}


def speeds(seed: int, steps: int) -> list[dict]:
    """Steps per second of one agent, with and without the first update.

    Args:
        seed: of the agent.
        steps: of the whole training.

    Returns:
        A row for each.
    """
    agent = rl.TRPO(ENV, seed=seed, **TASKS[ENV].settings)
    first = times(agent, 1)
    batch = agent.steps
    others = times(agent, steps)
    return [
        {
            "quantity": "after compilation",
            **{f"steps per second, {name}": (agent.steps - batch) / others[name] for name in CLOCKS},
        },
        {
            "quantity": "including it",
            **{f"steps per second, {name}": agent.steps / (first[name] + others[name]) for name in CLOCKS},
        },
    ]


class Parts:
    """Seconds spent in functions, those in functions within them not counted twice."""

    def __init__(self):
        self.seconds: dict[str, float] = collections.Counter()
        self._inside = [0.0]

    def timed(self, name: str, function: Callable) -> Callable:
        """The same function; its seconds are added to those of the name."""

        @functools.wraps(function)
        def call(*arguments, **options):
            start = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                taken = time.perf_counter() - start
                self.seconds[name] += taken - self._inside.pop()
                self._inside[-1] += taken

        return call

    @contextlib.contextmanager
    def watching(self, agent: rl.TRPO) -> Iterator[None]:
        """Times the parts of an agent's updates."""
        acting, critic, parts = rollouts._acting, agent.critic, agent._learner

        def choosing(*arguments) -> Callable:
            return self.timed("acting", acting(*arguments))

        vector = gym.vector.SyncVectorEnv
        with (
            mock.patch.object(rollouts, "_acting", choosing),
            mock.patch.object(vector, "step", self.timed("environments", vector.step)),
            mock.patch.object(vector, "reset", self.timed("environments", vector.reset)),
            mock.patch.object(learner, "rollout", self.timed("keeping the rollout", learner.rollout)),
            mock.patch.object(parts, "policy_step", self.timed("policy update", parts.policy_step.__call__)),
            mock.patch.object(critic, "fit", self.timed("value regression", critic.fit)),
            mock.patch.object(critic, "values", self.timed("values", critic.values)),
            mock.patch.object(agent, "_update", self.timed("advantages and the rest", agent._update)),
        ):
            yield


def shares(seed: int, steps: int) -> list[dict]:
    """Where the time goes after compilation.

    Args:
        seed: of the agent.
        steps: of the whole training.

    Returns:
        A row for each part.
    """
    agent = rl.TRPO(ENV, seed=seed, **TASKS[ENV].settings)
    agent.learn(1, progress=False)
    done, parts = agent.updates, Parts()
    with parts.watching(agent):
        agent.learn(steps, progress=False)
    total, updates = sum(parts.seconds.values()), agent.updates - done
    return [
        {"quantity": name, "milliseconds": 1e3 * seconds / updates, "share": 100 * seconds / total}
        for name, seconds in sorted(parts.seconds.items(), key=lambda item: -item[1])
    ]


def main() -> None:
    """Runs, prints tables and keeps the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="agents (default 5)")
    parser.add_argument("--steps", type=int, default=TASKS[ENV].steps, help="of each (default: the experiment's)")
    parser.add_argument("--threads", type=int, help="of TensorFlow (default: its own choice)")
    parser.add_argument("--json", type=pathlib.Path, help="file in which the figures are kept")
    arguments = parser.parse_args()
    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    found = [row for seed in progress_bar(range(arguments.runs), leave=False) for row in speeds(seed, arguments.steps)]
    columns = [f"steps per second, {name}" for name in CLOCKS]
    rows = [
        {"quantity": quantity}
        | {name: statistics.median(row[name] for row in found if row["quantity"] == quantity) for name in columns}
        for quantity in dict.fromkeys(row["quantity"] for row in found)
    ]
    settings = ", ".join(f"{name} {value}" for name, value in TASKS[ENV].settings.items())
    print(f"\nTRPO on {ENV}, {arguments.steps:,} steps, {settings}; medians of {arguments.runs} runs")
    print(table(["", *columns], [[f"{cell:,.0f}" if cell != row["quantity"] else cell for cell in row.values()]
                                 for row in rows]))  # fmt: skip
    fastest = rows[0][columns[0]]
    print(f"{fastest:,.0f} environment steps per second after compilation (goal: at least {GOAL:,})")
    parts = shares(0, arguments.steps)
    print("\nan update after compilation")
    print(table(["", "milliseconds", "share, %"], [list(row.values()) for row in parts]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"speed": found, "parts": parts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
