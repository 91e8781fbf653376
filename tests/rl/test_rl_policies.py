"""Policies as Keras models: probabilities, draws, storage, and what they refuse."""

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tf_natgrad import rl


def network(inputs, outputs, activation="tanh"):
    return keras.Sequential([keras.Input((inputs,)), layers.Dense(5, activation), layers.Dense(outputs)])


def categorical():
    return rl.CategoricalPolicy(network(4, 3))


def gaussian():
    return rl.GaussianPolicy(network(4, 2), initial_log_std=-0.5)


OBSERVATIONS = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


@pytest.mark.parametrize("make", [categorical, gaussian])
def test_log_prob_is_that_of_tensorflow_probability(make):
    policy = make()
    actions = policy.sample(OBSERVATIONS, seed=[1, 2])
    theirs = policy.as_tensorflow_probability(policy(OBSERVATIONS)).log_prob(actions)
    np.testing.assert_allclose(policy.log_prob(OBSERVATIONS, actions), theirs, rtol=1e-5)


def test_log_prob_of_a_gaussian_by_its_formula():
    policy = gaussian()
    actions = np.random.default_rng(1).normal(size=(6, 2)).astype("float32")
    z = (actions - policy.network(OBSERVATIONS)) / np.exp(-0.5)
    expected = np.sum(-0.5 * z**2 + 0.5 - 0.5 * np.log(2 * np.pi), 1)
    np.testing.assert_allclose(policy.log_prob(OBSERVATIONS, actions), expected, rtol=1e-5)


def test_categorical_frequencies():
    policy, draws = categorical(), 20000
    row = np.repeat(OBSERVATIONS[:1], draws, 0)
    p = np.exp([policy.log_prob(OBSERVATIONS[:1], [a]).numpy()[0] for a in range(3)])
    frequencies = np.bincount(policy.sample(row, seed=[0, 1]), minlength=3) / draws
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-5)
    assert (np.abs(frequencies - p) < 4 * np.sqrt(p * (1 - p) / draws)).all()


def test_gaussian_moments():
    policy, draws = gaussian(), 20000
    actions = policy.sample(np.repeat(OBSERVATIONS[:1], draws, 0), seed=[0, 1]).numpy()
    mean, std = policy.network(OBSERVATIONS[:1]).numpy()[0], np.exp(-0.5)
    assert (np.abs(actions.mean(0) - mean) < 4 * std / np.sqrt(draws)).all()
    assert (np.abs(actions.std(0) - std) < 4 * std / np.sqrt(2 * draws)).all()
    assert abs(np.corrcoef(actions.T)[0, 1]) < 4 / np.sqrt(draws)


@pytest.mark.parametrize("make", [categorical, gaussian])
def test_the_seed_decides(make):
    policy = make()
    first, again, other = (policy.sample(np.repeat(OBSERVATIONS, 9, 0), seed=[s, 0]).numpy() for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("make", [categorical, gaussian])
def test_saved_and_loaded(make, tmp_path):
    policy = make()
    policy.trainable_variables[0].assign_add(tf.ones(policy.trainable_variables[0].shape))
    expected = policy(OBSERVATIONS)
    policy.save(tmp_path / "policy.keras")
    loaded = keras.models.load_model(tmp_path / "policy.keras")
    assert type(loaded) is type(policy)
    assert [v.name for v in loaded.trainable_variables] == [v.name for v in policy.trainable_variables]
    np.testing.assert_array_equal(loaded(OBSERVATIONS), expected)


def test_log_std_is_trained():
    policy = gaussian()
    actions = policy.network(OBSERVATIONS) + 3.0
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(policy.log_prob(OBSERVATIONS, actions))
    gradient = tape.gradient(total, policy.log_std.value)
    np.testing.assert_allclose(gradient, len(OBSERVATIONS) * (9.0 * np.exp(1.0) - 1.0) * np.ones(2), rtol=1e-5)
    assert any(v is policy.log_std for v in policy.trainable_variables)


def test_the_mode():
    policy = gaussian()
    np.testing.assert_array_equal(policy.distribution(OBSERVATIONS).mode(), policy.network(OBSERVATIONS))
    policy = categorical()
    np.testing.assert_array_equal(policy.distribution(OBSERVATIONS).mode(), np.argmax(policy(OBSERVATIONS), 1))


BOX = gym.spaces.Box(-1.0, 1.0, (2,))


def test_fitting_action_spaces_pass():
    categorical().check_action_space(gym.spaces.Discrete(3))
    gaussian().check_action_space(BOX)


@pytest.mark.parametrize(
    "make, space, match",
    [
        (categorical, gym.spaces.Discrete(2), r"CategoricalPolicy with 3 outputs for the action space Discrete\(2\)"),
        (categorical, gym.spaces.Discrete(4), r"CategoricalPolicy with 3 outputs for the action space Discrete\(4\)"),
        (categorical, BOX, r"CategoricalPolicy.*Box.*use `GaussianPolicy`"),
        (gaussian, gym.spaces.Box(-1.0, 1.0, (3,)), r"GaussianPolicy with 2 means for the action space Box"),
        (gaussian, gym.spaces.Discrete(2), r"GaussianPolicy.*Discrete\(2\).*use `CategoricalPolicy`"),
    ],
)
def test_other_action_spaces_are_refused(make, space, match):
    with pytest.raises(ValueError, match=match):
        make().check_action_space(space)


def test_log_std_must_be_a_number():
    with pytest.raises(TypeError, match="`initial_log_std`"):
        rl.GaussianPolicy(network(4, 2), initial_log_std="0")


# What a policy Hessian refuses of a policy.


def episodes(actions):
    return rl.Episodes.from_arrays(np.zeros((2, 3, 4)), actions, np.ones((2, 3)))


INTEGERS, NUMBERS = np.full((2, 3), 2), np.zeros((2, 3, 2))


@pytest.mark.parametrize(
    "make, actions",
    [
        (categorical, INTEGERS + 1),
        (categorical, INTEGERS - 3),
        (categorical, NUMBERS),
        (categorical, INTEGERS.astype(float)),
        (gaussian, INTEGERS),
        (gaussian, np.zeros((2, 3, 3))),
        (gaussian, np.zeros((2, 3))),
    ],
)
def test_actions_that_do_not_fit_the_outputs(make, actions):
    with pytest.raises(ValueError, match=r"`policy`: received \w+Policy with \d outputs for actions"):
        rl.PolicyHessian(make(), episodes(actions))


def test_a_plain_keras_model_is_refused():
    with pytest.raises(
        TypeError, match=r"received Sequential; .*Wrap your Keras model: `rl.CategoricalPolicy\(model\)`"
    ):
        rl.PolicyHessian(network(4, 3), episodes(INTEGERS))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "layer"])
def test_kinks_are_warned_of(activation):
    if activation == "layer":
        inside = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.ReLU(), layers.Dense(3)])
    else:
        inside = network(4, 3, activation)
    with pytest.warns(UserWarning, match=r"piecewise linear activations \(relu\): its Hessian misses their kinks"):
        rl.PolicyHessian(rl.CategoricalPolicy(inside), episodes(INTEGERS))


def test_smooth_policies_are_not(recwarn):
    for make, actions in ((categorical, INTEGERS), (gaussian, NUMBERS)):
        rl.PolicyHessian(make(), episodes(actions))
    assert not [w for w in recwarn if "kinks" in str(w.message)]


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"estimator": "dice"}, ValueError, r"`estimator`: received 'dice'; expected one of 'causal'"),
        ({"estimator": "dice", "chunk_steps": 2}, ValueError, r"`estimator`: received 'dice'"),
        ({"baseline": "mean"}, ValueError, r"`baseline`: received 'mean'"),
        ({"gamma": 1.5}, ValueError, r"`gamma`: received 1.5; expected a discount factor in \[0, 1\]"),
        ({"gamma": -0.5}, ValueError, r"`gamma`: received -0.5"),
        ({"gamma": "0.9"}, TypeError, "`gamma`"),
        ({"chunk_steps": 0}, ValueError, "`chunk_steps`: received 0"),
    ],
)
def test_options_out_of_range(options, error, match):
    with pytest.raises(error, match=match):
        rl.PolicyHessian(categorical(), episodes(INTEGERS), **options)


def test_a_vector_of_another_size_is_refused():
    hessian = rl.PolicyHessian(categorical(), episodes(INTEGERS))
    for product in (hessian.matvec, hessian.quadratic_forms):
        with pytest.raises(ValueError, match=r"expected shape \[43\]"):
            product(np.zeros(42, "float32"))
