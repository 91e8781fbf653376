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
import contextlib
import dataclasses
import gc
import logging
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from drawing.style import BLUE, GREEN, ORANGE, PURPLE, SKY, pyplot, save, set_caption
from kit.arguments import (
    add_recording,
    check_recording,
    check_table,
    output_folder,
    positive,
    set_threads,
    show_log,
    some_of,
)
from kit.equations import EQUATIONS, Equation
from kit.recording import Recorder, Row, read_rows
from kit.runs import KeyedRun, complete_runs, is_complete, machine, put_back

LOGGER = logging.getLogger("tf_natgrad")

# --- What is compared: committed before the first run ----------------------------------------------------------------

TUNING_SEED = 100
SEEDS = (0, 1, 2, 3, 4)
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
CORRECTIONS = 50
# Of the budget, for Adam before L-BFGS, at the learning rate that was best for Adam.
ADAM_SHARE = 0.2
TARGETS = (1e-3, 1e-4, 1e-5, 1e-6)

# --- End of what is compared -----------------------------------------------------------------------------------------

NAMES = {
    "natural": "natural gradient",
    "adam": "Adam, decayed",
    "lbfgs": "L-BFGS-B (SciPy)",
    "tfp": "L-BFGS (TensorFlow Probability)",
    "adam_lbfgs": "Adam, then L-BFGS-B",
}
COLOURS = {"natural": GREEN, "adam": ORANGE, "lbfgs": BLUE, "tfp": SKY, "adam_lbfgs": PURPLE}
CONTESTANTS = tuple(NAMES)
KEY_COLUMNS = ("problem", "contestant", "setting", "seed", "budget", "threads")
COLUMNS = (*KEY_COLUMNS, "iteration", "seconds", "loss", "error", "coefficient", "end", "machine")
SUMMARY_COLUMNS = (
    *("problem", "contestant", "setting", "budget", "seeds", "error", "error_min", "error_max", "iterations"),
    *(f"seconds_to_{target:g}" for target in TARGETS),
)
SOLUTION_COLUMNS = ("problem", "contestant", "x", "y", "solution", "error")
SMOKE = {"problems": ("poisson",), "budget_scale": 0.03, "seeds": 1, "rates": 1}


@dataclasses.dataclass(frozen=True)
class Run(KeyedRun):
    """One training run; its fields are the key columns.

    Attributes:
        problem: a key of `EQUATIONS`.
        contestant: a key of `NAMES`.
        setting: Adam's learning rate, or nothing.
        seed: of weights and points.
        budget: seconds.
        threads: of TensorFlow.
    """

    key_columns = KEY_COLUMNS
    problem: str
    contestant: str
    setting: float | None
    seed: int
    budget: float
    threads: int


class Clock:
    """Seconds of training, evaluation left out, and when the next evaluation is due: later and later.

    Args:
        budget: seconds.
    """

    def __init__(self, budget: float):
        self.budget, self.seconds = budget, 0.0
        self._due = budget / 1000.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Counts what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.seconds >= self.budget

    @property
    def is_due(self) -> bool:
        """Whether to evaluate now; asked once, it is due again a tenth of the time so far later."""
        if self.seconds < self._due and not self.is_over:
            return False
        self._due = max(1.1 * self.seconds, self.seconds + self.budget / 1000.0)
        return True


class Contest:
    """A contestant on an equation, traced and ready to start.

    Args:
        run: which one.
    """

    def __init__(self, run: Run):
        import keras
        import tensorflow as tf

        import tf_natgrad as ng
        from tf_natgrad.parameters import FlatParameters

        self.run, self.equation = run, EQUATIONS[run.problem]
        keras.utils.set_random_seed(run.seed)
        self.network, self.unknown = self.equation.network(), self.equation.unknown()
        beside = [] if self.unknown is None else [self.unknown]
        self.model = ng.pde.ResidualModel(
            self.network, self.equation.terms(self.unknown), self.equation.weights, coefficients=beside
        )
        points = self.equation.points(np.random.default_rng(run.seed))
        self.batch = next(iter(self.model.batches(points)))
        self.model.compile(ng.pde.natural_gradient(), "mse")
        self.model(self.batch[0])
        self.variables = self.model.trainable_variables
        self.model.optimizer.build(self.variables)
        self.flat = FlatParameters(self.variables)
        self._tests = self.equation.tests()
        self._outputs = tf.function(lambda x: self.network(x))
        self.error()

    def error(self) -> float:
        """The relative L2 error of the solution."""
        x, exact = self._tests
        return float(np.linalg.norm(self._outputs(x).numpy() - exact) / np.linalg.norm(exact))

    def coefficient(self) -> float | None:
        """The unknown number of the equation as it is now, if there is one."""
        return None if self.unknown is None else float(self.unknown.number.numpy())

    def loss(self):
        """The weighted sum of squares, a scalar tensor."""
        import tensorflow as tf

        inputs, _, weights = self.batch
        return tf.reduce_mean(weights * tf.reduce_mean(tf.square(self.model(inputs)), -1))

    def value_and_gradient(self):
        """A compiled function of all weights in one vector, which it assigns: loss and gradient."""
        import tensorflow as tf

        @tf.function(autograph=False, jit_compile=True)
        def compiled():
            with tf.GradientTape() as tape:
                value = self.loss()
            return value, self.flat.flatten(tape.gradient(value, [v.value for v in self.variables]))

        def of(vector):
            self.flat.assign(vector)
            return compiled()

        return of


def natural(contest: Contest, clock: Clock) -> Iterator[tuple[int, float]]:
    """Steps of `fit`; yields iterations and loss."""
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


class _Over(Exception):
    """The budget is spent."""


def lbfgs(contest: Contest, clock: Clock, done: int = 0) -> Iterator[tuple[int, float]]:
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

    options = {"maxcor": CORRECTIONS, "maxiter": 10**9, "maxfun": 10**9, "ftol": 0.0, "gtol": 0.0, "maxls": 50}
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


def tfp(contest: Contest, clock: Clock) -> Iterator[tuple[int, float]]:
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

    options = {"num_correction_pairs": CORRECTIONS, "tolerance": 0.0, "max_line_search_iterations": 50}
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


def solution_rows(contest: Contest) -> list[dict[str, Any]]:
    """The solution on a grid, for equations in the plane."""
    x, exact = contest.equation.grid()
    found = contest.network(x).numpy()
    # Six digits of both would not tell their difference.
    columns = zip(x[:, 0], x[:, 1], found[:, 0], (found - exact)[:, 0], strict=True)
    own = {"problem": contest.run.problem, "contestant": contest.run.contestant}
    return [own | dict(zip(SOLUTION_COLUMNS[2:], map(float, values), strict=True)) for values in columns]


def last_error(rows: Sequence[Row]) -> float:
    """The error at the end of a run; infinite where it diverged."""
    error = float(rows[-1]["error"])
    return error if rows[-1]["end"] != "diverged" and math.isfinite(error) else math.inf


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
    import keras

    bar.set_description(f"{run.problem}, {run.contestant}, seed {run.seed}")
    if run.key not in recorder:
        before = keras.config.floatx(), keras.config.dtype_policy()
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        try:
            contest = Contest(run)
            for row in train(contest):
                recorder.append(**run.columns, **row)
                bar.set_postfix(s=f"{row['seconds']:.1f}", error=f"{row['error']:.2g}")
            if _is_drawn(run) and (run.problem, run.contestant) not in drawn:
                for row in solution_rows(contest):
                    drawn.append(**row)
        finally:
            keras.config.set_floatx(before[0])
            keras.config.set_dtype_policy(before[1])
        # The traced functions of the run are cycles.
        gc.collect()
    bar.update()


def _is_drawn(run: Run) -> bool:
    return run.seed == SEEDS[0] and run.contestant == "natural" and EQUATIONS[run.problem].in_plane


def runs_of(rows: Sequence[Row]) -> dict[tuple[str, str], list[list[Row]]]:
    """The complete runs that count, by problem and contestant, in the order of the tables."""
    found: dict[tuple[str, str], list[list[Row]]] = {(p, c): [] for p in EQUATIONS for c in CONTESTANTS}
    for group in complete_runs(rows, KEY_COLUMNS):
        if group[0]["seed"] != str(TUNING_SEED):
            found[group[0]["problem"], group[0]["contestant"]].append(group)
    return {key: groups for key, groups in found.items() if groups}


def seconds_to(rows: Sequence[Row], target: float) -> float:
    """Seconds to the first evaluation with an error at the target; infinite if there is none."""
    return next((float(row["seconds"]) for row in rows if float(row["error"]) <= target), math.inf)


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per problem and contestant: errors at the end, and median seconds to each target."""
    summary = []
    for (problem, contestant), groups in runs_of(rows).items():
        errors = [last_error(group) for group in groups]
        seconds = {t: statistics.median(seconds_to(group, t) for group in groups) for t in TARGETS}
        summary.append(
            {
                "problem": problem,
                "contestant": contestant,
                "setting": groups[0][0]["setting"],
                "budget": groups[0][0]["budget"],
                "seeds": len(groups),
                "error": statistics.median(errors),
                "error_min": min(errors),
                "error_max": max(errors),
                "iterations": statistics.median(int(group[-1]["iteration"]) for group in groups),
                **{f"seconds_to_{t:g}": s if math.isfinite(s) else None for t, s in seconds.items()},
            }
        )
    return summary


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The table of the README, in Markdown: median errors at the end, and how far the natural gradient is ahead."""
    by_problem: dict[str, dict[str, float]] = {}
    budgets = {row["problem"]: row["budget"] for row in summary}
    for row in summary:
        by_problem.setdefault(row["problem"], {})[row["contestant"]] = float(row["error"])
    head = ["equation", "seconds", *NAMES.values(), "Adam's error / natural", "best L-BFGS's error / natural"]
    lines = [head, ["---"] * len(head)]
    for problem, errors in by_problem.items():
        own = errors.get("natural", math.nan)
        quasi = min((errors[c] for c in ("lbfgs", "tfp", "adam_lbfgs") if c in errors), default=math.nan)
        cells = [f"{errors[c]:.1e}" if c in errors else "not run" for c in CONTESTANTS]
        ratios = [f"{errors.get('adam', math.nan) / own:,.2g}", f"{quasi / own:,.2g}"]
        lines.append([EQUATIONS[problem].title, budgets[problem], *cells, *ratios])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw_errors(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the error against iterations and against seconds, a row of panels per equation."""
    runs = runs_of(rows)
    names = [name for name in EQUATIONS if any(problem == name for problem, _ in runs)]
    figure, axes = pyplot().subplots(len(names), 2, figsize=(13, 3.9 * len(names)), squeeze=False, sharey="row")
    for pair, name in zip(axes, names, strict=True):
        for axis, unit in zip(pair, ("iteration", "seconds"), strict=True):
            for contestant in CONTESTANTS:
                groups = runs.get((name, contestant), [])
                if groups:
                    _draw_runs(axis, groups, unit, COLOURS[contestant], NAMES[contestant])
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlabel(f"{'iterations' if unit == 'iteration' else 'seconds of training'} (logarithmic)")
            axis.grid(alpha=0.25)
        equation: Equation = EQUATIONS[name]
        pair[0].set_title(f"{equation.title}")
        budget = next(groups[0][0]["budget"] for (problem, _), groups in runs.items() if problem == name)
        pair[1].set_title(f"budget {budget} s")
        pair[0].set_ylabel("relative L2 error (logarithmic)")
    axes[0][0].legend(fontsize=8)
    threads = " or ".join(dict.fromkeys(row["threads"] for row in rows))
    seeds = sorted({len(groups) for groups in runs.values()})
    counted = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    where = next((row["machine"] for row in rows if row["machine"]), "an unknown machine")
    set_caption(
        figure,
        f"Medians over {counted} seed(s), bands from the least to the greatest; who is done keeps the last error. "
        "Contestants of a seed share weights and points and minimise the same sum of squares, in float64, with "
        f"{threads} thread(s) of TensorFlow on {where}. Adam's learning rate is the best of "
        f"{len(LEARNING_RATES)} on seed {TUNING_SEED}.",
    )
    save(figure, path)


def _draw_runs(axis, groups: Sequence[Sequence[Row]], unit: str, colour: str, label: str) -> None:
    """The median of the seeds with the band from least to greatest."""
    xs = [np.array([float(row[unit]) for row in group]) for group in groups]
    errors = [np.array([float(row["error"]) for row in group]) for group in groups]
    start, last = min(x[1] for x in xs), max(x[-1] for x in xs)
    grid = np.geomspace(start, max(last, 1.001 * start), 300)
    values = [e[np.searchsorted(x, grid * (1.0 + 1e-9), side="right") - 1] for x, e in zip(xs, errors, strict=True)]
    axis.plot(grid, np.median(values, 0), color=colour, linewidth=1.5, label=label)
    axis.fill_between(grid, np.min(values, 0), np.max(values, 0), color=colour, alpha=0.15, linewidth=0)


def draw_solutions(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the solutions in the plane, and their errors."""
    names = [name for name in EQUATIONS if any(row["problem"] == name for row in rows)]
    figure, axes = pyplot().subplots(len(names), 2, figsize=(9, 3.6 * len(names)), squeeze=False)
    for pair, name in zip(axes, names, strict=True):
        own = [row for row in rows if row["problem"] == name]
        x, y, found, error = (np.array([float(row[c]) for row in own]) for c in SOLUTION_COLUMNS[2:])
        shape = (len(np.unique(x)), len(np.unique(y)))
        equation = EQUATIONS[name]
        for axis, values, title, colours in (
            (pair[0], found, f"{equation.title}: u", "viridis"),
            (pair[1], error, "u minus the exact solution", "RdBu"),
        ):
            limit = np.abs(values).max() if colours == "RdBu" else None
            limits = {} if limit is None else {"vmin": -limit, "vmax": limit}
            grids = (a.reshape(shape) for a in (x, y, values))
            image = axis.pcolormesh(*grids, cmap=colours, shading="nearest", **limits)
            figure.colorbar(image, ax=axis)
            axis.set_xlabel(equation.coordinates[0])
            axis.set_ylabel(equation.coordinates[1])
            axis.set_title(title, fontsize=10)
    set_caption(figure, "What the natural gradient found on seed 0 at the end of its budget, and how far it is off.")
    save(figure, path)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    problems, contestants = tuple(EQUATIONS), CONTESTANTS
    add("--problems", type=some_of(problems), metavar="NAMES", help=f"some of {', '.join(problems)} (default: all)")
    names = ", ".join(contestants)
    add("--contestants", type=some_of(contestants), metavar="NAMES", help=f"some of {names} (default: all)")
    add("--seeds", type=positive(int), default=len(SEEDS), help=f"how many seeds (default and most: {len(SEEDS)})")
    add("--threads", type=positive(int), default=2, help="of TensorFlow (default 2)")
    add("--budget-scale", type=positive(float), metavar="F", help="multiplies every budget (default 1)")
    add("--table", action="store_true", help="print the README's table from the summary in --out, and nothing else")
    add_recording(parser)
    arguments = parser.parse_args(argv)
    check_recording(parser, arguments)
    check_table(parser, arguments)
    arguments.problems = arguments.problems or list(SMOKE["problems"] if arguments.smoke else problems)
    arguments.contestants = arguments.contestants or list(contestants)
    arguments.budget_scale = arguments.budget_scale or (SMOKE["budget_scale"] if arguments.smoke else 1.0)
    arguments.seeds = min(arguments.seeds, SMOKE["seeds"] if arguments.smoke else len(SEEDS))
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, records, draws and reports."""
    arguments = parse_arguments(argv)
    show_log()
    out = output_folder(arguments, "pde")
    path, summary, solutions = out / "pde.csv", out / "pde_summary.csv", out / "pde_solutions.csv"
    needed = summary if arguments.table else path if arguments.replot else None
    if needed is not None and not needed.is_file():
        print(f"error: nothing to show: there is no {needed}", file=sys.stderr)
        return 1
    if arguments.table:
        print(table(read_rows(summary, SUMMARY_COLUMNS)))
        return 0
    start = time.perf_counter()
    try:
        if not arguments.replot:
            set_threads(arguments.threads)
            run_all(arguments, path, solutions)
        rows = read_rows(path, COLUMNS)
        recorder = Recorder(summary, SUMMARY_COLUMNS, ("problem", "contestant"))
        for row in summarize(rows):
            recorder.append(**row)
        if not recorder.rows():
            print(f"error: nothing to show: {path} has no complete run", file=sys.stderr)
            return 1
        draw_errors(rows, out / "pde.png")
        if found := read_rows(solutions, SOLUTION_COLUMNS):
            draw_solutions(found, out / "pde_solutions.png")
    except OSError as error:
        # A full disk: what is recorded is whole, and --resume goes on.
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{table(recorder.rows())}\n\nCSV files and figures: {out} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
