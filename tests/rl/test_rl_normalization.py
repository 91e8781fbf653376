"""Running moments, the layer that uses them, and the scaling of rewards."""

import keras
import numpy as np
import pytest
from keras import layers

from tf_natgrad import rl
from tf_natgrad.rl.normalization import ObservationNormalization, RewardScaling, RunningMoments


def test_moments_of_pieces_are_those_of_the_whole(rng):
    rows = rng.normal(3.0, 2.0, (1000, 4))
    moments = RunningMoments((4,))
    for piece in np.split(rows, [1, 10, 11, 400]):
        moments.update(piece)
    moments.update(rows[:0])
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, rows.var(0), rtol=1e-12)


def test_moments_far_from_zero_do_not_cancel(rng):
    rows = 1e8 + rng.normal(size=(1000, 1))
    moments = RunningMoments((1,))
    for piece in np.split(rows, 10):
        moments.update(piece)
    np.testing.assert_allclose(moments.variance, rows.var(0), rtol=1e-6)


def test_moments_before_anything_was_seen():
    moments = RunningMoments((2,))
    assert moments.mean.tolist() == [0.0, 0.0] and moments.variance.tolist() == [1.0, 1.0]


def test_moments_are_restored(rng):
    first, second, rows = RunningMoments((3,)), RunningMoments((3,)), rng.normal(size=(2, 5, 3))
    first.update(rows[0])
    second.restore(first.arrays())
    first.update(rows[1])
    second.update(rows[1])
    np.testing.assert_array_equal(first.variance, second.variance)


def test_the_layer_standardises_and_clips(rng):
    rows = rng.normal(5.0, [1.0, 3.0], (500, 2))
    moments = RunningMoments((2,))
    moments.update(rows)
    layer = ObservationNormalization()
    np.testing.assert_array_equal(layer(rows.astype("float32")), rows.astype("float32").clip(-10, 10))
    layer.set_moments(moments)
    seen = layer(rows.astype("float32")).numpy()
    np.testing.assert_allclose(seen.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(seen.std(0), 1.0, atol=1e-4)
    assert layer(np.array([[1e6, -1e6]])).numpy().tolist() == [[10.0, -10.0]]


def test_the_layer_is_saved_with_the_policy(tmp_path, rng):
    network = keras.Sequential([keras.Input((3,)), ObservationNormalization(), layers.Dense(2)])
    policy, moments = rl.CategoricalPolicy(network), RunningMoments((3,))
    observations = rng.normal(size=(5, 3)).astype("float32")
    policy(observations)
    moments.update(observations)
    network.layers[0].set_moments(moments)
    policy.save(tmp_path / "policy.keras")
    restored = keras.models.load_model(tmp_path / "policy.keras")
    np.testing.assert_array_equal(restored(observations), policy(observations))


def test_rewards_are_divided_by_the_deviation_of_returns(rng):
    rewards = rng.normal(2.0, 5.0, (60, 2))
    done = rng.random((60, 2)) < 0.1
    scaling = RewardScaling(0.9)
    scaled = scaling(rewards, done)
    returns = []
    for i in range(2):
        running = 0.0
        for t in range(60):
            running = 0.9 * running + rewards[t, i]
            returns.append(running)
            running = 0.0 if done[t, i] else running
    np.testing.assert_allclose(scaled, np.clip(rewards / np.std(returns), -10, 10), rtol=1e-6)


def test_rewards_that_are_all_zero_stay_zero():
    scaled = RewardScaling(0.9)(np.zeros((5, 1)), np.zeros((5, 1), bool))
    assert not scaled.any()


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_the_scale_of_rewards_is_of_no_consequence(rng, scale):
    rewards, done = rng.normal(size=(50, 2)), np.zeros((50, 2), bool)
    np.testing.assert_allclose(
        RewardScaling(0.99)(scale * rewards, done), RewardScaling(0.99)(rewards, done), rtol=0.01
    )
