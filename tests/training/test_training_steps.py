"""The options of a step in `fit`: damping that adapts, trust region, line search, momentum, micro-batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import training
from keras import layers
from sklearn.datasets import load_digits
from training import batch, cg, compiled, fit, network, sparse, trained

import tf_natgrad as ng
from tf_natgrad.parameters import FlatParameters


def _dense(model, x, y):
    """Fisher, gradient and loss of a batch in float64, independently of the step."""
    flat = FlatParameters(model.trainable_variables)
    fisher = ng.operators.Fisher(model, sparse(), x).to_dense(method="hessians").numpy()
    with tf.GradientTape() as tape:
        loss = sparse()(y, model(x))
    gradient = flat.flatten(tape.gradient(loss, flat.tensors)).numpy()
    return flat, fisher, gradient, float(loss)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_momentum_pulls_towards_the_last_direction(mode, double):
    rate, damping, mu = 0.5, 0.05, 0.8
    x, y = batch(dtype="float64")
    model = compiled(
        network(),
        training.plain(rate, damping=damping, momentum=mu, solver=cg(1e-12) if mode == "xla" else "gram"),
        mode=mode,
    )
    last = 0.0
    for _ in range(3):
        flat, fisher, gradient, _ = _dense(model, x, y)
        expected = np.linalg.solve(fisher + damping * np.eye(flat.size), gradient + damping * mu * last)
        before = flat.read().numpy()
        model.train_on_batch(x, y)
        np.testing.assert_allclose(before - flat.read().numpy(), rate * expected, rtol=1e-8, atol=1e-11)
        last = expected


def test_momentum_with_one_solver_is_that_with_another(double):
    data = batch(dtype="float64")
    solvers = ("gram", "svd", cg(1e-13))
    losses = [trained(optimizer=training.plain(0.5, momentum=0.7, solver=s), data=data)[1]["loss"] for s in solvers]
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-9)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        *((solver, {}) for solver in ("gram", "svd", cg(1e-3))),
        *(("gram", options) for options in ({"momentum": 0.9}, {"fisher": "mc"}, {"momentum": "optimal"})),
        *((cg(0.1), options) for options in ({"momentum": 0.9}, {"warm_start": 0.9}, {"fisher": "mc"})),
    ],
    ids=str,
)
def test_predicted_and_actual_decrease_are_those_of_the_batch(solver, options, double):
    """`-g.s - 1/2 s F s` and the difference of two losses, whichever way the step was found."""
    damping = 0.05
    x, y = batch(dtype="float64")
    model = compiled(network(), training.plain(0.7, damping=ng.LevenbergMarquardt(damping), solver=solver, **options))
    for _ in range(3):
        flat, fisher, gradient, loss = _dense(model, x, y)
        before = flat.read().numpy()
        logs = model.train_on_batch(x, y, return_dict=True)
        step = flat.read().numpy() - before
        predicted = -(gradient @ step) - 0.5 * step @ fisher @ step
        assert logs["predicted_decrease"] == pytest.approx(predicted, rel=1e-7)
        assert logs["actual_decrease"] == pytest.approx(loss - _dense(model, x, y)[3], rel=1e-7)
        assert logs["reduction_ratio"] == pytest.approx(logs["actual_decrease"] / logs["predicted_decrease"], rel=1e-7)


def test_the_penalty_is_part_of_the_decrease(double):
    x, y = batch(dtype="float64")
    stack = [layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))]
    model = compiled(network(stack), training.plain(0.7, damping=ng.LevenbergMarquardt(0.1)))
    before = model.evaluate(x, y, verbose=0)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["actual_decrease"] == pytest.approx(before - model.evaluate(x, y, verbose=0), rel=1e-8)


def test_the_measured_kl_is_from_before_to_after(double):
    x, y = batch(dtype="float64")
    model = compiled(network(), training.plain(0.7, line_search=ng.LineSearch()))
    before = ng.distributions.CategoricalPd(model(x))
    logs = model.train_on_batch(x, y, return_dict=True)
    kl = np.mean(before.kl(ng.distributions.CategoricalPd(model(x))))
    assert logs["kl"] == pytest.approx(kl, rel=1e-9)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_rejected_step_leaves_weights_and_optimizer_as_they_were(mode):
    """A learning rate far too large, and no room to shorten the step."""
    optimizer = ng.NaturalGradient(
        500.0,
        damping=ng.LevenbergMarquardt(0.1),
        max_kl=None,
        momentum=0.5,
        use_ema=True,
        line_search=ng.LineSearch(max_backtracks=0),
        solver="cg",
    )
    x, y = batch()
    model = compiled(network(), optimizer, mode=mode)
    optimizer.build(model.trainable_variables)
    before = [v.numpy().tobytes() for v in model.trainable_variables]
    logs = model.train_on_batch(x, y, return_dict=True)
    assert [v.numpy().tobytes() for v in model.trainable_variables] == before
    assert logs["rejected_steps"] == 1 and logs["step_scale"] == 0.0 and logs["kl"] == 0.0
    assert int(optimizer.iterations) == 0 and int(optimizer.rejected_steps) == 1
    assert float(optimizer.damping) == pytest.approx(0.1 * 0.95**-5, rel=1e-6)
    assert not any(np.any(slot) for slot in optimizer.last_direction)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_step_is_shortened_until_the_loss_falls(mode, double):
    x, y = batch(dtype="float64")
    options = {"solver": cg(1e-12), "line_search": ng.LineSearch(max_backtracks=60)}
    model = compiled(network(), training.plain(50.0, damping=0.01, **options), mode=mode)
    other = compiled(network(), training.plain(50.0, damping=0.01, solver=cg(1e-12)), mode=mode)
    start = model.evaluate(x, y, verbose=0)
    flat = FlatParameters(model.trainable_variables)
    before = flat.read().numpy()
    logs = model.train_on_batch(x, y, return_dict=True)
    other.train_on_batch(x, y)
    whole = FlatParameters(other.trainable_variables).read().numpy() - before
    assert 0 < logs["step_scale"] < 1 and model.evaluate(x, y, verbose=0) < start
    np.testing.assert_allclose(flat.read().numpy() - before, logs["step_scale"] * whole, rtol=1e-7, atol=1e-12)


def test_max_kl_limits_the_measured_divergence_of_every_step():
    optimizer = ng.NaturalGradient(1.0, damping=1e-3, max_kl=0.01)
    seen = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: seen.append(logs["kl"]))
    trained(optimizer=optimizer, epochs=6, callbacks=[callback])
    assert len(seen) == 18 and 0.005 < max(seen) <= 0.01


def test_dropout_masks_and_statistics_are_those_of_the_step():
    """The loss before the step, evaluated anew, is that of the forward pass to the last bit: a step of zero is flat."""
    stack = [layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3)]
    x, y = batch()
    model = compiled(network(stack), training.plain(0.0, solver="cg", damping=ng.LevenbergMarquardt(0.1)))
    reference = compiled(network(stack), training.plain(0.0, solver="cg"))
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["actual_decrease"] == 0.0 and logs["kl"] == 0.0
    # The second evaluation moves neither seeds nor statistics.
    reference.train_on_batch(x, y)
    for a, b in zip(model.variables, reference.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_damping_adapts_by_the_rule():
    seen = []
    # Keras's logs are means over the epoch.
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: seen.append(dict(callback.model.train_function.last_logs))
    )
    rule = ng.LevenbergMarquardt(0.1, decay=0.9, period=2)
    optimizer = training.plain(0.5, damping=rule)
    trained(optimizer=optimizer, epochs=4, callbacks=[callback])
    expected = 0.1
    for number, logs in enumerate(seen):
        assert float(logs["damping"]) == pytest.approx(expected, rel=1e-5)
        if number % 2:
            ratio = logs["reduction_ratio"]
            expected *= 0.81 if ratio > 0.75 else 1 / 0.81 if ratio < 0.25 else 1.0
    assert float(optimizer.damping) == pytest.approx(expected, rel=1e-5)


def test_every_number_may_be_assigned_without_a_new_trace():
    counting = _Counting()
    optimizer = ng.NaturalGradient(0.5, damping=0.1, momentum=0.5, warm_start=0.5, max_kl=0.1, solver="cg")
    model = compiled(network([counting, *training.mlp()]), optimizer)
    x, y = batch()
    model.train_on_batch(x, y)
    traces = counting.calls
    for number in (optimizer.damping, optimizer.momentum, optimizer.warm_start, optimizer.max_kl):
        number.assign(0.01)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert counting.calls == traces and logs["kl"] <= 0.01 and logs["damping"] == pytest.approx(0.01)


class _Counting(layers.Layer):
    calls = 0

    def call(self, x):
        type(self).calls += 1
        return x


def test_a_warm_start_saves_iterations(double):
    """On one batch, with a step so short that the system hardly changes, the last solution is nearly the next."""
    x, y = batch(dtype="float64")
    counts = {}
    for factor in (0.0, 0.999):
        model = compiled(network(), training.plain(1e-4, damping=1e-3, solver=cg(1e-3), warm_start=factor))
        counts[factor] = [model.train_on_batch(x, y, return_dict=True)["iterations"] for _ in range(3)]
    assert counts[0.0][0] == counts[0.999][0]
    assert counts[0.999][1] < 0.6 * counts[0.0][1] and counts[0.999][2] < 0.6 * counts[0.0][2]


@pytest.mark.parametrize(("mode", "size"), [*(("graph", s) for s in (3, 5, 12, 100)), ("eager", 5), ("xla", 5)])
def test_a_step_in_micro_batches_is_that_of_the_batch(mode, size, double):
    x, y = batch(dtype="float64")
    weight = np.linspace(0.0, 2.0, len(x))
    options = {"solver": cg(1e-12), "line_search": ng.LineSearch()}
    models = [compiled(network(), training.plain(0.7, micro_batch_size=s, **options), mode=mode) for s in (None, size)]
    logs = [model.train_on_batch(x, y, sample_weight=weight, return_dict=True) for model in models]
    for name in ("loss", "kl", "predicted_decrease", "actual_decrease"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-8)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


def test_micro_batches_train_with_batches_of_unknown_size():
    x, y = batch()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    losses = [
        fit(compiled(network(), training.plain(solver=cg(), micro_batch_size=s)), data, epochs=2)["loss"]
        for s in (None, 2)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize("layer", [layers.Dropout(0.5), layers.BatchNormalization()])
def test_micro_batches_refuse_layers_that_behave_otherwise_in_training(layer):
    model = compiled(network([layer, layers.Dense(3)]), training.plain(micro_batch_size=2))
    with pytest.raises(ValueError, match=f"`micro_batch_size`.*{layer.name}"):
        model.train_on_batch(*batch())


def test_the_monte_carlo_fisher_draws_anew_at_each_step(double):
    x, y = batch(dtype="float64")
    model = compiled(network(), training.plain(0.7, damping=0.1, fisher="mc", solver="gram"))
    for number in range(2):
        flat, exact, gradient, _ = _dense(model, x, y)
        fisher = ng.operators.Fisher(model, sparse(), x, kind="mc", seed=number).to_dense().numpy()
        before = flat.read().numpy()
        model.train_on_batch(x, y)
        direction = np.linalg.solve(fisher + 0.1 * np.eye(flat.size), gradient)
        # Scaled to the minimum of the quadratic model with the exact Fisher.
        direction *= (gradient @ direction) / (direction @ (exact @ direction + 0.1 * direction))
        np.testing.assert_allclose(before - flat.read().numpy(), 0.7 * direction, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("options", [{"fisher": "mc", "solver": "gram"}, {"solver": cg(0.3)}], ids=str)
def test_optimal_momentum_is_the_minimum_over_both_directions(options, double):
    """The quadratic model with the exact Fisher, minimised in the plane of direction and last direction."""
    damping = 0.01
    x, y = batch(dtype="float64")
    model = compiled(network(), training.plain(0.5, damping=damping, momentum="optimal", **options))
    other = compiled(network(), training.plain(0.5, damping=damping, **options))
    last = None
    for _ in range(3):
        flat, exact, gradient, _ = _dense(model, x, y)
        other.set_weights(model.get_weights())
        other.optimizer.iterations.assign(model.optimizer.iterations)
        before = flat.read().numpy()
        other.train_on_batch(x, y)
        alone = before - FlatParameters(other.trainable_variables).read().numpy()
        plane = np.stack([alone] if last is None else [alone, last], 1)
        matrix = plane.T @ (exact @ plane + damping * plane)
        expected = plane @ np.linalg.solve(matrix, plane.T @ gradient)
        model.train_on_batch(x, y)
        step = before - flat.read().numpy()
        np.testing.assert_allclose(step, 0.5 * expected, rtol=1e-6, atol=1e-9)
        last = step


def test_the_defaults_train_where_the_plain_step_explodes():
    """Inputs sixteen times as large as they should be, as of a user who forgot to scale them."""
    x, y = load_digits(return_X_y=True)
    stack = lambda: [layers.Dense(32, activation="relu"), layers.Dense(10)]  # noqa: E731
    model = compiled(network(stack, shape=(64,)), ng.NaturalGradient())
    history = fit(model, x[:512], y[:512], batch_size=64, epochs=4)
    assert np.all(np.isfinite(history["loss"])) and history["loss"][-1] < 0.5


def test_state_survives_saving_bit_for_bit(tmp_path):
    optimizer = lambda: ng.NaturalGradient(damping=ng.LevenbergMarquardt(period=1), momentum=0.3)  # noqa: E731
    reference, expected = trained(optimizer=optimizer(), epochs=4)
    model, first = trained(optimizer=optimizer(), epochs=2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x, y = batch()
    assert first["loss"] + fit(again, x, y, epochs=2)["loss"] == expected["loss"]
    for a, b in zip(again.optimizer.variables, reference.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weight_decay_is_not_what_the_search_judges():
    """A decay that is in balance with the step would have every step taken back, and the damping run to its end."""
    x, y = batch(64)
    optimizer = ng.NaturalGradient(weight_decay=0.05)
    model = compiled(network(), optimizer)
    for _ in range(150):
        model.train_on_batch(x, y)
    assert int(optimizer.rejected_steps) < 15 and float(optimizer.damping) < 10.0


def test_a_rejected_step_draws_other_labels_the_next_time():
    options = {"solver": "gram", "fisher": "mc", "max_kl": None, "line_search": ng.LineSearch(0)}
    model = compiled(network(), ng.NaturalGradient(500.0, damping=1e-3, **options))
    logs = [model.train_on_batch(*batch(), return_dict=True) for _ in range(2)]
    assert logs[1]["rejected_steps"] == 2 and logs[0]["predicted_decrease"] != logs[1]["predicted_decrease"]


def test_a_clipped_step_is_shortened_too(double):
    x, y = batch(dtype="float64")
    search = ng.LineSearch(max_backtracks=3, min_ratio=0.99)
    optimizer = training.plain(1.0, damping=1e-3, clipnorm=0.5, line_search=search, solver="svd")
    model = compiled(network(), optimizer)
    before = model.get_weights()
    scale = model.train_on_batch(x, y, return_dict=True)["step_scale"]
    moved = [np.linalg.norm(a - b) for a, b in zip(model.get_weights(), before, strict=True)]
    assert scale == 0.0 or max(moved) == pytest.approx(0.5 * scale, rel=1e-6)


def _cross_entropy():
    return keras.metrics.SparseCategoricalCrossentropy(name="ce", from_logits=True)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_metrics_do_not_see_a_batch_that_is_left_out(mode):
    x, y = batch()
    bad = np.full_like(x, np.nan)
    histories = []
    for data in ((x, y), (np.concatenate([x, bad]), np.concatenate([y, y]))):
        model = compiled(
            network(), training.plain(on_nonfinite="skip", solver="cg"), mode=mode, metrics=[_cross_entropy()]
        )
        histories.append(fit(model, *data, batch_size=len(x)))
    assert histories[1]["skipped_steps"] == [1]
    assert histories[0]["ce"] == histories[1]["ce"] and histories[0]["loss"] == histories[1]["loss"]


def test_a_refused_batch_leaves_no_statistics_behind():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(), layers.Dense(3)])
    x, y = batch()
    before = [v.numpy() for v in model.non_trainable_variables]
    x[0] = np.nan
    with pytest.raises(ValueError, match="`x`"):
        ng.natural_gradient(model, sparse(), x, y, solver="cg")
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
