"""The Hessian of weight regularisers, and sums of matrices, against central differences and NumPy."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, regularizers
from oracle import difference

import tf_natgrad as ng
from tf_natgrad.operators import Damped, EmpiricalFisher, Fisher, Penalty, Sum

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-10


class Quartic(regularizers.Regularizer):
    """Positive curvature that hangs on the weights."""

    def __call__(self, x):
        return 0.3 * keras.ops.sum(x**4)


class Doubled(regularizers.L2):
    """What a subclass says of its curvature is its own."""

    def __call__(self, x):
        return 2.0 * super().__call__(x)


REGULARIZERS = {
    "none": lambda: None,
    "l1": lambda: regularizers.L1(0.2),
    "l2": lambda: regularizers.L2(0.3),
    "l1_l2": lambda: regularizers.L1L2(0.2, 0.4),
    "orthogonal": lambda: regularizers.OrthogonalRegularizer(0.7),
    "custom": Quartic,
    "subclass": lambda: Doubled(0.3),
}
CONSTANTS = {"none": 0.0, "l1": 0.0, "l2": 0.6, "l1_l2": 0.8}


def _model(name, bias=None, dtype="float64"):
    keras.utils.set_random_seed(1)
    regularizer = REGULARIZERS[name]()
    layer = layers.Dense(
        3, kernel_regularizer=regularizer, bias_regularizer=bias, bias_initializer="normal", dtype=dtype
    )
    return keras.Sequential([keras.Input((4,), dtype=dtype), layer])


def _by_differences(model, step=1e-3):
    """Second derivatives of the penalties along pairs of axes, of fourth order."""
    flat = ng.parameters.FlatParameters(model.trainable_variables)
    theta = flat.read().numpy()

    def gradient(x):
        flat.assign(x)
        with tf.GradientTape() as tape:
            total = tf.add_n([tf.zeros([], flat.dtype), *model.losses])
        found = tape.gradient(total, flat.tensors, unconnected_gradients="zero")
        return np.concatenate([np.reshape(g, -1) for g in found])

    columns = []
    for axis in np.eye(len(theta)) * step:
        near, far = (gradient(theta + k * axis) - gradient(theta - k * axis) for k in (1, 2))
        columns.append((8 * near - far) / (12 * step))
    flat.assign(theta)
    return np.stack(columns, 1)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_penalty_is_the_hessian_of_the_regularizers(name, rng):
    # Keras's `OrthogonalRegularizer` takes single precision only.
    dtype, step, tolerance = ("float32", 2e-2, 1e-3) if name == "orthogonal" else ("float64", 1e-3, 1e-8)
    model = _model(name, bias=regularizers.L2(0.25), dtype=dtype)
    penalty, truth = Penalty(model), _by_differences(model, step)
    dense, v = penalty.to_dense().numpy().astype("float64"), rng.normal(size=15)
    assert np.abs(dense - truth).max() < tolerance * max(1.0, np.abs(truth).max())
    if name == "orthogonal":
        assert np.linalg.eigvalsh(dense).min() < -0.01
        return
    assert difference(penalty.matvec(v), dense @ v) < TOLERANCE
    assert difference(penalty.matmul(np.stack([v, -v], 1)), dense @ np.stack([v, -v], 1)) < TOLERANCE
    assert difference(penalty.diag_part(), np.diag(dense)) < TOLERANCE
    expected = [pytest.approx(CONSTANTS[name], rel=1e-7), 0.5] if name in CONSTANTS else None
    assert penalty.diagonal_by_variable() == expected
    assert penalty.is_positive_semi_definite == (expected is not None)


def test_value_and_gradient_are_those_of_the_losses_of_the_model():
    model = _model("custom", bias=regularizers.L2(0.25))
    penalty = Penalty(model)
    with tf.GradientTape() as tape:
        total = tf.add_n(model.losses)
    assert difference(penalty.value(), total) < TOLERANCE
    expected = penalty.flat_parameters.flatten(tape.gradient(total, penalty.flat_parameters.tensors))
    assert difference(penalty.gradient(), expected) < TOLERANCE
    assert not penalty.is_zero and Penalty(_model("none")).is_zero


def _penalised(rng):
    model = _model("l2")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = rng.normal(size=(7, 4)), rng.integers(0, 3, 7)
    return model, loss, x, y


def test_a_sum_is_the_sum_of_the_matrices(rng):
    model, loss, x, y = _penalised(rng)
    fisher, other, penalty = Fisher(model, loss, x), EmpiricalFisher(model, loss, (x, y)), Penalty(model)
    total = fisher + penalty + other
    expected = sum(part.to_dense().numpy() for part in (fisher, other, penalty))
    v = rng.normal(size=15)
    assert isinstance(total, Sum) and total.parts == (fisher, penalty, other)
    assert difference(total.to_dense(), expected) < TOLERANCE
    assert difference(total.matvec(v), expected @ v) < TOLERANCE
    assert difference(total.matmul(np.stack([v, -v], 1)), expected @ np.stack([v, -v], 1)) < TOLERANCE
    assert difference(total.diag_part(), np.diag(expected)) < TOLERANCE
    assert total.is_positive_semi_definite and total.factored is None
    assert (fisher + penalty).factored is fisher
    values = ng.spectrum.eigsh(total, 2).eigenvalues
    assert difference(np.sort(values), np.linalg.eigvalsh(expected)[-2:]) < 1e-6


def test_damping_stays_outside_of_a_sum(rng):
    model, loss, x, _ = _penalised(rng)
    fisher, penalty = Fisher(model, loss, x), Penalty(model)
    total = fisher.damped(0.5) + penalty.damped(0.25)
    assert isinstance(total, Damped) and float(total.damping) == 0.75
    expected = fisher.to_dense() + penalty.to_dense() + 0.75 * np.eye(15)
    assert difference(total.to_dense(), expected) < TOLERANCE


@pytest.mark.parametrize("solver", ["svd", "cholesky", "cg"])
def test_dense_and_iterative_solvers_take_sums(solver, rng):
    model, loss, x, y = _penalised(rng)
    fisher, penalty = Fisher(model, loss, x), Penalty(model)
    rhs = fisher.loss_gradient(y)._replace(rest=penalty.gradient())
    solver = ng.solvers.ConjugateGradient(rtol=1e-12) if solver == "cg" else ng.solvers.get(solver)
    value, _ = solver.solve((fisher + penalty).damped(0.1), rhs)
    matrix = fisher.to_dense().numpy() + penalty.to_dense().numpy() + 0.1 * np.eye(15)
    gradient = fisher.factor().numpy().T @ rhs.u.numpy() + penalty.gradient().numpy()
    assert difference(value, np.linalg.solve(matrix, gradient)) < TOLERANCE


def test_sums_of_what_does_not_fit_are_refused(rng):
    model, loss, x, _ = _penalised(rng)
    fisher = Fisher(model, loss, x)
    with pytest.raises(ValueError, match=r"`parts`: received Fisher and Penalty over different variables"):
        fisher + Penalty(_model("l2"))
    with pytest.raises(TypeError, match=r"unsupported operand"):
        fisher + 1.0
    crooked = ng.operators.ScoreFunctionHessian(
        lambda: model.trainable_variables[1] * tf.ones([3], tf.float64),
        model.trainable_variables,
        [1.0, 2.0, 3.0],
        [0, 0, 1],
        estimator="algorithm1",
    )
    with pytest.raises(ValueError, match=r"not symmetric.*symmetrize"):
        fisher + crooked
    assert isinstance(fisher + crooked.symmetrize(), Sum)


# Cholesky.


@pytest.mark.parametrize("name", ["mlp", "regression", "sequence"])
def test_cholesky_solves(name):
    problem = cases.shared(name)
    value, info = ng.solvers.Cholesky().solve(problem.fisher.damped(0.1), problem.rhs)
    matrix = problem.oracle.matrix + 0.1 * np.eye(problem.size)
    expected = np.linalg.solve(matrix, problem.oracle.gradient)
    assert difference(value, expected) < TOLERANCE
    assert 0.3 < info.condition_number / np.linalg.cond(matrix) < 1.0 + 1e-10
    assert info.relative_residual < 1e-12
    assert info.quadratic_form == pytest.approx(expected @ problem.oracle.matrix @ expected, rel=1e-8)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_cholesky_refuses_what_is_not_positive_definite(mode, rng):
    crooked = rng.normal(size=(4, 4))
    matrix = tf.linalg.LinearOperatorFullMatrix(crooked + crooked.T - 3.0 * np.eye(4), is_self_adjoint=True)

    def solve():
        return ng.solvers.Cholesky().solve(matrix, np.ones(4)).value

    errors = (ValueError, tf.errors.InvalidArgumentError)
    with pytest.raises(errors, match=r"not positive definite.*Raise `damping`"):
        solve() if mode == "eager" else tf.function(solve, autograph=False)()


def test_cholesky_says_what_it_is_worth(caplog):
    nearly = tf.linalg.LinearOperatorFullMatrix(np.diag([1.0, 1e-16]), is_self_adjoint=True)
    info = ng.solvers.Cholesky().solve(nearly, np.ones(2)).info
    assert info.condition_number > 1e15
    with pytest.raises(ValueError, match=r"`memory_limit`.*15 x 15"):
        ng.solvers.Cholesky(memory_limit=100).solve(Penalty(_model("l2")).damped(0.1), np.ones(15))
    bad = tf.linalg.LinearOperatorFullMatrix(np.diag([1.0, np.nan]), is_self_adjoint=True)
    with pytest.raises(ValueError, match=r"NaN or infinite entries"):
        ng.solvers.Cholesky().solve(bad, np.ones(2))


def test_eigenpairs_of_a_penalised_matrix_are_those_of_the_dense_one(double):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.3))])
    x = np.random.default_rng(0).normal(size=(6, 3))
    fisher = ng.operators.Fisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), x)
    matrix = (fisher + ng.operators.Penalty(model)).damped(0.1)
    expected = np.linalg.eigvalsh(matrix.to_dense())
    for method in ("auto", "lanczos", "dense"):
        found = ng.spectrum.eigsh(matrix, 2, method=method)
        assert found.info.converged.all() and np.allclose(found.eigenvalues, expected[-2:], rtol=1e-6)


def test_labels_of_a_data_set_are_its_own(double):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    x, y = np.random.default_rng(0).normal(size=(6, 3)), np.arange(6) % 4
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fisher = ng.operators.Fisher(model, loss, tf.data.Dataset.from_tensor_slices((x, y)).batch(2))
    assert not fisher.damped(0.1).is_one_batch
    for call in (fisher.loss, fisher.gradient, fisher.loss_gradient):
        with pytest.raises(ValueError, match=r"`y`.*come with the data"):
            call(y)
    with pytest.raises(ValueError, match=r"`sample_weight`.*come with the data"):
        fisher.loss_gradient(None, np.ones(6))
