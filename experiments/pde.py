"""Differential equations: relative L2 error against iterations and seconds, natural gradient beside its rivals.

Each problem is a network, points and residuals, the same for all contestants of a seed. All minimise the same weighted
sum of squares, in float64, and have the same seconds. Adam's learning rate is the best of a grid on one tuning seed and
decays over the budget as a cosine; L-BFGS keeps 50 corrections; "Adam, then L-BFGS" gives Adam a fifth of the budget.
The natural gradient is `ng.pde.natural_gradient()` as it comes.

The clock counts steps alone: tracing, drawing of points and evaluation are outside of it. Rivals have their loss and
gradient compiled by XLA. The error is taken on points of its own, of the solution that is known in closed form.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from drawing.pde import draw_errors, draw_solutions
from kit import arguments as options
from kit.equations import EQUATIONS
from kit.pde_contest import Clock, Contest, Run, solution_rows
from kit.pde_results import (
    COLUMNS,
    CONTESTANTS,
    KEY_COLUMNS,
    SOLUTION_COLUMNS,
    SUMMARY_COLUMNS,
    TUNING_SEED,
    last_error,
    summarize,
    table,
)
from kit.quasi_newton import scipy_lbfgs, tfp_lbfgs
from kit.recording import Recorder, read_rows
from kit.runs import is_complete, machine, precision, put_back

# TensorFlow and matplotlib are imported where they are used: `--help` and `--table` need not wait for TensorFlow.

# --- The recipe: committed before the first run. The equations stand in `kit/equations.py` ----------------------------

SEEDS = (0, 1, 2, 3, 4)
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
CORRECTIONS = 50
# Of the budget, for Adam before L-BFGS, at the learning rate that was best for Adam.
ADAM_SHARE = 0.2
SMOKE = {"problems": ("poisson",), "budget_scale": 0.03, "seeds": 1, "rates": 1}


def natural(contest: Contest, clock: Clock) -> Iterator[tuple[int, float]]:
    """Steps of `fit` with `ng.pde.natural_gradient()`, which `Contest` compiles; yields iterations and loss."""
    model, batch = contest.model, contest.batch
    model.make_train_function()
    with put_back(lambda: (*model.variables, *model.optimizer.variables)):
        model.train_function(iter([batch]))
    iteration = 0
    while not clock.is_over:
        model.reset_metrics()
        with clock.running():
            logs = model.train_function(iter([batch]))
            loss = float(logs["loss"])
        iteration += 1
        yield iteration, loss


def adam(contest: Contest, clock: Clock, share: float = 1.0) -> Iterator[tuple[int, float]]:
    """Steps of Adam, a hundred in one compiled function; the learning rate falls as a cosine over the budget."""
    import keras
    import tensorflow as tf

    optimizer = keras.optimizers.Adam(contest.run.setting)
    optimizer.build(contest.variables)
    count = 100

    @tf.function(autograph=False, jit_compile=True)
    def step():
        with tf.GradientTape() as tape:
            value = contest.loss()
        optimizer.apply(tape.gradient(value, [v.value for v in contest.variables]), contest.variables)
        return value

    with put_back(lambda: (*contest.variables, *optimizer.variables)):
        step()
    iteration, budget = 0, share * clock.budget
    while clock.seconds < budget:
        optimizer.learning_rate = contest.run.setting * 0.5 * (1.0 + math.cos(math.pi * clock.seconds / budget))
        with clock.running():
            for _ in range(count):
                value = step()
            loss = float(value)
        iteration += count
        yield iteration, loss


def lbfgs(contest: Contest, clock: Clock, done: int = 0) -> Iterator[tuple[int, float]]:
    """Iterations of SciPy's L-BFGS-B."""
    return scipy_lbfgs(contest, clock, CORRECTIONS, done)


def tfp(contest: Contest, clock: Clock) -> Iterator[tuple[int, float]]:
    """Iterations of TensorFlow Probability's L-BFGS."""
    return tfp_lbfgs(contest, clock, CORRECTIONS)


def adam_lbfgs(contest: Contest, clock: Clock) -> Iterator[tuple[int, float]]:
    """Adam for a fifth of the budget, then SciPy's L-BFGS-B."""
    iteration = 0
    for iteration, loss in adam(contest, clock, ADAM_SHARE):
        yield iteration, loss
    yield from lbfgs(contest, clock, iteration)


WAYS: dict[str, Callable[[Contest, Clock], Iterator[tuple[int, float]]]] = {
    "natural": natural,
    "adam": adam,
    "lbfgs": lbfgs,
    "tfp": tfp,
    "adam_lbfgs": adam_lbfgs,
}


def train(contest: Contest) -> Iterator[dict[str, Any]]:
    """Makes one run.

    Args:
        contest: the contestant and its equation.

    Yields:
        The columns from `iteration` on, evaluation by evaluation.
    """
    run, clock = contest.run, Clock(contest.run.budget)

    def row(iteration: int, loss: float | None, end: str = "") -> dict[str, Any]:
        found = {"error": contest.error(), "coefficient": contest.coefficient(), "machine": machine()}
        return {"iteration": iteration, "seconds": clock.seconds, "loss": loss, **found, "end": end}

    yield row(0, None)
    iteration, loss = 0, math.nan
    # SciPy's runs choose their own moments.
    chooses = run.contestant in ("natural", "adam", "tfp")
    for iteration, loss in WAYS[run.contestant](contest, clock):
        if not math.isfinite(loss):
            break
        if not chooses or clock.is_due:
            yield row(iteration, loss)
    end = "budget" if clock.is_over else "stopped" if math.isfinite(loss) else "diverged"
    yield row(iteration, loss, end)


def best_rate(recorder: Recorder, runs: Sequence[Run]) -> float | None:
    """The learning rate of the tuning run with the least error at its end."""
    return min(runs, key=lambda run: last_error(recorder.rows_of(run.key))).setting


def run_all(arguments: argparse.Namespace, path: pathlib.Path, solutions: pathlib.Path) -> None:
    """Makes all runs and records them, equation by equation; Adam's learning rates first."""
    from tf_natgrad._progress import progress_bar

    recorder = Recorder(path, COLUMNS, KEY_COLUMNS, arguments.resume, lambda key, rows: is_complete(rows))
    drawn = Recorder(solutions, SOLUTION_COLUMNS, ("problem", "contestant"), arguments.resume)
    seeds = SEEDS[: arguments.seeds]
    rates = LEARNING_RATES[: SMOKE["rates"] if arguments.smoke else None]
    tunes = any(name.startswith("adam") for name in arguments.contestants)
    each = len(seeds) * len(arguments.contestants) + len(rates) * tunes
    with progress_bar(total=each * len(arguments.problems), unit="run", mininterval=1.0) as bar:
        for problem in arguments.problems:
            budget = EQUATIONS[problem].budget * arguments.budget_scale
            base = Run(problem, "adam", None, TUNING_SEED, budget, arguments.threads)
            tuning = [dataclasses.replace(base, setting=rate) for rate in rates] if tunes else []
            for run in tuning:
                _make(run, recorder, drawn, bar)
            rate = best_rate(recorder, tuning) if tuning else None
            for contestant in arguments.contestants:
                setting = rate if contestant.startswith("adam") else None
                for seed in seeds:
                    run = dataclasses.replace(base, contestant=contestant, setting=setting, seed=seed)
                    _make(run, recorder, drawn, bar)


def _make(run: Run, recorder: Recorder, drawn: Recorder, bar: Any) -> None:
    bar.set_description(f"{run.problem}, {run.contestant}, seed {run.seed}")
    if run.key not in recorder:
        with precision("float64"):
            contest = Contest(run)
            for row in train(contest):
                recorder.append(**run.columns, **row)
                bar.set_postfix(s=f"{row['seconds']:.1f}", error=f"{row['error']:.2g}")
            if _is_drawn(run) and (run.problem, run.contestant) not in drawn:
                for row in solution_rows(contest):
                    drawn.append(**row)
        # The traced functions of the run are cycles.
        gc.collect()
    bar.update()


def _is_drawn(run: Run) -> bool:
    return run.seed == SEEDS[0] and run.contestant == "natural" and EQUATIONS[run.problem].in_plane


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser_of(__doc__)
    add = parser.add_argument
    problems, contestants = tuple(EQUATIONS), CONTESTANTS
    add(
        "--problems",
        type=options.some_of(problems),
        metavar="NAMES",
        help=f"some of {', '.join(problems)} (default: all)",
    )
    names = ", ".join(contestants)
    add("--contestants", type=options.some_of(contestants), metavar="NAMES", help=f"some of {names} (default: all)")
    add(
        "--seeds",
        type=options.positive(int),
        default=len(SEEDS),
        help=f"how many seeds (default and most: {len(SEEDS)})",
    )
    add("--threads", type=options.positive(int), default=2, help="of TensorFlow (default 2)")
    add("--budget-scale", type=options.positive(float), metavar="F", help="multiplies every budget (default 1)")
    add("--table", action="store_true", help="print the table of the docs from the summary in --out, and nothing else")
    options.add_recording(parser)
    arguments = parser.parse_args(argv)
    options.check_recording(parser, arguments)
    options.check_table(parser, arguments)
    arguments.problems = arguments.problems or list(SMOKE["problems"] if arguments.smoke else problems)
    arguments.contestants = arguments.contestants or list(contestants)
    arguments.budget_scale = arguments.budget_scale or (SMOKE["budget_scale"] if arguments.smoke else 1.0)
    arguments.seeds = min(arguments.seeds, SMOKE["seeds"] if arguments.smoke else len(SEEDS))
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, records, draws and reports."""
    arguments = parse(argv)
    options.show_log()
    out = options.output_folder(arguments, "pde")
    path, summary, solutions = out / "pde.csv", out / "pde_summary.csv", out / "pde_solutions.csv"
    needed = summary if arguments.table else path if arguments.replot else None
    if needed is not None and not needed.is_file():
        return options.failed(f"nothing to show: there is no {needed}")
    if arguments.table:
        print(table(read_rows(summary, SUMMARY_COLUMNS)))
        return 0
    start = time.perf_counter()
    try:
        if not arguments.replot:
            options.set_threads(arguments.threads)
            run_all(arguments, path, solutions)
        rows = read_rows(path, COLUMNS)
        recorder = Recorder(summary, SUMMARY_COLUMNS, ("problem", "contestant"))
        for row in summarize(rows):
            recorder.append(**row)
        if not recorder.rows():
            return options.failed(f"nothing to show: {path} has no complete run")
        draw_errors(rows, out / "pde.png")
        if found := read_rows(solutions, SOLUTION_COLUMNS):
            draw_solutions(found, out / "pde_solutions.png")
    except OSError as error:
        # A full disk: what is recorded is whole, and --resume goes on.
        return options.failed(error)
    print(f"\n{table(recorder.rows())}\n\nCSV files and figures: {out} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
