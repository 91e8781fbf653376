"""The races: constants, targets, the choice of settings, the summary, and a smoke run that is resumed and redrawn."""

import csv
import importlib
import math
import resource

import keras
import numpy as np
import pytest
import scripts

OPTIONS = ["--smoke", "--dataset", "digits", "--contestants", "momentum,gram,defaults"]


@pytest.fixture(scope="module")
def script():
    with scripts.imported("races") as module:
        yield module


@pytest.fixture(scope="module")
def recording(script):
    return importlib.import_module("kit.recording")


@pytest.fixture(scope="module")
def grids(script):
    return importlib.import_module("kit.race_grids")


@pytest.fixture(scope="module")
def networks(script):
    return importlib.import_module("kit.race_networks")


@pytest.fixture(scope="module")
def entrants(script):
    return importlib.import_module("kit.race_contest")


@pytest.fixture(scope="module")
def results(script):
    return importlib.import_module("kit.race_results")


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """A folder with one whole short race."""
    out = tmp_path_factory.mktemp("finished")
    assert script.main([*OPTIONS, "--out", str(out)]) == 0
    return out


def rows_of(folder, name="races.csv"):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def by_run(script, rows):
    runs = {}
    for row in rows:
        runs.setdefault(tuple(row[name] for name in script.KEY_COLUMNS), []).append(row)
    return runs


def hand_made(script, contestant, setting, seed, points, end, problem="blog"):
    """The rows of a run with these `(iteration, seconds, metric)`."""
    key = (problem, "mnist", contestant, setting, seed, 5, 1)
    rows = [
        dict(zip(script.COLUMNS, (*key, *point[:2], "", point[2], "", "", "", ""), strict=True)) for point in points
    ]
    rows[-1]["end"] = end
    return [{name: str(value) for name, value in row.items()} for row in rows]


def test_constants_are_consistent(script, grids):
    assert set(grids.LEARNING_RATES) == set(grids.NATURAL) == set(script.PROBLEMS)
    seconds = 0.0
    for name, problem in script.PROBLEMS.items():
        assert problem.budget > 0 and len(problem.targets) >= 3
        assert list(problem.targets) == sorted(problem.targets, reverse=True)
        for contestant in script.CONTESTANTS:
            settings = script.grid(name, contestant)
            assert len(settings) in ((0, 1) if contestant == "defaults" else (0, 4))
            assert len(set(map(grids.setting_text, settings))) == len(settings)
            tuned = len(settings) + len(script.SEEDS)
            seconds += problem.budget * {0: 0, 1: len(script.DEFAULTS_SEEDS)}.get(len(settings), tuned)
    assert all(script.grid(name, contestant) for name in script.PROBLEMS for contestant in ("adam", "kfac"))
    assert grids.TUNING_SEED not in (*script.SEEDS, *script.DEFAULTS_SEEDS)
    # Every run at its whole budget, which few take.
    assert seconds < 3.5 * 3600


def test_units_start_with_few_weights(networks):
    keras.utils.set_random_seed(3)
    model, _ = networks.network("sigmoid", (20,))
    counts = [np.count_nonzero(np.asarray(layer.kernel), 0) for layer in model.layers]
    assert all(np.all(count == 15) for count in counts)
    assert 0.9 < np.std(np.asarray(model.layers[1].kernel)[np.asarray(model.layers[1].kernel) != 0]) < 1.1


def test_settings_make_optimizers(grids, entrants):
    assert grids.setting_text({"a": {"B": {"c": 0.1, "d": 3}}, "e": "f"}) == "a=B(c=0.1 d=3); e=f"
    momentum = entrants.optimizer_of("momentum", {"learning_rate": 0.25})
    assert momentum.nesterov and momentum.momentum == 0.9 and float(momentum.learning_rate) == 0.25
    natural = entrants.optimizer_of("cg", {"damping": 0.5, "solver": {"ConjugateGradient": {"max_iterations": 7}}})
    assert natural.solver.max_iterations == 7 and float(natural.damping) == 0.5
    assert isinstance(entrants.optimizer_of("adamw", {"learning_rate": 0.1}), keras.optimizers.AdamW)


def test_a_target_is_reached_where_the_metric_is_first_at_it(script):
    points = [(0, 0.0, 2.0), (1, 0.1, 0.6), (3, 0.2, 0.5), (5, 0.3, 0.7), (9, 0.4, 0.45)]
    result = script.Result.of(hand_made(script, "adam", "x", 0, points, "budget"))
    assert result.reached(0.5) == (3.0, 0.2)
    assert result.reached(0.46) == (9.0, 0.4)
    assert result.reached(0.4) == (math.inf, math.inf)
    assert script.Result.of(hand_made(script, "adam", "x", 0, [(0, 0.0, math.nan)], "")).reached(1.0)[0] == math.inf


def test_best_setting_is_tightest_then_fastest_then_lowest(script, grids):
    def best(*runs):
        made = [hand_made(script, "adam", name, grids.TUNING_SEED, points, end) for name, points, end in runs]
        return script.best_setting([script.Result.of(rows) for rows in made], (0.5, 0.4, 0.35))

    loose = ("loose", [(1, 0.1, 0.5), (9, 5.0, 0.41)], "budget")
    tight = ("tight", [(1, 1.0, 0.5), (5, 3.0, 0.4), (9, 5.0, 0.39)], "budget")
    faster = ("faster", [(1, 1.0, 0.5), (5, 2.0, 0.4), (9, 5.0, 0.6)], "budget")
    exploded = ("exploded", [(1, 0.1, 0.3), (2, 0.2, math.nan)], "diverged")
    high, low = (("high", [(1, 5.0, 0.9)], "budget"), ("low", [(1, 5.0, 0.8)], "budget"))
    assert best(loose, tight) == "tight"
    assert best(tight, faster, loose) == "faster"
    assert best(high, low) == "low"
    assert best(exploded, high) == "high"
    assert best(exploded) == "exploded"


def test_summary_and_table(script, grids):
    texts = [grids.setting_text(setting) for setting in script.grid("blog", "sgd")]
    rows = []
    for number, text in enumerate(texts):
        end = "diverged" if number == 3 else "budget"
        last = math.inf if number == 3 else 0.6 - 0.1 * number
        rows += hand_made(script, "sgd", text, grids.TUNING_SEED, [(0, 0.0, 2.0), (9, 5.0, last)], end)
    for seed, seconds in enumerate((1.0, 2.0, 4.0)):
        points = [(0, 0.0, 2.0), (10 * seed + 10, seconds, 0.45)]
        points += [(50, 5.0, 0.38)] if seed == 2 else [(50, 5.0, 0.44)]
        rows += hand_made(script, "sgd", texts[2], seed, points, "budget")
    for seed in range(3):
        natural = grids.setting_text(script.grid("blog", "gram")[1])
        rows += hand_made(script, "gram", natural, seed, [(0, 0.0, 2.0), (4, 0.5, 0.35)], "target")
        rows += hand_made(script, "cg", natural, seed, [(0, 0.0, 2.0), (4, 0.5, 99.0)], "diverged")
    # A run that was interrupted does not count.
    rows += hand_made(script, "gram", "other", 4, [(0, 0.0, 2.0)], "")
    found = {(row["contestant"], row["target"]): row for row in script.summarize(rows, script.PROBLEMS)}
    half = found["sgd", 0.5]
    assert half["setting"] == texts[2] and half["at_the_edge_of_the_grid"] == "no"
    assert (half["iterations"], half["iterations_min"], half["iterations_max"]) == (20, 10, 30)
    assert (half["seconds"], half["seconds_min"], half["seconds_max"]) == (2.0, 1.0, 4.0)
    assert (half["reached"], half["seeds"], half["diverged"], half["diverged_while_tuning"]) == (3, 3, 0, 1)
    assert half["seconds_per_iteration"] == pytest.approx(0.1)
    tight = found["sgd", 0.4]
    assert (tight["reached"], tight["seconds"], tight["seconds_min"], tight["seconds_max"]) == (1, None, 5.0, None)
    assert found["cg", 0.5]["diverged"] == 3

    text = [{name: script.as_text(row[name]) for name in script.SUMMARY_COLUMNS} for row in found.values()]
    lines = script.table(text).splitlines()
    assert len(lines) == 2 + 3 and lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert "SGD: 20 iterations, 2 s" in lines[2] and "4 iterations, 0.5 s" in lines[2]
    assert lines[2].endswith("| not run | not run | 4, won (Gram) |  |") and "3 of 3 seeds diverge" in lines[2]
    assert "won: only Gram reaches it" in lines[3]


@pytest.mark.parametrize(
    ("first", "natural", "text"),
    [
        ("1", "4", "0.25, lost (CG)"),
        ("", "4", "won: only CG reaches it"),
        ("2", "", "lost: only first-order reaches it"),
        ("", "", "neither"),
    ],
)
def test_wins_and_losses_are_told_alike(results, first, natural, text):
    assert results._ratio({"seconds": first}, {"seconds": natural, "contestant": "cg"}) == text


def test_chunks_double_until_evaluations_are_far_enough_apart(script):
    seconds, sizes, size, last = 0.0, [], 0, 0.0
    while seconds < 10.0:
        size = script.next_chunk(size, last, 10.0 - seconds, 10.0, 30)
        last = 0.01 * size
        seconds += last
        sizes.append(size)
    assert sizes[:6] == [1, 2, 4, 8, 16, 32] and max(sizes) == 32
    assert 30 <= len(sizes) <= 60 and seconds == pytest.approx(10.0, abs=0.02)
    assert script.next_chunk(1, 7.0, 3.0, 10.0, 30) == 1


def test_diverged_is_ten_times_the_first_loss_or_not_finite(script):
    assert [script.has_diverged(loss, 2.0) for loss in (1.0, 20.0, 20.1, math.inf, math.nan)] == [
        *(False, False),
        *(True, True, True),
    ]


def test_runs_that_shared_their_core_are_named(script):
    alone = {"seconds": "2", "cpu_seconds": "1.9", "end": "budget"}
    rows = [alone, alone | {"end": ""}, alone | {"cpu_seconds": "1"}, alone | {"cpu_seconds": ""}]
    assert script.disturbed(rows) == [rows[2]]


def test_a_run_that_diverges_is_recorded_as_such(script):
    task = script.Task("blog", script.PROBLEMS["blog"], "digits")
    for contestant, arguments in (
        ("sgd", {"learning_rate": 1e4}),
        ("gram", {"learning_rate": 1e38, "damping": 1e-3, "solver": "gram", "max_kl": None, "line_search": None}),
    ):
        rows = list(script.train(task, script.Run("blog", "digits", contestant, arguments, 0, 1.0, 1)))
        assert rows[-1]["end"] == "diverged" and len(rows) > 1
        assert [row.get("end") for row in rows[:-1]] == [None] * (len(rows) - 1)


def test_nothing_of_the_warm_up_is_left(script, networks):
    task = script.Task("blog", script.PROBLEMS["blog"], "digits")
    run = script.Run("blog", "digits", "adam", {"learning_rate": 0.01}, 3, 1.0, 1)
    contest = script.Contest(task, run)
    keras.utils.set_random_seed(3)
    model, loss = networks.network("blog", tuple(task.x.shape[1:]))
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    batches = task.batches(3, script.PROBLEMS["blog"].batch_size)
    assert contest.steps(1)[-1] == float(model.train_on_batch(*next(batches)))
    contest.steps(1)
    model.train_on_batch(*next(batches))
    for one, other in zip(contest.network.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert int(contest.model.optimizer.iterations) == 2


def test_smoke_records_every_contestant(script, finished):
    runs = by_run(script, rows_of(finished))
    assert len(runs) == 2 * 3
    assert {key[1] for key in runs} == {"digits", "sine"}
    for rows in runs.values():
        assert rows[0]["iteration"] == "0" and float(rows[0]["seconds"]) == 0.0 and rows[0]["machine"]
        assert rows[-1]["end"] in ("budget", "target", "diverged") and len(rows) > 2
        assert not any(row["end"] for row in rows[:-1])
    # Contestants of a seed begin with the same weights.
    for problem in ("blog", "regression"):
        assert len({rows[0]["loss"] for key, rows in runs.items() if key[0] == problem}) == 1
    assert len(rows_of(finished, "races_summary.csv")) == 2 * 3 * 3
    for problem in ("blog", "regression"):
        assert (finished / f"races_{problem}.png").read_bytes().startswith(b"\x89PNG")
    assert keras.config.floatx() == "float32"


def test_resume_keeps_complete_runs_and_makes_the_same_steps(script, finished, tmp_path):
    text = (finished / "races.csv").read_text()
    lines = text.splitlines(keepends=True)
    middle = next(i for i, line in enumerate(lines) if line.startswith("blog,digits,gram")) + 3
    # The kill comes in the middle of a run, and of a line.
    (tmp_path / "races.csv").write_text("".join(lines[:middle]) + lines[middle][:31])
    options = ["--problems", "blog", "--resume", "--out", str(tmp_path)]
    assert script.main([*OPTIONS, *options]) == 0
    assert (tmp_path / "races.csv").read_text().startswith("".join(lines[: middle - 3]))
    before, after = by_run(script, rows_of(finished)), by_run(script, rows_of(tmp_path))
    assert set(after) == {key for key in before if key[0] == "blog"}
    shared = 0
    for key, rows in after.items():
        first = {row["iteration"]: row for row in before[key]}
        for row in rows:
            if row["iteration"] in first:
                assert row["metric"] == first[row["iteration"]]["metric"]
                shared += 1
    assert shared >= 3 * 3


def test_resume_drops_runs_of_another_budget_or_grid(script, finished):
    row = rows_of(finished)[0]
    arguments = script.parse(["--smoke"])
    assert script._is_raced(arguments, row)
    assert not script._is_raced(arguments, row | {"setting": "learning_rate=7"})
    assert not script._is_raced(arguments, row | {"contestant": "lion"})
    assert not script._is_raced(script.parse(["--budget-scale", "0.5"]), row)
    assert not script._is_raced(script.parse(["--smoke", "--threads", "2"]), row)


def test_replot_and_table_run_nothing(script, finished, monkeypatch, capsys):
    monkeypatch.setattr(script, "run_all", lambda *arguments: pytest.fail("it ran"))
    figures = [finished / f"races_{problem}.png" for problem in ("blog", "regression")]
    for figure in figures:
        figure.unlink()
    assert script.main(["--replot", "--out", str(finished)]) == 0
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    printed = capsys.readouterr().out
    assert script.main(["--table", "--out", str(finished)]) == 0
    table = capsys.readouterr().out
    assert table.startswith("| problem | target |") and table.strip() in printed


def test_tuning_decides_which_setting_is_raced(script, grids, tmp_path, monkeypatch):
    tried = []

    def train(task, run):
        tried.append((run.setting, run.seed))
        good = run.setting == "learning_rate=0.3"
        yield {"iteration": 0, "seconds": 0.0, "metric": 2.0, "loss": 2.0}
        yield {"iteration": 9, "seconds": 1.0, "metric": 0.3 if good else 0.6, "loss": 0.6, "end": "budget"}

    monkeypatch.setattr(script, "train", train)
    options = ["--problems", "blog", "--contestants", "sgd", "--dataset", "digits", "--out", str(tmp_path)]
    assert script.main(options) == 0
    assert tried == [(f"learning_rate={rate:g}", 100) for rate in grids.LEARNING_RATES["blog"]["sgd"]] + [
        ("learning_rate=0.3", seed) for seed in (0, 1, 2)
    ]
    tried.clear()
    assert script.main([*options, "--resume"]) == 0
    assert not tried


def test_a_full_disk_leaves_whole_rows_and_stops_with_a_message(script, recording, tmp_path, monkeypatch, capsys):
    rows = [{"iteration": k, "seconds": 1.0 * k, "metric": 2.0, "loss": 2.0} for k in range(40)]
    rows[-1]["end"] = "budget"
    path, limits = tmp_path / "races.csv", resource.getrlimit(resource.RLIMIT_FSIZE)

    def train(task, run):
        for number, row in enumerate(rows):
            if number == 20 and full:
                # The next row fits in part: the system writes that part and says so.
                resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
            yield row

    monkeypatch.setattr(script, "train", train)
    options = ["--problems", "regression", "--contestants", "defaults", "--out", str(tmp_path)]
    full = True
    try:
        code = script.main(options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    message = capsys.readouterr().err
    assert "races.csv" in message and "--resume" in message
    assert path.read_text().endswith("\n") and len(rows_of(tmp_path)) == 20
    full = False
    assert script.main([*options, "--resume"]) == 0
    assert len(rows_of(tmp_path)) == 5 * 40


def test_nothing_recorded_or_no_data(script, tmp_path, monkeypatch, capsys):
    assert script.main(["--replot", "--out", str(tmp_path)]) == 1
    assert script.main(["--table", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("nothing to show") == 2
    scripts.refuses_without_mnist(script, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    "argv",
    [
        ["--smoke", "--resume"],
        ["--smoke", "--table"],
        ["--problems", "blog,chess"],
        ["--contestants", ""],
        ["--threads", "0"],
        ["--budget-scale", "-1"],
    ],
)
def test_options_are_checked(script, argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.parse(argv)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err
