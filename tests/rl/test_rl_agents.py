"""Agents: they learn, keep their limits, resume with the same numbers, and leave nothing half done."""

import csv
import dataclasses
import inspect
import json
import logging
import os
import resource
import subprocess
import sys

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_natgrad
from tf_natgrad import _checks, _files, rl
from tf_natgrad.rl.agents.checkpoint import read_checkpoint
from tf_natgrad.rl.agents.critic import Critic
from tf_natgrad.rl.agents.learner import Learner
from tf_natgrad.rl.agents.log import CsvLog, Record
from tf_natgrad.rl.agents.settings import TRUST_REGION, WHOLE_STEPS
from tf_natgrad.steps import LineSearch

SMALL = {"n_steps": 32, "n_envs": 2, "batch_size": 16, "n_critic_updates": 2}
UPDATE = 64


def small(env="CartPole-v1", cls=rl.TRPO, **options):
    return cls(env, **SMALL | options)


def state(agent):
    """All that training changes, as bytes."""
    return {name: array.tobytes() for name, array in agent._learner.arrays().items()}


def rows(agent):
    """The log without its times, comparable also where a return is NaN."""
    return [{k: repr(v) for k, v in row.items() if k != "steps_per_second"} for row in agent.log]


def rewind(agent, arrays, updates):
    """Puts an agent back, compiled functions and all that does not change being kept."""
    agent._learner.restore(arrays)
    agent.steps, agent.updates = updates * UPDATE, updates
    del agent.log[updates:]


@pytest.fixture(scope="module")
def compiled():
    agent = small(normalize_observations=True)
    return agent, agent._learner.arrays()


@pytest.fixture
def fresh(compiled):
    """A small agent that has not learned yet, without the cost of compiling it."""
    agent, arrays = compiled
    rewind(agent, arrays, 0)
    return agent


class Still(gym.Env):
    """Nothing happens; the reward is given."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2, 3))
    action_space = gym.spaces.Box(-0.1, 0.1, (2,))

    def __init__(self, reward=0.0, length=7):
        self.reward, self.length = reward, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample() * 0.0, {}

    def step(self, action):
        self.time += 1
        return np.ones((2, 3), np.float32), self.reward, False, self.time == self.length, {}


@pytest.fixture(scope="module")
def trained():
    """A trained agent, not to be changed."""
    return rl.TRPO("CartPole-v1", n_envs=4, n_steps=256, batch_size=256, cg_damping=1e-3, seed=0).learn(
        20_000, progress=False
    )


def test_cart_pole_is_learned(trained):
    assert trained.steps == 20 * 1024 and trained.updates == 20 == len(trained.log)
    before = trained.log[0]["mean_return"]
    assert trained.evaluate(episodes=10).mean() > before + 150.0


def test_accepted_steps_stay_within_the_limit(trained):
    assert any(row["accepted"] for row in trained.log)
    for row in trained.log:
        assert 0.0 <= row["kl"] <= trained.target_kl
        assert row["accepted"] == (row["kl_predicted"] > 0.0) == (row["surrogate"] > 0.0)


def test_nothing_is_traced_twice(trained):
    assert trained._learner.policy_step.compiled.experimental_get_tracing_count() == 1
    assert trained.critic._fit.experimental_get_tracing_count() == 1
    assert trained.critic._values.experimental_get_tracing_count() == 1


def test_pendulum_within_the_limit():
    options = {"n_envs": 4, "n_steps": 200, "normalize_observations": True, "normalize_rewards": True, "gamma": 0.9}
    agent = rl.TRPO("Pendulum-v1", **options).learn(8_000, progress=False)
    assert all(row["kl"] <= agent.target_kl for row in agent.log)
    assert sum(row["accepted"] for row in agent.log) >= 8
    assert agent.log[-1]["explained_variance"] > 0.3


def test_natural_policy_gradient_takes_whole_steps():
    agent = small(cls=rl.NaturalPolicyGradient).learn(10 * UPDATE, progress=False)
    accepted = [row for row in agent.log if row["accepted"]]
    assert len(accepted) >= 8
    assert all(row["line_search_steps"] == 0 for row in agent.log)
    assert all(row["kl_predicted"] == pytest.approx(agent.target_kl) for row in accepted)
    assert any(row["kl"] > agent.target_kl for row in accepted)


def test_learning_further_is_learning_at_once():
    whole, parts = (small(normalize_observations=True, normalize_rewards=True) for _ in range(2))
    whole.learn(4 * UPDATE, progress=False)
    for total in (UPDATE, UPDATE, 3 * UPDATE - 5, 4 * UPDATE):
        parts.learn(total, progress=False)
    assert state(whole) == state(parts)
    assert rows(whole) == rows(parts)


def test_the_seed_determines_all():
    first, again, other = (small(seed=seed).learn(UPDATE, progress=False) for seed in (1, 1, 2))
    assert state(first) == state(again) != state(other)


def test_a_resumed_run_in_a_new_process_ends_with_the_same_numbers(tmp_path):
    path, log = tmp_path / "agent", tmp_path / "log.csv"
    options = {"normalize_observations": True, "normalize_rewards": True, "sub_sampling_factor": 2}
    whole = small("Pendulum-v1", **options).learn(4 * UPDATE, progress=False)
    small("Pendulum-v1", **options).learn(2 * UPDATE, progress=False).save(path)
    code = "import sys, tf_natgrad.rl as rl; p, log = sys.argv[1:]; agent = rl.TRPO.load(p);"
    code += f"agent.learn({4 * UPDATE}, progress=False, log_path=log); agent.save(p)"
    root = os.path.dirname(os.path.dirname(tf_natgrad.__file__))
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, path, log], check=True, env=environment, capture_output=True)
    resumed = rl.TRPO.load(path)
    assert state(whole) == state(resumed)
    assert rows(whole) == rows(resumed)
    written = list(csv.DictReader(log.open()))
    assert [int(row["steps"]) for row in written] == [UPDATE * i for i in (1, 2, 3, 4)]
    assert [float(row["kl"]) for row in written] == [row["kl"] for row in whole.log]


def test_a_loaded_agent_is_the_same(tmp_path):
    agent = small(cls=rl.NaturalPolicyGradient, gamma=0.5, seed=3).learn(UPDATE, progress=False)
    agent.save(tmp_path / "agent")
    loaded = rl.NaturalPolicyGradient.load(tmp_path / "agent")
    assert state(loaded) == state(agent) and rows(loaded) == rows(agent)
    assert (loaded.gamma, loaded.seed, loaded.steps, loaded.updates) == (0.5, 3, UPDATE, 1)
    assert os.listdir(tmp_path) == ["agent"]


@pytest.mark.parametrize("damage", ["half", "empty", "text", "flipped"])
def test_a_damaged_checkpoint(fresh, tmp_path, damage):
    path = tmp_path / "agent"
    fresh.save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged = {"half": content[: len(content) // 2], "empty": b"", "text": b"hello", "flipped": content}[damage]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"`path`: .*cannot be read.*take an earlier checkpoint"):
        rl.TRPO.load(path)


def test_other_checkpoints_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError):
        rl.TRPO.load(tmp_path / "none")
    small(cls=rl.NaturalPolicyGradient).save(tmp_path / "agent")
    with pytest.raises(
        ValueError, match="`path`: received a checkpoint of NaturalPolicyGradient; expected one of TRPO"
    ):
        rl.TRPO.load(tmp_path / "agent")
    small(Still).save(tmp_path / "made")
    with pytest.raises(ValueError, match="`env`: received None for an agent that was made with a function"):
        rl.TRPO.load(tmp_path / "made")
    assert rl.TRPO.load(tmp_path / "made", env=Still).learn(UPDATE, progress=False).updates == 1


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_while_saving_leaves_the_previous_checkpoint(fresh, tmp_path, monkeypatch, moment):
    path, agent = tmp_path / "agent", fresh
    agent.save(path)
    previous = path.read_bytes()
    agent.learn(UPDATE, progress=False)

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(_files.os, moment, killed)
    with pytest.raises(KeyboardInterrupt):
        agent.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == previous
    assert os.listdir(tmp_path) == ["agent"]
    assert rl.TRPO.load(path).updates == 0


def test_checkpoints_while_learning(fresh, tmp_path):
    path, seen = tmp_path / "agent", []

    def look(agent, record):
        seen.append(rl.TRPO.load(path).updates if path.exists() else None)

    agent = fresh.learn(5 * UPDATE, progress=False, checkpoint=path, checkpoint_every=2, callbacks=look)
    assert seen == [None, 2, 2, 4, 4]
    assert state(rl.TRPO.load(path)) == state(agent)


@pytest.mark.parametrize("place", [(Critic, "fit"), (Learner, "_set_moments")])
def test_an_interruption_leaves_the_agent_as_after_the_last_update(fresh, monkeypatch, place):
    agent = fresh.learn(UPDATE, progress=False)
    before, arrays = state(agent), agent._learner.arrays()
    original = getattr(*place)

    def interrupted(self, *arguments):
        original(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*place, interrupted)
        agent.learn(2 * UPDATE, progress=False)
    assert state(agent) == before and (agent.steps, agent.updates, len(agent.log)) == (UPDATE, 1, 1)
    agent.learn(2 * UPDATE, progress=False)
    after = state(agent)
    rewind(agent, arrays, 1)
    agent.learn(2 * UPDATE, progress=False)
    assert state(agent) == after


def test_rewards_that_are_not_finite_leave_the_agent_alone():
    agent = small(lambda: Still(reward=np.nan))
    before = state(agent)
    with pytest.raises(ValueError, match=r"`env`: received rewards with NaN or infinite values"):
        agent.learn(UPDATE, progress=False)
    assert state(agent) == before and agent.steps == 0 and agent.log == []


@pytest.mark.parametrize("cls", [rl.TRPO, rl.NaturalPolicyGradient])
def test_without_any_advantage_the_policy_stays(cls):
    value = keras.Sequential([keras.Input((2, 3)), layers.Flatten(), layers.Dense(1, kernel_initializer="zeros")])
    agent = small(Still, cls, value_network=value)
    before = [w.tobytes() for w in agent.policy.get_weights()]
    (row,) = agent.learn(UPDATE, progress=False).log
    assert [w.tobytes() for w in agent.policy.get_weights()] == before
    assert not row["accepted"] and row["kl"] == row["surrogate"] == 0.0
    assert row["mean_return"] == 0.0 and np.isnan(row["explained_variance"])


def test_a_search_that_fails_leaves_the_policy_bit_for_bit():
    agent = small(target_kl=1e-30, line_search_max_iter=3)
    before = [w.tobytes() for w in agent.policy.get_weights()]
    values = [w.tobytes() for w in agent.critic.network.get_weights()]
    agent._learner.policy_step.target_kl = 0.1
    (row,) = agent.learn(UPDATE, progress=False).log
    assert not row["accepted"] and row["line_search_steps"] == 2
    assert [w.tobytes() for w in agent.policy.get_weights()] == before
    assert [w.tobytes() for w in agent.critic.network.get_weights()] != values


def test_evaluation_can_be_repeated_and_leaves_no_trace(trained):
    before = state(trained)
    first, again = (trained.evaluate(episodes=5, deterministic=False, seed=4) for _ in range(2))
    assert first.shape == (5,) and first.dtype == np.float64
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, trained.evaluate(episodes=5, deterministic=False, seed=5))
    assert state(trained) == before


def test_evaluation_between_updates_changes_nothing(fresh):
    arrays = fresh._learner.arrays()
    watched = state(fresh.learn(2 * UPDATE, progress=False, callbacks=[lambda agent, record: agent.evaluate(2)]))
    rewind(fresh, arrays, 0)
    assert state(fresh.learn(2 * UPDATE, progress=False)) == watched


def test_evaluation_gives_the_rewards_of_the_environment():
    agent = small(lambda: Still(reward=2.0), normalize_rewards=True).learn(UPDATE, progress=False)
    assert agent.evaluate(episodes=3).tolist() == [14.0, 14.0, 14.0]
    assert agent.log[0]["mean_return"] == 14.0 and agent.log[0]["episodes"] == 8


def test_predictions(trained):
    batch = np.random.default_rng(0).normal(scale=0.05, size=(5, 4))
    actions = trained.predict(batch)
    assert actions.shape == (5,) and set(actions) <= {0, 1}
    assert [trained.predict(row) for row in batch] == actions.tolist()
    draws = [trained.predict(np.repeat(batch, 50, 0), deterministic=False, seed=s).tolist() for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    with pytest.raises(ValueError, match=r"`observation`: received shape \(3,\); expected shape \(4,\)"):
        trained.predict(np.zeros(3))


def test_predictions_are_clipped_to_the_box():
    actions = small(Still).predict(np.zeros((30, 2, 3)), deterministic=False)
    assert actions.shape == (30, 2)
    assert np.abs(actions).max() == np.float32(0.1)


def test_observations_are_normalised_inside_the_networks():
    agent, collected = small("Pendulum-v1", normalize_observations=True), []
    agent.learn(UPDATE, progress=False, callbacks=[lambda agent, record: collected.append(agent._learner.arrays())])
    for network in (agent.policy.network, agent.critic.network):
        layer = network.layers[0]
        np.testing.assert_allclose(layer.mean, collected[0]["observations/mean"], rtol=1e-6)
        np.testing.assert_allclose(layer.scale, (collected[0]["observations/squares"] / UPDATE) ** -0.5, rtol=1e-5)
    assert collected[0]["observations/count"] == UPDATE


def test_callbacks_see_each_update_and_can_end_the_training(fresh):
    seen = []

    def stop(agent, record):
        seen.append((agent.updates, record.updates, record.steps))
        return agent.updates < 2

    agent = fresh.learn(10 * UPDATE, progress=False, callbacks=[stop, lambda agent, record: seen.append("called")])
    assert seen == [(1, 1, UPDATE), "called", (2, 2, 2 * UPDATE), "called"]
    assert agent.updates == 2


def test_the_csv_file_is_valid_after_each_update(fresh, tmp_path):
    path, lengths = tmp_path / "log.csv", []
    path.write_text("something else")
    fresh.learn(
        3 * UPDATE,
        progress=False,
        log_path=path,
        callbacks=[lambda agent, record: lengths.append(len(list(csv.DictReader(path.open()))))],
    )
    assert lengths == [1, 2, 3]
    assert list(csv.DictReader(path.open()))[-1].keys() == set(Record._fields)


def test_a_full_disk_does_not_end_the_training_and_the_log_is_whole_again(fresh, tmp_path, monkeypatch, caplog):
    path, limits, seen = tmp_path / "log.csv", resource.getrlimit(resource.RLIMIT_FSIZE), []

    def fill(agent, record):
        seen.append(path.read_text())
        # After the first update there is room for a part of a line, before the last for all.
        size = len(seen[0]) + 20 if agent.updates < 3 else limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    monkeypatch.setattr(_checks, "_logged", set())
    try:
        with caplog.at_level(logging.WARNING, "tf_natgrad"):
            agent = fresh.learn(4 * UPDATE, progress=False, log_path=path, callbacks=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert agent.updates == 4
    assert len([r for r in caplog.records if "File too large" in r.message]) == 1
    assert seen[0] == seen[1] == seen[2] and seen[0].count("\n") == 2
    written = list(csv.DictReader(path.open()))
    assert [float(row["kl"]) for row in written] == [row["kl"] for row in agent.log]
    assert os.listdir(tmp_path) == ["log.csv"]


def test_a_log_that_could_not_be_begun_is_not_appended_to_another_file(tmp_path, monkeypatch):
    record = Record(*range(len(Record._fields)))
    rows, path = [], tmp_path / "log.csv"
    path.write_text("something else\n")
    monkeypatch.setattr(_checks, "_logged", set())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "fsync", full)
        log = CsvLog(path, rows)
    assert path.read_text() == "something else\n"
    for _ in range(2):
        rows.append(record._asdict())
        log.write(record)
    assert [len(row) for row in csv.DictReader(path.open())] == [len(Record._fields)] * 2


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(fresh, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(_checks, "_logged", set())
    with caplog.at_level(logging.WARNING, "tf_natgrad"):
        agent = fresh.learn(2 * UPDATE, progress=False, checkpoint=tmp_path / "none" / "agent", checkpoint_every=1)
    assert agent.updates == 2
    assert len([r for r in caplog.records if "checkpoint" in r.message]) == 1


def test_tensorboard_files_and_a_progress_bar(fresh, tmp_path, capsys):
    agent = fresh.learn(UPDATE, tensorboard=tmp_path)
    (name,) = os.listdir(tmp_path)
    events = list(tf.compat.v1.train.summary_iterator(str(tmp_path / name)))
    written = {value.tag: tf.make_ndarray(value.tensor).item() for event in events for value in event.summary.value}
    assert written["kl"] == np.float32(agent.log[0]["kl"]) and events[-1].step == UPDATE
    assert "KL=" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("n_steps", 0, ValueError),
        ("n_envs", 1.5, TypeError),
        ("batch_size", 0, ValueError),
        ("gamma", 1.5, ValueError),
        ("gae_lambda", -1.0, ValueError),
        ("learning_rate", 0.0, ValueError),
        ("cg_max_steps", 0, ValueError),
        ("cg_damping", -0.1, ValueError),
        ("target_kl", float("inf"), ValueError),
        ("n_critic_updates", "10", TypeError),
        ("sub_sampling_factor", 0, ValueError),
        ("line_search_shrinking_factor", 1.0, ValueError),
        ("line_search_max_iter", 0, ValueError),
        ("normalize_advantage", 1, TypeError),
        ("normalize_rewards", "yes", TypeError),
        ("seed", -1, ValueError),
    ],
)
def test_hyperparameters(name, value, error):
    with pytest.raises(error, match=f"`{name}`"):
        rl.TRPO("CartPole-v1", **{name: value})


def test_the_constructors_name_their_settings():
    whole = inspect.signature(rl.NaturalPolicyGradient).parameters
    search = {"line_search_shrinking_factor", "line_search_max_iter"}
    assert set(inspect.signature(rl.TRPO).parameters) == {*whole, *search}
    assert (whole["n_steps"].default, whole["cg_damping"].default, whole["seed"].default) == (2048, 0.1, 0)
    assert all(p.kind != p.VAR_KEYWORD for p in whole.values())


def test_settings_that_an_algorithm_does_not_have():
    with pytest.raises(TypeError, match=r"`line_search_max_iter`: received 3 \(int\).*; expected one of learning_rate"):
        small(cls=rl.NaturalPolicyGradient, line_search_max_iter=3)
    with pytest.raises(TypeError, match="`limit_kl`"):
        small(limit_kl=False)
    with pytest.raises(TypeError, match="`max_kl`"):
        small(max_kl=0.1)


def test_settings_are_read_and_not_set(fresh):
    assert (fresh.n_steps, fresh.n_envs, fresh.gamma, fresh.line_search_max_iter) == (32, 2, 0.99, 10)
    with pytest.raises(AttributeError):
        fresh.n_steps = 64
    with pytest.raises(dataclasses.FrozenInstanceError):
        fresh.settings.n_steps = 64


def test_the_algorithms_differ_by_their_settings():
    assert (TRUST_REGION.settings({}).max_kl, WHOLE_STEPS.settings({}).max_kl) == (0.01, None)
    assert TRUST_REGION.settings({}).line_search == LineSearch(max_backtracks=9, shrink=0.8)
    assert WHOLE_STEPS.settings({}).line_search.max_backtracks == 0
    for preset in (TRUST_REGION, WHOLE_STEPS):
        chosen = preset.chosen(preset.settings({"gamma": 0.5, "seed": 7}))
        assert preset.settings(chosen).gamma == 0.5 and json.loads(json.dumps(chosen)) == chosen


def test_a_checkpoint_names_the_settings_that_may_be_given(fresh, tmp_path):
    fresh.save(tmp_path / "agent")
    description, _ = read_checkpoint(tmp_path / "agent")
    assert description["class"] == "TRPO"
    assert set(description["hyperparameters"]) == {
        *("learning_rate", "n_steps", "batch_size", "gamma", "cg_max_steps", "cg_damping", "n_critic_updates"),
        *("gae_lambda", "normalize_advantage", "target_kl", "sub_sampling_factor", "n_envs", "normalize_observations"),
        *("normalize_rewards", "seed", "line_search_shrinking_factor", "line_search_max_iter"),
    }


def test_a_sub_sample_that_leaves_nothing_to_look_at_is_refused():
    with pytest.raises(ValueError, match="`sub_sampling_factor`: received 65; expected at most 64"):
        small(sub_sampling_factor=65)


@pytest.mark.parametrize(
    "observations, actions, match",
    [
        (gym.spaces.Discrete(5), gym.spaces.Discrete(2), r"observation space Discrete\(5\).*FlattenObservation"),
        (gym.spaces.Box(0, 1, (2,)), gym.spaces.MultiDiscrete([2, 2]), "action space MultiDiscrete"),
        (gym.spaces.Box(0, 1, (2,)), gym.spaces.Discrete(2, start=1), "Discrete actions from 0 on"),
        (gym.spaces.Box(0, 1, (2,)), gym.spaces.Box(0, 1, (2, 2)), r"Box of shape \[D\]"),
    ],
)
def test_spaces_that_are_refused(observations, actions, match):
    class Other(Still):
        observation_space, action_space = observations, actions

    with pytest.raises(ValueError, match=match):
        small(Other)


def test_other_environments_that_are_refused():
    with pytest.raises(ValueError, match=r"`env`: received .*; expected the name of an environment, or a function"):
        small(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="`env`: received int"):
        small(3)


def test_networks_that_do_not_fit():
    def dense(inputs, outputs):
        return keras.Sequential([keras.Input((inputs,)), layers.Dense(outputs)])

    with pytest.raises(TypeError, match="Wrap your Keras model"):
        small(policy=dense(4, 2))
    with pytest.raises(ValueError, match="CategoricalPolicy with 3 outputs"):
        small(policy=rl.CategoricalPolicy(dense(4, 3)))
    with pytest.raises(ValueError, match=r"`policy`: received a network that does not take observations of shape \(4,"):
        small(policy=rl.CategoricalPolicy(dense(5, 2)))
    with pytest.raises(ValueError, match="`value_network`: received 2 outputs; expected one output"):
        small(value_network=dense(4, 2))
    with pytest.raises(ValueError, match=r"`policy`: received a network without `rl.ObservationNormalization`"):
        small(policy=rl.CategoricalPolicy(dense(4, 2)), normalize_observations=True)


def test_networks_of_ones_own_are_trained_and_saved(tmp_path):
    policy = rl.CategoricalPolicy(keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(2)]))
    before = policy.get_weights()[0].copy()
    agent = small(policy=policy).learn(UPDATE, progress=False)
    assert agent.policy is policy and not np.array_equal(policy.get_weights()[0], before)
    agent.save(tmp_path / "agent")
    loaded = rl.TRPO.load(tmp_path / "agent")
    np.testing.assert_array_equal(loaded.policy.get_weights()[0], policy.get_weights()[0])


@pytest.mark.parametrize("total", [-1, 1.5])
def test_numbers_of_steps(total):
    with pytest.raises((TypeError, ValueError), match="`total_steps`"):
        small().learn(total)


def test_numbers_of_numpy_may_be_saved(tmp_path):
    options = {"gamma": np.float32(0.9), "gae_lambda": np.float64(0.9), "normalize_advantage": np.bool_(True)}
    agent = rl.TRPO("CartPole-v1", n_steps=16, n_envs=2, n_critic_updates=1, **options)
    agent.learn(32, progress=False, checkpoint=tmp_path / "agent.npz")
    assert rl.TRPO.load(tmp_path / "agent.npz").gamma == agent.gamma
