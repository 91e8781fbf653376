"""Races: iterations and seconds that optimizers need to stated targets, on stated problems.

Every contestant has a grid of four settings and the same budget: seconds of training on one core. Each setting is
tried on one tuning seed, and the best of them (the tightest target reached, then the seconds to it, then the metric
at the end) runs on the seeds of the race. `defaults` is the exact step as it comes, and is not tuned. A run ends
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
import contextlib
import dataclasses
import gc
import logging
import math
import os
import pathlib
import statistics
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from drawing.style import (
    BLACK,
    BLUE,
    BROWN,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    YELLOW,
    pyplot,
    save,
    set_caption,
)
from kit.arguments import (
    add_dataset,
    add_recording,
    check_recording,
    check_table,
    output_folder,
    positive,
    set_threads,
    show_log,
    some_of,
)
from kit.raced import (
    AUTOENCODERS,
    DEFAULTS_SEEDS,
    DIVERGED,
    LEARNING_RATES,
    NATURAL,
    OWN_BATCH,
    PROBLEMS,
    REGRESSION_INTERVAL,
    REGRESSION_POINTS,
    SEEDS,
    TUNING_SEED,
    network,
)
from kit.recording import Recorder, Row, as_text, read_rows
from kit.runs import KeyedRun, complete_runs, is_complete, machine, put_back, title_of

# TensorFlow and matplotlib are imported where they are used: `--help` and `--table` need not wait for TensorFlow.

LOGGER = logging.getLogger("tf_natgrad")

FIRST_ORDER = ("sgd", "momentum", "adam", "adamw")
OWN = "adam_own"
COLOURS = {
    "sgd": GREY,
    "momentum": SKY,
    "adam": ORANGE,
    "adamw": RED,
    OWN: BROWN,
    "gram": GREEN,
    "cg": BLUE,
    "kfac": BLACK,
    "ekfac": YELLOW,
    "defaults": PURPLE,
}
CONTESTANTS = tuple(COLOURS)
NAMES = {
    "sgd": "SGD",
    "momentum": "SGD, Nesterov momentum 0.9",
    "adam": "Adam",
    "adamw": "AdamW",
    OWN: "Adam, its own batch",
    "gram": "natural gradient, Gram",
    "cg": "natural gradient, CG",
    "kfac": "natural gradient, K-FAC",
    "ekfac": "natural gradient, EKFAC",
    "defaults": "natural gradient, defaults",
}
KEY_COLUMNS = ("problem", "dataset", "contestant", "setting", "seed", "budget", "threads")
COLUMNS = (*KEY_COLUMNS, "iteration", "seconds", "cpu_seconds", "metric", "loss", "train_loss", "end", "machine")
SUMMARY_COLUMNS = (
    *("problem", "metric", "contestant", "setting", "at_the_edge_of_the_grid", "target", "seeds", "reached"),
    *("iterations", "iterations_min", "iterations_max", "seconds", "seconds_min", "seconds_max"),
    *("seconds_per_iteration", "metric_at_the_end", "diverged", "diverged_while_tuning"),
)
# The tests and `--smoke`: enough seconds for some steps of each contestant.
SMOKE = {"problems": ("blog", "regression"), "budget_scale": 0.02, "settings": 1, "seeds": 1}
EVALUATED_AT_ONCE = 1_000

Setting = Mapping[str, Any]


def grid(problem: str, contestant: str) -> tuple[Setting, ...]:
    """The settings of a contestant: arguments of its optimizer, and its batch size if not the problem's; or none."""
    if contestant == "defaults":
        return ({},) if "gram" in NATURAL[problem] else ()
    if contestant == OWN:
        return OWN_BATCH.get(problem, ())
    if contestant in FIRST_ORDER:
        return tuple({"learning_rate": rate} for rate in LEARNING_RATES[problem][contestant])
    return NATURAL[problem].get(contestant, ())


def setting_text(setting: Setting) -> str:
    """A setting as it stands in the CSV, on one line and without commas between its parts."""
    return "; ".join(f"{name}={_value_text(value)}" for name, value in setting.items()) or "as it comes"


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        ((name, arguments),) = value.items()
        return f"{name}({' '.join(f'{k}={_value_text(v)}' for k, v in arguments.items())})"
    return as_text(value)


@dataclasses.dataclass(frozen=True)
class Run(KeyedRun):
    """One training run; its fields are key columns of the CSV, the setting as text.

    Attributes:
        problem: a key of `PROBLEMS`.
        dataset: `"mnist"` or `"digits"`; `"sine"` for the regression.
        contestant: a key of `COLOURS`.
        arguments: of its optimizer.
        seed: of weights and batches.
        budget: seconds of training.
        threads: of TensorFlow.
    """

    key_columns = KEY_COLUMNS
    problem: str
    dataset: str
    contestant: str
    arguments: Setting
    seed: int
    budget: float
    threads: int

    @property
    def setting(self) -> str:
        """The arguments as text."""
        return setting_text(self.arguments)


def has_diverged(loss: float, first: float) -> bool:
    """Whether a loss is not finite or more than ten times the initial one."""
    return not loss <= DIVERGED * first


class Task:
    """A problem with its data and network: what all contestants share.

    Args:
        name: a key of `PROBLEMS`.
        dataset: see `load_images`.
    """

    def __init__(self, name: str, dataset: str):
        import tensorflow as tf

        self.name = name
        self.problem = PROBLEMS[name]
        if self.problem.image_size is None:
            x = np.linspace(*REGRESSION_INTERVAL, REGRESSION_POINTS)[:, None]
            self.dataset, y = "sine", np.sin(8.0 * np.pi * x) + 0.5 * x
            arrays = (x, y, x, y)
        else:
            from tf_natgrad.data import load_images

            data = load_images(dataset, self.problem.image_size)
            self.dataset, self.image_size = data.name, data.image_size
            tests = slice(self.problem.test_images)
            arrays = (data.x_train, data.y_train, data.x_test[tests], data.y_test[tests])
            if name in ("conv", "resnet"):
                shape = (-1, data.image_size, data.image_size, 1)
                arrays = (arrays[0].reshape(shape), arrays[1], arrays[2].reshape(shape), arrays[3])
            if name in AUTOENCODERS:
                arrays = (arrays[0], arrays[0], arrays[2], arrays[2])
        self.x, self.y, self.x_test, self.y_test = map(tf.constant, arrays)

    def batches(self, seed: int, size: int | None) -> Iterator[tuple]:
        """Batches without end: one shuffled pass through the training set after another, or the whole set."""
        import tensorflow as tf

        if size is None:
            while True:
                yield self.x, self.y
        rng = np.random.default_rng(seed)
        left = np.zeros(0, np.int64)
        while True:
            while len(left) < size:
                left = np.concatenate([left, rng.permutation(len(self.x))])
            chosen, left = left[:size], left[size:]
            yield tf.gather(self.x, chosen), tf.gather(self.y, chosen)


def optimizer_of(contestant: str, arguments: Setting):
    """A contestant's optimizer.

    Args:
        contestant: a key of `COLOURS`.
        arguments: its setting.

    Returns:
        A Keras optimizer.
    """
    import keras

    import tf_natgrad as ng

    def made(value):
        if not isinstance(value, Mapping):
            return value
        ((name, arguments),) = value.items()
        return getattr(ng if hasattr(ng, name) else ng.solvers, name)(**arguments)

    classes = {
        "sgd": keras.optimizers.SGD,
        "momentum": lambda **kwargs: keras.optimizers.SGD(momentum=0.9, nesterov=True, **kwargs),
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        OWN: keras.optimizers.Adam,
    }
    return classes.get(contestant, ng.NaturalGradient)(**{name: made(value) for name, value in arguments.items()})


class Contest:
    """One contestant on one problem, traced and ready to start.

    Args:
        task: the problem.
        run: the contestant and its setting.
    """

    def __init__(self, task: Task, run: Run):
        import keras

        import tf_natgrad as ng

        self.task = task
        keras.utils.set_random_seed(run.seed)
        self.network, self.loss = network(task.name, tuple(task.x.shape[1:]))
        is_natural = run.contestant not in (*FIRST_ORDER, OWN)
        options = dict(run.arguments)
        if run.contestant == "defaults":
            # What it was before `fisher="auto"`, which goes to K-FAC on most of these problems.
            options["fisher"] = "exact"
        self._size = options.pop("batch_size", task.problem.batch_size)
        self.model = ng.natural_gradient_model(self.network) if is_natural else self.network
        # XLA makes loops of CG many times slower on a CPU, and the Gram solver cannot have it.
        xla = task.problem.xla and not is_natural
        self.model.compile(optimizer_of(run.contestant, options), self.loss, jit_compile=xla)
        self.model.optimizer.build(self.model.trainable_variables)
        self._batches = task.batches(run.seed, self._size)
        self._evaluate = self._compiled_evaluation()
        self._warm_up()

    def _warm_up(self) -> None:
        """Traces the step and the evaluation by making one of each, and puts everything back."""
        self.model.make_train_function()
        # Those of the run are not touched: this is the first of a series of its own.
        batch = next(self.task.batches(TUNING_SEED, self._size))
        from tf_natgrad.errors import NonFiniteError

        # Those of metrics and seeds are among them.
        with put_back(lambda: (*self.model.variables, *self.model.optimizer.variables)):
            # A step that is refused is traced all the same, and the first one of the run will be refused too.
            with contextlib.suppress(NonFiniteError):
                self.model.train_function(iter([batch]))
            self.evaluate()
        self.model.reset_metrics()

    def _compiled_evaluation(self):
        import tensorflow as tf

        is_error = self.task.problem.metric == "test error"

        @tf.function(autograph=False, reduce_retracing=True)
        def evaluate(x, y):
            outputs = self.network(x, training=False)
            loss = tf.reduce_mean(self.loss(y, outputs))
            if not is_error:
                return loss, loss
            wrong = tf.not_equal(tf.argmax(outputs, -1, y.dtype), y)
            return tf.reduce_mean(tf.cast(wrong, loss.dtype)), loss

        return evaluate

    def evaluate(self) -> dict[str, float]:
        """The metric and the loss, on the test images or the training points."""
        x, y = self.task.x_test, self.task.y_test
        starts = range(0, len(x), EVALUATED_AT_ONCE)
        parts = [(x[i : i + EVALUATED_AT_ONCE], y[i : i + EVALUATED_AT_ONCE]) for i in starts]
        found = np.array([[float(value) for value in self._evaluate(*part)] for part in parts])
        metric, loss = np.average(found, 0, [len(part[0]) for part in parts])
        return {"metric": float(metric), "loss": float(loss)}

    def steps(self, count: int) -> tuple[int, float, float, float]:
        """Makes steps against the clock.

        Args:
            count: how many.

        Returns:
            `(steps made, seconds, seconds of the processor, mean loss of the batches)`; fewer steps and NaN where one
            was refused.
        """
        from tf_natgrad.errors import NonFiniteError

        batches = iter([next(self._batches) for _ in range(count)])
        self.model.reset_metrics()
        made, start, cpu = 0, time.perf_counter(), time.process_time()
        try:
            for made in range(1, count + 1):  # noqa: B007
                logs = self.model.train_function(batches)
            loss = float(logs["loss"])
        except NonFiniteError:
            loss = math.nan
        return made, time.perf_counter() - start, time.process_time() - cpu, loss


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


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run recorded.

    Attributes:
        first: its first row, for the configuration.
        iteration: `[T]`.
        seconds: `[T]`.
        metric: `[T]`.
        end: `"budget"`, `"target"`, `"diverged"`, or nothing where it was interrupted.
    """

    first: Row
    iteration: np.ndarray
    seconds: np.ndarray
    metric: np.ndarray
    end: str

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Result:
        """The result of the rows of one run."""
        columns = [np.array([float(row[name]) for row in rows]) for name in ("iteration", "seconds", "metric")]
        return cls(rows[0], *columns, rows[-1]["end"])

    @property
    def diverged(self) -> bool:
        """Whether it diverged."""
        return self.end == "diverged"

    def reached(self, target: float) -> tuple[float, float]:
        """Iterations and seconds at the first evaluation where the metric is at the target; infinite if never."""
        below = np.flatnonzero(self.metric <= target)
        if not len(below):
            return math.inf, math.inf
        return float(self.iteration[below[0]]), float(self.seconds[below[0]])

    def rank(self, targets: Sequence[float]) -> tuple:
        """What the best setting has the least of: not diverged; tightest target, seconds to it, metric at the end."""
        at = [self.reached(target)[1] for target in targets]
        count = sum(math.isfinite(seconds) for seconds in at)
        last = float(self.metric[-1])
        return (
            self.diverged,
            -count,
            at[count - 1] if count else math.inf,
            last if math.isfinite(last) else math.inf,
        )


def results_of(rows: Sequence[Row]) -> dict[tuple[str, str], list[Result]]:
    """The complete runs by problem and contestant, in the order of the tables."""
    found: dict[tuple[str, str], list[Result]] = {
        (problem, contestant): [] for problem in PROBLEMS for contestant in CONTESTANTS
    }
    for group in complete_runs(rows, KEY_COLUMNS):
        found[group[0]["problem"], group[0]["contestant"]].append(Result.of(group))
    return {key: group for key, group in found.items() if group}


def best_setting(results: Sequence[Result], targets: Sequence[float]) -> str | None:
    """The setting that did best on the tuning seed; the only one where there was nothing to choose.

    Args:
        results: of one contestant on one problem.
        targets: of the problem.

    Returns:
        The setting as text, or `None` where it was not tuned.
    """
    tuned = [result for result in results if result.first["seed"] == str(TUNING_SEED)]
    settings = {result.first["setting"] for result in results}
    if not tuned:
        return settings.pop() if len(settings) == 1 else None
    return min(tuned, key=lambda result: result.rank(targets)).first["setting"]


def race_of(results: Sequence[Result], targets: Sequence[float]) -> list[Result]:
    """The runs that count: those of the best setting on the seeds of the race."""
    setting = best_setting(results, targets)
    return [r for r in results if r.first["setting"] == setting and r.first["seed"] != str(TUNING_SEED)]


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per problem, contestant and target; a target that a seed did not reach counts as infinitely late.

    Args:
        rows: of the CSV of the races.

    Returns:
        The columns of the summary.
    """
    summary = []
    for (name, contestant), results in results_of(rows).items():
        problem = PROBLEMS[name]
        race = race_of(results, problem.targets)
        if not race:
            continue
        tuned = [r for r in results if r.first["seed"] == str(TUNING_SEED)]
        setting = race[0].first["setting"]
        texts = [setting_text(s) for s in grid(name, contestant)]
        common = {
            "problem": name,
            "metric": problem.metric,
            "contestant": contestant,
            "setting": setting,
            "at_the_edge_of_the_grid": "yes" if len(tuned) > 1 and setting in (texts[0], texts[-1]) else "no",
            "seeds": len(race),
            "seconds_per_iteration": statistics.median(r.seconds[-1] / max(r.iteration[-1], 1) for r in race),
            "metric_at_the_end": statistics.median(
                r.metric[-1] if math.isfinite(r.metric[-1]) else math.inf for r in race
            ),
            "diverged": sum(r.diverged for r in race),
            "diverged_while_tuning": sum(r.diverged for r in tuned),
        }
        for target in problem.targets:
            at = [r.reached(target) for r in race]
            columns = {"target": target, "reached": sum(math.isfinite(iterations) for iterations, _ in at)}
            for unit, values in zip(("iterations", "seconds"), zip(*at, strict=True), strict=True):
                found = (("", statistics.median(values)), ("_min", min(values)), ("_max", max(values)))
                columns |= {f"{unit}{what}": value if math.isfinite(value) else None for what, value in found}
            summary.append(common | columns)
    return summary


def plan(arguments: argparse.Namespace, name: str, dataset: str, contestant: str) -> tuple[list[Run], list[int]]:
    """The tuning runs of a contestant on a problem, and the seeds of its race.

    Args:
        arguments: the command line.
        name: a key of `PROBLEMS`.
        dataset: the data's name.
        contestant: a key of `COLOURS`.

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
    tasks = {name: Task(name, arguments.dataset) for name in arguments.problems}
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
    import keras

    bar.set_description(f"{run.problem}, {run.contestant}, {run.setting}, seed {run.seed}")
    if run.key not in recorder:
        before = keras.config.floatx(), keras.config.dtype_policy()
        # Layers follow the policy, which Keras takes from `floatx` once.
        keras.config.set_floatx(task.problem.precision)
        keras.config.set_dtype_policy(task.problem.precision)
        try:
            for row in train(task, run):
                recorder.append(**run.columns, **row)
                bar.set_postfix(s=f"{row['seconds']:.1f}", metric=f"{row['metric']:.3g}", end=row.get("end"))
        finally:
            keras.config.set_floatx(before[0])
            keras.config.set_dtype_policy(before[1])
        # The traced functions of the run are cycles.
        gc.collect()
    bar.update()


def disturbed(rows: Sequence[Row]) -> list[Row]:
    """The last rows of the runs that had less than 90% of a core: their seconds are other processes' too."""
    ends = [row for row in rows if row["end"]]
    return [row for row in ends if float(row["cpu_seconds"] or "nan") < 0.9 * float(row["seconds"])]


def write_summary(rows: Sequence[Row], path: pathlib.Path) -> list[Row]:
    """Writes the summary of the runs.

    Args:
        rows: of the CSV of the races.
        path: of the CSV to be written.

    Returns:
        Its rows.
    """
    recorder = Recorder(path, SUMMARY_COLUMNS, ("problem", "contestant", "target"))
    for row in summarize(rows):
        recorder.append(**row)
    return recorder.rows()


# Natural gradients with a grid, and their columns.
_TUNED = {"gram": "Gram", "cg": "CG", "kfac": "K-FAC", "ekfac": "EKFAC"}


def table(summary: Sequence[Row]) -> str:
    """The table of the README, in Markdown.

    Args:
        summary: rows of the summary.

    Returns:
        Lines; the last columns are seconds of the best first-order contestant, at the problem's batch and at its own,
        over those of the best tuned natural one.
    """
    head = (
        "problem",
        "target",
        "best first-order",
        "Gram",
        "CG",
        "K-FAC",
        "EKFAC",
        "defaults",
        "first-order / natural gradient, seconds",
        "the same at Adam's own batch",
    )
    lines = [_line(head), _line(["---"] * len(head))]
    by_target: dict[tuple[str, str], dict[str, Row]] = {}
    for row in summary:
        by_target.setdefault((row["problem"], row["target"]), {})[row["contestant"]] = row
    for (name, target), found in by_target.items():
        first = min((found[c] for c in FIRST_ORDER if c in found), key=_lateness, default=None)
        natural = min((found[c] for c in _TUNED if c in found), key=_lateness, default=None)
        cells = [_cell(first, named=True), *(_cell(found.get(c)) for c in (*_TUNED, "defaults"))]
        ratios = [_ratio(first, natural), _ratio(found[OWN], natural) if OWN in found else ""]
        lines.append(_line([name, f"{PROBLEMS[name].metric} {target}", *cells, *ratios]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lateness(row: Row) -> tuple[float, float]:
    """Seconds to the target; where it is not reached by most seeds, the metric at the end."""
    return float(row["seconds"] or math.inf), float(row["metric_at_the_end"])


def _cell(row: Row | None, named: bool = False) -> str:
    if row is None:
        return "not run"
    parts = [NAMES[row["contestant"]] + ":"] if named else []
    if row["seconds"]:
        parts.append(f"{float(row['iterations']):,.0f} iterations, {float(row['seconds']):.2g} s")
    else:
        parts.append(f"not reached, {float(row['metric_at_the_end']):.3g} at the end")
    if row["seconds"] and row["reached"] != row["seeds"]:
        parts.append(f"({row['reached']} of {row['seeds']} seeds)")
    if int(row["diverged"]):
        parts.append(f"({row['diverged']} of {row['seeds']} seeds diverge)")
    return " ".join(parts)


def _ratio(first: Row | None, natural: Row | None) -> str:
    if first is None or natural is None:
        return ""
    name = _TUNED[natural["contestant"]]
    if not first["seconds"] and not natural["seconds"]:
        return "neither"
    if not first["seconds"]:
        return f"won: only {name} reaches it"
    if not natural["seconds"]:
        return "lost: only first-order reaches it"
    ratio = float(first["seconds"]) / float(natural["seconds"])
    return f"{ratio:.2g}, {'won' if ratio > 1.0 else 'lost'} ({name})"


def draw_races(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the metric against iterations and against seconds, a row of panels per problem."""
    results = results_of(rows)
    # Where only settings were tried so far there is no race to draw.
    raced = {name for (name, _), group in results.items() if race_of(group, PROBLEMS[name].targets)}
    names = [name for name in PROBLEMS if name in raced]
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x, pos=None):
            return f"{x:g}" if super().__call__(x, pos) else ""

    figure = pyplot().figure(figsize=(13, 5.6 * len(names)))
    cells = figure.add_gridspec(2 * len(names), 2, height_ratios=[5.0, 1.0] * len(names))
    for row, name in enumerate(names):
        left = figure.add_subplot(cells[2 * row, 0])
        pair = left, figure.add_subplot(cells[2 * row, 1], sharey=left)
        below = figure.add_subplot(cells[2 * row + 1, :])
        problem = PROBLEMS[name]
        races = {c: race_of(results[name, c], problem.targets) for c in CONTESTANTS if (name, c) in results}
        races = {contestant: race for contestant, race in races.items() if race}
        for axis, unit in zip(pair, ("iteration", "seconds"), strict=True):
            for contestant, race in races.items():
                _draw_race(axis, race, unit, COLOURS[contestant], _label(contestant, race[0]))
            for target in problem.targets:
                axis.axhline(target, color="black", linewidth=0.8, linestyle=":")
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(Plain())
            axis.yaxis.set_minor_formatter(Plain(minor_thresholds=(1.0, 0.4)))
            axis.set_xlabel(f"{unit if unit == 'seconds' else 'iterations'} of training (logarithmic)")
            axis.grid(alpha=0.25)
        shown = [r.metric[np.isfinite(r.metric)] for race in races.values() for r in race]
        shown = np.concatenate([values for values in shown if len(values)] or [np.array(problem.targets)])
        low, start = min(*problem.targets, shown.min()), max(r.metric[0] for race in races.values() for r in race)
        # What rises above this has diverged, or is about to.
        pair[0].set_ylim(0.8 * low, 2.0 * start)
        pair[0].set_ylabel(f"{problem.metric} (logarithmic)")
        budget = next(iter(races.values()))[0].first["budget"]
        pair[0].set_title(f"{name}: {problem.title}")
        pair[1].set_title(f"against seconds, budget {budget} s a run")
        below.axis("off")
        # Beside the curves there is no room for settings, and tight_layout would make some at their cost.
        legend = below.legend(*left.get_legend_handles_labels(), ncols=2, fontsize=8, loc="center", frameon=False)
        legend.set_in_layout(False)
    set_caption(figure, _caption(rows, results))
    save(figure, path)


def _label(contestant: str, result: Result) -> str:
    """Name and setting as a legend has room for them."""
    setting = result.first["setting"]
    words = {
        "ConjugateGradient": "CG",
        "LevenbergMarquardt": "LM",
        "learning_rate": "rate",
        "max_iterations": "iterations",
        "solver=gram; ": "",
        "solver=": "",
        "stopping=": "",
        "=;": "=None;",
    }
    for long, short in words.items():
        setting = setting.replace(long, short)
    setting += "None" if setting.endswith("=") else ""
    return textwrap.fill(f"{NAMES[contestant]}: {setting}", 66, subsequent_indent="    ")


def _draw_race(axis, race: Sequence[Result], unit: str, colour: str, label: str) -> None:
    """The median of the seeds with the band from least to greatest; who is done stays where it got."""
    xs = [getattr(result, unit) for result in race]
    start, last = min(x[1] for x in xs), max(x[-1] for x in xs)
    grid = np.geomspace(start, last, 300)
    values = []
    for x, result in zip(xs, race, strict=True):
        metric = np.where(np.isfinite(result.metric), np.minimum(result.metric, 1e6), 1e6)
        index = np.searchsorted(x, grid * (1.0 + 1e-9), side="right") - 1
        values.append(np.where((index == len(x) - 1) & result.diverged, 1e6, metric[np.maximum(index, 0)]))
    axis.plot(grid, np.median(values, 0), color=colour, linewidth=1.5, label=label)
    axis.fill_between(grid, np.min(values, 0), np.max(values, 0), color=colour, alpha=0.15, linewidth=0)
    axis.plot(grid[-1], np.median(values, 0)[-1], "o", color=colour, markersize=4)


def _caption(rows: Sequence[Row], results: Mapping[tuple[str, str], Sequence[Result]]) -> str:
    threads, seeds = rows[0]["threads"], sorted({len(r) for r in _races(results)})
    counted = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    counted += " seed" if counted == "1" else " seeds"
    tuned = {r.first["setting"] for group in results.values() for r in group if r.first["seed"] == str(TUNING_SEED)}
    parts = [
        f"Medians over {counted}, bands from the least to the greatest. A seed that is done keeps its last "
        "value; a dot is where the last one ended: at the tightest target (dotted lines), at its budget, or diverged.",
        f"Seconds are those of training alone, with {threads} thread{'s' if threads != '1' else ''} of TensorFlow on "
        f"{next((row['machine'] for row in rows if row['machine']), 'an unknown machine')}: without tracing, data and "
        "evaluation.",
        "The contestants of a seed share weights and order of the data.",
    ]
    if tuned:
        parts.append(
            f"Each setting is the best of four, tried on seed {TUNING_SEED} with the same budget; the defaults are not "
            "tuned."
        )
    if any(row["dataset"] == "digits" for row in rows):
        parts.append(f"The images are {title_of('digits', '8x8').split(',')[0]}.")
    diverged = [r for race in _races(results) for r in race if r.diverged]
    what = ", ".join(sorted({f"{r.first['contestant']} on {r.first['problem']}" for r in diverged}))
    parts.append(f"Diverged in the race: {what}." if what else "No run of the race diverged.")
    return " ".join(parts)


def _races(results: Mapping[tuple[str, str], Sequence[Result]]) -> list[list[Result]]:
    found = [race_of(group, PROBLEMS[name].targets) for (name, _), group in results.items()]
    return [race for race in found if race]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add_dataset(parser)
    names = ", ".join(PROBLEMS)
    add("--problems", type=some_of(tuple(PROBLEMS)), metavar="NAMES", help=f"some of {names} (default: all)")
    names = ", ".join(CONTESTANTS)
    add("--contestants", type=some_of(CONTESTANTS), metavar="NAMES", help=f"some of {names} (default: all)")
    add("--threads", type=positive(int), default=1, help="of TensorFlow (default 1)")
    add(
        "--budget-scale",
        type=positive(float),
        metavar="F",
        help=f"multiplies every budget (default 1; {SMOKE['budget_scale']:g} with --smoke)",
    )
    add("--table", action="store_true", help="print the README's table from the summary in --out, and nothing else")
    add_recording(parser)
    arguments = parser.parse_args(argv)
    check_recording(parser, arguments)
    check_table(parser, arguments)
    arguments.problems = arguments.problems or list(SMOKE["problems"] if arguments.smoke else PROBLEMS)
    arguments.contestants = arguments.contestants or list(CONTESTANTS)
    arguments.budget_scale = arguments.budget_scale or (SMOKE["budget_scale"] if arguments.smoke else 1.0)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, records, draws and reports."""
    arguments = parse(argv)
    show_log()
    start = time.perf_counter()
    out = output_folder(arguments, "races")
    path, summary = out / "races.csv", out / "races_summary.csv"
    needed = summary if arguments.table else path if arguments.replot else None
    if needed is not None and not needed.is_file():
        print(f"error: nothing to show: there is no {needed}", file=sys.stderr)
        return 1
    if arguments.table:
        print(table(read_rows(summary, SUMMARY_COLUMNS)))
        return 0
    try:
        if not arguments.replot:
            set_threads(arguments.threads)
            try:
                tasks = load(arguments)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            run_all(arguments, tasks, path)
        rows = read_rows(path, COLUMNS)
        summarized = write_summary(rows, summary)
        if not summarized:
            print(f"error: nothing to show: {path} has no complete race", file=sys.stderr)
            return 1
        draw_races(rows, out / "races.png")
    except OSError as error:
        # A full disk: what is recorded is whole, and --resume goes on.
        print(f"error: {error}", file=sys.stderr)
        return 1
    if found := disturbed(rows):
        names = ", ".join(sorted({f"{row['contestant']} on {row['problem']}" for row in found}))
        LOGGER.warning("%d runs had less than 90%% of a core, their seconds are too many: %s", len(found), names)
    print(f"\n{table(summarized)}\n\nCSV files and figure: {out} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
