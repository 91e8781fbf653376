"""Differential equations: solutions that solve them, points where they belong, and a smoke run, resumed and redrawn."""

import csv
import dataclasses
import math

import keras
import numpy as np
import pytest
import scripts
from oracle import difference

import tf_natgrad as ng

STEP = 1e-4


@pytest.fixture(scope="module")
def script():
    with scripts.imported("pde") as module:
        yield module


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """A folder with one whole short run of each contestant."""
    out = tmp_path_factory.mktemp("finished")
    assert script.main(["--smoke", "--out", str(out)]) == 0
    return out


def rows_of(folder, name="pde.csv"):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def _differences(u, x, index):
    """A first or second derivative by central differences."""
    if not index:
        return u(x)
    *rest, axis = index
    move = STEP * np.eye(x.shape[1])[axis]
    return (_differences(u, x + move, rest) - _differences(u, x - move, rest)) / (2.0 * STEP)


EQUATIONS = ["poisson", "poisson_wide", "heat", "poisson5", "burgers", "inverse"]


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_solution_solves_the_equation_and_points_lie_where_they_belong(script, name, double, monkeypatch):
    def laplacian(u, x):
        parts = [_differences(u, x, (i, i)) for i in range(x.shape[1])]
        return u(x), None, sum(parts)

    monkeypatch.setattr(ng.pde, "laplacian", laplacian)
    monkeypatch.setattr(ng.pde, "derivatives", lambda u, x, wanted: {w: _differences(u, x, w) for w in wanted})
    equation = script.EQUATIONS[name]
    unknown = None if equation.coefficient is None else lambda x: equation.coefficient[0]
    terms, points = equation.terms(unknown), equation.points(np.random.default_rng(0))
    assert set(terms) == set(points) == set(equation.counts) and set(equation.weights) < set(terms)
    low, high = np.array(equation.box).T
    for term, x in points.items():
        assert x.shape == (equation.counts[term], len(low)) and np.all((x >= low) & (x <= high))
        residual = np.asarray(terms[term](equation.exact, x))
        assert residual.shape == (len(x), 1) and np.abs(residual).max() < 1e-5
        if term not in ("inside", "data"):
            assert np.all(np.any((x == low) | (x == high), 1))
    assert np.abs(np.asarray(terms["inside"](lambda x: np.sin(x.sum(1, keepdims=True)), points["inside"]))).max() > 0.1


@pytest.mark.parametrize("name", EQUATIONS)
def test_directions_are_those_of_the_jacobian_of_each_residual(script, name, double):
    equation = script.EQUATIONS[name]
    # Narrow layers: the dense matrix of the oracle is of the size of all weights.
    widths = (equation.widths[0], *(min(width, 10) for width in equation.widths[1:-1]), 1)
    equation = dataclasses.replace(equation, counts=dict.fromkeys(equation.counts, 60), widths=widths)
    unknown = equation.unknown()
    model = ng.pde.ResidualModel(
        equation.network(), equation.terms(unknown), equation.weights, coefficients=[unknown] if unknown else []
    )
    x, y, weights = next(iter(model.batches(equation.points(np.random.default_rng(0)))))
    expected, _ = ng.natural_gradient(model, "mse", x, y, sample_weight=weights, damping=1e-3, solver="svd")
    value, info = ng.natural_gradient(model, "mse", x, y, sample_weight=weights, damping=1e-3, solver="gram")
    assert info.solver == "Gram"
    assert difference(value, expected) < 1e-8


def test_a_smoke_run_is_resumed_and_redrawn(script, finished, capsys):
    rows = rows_of(finished)
    ends = [row for row in rows if row["end"]]
    assert {row["contestant"] for row in ends} == set(script.CONTESTANTS)
    assert all(row["end"] == "budget" and math.isfinite(float(row["error"])) for row in ends)
    natural = [row for row in rows if row["contestant"] == "natural"]
    assert [int(row["iteration"]) for row in natural] == sorted(int(row["iteration"]) for row in natural)
    assert float(natural[-1]["loss"]) < float(natural[1]["loss"])
    before = (finished / "pde.csv").read_bytes()
    capsys.readouterr()
    assert script.main(["--smoke", "--out", str(finished), "--resume"]) == 0
    assert (finished / "pde.csv").read_bytes() == before
    printed = capsys.readouterr().out
    assert "Poisson, 2-32-1" in printed
    for name in ("pde.png", "pde_solutions.png"):
        (finished / name).unlink()
    assert script.main(["--replot", "--out", str(finished)]) == 0
    assert (finished / "pde.png").stat().st_size > 10_000 and (finished / "pde_solutions.png").stat().st_size > 10_000
    capsys.readouterr()
    assert script.main(["--table", "--out", str(finished)]) == 0
    assert capsys.readouterr().out.strip() in printed


def test_contestants_start_alike_and_minimise_the_same(script, double):
    runs = [script.Run("heat", name, 1e-3, 3, 0.05, 1) for name in ("natural", "lbfgs")]
    first, second = (script.Contest(run) for run in runs)
    assert first.error() == second.error() and float(first.loss()) == float(second.loss())
    with_weights = first.model.compute_loss(first.batch[0], first.batch[1], first.model(first.batch[0]), first.batch[2])
    assert float(with_weights) == pytest.approx(float(first.loss()), rel=1e-12)


def test_the_summary_takes_medians_and_counts_a_diverged_run_as_infinite(script):
    rows = []
    for seed, (error, end) in enumerate([(1e-3, "budget"), (1e-5, "budget"), (1e-4, "diverged")]):
        key = dict(zip(script.KEY_COLUMNS, ("poisson", "natural", "", str(seed), "30", "1"), strict=True))
        for iteration, seconds, value, last in ((0, 0.0, 1.0, ""), (5, 2.0 + seed, error, end)):
            own = {"iteration": iteration, "seconds": seconds, "loss": 1.0, "error": value, "end": last}
            rows.append({name: str({**key, **own}.get(name, "")) for name in script.COLUMNS})
    (found,) = script.summarize(rows)
    assert found["error"] == 1e-3 and found["error_max"] == math.inf and found["seeds"] == 3
    assert found["seconds_to_0.001"] == 3.0 and found["seconds_to_1e-05"] is None
    assert keras.config.floatx() == "float32"


@pytest.mark.parametrize("arguments", [["--problems", "wave"], ["--smoke", "--resume"], ["--seeds", "0"]])
def test_a_wrong_command_line_is_refused(script, arguments, capsys):
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert "error" in capsys.readouterr().err
