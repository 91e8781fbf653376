"""Races: iterations and seconds that optimizers need to stated targets, on stated problems.

Every contestant has a grid of four settings and the same budget: seconds of training on one core. Each setting is
tried on one tuning seed, and the best of them (the tightest target reached, then the seconds to it, then the metric
at the end) runs on the seeds of the race. `defaults` is `NaturalGradient()` as it comes, and is not tuned. A run ends
at its budget, on reaching the tightest target, or when it diverges.

The clock counts calls of the model's own train function, as `fit` makes them, and nothing else. One step, and one
evaluation, are made before the start so that all is traced; then weights, optimizer state and random seeds are put
back. Batches are made before the clock starts, and evaluation is outside of it. All contestants of a seed have the
same initial weights and the same order of the data.

In the CSV a row is one evaluation. `metric` is what the targets are about, `loss` the loss on the same examples, and
`train_loss` the mean over the batches since the last row. `cpu_seconds` are the processor's during `seconds`: with
one thread they are less where other processes shared the core, and a warning names such runs. `end` tells in the last
row of a run why it ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from drawing.races import draw_races
from kit import arguments as options
from kit.race_contest import Contest, Run, Task
from kit.race_grids import TUNING_SEED, grid, setting_text
from kit.race_networks import Problem
from kit.race_results import (
    COLUMNS,
    CONTESTANTS,
    KEY_COLUMNS,
    SUMMARY_COLUMNS,
    Result,
    best_setting,
    disturbed,
    summarize,
    table,
)
from kit.recording import Recorder, Row, as_text, read_rows
from kit.runs import is_complete, machine, precision

# TensorFlow and matplotlib are imported where they are used: `--help` and `--table` need not wait for TensorFlow.

LOGGER = logging.getLogger("tf_natgrad")

# --- The recipe: committed before the first run, as the grids in `kit/race_grids.py` were -----------------------------

# What was decided by looking at runs was decided on seed 1000, of no race: the autoencoders' units, batches and
# targets, and those of the deep and the residual network.
PROBLEMS: dict[str, Problem] = {
    "blog": Problem("softmax regression, 14x14", "test loss (nats)", (0.5, 0.4, 0.35), 4.0, 32, 14),
    "mlp": Problem("784-512-512-10, relu", "test error", (0.05, 0.03, 0.025), 12.0, 128, 28, xla=True),
    "conv": Problem("2c2d, 3.3 million weights", "test error", (0.05, 0.03, 0.02), 18.0, 64, 28, 2_000),
    "autoencoder": Problem(
        *("autoencoder 784-1000-500-250-30-..., tanh", "test loss (nats per pixel)", (0.2, 0.15, 0.12)),
        *(36.0, 256, 28, 2_000),
    ),
    # First-order methods slow down on the way to these.
    "autoencoder_low": Problem(
        "autoencoder 784-1000-500-250-30-..., tanh, lower targets",
        "test loss (nats per pixel)",
        (0.2, 0.15, 0.12, 0.1, 0.09),
        budget=50.0,
        batch_size=256,
        image_size=28,
        test_images=2_000,
    ),
    "sigmoid": Problem(
        *("autoencoder, sigmoid, sparse initialisation", "test loss (nats per pixel)", (0.2, 0.15, 0.12)),
        *(40.0, 1_000, 28, 2_000),
    ),
    "deep": Problem("784, ten times 100 tanh, 10", "test error", (0.05, 0.04, 0.03), 12.0, 256, 28, xla=True),
    "resnet": Problem("ResNet, BatchNormalization", "test error", (0.05, 0.03, 0.02), 16.0, 128, 28, 2_000),
    "regression": Problem(
        "1-64-64-1, tanh, 256 points", "training loss", (1e-2, 1e-4, 1e-6), 10.0, None, None, precision="float64"
    ),
}
SEEDS = (0, 1, 2)
# Nothing is tuned: the tuning seed's time goes into more seeds.
DEFAULTS_SEEDS = (0, 1, 2, 3, 4)
# Times the first loss.
DIVERGED = 10.0
# The tests and `--smoke`: enough seconds for some steps of each contestant.
SMOKE = {"problems": ("blog", "regression"), "budget_scale": 0.02, "settings": 1, "seeds": 1}


def train(task: Task, run: Run) -> Iterator[dict[str, Any]]:
    """Makes one run.

    Args:
        task: its problem.
        run: which one.

    Yields:
        The columns from `iteration` on, evaluation by evaluation.
    """
    contest = Contest(task, run)
    problem = task.problem
    found = contest.evaluate()
    first, end = found["loss"], None
    iteration = made = 0
    seconds = cpu_seconds = duration = 0.0
    yield {"iteration": 0, "seconds": 0.0, "cpu_seconds": 0.0, **found, "machine": machine()}
    while not end:
        size = next_chunk(made, duration, run.budget - seconds, run.budget, problem.evaluations)
        made, duration, cpu, train_loss = contest.steps(size)
        iteration, seconds, cpu_seconds = iteration + made, seconds + duration, cpu_seconds + cpu
        found = contest.evaluate()
        if any(has_diverged(loss, first) for loss in (found["loss"], train_loss)):
            end = "diverged"
        elif found["metric"] <= problem.targets[-1]:
            end = "target"
        elif seconds >= run.budget:
            end = "budget"
        times = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        yield {"iteration": iteration, **times, **found, "train_loss": train_loss, "end": end}


def has_diverged(loss: float, first: float) -> bool:
    """Whether a loss is not finite or more than ten times the initial one."""
    return not loss <= DIVERGED * first


def next_chunk(size: int, seconds: float, left: float, budget: float, evaluations: int) -> int:
    """How many steps to make until the next evaluation: a power of two, but near the end of the budget.

    Args:
        size: the steps of the last chunk, 0 at the start.
        seconds: that it took.
        left: seconds left.
        budget: seconds of the whole run.
        evaluations: how many a run should have at least, if its steps are short enough.

    Returns:
        At least 1.
    """
    if size == 0:
        return 1
    pace = max(seconds, 1e-9) / size
    size = 2 * size if 2.0 * seconds <= budget / evaluations else size
    return max(1, min(size, math.ceil(left / pace)))


def plan(arguments: argparse.Namespace, name: str, dataset: str, contestant: str) -> tuple[list[Run], list[int]]:
    """The tuning runs of a contestant on a problem, and the seeds of its race.

    Args:
        arguments: the command line.
        name: a key of `PROBLEMS`.
        dataset: the data's name.
        contestant: a key of `NAMES`.

    Returns:
        `(tuning runs, seeds)`. Where there is one setting it is not tried beforehand.
    """
    settings = grid(name, contestant)[: SMOKE["settings"] if arguments.smoke else None]
    seeds = list(DEFAULTS_SEEDS if contestant == "defaults" else SEEDS)[: SMOKE["seeds"] if arguments.smoke else None]
    budget = PROBLEMS[name].budget * arguments.budget_scale
    runs = [Run(name, dataset, contestant, setting, TUNING_SEED, budget, arguments.threads) for setting in settings]
    return runs, seeds


def load(arguments: argparse.Namespace) -> dict[str, Task]:
    """The problems with their data."""
    tasks = {name: Task(name, PROBLEMS[name], arguments.dataset) for name in arguments.problems}
    if any(task.dataset == "digits" for task in tasks.values()):
        LOGGER.warning("data set: scikit-learn's digits, 8x8, in place of MNIST; none of it is MNIST")
    return tasks


def run_all(arguments: argparse.Namespace, tasks: Mapping[str, Task], path: pathlib.Path) -> None:
    """Makes all runs and records them: problem by problem, contestant by contestant, tuning first, then the race."""
    from tf_natgrad._progress import progress_bar

    plans = {
        (name, contestant): plan(arguments, name, task.dataset, contestant)
        for name, task in tasks.items()
        for contestant in arguments.contestants
        if grid(name, contestant)
    }
    recorder = Recorder(
        path,
        COLUMNS,
        KEY_COLUMNS,
        arguments.resume,
        lambda key, rows: is_complete(rows) and _is_raced(arguments, rows[0]),
    )
    total = sum(len(seeds) + (len(runs) if len(runs) > 1 else 0) for runs, seeds in plans.values())
    with progress_bar(total=total, unit="run", mininterval=1.0) as bar:
        for (name, _), (tuning, seeds) in plans.items():
            if len(tuning) > 1:
                for run in tuning:
                    _make(tasks[name], run, recorder, bar)
                tried = [Result.of(recorder.rows_of(run.key)) for run in tuning]
                setting = best_setting(tried, PROBLEMS[name].targets)
                tuning = [run for run in tuning if run.setting == setting]
            for seed in seeds:
                _make(tasks[name], dataclasses.replace(tuning[0], seed=seed), recorder, bar)


def _is_raced(arguments: argparse.Namespace, row: Row) -> bool:
    """Whether a recorded run is of this race: one of its settings, with its budget and threads."""
    problem, contestant = row["problem"], row["contestant"]
    if problem not in PROBLEMS or contestant not in CONTESTANTS:
        return False
    budget = as_text(PROBLEMS[problem].budget * arguments.budget_scale)
    settings = map(setting_text, grid(problem, contestant))
    return (row["budget"], row["threads"]) == (budget, str(arguments.threads)) and row["setting"] in settings


def _make(task: Task, run: Run, recorder: Recorder, bar: Any) -> None:
    bar.set_description(f"{run.problem}, {run.contestant}, {run.setting}, seed {run.seed}")
    if run.key not in recorder:
        with precision(task.problem.precision):
            for row in train(task, run):
                recorder.append(**run.columns, **row)
                bar.set_postfix(s=f"{row['seconds']:.1f}", metric=f"{row['metric']:.3g}", end=row.get("end"))
        # The traced functions of the run are cycles.
        gc.collect()
    bar.update()


def write_summary(rows: Sequence[Row], path: pathlib.Path) -> list[Row]:
    """Writes the summary of the runs.

    Args:
        rows: of the CSV of the races.
        path: of the CSV to be written.

    Returns:
        Its rows.
    """
    recorder = Recorder(path, SUMMARY_COLUMNS, ("problem", "contestant", "target"))
    for row in summarize(rows, PROBLEMS):
        recorder.append(**row)
    return recorder.rows()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser_of(__doc__)
    add = parser.add_argument
    options.add_dataset(parser)
    names = ", ".join(PROBLEMS)
    add("--problems", type=options.some_of(tuple(PROBLEMS)), metavar="NAMES", help=f"some of {names} (default: all)")
    names = ", ".join(CONTESTANTS)
    add("--contestants", type=options.some_of(CONTESTANTS), metavar="NAMES", help=f"some of {names} (default: all)")
    add("--threads", type=options.positive(int), default=1, help="of TensorFlow (default 1)")
    add(
        "--budget-scale",
        type=options.positive(float),
        metavar="F",
        help=f"multiplies every budget (default 1; {SMOKE['budget_scale']:g} with --smoke)",
    )
    add("--table", action="store_true", help="print the table of the docs from the summary in --out, and nothing else")
    options.add_recording(parser)
    arguments = parser.parse_args(argv)
    options.check_recording(parser, arguments)
    options.check_table(parser, arguments)
    arguments.problems = arguments.problems or list(SMOKE["problems"] if arguments.smoke else PROBLEMS)
    arguments.contestants = arguments.contestants or list(CONTESTANTS)
    arguments.budget_scale = arguments.budget_scale or (SMOKE["budget_scale"] if arguments.smoke else 1.0)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, records, draws and reports."""
    arguments = parse(argv)
    options.show_log()
    start = time.perf_counter()
    out = options.output_folder(arguments, "races")
    path, summary = out / "races.csv", out / "races_summary.csv"
    needed = summary if arguments.table else path if arguments.replot else None
    if needed is not None and not needed.is_file():
        return options.failed(f"nothing to show: there is no {needed}")
    if arguments.table:
        print(table(read_rows(summary, SUMMARY_COLUMNS)))
        return 0
    try:
        if not arguments.replot:
            options.set_threads(arguments.threads)
            try:
                tasks = load(arguments)
            except ValueError as error:
                return options.failed(error)
            run_all(arguments, tasks, path)
        rows = read_rows(path, COLUMNS)
        summarized = write_summary(rows, summary)
        if not summarized:
            return options.failed(f"nothing to show: {path} has no complete race")
        draw_races(rows, PROBLEMS, out)
    except OSError as error:
        # A full disk: what is recorded is whole, and --resume goes on.
        return options.failed(error)
    if found := disturbed(rows):
        names = ", ".join(sorted({f"{row['contestant']} on {row['problem']}" for row in found}))
        LOGGER.warning("%d runs had less than 90%% of a core, their seconds are too many: %s", len(found), names)
    print(f"\n{table(summarized)}\n\nCSV files and figures: {out} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
