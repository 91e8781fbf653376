"""TRPO on three environments over ten seeds, beside published returns; and the policy Hessian along its training.

Settings were chosen on seeds 0 to 9 (`--tuning`), and run on seeds 100 to 109 by default. Pendulum missed its goal
there twice; its settings were then changed on seeds 0 to 9, and have fresh seeds beside the confirming ones (`--env
Pendulum-v1 --seeds 300-309`); the earlier runs are in `figures/trpo_earlier_rounds.csv`. Each agent is trained for the
published number of environment steps, then evaluated on 50 episodes with the most probable actions and 50 with sampled
ones, the same starts for all agents. The interval of a mean over seeds is the bootstrap's (95%, percentiles).

A last part trains the small policy of `policy_curvature.py` by TRPO and, as that script does, by the policy gradient
with Adam, from the same weights on the same environment, and finds the extreme eigenvalues of the Hessian of the
expected return along both. Its policies are kept in the folder `trpo_policies`, for `policy_curvature.py --policies`.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from drawing.trpo import draw_curvature, draw_learning
from kit import arguments as options
from kit import policies
from kit.recording import Key, Recorder, Row, as_text, read_rows
from kit.trpo_curvature import SmallPolicy, run_curvature
from kit.trpo_results import (
    ACTIONS,
    CURVATURE_COLUMNS,
    CURVE_COLUMNS,
    CURVE_KEY_COLUMNS,
    FILES,
    KEY_COLUMNS,
    RECORDED,
    RUN_COLUMNS,
    SETS,
    Target,
    Task,
    curvature_table,
    curve_of,
    set_of,
    table,
)

# TensorFlow, Gymnasium and matplotlib are imported where they are used: `--help` and `--replot` need not wait for them.

# --- The recipe -------------------------------------------------------------------------------------------------------

EPISODES = 50
EVALUATION_SEED = 1_000_000
# Published returns, of sb3-contrib with the settings of rl-zoo: of CartPole over 10 seeds, of the others mean and
# standard deviation over episodes of one run.
# An update's rollouts start with fresh episodes: `n_steps` is the length of the longest episode, or more.
TASKS = {
    "CartPole-v1": Task(
        steps=50_000,
        settings=dict(n_envs=4, n_steps=500),
        targets={"deterministic": Target(475, 1.0), "stochastic": Target(475, 0.9)},
        published={"deterministic": ">= 475 on 9 of 10, worst 297", "stochastic": ">= 475 on 6 of 10"},
        line=475.0,
        label="475, published",
    ),
    "Acrobot-v1": Task(
        steps=100_000,
        settings=dict(n_envs=4, n_steps=500, n_critic_updates=20, target_kl=0.03),
        targets={"deterministic": Target(-90)},
        published={"deterministic": "-83 ± 19"},
        line=-83.0,
        label="-83 ± 19, published",
    ),
    "Pendulum-v1": Task(
        steps=100_000,
        settings=dict(n_envs=10, n_steps=200, gamma=0.95, n_critic_updates=40, normalize_rewards=True),
        targets={"deterministic": Target(-200)},
        published={"deterministic": "-175 ± 128"},
        line=-175.0,
        label="-175 ± 128, published",
        changed=True,
    ),
}
# Tuned on seeds 0 to 9, mean return of 30 episodes with the most probable actions (what was chosen comes first):
#   CartPole: 4 x 500, else the defaults: 500 on each seed, also with sampled actions. 4 x 512: the same.
#   Acrobot, 4 x 500, 20 epochs of the value function:
#     target_kl 0.03: -78.7 (5 seeds). 0.01: -84.2 (2). 0.02 with normalised observations: -82.5 (2).
#   Pendulum, scaled rewards, 20 epochs of the value function, 5 seeds, where not said otherwise:
#     discount 0.95: 5 x 200, target_kl 0.01: -147.1. 10 x 200, 0.02: -153.6.
#     discount 0.9:  5 x 200, target_kl 0.01: -171.6; 0.02: -199.4. 10 x 200, 0.02: -212.6; 0.03: -187.6.
#                    10 x 200, 0.02, gae_lambda 0.9: -159 (3 seeds).
#                    Normalised observations, 15 epochs, 10 x 200, target_kl 0.01: -184.4; 0.03: -230.3 (2 seeds).
#   The first of these went into the confirming seeds, and missed the goal there: policies come and go that fail from
#   some starts, and one evaluation at the end is a lottery. Hence, on seeds 0 to 4 again, four evaluations after 70%,
#   80%, 90% and 100% of the steps; their mean, and how many of the 20 are below -250. Discount 0.95:
#     5 x 200, target_kl 0.01, 40 epochs: -177.4, 0; 20 epochs: -211.1, 4.
#     10 x 200, 0.015, 40 epochs: -188.1, 2; 20 epochs: -202.3, 2. 10 x 200, 0.02, 20 epochs: -226.1, 4.
#   The first of these missed too, on ten fresh seeds (200 to 209): -212.0, for one of them. With twice the observations
#   for the same divergence, by the same four evaluations: 10 x 200, 0.01, 40 epochs: -169.0, the worst of the 20 at
#   -181. That is what all seeds have now. The first two rounds (100 to 109: -231.5) are in `trpo_earlier_rounds.csv`.

# Rollouts still hold whole episodes where an episode is short.
SMOKE_SETTINGS = dict(n_envs=2, n_steps=200, n_critic_updates=1)
SMOKE_UPDATES, SMOKE_EPISODES, SMOKE_SEEDS = 3, 4, range(900, 902)
# The small policy whose curvature is looked at: that of `policy_curvature.py`, and trained as there by Adam.
SMALL = SmallPolicy(
    env="CartPole-v1",
    seed=0,
    task=policies.Task(max_steps=200, iterations=25, batch=32, rate=0.01, what="1 per step"),
    settings=dict(n_envs=10, n_steps=200),
    # Chosen so that the returns of the two are alike.
    checkpoints={
        "TRPO": (0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 24),
        "Adam": (0, 5, 10, 15, 25, 30, 35, 40, 45, 60),
    },
)


def make(run: Run, curves: Recorder, runs: Recorder) -> None:
    """Trains, evaluates and records."""
    import tf_natgrad.rl as rl

    agent = rl.TRPO(run.env, seed=run.seed, **run.settings)
    start = time.perf_counter()
    agent.learn(run.steps)
    seconds = time.perf_counter() - start
    numbers: dict[str, Any] = {}
    for name in ACTIONS:
        returns = agent.evaluate(run.episodes, deterministic=name == "deterministic", seed=EVALUATION_SEED)
        numbers |= {name: float(returns.mean()), f"{name}_sd": float(returns.std(ddof=1))}
    for record in agent.log:
        curves.append(**run.curve_key, **{name: record[name] for name in RECORDED})
    # Last: the run is complete where this row is.
    runs.append(
        **run.key,
        **numbers,
        target_kl=agent.target_kl,
        largest_kl=max(record["kl"] for record in agent.log),
        rejected=sum(not record["accepted"] for record in agent.log),
        updates=agent.updates,
        steps_per_second=float(np.median([record["steps_per_second"] for record in agent.log])),
        seconds=seconds,
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        env: the environment.
        seed: of the agent.
        settings: of the agent, where they are not its defaults.
        steps: of the environments.
        episodes: of each evaluation.
    """

    env: str
    seed: int
    settings: Mapping[str, Any]
    steps: int
    episodes: int

    @classmethod
    def of(cls, env: str, seed: int, smoke: bool) -> Run:
        """The run of an environment and a seed."""
        task = TASKS[env]
        settings = task.settings
        if not smoke:
            return cls(env, seed, settings, task.steps, EPISODES)
        settings = {**settings, **SMOKE_SETTINGS}
        return cls(env, seed, settings, SMOKE_UPDATES * settings["n_envs"] * settings["n_steps"], SMOKE_EPISODES)

    @property
    def key(self) -> dict[str, Any]:
        """The columns `KEY_COLUMNS`."""
        settings = " ".join(f"{name}={value}" for name, value in sorted(self.settings.items()))
        values = (self.env, self.seed, set_of(self.seed), "trpo", settings, self.steps, self.episodes)
        return dict(zip(KEY_COLUMNS, values, strict=True))

    @property
    def curve_key(self) -> dict[str, Any]:
        """The columns `CURVE_KEY_COLUMNS`."""
        return {name: self.key[name] for name in CURVE_KEY_COLUMNS}


def recorders(out: pathlib.Path, resume: bool, smoke: bool) -> tuple[Recorder, Recorder]:
    """The recorders of runs and curves; of what is there, the complete runs with the settings of today are kept."""
    runs_path, curves_path = out / FILES[0], out / FILES[1]
    rows = read_rows(curves_path, CURVE_COLUMNS) if resume and curves_path.exists() else []
    lengths = collections.Counter(tuple(row[name] for name in CURVE_KEY_COLUMNS) for row in rows)

    def keep(key: Key, found: list[Row]) -> bool:
        row = found[0]
        if row["env"] not in TASKS:
            return False
        wanted = Run.of(row["env"], int(row["seed"]), smoke).key
        return key == tuple(map(as_text, wanted.values())) and lengths[curve_of(row)] == int(row["updates"])

    runs = Recorder(runs_path, RUN_COLUMNS, KEY_COLUMNS, resume, keep)
    kept = {curve_of(row) for row in runs.rows()}
    return runs, Recorder(curves_path, CURVE_COLUMNS, CURVE_KEY_COLUMNS, resume, lambda key, rows: key in kept)


def run_all(arguments: argparse.Namespace, out: pathlib.Path) -> None:
    """Makes the runs that are not there yet."""
    from tf_natgrad._progress import progress_bar

    runs, curves = recorders(out, arguments.resume, arguments.smoke)
    plan = [Run.of(env, seed, arguments.smoke) for env in arguments.env for seed in arguments.seeds]
    with progress_bar(total=len(plan), unit="run") as bar:
        for run in plan:
            bar.set_description(f"{run.env}, seed {run.seed}")
            if tuple(run.key.values()) not in runs:
                make(run, curves, runs)
            bar.update()


def parse_seeds(text: str) -> range:
    """Seeds as `a-b`, both included, or one of them, for `argparse`."""
    try:
        first, _, last = text.partition("-")
        seeds = range(int(first), int(last or first) + 1)
    except ValueError:
        seeds = range(0)
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text}: expected seeds such as 100-109")
    return seeds


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser_of(__doc__)
    add = parser.add_argument
    add("--env", choices=tuple(TASKS), nargs="+", default=list(TASKS), help="some environments (default: all three)")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=parse_seeds, metavar="A-B", help="both included (default 100-109)")
    seeds.add_argument("--tuning", action="store_true", help="seeds 0-9, on which the settings were chosen")
    add("--no-curvature", action="store_true", help="leave out the part on curvature")
    add("--only-curvature", action="store_true", help="make nothing else")
    add("--threads", type=int, default=1, help="of TensorFlow (default 1); other numbers round differently")
    add("--table", action="store_true", help="print the table of the docs from the runs in --out, and nothing else")
    options.add_recording(parser)
    arguments = parser.parse_args(argv)
    options.check_recording(parser, arguments)
    if arguments.seeds is None:
        default = SMOKE_SEEDS if arguments.smoke else SETS["confirming"]
        arguments.seeds = SETS["tuning"] if arguments.tuning else default
    if arguments.no_curvature and arguments.only_curvature:
        parser.error("--no-curvature and --only-curvature leave nothing")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, records, draws and reports."""
    arguments = parse(argv)
    options.show_log()
    start = time.perf_counter()
    out = options.output_folder(arguments, "trpo")
    runs_path, curves_path, curvature_path = (out / name for name in FILES)
    if (arguments.replot or arguments.table) and not (runs_path.is_file() and curves_path.is_file()):
        return options.failed(f"nothing to show: there is no {runs_path} with {curves_path}")
    if arguments.table:
        print(table(read_rows(runs_path, RUN_COLUMNS), TASKS, markdown=True))
        return 0
    if not arguments.replot:
        options.set_threads(arguments.threads)
        if not arguments.only_curvature:
            run_all(arguments, out)
        if not arguments.no_curvature:
            run_curvature(SMALL, arguments, out)
    shown = []
    if runs_path.is_file() and (rows := read_rows(runs_path, RUN_COLUMNS)):
        draw_learning(read_rows(curves_path, CURVE_COLUMNS), rows, TASKS, out / "trpo_learning.png")
        shown.append(table(rows, TASKS))
    if curvature_path.is_file() and (rows := read_rows(curvature_path, CURVATURE_COLUMNS)):
        draw_curvature(rows, out / "trpo_curvature.png")
        shown.append(curvature_table(rows))
    print("\n" + "\n\n".join(shown))
    print(f"\nCSV files and figures: {out} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
