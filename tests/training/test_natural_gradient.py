"""One direction: right in every mode, refused with its own message on bad input, never touching the weights."""

import itertools
import sys

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import difference

import tf_natgrad as ng
from tf_natgrad.parameters import FlatParameters

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-8


def _direction(problem, **kwargs):
    return ng.natural_gradient(problem.model, problem.loss, problem.x, problem.y, problem.weight, **kwargs)


def _expected(problem, damping):
    return np.linalg.solve(problem.oracle.matrix + damping * np.eye(problem.size), problem.oracle.gradient)


@pytest.mark.parametrize("name", ["mlp", "softmax_in_model", "binary", "regression", "cnn", "sequence", "shared_layer"])
def test_direction_is_the_dense_one(name):
    problem = cases.fresh(name)
    before = problem.flat.read().numpy()
    value, _ = _direction(problem, damping=0.1, training=False)
    assert difference(value, _expected(problem, 0.1)) < TOLERANCE
    assert np.array_equal(problem.flat.read(), before)


@pytest.mark.parametrize("solver", ["auto", "gram", "cg", "svd", ng.solvers.ConjugateGradient(rtol=1e-12)])
def test_solver_by_name_or_object(solver):
    problem = cases.fresh("softmax_regression")
    value, info = _direction(problem, solver=solver)
    expected = {"auto": "Gram", "gram": "Gram", "svd": "SVDPseudoInverse"}
    assert info.solver == expected.get(solver, "ConjugateGradient")
    assert difference(value, _expected(problem, 0.1)) < (1e-4 if solver == "cg" else TOLERANCE)


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("solver", ["gram", "cg", "svd"])
def test_inside_a_function(solver, damping):
    problem = cases.fresh("softmax_regression")

    @tf.function(autograph=False)
    def inside(x, y, weight):
        arguments = {"damping": damping, "solver": solver}
        return ng.natural_gradient(problem.model, problem.loss, x, y, weight, **arguments)[0]

    eager, _ = _direction(problem, damping=damping, solver=solver)
    assert difference(inside(problem.x, problem.y, problem.weight), eager) < 1e-10


def test_inside_a_function_with_autograph_and_a_training_loop():
    problem, other = cases.fresh("mlp"), cases.fresh("mlp")

    @tf.function
    def train(x, y, weight):
        for _ in tf.range(3):
            step, _ = ng.natural_gradient(problem.model, problem.loss, x, y, weight, damping=0.1)
            problem.flat.assign(problem.flat.read() - 0.5 * step)

    train(problem.x, problem.y, problem.weight)
    for _ in range(3):
        other.flat.assign(other.flat.read() - 0.5 * _direction(other, damping=0.1)[0])
    assert difference(problem.flat.read(), other.flat.read()) < TOLERANCE


def _traces(layer, monkeypatch):
    """Fills up with one entry per graph that a layer is traced into."""
    traces, call = [], layer.call

    def counting(*args, **kwargs):
        # The look at the first batch is eager.
        traces.extend([] if tf.executing_eagerly() else [1])
        return call(*args, **kwargs)

    monkeypatch.setattr(layer, "call", counting)
    return traces


def test_no_retracing_on_batches_of_the_same_shape(monkeypatch):
    problem = cases.fresh("mlp")
    traces = _traces(problem.model.layers[0], monkeypatch)
    for step in range(4):
        _direction(problem, damping=0.1 * (step + 1))
        problem.x = problem.x + 0.1
        problem.flat.assign(problem.flat.read() * 0.9)
    assert len(traces) == 1


def test_a_new_shape_or_solver_is_traced_anew(monkeypatch):
    problem = cases.fresh("softmax_regression")
    traces = _traces(problem.model.layers[0], monkeypatch)
    _direction(problem)
    _direction(problem, solver="svd")
    ng.natural_gradient(problem.model, problem.loss, problem.x[:3], problem.y[:3])
    assert len(traces) == 3


def test_equal_configurations_share_a_trace(monkeypatch):
    problem = cases.fresh("softmax_regression")
    traces = _traces(problem.model.layers[0], monkeypatch)
    scale = tf.constant(0.5, tf.float64)
    for _ in range(3):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ng.natural_gradient(problem.model, loss, problem.x, problem.y)
    assert len(traces) == 1
    for _ in range(3):
        inline = ng.solvers.ConjugateGradient(preconditioner=lambda r: scale * r)
        ng.natural_gradient(problem.model, problem.loss, problem.x, problem.y, solver=inline)
    assert len(traces) == 2
    smoothed = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    ng.natural_gradient(problem.model, smoothed, problem.x, problem.y)
    assert len(traces) == 3


def test_what_a_function_closes_over_tells_it_from_others():
    problem = cases.fresh("softmax_regression")
    found = []
    for factor in (1.0, 1e-3):
        scale = tf.constant(factor, tf.float64)
        solver = ng.solvers.ConjugateGradient(preconditioner=lambda r, scale=scale: scale * r, rtol=1e-10)
        one_step = ng.solvers.ConjugateGradient(preconditioner=lambda r: r * scale, max_iterations=2)  # noqa: B023
        for each in (solver, one_step):
            found.append(ng.natural_gradient(problem.model, problem.loss, problem.x, problem.y, solver=each)[1])
    assert len({id(info) for info in found}) == 4
    kept = problem.model._tf_natgrad_directions._functions
    assert len(kept) == 4


def test_what_is_kept_of_a_model_is_bounded(monkeypatch, caplog):
    problem = cases.fresh("softmax_regression")
    monkeypatch.setattr(sys.modules["tf_natgrad.training.natural_gradient"], "_KEPT", 3)
    for rtol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        _direction(problem, solver=ng.solvers.ConjugateGradient(rtol=rtol))
    kept = problem.model._tf_natgrad_directions
    assert len(kept._functions) == 3
    for examples in range(1, 6):
        ng.natural_gradient(problem.model, problem.loss, problem.x[:examples], problem.y[:examples])
    assert len(kept._plans) == 3


def test_later_weights_are_seen():
    problem = cases.fresh("mlp")
    first, _ = _direction(problem)
    problem.flat.assign(problem.flat.read() + 0.3)
    second, _ = _direction(problem)
    fresh_problem = cases.fresh("mlp")
    fresh_problem.flat.assign(problem.flat.read())
    assert difference(second, _expected(fresh_problem, 0.1)) < TOLERANCE
    assert difference(first, second) > 1e-3


def test_freezing_a_layer_is_seen():
    problem = cases.fresh("mlp")
    assert _direction(problem)[0].shape == (64,)
    problem.model.layers[0].trainable = False
    value, _ = _direction(problem)
    assert difference(value, _expected(problem, 0.1)) < TOLERANCE and value.shape == (39,)


def test_two_losses_on_one_model():
    problem = cases.fresh("softmax_regression")
    other = ng.natural_gradient(problem.model, "mse", problem.x, np.zeros((5, 3)))[0]
    assert difference(_direction(problem)[0], _expected(problem, 0.1)) < TOLERANCE
    assert difference(_direction(problem)[0], other) > 1e-3


def test_batch_norm_statistics_move_in_training_mode_only(rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(3)])
    x, loss = rng.normal(2.0, 1.0, size=(5, 4)), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ng.natural_gradient(model, loss, x, np.zeros(5, int), training=False)
    assert not np.any(model.layers[0].moving_mean)
    _, info = ng.natural_gradient(model, loss, x, np.zeros(5, int))
    assert difference(model.layers[0].moving_mean, 0.01 * x.mean(0)) < TOLERANCE
    assert info.solver == "SVDPseudoInverse" and "BatchNormalization in training mode" in info.why


# Limits and laws.


def test_small_damping_approaches_the_pseudo_inverse():
    problem = cases.singular_digits()
    undamped, _ = _direction(problem, damping=0, solver=ng.solvers.Gram(1e-10))
    errors = [difference(_direction(problem, damping=d)[0], undamped) for d in (1e-6, 1e-8)]
    assert errors[1] < 1e-3 and errors[0] / errors[1] == pytest.approx(100, rel=0.1)


def test_large_damping_approaches_the_scaled_gradient():
    problem = cases.shared("mlp")
    errors = [difference(d * _direction(problem, damping=d)[0], problem.oracle.gradient) for d in (1e4, 1e6)]
    assert errors[1] < 1e-5 and errors[0] / errors[1] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("penalised", ["kernel", "kernel and bias"])
@pytest.mark.parametrize("solver", ["gram", "svd", "cg", "cholesky", "auto"])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_regularisers_enter_gradient_and_curvature(damping, solver, penalised, rng):
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    options = {"kernel_regularizer": keras.regularizers.L2(0.0625)}
    if "bias" in penalised:
        options["bias_regularizer"] = keras.regularizers.L2(0.25)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, bias_initializer="normal", **options)])
    if solver == "gram" and damping == 0.0 and "bias" not in penalised:
        with pytest.raises(ValueError, match=r"`solver`.*positive `damping`.*'auto'"):
            ng.natural_gradient(model, keras.losses.MeanSquaredError(), x, y, damping=0.0, solver="gram")
        return
    loss = keras.losses.MeanSquaredError()
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        total = loss(y, model(x)) + tf.add_n(model.losses)
    flat = FlatParameters(model.trainable_variables)
    gradient = flat.flatten(tape.gradient(total, variables)).numpy()
    matrix = ng.operators.Fisher(model, loss, x).to_dense().numpy() + damping * np.eye(8)
    matrix += np.diag([0.125] * 6 + [0.5 if "bias" in penalised else 0.0] * 2)
    solver = ng.solvers.ConjugateGradient(rtol=1e-12) if solver == "cg" else solver
    value, _ = ng.natural_gradient(model, loss, x, y, damping=damping, solver=solver)
    assert difference(value, np.linalg.solve(matrix, gradient)) < TOLERANCE


def test_one_undamped_step_solves_least_squares(rng):
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    flat = FlatParameters(model.trainable_variables)
    flat.assign(flat.read() - ng.natural_gradient(model, "mse", x, y, damping=0)[0])
    solution = np.linalg.lstsq(np.hstack([x, np.ones((20, 1))]), y, rcond=None)[0]
    assert difference(flat.read(), solution.reshape(-1)) < TOLERANCE


def test_full_batch_steps_on_softmax_regression_are_fisher_scoring(rng):
    x = rng.normal(size=(60, 3))
    y = np.argmax(x + 1.5 * rng.gumbel(size=(60, 3)), -1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, kernel_initializer="zeros")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    flat, norms = FlatParameters(model.trainable_variables), []
    for _ in range(12):
        step, _ = ng.natural_gradient(model, loss, x, y, damping=0, solver=ng.solvers.SVDPseudoInverse(1e-10))
        flat.assign(flat.read() - step)
        fisher = ng.operators.Fisher(model, loss, x)
        norms.append(np.linalg.norm(fisher.factor_transpose_matvec(fisher.loss_gradient(y).u)))
    assert norms[-1] < 1e-12
    # Quadratic: the exponent doubles at each step until rounding is reached.
    falling = [n for n in norms if n > 1e-13]
    assert any(b < 10 * a**2 for a, b in itertools.pairwise(falling) if a < 1e-2)


def test_squared_residual_shrinks_by_the_step_size(rng):
    x, y = rng.normal(size=(4, 6)), rng.normal(size=(4, 2))
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    flat, before = FlatParameters(model.trainable_variables), model(x) - y
    flat.assign(flat.read() - 0.3 * ng.natural_gradient(model, "mse", x, y, damping=0)[0])
    assert difference(model(x) - y, 0.7 * before.numpy()) < TOLERANCE


# Bad input: its own message, weights unchanged.


def _with(problem, **changes):
    arguments = {"loss": problem.loss, "x": problem.x, "y": problem.y, "sample_weight": None, **changes}
    return ng.natural_gradient(problem.model, **arguments)


def _poisoned(array, value):
    array = array.copy()
    array.flat[3] = value
    return array


BAD = {
    "nan_input": (lambda p: {"x": _poisoned(p.x, np.nan)}, ValueError, "`x`: received NaN or infinite values"),
    "infinite_input": (lambda p: {"x": _poisoned(p.x, np.inf)}, ValueError, "`x`: received NaN or infinite values"),
    "empty": (lambda p: {"x": p.x[:0], "y": p.y[:0]}, ValueError, "`x`: received an empty batch"),
    "scalar_input": (lambda p: {"x": 1.0}, ValueError, "`x`: received a scalar"),
    "wrong_features": (lambda p: {"x": p.x[:, :3]}, ValueError, "(?i)shape|incompatible"),
    "label_too_large": (lambda p: {"y": p.y + 3}, ValueError, "`y`: received a label out of range.*0 to 2"),
    "label_negative": (lambda p: {"y": p.y - 3}, ValueError, "`y`: received a label out of range"),
    "label_fraction": (lambda p: {"y": p.y + 0.5}, ValueError, "`y`: received a label out of range"),
    "label_nan": (lambda p: {"y": p.y * np.nan}, ValueError, "`y`: received a label out of range"),
    "too_few_labels": (lambda p: {"y": p.y[:4]}, ValueError, "`y`"),
    "one_hot_labels": (lambda p: {"y": np.eye(3)[p.y]}, ValueError, "`y`.*CategoricalCrossentropy"),
    "weight_negative": (lambda p: {"sample_weight": -np.ones(5)}, ValueError, "`sample_weight`: received a negative"),
    "weight_nan": (lambda p: {"sample_weight": np.full(5, np.nan)}, ValueError, "`sample_weight`.*NaN"),
    "weight_infinite": (lambda p: {"sample_weight": np.full(5, np.inf)}, ValueError, "`sample_weight`.*infinite"),
    "too_few_weights": (lambda p: {"sample_weight": np.ones(4)}, ValueError, "`sample_weight`"),
    "weights_per_output": (lambda p: {"sample_weight": np.ones((5, 3))}, ValueError, "`sample_weight`.*per example"),
    "damping_negative": (lambda p: {"damping": -0.1}, ValueError, "`damping`: received -0.1; expected a number >= 0"),
    "damping_nan": (lambda p: {"damping": float("nan")}, ValueError, "`damping`"),
    "damping_text": (lambda p: {"damping": "0.1"}, TypeError, "`damping`"),
    "solver_unknown": (lambda p: {"solver": "lu"}, ValueError, "`solver`: received 'lu'"),
    "solver_type": (lambda p: {"solver": 3}, TypeError, "`solver`"),
    "loss_unknown": (lambda p: {"loss": "huber"}, ValueError, "`loss`: received 'huber'"),
    "loss_none": (lambda p: {"loss": None}, ValueError, "`loss`: received None"),
}


@pytest.fixture(scope="module")
def abused(float64):
    return cases.fresh("mlp")


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_is_refused_and_leaves_the_weights(name, abused):
    changes, error, match = BAD[name]
    before = abused.flat.read().numpy()
    with pytest.raises(error, match=match):
        _with(abused, **changes(abused))
    assert np.array_equal(abused.flat.read(), before)


def test_after_all_that_the_model_still_works(abused):
    with pytest.raises(ValueError):
        _with(abused, x=abused.x * np.nan)
    assert difference(_with(abused)[0], _with(cases.fresh("mlp"))[0]) == 0.0


def test_negative_damping_as_a_tensor_is_refused(abused):
    with pytest.raises(ValueError, match=r"`damping`"):
        _with(abused, damping=tf.constant(-0.1, tf.float64))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_targets_that_are_not_finite_are_refused(value):
    problem = cases.fresh("regression")
    before = problem.flat.read().numpy()
    with pytest.raises(ValueError, match=r"`y`: received NaN or infinite values"):
        _with(problem, y=_poisoned(problem.y, value))
    assert np.array_equal(problem.flat.read(), before)


@pytest.mark.parametrize("solver", ["gram", "svd", "cg"])
def test_weights_that_are_not_finite_are_reported(solver):
    problem = cases.fresh("softmax_regression")
    problem.flat.assign(np.full(problem.size, np.nan))
    with pytest.raises(ValueError, match=r"not finite"):
        _with(problem, solver=solver)


def test_several_outputs_are_refused(rng):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [keras.layers.Dense(2)(inputs), keras.layers.Dense(3)(inputs)])
    before = FlatParameters(model.trainable_variables).read().numpy()
    with pytest.raises(TypeError, match=r"`model`: received 2 outputs; expected one output tensor"):
        ng.natural_gradient(model, "mse", rng.normal(size=(5, 4)), np.zeros((5, 2)))
    assert np.array_equal(FlatParameters(model.trainable_variables).read(), before)


def test_a_model_without_weights_is_refused(rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.trainable = False
    with pytest.raises(ValueError, match=r"`variables`: received none.*unfreeze"):
        ng.natural_gradient(model, "mse", rng.normal(size=(5, 4)), np.zeros((5, 3)))


def test_activity_regularisers_are_refused(rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activity_regularizer="l2")])
    with pytest.raises(ValueError, match=r"`model`: received activity regularisers.*kernel_regularizer"):
        ng.natural_gradient(model, "mse", rng.normal(size=(5, 4)), np.zeros((5, 3)))


@pytest.mark.parametrize("change", ["x", "y", "sample_weight"])
def test_bad_values_inside_a_function_fail_there(change):
    problem = cases.fresh("softmax_regression")
    bad = {"x": problem.x * np.nan, "y": problem.y + 3, "sample_weight": -problem.weight}

    @tf.function(autograph=False)
    def inside(x, y, sample_weight):
        return ng.natural_gradient(problem.model, problem.loss, x, y, sample_weight)[0]

    good = {"x": problem.x, "y": problem.y, "sample_weight": problem.weight}
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{change}`"):
        inside(**{**good, change: bad[change]})
