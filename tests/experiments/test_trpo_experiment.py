"""The TRPO experiment, very short: what it records, resumes, tells, draws and refuses."""

import csv
import importlib
import shutil

import numpy as np
import pytest
import scripts

pytest.importorskip("gymnasium")

OPTIONS = ["--smoke", "--env", "CartPole-v1"]
TIMED = ("steps_per_second", "seconds")


@pytest.fixture(scope="module")
def script():
    with scripts.imported("trpo") as module:
        yield module


@pytest.fixture(scope="module")
def curvature(script):
    return importlib.import_module("kit.trpo_curvature")


@pytest.fixture(scope="module")
def policies(script):
    return importlib.import_module("kit.policies")


@pytest.fixture(scope="module")
def results(script):
    return importlib.import_module("kit.trpo_results")


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """A folder with one whole short run."""
    out = tmp_path_factory.mktemp("finished")
    assert script.main([*OPTIONS, "--out", str(out)]) == 0
    return out


@pytest.fixture
def still(script, curvature, monkeypatch):
    """Nothing may run."""
    monkeypatch.setattr(script, "make", lambda *arguments: pytest.fail("it ran"))
    for name in curvature.TRAINERS:
        monkeypatch.setitem(curvature.TRAINERS, name, lambda *arguments: pytest.fail("it trained"))


def rows_of(folder, name):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def test_columns_and_rows(script, finished):
    runs, curves, curvature = (rows_of(finished, name) for name in script.FILES)
    for rows, columns in (
        (runs, script.RUN_COLUMNS),
        (curves, script.CURVE_COLUMNS),
        (curvature, script.CURVATURE_COLUMNS),
    ):
        assert tuple(rows[0]) == columns
    assert [row["seed"] for row in runs] == [str(seed) for seed in script.SMOKE_SEEDS]
    assert [(row["optimizer"], row["end"]) for row in curvature] == [
        (optimizer, end) for optimizer in script.SMALL.checkpoints for end in ("smallest", "largest")
    ]
    for run in runs:
        own = [row for row in curves if row["seed"] == run["seed"]]
        assert len(own) == int(run["updates"]) == script.SMOKE_UPDATES
        assert own[-1]["steps"] == run["steps"]
        largest = max(float(row["kl"]) for row in own)
        assert largest == float(run["largest_kl"])
        assert 0 < largest <= float(run["target_kl"])
        assert int(run["rejected"]) == sum(row["accepted"] == "False" for row in own)


def test_resume_makes_what_is_missing_with_the_same_numbers(script, curvature, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    runs, curves = (tmp_path / name for name in script.FILES[:2])
    # The kill comes while the curve of the second run is written: it has no row among the runs.
    runs.write_text("".join(runs.read_text().splitlines(keepends=True)[:-1]))
    curves.write_text(curves.read_text()[:-90])
    for name in curvature.TRAINERS:
        monkeypatch.setitem(curvature.TRAINERS, name, lambda *arguments: pytest.fail("it trained"))
    assert script.main([*OPTIONS, "--out", str(tmp_path), "--resume"]) == 0
    for name in script.FILES:
        found, expected = (rows_of(folder, name) for folder in (tmp_path, finished))
        for row in (*found, *expected):
            for column in TIMED:
                row.pop(column, None)
        assert found == expected


def test_resume_drops_runs_with_other_settings(script, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    runs, curves = script.recorders(tmp_path, resume=True, smoke=True)
    assert len(runs.rows()) == len(script.SMOKE_SEEDS)
    monkeypatch.setitem(script.SMOKE_SETTINGS, "n_critic_updates", 2)
    runs, curves = script.recorders(tmp_path, resume=True, smoke=True)
    assert not runs.rows() and not curves.rows()


def test_other_runs_stay_beside_those_asked_for(script, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    made = []
    monkeypatch.setattr(script, "make", lambda run, *recorders: made.append((run.env, run.seed)))
    arguments = [*OPTIONS, "--seeds", "901-902", "--no-curvature", "--resume", "--out", str(tmp_path)]
    assert script.main(arguments) == 0
    assert made == [("CartPole-v1", 902)]
    assert rows_of(tmp_path, script.FILES[0]) == rows_of(finished, script.FILES[0])


def test_the_curvature_experiment_takes_the_policies(script, curvature, policies, finished):
    paths = sorted((finished / "trpo_policies").glob("*.keras"))
    assert [path.name.split("_")[0] for path in paths] == ["adam", "trpo"]
    settings = curvature.curvature_settings(script.SMALL, smoke=True)
    for path in paths:
        policy = policies.load(settings, path)
        assert policies.draw(settings, policy, 2, 0).num_episodes == 2


def test_both_optimizers_start_at_the_same_policy(script, curvature, policies, tmp_path):
    settings = curvature.curvature_settings(script.SMALL, smoke=True)
    for name, train in curvature.TRAINERS.items():
        train(script.SMALL, settings, (0,), tmp_path)
        name = curvature.checkpoint_name(script.SMALL, settings, name, 0)
        policy = policies.load(settings, tmp_path / f"{name}.keras")
        for one, other in zip(policy.get_weights(), policies.new_policy(settings, 0).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_replot_draws_and_reports_without_running(script, finished, still, capsys, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    finished = tmp_path
    # A kill within a curve: its run is not drawn.
    curves = finished / script.FILES[1]
    curves.write_text(curves.read_text() + curves.read_text().splitlines()[-1].replace(",901,", ",902,") + "\n")
    figures = [finished / "trpo_learning.png", finished / "trpo_curvature.png"]
    for figure in figures:
        figure.unlink()
    assert script.main(["--replot", "--out", str(finished)]) == 0
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    assert "CartPole-v1" in capsys.readouterr().out


def run_row(script, env, seed, deterministic, stochastic, **others):
    row = {name: "1" for name in script.RUN_COLUMNS}
    row |= {"env": env, "seed": str(seed), "set": script.set_of(seed), "target_kl": "0.01", "largest_kl": "0.005"}
    return row | {"deterministic": str(deterministic), "stochastic": str(stochastic), **others}


def test_table_of_rows_made_by_hand(script, results, capsys, tmp_path):
    rows = [run_row(script, "Pendulum-v1", 100, -150.0, -160.0)]
    rows += [run_row(script, "CartPole-v1", seed, 500.0, 500.0 if seed else 100.0) for seed in range(10)]
    rows += [run_row(script, "CartPole-v1", seed, 480.0, 474.0, largest_kl="0.0125") for seed in (100, 101)]
    lines = [line.strip("| ").split(" | ") for line in results.table(rows, script.TASKS, markdown=True).splitlines()]
    assert lines[0] == list(results.HEADER)
    cells = [dict(zip(results.HEADER, line, strict=True)) for line in lines[2:]]
    assert [(c["environment"], c["seeds"], c["actions"]) for c in cells] == [
        (env, seeds, spoken)
        for env, seeds in (
            ("CartPole-v1", "tuning, 0-9"),
            ("CartPole-v1", "confirming, 100-101"),
            ("Pendulum-v1", "confirming, 100-100"),
        )
        for spoken in ("most probable", "sampled")
    ]
    assert [c["met"] for c in cells] == ["yes", "yes", "yes", "NO", "yes", "-"]
    assert [c["seeds at it"] for c in cells] == ["10 of 10", "9 of 10", "2 of 2", "0 of 2", "1 of 1", "1 of 1"]
    assert cells[1]["worst seed"] == "100.0" and cells[1]["mean over seeds (95%)"].startswith("460.0 (380")
    assert cells[2]["largest KL / limit"] == "1.2500" and cells[0]["rejected updates"] == "10 of 10"
    assert len(results.table(rows, script.TASKS).splitlines()) == len(cells) + 1

    recorder = importlib.import_module("kit.recording").Recorder
    for name, columns in zip(script.FILES[:2], (script.RUN_COLUMNS, script.CURVE_COLUMNS), strict=True):
        own = recorder(tmp_path / name, columns, columns)
        for row in rows if name == script.FILES[0] else ():
            own.append(**row)
    assert script.main(["--table", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.rstrip() == results.table(rows, script.TASKS, markdown=True)


def test_the_interval_holds_the_mean_as_often_as_it_says(results):
    rng = np.random.default_rng(0)
    intervals = [results.interval(rng.standard_normal(10)) for _ in range(200)]
    # A bootstrap of ten is a little narrow.
    assert 0.85 <= np.mean([low < 0 < high for low, high in intervals]) <= 0.98
    assert results.interval(np.full(3, 500.0)) == (500.0, 500.0)


def test_eigenvalues_are_compared_at_equal_return(results):
    def row(optimizer, value, eigenvalue):
        return {"optimizer": optimizer, "end": "smallest", "return": str(value), "eigenvalue": str(eigenvalue)}

    rows = [row("TRPO", 10, -100), row("TRPO", 30, -300), row("Adam", 5, -1), row("Adam", 20, -150)]
    assert results.comparison(rows).endswith("at equal return: -200 and -150 at 20.")
    assert results.comparison(rows[:2]) == ""


def test_the_small_policy_is_that_of_the_curvature_experiment(script):
    assert importlib.import_module("policy_curvature").TASKS[script.SMALL.env] == script.SMALL.task


def test_settings_divide_the_steps(script):
    for env in script.TASKS:
        for seed in (0, 100):
            run = script.Run.of(env, seed, smoke=False)
            assert run.steps % (run.settings["n_envs"] * run.settings["n_steps"]) == 0
    assert [script.set_of(seed) for seed in (0, 9, 10, 100, 109, 110, 300)] == [
        *("tuning", "tuning", "other", "confirming", "confirming", "other", "fresh")
    ]


def test_nothing_recorded(script, tmp_path, capsys):
    for option in ("--replot", "--table"):
        assert script.main([option, "--out", str(tmp_path)]) == 1
        assert "nothing to show" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["--smoke", "--resume"],
        ["--seeds", "9-0"],
        ["--seeds", "a"],
        ["--seeds", "1", "--tuning"],
        ["--env", "Nothing-v0"],
        ["--no-curvature", "--only-curvature"],
    ],
)
def test_options_are_checked(script, argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.parse(argv)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err
