"""The policy-curvature experiment, very short: what it records, resumes, draws and refuses."""

import csv
import importlib
import shutil

import numpy as np
import pytest
import scripts

pytest.importorskip("gymnasium")

OPTIONS = [
    "--smoke",
    "--hidden",
    "2",
    "--iterations",
    "1",
    "--checkpoints",
    "1",
    "--max-steps",
    "10",
    "--episodes",
    "8",
    "--rollouts",
    "4",
]


@pytest.fixture(scope="module")
def script():
    # The draws of the null have their own tests, and take most of the time.
    with scripts.imported("policy_curvature") as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NULL_DRAWS", 0)
        yield module


@pytest.fixture(scope="module")
def policies(script):
    return importlib.import_module("kit.policies")


@pytest.fixture(scope="module")
def tabular(script):
    return importlib.import_module("kit.tabular")


@pytest.fixture(scope="module")
def recording(script):
    return importlib.import_module("kit.recording")


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """A folder with one whole short run."""
    out = tmp_path_factory.mktemp("finished")
    assert script.main([*OPTIONS, "--out", str(out)]) == 0
    return out


def rows_of(folder, name):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def test_columns_and_rows(script, tabular, finished):
    curvature, lines, surface, variance = (rows_of(finished, name) for name in script.FILES)
    for rows, columns in zip((curvature, lines, surface, variance), script.ALL_COLUMNS, strict=True):
        assert tuple(rows[0]) == columns
    assert [(row["iteration"], row["end"]) for row in curvature] == [("0", "smallest"), ("0", "largest")]
    assert {row["parameters"] for row in curvature} == {str(5 * 2 + 3 * 2)}
    for row in curvature:
        assert float(row["low"]) <= float(row["eigenvalue"]) <= float(row["high"])
        assert row["p_value"] == "nan"
    assert list(dict.fromkeys(row["direction"] for row in lines)) == list(script.DIRECTIONS)
    assert len(variance) == 2 * len(tabular.HORIZONS) * len(tabular.CASES)


def test_lines_and_surface_meet_at_the_policy(script, recording, finished):
    lines, surface = rows_of(finished, script.FILES[1]), rows_of(finished, script.FILES[2])
    still = [row for row in lines if float(row["step"]) == 0]
    center = [row for row in surface if float(row["step_bottom"]) == float(row["step_top"]) == 0]
    assert len(center) == 1 and still
    for row in still + center:
        assert float(row["change"]) == float(row["change_error"]) == float(row["predicted"]) == 0
    for of_policy in recording.by(lines, "policy").values():
        assert len({row["return"] for row in of_policy if float(row["step"]) == 0}) == 1


def test_the_same_random_numbers_at_every_step(script, policies):
    import tf_natgrad.rl as rl

    settings = script.Settings("CartPole-v1", 10, "2", 0.99, "value", 8, 0, 4, 2, 0.5)
    policy = policies.new_policy(settings, 0)
    with policies.environments(settings, 4) as env:
        one, other = (rl.collect(env, policy, 4, seed=3) for _ in range(2))
        np.testing.assert_array_equal(one.observations, other.observations)
        # Another policy: other actions later, but the same beginnings.
        weights = policy.get_weights()
        policy.set_weights([weight + 5.0 for weight in weights])
        moved = rl.collect(env, policy, 4, seed=3)
    np.testing.assert_array_equal(one.observations[one.starts], moved.observations[moved.starts])


def test_slopes_are_the_policy_gradient_by_episode(script, policies):
    settings = script.Settings("CartPole-v1", 10, "2", 0.99, "value", 8, 0, 4, 2, 0.5)
    policy = policies.new_policy(settings, 0)
    episodes = script.draw(settings, policy, 8, 0)
    hessian = script.hessian_of(settings, policy, episodes)
    gradient = hessian.policy_gradient().numpy()
    vector = np.random.default_rng(0).standard_normal(len(gradient)).astype(np.float32)
    slopes = script.slopes_of(policy, hessian, episodes, vector)
    assert slopes.shape == (8,)
    assert slopes.mean() == pytest.approx(gradient @ vector, rel=1e-4, abs=1e-5)


def test_tabular_estimates_have_the_exact_hessian_as_their_mean(tabular):
    problem, horizon = tabular.TabularProblem(0), 4
    found = problem.estimates(horizon, 20_000)
    policy, logits = problem.policy, np.log(problem.policy)
    offset = problem.start @ problem.values(horizon, problem.rewards)[0] / horizon

    def value(move):
        weights = np.exp(logits + move.reshape(logits.shape))
        problem.policy = weights / weights.sum(1, keepdims=True)
        return problem.start @ problem.values(horizon, problem.rewards - offset)[0]

    eps, units = 1e-3, np.eye(6)
    assert value(np.zeros(6)) == pytest.approx(0.0, abs=1e-12)
    exact = np.array(
        [[value(eps * (u + v)) - value(eps * (u - v)) - value(eps * (v - u)) + value(-eps * (u + v)) for v in units]
         for u in units]
    ) / (4 * eps**2)  # fmt: skip
    problem.policy = policy
    assert set(found) == set(tabular.CASES)
    for name in ("causal, state baseline", "trajectory, constant baseline J"):
        error = found[name].std(0) / np.sqrt(len(found[name]))
        assert (np.abs(found[name].mean(0) - exact) <= 4.5 * error + 1e-5).all(), name


def test_resume_keeps_what_is_complete_and_makes_the_rest_alike(script, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    lines = tmp_path / script.FILES[1]
    # The kill comes in the middle of a line.
    lines.write_text(lines.read_text()[: int(0.7 * len(lines.read_text()))])
    monkeypatch.setattr(script, "train", lambda *arguments: pytest.fail("it trained"))
    monkeypatch.setattr(script.Checkpoint, "measure", lambda *arguments: pytest.fail("it measured"))
    assert script.main([*OPTIONS, "--out", str(tmp_path), "--resume"]) == 0
    for name in script.FILES:
        found, expected = (rows_of(folder, name) for folder in (tmp_path, finished))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            for column, value in one.items():
                if name != script.FILES[1] or column in (*script.KEY_COLUMNS, "direction"):
                    assert value == other[column]
                else:
                    assert float(value) == pytest.approx(float(other[column]), rel=1e-3, abs=1e-3)


def test_saved_policies_are_taken(script, finished, tmp_path):
    import keras
    import tensorflow as tf

    import tf_natgrad.rl as rl

    settings = script.Settings("CartPole-v1", 10, "2", 0.99, "value", 8, 0, 4, 2, 0.5)
    policy = script.load(settings, next((finished / "policies").glob("*.keras")))
    assert isinstance(policy, rl.CategoricalPolicy)
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    network.save(tmp_path / "network.keras")
    policy = script.load(settings, tmp_path / "network.keras")
    assert isinstance(policy, rl.CategoricalPolicy)
    np.testing.assert_allclose(policy(tf.ones([1, 4])), network(tf.ones([1, 4])))


def test_continuous_actions(script, policies):
    import tf_natgrad.rl as rl

    settings = script.Settings("Pendulum-v1", 5, "2", 0.99, "value", 8, 0, 4, 2, 0.5)
    policy = policies.new_policy(settings, 0)
    assert isinstance(policy, rl.GaussianPolicy)
    assert script.draw(settings, policy, 8, 0).lengths.tolist() == [5] * 8


def test_replot_draws_and_reports_without_running(script, finished, monkeypatch, capsys):
    monkeypatch.setattr(script, "run_all", lambda *arguments: pytest.fail("it ran"))
    figures = [(finished / name).with_suffix(".png") for name in script.FILES]
    for figure in figures:
        figure.unlink()
    assert script.main(["--replot", "--out", str(finished)]) == 0
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    assert "CartPole-v1" in capsys.readouterr().out


def test_replot_without_anything_recorded(script, tmp_path, capsys):
    assert script.main(["--replot", "--out", str(tmp_path)]) == 1
    assert "nothing to draw" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--smoke", "--resume"], ["--episodes", "3"], ["--gamma", "1.5"], ["--env", "Nothing-v0"]]
)
def test_options_are_checked(script, argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.parse(argv)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err
