"""Residual models: terms with points and weights, unknown coefficients, and a problem with a known solution."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import difference

import tf_natgrad as ng
from tf_natgrad import _checks
from tf_natgrad.operators import Fisher


@pytest.fixture(autouse=True)
def _float64(float64):
    keras.utils.set_random_seed(0)


def network(units=8):
    return keras.Sequential([keras.Input((2,)), layers.Dense(units, "tanh"), layers.Dense(1)])


def source(x):
    return 2.0 * np.pi**2 * tf.sin(np.pi * x[:, :1]) * tf.sin(np.pi * x[:, 1:])


def inside(u, x):
    return ng.pde.laplacian(u, x)[2] + source(x)


def boundary(u, x):
    return u(x)


def square(interior, edge, seed=0):
    rng = np.random.default_rng(seed)
    on_edge = rng.uniform(size=(edge, 2))
    sides = np.arange(edge) % 4
    on_edge[np.arange(edge), sides // 2] = sides % 2
    return {"inside": rng.uniform(size=(interior, 2)), "boundary": on_edge}


def poisson(units=8, **options):
    return ng.pde.ResidualModel(network(units), {"inside": inside, "boundary": boundary}, **options)


def test_the_loss_is_the_weighted_sum_of_the_terms():
    model, points = poisson(weights={"boundary": 3.0}), square(10, 4)
    model.compile(ng.pde.natural_gradient(), "mse")
    expected = np.mean(inside(model.network, tf.constant(points["inside"])) ** 2)
    expected += 3.0 * np.mean(model.network(points["boundary"]) ** 2)
    assert model.evaluate(model.batches(points), verbose=0) == pytest.approx(expected, rel=1e-12)


def test_its_gram_matrix_is_that_of_the_jacobian():
    model, points = poisson(), square(10, 4)
    x, y, weights = next(iter(model.batches(points)))
    fisher = Fisher(model, "mse", (x, y, weights))
    factor = fisher.factor().numpy()
    assert factor.shape[0] == 14
    assert difference(fisher.gram(), factor @ factor.T) < 1e-12


def test_a_term_sees_its_own_points_alone():
    def singular(u, x):
        return u(x) / tf.sqrt(x[:, :1] - 0.5)

    model = ng.pde.ResidualModel(network(), {"left": boundary, "right": singular})
    points = {"left": np.full((3, 2), 0.25), "right": np.full((2, 2), 0.75)}
    model.compile(ng.pde.natural_gradient(damping=0.1), "mse")
    history = model.fit(model.batches(points), epochs=3, verbose=0).history["loss"]
    assert np.isfinite(history).all() and history[-1] < history[0]


def test_it_does_not_mind_functional_models():
    ng.natural_gradient_model(network())
    assert poisson().term_names == ("inside", "boundary")


def test_points_can_be_drawn_anew():
    model, seeds = poisson(), []

    def drawn():
        seeds.append(len(seeds))
        return square(20, 8, seed=seeds[-1])

    model.compile(ng.pde.natural_gradient(damping=1.0), "mse")
    model.fit(model.batches(drawn, repeat=3), epochs=2, verbose=0)
    assert len(seeds) >= 7


def test_an_unknown_coefficient_is_found():
    # -k u'' = sin(x) with u = 2 sin(x): k = 1/2.
    u = keras.Sequential([keras.Input((1,)), layers.Dense(10, "tanh"), layers.Dense(1)])
    k = ng.pde.Coefficient(1.0)
    terms = {
        "inside": lambda u, x: k(x) * ng.pde.laplacian(u, x)[2] + tf.sin(x),
        "data": lambda u, x: u(x) - 2.0 * tf.sin(x),
    }
    model = ng.pde.ResidualModel(u, terms, coefficients=[k])
    x = np.linspace(0.0, 3.0, 25)[:, None]
    batches = model.batches({"inside": x, "data": x[::3]}, repeat=60)
    data = next(iter(batches))
    fisher = Fisher(model, "mse", data)
    factor = fisher.factor().numpy()
    assert difference(fisher.gram(), factor @ factor.T) < 1e-12
    model.compile(ng.pde.natural_gradient(), "mse")
    model.fit(batches, verbose=0)
    assert float(k.number) == pytest.approx(0.5, abs=1e-3)


def test_residuals_of_a_wrong_shape_are_refused():
    model = ng.pde.ResidualModel(network(), {"inside": lambda u, x: u(x)[:, 0]})
    with pytest.raises(ValueError, match="'inside', which returns shape"):
        model(next(iter(model.batches({"inside": np.zeros((3, 2))})))[0])


@pytest.mark.parametrize(
    "term, kind",
    [
        (lambda u, x: ng.pde.laplacian(u, x), "a tuple of 3"),
        (lambda u, x: 0.0, "a float"),
        (lambda u, x: ng.pde.derivatives(u, x, [(0,)]), "a dict"),
    ],
)
def test_terms_that_return_no_tensor_are_refused(term, kind):
    model = ng.pde.ResidualModel(network(), {"inside": term})
    with pytest.raises(TypeError, match=rf"'inside', which returns {kind};.*returns `\(u, du, laplacian\)`"):
        model(next(iter(model.batches({"inside": np.zeros((3, 2))})))[0])


def test_coefficients_that_were_not_passed_are_refused():
    k = ng.pde.Coefficient(1.0, name="speed")
    terms = {"inside": lambda u, x: k(x) * u(x)}
    points = {"inside": np.zeros((3, 2))}
    model = ng.pde.ResidualModel(network(), terms)
    with pytest.raises(ValueError, match=r"`coefficients`: .*'speed', .*'inside'.*pass `coefficients=\[k\]`"):
        model(next(iter(model.batches(points)))[0])
    model = ng.pde.ResidualModel(network(), terms, coefficients=[keras.Sequential([keras.Input((2,)), k])])
    model(next(iter(model.batches(points)))[0])


def test_kfac_of_a_model_that_was_not_called():
    k = ng.pde.Coefficient(1.0)
    terms = {"inside": lambda u, x: k(x) * ng.pde.laplacian(u, x)[2] + source(x), "boundary": boundary}
    model, points = ng.pde.ResidualModel(network(), terms, coefficients=[k]), square(20, 8)
    model.compile(ng.NaturalGradient(fisher=ng.KFAC()), "mse")
    history = model.fit(model.batches(points, repeat=5), epochs=2, verbose=0).history["loss"]
    assert history[-1] < history[0] and float(k.number) != 1.0


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_batches_are_in_the_precision_of_the_network(precision, monkeypatch, caplog):
    monkeypatch.setattr(_checks, "_logged", set())
    # Float64 networks in a session of float32, and the reverse.
    options = {"dtype": precision}
    u = keras.Sequential([keras.Input((2,)), layers.Dense(4, "tanh", **options), layers.Dense(1, **options)])
    with cases.precision("float32" if precision == "float64" else "float64"):
        model, points = ng.pde.ResidualModel(u, {"inside": inside, "boundary": boundary}), square(10, 4)
        inputs, y, weights = next(iter(model.batches(points)))
        assert {t.dtype.name for t in (*inputs.values(), y, weights, model(inputs))} == {precision}
        model.batches(points)
        assert [r.message.count("set_dtype_policy") for r in caplog.records] == [1]
        model.compile(ng.pde.natural_gradient(damping=0.1), "mse")
        history = model.fit(model.batches(points, repeat=3), epochs=2, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_poisson():
    # -Lap u = 2 pi^2 sin(pi x) sin(pi y), u = 0 on the boundary of the unit square.
    model, points = poisson(units=32, weights={"boundary": 100.0}), square(400, 80)
    model.compile(ng.pde.natural_gradient(), "mse")
    model.fit(model.batches(points, repeat=80), verbose=0)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 30)] * 2), -1).reshape(-1, 2)
    exact = source(tf.constant(grid)) / (2.0 * np.pi**2)
    error = tf.norm(model.network(grid) - exact) / tf.norm(exact)
    assert error < 5e-4
