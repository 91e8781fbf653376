"""The curvature experiment on scikit-learn's digits: what it records, resumes, draws and refuses."""

import csv
import importlib

import numpy as np
import pytest
import scripts

OPTIONS = ["--smoke", "--dataset", "digits", "--iterations", "1", "--subsample", "50"]
NAMES = ("loss_curvature.csv", "loss_curvature_density.csv")


@pytest.fixture(scope="module")
def script():
    # Fewer weights than this and the matrix is decomposed whole, which is quick, and Lanczos has its own tests.
    with scripts.imported("loss_curvature") as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HIDDEN", 5)
        yield module


@pytest.fixture(scope="module")
def spectrum(script):
    return importlib.import_module("kit.exact_spectrum")


@pytest.fixture(scope="module")
def data():
    from tf_natgrad.data import load_images

    return load_images("digits")


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """A folder with one whole short run and a small exact check."""
    out = tmp_path_factory.mktemp("finished")
    assert script.main([*OPTIONS, "--out", str(out)]) == 0
    assert script.main(["--smoke", "--dataset", "digits", "--exact", "--out", str(out)]) == 0
    return out


def rows_of(folder, name=NAMES[0]):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_columns_and_rows(script, finished):
    rows = rows_of(finished)
    assert tuple(rows[0]) == script.COLUMNS
    assert {row["dataset"] for row in rows} == {"digits"} and {row["image_size"] for row in rows} == {"8"}
    assert list(dict.fromkeys(row["optimizer"] for row in rows)) == ["SGD", "Adam", "natural gradient"]
    # Two subsamples and all images, before and after the one step of each optimizer.
    assert [row["subsample"] for row in rows] == 6 * ["0", "1", "all"]
    assert {row["train_images"] for row in rows} == {"100"}


def test_a_row_says_what_the_dense_hessian_says(script, data, finished):
    import tensorflow as tf

    network = script.Network(data, script.optimizer_of("SGD"), 5, 100, 64, 0)
    hessian = network.hessian(slice(50, 100))
    values, vectors = np.linalg.eigh(hessian.to_dense().numpy())
    row = rows_of(finished)[1]
    assert row["subsample"] == "1" and row["iteration"] == "0"
    for column, rank in (("largest", -1), ("tenth", -10), ("smallest", 0)):
        assert float(row[column]) == pytest.approx(values[rank], abs=1e-4)
    assert abs(float(row["trace"]) - values.sum()) < 5 * float(row["trace_error"])
    with tf.GradientTape() as tape:
        loss = network.loss(network.y[50:], network.net(network.x[50:]))
    gradient = np.concatenate([np.ravel(g) for g in tape.gradient(loss, network.net.trainable_weights)])
    top = vectors[:, -10:].T @ gradient
    assert float(row["overlap"]) == pytest.approx(top @ top / (gradient @ gradient), abs=1e-3)
    assert float(row["gradient_norm"]) == pytest.approx(np.linalg.norm(gradient), rel=1e-4)


def test_runs_of_a_seed_start_alike_and_part(finished):
    by_iteration = {}
    for row in rows_of(finished):
        by_iteration.setdefault((row["iteration"], row["subsample"]), set()).add(row["largest"])
    assert {key[0]: len(values) for key, values in by_iteration.items()} == {"0": 1, "1": 3}


def test_densities_integrate_to_one(script, finished):
    found = {}
    for row in rows_of(finished, NAMES[1]):
        found.setdefault((row["optimizer"], row["iteration"]), []).append(row)
    assert len(found) == 6
    for rows in found.values():
        grid, density = (np.array([float(row[name]) for row in rows]) for name in ("eigenvalue", "density"))
        assert len(grid) == script.DENSITY_POINTS
        assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=0.01)


def test_exact_spectrum_agrees_with_its_estimate(script, finished):
    exact = script.Exact(script.read_rows(finished / "loss_curvature_exact.csv", script.EXACT_COLUMNS))
    assert exact.parameters == len(exact.eigenvalue) == (64 + 1) * 4 + 5 * 10
    assert (np.diff(exact.eigenvalue) >= 0).all()
    assert exact.extremes_off_by < 1e-4
    assert exact.share_misplaced < 0.15
    # The digits have pixels that are empty in every image.
    assert exact.number("rows that are zero") > 0


def test_all_eigenvalues_leaves_zero_rows_out(spectrum):
    matrix = np.zeros([6, 6], np.float32)
    block = np.random.default_rng(0).standard_normal([4, 4]).astype(np.float32)
    alive = np.array([0, 2, 3, 5])
    matrix[np.ix_(alive, alive)] = block + block.T
    values, zeros = spectrum.all_eigenvalues(matrix)
    assert zeros == 2
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), atol=1e-5)


def test_kept_ranks_hold_both_ends(spectrum):
    ranks = spectrum.kept_ranks(15910)
    assert len(ranks) == 2000 and (np.diff(ranks) > 0).all()
    assert ranks[:100].tolist() == list(range(100)) and ranks[-100:].tolist() == list(range(15810, 15910))
    assert spectrum.kept_ranks(7).tolist() == list(range(7))


def test_checkpoints_are_spaced_logarithmically(script, data):
    def checkpoints(iterations):
        arguments = script.parse(["--iterations", str(iterations)])
        return script.plan(arguments, data)[0].checkpoints

    assert checkpoints(1000) == [0, 1, 3, 10, 30, 100, 300, 1000]
    assert checkpoints(50) == [0, 1, 3, 10, 30, 50]
    assert checkpoints(1) == [0, 1]


def test_a_small_data_set_limits_the_subsamples(script, data):
    run = script.plan(script.parse([]), data)[0]
    assert (run.subsample_images, run.train_images) == (1437 // 4, 4 * (1437 // 4))


def test_resume_gives_the_numbers_of_an_uninterrupted_run(script, finished, tmp_path):
    lines = (finished / NAMES[0]).read_text().splitlines(keepends=True)
    # The kill comes in the middle of the last run, and of a line; of the density there is the first half.
    (tmp_path / NAMES[0]).write_text("".join(lines[:-2]) + lines[-2][:31])
    densities = (finished / NAMES[1]).read_text().splitlines(keepends=True)
    (tmp_path / NAMES[1]).write_text("".join(densities[: -script.DENSITY_POINTS]))
    assert script.main([*OPTIONS, "--out", str(tmp_path), "--resume"]) == 0
    assert (tmp_path / NAMES[0]).read_text().startswith("".join(lines[: 1 + 2 * 6]))
    for name in NAMES:
        found, expected = (without_seconds(rows_of(folder, name)) for folder in (tmp_path, finished))
        assert len(found) == len(expected)
        # Threads may add up in another order: the last digits of a residual are rounding.
        for one, other in zip(found, expected, strict=True):
            for column, value in one.items():
                if column in script.KEY_COLUMNS or column in ("iteration", "subsample"):
                    assert value == other[column]
                elif column != "residual":
                    assert float(value) == pytest.approx(float(other[column]), rel=1e-3, abs=1e-4)


def test_replot_draws_and_reports_without_running(script, finished, monkeypatch, capsys):
    monkeypatch.setattr(script, "run_all", lambda *arguments: pytest.fail("it ran"))
    monkeypatch.setattr(script, "run_exact", lambda *arguments: pytest.fail("it ran"))
    figures = [finished / "loss_curvature.png", finished / "loss_curvature_density.png"]
    for figure in figures:
        figure.unlink()
    assert script.main(["--replot", "--out", str(finished)]) == 0
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    printed = capsys.readouterr().out
    assert "digits (not MNIST)" in printed and "natural gradient at 1" in printed and "Exact check" in printed


def test_replot_without_anything_recorded(script, tmp_path, capsys):
    assert script.main(["--replot", "--out", str(tmp_path)]) == 1
    assert "nothing to draw" in capsys.readouterr().err


def test_mnist_without_data_is_an_error_that_says_how_to_get_it(script, tmp_path, monkeypatch, capsys):
    scripts.refuses_without_mnist(script, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    "argv", [["--smoke", "--resume"], ["--seeds", "0"], ["--iterations", "-3"], ["--exact", "--replot"]]
)
def test_options_are_checked(script, argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.parse(argv)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err
