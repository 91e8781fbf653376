"""The optimizer: its options against Keras's own, precision, several optimizers in one model, configuration."""

import cases
import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
import training
from keras import layers
from training import MODES, RUNS, batch, cg, compiled, fit, network, sparse, trained

import tf_natgrad as ng

X, Y = batch()


def _directions(model, damping):
    direction, _ = ng.natural_gradient(model, sparse(), X, Y, damping=damping, solver="gram")
    return ng.parameters.FlatParameters(model.trainable_variables).unflatten(direction)


OPTIONS = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.3},
    "clipvalue": {"clipvalue": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "weight_decay": {"weight_decay": 0.2},
    "ema": {"use_ema": True, "ema_momentum": 0.7},
    "ema_overwriting": {"use_ema": True, "ema_momentum": 0.7, "ema_overwrite_frequency": 2},
    "schedule": {"learning_rate": keras.optimizers.schedules.PiecewiseConstantDecay([1, 2], [0.5, 0.2, 0.1])},
    "callable": {"learning_rate": lambda: 0.25},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_gradient_descent_given_the_direction(name):
    options = {"learning_rate": 0.5} | OPTIONS[name]
    model = compiled(network(), training.plain(damping=0.1, solver="gram", **options))
    reference, sgd = network(kind=keras.Sequential), keras.optimizers.SGD(**options)
    for _ in range(4):
        model.train_on_batch(X, Y)
        sgd.apply(_directions(reference, 0.1), reference.trainable_variables)
    for mine, theirs in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    averages = [getattr(o, "_model_variables_moving_average", []) for o in (model.optimizer, sgd)]
    assert len(averages[0]) == (4 if name.startswith("ema") else 0)
    for mine, theirs in zip(*averages, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("plain", "callable")])
def test_options_have_an_effect(name):
    reference, _ = trained(optimizer=training.plain(0.5))
    model, _ = trained(optimizer=training.plain(**{"learning_rate": 0.5} | OPTIONS[name]))
    assert not training.same_weights(model.get_weights(), reference.get_weights())


@pytest.mark.parametrize("rate", [1, np.float32(1.0), np.int64(1)])
def test_a_learning_rate_may_be_any_number(rate):
    model, _ = trained(optimizer=training.plain(rate))
    reference, _ = trained(optimizer=training.plain(1.0))
    assert float(model.optimizer.learning_rate) == 1.0
    assert training.same_weights(model.get_weights(), reference.get_weights())


def test_assigning_the_damping_takes_effect_without_a_new_trace():
    counting = training.Counting()
    model = compiled(network([counting, *training.mlp()]))
    fit(model, X, Y)
    traced, weights = counting.calls, model.get_weights()
    kl = []
    for damping in (0.1, 10.0):
        model.set_weights(weights)
        model.optimizer.damping = damping
        history = fit(model, X, Y)
        kl.append(history["kl"][0])
        assert history["damping"] == [np.float32(damping)]
    assert kl[1] < 0.1 * kl[0]
    assert counting.calls == traced


def test_assigning_the_learning_rate_takes_effect_without_a_new_trace():
    counting = training.Counting()
    model = compiled(network([counting, *training.mlp()]))
    fit(model, X, Y)
    traced, weights = counting.calls, model.get_weights()
    model.optimizer.learning_rate = 0.0
    fit(model, X, Y)
    assert training.same_weights(weights, model.get_weights()) and counting.calls == traced


@pytest.mark.parametrize("kind", ["map", "function"])
@pytest.mark.parametrize(("mode", "solver"), [*RUNS, ("graph", "gram")])
def test_embeddings_may_be_left_to_adam(kind, mode, solver, double):
    tokens, labels = np.random.default_rng(2).integers(0, 6, (12, 3)), Y
    solver = cg(1e-12) if solver == "cg" else solver
    natural = training.plain(0.5, damping=0.1, solver=solver)
    adam = keras.optimizers.Adam(0.01)
    if kind == "map":
        chosen = keras.optimizers.OptimizerMap(natural, {".*embedding.*": adam})
    else:

        def chosen(variable):
            return adam if "embedding" in variable.path else natural

    stack = [layers.Embedding(6, 2, embeddings_regularizer="l2"), layers.Flatten(), layers.Dense(3)]
    model = compiled(network(stack, (3,), "int32"), keras.optimizers.MultiOptimizer(chosen), mode=mode)
    gradient = training.keras_gradient(model, tokens, labels)
    matrix = oracle.dense_problem(model, tokens, labels, None, "categorical").matrix
    table = model.trainable_variables[0]
    size = int(np.prod(table.shape))
    block = matrix[size:, size:] + 0.1 * np.eye(len(matrix) - size)
    twin = keras.Variable(table.numpy())
    reference = keras.optimizers.Adam(0.01)
    reference.apply([tf.reshape(gradient[:size], table.shape)], [twin])
    moved = training.changes(model, lambda: fit(model, tokens, labels, batch_size=12))
    np.testing.assert_allclose(table.numpy(), twin.numpy(), rtol=1e-8)
    assert oracle.difference(training.flat(moved[1:]), -0.5 * np.linalg.solve(block, gradient[size:])) < 1e-8
    assert oracle.difference(adam.variables[2], reference.variables[2]) < 1e-8


def test_two_natural_gradients_in_one_model_are_refused():
    chosen = keras.optimizers.OptimizerMap(training.plain(), {".*bias": training.plain()})
    model = network()
    with pytest.raises(ValueError, match="one, which couples all"):
        fit(compiled(model, keras.optimizers.MultiOptimizer(chosen)), X, Y)


def _step_in(policy, optimizer=None, mode="graph", stack=None):
    stack = stack or (lambda: [layers.Dense(5, activation="tanh", dtype=policy), layers.Dense(3, dtype=policy)])
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(network(stack), optimizer or training.plain(0.5, solver="cg"), mode=mode)
        moved = training.changes(model, lambda: fit(model, X, Y, batch_size=12))
    finally:
        keras.config.set_dtype_policy("float32")
    return model, training.flat(moved)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_float16", 0.01), ("mixed_bfloat16", 0.08)])
def test_mixed_precision_takes_the_step_of_single_precision(policy, tolerance, mode):
    model, moved = _step_in(policy, mode=mode)
    assert model.layers[0].compute_dtype == policy.removeprefix("mixed_")
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled is (policy == "mixed_float16")
    assert 0.0 < oracle.difference(moved, _step_in("float32", mode=mode)[1]) < tolerance


@pytest.mark.parametrize("solver", ["cg", "gram"])
def test_the_loss_scale_does_not_change_the_step(solver):
    def optimizer(scale):
        inner = training.plain(0.5, solver=solver, clipnorm=0.4, weight_decay=0.01)
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=scale)

    models = [_step_in("mixed_float16", optimizer(2.0**power))[0] for power in (0, 8, 20)]
    # There is no loss that is scaled, nor a reason to change the scale.
    assert [float(m.optimizer.dynamic_scale) for m in models] == [1.0, 2.0**8, 2.0**20]
    for model in models[1:]:
        assert training.same_weights(models[0].get_weights(), model.get_weights())


def test_other_optimizers_train_under_a_loss_scale_too():
    """Keras wraps a `MultiOptimizer` in a loss scale where the policy is float16."""
    natural, sgd = training.plain(0.5, solver="cg"), keras.optimizers.SGD(0.1)
    chosen = keras.optimizers.OptimizerMap(natural, {".*bias": sgd})
    model, _ = _step_in("mixed_float16", keras.optimizers.MultiOptimizer(chosen))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert int(sgd.iterations) == int(natural.iterations) == int(model.optimizer.iterations) == 1
    for variable in model.trainable_variables:
        assert np.any(variable.numpy()) or "bias" not in variable.path


def test_a_loss_scale_factor_does_not_change_the_step():
    moved = [_step_in("float32", training.plain(0.5, loss_scale_factor=factor))[1] for factor in (None, 1024.0)]
    assert np.array_equal(*moved)


@pytest.mark.parametrize("penalised", ["kernel_regularizer", "bias_regularizer"])
@pytest.mark.parametrize("solver", ["gram", "cg", "svd"])
def test_weight_regularisers_enter_gradient_and_curvature(penalised, solver, double):
    x, y = batch(dtype="float64")
    stack = [layers.Dense(5, activation="tanh"), layers.Dense(3, **{penalised: keras.regularizers.L2(0.125)})]
    solver = cg(1e-12) if solver == "cg" else solver
    model = compiled(network(stack), training.plain(1.0, damping=0.3, solver=solver))
    model.layers[1].bias.assign([0.5, -0.3, 0.2])
    fisher = oracle.dense_problem(model, x, y, None, "categorical")
    penalty = np.zeros_like(fisher.gradient)
    part = slice(25, 40) if penalised == "kernel_regularizer" else slice(40, 43)
    penalty[part] = 0.25 * training.flat(model.get_weights())[part]
    curvature = np.full(43, 0.3)
    curvature[part] += 0.25
    expected = np.linalg.solve(fisher.matrix + np.diag(curvature), fisher.gradient + penalty)
    moved = training.changes(model, lambda: fit(model, x, y, batch_size=12))
    assert np.linalg.norm(penalty) > 1e-2
    assert oracle.difference(training.flat(moved), -expected) < 1e-8


SOLVERS = (
    "auto",
    "cg",
    "gram",
    "svd",
    ng.solvers.Gram(1e-4),
    ng.solvers.SVDPseudoInverse(1e-3),
    ng.solvers.ConjugateGradient(rtol=1e-2, atol=1e-9, max_iterations=7, patience=3),
)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_configuration_round_trip(solver):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    options = {"clipnorm": 1.5, "weight_decay": 0.01, "use_ema": True, "ema_momentum": 0.9}
    options |= {"momentum": 0.5, "warm_start": 0.75, "max_kl": 0.25, "micro_batch_size": 4}
    options |= {"line_search": ng.LineSearch(3, shrink=0.5)}
    optimizer = ng.NaturalGradient(schedule, damping=0.25, solver=solver, on_nonfinite="skip", name="mine", **options)
    optimizer.damping = 0.125
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is ng.NaturalGradient
    assert again.get_config() == optimizer.get_config()
    assert again.solver == optimizer.solver == ng.solvers.get(solver)
    assert float(again.damping) == 0.125 and again.on_nonfinite == "skip" and again.clipnorm == 1.5
    assert keras.optimizers.get(config).get_config() == optimizer.get_config()


BAD = [
    ({"damping": -1.0}, ValueError, "`damping`: received -1.0"),
    ({"damping": float("nan")}, ValueError, "`damping`"),
    ({"damping": "much"}, TypeError, "`damping`"),
    ({"learning_rate": float("nan")}, ValueError, "`learning_rate`"),
    ({"learning_rate": -0.1}, ValueError, "`learning_rate`"),
    ({"solver": "lu"}, ValueError, "one of 'auto', 'cg', 'cholesky', 'gram', 'svd'"),
    ({"solver": 3}, TypeError, "`solver`"),
    ({"on_nonfinite": "ignore"}, ValueError, "one of 'raise', 'skip'"),
    ({"gradient_accumulation_steps": 4}, ValueError, "use a larger batch"),
    ({"momentum": 1.5}, ValueError, "`momentum`: received 1.5"),
    ({"momentum": "heavy"}, ValueError, "`momentum`.*'optimal'"),
    ({"momentum": "optimal", "micro_batch_size": 2}, ValueError, "warm_start"),
    ({"fisher": "mc", "micro_batch_size": 2}, ValueError, "`micro_batch_size`"),
    ({"ema_overwrite_frequency": 2, "use_ema": True, "line_search": ng.LineSearch()}, ValueError, "line_search=None"),
    ({"momentum": 0.9, "damping": 0.0}, ValueError, "damping"),
    ({"damping": {"initial": -1.0}}, ValueError, "`initial`"),
    ({"line_search": 3}, TypeError, "`line_search`"),
    ({"line_search": {"shrink": 1.0}}, ValueError, "`shrink`"),
    ({"fisher": "empirical"}, ValueError, "one of .exact., .mc."),
    ({"micro_batch_size": 0}, ValueError, "`micro_batch_size`"),
    ({"max_kl": 0.0}, ValueError, "`max_kl`"),
    ({"clipnorm": 1.0, "clipvalue": 1.0}, ValueError, "clip"),
]


@pytest.mark.parametrize(("options", "error", "text"), BAD, ids=lambda value: str(value)[:40])
def test_bad_options_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        training.plain(**options)


def test_a_bad_damping_is_refused_later_too():
    optimizer = training.plain(damping=0.5)
    with pytest.raises(ValueError, match="damping"):
        optimizer.damping = -1.0
    assert float(optimizer.damping) == 0.5


def test_a_learning_rate_that_is_no_longer_finite_is_never_applied():
    model, _ = trained()
    before = model.get_weights()
    model.optimizer.learning_rate = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        fit(model, X, Y)
    assert training.same_weights(before, model.get_weights())


@pytest.mark.parametrize("wrapper", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_plain_gradients_are_refused(wrapper):
    variable = keras.Variable([1.0, 2.0])
    with pytest.raises(ValueError, match="natural_gradient_model"):
        wrapper(training.plain()).apply([tf.ones([2])], [variable])
    assert variable.numpy().tolist() == [1.0, 2.0]


def test_state_is_kept_in_float64(double):
    assert float(training.plain(damping=0.1).damping) == 0.1


def test_training_with_a_function_or_name_as_loss():
    histories = []
    for loss in ("mse", "mean_squared_error", keras.losses.mean_squared_error, keras.losses.MeanSquaredError()):
        model = compiled(network(), loss=loss)
        histories.append(fit(model, X, np.eye(3, dtype="float32")[Y], epochs=2)["loss"])
    assert histories[0][1] < histories[0][0]
    assert all(history == histories[0] for history in histories)


def test_cases_restore_the_precision():
    with cases.precision("float64"):
        assert keras.config.floatx() == "float64"
    assert keras.config.floatx() == "float32"


def test_max_kl_shortens_a_step_to_the_limit_and_leaves_shorter_ones_alone():
    logs, moved = {}, {}
    for limit in (None, 1e-4, 1e3):
        model = training.compiled(training.network(), training.plain(0.5, damping=0.1, max_kl=limit))
        before = model.get_weights()
        logs[limit] = model.train_on_batch(*training.batch(), return_dict=True)
        moved[limit] = np.concatenate([np.ravel(a - b) for a, b in zip(model.get_weights(), before, strict=True)])
    assert logs[None]["kl"] > 1e-3 and np.isclose(logs[1e-4]["kl"], 1e-4)
    shrunk = np.sqrt(1e-4 / logs[None]["kl"]) * moved[None]
    assert np.allclose(moved[1e-4], shrunk, rtol=1e-3, atol=1e-6) and np.array_equal(moved[1e3], moved[None])
