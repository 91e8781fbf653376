"""SVD, Gram and CG: one answer, on every matrix that training meets, and a report that can be believed."""

import functools

import cases
import keras
import numpy as np
import pytest
import scipy.sparse.linalg
import tensorflow as tf
from oracle import difference

import tf_natgrad as ng
from tf_natgrad import _checks
from tf_natgrad.operators import FactoredRhs, Fisher
from tf_natgrad.solvers import Auto, ConjugateGradient, Gram, StopReason, SVDPseudoInverse, get
from tf_natgrad.solvers._base import readable

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-8
RCOND = 1e-8
DAMPING = 1e-3


def _solvers(dtype="float64"):
    tight = 1e-14 if dtype == "float64" else 1e-7
    return {
        "svd": SVDPseudoInverse(RCOND),
        "gram": Gram(RCOND),
        "cg": ConjugateGradient(rtol=tight, max_iterations=1000),
    }


# Every source of singularity at once: constant-zero pixels, duplicates, a zero weight, invariances of the softmax.
SINGULAR = {
    "softmax_regression": {},
    "mlp": {"hidden": (8, 6)},
    "softmax_in_model": {"softmax": True},
    "mlp_softmax_in_model": {"hidden": (8, 6), "softmax": True},
    "ten_classes": {"classes": 10},
}
SATURATED = {
    "saturated": {"scale": 1000.0},
    "saturated_mlp": {"hidden": (8, 6), "scale": 1000.0},
}


@pytest.fixture(scope="module")
def singular(float64):
    made = {}

    def get_one(name):
        if name not in made:
            made[name] = cases.singular_digits(**{**SINGULAR, **SATURATED}[name])
        return made[name]

    return get_one


def _damped_answer(problem, damping):
    """The answer of NumPy, and the condition number of its matrix."""
    matrix = problem.oracle.matrix + damping * np.eye(problem.size)
    return np.linalg.solve(matrix, problem.oracle.gradient), np.linalg.cond(matrix)


def _undamped_answer(problem, rcond):
    """The pseudo-inverse of NumPy, its condition number and rank; refuses spectra on which `rcond` decides."""
    values, vectors = np.linalg.eigh(problem.oracle.matrix)
    relative = values / values[-1]
    assert not np.any((relative > rcond / 100) & (relative < rcond * 100)), relative
    kept = relative > rcond
    answer = vectors[:, kept] @ ((vectors[:, kept].T @ problem.oracle.gradient) / values[kept])
    return answer, 1 / relative[kept].min(), kept.sum()


# Agreement.


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
@pytest.mark.parametrize("name", [*SINGULAR, *SATURATED])
def test_damped_solution(name, solver, singular):
    problem = singular(name)
    solution = _solvers()[solver].solve(problem.fisher.damped(DAMPING), problem.rhs)
    assert difference(solution.value, _damped_answer(problem, DAMPING)[0]) < TOLERANCE


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
@pytest.mark.parametrize("name", [*SINGULAR])
def test_undamped_solution(name, solver, singular):
    problem = singular(name)
    solution = _solvers()[solver].solve(problem.fisher, problem.rhs)
    answer, condition, rank = _undamped_answer(problem, RCOND)
    assert difference(solution.value, answer) < TOLERANCE, f"condition number {condition:.1e}"
    assert solver == "cg" or solution.info.rank == rank < problem.size


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
@pytest.mark.parametrize("name", ["binary", "regression", "learned_std", "cnn", "sequence", "shared_layer", "mixture"])
def test_other_cases(name, solver):
    problem = cases.shared(name)
    solution = _solvers()[solver].solve(problem.fisher.damped(0.1), problem.rhs)
    assert difference(solution.value, _damped_answer(problem, 0.1)[0]) < TOLERANCE


@pytest.mark.parametrize("damping", [0.0, DAMPING])
@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
@pytest.mark.parametrize("name", ["softmax_regression", "mlp", "softmax_in_model"])
def test_single_precision(name, solver, damping):
    single = cases.singular_digits(dtype="float32", **SINGULAR[name])
    double = cases.singular_digits(**SINGULAR[name])
    # The same numbers in both precisions.
    double.model.set_weights([w.astype("float64") for w in single.model.get_weights()])
    double.x = single.x.astype("float64")
    answer, condition = _damped_answer(double, damping) if damping else _undamped_answer(double, 1e-5 / 100)[:2]
    solvers = {"svd": SVDPseudoInverse(1e-6), "gram": Gram(1e-6), "cg": _solvers("float32")["cg"]}
    operator = single.fisher.damped(damping) if damping else single.fisher
    error = difference(solvers[solver].solve(operator, single.rhs).value, answer)
    bound = np.finfo("float32").eps * condition
    assert error < bound, f"condition number {condition:.2e}: error {error:.2e}, bound {bound:.2e}"


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
def test_saturated_in_single_precision(solver):
    single, double = (cases.singular_digits(dtype=d, scale=1000.0) for d in ("float32", "float64"))
    double.model.set_weights([w.astype("float64") for w in single.model.get_weights()])
    double.x = single.x.astype("float64")
    answer, condition = _damped_answer(double, DAMPING)
    solution = _solvers("float32")[solver].solve(single.fisher.damped(DAMPING), single.rhs)
    assert condition < 1.001
    assert difference(solution.value, answer) < 1e-6


@pytest.mark.parametrize("hidden", [(), (8, 6)], ids=["softmax_regression", "mlp"])
def test_ten_training_steps(hidden):
    problems = {name: cases.singular_digits(hidden=hidden) for name in _solvers()}
    for _ in range(10):
        for name, solver in _solvers().items():
            p = problems[name]
            step, _ = ng.natural_gradient(p.model, p.loss, p.x, p.y, p.weight, damping=0.1, solver=solver)
            p.flat.assign(p.flat.read() - 0.7 * step)
    trained = {name: p.flat.read().numpy() for name, p in problems.items()}
    assert difference(trained["gram"], trained["svd"]) < TOLERANCE
    assert difference(trained["cg"], trained["svd"]) < TOLERANCE
    assert difference(trained["svd"], cases.singular_digits(hidden=hidden).flat.read()) > 1e-2


@pytest.mark.parametrize("hidden", [(), (8, 6)], ids=["softmax_regression", "mlp"])
@pytest.mark.parametrize("damping", [0.0, DAMPING])
@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
def test_softmax_in_the_model_takes_the_same_step(solver, damping, hidden):
    logits, probabilities = (cases.singular_digits(hidden=hidden, softmax=s) for s in (False, True))
    steps = [
        _solvers()[solver].solve(p.fisher.damped(damping) if damping else p.fisher, p.rhs).value
        for p in (logits, probabilities)
    ]
    assert difference(steps[1], steps[0]) < TOLERANCE


@pytest.mark.parametrize("solver", ["svd", "gram"])
def test_saturated_softmax_in_the_model_takes_the_same_step(solver):
    logits, probabilities = (cases.singular_digits(scale=1000.0, softmax=s) for s in (False, True))
    steps = [_solvers()[solver].solve(p.fisher.damped(DAMPING), p.rhs).value for p in (logits, probabilities)]
    assert difference(steps[1], steps[0]) < TOLERANCE


# Right-hand sides.


@pytest.mark.parametrize("damping", [0.0, DAMPING])
@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
def test_flat_and_factored_right_hand_sides(solver, damping, singular):
    problem = singular("mlp")
    operator = problem.fisher.damped(damping) if damping else problem.fisher
    flat = problem.fisher.factor_transpose_matvec(problem.rhs.u)
    factored = _solvers()[solver].solve(operator, problem.rhs).value
    assert difference(_solvers()[solver].solve(operator, flat).value, factored) < TOLERANCE


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
@pytest.mark.parametrize("parts", ["u", "shift", "rest", "u_shift", "u_rest", "u_shift_rest"])
def test_parts_of_the_right_hand_side(parts, solver, singular, rng):
    problem = singular("mlp")
    shift, rest = rng.normal(size=(2, problem.size))
    rhs = FactoredRhs(
        problem.rhs.u if "u" in parts.split("_") else None,
        tf.constant(shift) if "shift" in parts else None,
        tf.constant(rest) if "rest" in parts else None,
    )
    flat = DAMPING * shift * ("shift" in parts) + rest * ("rest" in parts)
    flat += problem.oracle.gradient * ("u" in parts.split("_"))
    expected = np.linalg.solve(problem.oracle.matrix + DAMPING * np.eye(problem.size), flat)
    assert difference(_solvers()[solver].solve(problem.fisher.damped(DAMPING), rhs).value, expected) < TOLERANCE


@pytest.mark.parametrize("solver", ["svd", "gram"])
def test_rest_without_damping(solver, singular, rng):
    problem = singular("softmax_regression")
    rest = rng.normal(size=problem.size)
    rhs = FactoredRhs(problem.rhs.u, tf.constant(rng.normal(size=problem.size)), tf.constant(rest))
    expected = np.linalg.pinv(problem.oracle.matrix, RCOND, True) @ (problem.oracle.gradient + rest)
    assert difference(_solvers()[solver].solve(problem.fisher, rhs).value, expected) < TOLERANCE


def test_factored_form_does_not_cancel_and_the_flat_one_does():
    single, double = (cases.singular_digits(dtype=d, hidden=(8, 6)) for d in ("float32", "float64"))
    double.model.set_weights([w.astype("float64") for w in single.model.get_weights()])
    double.x = single.x.astype("float64")
    answer, _ = _damped_answer(double, 1e-5)
    operator, solver = single.fisher.damped(1e-5), Gram()
    flat = single.fisher.factor_transpose_matvec(single.rhs.u)
    error, error_flat = (difference(solver.solve(operator, rhs).value, answer) for rhs in (single.rhs, flat))
    assert error < 1e-3 and error < error_flat / 10


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
def test_mc_fisher(solver):
    problem = cases.shared("mlp")
    fisher = problem.make_fisher(kind="mc", seed=2)
    matrix = fisher.to_dense().numpy() + DAMPING * np.eye(problem.size)
    solution = _solvers()[solver].solve(fisher.damped(DAMPING), fisher.loss_gradient(problem.y))
    assert difference(solution.value, np.linalg.solve(matrix, problem.oracle.gradient)) < TOLERANCE


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
def test_zero_right_hand_side(solver):
    problem = cases.shared("mlp")
    solution = _solvers()[solver].solve(problem.fisher.damped(0.1), np.zeros(problem.size))
    assert not np.any(solution.value)


# Where the damping is known only at run time.


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_damping_that_is_known_only_at_run_time(solver, damping, singular):
    problem = singular("softmax_regression")

    @tf.function(autograph=False)
    def solve(lam):
        fisher = Fisher(problem.model, problem.loss, problem.x, sample_weight=problem.weight)
        return _solvers()[solver].solve(fisher.damped(lam), fisher.loss_gradient(problem.y)).value

    expected = _damped_answer(problem, damping)[0] if damping else _undamped_answer(problem, RCOND)[0]
    assert difference(solve(tf.constant(damping, tf.float64)), expected) < TOLERANCE


def test_run_time_damping_with_every_part(singular, rng):
    problem = singular("softmax_regression")
    rest = rng.normal(size=problem.size)
    rhs = FactoredRhs(problem.rhs.u, None, tf.constant(rest))
    for damping in (0.0, DAMPING):
        variable = tf.Variable(damping, dtype=tf.float64)
        dynamic = tf.function(lambda v=variable: Gram(RCOND).solve(problem.fisher.damped(v), rhs).value)()
        operator = problem.fisher.damped(damping) if damping else problem.fisher
        assert difference(dynamic, Gram(RCOND).solve(operator, rhs).value) < TOLERANCE


def test_cg_inside_xla():
    problem = cases.shared("mlp")

    @tf.function(autograph=False, jit_compile=True)
    def solve(x):
        fisher = Fisher(problem.model, problem.loss, x, sample_weight=problem.weight)
        return _solvers()["cg"].solve(fisher.damped(0.1), fisher.loss_gradient(problem.y)).value

    assert difference(solve(problem.x), _damped_answer(problem, 0.1)[0]) < TOLERANCE
    assert ConjugateGradient.supports_jit and not (Gram.supports_jit or SVDPseudoInverse.supports_jit)


# Cut-off.


@pytest.mark.parametrize("rcond", [1e-1, 1e-2, 1e-3, 3e-4])
def test_gram_cuts_off_where_svd_does(rcond, singular):
    problem = singular("softmax_regression")
    gram, svd = (solver(rcond).solve(problem.fisher, problem.rhs) for solver in (Gram, SVDPseudoInverse))
    assert gram.info.rank == svd.info.rank < 18
    assert difference(gram.value, svd.value) < TOLERANCE
    assert gram.info.condition_number == pytest.approx(svd.info.condition_number, rel=TOLERANCE)
    assert 0 < gram.info.discarded_gradient_energy == pytest.approx(svd.info.discarded_gradient_energy, rel=1e-6)


def test_with_damping_nothing_is_cut_off(singular):
    problem = singular("softmax_regression")
    for solver in (Gram(0.5), SVDPseudoInverse(0.5)):
        solution = solver.solve(problem.fisher.damped(DAMPING), problem.rhs)
        assert difference(solution.value, _damped_answer(problem, DAMPING)[0]) < TOLERANCE
        assert solution.info.discarded_gradient_energy == pytest.approx(0.0, abs=1e-12)


def test_regular_gram_matrix_is_solved_by_cholesky():
    problem = cases.shared("mlp")
    solution = Gram(1e-12).solve(problem.fisher, problem.rhs)
    assert not solution.info.used_eigh and solution.info.rank == solution.info.rows == 10
    assert difference(solution.value, _undamped_answer(problem, 1e-10)[0]) < TOLERANCE


def test_singular_gram_matrix_needs_eigh(singular):
    problem = singular("softmax_regression")
    assert Gram(RCOND).solve(problem.fisher, problem.rhs).info.used_eigh
    assert not Gram(RCOND).solve(problem.fisher.damped(DAMPING), problem.rhs).info.used_eigh


def test_damping_below_the_rounding_of_float32():
    single, double = (cases.singular_digits(dtype=d) for d in ("float32", "float64"))
    double.model.set_weights([w.astype("float64") for w in single.model.get_weights()])
    double.x = single.x.astype("float64")
    solution = Gram().solve(single.fisher.damped(1e-9), single.rhs)
    answer, condition = _damped_answer(double, 1e-9)
    assert solution.info.used_float64 and solution.info.used_eigh
    assert difference(solution.value, answer) < np.finfo("float32").eps * condition


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_quadratic_form(solver, damping, singular):
    problem = singular("mlp")
    operator = problem.fisher.damped(damping) if damping else problem.fisher
    solution = _solvers()[solver].solve(operator, problem.rhs)
    value = solution.value.numpy()
    expected = value @ problem.oracle.matrix @ value
    assert solution.info.quadratic_form == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("solver", [SVDPseudoInverse, Gram])
@pytest.mark.parametrize(
    "rcond, error", [(-0.1, ValueError), (1.0, ValueError), (np.nan, ValueError), ("a", TypeError)]
)
def test_bad_rcond_is_refused(solver, rcond, error):
    with pytest.raises(error, match=r"`rcond`"):
        solver(rcond)


# Conjugate gradients.


def _planted(spectrum, seed=0, dtype="float64"):
    """A symmetric operator with this spectrum, and its matrix."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))[0]
    matrix = ((q * spectrum) @ q.T).astype(dtype)
    return tf.linalg.LinearOperatorFullMatrix(tf.constant((matrix + matrix.T) / 2), is_self_adjoint=True), matrix


def test_cg_on_a_planted_spectrum(rng):
    operator, matrix = _planted(np.geomspace(1, 1e4, 40))
    b = rng.normal(size=40)
    solution = ConjugateGradient(rtol=1e-12, max_iterations=400).solve(operator, b)
    assert difference(solution.value, np.linalg.solve(matrix, b)) < TOLERANCE
    assert solution.info.converged and solution.info.reason.startswith("converged")
    assert solution.info.residual == pytest.approx(
        np.linalg.norm(b - matrix @ solution.value.numpy()), rel=1e-3, abs=1e-12
    )
    assert solution.info.relative_residual <= 1e-12


def test_cg_needs_as_many_iterations_as_there_are_eigenvalues(rng):
    operator, _ = _planted(np.repeat([1.0, 5.0, 20.0], 20))
    assert ConjugateGradient(rtol=1e-10).solve(operator, rng.normal(size=60)).info.iterations == 3


def test_preconditioner_reduces_iterations(rng):
    scale = np.geomspace(1, 1e3, 60)
    _, matrix = _planted(np.linspace(1, 2, 60))
    matrix = scale[:, None] * matrix * scale
    operator = tf.linalg.LinearOperatorFullMatrix(matrix, is_self_adjoint=True)
    b, jacobi = rng.normal(size=60), tf.constant(1 / np.diag(matrix))
    plain = ConjugateGradient(rtol=1e-10).solve(operator, b)
    better = ConjugateGradient(rtol=1e-10, preconditioner=lambda r: jacobi * r).solve(operator, b)
    assert better.info.iterations < plain.info.iterations / 2
    assert difference(better.value, np.linalg.solve(matrix, b)) < TOLERANCE


def test_jacobi_preconditioner_on_a_fisher(rng):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    fisher = Fisher(model, "mse", rng.normal(size=(30, 8)) * np.geomspace(0.01, 10, 8))
    rhs, diagonal = rng.normal(size=27), tf.linalg.diag_part(fisher.to_dense())
    plain = ConjugateGradient(rtol=1e-10, max_iterations=500).solve(fisher, rhs)
    better = ConjugateGradient(rtol=1e-10, preconditioner=lambda r: r / diagonal).solve(fisher, rhs)
    assert better.info.converged and better.info.iterations < plain.info.iterations
    assert difference(better.value, np.linalg.solve(fisher.to_dense(), rhs)) < 1e-6


def test_kronecker_factors_save_iterations(rng):
    stack = [keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *stack])
    fisher = Fisher(model, "mse", rng.normal(size=(300, 8)) * np.geomspace(0.03, 3, 8)).damped(1e-4)
    rhs = rng.normal(size=fisher.shape[0])
    plain, better = (
        ConjugateGradient(rtol=1e-8, max_iterations=2000, preconditioner=p).solve(fisher, rhs) for p in (None, "kfac")
    )
    assert better.info.converged and better.info.iterations < plain.info.iterations / 2
    assert difference(better.value, np.linalg.solve(fisher.to_dense(), rhs)) < 1e-6
    in_graph = tf.function(lambda: ConjugateGradient(rtol=1e-8, preconditioner="kfac").solve(fisher, rhs).value)
    assert difference(in_graph(), better.value) < 1e-6


def test_kronecker_factors_of_other_matrices_are_refused():
    solver, rhs = ConjugateGradient(preconditioner="kfac"), np.ones(12)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    fisher = Fisher(model, "mse", np.ones((4, 3)))
    data = tf.data.Dataset.from_tensors(np.ones((4, 3)))
    for operator, received in (
        (fisher, "without damping"),
        (fisher.damped(0.0), "without damping"),
        (Fisher(model, "mse", data).damped(0.1), "'kfac' for Fisher"),
        (tf.linalg.LinearOperatorFullMatrix(np.eye(12), is_self_adjoint=True), "LinearOperatorFullMatrix"),
    ):
        with pytest.raises(ValueError, match=f"`preconditioner`: received .*{received}"):
            solver.solve(operator, rhs)


def test_jacobi_by_name_is_the_inverse_of_the_diagonal(singular):
    problem = singular("softmax_regression")
    diagonal = np.diag(problem.dense) + DAMPING
    by_name, by_hand = (
        ConjugateGradient(rtol=1e-10, preconditioner=p).solve(problem.fisher.damped(DAMPING), problem.rhs)
        for p in ("jacobi", lambda r: r / diagonal)
    )
    assert by_name.info.iterations == by_hand.info.iterations
    assert difference(by_name.value, by_hand.value) < TOLERANCE


def test_warm_start(rng):
    operator, matrix = _planted(np.geomspace(1, 1e3, 40))
    b, solver = rng.normal(size=40), ConjugateGradient(rtol=1e-8)
    cold = solver.solve(operator, b)
    warm = solver.solve(operator, b, x0=np.linalg.solve(matrix, b))
    near = solver.solve(operator, b, x0=np.linalg.solve(matrix, b) + 1e-6 * rng.normal(size=40))
    assert warm.info.iterations == 0 and warm.info.converged
    assert 0 < near.info.iterations < cold.info.iterations


def _cg_with_martens_rule(matrix, b, tolerance, x=None, inverse=1.0):
    """The textbook's iteration with the rule of Martens (2010, section 4.4) to the letter, phi by the matrix."""
    x = np.zeros_like(b) if x is None else x
    r = b - matrix @ x
    p, inner, phi = inverse * r, r @ (inverse * r), [x @ matrix @ x / 2 - b @ x]
    for i in range(1, 10 * len(b)):
        alpha = inner / (p @ matrix @ p)
        x, r = x + alpha * p, r - alpha * (matrix @ p)
        phi.append(x @ matrix @ x / 2 - b @ x)
        k = max(10, -(-i // 10))
        if i > k and phi[i] < 0 and (phi[i] - phi[i - k]) / phi[i] < k * tolerance:
            return i, x
        inner, before = r @ (inverse * r), inner
        p = inverse * r + inner / before * p
    raise AssertionError("the rule never applied")


# Spectra on which rounding does not change the iterates, and tolerances.
MARTENS = {
    "default": (np.geomspace(1, 60, 200), 5e-4, False),
    "a_tenth_of_the_iterations": (2.0003 - 2 * np.cos(np.pi * np.arange(1, 401) / 401), 1e-5, False),
    "jacobi": (np.geomspace(1, 60, 200), 1e-4, True),
}


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("name", MARTENS)
def test_progress_rule(name, warm, mode, rng):
    spectrum, tolerance, jacobi = MARTENS[name]
    _, matrix = _planted(spectrum)
    size = len(matrix)
    if jacobi:
        scale = np.geomspace(1, 10, size)
        matrix = scale[:, None] * matrix * scale
    operator = tf.linalg.LinearOperatorFullMatrix(matrix, is_self_adjoint=True)
    b, start = rng.normal(size=size), 3 * rng.normal(size=size) if warm else None
    inverse = 1 / np.diag(matrix) if jacobi else 1.0
    iterations, expected = _cg_with_martens_rule(matrix, b, tolerance, start, inverse)
    assert iterations > (100 if name.startswith("a_tenth") else 11)
    preconditioner = "jacobi" if jacobi else None
    solver = ConjugateGradient(1e-14, preconditioner=preconditioner, stopping="progress", progress_tolerance=tolerance)

    def solve(b, *start):
        value, info = solver.solve(operator, b, *start)
        # The report's first field is a string, which XLA does not return.
        return value, info.iterations, info.reason

    run = solve if mode == "eager" else tf.function(solve, autograph=False, jit_compile=mode == "xla")
    value, count, reason = run(*(tf.constant(v) for v in (b, start) if v is not None))
    assert reason == (StopReason.PROGRESS.text if mode == "eager" else StopReason.PROGRESS)
    assert count == iterations
    assert difference(value, expected) < TOLERANCE


def test_progress_rule_leaves_the_tolerance_alone_and_logs_nothing(rng, caplog):
    operator, _ = _planted(np.geomspace(1, 1e3, 60))
    b = rng.normal(size=60)
    stopped = ConjugateGradient(rtol=1e-12, stopping="progress").solve(operator, b).info
    assert not stopped.converged and stopped.reason.startswith("stopped by the progress rule")
    assert not caplog.records
    plain, loose = (ConjugateGradient(rtol=0.3, stopping=s).solve(operator, b) for s in ("residual", "progress"))
    assert loose.info.converged and loose.info.reason.startswith("converged")
    assert loose.info.iterations == plain.info.iterations
    assert difference(loose.value, plain.value) < TOLERANCE


def test_progress_rule_returns_the_last_iterate_though_the_residual_rose(rng):
    _, matrix = _planted(np.linspace(1, 2, 60))
    scale = np.geomspace(1, 1e2, 60)
    matrix = scale[:, None] * matrix * scale
    operator, b = tf.linalg.LinearOperatorFullMatrix(matrix, is_self_adjoint=True), scale * rng.normal(size=60)
    for limit in range(1, 12):
        by_residual, by_phi = (
            ConjugateGradient(rtol=1e-12, max_iterations=limit, stopping=s).solve(operator, b).value.numpy()
            for s in ("residual", "progress")
        )
        phis = [x @ matrix @ x / 2 - b @ x for x in (by_residual, by_phi)]
        norms = [np.linalg.norm(b - matrix @ x) for x in (by_residual, by_phi)]
        if norms[0] < norms[1]:
            assert phis[1] < phis[0]
            return
    raise AssertionError("the residual never rose")


@pytest.mark.parametrize("stopping", ["residual", "progress"])
def test_progress_and_residual_survive_a_singular_matrix_in_single_precision(stopping):
    problem = cases.singular_digits(dtype="float32", hidden=(8, 6))
    rhs = problem.fisher.factor_transpose_matvec(problem.rhs.u)
    solver = ConjugateGradient(rtol=1e-12, stopping=stopping, progress_tolerance=1e-12)
    solution = solver.solve(problem.fisher, rhs)
    assert solution.info.relative_residual < 1e-2 and np.isfinite(solution.value).all()


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("stopping", ["residual", "progress"])
def test_residual_product_completes_the_quadratic(stopping, warm, singular, rng):
    problem = singular("mlp")
    start = rng.normal(size=problem.size) if warm else None
    solver = ConjugateGradient(max_iterations=4, stopping=stopping)
    value, info = solver.solve(problem.fisher.damped(DAMPING), problem.rhs, start)
    product = float(problem.oracle.gradient @ value.numpy())
    quadratic = info.quadratic_form + DAMPING * float(value.numpy() @ value.numpy())
    assert quadratic + info.residual_product == pytest.approx(product, rel=TOLERANCE)
    scale = 1e-3 * info.residual * np.linalg.norm(value)
    assert (abs(info.residual_product) > scale) == warm


def test_cg_is_deterministic(singular):
    problem = singular("mlp")
    first, second = (_solvers()["cg"].solve(problem.fisher.damped(DAMPING), problem.rhs) for _ in range(2))
    assert np.array_equal(first.value, second.value) and first.info == second.info


@pytest.mark.parametrize("rtol, atol", [(1e-3, 0.0), (1e-6, 0.0), (0.0, 1e-4), (1e-9, 1e-2)])
def test_tolerances(rtol, atol, rng):
    operator, _ = _planted(np.geomspace(1, 1e3, 40))
    b = rng.normal(size=40)
    solution = ConjugateGradient(rtol=rtol, atol=atol).solve(operator, b)
    allowed = max(atol, rtol * np.linalg.norm(b))
    assert solution.info.converged and allowed / 1000 < solution.info.residual <= allowed


def test_max_iterations_is_reported(rng):
    operator, _ = _planted(np.geomspace(1, 1e3, 40))
    info = ConjugateGradient(rtol=1e-12, max_iterations=5).solve(operator, rng.normal(size=40)).info
    assert info.iterations == 5 and not info.converged
    assert info.reason.startswith("stopped at max_iterations")


def test_negative_curvature_is_reported(rng):
    operator, _ = _planted(np.concatenate([[-5.0], np.linspace(1, 2, 19)]))
    info = ConjugateGradient(rtol=1e-12).solve(operator, rng.normal(size=20)).info
    assert "non-positive curvature" in info.reason and not info.converged
    assert info.least_curvature <= 0


def test_least_curvature_of_a_positive_definite_matrix(rng):
    operator, _ = _planted(np.linspace(1, 9, 20))
    info = ConjugateGradient(rtol=1e-12).solve(operator, rng.normal(size=20)).info
    assert 1.0 - TOLERANCE <= info.least_curvature <= 9.0


def test_stagnation_returns_the_best_iterate():
    problem = cases.singular_digits(dtype="float32", hidden=(8, 6))
    rhs = problem.fisher.factor_transpose_matvec(problem.rhs.u)
    solution = ConjugateGradient(rtol=1e-12, max_iterations=1000).solve(problem.fisher, rhs)
    residual = np.linalg.norm(problem.fisher.matvec(solution.value) - rhs)
    assert "no longer falls" in solution.info.reason and not solution.info.converged
    assert solution.info.iterations < 1000
    assert residual < 1e-4 * np.linalg.norm(rhs)
    assert solution.info.residual == pytest.approx(residual, rel=0.1)


def test_stagnation_on_an_inconsistent_system(rng):
    operator, _ = _planted(np.concatenate([np.zeros(5), np.linspace(1, 2, 15)]))
    solution = ConjugateGradient(rtol=1e-10).solve(operator, rng.normal(size=20))
    assert not solution.info.converged and np.isfinite(solution.value).all()
    assert solution.info.reason.startswith("stopped")


@functools.cache
def _partly_outside_the_range(dtype, damping, size=120, rows=40, outside=1.0):
    """`F = A^T A` of low rank with damping, and a right-hand side of which a part lies outside of the range of `F`."""
    rng = np.random.default_rng(0)
    factor = np.geomspace(1, 1e-2, rows)[:, None] * rng.normal(size=(rows, size)) / np.sqrt(size)
    b, w = factor.T @ rng.normal(size=rows), rng.normal(size=size)
    w -= np.linalg.lstsq(factor.T, w, rcond=None)[0] @ factor
    b += outside * np.linalg.norm(b) / np.linalg.norm(w) * w
    matrix = factor.T @ factor + damping * np.eye(size)
    return Counted(tf.constant(matrix, dtype), is_self_adjoint=True), tf.constant(b, dtype), matrix, b


class Counted(tf.linalg.LinearOperatorFullMatrix):
    """A matrix that counts its products in eager execution."""

    products = 0

    def matvec(self, x, *arguments, **options):
        self.products += 1
        return super().matvec(x, *arguments, **options)


def _compiled(solver, operator, b):
    """As a graph, which is faster where there are hundreds of iterations."""
    value, info = tf.function(lambda: tuple(solver.solve(operator, b)), autograph=False)()
    return value, readable(info)


@pytest.mark.parametrize("damping", [1e-6, 1e-7])
@pytest.mark.parametrize("outside", [1.0, 1e-4])
def test_a_rise_of_the_residual_is_no_stagnation(outside, damping):
    operator, b, matrix, _ = _partly_outside_the_range("float64", damping, outside=outside)
    operator.products, count = 0, []
    peer, _ = scipy.sparse.linalg.cg(matrix, b.numpy(), rtol=1e-8, maxiter=400, callback=count.append)
    value, info = ConjugateGradient(rtol=1e-8).solve(operator, b)
    expected = np.linalg.solve(matrix, b.numpy())
    assert difference(value, expected) < max(2 * difference(peer, expected), 1e-7)
    assert info.converged and info.iterations <= 1.1 * len(count)
    # One for the last residual, one for the claim of convergence, and the checks on the way.
    assert info.iterations < operator.products <= 1.02 * info.iterations + 3


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_rise_of_the_residual_is_no_stagnation_in_graphs(mode):
    operator, b, matrix, _ = _partly_outside_the_range("float64", 1e-6)

    @tf.function(autograph=False, jit_compile=mode == "xla")
    def solve(b):
        value, info = ConjugateGradient(rtol=1e-8).solve(operator, b)
        return value, info.reason

    value, reason = solve(b)
    assert reason == StopReason.CONVERGED and difference(value, np.linalg.solve(matrix, b.numpy())) < TOLERANCE


@pytest.mark.parametrize("damping", [1e-6, 1e-7])
def test_single_precision_stops_where_rounding_does_and_not_before(damping):
    operator, b, matrix, exact = _partly_outside_the_range("float32", damping, 200, 60)
    peer, _ = scipy.sparse.linalg.cg(operator.to_dense().numpy(), b.numpy(), rtol=1e-5, maxiter=400)
    value, info = _compiled(ConjugateGradient(rtol=1e-5), operator, b)
    expected = np.linalg.solve(matrix, exact)
    assert difference(value, expected) < 1e-2
    assert difference(value, expected) < 2 * difference(peer, expected)
    assert "no longer falls" in info.reason and info.iterations < 400


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_divergence_on_an_inconsistent_system_ends(dtype):
    operator, b, *_ = _partly_outside_the_range(dtype, 0.0)
    value, info = _compiled(ConjugateGradient(rtol=1e-10, max_iterations=2000), operator, b)
    assert not info.converged and info.reason.startswith("stopped") and info.iterations < 400
    assert info.relative_residual <= 1.0 and np.isfinite(value).all()


def test_patience_is_how_long_rounding_may_go_unnoticed():
    operator, b, *_ = _partly_outside_the_range("float32", 1e-6)
    soon, late = (_compiled(ConjugateGradient(1e-5, max_iterations=400, patience=p), operator, b)[1] for p in (10, 60))
    assert "no longer falls" in soon.reason and "no longer falls" in late.reason
    assert soon.iterations < late.iterations and soon.relative_residual < 0.1


@pytest.mark.parametrize("seed, rtol", [(2, 4e-5), (1, 2e-5)])
def test_a_tolerance_that_rounding_misses_by_little_is_reached(seed, rtol):
    rng = np.random.default_rng(seed)
    factor = np.geomspace(1, 0.1, 20)[:, None] * rng.normal(size=(20, 60)) / np.sqrt(60)
    b, w = factor.T @ rng.normal(size=20), rng.normal(size=60)
    w -= np.linalg.lstsq(factor.T, w, rcond=None)[0] @ factor
    b += 0.1 * np.linalg.norm(b) / np.linalg.norm(w) * w
    matrix = (factor.T @ factor).astype("float32") + np.float32(1e-4) * np.eye(60, dtype="float32")
    operator = tf.linalg.LinearOperatorFullMatrix(matrix, is_self_adjoint=True)
    info = ConjugateGradient(rtol=rtol).solve(operator, b.astype("float32")).info
    assert info.converged and info.reason.startswith("converged")


@pytest.mark.parametrize("start", [None, np.ones(3)], ids=["cold", "warm"])
@pytest.mark.parametrize("diagonal", [[1.0, 2.0, 3.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
def test_right_hand_side_of_zero(diagonal, start, caplog):
    operator = tf.linalg.LinearOperatorDiag(tf.constant(diagonal, tf.float64), is_self_adjoint=True)
    value, info = ConjugateGradient().solve(operator, np.zeros(3), start)
    assert np.array_equal(value, np.zeros(3)) and info.converged and info.iterations == 0
    assert info.residual == info.relative_residual == info.quadratic_form == info.residual_product == 0.0
    assert info.reason.startswith("converged") and not caplog.records


@pytest.mark.parametrize("stopping", ["residual", "progress"])
def test_operator_of_zeros(stopping):
    layers = [keras.Input((2,)), keras.layers.Dense(1, use_bias=False)]
    fisher = Fisher(keras.Sequential(layers), "mse", np.zeros((3, 2)))
    solver = ConjugateGradient(stopping=stopping)
    value, info = solver.solve(fisher.damped(0.1), np.ones(2))
    assert value.numpy() == pytest.approx(10 * np.ones(2)) and info.converged and info.iterations == 1
    assert info.quadratic_form == pytest.approx(0.0) and info.least_curvature == pytest.approx(0.1)
    value, info = solver.solve(fisher, np.ones(2))
    assert np.array_equal(value, np.zeros(2)) and "non-positive curvature" in info.reason and not info.converged


def test_reason_agrees_with_the_true_residual(rng):
    operator, _ = _planted(np.linspace(1, 2, 12))
    b = rng.normal(size=12)
    for limit in range(1, 14):
        info = ConjugateGradient(rtol=1e-6, max_iterations=limit).solve(operator, b).info
        assert info.converged == info.reason.startswith("converged") == (info.relative_residual <= 1e-6)


def test_each_reason_is_logged_once(rng, caplog):
    operator, _ = _planted(np.concatenate([[-5.0], np.geomspace(1, 1e3, 39)]))
    positive, _ = _planted(np.geomspace(1, 1e3, 40))
    b = rng.normal(size=40)
    _checks._logged.clear()
    for _ in range(2):
        ConjugateGradient(rtol=1e-12, max_iterations=2).solve(positive, b)
        ConjugateGradient(rtol=1e-12).solve(operator, b)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2 and "max_iterations" in texts[0] and "non-positive curvature" in texts[1]


def test_operator_that_gives_nan():
    matrix = np.eye(4)
    matrix[2, 2] = np.nan
    operator = tf.linalg.LinearOperatorFullMatrix(matrix, is_self_adjoint=True)
    info = ConjugateGradient().solve(operator, np.ones(4)).info
    assert not info.converged and "not finite" in info.reason


def test_right_hand_side_with_nan_is_not_called_solved():
    problem = cases.shared("mlp")
    rhs = np.full(problem.size, np.nan)
    solution = ConjugateGradient().solve(problem.fisher.damped(0.1), rhs)
    assert not solution.info.converged and not np.isfinite(solution.value).any()
    assert "right-hand side" in solution.info.reason


def test_operator_that_is_not_symmetric_is_refused():
    operator = tf.linalg.LinearOperatorFullMatrix(np.ones((2, 2)), is_self_adjoint=False)
    with pytest.raises(ValueError, match=r"`operator`.*not self-adjoint.*a symmetric operator"):
        ConjugateGradient().solve(operator, np.ones(2))


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"rtol": -1.0}, ValueError),
        ({"atol": np.inf}, ValueError),
        ({"max_iterations": 0}, ValueError),
        ({"max_iterations": 1.5}, TypeError),
        ({"patience": 0}, ValueError),
        ({"stopping": "phi"}, ValueError),
        ({"progress_tolerance": 0.0}, ValueError),
        ({"preconditioner": 3}, TypeError),
        ({"preconditioner": "ilu"}, TypeError),
    ],
)
def test_bad_arguments_of_cg_are_refused(arguments, error):
    with pytest.raises(error, match=f"`{next(iter(arguments))}`"):
        ConjugateGradient(**arguments)


# The choice.


def test_auto_takes_gram_for_a_network_larger_than_its_batch():
    problem = cases.shared("mlp")
    solution = Auto().solve(problem.fisher.damped(0.1), problem.rhs)
    assert solution.info.solver == "Gram" and "10 rows of the Gram matrix" in solution.info.why


def test_auto_takes_svd_for_a_small_network_and_a_large_batch(rng):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    fisher = Fisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), rng.normal(size=(50, 2)))
    solution = Auto().solve(fisher.damped(0.1), fisher.loss_gradient(np.zeros(50, int)))
    assert solution.info.solver == "SVDPseudoInverse" and "9 parameters are fewer than 100 rows" in solution.info.why


@pytest.fixture(scope="module")
def long_sequence(float64):
    """One example of 7,000 positions and four classes: 21,000 rows, 613 parameters."""
    layers = [
        keras.Input((None,), dtype="int32"),
        keras.layers.Embedding(300, 2),
        keras.layers.Dense(4, use_bias=False),
    ]
    x = np.random.default_rng(0).integers(0, 300, (1, 7000))
    return Fisher(keras.Sequential(layers), keras.losses.SparseCategoricalCrossentropy(from_logits=True), x), x % 4


def test_auto_goes_to_cg_beyond_20_000_rows(long_sequence):
    fisher, y = long_sequence
    solution = Auto(rtol=1e-6).solve(fisher.damped(0.1), fisher.loss_gradient(y))
    assert solution.info.solver == "ConjugateGradient" and solution.info.converged
    assert "21,000 rows, more than 20,000" in solution.info.why and "Monte-Carlo" in solution.info.why


@pytest.mark.parametrize(("units", "solver"), [(3, "SVDPseudoInverse"), (120, "ConjugateGradient")])
def test_auto_goes_without_a_gram_matrix_that_does_not_exist(units, solver, rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(units)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fisher = Fisher(model, loss, rng.normal(size=(5, 4)), training=True)
    solution = Auto().solve(fisher.damped(0.1), fisher.loss_gradient(np.zeros(5, int)))
    assert solution.info.solver == solver and "BatchNormalization in training mode" in solution.info.why


def test_auto_is_as_good_as_what_it_takes():
    problem = cases.shared("mlp")
    solution = Auto().solve(problem.fisher.damped(0.1), problem.rhs)
    assert difference(solution.value, _damped_answer(problem, 0.1)[0]) < TOLERANCE


def test_auto_without_a_known_batch_size():
    problem = cases.shared("mlp")
    chosen = []

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float64)], autograph=False)
    def solve(x):
        fisher = Fisher(problem.model, problem.loss, x, sample_weight=problem.weight)
        solution = Auto().solve(fisher.damped(0.1), fisher.loss_gradient(problem.y))
        chosen.append(solution.info.why)
        return solution.value

    assert difference(solve(problem.x), _damped_answer(problem, 0.1)[0]) < TOLERANCE
    assert chosen == ["the batch size is not known while tracing"]


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
def test_why_is_empty_where_there_was_no_choice(solver):
    problem = cases.shared("mlp")
    assert _solvers()[solver].solve(problem.fisher.damped(0.1), problem.rhs).info.why == ""


def test_auto_refuses_bad_numbers():
    for arguments in ({"rcond": 2.0}, {"rtol": -1.0}, {"max_iterations": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
            Auto(**arguments)


@pytest.mark.parametrize(
    "name, cls", [("auto", Auto), ("gram", Gram), ("cg", ConjugateGradient), ("svd", SVDPseudoInverse)]
)
def test_get(name, cls):
    assert get(name) == cls()
    assert get(cls()) == cls()
    assert get(ng.solvers.to_config(cls())) == cls()


def test_configuration_of_the_progress_rule():
    solver = ConjugateGradient(stopping="progress", progress_tolerance=1e-3, preconditioner="jacobi")
    assert get(ng.solvers.to_config(solver)) == solver != ConjugateGradient(preconditioner="jacobi")


def test_get_refuses_what_it_does_not_know():
    with pytest.raises(
        ValueError, match=r"`solver`: received 'lu'; expected one of 'auto', 'cg', 'cholesky', 'gram', 'svd'"
    ):
        get("lu")
    with pytest.raises(TypeError, match=r"`solver`.*a solver of `tf_natgrad.solvers` or its name"):
        get(3)


# What is given.


@pytest.mark.parametrize("solver", ["svd", "gram", "cg"])
def test_wrong_shapes_are_refused(solver):
    fisher = cases.shared("mlp").fisher.damped(0.1)
    for rhs, x0, name in ((np.ones(63), None, "rhs"), (np.ones((64, 1)), None, "rhs"), (np.ones(64), np.ones(3), "x0")):
        with pytest.raises(ValueError, match=f"`{name}`: received shape"):
            _solvers()[solver].solve(fisher, rhs, x0)


def test_gram_refuses_an_operator_without_a_factor():
    operator = tf.linalg.LinearOperatorIdentity(3, dtype=tf.float64)
    with pytest.raises(TypeError, match=r"`operator`.*a factor A.*ConjugateGradient\(\)"):
        Gram().solve(operator, np.ones(3))


def test_svd_beyond_the_memory_limit_names_the_solvers_that_fit(monkeypatch):
    model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(512), keras.layers.Dense(10)])
    fisher = Fisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), np.zeros((2, 784)))
    with pytest.raises(ValueError, match=r"GiB.*Gram\(\).*ConjugateGradient\(\)"):
        SVDPseudoInverse().solve(fisher, np.zeros(fisher.shape[0]))


@pytest.mark.parametrize("solver", ["svd", "gram"])
def test_matrix_that_is_not_finite_gives_nan(solver):
    problem = cases.fresh("softmax_regression")
    problem.flat.assign(np.full(problem.size, np.nan))
    solution = _solvers()[solver].solve(problem.fisher.damped(0.1), problem.rhs)
    assert np.isnan(solution.value).all()


# What must not be formed is not formed.


def test_gram_on_a_network_whose_dense_fisher_would_not_fit(rng):
    with cases.precision("float32"):
        layers = [keras.layers.Dense(512, "relu"), keras.layers.Dense(512, "relu"), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input((784,)), *layers])
        x, y = rng.normal(size=(4, 784)).astype("float32"), np.array([0, 1, 2, 3])
        fisher = Fisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), x)
    assert fisher.shape[0] == 669_706
    with pytest.raises(ValueError, match=r"669,706 x 669,706 takes 1,?670.8 GiB"):
        fisher.to_dense()
    rhs = fisher.loss_gradient(y)
    solution = Gram().solve(fisher.damped(0.1), rhs)
    residual = fisher.damped(0.1).matvec(solution.value) - fisher.factor_transpose_matvec(rhs.u)
    assert np.linalg.norm(residual) < 1e-5 * np.linalg.norm(fisher.factor_transpose_matvec(rhs.u))


# What the Gram solver reports.


def _plain_right_hand_sides(problem):
    """A gradient with ever more of it outside of the range of A^T."""
    rng = np.random.default_rng(0)
    inside = problem.fisher.factor_transpose_matvec(rng.normal(size=problem.fisher.rows)).numpy()
    outside = rng.normal(size=problem.size)
    return [inside / np.linalg.norm(inside) + share * outside / np.linalg.norm(outside) for share in (0.0, 0.3, 3.0)]


@pytest.mark.parametrize("name", ["mlp", "softmax_regression", "ten_classes"])
@pytest.mark.parametrize("rcond", [1e-10, 1e-2])
def test_gram_tells_what_it_left_out_of_a_plain_vector(name, rcond, singular):
    problem = singular(name)
    for rhs in _plain_right_hand_sides(problem):
        told = Gram(rcond).solve(problem.fisher, rhs).info.discarded_gradient_energy
        expected = SVDPseudoInverse(rcond).solve(problem.fisher, rhs).info.discarded_gradient_energy
        assert abs(told - expected) < 1e-8
    assert told > 0.1
    assert Gram(rcond).solve(problem.fisher.damped(0.1), rhs).info.discarded_gradient_energy == 0.0


def test_gram_tells_what_it_left_out_of_a_gradient_with_a_rest(singular):
    problem = singular("mlp")
    rhs = problem.rhs._replace(rest=tf.constant(_plain_right_hand_sides(problem)[2]))
    flat = problem.fisher.factor_transpose_matvec(rhs.u) + rhs.rest
    for rcond in (1e-10, 1e-2):
        told = Gram(rcond).solve(problem.fisher, rhs).info.discarded_gradient_energy
        expected = SVDPseudoInverse(rcond).solve(problem.fisher, flat).info.discarded_gradient_energy
        assert abs(told - expected) < 1e-8


def test_gram_tells_what_it_left_out_after_cholesky(float64):
    problem = cases.shared("mlp")
    info = Gram(1e-12).solve(problem.fisher, _plain_right_hand_sides(problem)[2]).info
    expected = SVDPseudoInverse(1e-12).solve(problem.fisher, _plain_right_hand_sides(problem)[2]).info
    assert not info.used_eigh and abs(info.discarded_gradient_energy - expected.discarded_gradient_energy) < 1e-8


@pytest.mark.parametrize("name", ["mlp", "softmax_regression", "regression"])
def test_condition_number_after_an_undamped_cholesky(name, float64):
    problem = cases.shared(name)
    info = Gram(1e-14).solve(problem.fisher, problem.rhs).info
    assert not info.used_eigh
    values = np.linalg.eigvalsh(problem.fisher.gram().numpy())
    assert 0.5 < info.condition_number / (values[-1] / values[0]) < 1.0 + 1e-6


def test_quadratic_form_where_the_gram_matrix_is_tiny():
    # (K + damping) c - damping c is all rounding there, in single precision 4e11 of it.
    problem = cases.singular_digits(dtype="float32", scale=1000.0)
    info = Gram().solve(problem.fisher.damped(0.1), problem.rhs).info
    assert info.quadratic_form < 1e-6
