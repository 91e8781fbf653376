"""Labels and outputs that fit a distribution: shapes of one meaning give the same numbers, the rest is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import training
from keras import layers, losses
from training import compiled, fit, network

import tf_natgrad as ng
from tf_natgrad.distributions import BernoulliPd, CategoricalPd, DiagGaussianPd, NegativeLogLikelihood, likelihood_of

RNG = np.random.default_rng(5)
X = RNG.normal(size=(6, 4)).astype("float32")
CLASSES = np.array([0, 1, 2, 2, 0, 1])
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]
ZEROS_AND_ONES = np.array([0, 1, 1, 0, 1, 0])
REALS = RNG.normal(size=6).astype("float32")
Z = RNG.normal(size=(6, 4)).astype("float32")


class DeclaredPd(training.PoissonPd):
    """A distribution of a user's own that says how many numbers one draw has."""

    @property
    def event_size(self):
        return self.parameters.shape[-1]


# Distribution -> number of outputs, targets in the shape that is documented, and in others of the same meaning.
SAME = {
    "categorical": (
        CategoricalPd,
        3,
        CLASSES,
        [CLASSES[:, None], CLASSES.astype("uint8"), ONE_HOT, ONE_HOT[..., None]],
    ),
    "bernoulli": (
        BernoulliPd,
        1,
        ZEROS_AND_ONES[:, None],
        [ZEROS_AND_ONES, ZEROS_AND_ONES > 0, ZEROS_AND_ONES[:, None, None]],
    ),
    "gaussian": (DiagGaussianPd, 2, REALS[:, None], [REALS, REALS[:, None, None]]),
    "declared": (DeclaredPd, 1, ZEROS_AND_ONES[:, None], [ZEROS_AND_ONES]),
}
REFUSED = {
    "class_out_of_range": (CategoricalPd, 3, CLASSES + 5, "`y`: received a label out of range; expected class indices"),
    "negative_class": (CategoricalPd, 3, CLASSES - 1, "a label out of range"),
    "class_column_out_of_range": (CategoricalPd, 3, CLASSES[:, None] + 1, "a label out of range"),
    "half_a_class": (CategoricalPd, 3, CLASSES + 0.5, "a label out of range"),
    "several_classes": (CategoricalPd, 3, np.ones((6, 3)), "`y`.*does not sum to 1"),
    "negative_chance": (CategoricalPd, 3, ONE_HOT * 2 - np.roll(ONE_HOT, 1, 1), "`y`.*negative entry"),
    "other_classes": (CategoricalPd, 3, np.eye(4)[CLASSES], r"`y`: received shape \(6, 4\).*targets of shape"),
    "two_columns": (CategoricalPd, 4, np.stack([CLASSES, CLASSES], 1), "`y`.*targets of shape"),
    "bernoulli_five": (BernoulliPd, 1, ZEROS_AND_ONES * 5, r"`y`: received a target outside \[0, 1\]"),
    "bernoulli_minus_one": (BernoulliPd, 1, -ZEROS_AND_ONES[:, None], r"a target outside \[0, 1\]"),
    "bernoulli_row": (BernoulliPd, 3, ZEROS_AND_ONES, "`y`.*targets of shape"),
    "bernoulli_matrix": (BernoulliPd, 1, np.ones((6, 6)), "`y`.*targets of shape"),
    "gaussian_row": (DiagGaussianPd, 4, REALS, "`y`.*targets of shape"),
    "gaussian_matrix": (DiagGaussianPd, 2, np.ones((6, 6)), "`y`.*targets of shape"),
    "gaussian_parameters": (DiagGaussianPd, 4, np.ones((6, 4)), "`y`.*targets of shape"),
    "declared_matrix": (DeclaredPd, 1, np.ones((6, 6)), "`y`.*targets of shape"),
    "examples": (DiagGaussianPd, 2, REALS[:5], "`y`"),
}
REFUSED_SOFT = {
    "several_classes": (np.ones((6, 3)), "`y`.*does not sum to 1.*BinaryCrossentropy"),
    "no_class": (np.zeros((6, 3)), "`y`.*does not sum to 1"),
    "negative_chance": (REFUSED["negative_chance"][2], "`y`.*negative entry"),
}


def _through_likelihood(loss, y, z):
    likelihood = likelihood_of(loss)
    pd = likelihood.distribution(z)
    return -tf.reduce_sum(likelihood.weights(z, pd, None) * pd.log_prob(likelihood.targets(y, pd)))


def _through_loss(loss, y, z):
    return loss(y, z)


@pytest.fixture(params=[_through_likelihood, _through_loss], ids=["likelihood", "keras_loss"])
def way(request):
    return request.param


@pytest.mark.parametrize("name", sorted(SAME))
def test_shapes_of_one_meaning_give_the_same_numbers(name, way):
    pd, outputs, y, others = SAME[name]
    z, loss = tf.constant(Z[:, :outputs]), NegativeLogLikelihood(pd)
    expected = -np.mean(pd(z).log_prob(y))
    for other in (y, *others):
        assert float(way(loss, other, z)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_labels_that_do_not_fit_are_refused(name, way):
    pd, outputs, y, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        way(NegativeLogLikelihood(pd), y, tf.constant(Z[:, :outputs]))


@pytest.mark.parametrize("unknown", ["examples", "shape", "rank"])
@pytest.mark.parametrize("name", ["class_out_of_range", "several_classes", "bernoulli_matrix", "gaussian_matrix"])
def test_labels_of_unknown_shape_are_refused_where_the_graph_runs(name, unknown, way):
    pd, outputs, y, match = REFUSED[name]
    shape = {"examples": [None, *np.shape(y)[1:]], "shape": [None] * np.ndim(y), "rank": None}[unknown]
    if unknown == "rank" and name == "several_classes":
        match = "`y`.*class indices of shape"

    @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape), tf.TensorSpec([None, outputs])])
    def value(y, z):
        return way(NegativeLogLikelihood(pd), y, z)

    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=match):
        value(tf.constant(y, tf.float32), tf.constant(Z[:, :outputs]))


def test_labels_of_unknown_shape_that_fit():
    @tf.function(autograph=False, input_signature=[tf.TensorSpec(None), tf.TensorSpec([None, 2])])
    def value(y, z):
        return NegativeLogLikelihood(DiagGaussianPd)(y, z)

    expected = -np.mean(DiagGaussianPd(Z[:, :2]).log_prob(REALS[:, None]))
    assert float(value(REALS[:, None], Z[:, :2])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", sorted(REFUSED_SOFT))
def test_soft_targets_that_are_no_distribution_are_refused(name):
    y, match = REFUSED_SOFT[name]
    likelihood = likelihood_of(losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1))
    with pytest.raises(ValueError, match=match):
        likelihood.targets(y, likelihood.distribution(tf.constant(Z[:, :3])))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_soft_targets_may_be_rounded(dtype):
    rows = tf.cast(tf.nn.softmax(RNG.normal(size=(6, 100))), dtype)
    likelihood = likelihood_of(losses.CategoricalCrossentropy(from_logits=True))
    pd = likelihood.distribution(tf.zeros([6, 100]))
    np.testing.assert_array_equal(likelihood.targets(rows, pd), tf.cast(rows, tf.float32))


def test_a_small_integer_type_holds_labels_of_many_classes():
    y = np.array([0, 100, 255], "uint8")
    likelihood = likelihood_of(losses.SparseCategoricalCrossentropy(from_logits=True))
    np.testing.assert_array_equal(likelihood.targets(y, likelihood.distribution(tf.zeros([3, 300]))), y)


def test_a_distribution_that_declares_nothing_takes_what_it_took():
    z = tf.constant(Z)
    y = np.ones((6, 1))
    expected = -np.mean(training.PoissonPd(z).log_prob(y))
    for way in (_through_likelihood, _through_loss):
        assert float(way(NegativeLogLikelihood(training.PoissonPd), y, z)) == pytest.approx(expected, rel=1e-6)


# In training.


@pytest.mark.parametrize("optimizer", [training.plain, keras.optimizers.Adam], ids=["natural_gradient", "adam"])
@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_shapes_of_one_meaning_train_alike(name, optimizer):
    pd, outputs, y, others = SAME[name]
    histories = []
    for labels in (y, others[0]):
        stack = [layers.Dense(outputs, kernel_initializer="zeros")]
        model = compiled(network(stack), optimizer(0.1), NegativeLogLikelihood(pd))
        histories.append(fit(model, X, labels, batch_size=4, epochs=2)["loss"])
    assert histories[0] == histories[1] and histories[0][1] < histories[0][0]


@pytest.mark.parametrize("optimizer", [training.plain, keras.optimizers.Adam], ids=["natural_gradient", "adam"])
@pytest.mark.parametrize("name", ["class_out_of_range", "several_classes", "bernoulli_five", "gaussian_matrix"])
def test_fit_refuses_labels_and_leaves_the_weights(name, optimizer):
    pd, outputs, y, match = REFUSED[name]
    model = compiled(network([layers.Dense(outputs)]), optimizer(0.1), NegativeLogLikelihood(pd))
    before = model.get_weights()
    # Stock Keras's graph reports an assertion in TensorFlow's own type.
    stock = () if optimizer is training.plain else (tf.errors.InvalidArgumentError,)
    with pytest.raises((ValueError, *stock), match=match):
        fit(model, X, y)
    assert training.same_weights(before, model.get_weights())


def test_a_batch_with_labels_that_are_not_finite_can_be_left_out():
    y = REALS.copy()
    y[1] = np.nan
    model = compiled(
        network([layers.Dense(2)]), training.plain(on_nonfinite="skip"), NegativeLogLikelihood(DiagGaussianPd)
    )
    history = fit(model, X, y, batch_size=3)
    assert history["skipped_steps"] == [1] and np.isfinite(history["loss"]).all()


# Outputs that the loss takes as probabilities.


LOGITS = r"`loss`: received outputs that are no probabilities.*`from_logits=True`.*{}"
TAKEN_AS_PROBABILITIES = {
    "sparse": (3, losses.SparseCategoricalCrossentropy, CLASSES, LOGITS.format("softmax")),
    "soft": (3, losses.CategoricalCrossentropy, ONE_HOT, LOGITS.format("softmax")),
    "binary": (1, losses.BinaryCrossentropy, ZEROS_AND_ONES, LOGITS.format("sigmoid")),
}
NOT_PROBABILITIES = {
    "negative": [[-0.2, 0.5, 0.7]],
    "above_one": [[1.2, -0.1, -0.1]],
    "sum": [[0.3, 0.3, 0.3]],
    "zero": [[0.0, 0.0, 0.0]],
}


@pytest.mark.parametrize("name", sorted(TAKEN_AS_PROBABILITIES))
@pytest.mark.parametrize("call", ["fisher", "hessian", "natural_gradient", "fit", "eager_fit", "micro_batches"])
def test_logits_without_from_logits_are_refused(call, name):
    units, loss, y, match = TAKEN_AS_PROBABILITIES[name]
    options = {"micro_batch_size": 2} if call == "micro_batches" else {}
    mode = "eager" if call == "eager_fit" else "graph"
    model = compiled(network([layers.Dense(units, kernel_initializer="ones")]), training.plain(**options), loss(), mode)
    x = np.abs(X) + 1.0
    before = model.get_weights()
    with pytest.raises(ValueError, match=match):
        {
            "fisher": lambda: ng.operators.Fisher(model, loss(), x),
            "hessian": lambda: ng.operators.Hessian(model, loss(), (x, y)),
            "natural_gradient": lambda: ng.natural_gradient(model, loss(), x, y),
        }.get(call, lambda: fit(model, x, y))()
    assert training.same_weights(before, model.get_weights())


def _check(loss, outputs, sample_weight=None):
    likelihood, z = likelihood_of(loss), tf.convert_to_tensor(outputs)
    pd = likelihood.distribution(z)
    likelihood.check_outputs(z, pd, likelihood.weights(z, pd, sample_weight))


@pytest.mark.parametrize("name", sorted(NOT_PROBABILITIES))
def test_outputs_that_are_no_probabilities_are_refused(name):
    rows = NOT_PROBABILITIES[name]
    with pytest.raises(ValueError, match=LOGITS.format("softmax")):
        _check("sparse_categorical_crossentropy", np.array([[0.2, 0.3, 0.5], *rows]))
    if name in ("negative", "above_one"):
        with pytest.raises(ValueError, match=LOGITS.format("sigmoid")):
            _check("binary_crossentropy", np.array(rows))
    else:
        _check("binary_crossentropy", np.array(rows))


def test_outputs_of_weight_zero_and_outputs_that_are_not_finite_are_not_judged():
    rows = np.array([[0.2, 0.3, 0.5], [0.0, 0.0, 0.0]])
    _check("categorical_crossentropy", rows, [1.0, 0.0])
    _check("categorical_crossentropy", np.array([[np.nan, 0.2, 0.2], [0.2, 0.3, 0.5]]))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("normalise", ["softmax", "quotient"])
def test_outputs_that_a_model_normalises_itself_are_taken(normalise, policy):
    def last(z):
        e = keras.ops.exp(z)
        return keras.ops.softmax(1.0 * z) + 0.0 if normalise == "softmax" else e / keras.ops.sum(e, -1, keepdims=True)

    inputs = keras.Input((4,))
    stack = [layers.Dense(100, dtype=policy), layers.Lambda(last, dtype=policy)]
    outputs = stack[1](stack[0](inputs))
    y = np.arange(6)
    fisher = ng.operators.Fisher(keras.Model(inputs, outputs), "sparse_categorical_crossentropy", (X, y))
    assert np.isfinite(fisher.loss()) and fisher.outputs.dtype == keras.DTypePolicy(policy).compute_dtype
