"""Distributions: against TensorFlow Probability, and the identities of their Fisher algebra."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import difference

from tf_natgrad.distributions import BernoulliPd, CategoricalPd, DiagGaussianPd, NegativeLogLikelihood, likelihood_of

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-12
CLASSES = 4


@pytest.fixture(scope="module")
def tfd():
    return pytest.importorskip("tensorflow_probability").distributions


def _draw(size, dtype="float64"):
    return np.random.default_rng(3).normal(size=(6, size)).astype(dtype)


def _softmax(z):
    return tf.nn.softmax(tf.constant(z))


# Name -> (distribution at some parameters, labels).
FAMILIES = {
    "categorical": lambda: (CategoricalPd(_draw(CLASSES)), np.array([0, 1, 2, 3, 0, 1])),
    "categorical_soft": lambda: (
        CategoricalPd(_draw(CLASSES)),
        np.random.default_rng(4).dirichlet(np.ones(CLASSES), 6),
    ),
    "two_classes": lambda: (CategoricalPd(_draw(2)), np.array([0, 1, 1, 0, 0, 1])),
    "probabilities": lambda: (CategoricalPd.from_probabilities(_softmax(_draw(CLASSES))), np.array([0, 1, 2, 3, 0, 1])),
    "probabilities_soft": lambda: (
        CategoricalPd.from_probabilities(_softmax(_draw(CLASSES))),
        np.random.default_rng(4).dirichlet(np.ones(CLASSES), 6),
    ),
    "bernoulli": lambda: (BernoulliPd(_draw(3)), np.random.default_rng(4).integers(0, 2, (6, 3))),
    "bernoulli_soft": lambda: (BernoulliPd(_draw(3)), np.random.default_rng(4).uniform(size=(6, 3))),
    "bernoulli_probabilities": lambda: (
        BernoulliPd.from_probabilities(tf.sigmoid(_draw(3))),
        np.random.default_rng(4).integers(0, 2, (6, 3)),
    ),
    "gaussian": lambda: (DiagGaussianPd(_draw(4)), np.random.default_rng(4).normal(size=(6, 2))),
    "fixed_std": lambda: (DiagGaussianPd.with_fixed_std(_draw(3), 0.7), np.random.default_rng(4).normal(size=(6, 3))),
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request, float64):
    return FAMILIES[request.param]()


def _dense_factor(pd):
    """`S` `[N, C, R]`."""
    return np.transpose(pd.fisher_factor_columns(), (1, 2, 0))


def _textbook(pd):
    """`L` `[N, C, C]`, written down again."""

    def diagonal(values):
        return values[..., None] * np.eye(values.shape[-1])

    z = pd.parameters.numpy()
    if isinstance(pd, CategoricalPd):
        p = pd.probabilities.numpy()
        from_logits = diagonal(p) - p[:, :, None] * p[:, None, :]
        return from_logits if type(pd) is CategoricalPd else diagonal(1 / p) - 1.0
    if isinstance(pd, BernoulliPd):
        p = pd.probabilities.numpy()
        return diagonal(p * (1 - p) if type(pd) is BernoulliPd else 1 / (p * (1 - p)))
    if isinstance(pd, DiagGaussianPd):
        return diagonal(np.concatenate([np.exp(-2 * z[:, 2:]), np.full((6, 2), 2.0)], -1))
    return diagonal(np.full_like(z, 0.7**-2))


# Against TensorFlow Probability.


def _same(pd, tfp, other, tfp_other, value):
    assert difference(pd.log_prob(value), tf.reduce_sum(tf.reshape(tfp.log_prob(value), [6, -1]), -1)) < TOLERANCE
    assert difference(pd.entropy(), tf.reduce_sum(tf.reshape(tfp.entropy(), [6, -1]), -1)) < TOLERANCE
    divergence = tf.reduce_sum(tf.reshape(tfp.kl_divergence(tfp_other), [6, -1]), -1)
    assert difference(pd.kl(other), divergence) < TOLERANCE
    assert difference(tf.cast(pd.mode(), tf.float64), tf.cast(tfp.mode(), tf.float64)) < TOLERANCE


@pytest.mark.parametrize("from_probabilities", [False, True])
def test_categorical_is_that_of_tensorflow_probability(from_probabilities, tfd):
    z, other = 3 * _draw(CLASSES), 3 * _draw(CLASSES)[::-1]
    make = (lambda v: CategoricalPd.from_probabilities(_softmax(v))) if from_probabilities else CategoricalPd
    _same(make(z), tfd.Categorical(logits=z), make(other), tfd.Categorical(logits=other), np.array([0, 1, 2, 3, 0, 1]))


@pytest.mark.parametrize("from_probabilities", [False, True])
def test_bernoulli_is_that_of_tensorflow_probability(from_probabilities, tfd):
    z, other, y = 3 * _draw(3), 3 * _draw(3)[::-1], np.random.default_rng(4).integers(0, 2, (6, 3))
    make = (lambda v: BernoulliPd.from_probabilities(tf.sigmoid(v))) if from_probabilities else BernoulliPd
    _same(
        make(z),
        tfd.Bernoulli(logits=tf.constant(z), dtype=tf.float64),
        make(other),
        tfd.Bernoulli(logits=tf.constant(other), dtype=tf.float64),
        y.astype(float),
    )


def test_gaussian_is_that_of_tensorflow_probability(tfd):
    z, other, y = _draw(4), _draw(4)[::-1], np.random.default_rng(4).normal(size=(6, 2))
    normal, normal_other = (tfd.Normal(v[:, :2], np.exp(v[:, 2:])) for v in (z, other))
    _same(DiagGaussianPd(z), normal, DiagGaussianPd(other), normal_other, y)


def test_gaussian_of_fixed_std_is_that_of_tensorflow_probability(tfd):
    z, other, y = _draw(3), _draw(3)[::-1], np.random.default_rng(4).normal(size=(6, 3))
    std = np.float64(0.7)
    normal, normal_other = tfd.Normal(z, std), tfd.Normal(other, std)
    pd, pd_other = (DiagGaussianPd.with_fixed_std(v, 0.7) for v in (z, other))
    _same(pd, normal, pd_other, normal_other, y)


def test_kl_of_a_class_that_has_probability_zero_is_finite():
    certain, even = CategoricalPd(tf.constant([[0.0, -np.inf]])), CategoricalPd(tf.constant([[0.0, 0.0]]))
    assert float(certain.kl(even)[0]) == pytest.approx(np.log(2))
    assert float(certain.entropy()[0]) == 0.0


# The Fisher of the distribution.


def test_factor_times_its_transpose_is_the_fisher(family):
    pd, _ = family
    factor = _dense_factor(pd)
    assert difference(factor @ np.transpose(factor, (0, 2, 1)), _textbook(pd)) < TOLERANCE


def test_fisher_is_the_expectation_of_score_outer_products(family):
    pd, _ = family
    if isinstance(pd, CategoricalPd):
        labels, chances = np.eye(pd.parameters.shape[-1]), pd.probabilities.numpy()
        scores = [_gradient_of_nll(pd, np.tile(label, (6, 1))) for label in labels]
        expected = sum(c[:, None, None] * s[:, :, None] * s[:, None, :] for c, s in zip(chances.T, scores, strict=True))
    elif isinstance(pd, BernoulliPd):
        p = pd.probabilities.numpy()
        ones, zeros = (_gradient_of_nll(pd, np.full_like(p, y)) for y in (1.0, 0.0))
        expected = (p * ones**2 + (1 - p) * zeros**2)[..., None] * np.eye(3)
    else:
        # Gauss-Hermite quadrature: exact for these polynomials.
        nodes, weights = np.polynomial.hermite_e.hermegauss(8)
        points = np.meshgrid(*[nodes] * pd.mean.shape[-1], indexing="ij")
        mass = np.prod(np.meshgrid(*[weights / weights.sum()] * pd.mean.shape[-1], indexing="ij"), 0).reshape(-1)
        noise, std = np.stack([p.reshape(-1) for p in points], -1), np.exp(pd.log_std.numpy())
        scores = np.stack([_gradient_of_nll(pd, pd.mean.numpy() + std * e) for e in noise])
        expected = np.einsum("m,mnc,mnd->ncd", mass, scores, scores)
    assert difference(_textbook(pd), expected) < TOLERANCE


def test_fisher_matvec_is_the_fisher(family, rng):
    pd, _ = family
    v = rng.normal(size=pd.parameters.shape)
    assert difference(pd.fisher_matvec(v), np.einsum("ncd,nd->nc", _textbook(pd), v)) < TOLERANCE


def test_factor_products_are_the_columns(family, rng):
    pd, _ = family
    factor = _dense_factor(pd)
    u, v = rng.normal(size=(6, pd.fisher_rank)), rng.normal(size=pd.parameters.shape)
    assert difference(pd.fisher_factor(u), np.einsum("ncr,nr->nc", factor, u)) < TOLERANCE
    assert difference(pd.fisher_factor_transpose(v), np.einsum("ncr,nc->nr", factor, v)) < TOLERANCE


def test_reduced_factor_has_full_rank(family):
    pd, _ = family
    columns = pd.parameters.shape[-1] - isinstance(pd, CategoricalPd)
    assert _dense_factor(pd).shape == (6, pd.parameters.shape[-1], columns)
    assert (np.linalg.matrix_rank(_dense_factor(pd)) == columns).all() and pd.fisher_rank == columns


def _gradient_of_nll(pd, y):
    z = tf.identity(pd.parameters)
    with tf.GradientTape() as tape:
        tape.watch(z)
        nll = -tf.reduce_sum(pd.with_parameters(z).log_prob(y))
    return tape.gradient(nll, z).numpy()


def test_factor_of_the_score_gives_the_gradient(family):
    pd, y = family
    assert difference(pd.fisher_factor(pd.score_factor(y)), _gradient_of_nll(pd, y)) < TOLERANCE


def test_both_parametrisations_give_one_fisher_through_the_softmax():
    z = tf.constant(_draw(CLASSES))
    with tf.GradientTape() as tape:
        tape.watch(z)
        p = tf.nn.softmax(z)
    jacobian = tape.batch_jacobian(p, z).numpy()
    inner = _textbook(CategoricalPd.from_probabilities(p))
    pulled_back = np.einsum("nac,nab,nbd->ncd", jacobian, inner, jacobian)
    assert difference(pulled_back, _textbook(CategoricalPd(z))) < TOLERANCE
    through = np.einsum("nac,rna->rnc", jacobian, CategoricalPd.from_probabilities(p).fisher_factor_columns())
    assert difference(through, CategoricalPd(z).fisher_factor_columns()) < TOLERANCE


# Positions: the algebra is per entry of the batch, whatever its shape.


@pytest.mark.parametrize("make", [CategoricalPd, BernoulliPd, DiagGaussianPd])
def test_batch_of_any_rank(make, rng):
    z = rng.normal(size=(2, 3, CLASSES))
    whole, flat = make(z), make(z.reshape(6, CLASSES))
    u, v = rng.normal(size=(2, 3, whole.fisher_rank)), rng.normal(size=z.shape)
    assert difference(whole.fisher_factor(u), np.reshape(flat.fisher_factor(u.reshape(6, -1)), z.shape)) < TOLERANCE
    assert difference(whole.fisher_matvec(v), np.reshape(flat.fisher_matvec(v.reshape(6, -1)), z.shape)) < TOLERANCE
    columns = np.reshape(flat.fisher_factor_columns(), (-1, *z.shape))
    assert difference(whole.fisher_factor_columns(), columns) < TOLERANCE


# Saturation.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [CategoricalPd, BernoulliPd])
def test_saturated_logits(make, dtype):
    z = 1000 * _draw(CLASSES, dtype)
    if make is CategoricalPd:
        y, p = np.eye(CLASSES)[[0, 1, 2, 3, 0, 1]], tf.nn.softmax(z.astype("float64")).numpy()
    else:
        y, p = np.random.default_rng(4).integers(0, 2, z.shape), tf.sigmoid(z.astype("float64")).numpy()
    pd = make(z)
    assert difference(pd.fisher_factor(pd.score_factor(y.astype(dtype))), p - y) < 1e-7
    assert np.isfinite(pd.fisher_factor_columns()).all() and np.isfinite(pd.score_factor(y)).all()
    assert np.isfinite(pd.log_prob(y)).all() and np.isfinite(pd.entropy()).all()


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0, 30.0, 100.0])
def test_gradient_at_every_degree_of_saturation_in_float32(scale):
    z = scale * _draw(CLASSES, "float32")
    y = np.argmax(z, -1)
    pd, exact = CategoricalPd(z), tf.nn.softmax(z.astype("float64")).numpy()
    expected = exact - np.eye(CLASSES)[y]
    expected[np.arange(6), y] = -(expected.sum(-1) - expected[np.arange(6), y])
    # One class at a time: float32 cannot do better than the rounding of p itself.
    assert difference(pd.fisher_factor(pd.score_factor(y)), expected) < 1e-5


# Samples.


def test_samples_are_functions_of_the_seed(family):
    pd, _ = family
    assert np.array_equal(pd.sample([1, 2]), pd.sample([1, 2]))
    assert len({pd.sample([1, seed]).numpy().tobytes() for seed in range(8)}) > 1


def test_frequencies_of_a_categorical():
    z = np.tile([[0.0, 1.0, -1.0]], (20_000, 1))
    pd = CategoricalPd(z)
    frequencies, p = np.bincount(pd.sample([0, 1])) / len(z), pd.probabilities.numpy()[0]
    assert (np.abs(frequencies - p) < 4 * np.sqrt(p * (1 - p) / len(z))).all()


def test_frequencies_of_a_bernoulli():
    z = np.tile([[0.0, 1.0, -2.0]], (20_000, 1))
    pd = BernoulliPd(z)
    frequencies, p = np.mean(pd.sample([0, 1]), 0), pd.probabilities.numpy()[0]
    assert (np.abs(frequencies - p) < 4 * np.sqrt(p * (1 - p) / len(z))).all()


def test_moments_of_a_gaussian():
    pd = DiagGaussianPd(np.tile([[1.0, -2.0, 0.5, -0.5]], (20_000, 1)))
    drawn, std = pd.sample([0, 1]).numpy(), np.exp([0.5, -0.5])
    assert (np.abs(drawn.mean(0) - [1.0, -2.0]) < 4 * std / np.sqrt(20_000)).all()
    assert (np.abs(drawn.std(0) / std - 1) < 4 / np.sqrt(2 * 20_000)).all()


# The distribution along a step.


@pytest.mark.parametrize("name", ["categorical", "two_classes", "bernoulli", "gaussian"])
@pytest.mark.parametrize("reverse", [False, True])
def test_kl_along_a_step_is_the_fisher_to_third_order(name, reverse, rng):
    pd, _ = FAMILIES[name]()
    d = rng.normal(size=pd.parameters.shape)
    quadratic = 0.5 * np.einsum("nc,ncd,nd->n", d, _textbook(pd), d)

    def remainder(e):
        moved = pd.with_parameters(pd.parameters + e * d)
        kl = moved.kl(pd) if reverse else pd.kl(moved)
        return np.linalg.norm(kl - e**2 * quadratic)

    order = np.log2(remainder(2e-2) / remainder(1e-2))
    assert order == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize("name", ["categorical", "two_classes", "bernoulli", "gaussian", "fixed_std"])
def test_self_kl_is_zero_with_the_fisher_as_its_hessian(name):
    pd, _ = FAMILIES[name]()
    assert np.abs(pd.self_kl()).max() == 0.0

    @tf.function(autograph=False)
    def hessian(z):
        return tf.hessians(tf.reduce_sum(pd.with_parameters(z).self_kl()), z)[0]

    whole = hessian(pd.parameters).numpy()
    assert difference(np.stack([whole[i, :, i] for i in range(6)]), _textbook(pd)) < TOLERANCE


# The table from Keras losses.

SPARSE_Y, SOFT_Y = np.array([0, 1, 2, 3, 0, 1]), np.random.default_rng(4).dirichlet(np.ones(CLASSES), 6)
BINARY_Y, REAL_Y = np.random.default_rng(4).integers(0, 2, (6, CLASSES)).astype(float), _draw(CLASSES)[::-1]
LOSSES = {
    "sparse_logits": (lambda **k: keras.losses.SparseCategoricalCrossentropy(from_logits=True, **k), None, SPARSE_Y),
    "sparse": (lambda **k: keras.losses.SparseCategoricalCrossentropy(**k), tf.nn.softmax, SPARSE_Y),
    "soft_logits": (lambda **k: keras.losses.CategoricalCrossentropy(from_logits=True, **k), None, SOFT_Y),
    "soft": (lambda **k: keras.losses.CategoricalCrossentropy(**k), tf.nn.softmax, SOFT_Y),
    "smoothed": (
        lambda **k: keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2, **k),
        None,
        SOFT_Y,
    ),
    "binary_logits": (lambda **k: keras.losses.BinaryCrossentropy(from_logits=True, **k), None, BINARY_Y),
    "binary": (lambda **k: keras.losses.BinaryCrossentropy(**k), tf.sigmoid, BINARY_Y),
    "binary_smoothed": (
        lambda **k: keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2, **k),
        None,
        BINARY_Y,
    ),
    "squared_error": (lambda **k: keras.losses.MeanSquaredError(**k), None, REAL_Y),
}


def _value_and_gradient(function, z):
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = function(z)
    return value.numpy(), tape.gradient(value, z).numpy()


def _ours(loss, activation, y, weight):
    likelihood = likelihood_of(loss)

    def value(z):
        outputs = z if activation is None else activation(z)
        pd = likelihood.distribution(outputs)
        weights = likelihood.weights(outputs, pd, weight)
        return -tf.reduce_sum(weights * pd.log_prob(likelihood.targets(y, pd)))

    return value


@pytest.mark.parametrize("weight", [None, np.array([0.0, 1.0, 2.0, 0.5, 3.0, 0.1])], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_likelihood_is_the_keras_loss(name, reduction, weight):
    make, activation, y = LOSSES[name]
    loss, z = make(reduction=reduction), tf.constant(_draw(CLASSES))
    theirs = _value_and_gradient(lambda v: loss(y, v if activation is None else activation(v), weight), z)
    ours = _value_and_gradient(_ours(loss, activation, y, weight), z)
    # Keras moves probabilities of a sigmoid by 1e-7.
    tolerance = 1e-6 if name == "binary" else TOLERANCE
    assert difference(ours[1], theirs[1]) < tolerance
    if name != "squared_error":
        assert difference(ours[0], theirs[0]) < tolerance


@pytest.mark.parametrize(
    "loss, name",
    [
        ("sparse_categorical_crossentropy", "sparse"),
        ("categorical_crossentropy", "soft"),
        ("binary_crossentropy", "binary"),
        ("mse", "squared_error"),
        ("mean_squared_error", "squared_error"),
        ("MeanSquaredError", "squared_error"),
        (keras.losses.sparse_categorical_crossentropy, "sparse"),
        (keras.losses.mean_squared_error, "squared_error"),
    ],
)
def test_losses_by_name_or_function(loss, name):
    make, activation, y = LOSSES[name]
    z = tf.constant(_draw(CLASSES))
    by_name, by_object = (_value_and_gradient(_ours(v, activation, y, None), z) for v in (loss, make()))
    assert difference(by_name[1], by_object[1]) == 0.0


def test_weights_of_a_plain_mean():
    likelihood, z = likelihood_of(LOSSES["sparse_logits"][0]()), tf.constant(_draw(CLASSES))
    assert np.allclose(likelihood.weights(z, likelihood.distribution(z), None), 1 / 6)
    column = likelihood.weights(z, likelihood.distribution(z), np.arange(6.0)[:, None])
    assert difference(column, np.arange(6) / 6) < TOLERANCE


def test_a_distribution_is_its_own_loss():
    z, y = tf.constant(_draw(CLASSES)), np.random.default_rng(4).normal(size=(6, 2))
    loss = NegativeLogLikelihood(DiagGaussianPd)
    by_class, by_loss = (_value_and_gradient(_ours(v, None, y, None), z) for v in (DiagGaussianPd, loss))
    theirs = _value_and_gradient(lambda v: loss(y, v), z)
    assert difference(by_class[0], theirs[0]) < TOLERANCE and difference(by_class[1], theirs[1]) < TOLERANCE
    assert difference(by_loss[1], theirs[1]) < TOLERANCE


@pytest.mark.parametrize("distribution", [keras.losses.MeanSquaredError, "gaussian", DiagGaussianPd(np.zeros((1, 2)))])
def test_likelihood_of_something_else_is_refused(distribution):
    with pytest.raises(TypeError, match=r"`distribution`.*subclass of `Distribution`"):
        NegativeLogLikelihood(distribution)


@pytest.mark.parametrize(
    "loss",
    ["huber", "no_such_loss", None, 3, keras.losses.Hinge(), keras.losses.MeanAbsoluteError, lambda y, z: z, dict()],
)
def test_unknown_losses_are_refused(loss):
    with pytest.raises(ValueError, match=r"`loss`: received .*SparseCategoricalCrossentropy.*Distribution"):
        likelihood_of(loss)


@pytest.mark.parametrize(
    "loss, match",
    [
        (lambda: keras.losses.SparseCategoricalCrossentropy(ignore_class=0), "ignore_class=0.*`sample_weight` of zero"),
        (lambda: keras.losses.CategoricalCrossentropy(axis=1), "axis=1"),
        (lambda: keras.losses.MeanSquaredError(reduction="none"), "reduction='none'"),
        (lambda: keras.losses.MeanSquaredError(reduction=None), "reduction=None"),
    ],
)
def test_options_that_are_no_likelihood_are_refused(loss, match):
    with pytest.raises(ValueError, match=f"`loss`.*{match}"):
        likelihood_of(loss())


# What does not fit.


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: CategoricalPd(np.zeros((5, 1))), "`logits`.*at least 2 classes.*BernoulliPd"),
        (lambda: CategoricalPd(0.0), "`logits`"),
        (lambda: DiagGaussianPd(np.zeros((5, 3))), "`parameters`.*means, then"),
        (lambda: DiagGaussianPd.with_fixed_std(np.zeros((5, 3)), 0.0), "`std`"),
        (lambda: DiagGaussianPd.with_fixed_std(np.zeros((5, 3)), -1.0), "`std`"),
    ],
)
def test_bad_parameters_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    "name, y, match",
    [
        (
            "sparse_logits",
            np.array([0, 1, 2, 3, 4, 0]),
            "`y`: received a label out of range; expected class indices 0 to 3",
        ),
        ("sparse_logits", np.array([0, 1, 2, 3, -1, 0]), "a label out of range"),
        ("sparse_logits", np.array([0, 1, 2, 3, 0.5, 0]), "a label out of range"),
        ("sparse_logits", np.array([0, 1, 2, 3, np.nan, 0]), "a label out of range"),
        ("sparse_logits", np.eye(4)[[0, 1, 2, 3, 0, 1]], "`y`.*CategoricalCrossentropy"),
        ("sparse_logits", np.array([0, 1]), "`y`"),
        ("soft_logits", np.array([0, 1, 2, 3, 0, 1]), "`y`.*targets of shape"),
        ("soft_logits", np.full((6, 4), np.nan), "`y`.*NaN"),
        ("binary_logits", np.full((6, 4), 1.5), r"`y`.*outside \[0, 1\]"),
        ("binary_logits", np.zeros((6, 3)), "`y`.*targets of shape"),
        ("squared_error", np.full((6, 4), np.inf), "`y`.*infinite"),
        ("squared_error", np.zeros((5, 4)), "`y`"),
    ],
)
def test_labels_that_do_not_fit_are_refused(name, y, match):
    likelihood = likelihood_of(LOSSES[name][0]())
    with pytest.raises(ValueError, match=match):
        likelihood.targets(y, likelihood.distribution(tf.constant(_draw(CLASSES))))


@pytest.mark.parametrize(
    "weight, match",
    [
        (np.array([1, 1, 1, 1, 1, -1.0]), "a negative weight"),
        (np.array([1, 1, 1, 1, 1, np.nan]), "NaN or infinite"),
        (np.array([1, 1, 1, 1, 1, np.inf]), "NaN or infinite"),
        (np.ones(5), "`sample_weight`"),
        (np.ones((6, 4)), "`sample_weight`.*one weight per example"),
        (np.ones(()), "`sample_weight`"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weight, match):
    likelihood, z = likelihood_of("mse"), tf.constant(_draw(CLASSES))
    with pytest.raises(ValueError, match=match):
        likelihood.weights(z, likelihood.distribution(z), weight)


def test_outputs_without_an_axis_are_refused():
    with pytest.raises(ValueError, match=r"`model`: received outputs of shape \(6,\)"):
        likelihood_of("mse").distribution(tf.zeros(6))


def test_several_outputs_are_refused():
    with pytest.raises(TypeError, match=r"`model`: received 2 outputs; expected one output tensor"):
        likelihood_of("mse").distribution([tf.zeros([6, 2]), tf.zeros([6, 2])])


def test_half_precision_outputs_are_computed_in_single():
    with cases.precision("float32"):
        assert likelihood_of("mse").distribution(tf.zeros([6, 2], tf.float16)).parameters.dtype == tf.float32
