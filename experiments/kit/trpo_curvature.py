"""The small policy that `trpo.py` trains by TRPO and by Adam, and its curvature along both."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kit import policies, policy_results
from kit.recording import Recorder, as_text
from kit.trpo_results import CURVATURE_COLUMNS, FILES


@dataclasses.dataclass(frozen=True)
class SmallPolicy:
    """How the policy is trained whose curvature is looked at.

    Attributes:
        env: the environment.
        seed: of the weights, at which both optimizers start.
        task: where episodes are cut, and how Adam learns.
        settings: of TRPO, where they are not its defaults.
        checkpoints: the updates after which a policy is kept, by optimizer.
    """

    env: str
    seed: int
    task: policies.Task
    settings: Mapping[str, Any]
    checkpoints: Mapping[str, Sequence[int]]


def curvature_settings(small: SmallPolicy, smoke: bool) -> policies.Settings:
    """As the defaults of `policy_curvature.py`, with fewer episodes."""
    cut, episodes = (20, 20) if smoke else (small.task.max_steps, 200)
    draws = 0 if smoke else policies.NULL_DRAWS
    return policies.Settings(
        small.env, cut, "16", 0.99, policies.BASELINE, episodes, draws, rollouts=2, points=1, radius=0.5
    )


def checkpoint_name(small: SmallPolicy, settings: policies.Settings, optimizer: str, iteration: int) -> str:
    """The name of a kept policy."""
    return f"{optimizer.lower()}_{policies.name_of(settings, small.seed, iteration)}"


def train_by_trpo(
    small: SmallPolicy, settings: policies.Settings, checkpoints: Sequence[int], folder: pathlib.Path
) -> None:
    """Trains the small policy by TRPO and keeps it at the checkpoints."""
    import gymnasium as gym

    import tf_natgrad.rl as rl

    def keep(agent: rl.TRPO, record: Any = None) -> None:
        if agent.updates in checkpoints:
            agent.policy.save(folder / f"{checkpoint_name(small, settings, 'TRPO', agent.updates)}.keras")

    agent = rl.TRPO(
        functools.partial(gym.make, settings.env, max_episode_steps=settings.max_steps),
        policy=policies.new_policy(settings, small.seed),
        gamma=settings.gamma,
        seed=small.seed,
        **small.settings,
    )
    folder.mkdir(parents=True, exist_ok=True)
    keep(agent)
    agent.learn(max(checkpoints) * agent.n_steps * agent.n_envs, callbacks=keep)


def train_by_adam(
    small: SmallPolicy, settings: policies.Settings, checkpoints: Sequence[int], folder: pathlib.Path
) -> None:
    """Trains the small policy as `policy_curvature.py` does, and keeps it at the checkpoints."""
    policies.train(settings, small.task, small.seed, max(checkpoints), checkpoints, folder)
    for iteration in checkpoints:
        name = policies.name_of(settings, small.seed, iteration)
        os.replace(folder / f"{name}.keras", folder / f"{checkpoint_name(small, settings, 'Adam', iteration)}.keras")


TRAINERS: dict[str, Callable[..., None]] = {"TRPO": train_by_trpo, "Adam": train_by_adam}


def run_curvature(small: SmallPolicy, arguments: argparse.Namespace, out: pathlib.Path) -> None:
    """Trains the small policy twice and records its curvature."""
    from tf_natgrad._progress import progress_bar

    settings, folder = curvature_settings(small, arguments.smoke), out / "trpo_policies"
    plan = {name: (1,) if arguments.smoke else updates for name, updates in small.checkpoints.items()}
    keys = {
        (optimizer, iteration): settings.key(small.seed, checkpoint_name(small, settings, optimizer, iteration))
        for optimizer, iterations in plan.items()
        for iteration in iterations
    }
    wanted = {tuple(map(as_text, key.values())) for key in keys.values()}
    recorder = Recorder(
        *(out / FILES[2], CURVATURE_COLUMNS, policy_results.KEY_COLUMNS, arguments.resume),
        keep=lambda key, rows: key in wanted and len(rows) == 2,
    )
    for optimizer, iterations in plan.items():
        paths = [folder / f"{keys[optimizer, i]['policy']}.keras" for i in iterations]
        if not (arguments.resume and all(path.is_file() for path in paths)):
            TRAINERS[optimizer](small, settings, iterations, folder)
    with progress_bar(total=len(keys), desc="curvature", unit="checkpoint") as bar:
        for number, ((optimizer, iteration), key) in enumerate(keys.items()):
            if tuple(key.values()) not in recorder:
                path = folder / f"{key['policy']}.keras"
                for row in policies.Checkpoint(settings, path, small.seed, number).measure():
                    recorder.append(optimizer=optimizer, **key, iteration=iteration, **row)
            bar.update()
