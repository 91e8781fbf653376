"""Operators over a data set of many batches: those over all of its examples at once, or a refusal."""

import functools
import sys

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import difference

from tf_natgrad.operators import EmpiricalFisher, Fisher, GaussNewton, Hessian
from tf_natgrad.solvers import Auto, ConjugateGradient, Gram
from tf_natgrad.spectrum import eigsh, hutchinson_trace

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-10
KINDS = {"hessian": Hessian, "gauss_newton": GaussNewton, "empirical": EmpiricalFisher, "fisher": Fisher}
OTHER_BATCHES = r"`data`: received a data set that gives other batches when it is read again.*reshuffle_each_iteration"
ANOTHER_NUMBER = r"`data`: received another number of batches than at first; expected 3 batches each time"
# The last of three batches is ragged.
EXAMPLES, BATCH = 11, 4


def _data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(EXAMPLES, 4)), rng.integers(0, 3, EXAMPLES), rng.uniform(0.1, 2.0, EXAMPLES)


def _loss(reduction="sum_over_batch_size"):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)


@functools.cache
def _model():
    with cases.precision("float64"):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(3)])
        rng = np.random.default_rng(1)
        model.set_weights([rng.normal(0.0, 0.7, w.shape) for w in model.get_weights()])
    return model


def _batches(*data):
    return tf.data.Dataset.from_tensor_slices(data).batch(BATCH)


def _pair(kind, reduction="sum_over_batch_size"):
    """The operator over batches, and the one over all examples."""
    data = _data()
    return KINDS[kind](_model(), _loss(reduction), _batches(*data)), KINDS[kind](_model(), _loss(reduction), data)


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request, float64):
    return _pair(request.param)


# The same matrix.


def test_products(pair, rng):
    batches, whole = pair
    block = rng.normal(size=(27, 3))
    assert difference(batches.matvec(block[:, 0]), whole.matvec(block[:, 0])) < TOLERANCE
    assert difference(batches.matmul(block), whole.matmul(block)) < TOLERANCE
    damped = batches.damped(0.2).matvec(block[:, 0])
    assert difference(damped, whole.damped(0.2).matvec(block[:, 0])) < TOLERANCE


def test_dense_matrix_and_diagonal(pair):
    batches, whole = pair
    assert difference(batches.to_dense(), whole.to_dense()) < TOLERANCE
    assert difference(batches.diag_part(), whole.diag_part()) < TOLERANCE


def test_loss_and_gradient(pair):
    batches, whole = pair
    y = _data()[1]
    assert float(batches.loss()) == pytest.approx(float(whole.loss(y)), rel=TOLERANCE)
    assert difference(batches.gradient(), whole.gradient(y)) < TOLERANCE


def test_conjugate_gradients(pair, rng):
    batches, whole = pair
    dense, b = whole.to_dense().numpy(), rng.normal(size=27)
    damping = 0.2 + 1.5 * max(0.0, -np.linalg.eigvalsh(dense)[0])
    solution = ConjugateGradient(rtol=1e-13).solve(batches.damped(damping), b)
    assert difference(solution.value, np.linalg.solve(dense + damping * np.eye(27), b)) < TOLERANCE


def test_eigenpairs(pair):
    batches, whole = pair
    values = np.linalg.eigvalsh(whole.to_dense())
    pairs = eigsh(batches, 2, method="lanczos", tol=1e-12)
    assert pairs.info.converged.all()
    assert np.abs(pairs.eigenvalues - values[-2:]).max() < TOLERANCE * values[-1]


def test_gradient_solves_as_a_right_hand_side():
    batches, whole = _pair("fisher")
    rhs = batches.loss_gradient()
    assert rhs.u is None and difference(rhs.rest, whole.gradient(_data()[1])) < TOLERANCE
    solver = ConjugateGradient(rtol=1e-13)
    expected = Gram().solve(whole.damped(0.1), whole.loss_gradient(_data()[1])).value
    assert difference(solver.solve(batches.damped(0.1), rhs).value, expected) < TOLERANCE


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_with_sample_weight"])
def test_reductions(reduction, weighted, rng):
    data, v = _data() if weighted else _data()[:2], rng.normal(size=27)
    batches, whole = (Hessian(_model(), _loss(reduction), d) for d in (_batches(*data), data))
    assert difference(batches.matvec(v), whole.matvec(v)) < TOLERANCE
    assert float(batches.loss()) == pytest.approx(float(whole.loss()), rel=TOLERANCE)


def test_a_batch_of_weight_zero(rng):
    x, y, weight = _data()
    weight[:BATCH] = 0.0
    v = rng.normal(size=27)
    loss = _loss("mean_with_sample_weight")
    expected = GaussNewton(_model(), loss, (x, y, weight)).matvec(v)
    assert difference(GaussNewton(_model(), loss, _batches(x, y, weight)).matvec(v), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["cnn", "sequence", "embedding", "binary"])
def test_other_models(name, rng):
    problem = cases.shared(name)
    x, y, weight = (np.concatenate([a, a[::-1], a[:1]]) for a in (problem.x, problem.y, problem.weight))
    v = rng.normal(size=problem.size)
    batches, whole = (GaussNewton(problem.model, problem.loss, d) for d in (_batches(x, y, weight), (x, y, weight)))
    assert difference(batches.matvec(v), whole.matvec(v)) < TOLERANCE


def test_two_inputs(rng):
    problem = cases.shared("shared_layer")
    first, second = problem.x
    dataset = tf.data.Dataset.from_tensor_slices(((first, second), problem.y)).batch(2)
    v = rng.normal(size=problem.size)
    expected = EmpiricalFisher(problem.model, problem.loss, ([first, second], problem.y)).matvec(v)
    assert difference(EmpiricalFisher(problem.model, problem.loss, dataset).matvec(v), expected) < TOLERANCE


def test_some_of_the_variables(rng):
    last = _model().layers[-1].trainable_variables
    batches, whole = (Hessian(_model(), _loss(), d, variables=last) for d in (_batches(*_data()), _data()))
    assert batches.flat_parameters.size == 12
    assert difference(batches.to_dense(), whole.to_dense()) < TOLERANCE


def test_inputs_alone_are_enough_for_the_fisher(rng):
    x, v = _data()[0], rng.normal(size=27)
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(BATCH)
    assert difference(Fisher(_model(), _loss(), dataset).matvec(v), Fisher(_model(), _loss(), x).matvec(v)) < TOLERANCE


def test_inside_a_function(rng):
    batches, whole = _pair("hessian")
    v = rng.normal(size=27)
    product = tf.function(lambda x: batches.matvec(x), autograph=False)
    assert difference(product(v), whole.matvec(v)) < TOLERANCE


def test_single_precision(rng):
    x, y, weight = (a.astype("float32") for a in _data())
    with cases.precision("float32"):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(3)])
        model.set_weights(_model().get_weights())
        batches = Hessian(model, _loss(), _batches(x, y, weight))
        v = rng.normal(size=27).astype("float32")
        product = batches.matvec(v)
    assert product.dtype == tf.float32
    assert difference(product, Hessian(_model(), _loss(), _data()).matvec(v)) < 1e-5


# When the model is called.


def test_the_model_is_read_at_each_product(rng):
    model = keras.models.clone_model(_model())
    batches, v = GaussNewton(model, _loss(), _batches(*_data())), rng.normal(size=27)
    for _ in range(2):
        model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
        assert difference(batches.matvec(v), GaussNewton(model, _loss(), _data()).matvec(v)) < TOLERANCE


def test_dropout_and_statistics_of_batches_are_off(rng):
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3)])
    v, before = rng.normal(size=43), [w.copy() for w in model.get_weights()]
    batches = Fisher(model, _loss(), _batches(*_data()))
    expected = Fisher(model, _loss(), _data(), training=False).matvec(v)
    for _ in range(2):
        assert difference(batches.matvec(v), expected) < TOLERANCE
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_model_that_was_never_called(rng):
    model = keras.Sequential([keras.layers.Dense(3, "tanh"), keras.layers.Dense(3)])
    batches, v = Hessian(model, _loss(), _batches(*_data())), rng.normal(size=27)
    assert difference(batches.matvec(v), Hessian(model, _loss(), _data()).matvec(v)) < TOLERANCE


# Monte-Carlo.


def test_mc_is_the_same_matrix_at_each_product(rng):
    first, again = (Fisher(_model(), _loss(), _batches(*_data()), kind="mc", seed=5) for _ in range(2))
    v = rng.normal(size=27)
    products = [first.matvec(v).numpy() for _ in range(3)]
    assert np.array_equal(products[0], products[1]) and np.array_equal(products[0], products[2])
    assert np.array_equal(again.matvec(v), products[0])
    assert difference(first.matmul(np.stack([v, v], 1)), np.stack([products[0]] * 2, 1)) < TOLERANCE
    other = Fisher(_model(), _loss(), _batches(*_data()), kind="mc", seed=6)
    assert difference(other.matvec(v), products[0]) > 1e-3


def test_mc_draws_anew_for_each_batch(rng):
    x, v = _data()[0], rng.normal(size=27)
    once, twice = (
        Fisher(_model(), _loss(), tf.data.Dataset.from_tensor_slices(d).batch(EXAMPLES), kind="mc").matvec(v)
        for d in (x, np.concatenate([x, x]))
    )
    assert difference(once, Fisher(_model(), _loss(), x, kind="mc").matvec(v)) < TOLERANCE
    assert difference(twice, once) > 1e-3


# Progress.


PASSES = {
    "matvec": lambda op, v: op.matvec(v),
    "matmul": lambda op, v: op.matmul(np.stack([v, -v], 1)),
    "gradient": lambda op, v: op.gradient(),
    "loss": lambda op, v: op.loss(),
    "damped": lambda op, v: op.damped(0.1).matvec(v),
    "solve": lambda op, v: ConjugateGradient(rtol=1e-13).solve(op.damped(0.5), v).value,
}


@pytest.mark.parametrize("name", sorted(PASSES))
def test_progress_is_shown_where_asked_for(name, capsys, monkeypatch, rng):
    # As on a terminal: a file gets a line every ten seconds only.
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    results, v = {}, rng.normal(size=27)
    for progress in (False, True):
        operator = Fisher(_model(), _loss(), _batches(*_data()), progress=progress)
        capsys.readouterr()
        results[progress] = PASSES[name](operator, v)
        shown = capsys.readouterr().err
        assert ("/3 [" in shown) == progress, shown
    assert difference(results[True], results[False]) < TOLERANCE


def test_progress_follows_the_operand(rng):
    operator = Fisher(_model(), _loss(), _batches(*_data()), progress=True)
    whole = Fisher(_model(), _loss(), _data())
    for _ in range(2):
        v = rng.normal(size=27)
        assert difference(operator.matvec(v), whole.matvec(v)) < TOLERANCE


# What is not one matrix is refused.


def test_reshuffling_is_found_out():
    dataset = tf.data.Dataset.from_tensor_slices(_data())
    with pytest.raises(ValueError, match=OTHER_BATCHES):
        Hessian(_model(), _loss(), dataset.shuffle(EXAMPLES, seed=1).batch(BATCH))
    fixed = dataset.shuffle(EXAMPLES, seed=1, reshuffle_each_iteration=False).batch(BATCH)
    assert difference(Hessian(_model(), _loss(), fixed).gradient(), _pair("hessian")[1].gradient()) < TOLERANCE


def _noise(like, rng):
    """Random numbers that no seed of TensorFlow's makes the same again."""
    return tf.ensure_shape(tf.numpy_function(lambda a: rng.permutation(len(a)), [like], tf.int64), like.shape[:1])


def test_random_augmentation_is_found_out(rng):
    dataset = _batches(*_data()[:2]).map(lambda x, y: (x + tf.cast(_noise(x, rng), x.dtype)[:, None], y))
    with pytest.raises(ValueError, match=OTHER_BATCHES):
        GaussNewton(_model(), _loss(), dataset)
    cached = dataset.cache()
    assert GaussNewton(_model(), _loss(), cached).gradient().shape == (27,)


def test_random_labels_are_found_out(rng):
    dataset = _batches(*_data()[:2]).map(lambda x, y: (x, _noise(x, rng) % 3))
    with pytest.raises(ValueError, match=OTHER_BATCHES):
        EmpiricalFisher(_model(), _loss(), dataset)


def test_random_weights_are_found_out(rng):
    dataset = _batches(*_data()[:2]).map(lambda x, y: (x, y, tf.cast(_noise(x, rng), tf.float64)))
    with pytest.raises(ValueError, match=OTHER_BATCHES):
        EmpiricalFisher(_model(), _loss(), dataset)


def test_an_infinite_data_set_is_refused():
    with pytest.raises(ValueError, match=r"`data`: received an infinite data set.*Remove `repeat\(\)`, or use `take`"):
        Fisher(_model(), _loss(), _batches(*_data()).repeat())


@pytest.mark.parametrize("dataset", [lambda d: d.take(0), lambda d: d.filter(lambda *_: False)])
def test_an_empty_data_set_is_refused(dataset):
    with pytest.raises(ValueError, match=r"`data`: received an empty data set; expected at least one batch"):
        Fisher(_model(), _loss(), dataset(_batches(*_data())))


def _changing():
    """A data set of three batches, and what says how many it has from now on."""
    x, y, _ = _data()
    state = {"batches": 3}

    def batches():
        for i in range(state["batches"]):
            yield x[2 * i : 2 * i + 2], y[2 * i : 2 * i + 2]

    signature = tf.TensorSpec([None, 4], tf.float64), tf.TensorSpec([None], tf.int64)
    return tf.data.Dataset.from_generator(batches, output_signature=signature), state


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("later", [2, 4, 0])
def test_a_data_set_that_ends_early_or_late_is_refused(later, progress):
    dataset, state = _changing()
    operator = Hessian(_model(), _loss(), dataset, progress=progress)
    v = np.ones(27)
    before = operator.matvec(v)
    state["batches"] = later
    with pytest.raises(ValueError, match=ANOTHER_NUMBER):
        operator.matvec(v)
    state["batches"] = 3
    assert np.array_equal(operator.matvec(v), before)


def test_solvers_and_spectra_refuse_a_data_set_that_ends_early():
    dataset, state = _changing()
    operator = Fisher(_model(), _loss(), dataset)
    state["batches"] = 2
    for call in (
        lambda: operator.gradient(),
        lambda: operator.loss(),
        lambda: ConjugateGradient().solve(operator.damped(0.1), np.ones(27)),
        lambda: eigsh(operator, 2, method="lanczos"),
        lambda: hutchinson_trace(operator, 2),
    ):
        with pytest.raises(ValueError, match=ANOTHER_NUMBER):
            call()


def test_masked_outputs_are_refused_unless_summed():
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), keras.layers.Embedding(6, 2, mask_zero=True), keras.layers.Dense(3)]
    )
    x = np.array([[1, 2, 0, 0], [3, 4, 5, 0], [1, 1, 1, 1], [2, 0, 0, 0], [3, 3, 3, 3]])
    dataset = tf.data.Dataset.from_tensor_slices((x, x % 3)).batch(2)
    with pytest.raises(ValueError, match=r"`data`: received a data set for a model whose outputs are masked.*'sum'"):
        Fisher(model, _loss(), dataset).to_dense()
    batches, whole = (Fisher(model, _loss("sum"), d).to_dense() for d in (dataset, (x, x % 3)))
    assert difference(batches, whole) < TOLERANCE


def test_labels_are_needed():
    dataset = tf.data.Dataset.from_tensor_slices(_data()[0]).batch(BATCH)
    with pytest.raises(ValueError, match=r"`data`: received inputs without labels; expected `\(x, y\)`"):
        Hessian(_model(), _loss(), dataset).matvec(np.ones(27))


@pytest.mark.parametrize("call", ["gram", "factor_matvec", "outputs", "distribution", "hessians"])
def test_quantities_of_one_batch_are_refused_with_the_way_out(call):
    operator = _pair("fisher")[0]
    with pytest.raises(ValueError, match=r"`data`: received a data set; expected one batch.*Pass `\(x, y\)` as arrays"):
        {
            "gram": lambda: operator.gram(),
            "factor_matvec": lambda: operator.factor_matvec(np.ones(27)),
            "outputs": lambda: operator.outputs,
            "distribution": lambda: operator.distribution,
            "hessians": lambda: operator.to_dense(method="hessians"),
        }[call]()


def test_the_gram_solver_is_refused_with_the_way_out_and_auto_takes_it():
    operator = _pair("fisher")[0].damped(0.1)
    with pytest.raises(ValueError, match=r"data set of many batches.*ConjugateGradient\(\)"):
        Gram().solve(operator, np.ones(27))
    assert Auto().choose(operator)[0] == ConjugateGradient(rtol=1e-3)
