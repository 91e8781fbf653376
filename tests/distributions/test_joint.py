"""Several outputs with a loss each as one likelihood: numbers against Keras's and a dense oracle in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, losses
from oracle import difference

import tf_natgrad as ng
from tf_natgrad.distributions import (
    BernoulliPd,
    CategoricalPd,
    DiagGaussianPd,
    joint_likelihood,
    likelihood_of,
)
from tf_natgrad.distributions.joint import JointPd
from tf_natgrad.operators import EmpiricalFisher, Fisher, GaussNewton, Hessian

N, T = 7, 3
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, 4))
Y = {"cls": RNG.integers(0, 3, N), "reg": RNG.normal(size=(N, 2)), "seq": RNG.integers(0, 2, (N, T, 2)).astype(float)}
WEIGHTS = {"cls": 1.0, "reg": 0.3, "seq": 2.0}
SAMPLE_WEIGHT = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 3.0, 1.0])
# As Keras takes them for outputs in a list: in a list, one array for each, which broadcasts.
OF_EACH = [SAMPLE_WEIGHT, SAMPLE_WEIGHT[::-1].copy(), SAMPLE_WEIGHT[:, None]]
LABELS = [Y[name] for name in WEIGHTS]


def _losses(reduction="sum_over_batch_size"):
    return {
        "cls": losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction),
        "reg": losses.MeanSquaredError(reduction=reduction),
        "seq": losses.BinaryCrossentropy(from_logits=True, reduction=reduction),
    }


@pytest.fixture
def three(double):
    """A class, two numbers, and two chances at each of three positions."""
    keras.utils.set_random_seed(3)
    x = keras.Input((4,))
    h = layers.Dense(5, activation="tanh")(x)
    outputs = [
        layers.Dense(3, name="cls")(h),
        layers.Dense(2, name="reg")(h),
        layers.Reshape((T, 2), name="seq")(layers.Dense(2 * T)(h)),
    ]
    return ng.NaturalGradientModel(x, outputs)


def _oracle(model, weights, sample_weight, reduction="sum_over_batch_size"):
    """`sum_k alpha_k F_k`, each by the operator of one output."""
    total = 0.0
    loss = _losses(reduction)
    for k, name in enumerate(loss):
        alone = keras.Model(model.input, model.outputs[k])
        own = Fisher(
            alone, loss[name], X, sample_weight=sample_weight, variables=[v for v in alone.trainable_variables]
        )
        whole = np.zeros((model.count_params(),) * 2)
        spans, before = {}, 0
        for v in model.trainable_variables:
            size = int(np.prod(v.shape))
            spans[v.path] = np.arange(before, before + size)
            before += size
        index = np.concatenate([spans[v.path] for v in alone.trainable_variables])
        whole[np.ix_(index, index)] = own.to_dense(memory_limit=1 << 30).numpy()
        total = total + weights[name] * whole
    return total


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.parametrize("sample_weight", [None, SAMPLE_WEIGHT], ids=["alike", "weighted"])
def test_fisher_is_the_weighted_sum_of_the_outputs(three, reduction, sample_weight):
    likelihood = joint_likelihood(_losses(reduction), WEIGHTS)
    fisher = Fisher(three, likelihood, X, sample_weight=sample_weight)
    expected = _oracle(three, WEIGHTS, sample_weight, reduction)
    assert difference(fisher.to_dense(), expected) < 1e-10
    factor = fisher.factor().numpy()
    assert difference(factor.T @ factor, expected) < 1e-10
    assert difference(fisher.gram(), factor @ factor.T) < 1e-10
    v = RNG.normal(size=fisher.shape[0])
    assert difference(fisher.matvec(v), expected @ v) < 1e-10


def test_loss_gradient_and_hessian_are_those_of_keras(three):
    three.compile("sgd", loss=_losses(), loss_weights=WEIGHTS)
    data = (X, LABELS, OF_EACH)
    fisher = Fisher(three, joint_likelihood(_losses(), WEIGHTS), data)
    variables = three.trainable_variables

    def loss():
        return three.compute_loss(x=X, y=LABELS, y_pred=three(tf.constant(X)), sample_weight=OF_EACH)

    with tf.GradientTape() as tape:
        value = loss()
    expected = tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(value, [v.value for v in variables])], 0)
    rhs = fisher.loss_gradient()
    assert difference(fisher.gradient(), expected) < 1e-10
    assert difference(fisher.factor_transpose_matvec(rhs.u), expected) < 1e-10
    hessian = Hessian(three, joint_likelihood(_losses(), WEIGHTS), data).to_dense().numpy()
    step = 1e-5
    flat = fisher.flat_parameters
    start, v = flat.read(), RNG.normal(size=fisher.shape[0])
    ends = []
    for sign in (1, -1):
        flat.assign(start + sign * step * v)
        with tf.GradientTape() as tape:
            value = loss()
        ends.append(np.concatenate([np.ravel(g) for g in tape.gradient(value, [w.value for w in variables])]))
    flat.assign(start)
    assert difference(hessian @ v, (ends[0] - ends[1]) / (2 * step)) < 1e-7
    gauss_newton = GaussNewton(three, joint_likelihood(_losses(), WEIGHTS), data).to_dense()
    assert difference(gauss_newton, Fisher(three, joint_likelihood(_losses(), WEIGHTS), data).to_dense()) < 1e-10


def test_monte_carlo_fisher_is_unbiased(three):
    likelihood = joint_likelihood(_losses(), WEIGHTS)
    exact = Fisher(three, likelihood, X).to_dense().numpy()
    draws = [Fisher(three, likelihood, X, kind="mc", seed=s, mc_samples=40).to_dense().numpy() for s in range(40)]
    error = np.std(draws, 0) / np.sqrt(len(draws))
    assert np.mean(np.abs(np.mean(draws, 0) - exact) < 3 * error + 1e-12) > 0.98


def test_empirical_fisher_is_of_the_examples_whole_gradients(three):
    likelihood = joint_likelihood(_losses(), WEIGHTS)
    own = []
    for i in range(N):
        part = slice(i, i + 1)
        one = Fisher(three, likelihood, (X[part], {k: y[part] for k, y in Y.items()}))
        own.append(one.gradient().numpy())
    expected = np.mean([np.outer(g, g) for g in own], 0)
    assert difference(EmpiricalFisher(three, likelihood, (X, Y)).to_dense(), expected) < 1e-10


@pytest.mark.parametrize("solver", ["gram", "cg", "svd"])
@pytest.mark.parametrize("eagerly", [True, False], ids=["eager", "graph"])
def test_a_step_is_that_of_the_dense_oracle(three, solver, eagerly):
    solver = ng.solvers.ConjugateGradient(rtol=1e-12, max_iterations=500) if solver == "cg" else solver
    three.compile(
        ng.NaturalGradient(1.0, damping=0.1, solver=solver, line_search=None, max_kl=None),
        loss=_losses(),
        loss_weights=WEIGHTS,
        run_eagerly=eagerly,
    )
    flat = ng.parameters.FlatParameters(three.trainable_variables)
    start = flat.read().numpy()
    gradient = Fisher(three, joint_likelihood(_losses(), WEIGHTS), (X, Y)).gradient().numpy()
    direction = np.linalg.solve(_oracle(three, WEIGHTS, None) + 0.1 * np.eye(len(start)), gradient)
    history = three.fit(X, Y, batch_size=N, verbose=0).history
    assert difference(flat.read(), start - direction) < 1e-10
    assert {"cls_loss", "reg_loss", "seq_loss", "loss"} <= set(history)


def test_names_order_and_missing_losses(three):
    by_order = [_losses()["cls"], None, _losses()["seq"]]
    three.compile(ng.NaturalGradient(damping=0.1), loss=by_order, loss_weights=[1.0, 1.0, 2.0])
    shown = three.fit(X, [Y["cls"], Y["reg"], Y["seq"]], verbose=0, epochs=3).history["loss"]
    assert shown[-1] < shown[0]
    listed = Fisher(three, joint_likelihood(by_order, [1.0, 1.0, 2.0]), X).to_dense()
    assert difference(listed, _oracle(three, {"cls": 1.0, "reg": 0.0, "seq": 2.0}, None)) < 1e-10


def test_it_trains_with_the_defaults_and_a_smaller_last_batch(three):
    three.compile(ng.NaturalGradient(), loss=_losses(), loss_weights=WEIGHTS)
    shown = three.fit(X, LABELS, batch_size=3, epochs=8, verbose=0, sample_weight=OF_EACH).history["loss"]
    assert shown[-1] < 0.9 * shown[0]


def test_a_batch_with_a_label_out_of_range_is_refused_and_changes_nothing(three):
    three.compile(ng.NaturalGradient(), loss=_losses())
    three.fit(X, Y, verbose=0)
    before = [v.numpy() for v in three.variables]
    with pytest.raises(ValueError, match="`y`: received a label out of range"):
        three.fit(X, Y | {"cls": np.full(N, 3)}, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, [v.numpy() for v in three.variables], strict=True))


def test_joint_distribution_of_its_parts():
    z = [tf.constant(RNG.normal(size=(N, 3))), tf.constant(RNG.normal(size=(N, T, 2)))]
    weights = [tf.constant(RNG.uniform(size=N)), tf.constant(RNG.uniform(size=(N, T)))]
    pd = JointPd([(CategoricalPd(z[0]), weights[0]), (BernoulliPd(z[1]), weights[1])])
    other = pd.with_parameters(pd.parameters + 0.3)
    expected = weights[0] * CategoricalPd(z[0]).kl(CategoricalPd(z[0] + 0.3)) + tf.reduce_sum(
        weights[1] * BernoulliPd(z[1]).kl(BernoulliPd(z[1] + 0.3)), 1
    )
    assert difference(pd.kl(other), expected) < 1e-12
    labels = pd.sample([1, 2])
    assert difference(pd.log_prob(pd.pack(pd._unpacked(labels))), pd.log_prob(labels)) < 1e-14
    columns = pd.fisher_factor_columns().numpy()
    assert columns.shape == (pd.fisher_rank, N, pd.parameters.shape[-1])
    v = RNG.normal(size=(N, pd.fisher_rank))
    assert difference(pd.fisher_factor(v), np.einsum("nr,rnp->np", v, columns)) < 1e-12
    w = RNG.normal(size=(N, pd.parameters.shape[-1]))
    assert difference(pd.fisher_factor_transpose(w), np.einsum("np,rnp->nr", w, columns)) < 1e-12
    with tf.GradientTape() as tape:
        tape.watch(pd.parameters)
        loss = -pd.with_parameters(pd.parameters).log_prob(labels)
    assert difference(pd.fisher_factor(pd.score_factor(labels)), tape.gradient(loss, pd.parameters)) < 1e-12


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: joint_likelihood("mse"), TypeError, "`losses`.*list or dictionary"),
        (lambda: joint_likelihood([None, None]), ValueError, "`losses`.*no loss at all"),
        (
            lambda: joint_likelihood(["mse", losses.MeanSquaredError(reduction="sum")]),
            ValueError,
            "reduced in the same",
        ),
        (lambda: joint_likelihood(["mse", "mse"], [1.0]), ValueError, "`loss_weights`.*2 numbers"),
        (lambda: joint_likelihood(["mse", "mse"], [1.0, -1.0]), ValueError, "`loss_weights`.*>= 0"),
        (lambda: joint_likelihood(["mse", "hinge"]), ValueError, "`loss`"),
        (lambda: joint_likelihood({"a": "mse"}).read([tf.zeros([2, 1])], None), ValueError, "`model`"),
        (lambda: joint_likelihood(["mse", "mse"]).read([tf.zeros([2, 1])], None), ValueError, "`model`.*1 of them"),
        (lambda: joint_likelihood({"a": "mse"}).read({"b": tf.zeros([2, 1])}, None), ValueError, r"the keys \['a'\]"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_one_loss_in_a_list_is_that_loss():
    assert likelihood_of(["mse"]).loss == "mse"
    pd = DiagGaussianPd.with_fixed_std(tf.zeros([2, 1]), 1.0)
    assert pd.event_size == 1
