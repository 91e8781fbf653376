"""The MNIST experiment on scikit-learn's digits: what it records, resumes, draws and refuses."""

import csv
import importlib

import numpy as np
import pytest
import scripts

COLUMNS = (
    "run,dataset,image_size,batch_size,learning_rate,damping,metric,solver,seed,iteration,loss,test_loss,"
    "test_accuracy,seconds"
)
OPTIONS = ["--smoke", "--dataset", "digits", "--iterations", "8"]


@pytest.fixture(scope="module")
def script():
    with scripts.imported("mnist_natgrad") as module:
        yield module


@pytest.fixture(scope="module")
def recording(script):
    return importlib.import_module("kit.recording")


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """A folder with one whole short run."""
    out = tmp_path_factory.mktemp("finished")
    assert script.main([*OPTIONS, "--out", str(out)]) == 0
    return out


def rows_of(folder, name="mnist_convergence.csv"):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_columns_and_dataset(finished):
    rows = rows_of(finished)
    assert ",".join(rows[0]) == COLUMNS
    assert {row["dataset"] for row in rows} == {"digits"} and {row["image_size"] for row in rows} == {"8"}
    assert {row["metric"] for row in rows} == {"euclidean", "logits", "probs"}
    assert all(row["test_loss"] for row in rows)


def test_runs_of_a_seed_share_weights_and_batches(finished):
    first = {}
    for row in rows_of(finished):
        if row["iteration"] == "0":
            first.setdefault((row["seed"], row["batch_size"]), set()).add(row["loss"])
    assert len(first) == 8
    for losses in first.values():
        assert np.ptp([float(loss) for loss in losses]) < 1e-5


def test_dense_and_gram_make_the_same_steps(finished):
    losses = {}
    for row in rows_of(finished):
        if (
            row["run"] in ("March script", "June script", "blog text")
            and row["seed"] == "0"
            and int(row["iteration"]) < 3
        ):
            losses.setdefault((row["run"], row["iteration"]), {})[row["solver"]] = float(row["loss"])
    assert len(losses) == 9
    for pair in losses.values():
        assert pair["svd"] == pytest.approx(pair["gram"], rel=1e-3)


def test_step_cost_compares_the_solvers(finished):
    rows = rows_of(finished, "mnist_step_cost.csv")
    assert ",".join(rows[0]) == "image_size,parameters,batch_size,solver,milliseconds,relative_difference,rank"
    assert [row["solver"] for row in rows] == ["svd", "gram", "cg"]
    assert all(float(row["relative_difference"]) < 0.01 for row in rows)
    assert [row["rank"] for row in rows] == ["288", "288", ""]


def test_resume_gives_the_numbers_of_an_uninterrupted_run(script, finished, tmp_path):
    text = (finished / "mnist_convergence.csv").read_text()
    lines = text.splitlines(keepends=True)
    middle = next(i for i, line in enumerate(lines) if line.startswith("blog text") and ",gram,2,4," in line)
    # The kill comes in the middle of a run, and of a line.
    (tmp_path / "mnist_convergence.csv").write_text("".join(lines[:middle]) + lines[middle][:31])
    (tmp_path / "mnist_step_cost.csv").write_text((finished / "mnist_step_cost.csv").read_text())
    assert script.main([*OPTIONS, "--out", str(tmp_path), "--resume"]) == 0
    assert without_seconds(rows_of(tmp_path)) == without_seconds(rows_of(finished))
    kept = (tmp_path / "mnist_convergence.csv").read_text()
    assert kept.startswith("".join(lines[: middle - 4]))
    assert (tmp_path / "mnist_step_cost.csv").read_text() == (finished / "mnist_step_cost.csv").read_text()


def test_resume_drops_runs_of_other_settings(script, finished):
    arguments = script.parse(["--dataset", "digits", "--iterations", "8", "--seeds", "1", "--learning-rate", "0.5"])
    runs = {run.key: run for run in script.plan(arguments, "digits", [8])}
    by_key = {}
    for row in rows_of(finished):
        by_key.setdefault(tuple(row[name] for name in script.KEY_COLUMNS), []).append(row)
    corrected = {key for key in by_key if key[0] == "corrected"}
    assert corrected and not corrected & set(runs)
    assert all(runs[key].is_complete(rows) for key, rows in by_key.items() if key in runs and key[7] != "svd")


def test_replot_draws_and_reports_without_running(script, finished, monkeypatch, capsys):
    monkeypatch.setattr(script, "run_all", lambda *arguments: pytest.fail("it ran"))
    figures = [finished / "mnist_convergence.png", finished / "mnist_step_cost.png"]
    for figure in figures:
        figure.unlink()
    recorded = finished / "losses.txt"
    recorded.write_text("2.3\n2.2\n2.0\n")
    assert script.main(["--replot", "--out", str(finished), "--recorded", str(recorded)]) == 0
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    printed = capsys.readouterr().out
    assert "digits (not MNIST)" in printed and "March script" in printed and "to test loss 0.55" in printed


def test_replot_without_anything_recorded(script, tmp_path, capsys):
    assert script.main(["--replot", "--out", str(tmp_path)]) == 1
    assert "nothing to draw" in capsys.readouterr().err


def test_mnist_without_data_is_an_error_that_says_how_to_get_it(script, tmp_path, monkeypatch, capsys):
    scripts.refuses_without_mnist(script, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    "argv",
    [
        ["--smoke", "--resume"],
        ["--seeds", "0"],
        ["--damping", "-1"],
        ["--learning-rate", "nan"],
        ["--recorded", "/nowhere"],
        ["--solver", "svd", "--image-size", "28"],
    ],
)
def test_options_are_checked(script, argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.parse(argv)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_explosion_is_a_loss_above_ten_or_not_finite(script):
    assert [script.has_exploded(loss) for loss in (2.3, 10.0, 10.1, float("inf"), float("nan"))] == [
        *(False, False),
        *(True, True, True),
    ]


def test_recorder_keeps_whole_runs_and_whole_lines(recording, tmp_path):
    path = tmp_path / "folder" / "a.csv"
    first = recording.Recorder(path, ("run", "step", "value"), ("run",))
    for step in range(3):
        first.append(run="a", step=step, value=1.0 / 3.0)
    first.append(run="b", step=0)
    with open(path, "a") as file:
        file.write("b,1,0.")
    again = recording.Recorder(path, first.columns, ("run",), resume=True, keep=lambda key, rows: len(rows) == 3)
    assert ("a",) in again and ("b",) not in again
    assert path.read_text() == "run,step,value\n" + "".join(f"a,{step},0.333333\n" for step in range(3))
    with pytest.raises(ValueError, match="no such columns: speed"):
        again.append(run="a", speed=1)
    with pytest.raises(ValueError, match="has the columns"):
        recording.Recorder(path, ("run", "other"), ("run",), resume=True)
    assert not [file for file in path.parent.iterdir() if file != path]
