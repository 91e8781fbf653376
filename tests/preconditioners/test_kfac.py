"""Averaged Kronecker factors: their averages, their damped inverses, and the steps that are taken with them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import training
from keras import layers
from oracle import difference, rows_first

import tf_natgrad as ng
from tf_natgrad.layers import convolution
from tf_natgrad.operators import Fisher, KroneckerFisher
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.preconditioners import _base
from tf_natgrad.preconditioners._inverses import Dense, Diagonal, LowRank

DAMPING = 0.02


def _mlp():
    return [keras.Input((5,)), layers.Dense(7, "tanh"), layers.Dense(4, "tanh", use_bias=False), layers.Dense(3)]


def _conv():
    stack = [keras.Input((4, 3, 2)), layers.Conv2D(3, 2, activation="tanh"), layers.LayerNormalization()]
    return [*stack, layers.Flatten(), layers.Dense(3)]


def _transposed():
    stack = [keras.Input((2, 3, 2)), layers.Conv2DTranspose(3, (3, 2), strides=2, padding="same", activation="tanh")]
    return [*stack, layers.Flatten(), layers.Dense(3)]


def _separable():
    stack = [keras.Input((4, 3, 2)), layers.SeparableConv2D(3, 2, padding="same", activation="tanh")]
    return [*stack, layers.Flatten(), layers.Dense(3)]


def _tokens():
    pooled = layers.GlobalAveragePooling1D()
    return [keras.Input((4,), dtype="int32"), layers.Embedding(6, 3, mask_zero=True), pooled, layers.Dense(3)]


STACKS = {"mlp": _mlp, "conv": _conv, "transposed": _transposed, "separable": _separable, "tokens": _tokens}


def _batch(stack, size=6, seed=0):
    rng = np.random.default_rng(seed)
    shape = stack()[0].shape[1:]
    x = rng.integers(0, 6, (size, *shape)) if stack is _tokens else rng.normal(size=(size, *shape))
    return tf.constant(x), tf.constant(rng.integers(0, 3, size))


def _model(stack, optimizer=None, **options):
    keras.utils.set_random_seed(3)
    model = ng.NaturalGradientSequential(stack())
    if optimizer is not None:
        model.compile(optimizer, training.sparse(), **options)
    return model


def _gradient(model, x, y):
    with tf.GradientTape() as tape:
        loss = training.sparse()(y, model(x, training=True)) + sum(model.losses)
    variables = model.trainable_variables
    return FlatParameters(variables).flatten(tape.gradient(loss, [v.value for v in variables]))


def _order_of(block):
    """Where in the variables of a block the entries of its matrix are, row by row."""
    transposed = block.diagonal is None and "transpose" in block.variables[0].path
    return (
        rows_first(block.variables) if transposed else np.arange(sum(v.shape.num_elements() for v in block.variables))
    )


def _dense_inverse(blocks, damping, split):
    """The inverse of each block by NumPy, in the order of the variables."""
    inverses = []
    for block in blocks:
        own = np.argsort(_order_of(block))
        if block.diagonal is not None:
            inverses.append(np.diag(1.0 / (block.diagonal.numpy() + damping)))
            continue
        a, g = block.inputs.numpy(), block.gradients.numpy()
        a = np.diag(a) if a.ndim == 1 else a
        if split == "exact":
            inverses.append(np.linalg.inv(np.kron(a, g) + damping * np.eye(len(a) * len(g)))[np.ix_(own, own)])
            continue
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
        a = a + pi * np.sqrt(damping) * np.eye(len(a))
        g = g + np.sqrt(damping) / pi * np.eye(len(g))
        inverses.append(np.kron(np.linalg.inv(a), np.linalg.inv(g))[np.ix_(own, own)])
    return inverses


def _by_blocks(inverses, vector):
    found, start = [], 0
    for inverse in inverses:
        found.append(inverse @ vector[start : start + len(inverse)])
        start += len(inverse)
    return np.concatenate(found)


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_averages_are_those_of_the_factors_of_each_batch(stack, approximation, float64):
    model = _model(stack)
    kfac = ng.KFAC(fisher="exact", approximation=approximation, ema=0.6, update_every=1)
    kfac.build(model)
    batches = [_batch(stack, seed=k) for k in range(4)]
    expected = None
    for k, batch in enumerate(batches, 1):
        kfac.update(model, training.sparse(), batch, DAMPING, training=False)
        blocks = KroneckerFisher(model, training.sparse(), batch[0], approximation=approximation).blocks
        new = [t for b in blocks for t in (b.inputs, b.gradients, b.diagonal) if t is not None]
        keep = min(1.0 - 1.0 / k, 0.6)
        expected = [keep * o + (1.0 - keep) * n for o, n in zip(expected or new, new, strict=True)]
    found = [t for block in kfac.values().averages for t in block]
    assert max(difference(f, e) for f, e in zip(found, expected, strict=True)) < 1e-12


@pytest.mark.parametrize("split", ["pi", "exact"])
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_solve_is_the_damped_inverse(stack, split, float64):
    model, (x, y) = _model(stack), _batch(stack)
    kfac = ng.KFAC(fisher="exact", damping_split=split)
    kfac.build(model)
    info = kfac.update(model, training.sparse(), (x, y), DAMPING, training=False)
    assert bool(info.updated) and bool(info.inverted) and int(info.raised) == 0
    gradient = _gradient(model, x, y)
    blocks = KroneckerFisher(model, training.sparse(), x).blocks
    expected = _by_blocks(_dense_inverse(blocks, DAMPING, split), gradient.numpy())
    assert difference(kfac.solve(gradient, DAMPING), expected) < 1e-10


@pytest.mark.parametrize("size", [2, 5, 40])
@pytest.mark.parametrize("split", ["pi", "exact"])
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_the_step_by_rows_is_that_of_the_whole_gradient(stack, split, size, float64):
    model, (x, y) = _model(stack), _batch(stack, size)
    kfac = ng.KFAC(fisher="exact", damping_split=split)
    kfac.build(model)
    kfac.update(model, training.sparse(), (x, y), DAMPING)
    gradient = _gradient(model, x, y)
    fisher = Fisher(model, training.sparse(), (x, y), training=True, record_calls=True)
    found = kfac.precondition(fisher, y, tf.constant(DAMPING, tf.float64), 0)
    direction = kfac.solve(gradient, DAMPING)
    # The same batch again leaves the averages, and so the inverses, as they were.
    assert difference(FlatParameters(model.trainable_variables).flatten(found.direction), direction) < 1e-12
    assert difference(found.slope, tf.reduce_sum(gradient * direction)) < 1e-12


def test_weight_regularisers_join_gradient_and_damping(float64):
    def stack():
        return [keras.Input((5,)), layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.125))]

    (x, y), kfac = _batch(stack), ng.KFAC(fisher="exact")
    model = _model(stack)
    kfac.build(model)
    kfac.update(model, training.sparse(), (x, y), DAMPING)
    fisher = Fisher(model, training.sparse(), (x, y), training=True, record_calls=True)
    found = kfac.precondition(fisher, y, tf.constant(DAMPING, tf.float64), 0)
    blocks = KroneckerFisher(model, training.sparse(), x).blocks
    expected = _by_blocks(_dense_inverse(blocks, DAMPING + 0.25, "pi"), _gradient(model, x, y).numpy())
    assert difference(FlatParameters(model.trainable_variables).flatten(found.direction), expected) < 1e-10


def test_a_large_factor_is_inverted_by_its_leading_eigenpairs(float64):
    def stack():
        return [keras.Input((30,)), layers.Dense(4, "tanh"), layers.Dense(3)]

    model, batch = _model(stack), _batch(stack, 5)
    exact, low = (ng.KFAC(fisher="exact", invert_every=1, largest=largest, rank=8) for largest in (100, 20))
    gradient = _gradient(model, *batch)
    directions = []
    for kfac in (exact, low):
        kfac.build(model)
        for _ in range(3):
            info = kfac.update(model, training.sparse(), batch, DAMPING)
        directions.append(kfac.solve(gradient, DAMPING))
    assert "rank 8" in info.why
    # Five examples make a factor of rank five.
    assert difference(directions[1], directions[0]) < 1e-8


@pytest.mark.parametrize("kind", [Dense(9), Diagonal(9), LowRank(9, 3)], ids=lambda kind: kind.form)
def test_the_product_with_columns_is_that_with_rows(kind, float64):
    rng = np.random.default_rng(0)
    rows, columns = rng.normal(size=(12, 9)), rng.normal(size=(9, 4))
    factor = rows.T @ rows
    start = [tf.constant(np.linalg.qr(rng.normal(size=(9, 3)))[0])]
    given = np.diag(factor) if kind.form == "diagonal" else factor
    parts, _ = kind.of(tf.constant(given), tf.constant(DAMPING, tf.float64), start)
    by_rows = tf.transpose(kind.times(tf.constant(columns.T), parts))
    assert difference(kind.times_columns(tf.constant(columns), parts), by_rows) < 1e-12


def test_the_leading_eigenpairs_lengthen_no_direction_more_than_twice_too_much(float64):
    # A third of the eigenvalues below the leading ones are as large as they, and the mean of the others is small.
    factor, rank = np.diag(np.r_[np.full(12, 3.0), np.full(18, 1e-6)]), 6
    inverse = LowRank(30, rank)
    parts = [tf.constant(np.linalg.qr(np.random.default_rng(0).normal(size=(30, rank)))[0])]
    for _ in range(3):
        parts, _ = inverse.of(tf.constant(factor), tf.constant(DAMPING, tf.float64), parts)
    found = inverse.times(tf.eye(30, dtype=tf.float64), parts).numpy()
    lengthened = np.linalg.eigvals(found @ (factor + DAMPING * np.eye(30))).real
    assert 1.9 < lengthened.max() < 2.0 + 1e-9


def test_the_fixed_recipe_takes_leading_eigenpairs_and_what_is_given_is_kept():
    def stack():
        return [keras.Input((300,)), layers.Dense(4), layers.Dense(3)]

    whole, given = "dense x dense", "rank 100 x dense"
    for kfac, form in ((ng.KFAC(), whole), (ng.KFAC("fixed"), "rank 64 x dense"), (ng.KFAC("fixed", rank=100), given)):
        kfac.build(_model(stack))
        assert f"{form}, " in kfac.describe()
        assert ng.KFAC(**kfac.get_config()).periods == kfac.periods


def test_many_eigenvectors_are_announced(caplog):
    def stack():
        return [keras.Input((2100,)), layers.Dense(2)]

    for kfac in (ng.KFAC(), ng.EKFAC()):
        assert not caplog.messages
        kfac.build(_model(stack))
    assert "EKFAC decomposes" in caplog.text and "2,101 eigenvectors" in caplog.text


def test_patches_of_the_first_examples_are_enough(float64, monkeypatch):
    model, (x, y), kfac = _model(_conv), _batch(_conv), ng.KFAC(fisher="exact")
    monkeypatch.setattr(_base, "_enough", lambda size: 2 * 6)
    kfac.build(model)
    kfac.update(model, training.sparse(), (x, y), DAMPING, training=False)
    inputs, gradients = kfac.values().averages[0]
    # Six positions each.
    first = KroneckerFisher(model, training.sparse(), x[:2]).blocks[0]
    assert difference(inputs, first.inputs) < 1e-12
    assert difference(gradients, KroneckerFisher(model, training.sparse(), x).blocks[0].gradients) < 1e-12


def test_patches_are_counted_where_the_size_of_the_batch_is_not_known(monkeypatch):
    model, (x, y), sizes = _model(_conv, ng.NaturalGradient(fisher="kfac")), _batch(_conv, 20), []
    patches = convolution.patches_of
    monkeypatch.setattr(_base, "_enough", lambda size: 2 * 6)
    monkeypatch.setattr(convolution, "patches_of", lambda *given: sizes.append(given[1]) or patches(*given))
    data = tf.data.Dataset.from_tensor_slices((tf.cast(x, tf.float32), y)).batch(8)
    model.fit(data, verbose=0)
    # A slice of a batch of any size.
    assert len(sizes) == 1 and sizes[0].op.type == "StridedSlice" and sizes[0].shape[0] is None


def test_what_is_masked_is_no_patch(float64, monkeypatch):
    def stack():
        inputs = [keras.Input((4,), dtype="int32"), layers.Embedding(6, 3, mask_zero=True)]
        return [*inputs, layers.Conv1D(2, 2, padding="same"), layers.GlobalAveragePooling1D(), layers.Dense(3)]

    model, (x, y), kfac = _model(stack), (tf.constant([[1, 2, 0, 0]] * 6), tf.constant([0, 1, 2] * 2)), ng.KFAC()
    monkeypatch.setattr(_base, "_enough", lambda size: 2 * 4)
    kfac.build(model)
    kfac.update(model, training.sparse(), (x, y), DAMPING, training=False)
    expected = KroneckerFisher(model, training.sparse(), x[:2]).blocks[1].inputs
    assert difference(kfac.values().averages[1][0], expected) < 1e-12


def test_one_step_of_the_quadratic_recipe_is_scaled_to_the_minimum_of_the_exact_model(float64):
    (x, y), kfac = _batch(_mlp), ng.KFAC(fisher="exact")
    model = _model(_mlp, ng.NaturalGradient(fisher=kfac, damping=DAMPING, line_search=None))
    before, gradient = model.get_weights(), _gradient(model, x, y)
    kfac.build(model)
    kfac.update(model, training.sparse(), (x, y), DAMPING)
    d = kfac.solve(gradient, DAMPING).numpy()
    curvature = Fisher(model, training.sparse(), x).to_dense().numpy() + DAMPING * np.eye(len(d))
    expected = np.concatenate([w.ravel() for w in before]) - (gradient.numpy() @ d) / (d @ curvature @ d) * d
    model.train_on_batch(x, y)
    assert difference(training.flat(model.get_weights()), expected) < 1e-10


@pytest.mark.parametrize("limit", [None, 1e-6])
def test_steps_of_the_fixed_recipe_have_momentum_and_a_limit_before_it(limit, float64):
    (x, y), options = _batch(_mlp), {"fisher": "exact", "update_every": 1, "invert_every": 1}
    optimizer = ng.NaturalGradient(fisher=ng.KFAC("fixed", **options), damping=DAMPING, max_kl=limit)
    model = _model(_mlp, optimizer)
    kfac = ng.KFAC(**options)
    kfac.build(model)
    velocity = 0.0
    for _ in range(3):
        before, gradient = training.flat(model.get_weights()), _gradient(model, x, y).numpy()
        kfac.update(model, training.sparse(), (x, y), DAMPING)
        d = kfac.solve(gradient, DAMPING).numpy()
        shrink = 1.0 if limit is None else min(1.0, np.sqrt(2.0 * limit / (gradient @ d)) / 0.1)
        velocity = shrink * d + 0.9 * velocity
        model.train_on_batch(x, y)
        assert difference(training.flat(model.get_weights()), before - 0.1 * velocity) < 1e-10
    assert limit is None or shrink < 1.0


def test_damping_starts_at_a_multiple_of_the_mean_eigenvalue(float64):
    (x, y), adaptation = _batch(_mlp), ng.LevenbergMarquardt(2.0, relative=True)
    model = _model(_mlp, ng.NaturalGradient(fisher=ng.KFAC(fisher="exact"), damping=adaptation))
    mean = float(KroneckerFisher(model, training.sparse(), x).trace()) / model.count_params()
    model.train_on_batch(x, y)
    assert difference(float(model.optimizer.damping), 2.0 * mean) < 1e-12


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_eigenvalues_of_ekfac_are_second_moments_in_the_eigenbasis(stack, float64):
    model, (x, y) = _model(stack), _batch(stack)
    ekfac = ng.EKFAC(fisher="empirical", update_every=1, invert_every=10)
    ekfac.build(model)
    ekfac.update(model, training.sparse(), (x, y), DAMPING, training=False)
    # One more batch in the same basis: the products of the eigenvalues and the first one count as one each.
    gradient = _gradient(model, x, y)
    found = ekfac.solve(gradient, DAMPING)
    blocks = KroneckerFisher(model, training.sparse(), (x, y), fisher="empirical").blocks
    parts, expected = [], []
    for k in range(len(x)):
        parts.append(_gradient(model, x[k : k + 1], y[k : k + 1]).numpy() / np.sqrt(len(x)))
    start = 0
    for block in blocks:
        if block.diagonal is not None:
            size = len(block.diagonal)
            expected.append(gradient[start : start + size] / (block.diagonal + DAMPING))
        else:
            a, g = block.inputs.numpy(), block.gradients.numpy()
            size, is_table, order = len(a) * len(g), a.ndim == 1, _order_of(block)
            (va, ua), (vg, ug) = (a, np.eye(len(a))) if is_table else np.linalg.eigh(a), np.linalg.eigh(g)
            s = np.maximum(va, 0.0)[:, None] * np.maximum(vg, 0.0)
            if not is_table:
                own = [p[start : start + size][order].reshape(len(a), len(g)) for p in parts]
                s = 0.5 * s + 0.5 * sum((ua.T @ v @ ug) ** 2 for v in own)
            v = gradient.numpy()[start : start + size][order].reshape(len(a), len(g))
            expected.append((ua @ ((ua.T @ v @ ug) / (s + DAMPING)) @ ug.T).ravel()[np.argsort(order)])
        start += size
    assert difference(found, np.concatenate(expected)) < 1e-10


def test_inverses_are_damped_more_where_a_factor_is_not_positive_definite(float64):
    from tf_natgrad.preconditioners._inverses import Dense

    factor = tf.linalg.diag(tf.constant([1.0, -1e-3, 2.0], tf.float64))
    (inverse,), raised = Dense(3).of(factor, tf.constant(1e-4, tf.float64), [])
    assert int(raised) == 2 and difference(inverse, np.linalg.inv(factor.numpy() + 1e-2 * np.eye(3))) < 1e-12
