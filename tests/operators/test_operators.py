"""The Fisher as an operator: one matrix by every route, in every form, and nothing dense unasked."""

import cases
import keras
import numpy as np
import oracle
import pytest
import scipy.sparse.linalg
import tensorflow as tf
from oracle import difference

import tf_natgrad as ng
from tf_natgrad.distributions import DiagGaussianPd, NegativeLogLikelihood
from tf_natgrad.operators import CurvatureOperator, Fisher
from tf_natgrad.operators._base import product_of

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-10


# The three routes, and every form of the product.


def test_factor_route_is_the_oracle(problem):
    assert difference(problem.dense, problem.oracle.matrix) < TOLERANCE


def test_hessian_of_the_self_kl_is_the_same_matrix(problem):
    assert difference(problem.fisher.to_dense(method="hessians"), problem.dense) < TOLERANCE


@pytest.mark.parametrize("name", ["softmax_regression", "mlp", "cnn", "sequence", "lstm"])
def test_expectation_of_score_outer_products_is_the_same_matrix(name):
    truth = cases.shared(name).oracle
    p = oracle.softmax(truth.outputs)
    scores = np.eye(p.shape[-1])[None] - p[:, None, :]
    scores = np.einsum("pyc,pcn->pyn", scores, truth.jacobian)
    expectation = np.einsum("p,py,pym,pyn->mn", truth.weights, p, scores, scores, optimize=True)
    assert difference(cases.shared(name).dense, expectation) < TOLERANCE


def test_matvec(problem, rng):
    v = rng.normal(size=problem.size)
    assert difference(problem.fisher.matvec(v), problem.oracle.matrix @ v) < TOLERANCE
    assert difference(problem.fisher.matvec(v, adjoint=True), problem.oracle.matrix.T @ v) < TOLERANCE


def test_matmul_and_its_adjoints(problem, rng):
    block = rng.normal(size=(problem.size, 3))
    expected = problem.oracle.matrix @ block
    assert difference(problem.fisher.matmul(block), expected) < TOLERANCE
    assert difference(problem.fisher.matmul(block, adjoint=True), expected) < TOLERANCE
    assert difference(problem.fisher.matmul(block.T, adjoint_arg=True), expected) < TOLERANCE
    assert difference(problem.fisher @ tf.constant(block), expected) < TOLERANCE


def test_factor_products_are_the_factor(problem, rng):
    v, u = rng.normal(size=problem.size), rng.normal(size=len(problem.factor))
    assert difference(problem.fisher.factor_matvec(v), problem.factor @ v) < TOLERANCE
    assert difference(problem.fisher.factor_transpose_matvec(u), problem.factor.T @ u) < TOLERANCE
    assert difference(problem.factor.T @ problem.factor, problem.oracle.matrix) < TOLERANCE


def test_gram_has_the_eigenvalues_of_the_matrix(problem):
    ours = np.linalg.eigvalsh(problem.fisher.gram())
    theirs = np.linalg.eigvalsh(problem.oracle.matrix)
    size = min(len(ours), len(theirs))
    assert np.abs(ours[-size:] - theirs[-size:]).max() < TOLERANCE * theirs[-1]


def test_loss_gradient_is_in_the_range_of_the_factor(problem):
    assert difference(problem.factor.T @ problem.rhs.u.numpy(), problem.oracle.gradient) < TOLERANCE


def test_loss_gradient_is_the_gradient_of_the_keras_loss(problem):
    variables = [v.value for v in problem.model.trainable_variables]
    loss = {"learned_std": NegativeLogLikelihood(DiagGaussianPd), "regression": keras.losses.MeanSquaredError()}.get(
        problem.name, problem.loss
    )
    with tf.GradientTape() as tape:
        z = problem.model(problem.x)
        weight = None if problem.weight is None else problem.weight.reshape(-1, *[1] * (len(z.shape) - 2))
        value = loss(problem.y, z, sample_weight=weight)
    gradient = problem.flat.flatten([tf.convert_to_tensor(g) for g in tape.gradient(value, variables)])
    # Keras adds 1e-7 to probabilities of its own making; nothing else separates the two.
    tolerance = 1e-6 if problem.family == "bernoulli_probabilities" else TOLERANCE
    assert difference(problem.factor.T @ problem.rhs.u.numpy(), gradient) < tolerance


def test_diagonal_and_trace(problem):
    damped, diagonal = problem.fisher.damped(0.3), np.diag(problem.oracle.matrix)
    assert difference(problem.fisher.diag_part(), diagonal) < TOLERANCE
    assert difference(damped.diag_part(), diagonal + 0.3) < TOLERANCE
    assert float(problem.fisher.trace()) == pytest.approx(diagonal.sum(), rel=TOLERANCE)


def test_to_scipy(problem, rng):
    exported, block = problem.fisher.to_scipy(), rng.normal(size=(problem.size, 2))
    assert exported.shape == (problem.size, problem.size) and exported.dtype == np.float64
    assert difference(exported.matmat(block), problem.oracle.matrix @ block) < TOLERANCE
    assert difference(exported.rmatvec(block[:, 0]), problem.oracle.matrix @ block[:, 0]) < TOLERANCE


def test_scipy_finds_the_largest_eigenvalue():
    problem = cases.shared("mlp")
    (largest,) = scipy.sparse.linalg.eigsh(problem.fisher.to_scipy(), k=1, return_eigenvectors=False)
    assert largest == pytest.approx(np.linalg.eigvalsh(problem.oracle.matrix)[-1], rel=TOLERANCE)


# Closed forms of linear models.


def _linear_problem(outputs, loss, rng):
    x = rng.normal(size=(7, 3))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(outputs, bias_initializer="normal")])
    return np.hstack([x, np.ones((7, 1))]), model(x).numpy(), Fisher(model, loss, x).to_dense()


def test_least_squares_in_closed_form(rng):
    x, _, fisher = _linear_problem(2, "mse", rng)
    assert difference(fisher, np.kron(2 / (7 * 2) * x.T @ x, np.eye(2))) < 1e-8


def test_logistic_regression_in_closed_form(rng):
    x, z, fisher = _linear_problem(1, keras.losses.BinaryCrossentropy(from_logits=True), rng)
    p = 1 / (1 + np.exp(-z[:, 0]))
    assert difference(fisher, x.T @ np.diag(p * (1 - p)) @ x / 7) < 1e-8


def test_softmax_regression_in_closed_form(rng):
    x, z, fisher = _linear_problem(3, keras.losses.SparseCategoricalCrossentropy(from_logits=True), rng)
    p = oracle.softmax(z)
    blocks = [np.kron(np.outer(a, a), np.diag(b) - np.outer(b, b)) for a, b in zip(x, p, strict=True)]
    assert difference(fisher, sum(blocks) / 7) < 1e-8


# Weights of examples.


def test_zero_weights_leave_examples_out():
    problem = cases.fresh("mlp")
    problem.weight = np.array([1.0, 0.0, 2.0, 0.0, 0.0])
    kept = ng.operators.Fisher(problem.model, problem.loss, problem.x[[0, 2]], sample_weight=[1.0, 2.0])
    assert difference(problem.dense, kept.to_dense().numpy() * 2 / 5) < TOLERANCE


def test_weights_of_positions():
    problem = cases.fresh("sequence")
    curvature, jacobian = problem.oracle.output_fisher, problem.oracle.jacobian
    problem.weight = np.random.default_rng(1).uniform(0.0, 2.0, (5, 3))
    weights = problem.weight.reshape(-1) / 15
    expected = np.einsum("p,pcm,pcd,pdn->mn", weights, jacobian, curvature, jacobian, optimize=True)
    assert difference(problem.dense, expected) < TOLERANCE
    assert difference(problem.fisher.gram(), problem.factor @ problem.factor.T) < TOLERANCE


def test_gradient_with_weights_other_than_those_of_the_matrix():
    problem = cases.shared("mlp")
    rhs = problem.fisher.loss_gradient(problem.y, sample_weight=[0.0, 1.0, 2.0, 0.0, 3.0])
    other = np.array([0.0, 1.0, 2.0, 0.0, 3.0]) / 5
    expected = np.einsum("p,pc,pcn->n", other, problem.oracle.scores, problem.oracle.jacobian)
    assert difference(problem.factor.T @ rhs.u.numpy(), expected) < TOLERANCE


def test_gradient_with_a_weight_where_the_matrix_has_none_is_refused():
    problem = cases.fresh("mlp")
    problem.weight = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"`sample_weight`.*the matrix leaves out"):
        problem.fisher.loss_gradient(problem.y, sample_weight=np.ones(5))


# The matrix at the weights of its construction.


@pytest.mark.parametrize("name", ["softmax_regression", "mlp", "cnn", "attention", "embedding", "layer_norm"])
def test_matrix_stays_at_the_weights_of_its_construction(name, rng):
    problem = cases.fresh(name)
    # Recorded with the pass: afterwards the model could no longer be called as it was.
    fisher = problem.make_fisher(record_calls=True)
    expected, v = problem.oracle.matrix, rng.normal(size=problem.size)
    problem.flat.assign(problem.flat.read() + rng.normal(size=problem.size))
    assert difference(fisher.matvec(v), expected @ v) < TOLERANCE
    assert difference(fisher.to_dense(), expected) < TOLERANCE
    assert difference(fisher.to_dense(method="hessians"), expected) < TOLERANCE
    assert difference(fisher.gram(), fisher.factor() @ tf.transpose(fisher.factor())) < TOLERANCE


def test_matrix_survives_an_update_in_place(rng):
    problem = cases.fresh("mlp")
    expected, v = problem.oracle.matrix, rng.normal(size=problem.size)
    fisher = problem.make_fisher()
    first = fisher.matvec(v)
    for variable in problem.model.trainable_variables:
        variable.value.assign_sub(tf.ones_like(variable.value))
    assert difference(first, expected @ v) < TOLERANCE
    assert difference(fisher.matvec(v), expected @ v) < TOLERANCE


# Where it runs.


@pytest.mark.parametrize("jit_compile", [False, True])
def test_inside_a_function(jit_compile, rng):
    problem, v = cases.shared("mlp"), rng.normal(size=64)

    @tf.function(autograph=False, jit_compile=jit_compile)
    def inside(x, weight):
        fisher = Fisher(problem.model, problem.loss, x, sample_weight=weight)
        return fisher.matvec(v), fisher.gram(), fisher.factor()

    product, gram, factor = inside(problem.x, problem.weight)
    assert difference(product, problem.oracle.matrix @ v) < TOLERANCE
    assert difference(gram, problem.factor @ problem.factor.T) < TOLERANCE
    assert difference(factor, problem.factor) < TOLERANCE


def test_hessians_inside_a_function():
    problem = cases.shared("softmax_regression")

    @tf.function(autograph=False)
    def inside(x):
        return Fisher(problem.model, problem.loss, x, sample_weight=problem.weight).to_dense(method="hessians")

    assert difference(inside(problem.x), problem.oracle.matrix) < TOLERANCE


def test_eager_operator_used_inside_a_function(rng):
    problem, v = cases.shared("mlp"), rng.normal(size=64)
    product = tf.function(lambda x: problem.fisher.matvec(x), autograph=False)
    assert difference(product(v), problem.oracle.matrix @ v) < TOLERANCE


def test_products_are_compiled_once(rng):
    fisher = cases.fresh("mlp").make_fisher()
    traces = []
    body = fisher.product
    fisher.product = lambda vector: traces.append(1) or body(vector)
    for _ in range(3):
        fisher.matvec(rng.normal(size=64))
    assert len(traces) == 1


def test_the_protocol_of_graph_code_is_that_of_the_checked_methods(rng):
    problem = cases.shared("mlp")
    fisher, v, u = problem.fisher, rng.normal(size=64), rng.normal(size=problem.fisher.rows)
    fisher.prepare()
    rows = np.stack([v, 2.0 * v])
    assert difference(fisher.product(tf.constant(v)), fisher.matvec(v)) < TOLERANCE
    assert difference(fisher.products(tf.constant(rows)), fisher.matmul(rows.T).numpy().T) < TOLERANCE
    assert difference(fisher.factor_product(tf.constant(v)), fisher.factor_matvec(v)) < TOLERANCE
    assert difference(fisher.factor_transpose_product(tf.constant(u)), fisher.factor_transpose_matvec(u)) < TOLERANCE
    assert difference(fisher.gram_matrix(), fisher.gram()) < TOLERANCE
    assert difference(fisher.dense_matrix(), fisher.to_dense()) < TOLERANCE
    assert difference(fisher.diagonal(), fisher.diag_part()) < TOLERANCE
    foreign = tf.linalg.LinearOperatorFullMatrix(problem.dense, is_self_adjoint=True)
    assert difference(product_of(foreign)(tf.constant(v)), product_of(fisher)(tf.constant(v))) < TOLERANCE


# Monte-Carlo.


@pytest.fixture(scope="module")
def sampled(float64):
    return cases.shared("mlp").make_fisher(kind="mc", seed=3, mc_samples=400)


def test_mc_is_the_same_matrix_at_each_product(rng):
    problem, v = cases.shared("mlp"), rng.normal(size=64)
    fisher, again = (problem.make_fisher(kind="mc", seed=3) for _ in range(2))
    assert np.array_equal(fisher.matvec(v), fisher.matvec(v))
    assert np.array_equal(fisher.matvec(v), again.matvec(v))


def test_mc_differs_between_seeds():
    problem = cases.shared("mlp")
    factors = [problem.make_fisher(kind="mc", seed=seed).factor() for seed in range(4)]
    assert len({f.numpy().tobytes() for f in factors}) > 1
    assert all(f.shape == (5, 64) for f in factors)


def test_mc_is_unbiased(sampled):
    rows = sampled.factor().numpy().reshape(400, 5, 64)
    one_each = 400 * np.einsum("rim,rin->rmn", rows, rows, optimize=True)
    error = one_each.mean(0) - cases.shared("mlp").oracle.matrix
    standard_error = one_each.std(0, ddof=1) / np.sqrt(400)
    tested = standard_error > 1e-12
    deviations = np.abs(error[tested]) / standard_error[tested]
    assert np.abs(error[~tested]).max(initial=0.0) < TOLERANCE
    assert np.mean(deviations**2) < 2.0 and np.median(deviations) < 1.0


def test_mc_mean_over_seeds():
    problem = cases.shared("softmax_regression")
    v = np.random.default_rng(1).normal(size=problem.size)
    forms = [np.square(problem.make_fisher(kind="mc", seed=s).factor().numpy() @ v).sum() for s in range(25)]
    truth = v @ problem.oracle.matrix @ v
    assert abs(np.mean(forms) - truth) < 4 * np.std(forms, ddof=1) / np.sqrt(len(forms))


def test_mc_forms_agree(sampled, rng):
    factor, v = sampled.factor().numpy(), rng.normal(size=64)
    assert difference(sampled.matvec(v), factor.T @ (factor @ v)) < TOLERANCE
    assert difference(sampled.to_dense(), factor.T @ factor) < TOLERANCE
    assert sampled.rows == len(factor) == 2000


def test_mc_gram():
    fisher = cases.shared("cnn").make_fisher(kind="mc", mc_samples=2)
    factor = fisher.factor().numpy()
    assert difference(fisher.gram(), factor @ factor.T) < TOLERANCE


def test_mc_gradient_is_exact():
    problem = cases.shared("mlp")
    rhs = problem.make_fisher(kind="mc").loss_gradient(problem.y)
    assert rhs.u is None and difference(rhs.rest, problem.oracle.gradient) < TOLERANCE


# Damping.


def test_damped_adds_a_multiple_of_the_identity(problem, rng):
    damped, block = problem.fisher.damped(0.3), rng.normal(size=(problem.size, 2))
    expected = problem.oracle.matrix + 0.3 * np.eye(problem.size)
    assert difference(damped.to_dense(), expected) < TOLERANCE
    assert difference(damped.matvec(block[:, 0]), expected @ block[:, 0]) < TOLERANCE
    assert difference(damped.matmul(block), expected @ block) < TOLERANCE


def test_damping_twice_adds_up():
    fisher = cases.shared("mlp").fisher
    twice = fisher.damped(0.1).damped(0.2)
    assert twice.base is fisher and float(twice.damping) == pytest.approx(0.3)


def test_damping_may_be_a_variable():
    problem, damping = cases.shared("softmax_regression"), tf.Variable(0.5, dtype=tf.float64)
    assert difference(problem.fisher.damped(damping).to_dense(), problem.dense + 0.5 * np.eye(problem.size)) < TOLERANCE


@pytest.mark.parametrize("damping, error", [(-1e-3, ValueError), (float("nan"), ValueError), ("0.1", TypeError)])
def test_bad_damping_is_refused(damping, error):
    with pytest.raises(error, match=r"`damping`"):
        cases.shared("mlp").fisher.damped(damping)


@pytest.mark.parametrize("value", [-1e-3, float("nan")])
@pytest.mark.parametrize("kind", [tf.constant, tf.Variable, keras.Variable])
def test_damping_that_is_a_tensor_is_refused_at_once(kind, value):
    fisher = cases.shared("mlp").fisher
    with pytest.raises(ValueError, match=r"`damping`: received (-0.001|nan).*a scalar >= 0"):
        fisher.damped(kind(value, dtype="float64"))
    with pytest.raises(ValueError, match=r"`damping`: received (-0.001|nan).*a scalar >= 0"):
        fisher.damped(0.1).damped(kind(value, dtype="float64"))


def test_damping_that_is_a_constant_in_a_trace_is_refused_while_tracing():
    with pytest.raises(ValueError, match=r"`damping`: received -1.0"):
        tf.function(lambda: cases.shared("mlp").fisher.damped(tf.constant(-1.0)).damping, autograph=False)()


def test_damping_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"`damping`: received shape \(2,\); expected a number, or a scalar tensor"):
        cases.shared("mlp").fisher.damped(tf.constant([0.1, 0.2], tf.float64))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_damping_of_a_graph_is_checked_when_it_runs(jit_compile, rng):
    problem = cases.shared("mlp")
    vector = rng.normal(size=problem.size)

    @tf.function(autograph=False, jit_compile=jit_compile)
    def product(damping):
        operator = problem.fisher.damped(damping)
        assert operator.static_damping is None
        return operator.matvec(vector)

    assert difference(product(tf.constant(0.5, tf.float64)), problem.dense @ vector + 0.5 * vector) < TOLERANCE
    assert difference(product(tf.constant(0.0, tf.float64)), problem.dense @ vector) < TOLERANCE
    # XLA drops assertions; in training, the step depends on the condition.
    for bad in () if jit_compile else (-1.0, np.nan):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"`damping`: received a negative number or NaN"):
            product(tf.constant(bad, tf.float64))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_training_with_a_damping_out_of_range_moves_nothing(jit_compile, rng):
    model = ng.NaturalGradientSequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = ng.NaturalGradient(0.7, damping=0.1, max_kl=None, line_search=None, solver="cg")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit_compile)
    x, y = rng.normal(size=(6, 3)), np.array([0, 1, 1, 0, 1, 0])
    model.train_on_batch(x, y)
    before = model.get_weights()
    for bad in (-1.0, np.nan):
        optimizer.damping.assign(bad)
        with pytest.raises(ValueError, match="damping"):
            model.train_on_batch(x, y)
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))
    optimizer.damping.assign(0.1)
    model.train_on_batch(x, y)
    assert not np.array_equal(model.get_weights()[0], before[0])


def test_damping_of_something_else_is_refused():
    with pytest.raises(TypeError, match=r"`base`: received LinearOperatorIdentity"):
        ng.operators.Damped(tf.linalg.LinearOperatorIdentity(3), 0.1)


# Invariance.


def test_undamped_natural_gradient_is_invariant_and_the_gradient_is_not(rng):
    x, y = rng.normal(size=(20, 3)), rng.integers(0, 2, (20, 1)).astype(float)
    change, kernel = rng.normal(size=(3, 3)), rng.normal(size=(3, 1))
    loss, solver = keras.losses.BinaryCrossentropy(from_logits=True), ng.solvers.SVDPseudoInverse(1e-14)

    def directions(inputs, weights):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.set_weights([weights, np.zeros(1)])
        fisher = Fisher(model, loss, inputs)
        gradient = fisher.factor_transpose_matvec(fisher.loss_gradient(y).u).numpy()
        return solver.solve(fisher, gradient).value.numpy(), gradient

    natural, gradient = directions(x, kernel)
    natural_after, gradient_after = directions(x @ change, np.linalg.solve(change, kernel))
    back = np.block([[change, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])
    assert difference(back @ natural_after, natural) < TOLERANCE
    assert difference(back @ gradient_after, gradient) > 0.1


# Nothing dense unasked.


def _public(cls):
    return {name for name in dir(cls) if not name.startswith("_")}


PRODUCTS = {"matmul", "matvec", "to_dense", "adjoint", "H", "diag_part", "trace"}
METADATA = {
    *("batch_shape", "batch_shape_tensor", "domain_dimension", "domain_dimension_tensor", "dtype", "graph_parents"),
    *("is_non_singular", "is_positive_definite", "is_self_adjoint", "is_square", "name", "parameters"),
    *("range_dimension", "range_dimension_tensor", "shape", "shape_tensor", "tensor_rank", "tensor_rank_tensor"),
} | _public(tf.Module)


@pytest.fixture(params=["fisher", "damped"])
def lazy(request, monkeypatch):
    """An operator that fails the test as soon as something forms its matrix."""
    fisher = cases.shared("mlp").make_fisher()
    operator = fisher if request.param == "fisher" else fisher.damped(0.1)

    def forbidden(*args, **kwargs):
        raise AssertionError("the dense matrix was formed")

    monkeypatch.setattr(type(operator), "dense_matrix", forbidden)
    monkeypatch.setattr(type(operator), "to_dense", forbidden)
    return operator


@pytest.mark.parametrize("name", sorted(_public(tf.linalg.LinearOperator) - PRODUCTS - METADATA))
def test_what_would_form_the_matrix_is_refused(name, lazy):
    with pytest.raises(NotImplementedError, match=r"would form the dense matrix"):
        getattr(lazy, name)()


@pytest.mark.parametrize("name", sorted(METADATA - {"with_name_scope"}))
def test_metadata_does_not_form_the_matrix(name, lazy):
    value = getattr(lazy, name)
    value = value() if name.endswith("_tensor") else value
    expected = {"shape": (64, 64), "dtype": tf.float64, "is_self_adjoint": True, "is_square": True, "tensor_rank": 2}
    if name in expected:
        assert value == expected[name]


def test_products_do_not_form_the_matrix(lazy):
    assert lazy.matvec(tf.ones(64, tf.float64)).shape == (64,)
    assert lazy.matmul(tf.ones([64, 2], tf.float64)).shape == (64, 2)
    assert lazy.to_scipy().matvec(np.ones(64)).shape == (64,)
    assert lazy.diag_part().shape == (64,) and lazy.trace().shape == ()


def test_adjoint_is_the_operator_itself(lazy):
    assert lazy.adjoint() is lazy and lazy.H is lazy


def test_every_operator_says_what_it_is():
    fisher = cases.shared("mlp").fisher
    for operator in (fisher, fisher.damped(0.1)):
        assert isinstance(operator, CurvatureOperator) and operator.is_positive_semi_definite
        assert operator.flat_parameters.size == 64


@pytest.mark.parametrize("method", ["factor", "hessians"])
def test_dense_matrix_beyond_the_memory_limit_names_the_solvers_that_fit(method):
    with pytest.raises(ValueError, match=r"64 x 64 takes .* GiB.*Gram\(\).*ConjugateGradient\(\).*memory_limit"):
        cases.shared("mlp").fisher.to_dense(method=method, memory_limit=1000)


def test_dense_matrix_in_more_than_one_chunk():
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(5)])
    x = np.random.default_rng(0).normal(size=(80, 30))
    fisher = Fisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), x)
    truth = oracle.dense_problem(model, x, np.zeros(80, int), None, "categorical").matrix
    assert fisher.rows > 155 > 128
    assert difference(fisher.to_dense(), truth) < TOLERANCE
    assert fisher.factor().shape == (320, 155)


# Refusals.


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"kind": "empirical"}, "`kind`.*'exact', 'mc'"),
        ({"kind": "mc", "mc_samples": 0}, "`mc_samples`"),
        ({"sample_weight": -np.ones(5)}, "`sample_weight`.*negative"),
        ({"sample_weight": np.ones(4)}, "`sample_weight`"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    problem = cases.shared("mlp")
    with pytest.raises(ValueError, match=match):
        Fisher(problem.model, problem.loss, problem.x, **arguments)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda f: f.matvec(np.ones(63)), "`x`.*shape"),
        (lambda f: f.matvec(np.ones((64, 1))), "`x`.*shape"),
        (lambda f: f.matmul(np.ones(64)), "`x`.*shape"),
        (lambda f: f.matmul(np.ones((3, 64))), "`x`.*shape"),
        (lambda f: f.factor_matvec(np.ones(63)), "`x`.*shape"),
        (lambda f: f.factor_transpose_matvec(np.ones(9)), "`u`.*shape"),
        (lambda f: f.to_dense(method="svd"), "`method`.*'factor', 'hessians'"),
    ],
)
def test_bad_operands_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(cases.shared("mlp").fisher)


def test_operand_of_another_precision_is_refused():
    with pytest.raises(TypeError, match=r"`x`: received dtype float32; expected dtype float64"):
        cases.shared("mlp").fisher.matvec(tf.ones(64, tf.float32))


def test_hessians_of_an_mc_fisher_are_refused(sampled):
    with pytest.raises(ValueError, match=r"`method`.*'mc'"):
        sampled.to_dense(method="hessians")


def test_labels_are_not_used():
    problem = cases.shared("mlp")
    fisher = Fisher(problem.model, problem.loss, (problem.x, problem.y), sample_weight=problem.weight)
    assert difference(fisher.factor(), problem.factor) < TOLERANCE
