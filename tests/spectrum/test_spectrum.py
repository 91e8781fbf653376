"""Eigenpairs, traces and densities against matrices whose spectrum is known."""

import functools

import cases
import numpy as np
import pytest
import scipy.sparse.linalg
import scipy.stats
import tensorflow as tf

from tf_natgrad.operators import CurvatureOperator, Fisher, Hessian
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.spectrum import eigsh, hutchinson_trace, hutchpp_trace, spectral_density

SIZE, COUNT, NCV = 120, 4, 12
SPECTRUM = np.concatenate([[-9.5, -5.0, -3.0, -2.0], np.linspace(-0.5, 0.8, SIZE - 8), [2.2, 4.0, 6.0, 9.0]])
WANTED = {"LA": [2.2, 4.0, 6.0, 9.0], "SA": [-9.5, -5.0, -3.0, -2.0], "LM": [-9.5, -5.0, 6.0, 9.0]}
WANTED["BE"] = [-9.5, -5.0, 6.0, 9.0]
TOLERANCES = {"float32": 1e-5, "float64": 1e-9}


def _matrix(eigenvalues, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return (q * eigenvalues) @ q.T


def _foreign(matrix, dtype="float64", **options):
    return tf.linalg.LinearOperatorFullMatrix(tf.constant(matrix, dtype), **{"is_self_adjoint": True, **options})


class Planted(CurvatureOperator):
    """A matrix of this package's kind, by products."""

    def __init__(self, matrix, dtype="float64"):
        self._matrix = tf.constant(matrix, dtype)
        super().__init__(FlatParameters([tf.Variable(tf.zeros(len(matrix), dtype))]), name="Planted")

    def product(self, vector):
        return tf.linalg.matvec(self._matrix, vector)


@functools.cache
def _planted(dtype):
    return Planted(_matrix(SPECTRUM), dtype)


def _check(pairs, matrix, expected, tolerance):
    """Eigenvalues, residuals, orthonormality and signs, in double precision."""
    eps = np.finfo(pairs.eigenvectors.dtype.as_numpy_dtype).eps
    v, values = pairs.eigenvectors.numpy().astype("float64"), pairs.eigenvalues.astype("float64")
    norm = np.linalg.norm(matrix, 2)
    assert v.shape == (len(matrix), len(expected)) and np.all(np.diff(values) >= 0)
    assert np.abs(values - expected).max() <= (tolerance + 10 * eps) * norm
    residuals = np.linalg.norm(matrix @ v - v * values, axis=0)
    assert residuals.max() <= (tolerance + 10 * eps) * norm
    assert np.abs(residuals - pairs.info.residuals).max() <= 20 * eps * norm
    assert np.abs(v.T @ v - np.eye(len(expected))).max() <= 10 * np.sqrt(eps)
    assert np.all(v[np.abs(v).argmax(0), np.arange(len(expected))] > 0)
    assert pairs.info.converged.shape == (len(expected),) and pairs.info.converged.all()


# Planted spectra.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["lanczos", "arpack", "dense"])
@pytest.mark.parametrize("which", sorted(WANTED))
def test_planted_spectrum(which, method, dtype):
    operator, tolerance = _planted(dtype), TOLERANCES[dtype]
    pairs = eigsh(operator, COUNT, which, method=method, tol=tolerance, ncv=NCV)
    _check(pairs, _matrix(SPECTRUM), WANTED[which], tolerance)
    assert pairs.info.method == method
    if method == "lanczos":
        assert pairs.info.restarts >= 1 and pairs.info.products > NCV + COUNT
    if method == "dense":
        assert pairs.info.products == COUNT


@pytest.mark.parametrize("method", ["lanczos", "arpack", "dense"])
def test_foreign_operator(method):
    pairs = eigsh(_foreign(_matrix(SPECTRUM)), 3, "BE", method=method, tol=1e-9)
    _check(pairs, _matrix(SPECTRUM), [-9.5, 6.0, 9.0], 1e-9)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_both_ends_take_one_more_from_the_high_end(count):
    low = count // 2
    expected = np.concatenate([np.sort(SPECTRUM)[:low], np.sort(SPECTRUM)[SIZE - (count - low) :]])
    pairs = eigsh(_planted("float64"), count, "BE", method="lanczos", tol=1e-9, ncv=NCV)
    _check(pairs, _matrix(SPECTRUM), expected, 1e-9)


@pytest.mark.parametrize("method", ["lanczos", "arpack"])
def test_the_same_seed_gives_the_same_pairs(method):
    first, again, other = (
        eigsh(_planted("float64"), 2, method=method, tol=1e-3, ncv=NCV, seed=seed) for seed in (3, 3, 4)
    )
    assert np.array_equal(first.eigenvalues, again.eigenvalues)
    assert np.array_equal(first.eigenvectors, again.eigenvectors)
    assert not np.array_equal(first.eigenvectors, other.eigenvectors)


def test_start_vector():
    near = np.linalg.eigh(_matrix(SPECTRUM))[1][:, -1] + 1e-7
    fast = eigsh(_planted("float64"), 1, method="lanczos", tol=1e-5, ncv=NCV, v0=near)
    slow = eigsh(_planted("float64"), 1, method="lanczos", tol=1e-5, ncv=NCV)
    assert fast.info.products < slow.info.products and fast.eigenvalues[0] == pytest.approx(9.0, rel=1e-9)


def test_all_pairs_of_a_small_matrix():
    matrix = _matrix([3.0, -5.0, 1.0, 2.0])
    for method in ("lanczos", "dense", "auto"):
        _check(eigsh(_foreign(matrix), 4, method=method), matrix, [-5.0, 1.0, 2.0, 3.0], 1e-9)
    assert eigsh(_foreign(np.array([[2.5]])), 1, method="lanczos").eigenvalues == pytest.approx([2.5])


def test_the_method_is_chosen_by_size():
    assert eigsh(_foreign(np.diag(np.arange(10.0))), 2).info.method == "dense"
    large = tf.linalg.LinearOperatorDiag(tf.range(600, dtype=tf.float64), is_self_adjoint=True)
    pairs = eigsh(large, 2, tol=1e-6)
    assert pairs.info.method == "lanczos" and pairs.eigenvalues == pytest.approx([598.0, 599.0])


# Degenerate spectra.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "spectrum, which",
    [
        (np.ones(50), "LA"),
        (np.zeros(50), "LM"),
        (np.concatenate([np.zeros(48), [1.0, 2.0]]), "LA"),
        (np.concatenate([np.zeros(48), [1.0, 2.0]]), "SA"),
        (np.concatenate([np.zeros(30), np.geomspace(1e-4, 2.0, 20)]), "LA"),
        (np.repeat([1.0, 2.0, 3.0], [46, 2, 2]), "SA"),
    ],
    ids=["identity", "zero", "rank two", "null space", "low rank", "three values"],
)
def test_an_invariant_subspace_is_left(spectrum, which, dtype):
    matrix, order = _matrix(spectrum), np.sort(spectrum)
    expected = {"LA": order[-5:], "LM": order[-5:], "SA": order[:5], "BE": np.r_[order[:2], order[-3:]]}[which]
    if dtype == "float32" and not matrix.any():
        matrix = np.zeros_like(matrix)
    pairs = eigsh(Planted(matrix, dtype), 5, which, method="lanczos", tol=1e-6, ncv=12)
    _check(pairs, matrix, expected, 1e-6)


@pytest.mark.parametrize("method", ["dense", "arpack"])
def test_every_copy_of_a_multiple_eigenvalue(method):
    matrix = _matrix(np.concatenate([np.linspace(0.0, 1.0, 46), [4.0, 5.0, 5.0, 5.0]]))
    _check(eigsh(_foreign(matrix), 4, method=method, tol=1e-9), matrix, [4.0, 5.0, 5.0, 5.0], 1e-9)


def test_lanczos_gives_eigenpairs_beside_a_multiple_eigenvalue():
    spectrum = np.concatenate([np.linspace(0.0, 1.0, 46), [4.0, 5.0, 5.0, 5.0]])
    pairs = eigsh(_foreign(_matrix(spectrum)), 4, method="lanczos", tol=1e-9)
    assert pairs.eigenvalues[-1] == pytest.approx(5.0) and pairs.info.converged.all()
    assert all(np.abs(spectrum - value).min() < 1e-7 for value in pairs.eigenvalues)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["lanczos", "arpack", "dense", "auto"])
@pytest.mark.parametrize("which, count", [("LA", 1), ("SA", 3), ("LM", 29), ("BE", 1), ("BE", 4)])
def test_a_matrix_of_zeros(which, count, method, dtype):
    zeros = np.zeros((30, 30))
    _check(eigsh(Planted(zeros, dtype), count, which, method=method), zeros, np.zeros(count), 0.0)


@pytest.mark.parametrize("method", ["lanczos", "arpack", "dense"])
def test_one_pair_of_both_ends_is_the_highest(method):
    _check(eigsh(_planted("float64"), 1, "BE", method=method, tol=1e-9), _matrix(SPECTRUM), [9.0], 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["lanczos", "dense", "auto"])
@pytest.mark.parametrize("value", [0.0, -2.5])
def test_a_matrix_of_one_entry(value, method, dtype):
    for which in ("LA", "SA", "LM", "BE"):
        _check(eigsh(Planted([[value]], dtype), 1, which, method=method), np.array([[value]]), [value], 1e-6)


@pytest.mark.parametrize("method", ["lanczos", "arpack"])
@pytest.mark.parametrize(
    "dtype, unit", [("float32", 1e-30), ("float32", 1e35), ("float64", 1e-250), ("float64", 1e250)]
)
def test_eigenvalues_whose_squares_leave_the_range_of_the_precision(dtype, unit, method):
    matrix = _matrix(np.linspace(1.0, 30.0, 30))
    pairs = eigsh(Planted(unit * matrix, dtype), 2, method=method, tol=1e-3)
    assert pairs.eigenvalues / unit == pytest.approx([29.0, 30.0], rel=1e-3) and pairs.info.converged.all()
    truth = np.linalg.norm(
        matrix @ pairs.eigenvectors.numpy() - pairs.eigenvectors * (pairs.eigenvalues / unit), axis=0
    )
    assert pairs.info.residuals / unit == pytest.approx(truth, abs=1e-4)


# When it does not converge.


def test_too_few_products_are_told():
    pairs = eigsh(_planted("float64"), COUNT, method="lanczos", tol=1e-9, ncv=NCV, max_products=8)
    assert pairs.info.products == 8 + COUNT and not pairs.info.converged.all()
    v, matrix = pairs.eigenvectors.numpy(), _matrix(SPECTRUM)
    residuals = np.linalg.norm(matrix @ v - v * pairs.eigenvalues, axis=0)
    assert pairs.info.residuals == pytest.approx(residuals, rel=1e-6)
    assert np.array_equal(pairs.info.converged, residuals <= 1e-9 * 9.5)


def test_arpack_with_too_few_products_is_told():
    with pytest.raises(ValueError, match=r"`max_products`: received 21.*ARPACK found"):
        eigsh(_planted("float64"), COUNT, method="arpack", tol=1e-12, ncv=12, max_products=21)


@pytest.mark.parametrize("ncv", [5, 6, 9])
def test_a_small_space_restarts_and_converges(ncv):
    pairs = eigsh(_planted("float64"), COUNT, method="lanczos", tol=1e-6, ncv=ncv, max_products=20_000)
    _check(pairs, _matrix(SPECTRUM), WANTED["LA"], 1e-6)
    assert pairs.info.restarts > 3


# Refusals.


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"k": 0}, ValueError, r"`k`: received 0"),
        ({"k": SIZE + 1}, ValueError, r"`k`: received 121; expected at most 120 for this 120 x 120 operator"),
        ({"k": SIZE, "method": "arpack"}, ValueError, r"`k`: received 120; expected at most 119.*Use method='dense'"),
        ({"k": 2.0}, TypeError, r"`k`.*an integer"),
        ({"which": "la"}, ValueError, r"`which`: received 'la'; expected one of 'LA', 'SA', 'LM', 'BE'"),
        ({"which": "SM"}, ValueError, r"`which`: received 'SM'; expected one of 'LA', 'SA', 'LM', 'BE'"),
        ({"method": "power"}, ValueError, r"`method`: received 'power'"),
        ({"method": "gram"}, ValueError, r"`method`: received 'gram' for Planted.*lanczos"),
        ({"ncv": 4, "k": 4}, ValueError, r"`ncv`: received 4; expected more than k = 4"),
        ({"ncv": 0, "k": 4}, ValueError, r"`ncv`"),
        ({"tol": -1.0}, ValueError, r"`tol`"),
        ({"tol": np.nan}, ValueError, r"`tol`"),
        ({"max_products": 0}, ValueError, r"`max_products`"),
        ({"v0": np.ones(3)}, ValueError, r"`v0`.*shape \[120\]"),
        ({"v0": np.zeros(SIZE)}, ValueError, r"`v0`.*other than zero"),
        ({"v0": np.full(SIZE, np.nan)}, ValueError, r"`v0`.*NaN"),
    ],
)
def test_bad_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        eigsh(_planted("float64"), **options)


def test_a_start_that_arpack_cannot_use_is_refused():
    operator, unit = Planted(np.diag([5.0, 4.0] + 28 * [0.0])), np.eye(30)[7]
    with pytest.raises(ValueError, match=r"`v0`: received a vector that the operator sends to zero.*lanczos"):
        eigsh(operator, 1, method="arpack", v0=unit)
    assert eigsh(operator, 1, method="lanczos", v0=unit).eigenvalues == pytest.approx([5.0])


def test_a_failure_of_arpack_is_told(monkeypatch):
    def fail(operator, *arguments, **options):
        operator.matvec(np.ones(SIZE))
        raise scipy.sparse.linalg.ArpackError(-8)

    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", fail)
    with pytest.raises(ValueError, match=r"`method`: received 'arpack', which failed \(ARPACK error -8.*lanczos"):
        eigsh(_planted("float64"), 2, method="arpack")


@pytest.mark.parametrize("call", [eigsh, spectral_density, hutchinson_trace, hutchpp_trace])
def test_what_is_no_square_matrix_of_real_numbers_is_refused(call):
    for bad, error, match in (
        (np.eye(30), TypeError, "received ndarray.*LinearOperatorFullMatrix"),
        (_foreign(np.ones((3, 4)), is_self_adjoint=None), ValueError, r"received an operator of shape \(3, 4\)"),
        (_foreign(np.ones((2, 4, 4))), ValueError, r"received an operator of shape \(2, 4, 4\)"),
        (_foreign(np.eye(30), "complex128"), TypeError, "received an operator of dtype complex128"),
    ):
        with pytest.raises(error, match=rf"`operator`: {match}"):
            call(bad)


@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchpp_trace])
def test_a_trace_of_products_that_are_not_finite_is_refused(estimate):
    with pytest.raises(ValueError, match=r"`operator`.*NaN or infinite; expected finite products"):
        estimate(Planted(np.full((20, 20), np.nan)))


def test_a_matrix_that_is_not_symmetric_is_found_out():
    matrix = _matrix(SPECTRUM)
    matrix[0, 1] += 1e-3
    for call in (eigsh, spectral_density):
        for symmetric in (None, True):
            with pytest.raises(ValueError, match=r"LinearOperatorFullMatrix, which is not symmetric.*symmetrize\(\)"):
                call(_foreign(matrix, is_self_adjoint=symmetric))
    assert eigsh(_foreign(_matrix(SPECTRUM), is_self_adjoint=None), 1).info.converged.all()


def test_an_operator_that_says_it_is_not_symmetric_is_believed():
    with pytest.raises(ValueError, match=r"not symmetric.*\(H \+ H\^T\) / 2 \(`symmetrize\(\)`"):
        eigsh(_foreign(_matrix(SPECTRUM), is_self_adjoint=False))


@pytest.mark.parametrize("method", ["lanczos", "arpack", "dense"])
@pytest.mark.parametrize("make", [_foreign, Planted])
def test_products_that_are_not_finite_are_refused(make, method):
    matrix = _matrix(np.arange(30.0))
    matrix[3, 3] = np.nan
    with pytest.raises(ValueError, match=r"`operator`.*NaN or infinite; expected finite products"):
        eigsh(make(matrix), 3, method=method)


def test_a_density_of_products_that_are_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"`operator`.*NaN or infinite; expected finite products"):
        spectral_density(Planted(np.full((20, 20), np.inf)), 2, 5)


# Networks.


@pytest.fixture(scope="module")
def hessian(float64):
    problem = cases.shared("mlp")
    return Hessian(problem.model, problem.loss, (problem.x, problem.y), sample_weight=problem.weight)


@pytest.mark.parametrize("method", ["lanczos", "arpack", "dense"])
def test_hessian_of_a_network(hessian, method):
    dense = hessian.to_dense().numpy()
    expected = np.linalg.eigvalsh(dense)
    pairs = eigsh(hessian, 5, "BE", method=method, tol=1e-9, ncv=30)
    _check(pairs, dense, np.concatenate([expected[:2], expected[-3:]]), 1e-9)


@pytest.mark.parametrize("which", ["LA", "LM"])
@pytest.mark.parametrize("damping", [0.0, 0.25])
def test_gram_is_exact_for_the_fisher(which, damping, float64):
    problem = cases.shared("mlp")
    operator = problem.fisher.damped(damping) if damping else problem.fisher
    matrix = problem.oracle.matrix + damping * np.eye(64)
    pairs = eigsh(operator, 6, which)
    assert pairs.info.method == "gram" and pairs.info.products == 6
    _check(pairs, matrix, np.linalg.eigvalsh(matrix)[-6:], 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gram_beyond_the_rank_of_the_matrix(dtype):
    # Examples that occur twice and one of weight zero: 18 of the 24 eigenvalues are not zero.
    problem = cases.singular_digits(dtype=dtype)
    fisher = problem.make_fisher()
    matrix = problem.oracle.matrix
    pairs = eigsh(fisher, 24, method="gram", tol=1e-6)
    assert fisher.rows == 24
    _check(pairs, matrix, np.maximum(np.linalg.eigvalsh(matrix)[-24:], 0.0), 1e-6)


def test_gram_refusals(float64):
    fisher = cases.shared("mlp").fisher
    with pytest.raises(ValueError, match=r"`k`: received 11; expected at most the 10 rows"):
        eigsh(fisher, 11, method="gram")
    with pytest.raises(ValueError, match=r"'gram' for Fisher and which='SA'.*lanczos"):
        eigsh(fisher, 2, "SA", method="gram")


def test_gram_of_weights_that_are_not_finite_is_refused(float64):
    problem = cases.fresh("mlp")
    problem.model.layers[0].bias.assign(np.full(5, np.nan))
    with pytest.raises(ValueError, match=r"`operator`.*finite products"):
        eigsh(Fisher(problem.model, problem.loss, problem.x), 3, method="gram")


@pytest.fixture
def transfers(monkeypatch):
    """The sizes of all tensors that are read on the host."""
    base = next(cls for cls in type(tf.constant(0)).__mro__ if "_numpy" in vars(cls))
    sizes, original = [], base._numpy

    def spy(tensor):
        sizes.append(int(np.prod(tensor.shape)))
        return original(tensor)

    monkeypatch.setattr(base, "_numpy", spy)
    return sizes


def test_no_vector_leaves_the_device(transfers):
    large = Planted(np.diag(np.linspace(0.0, 1.0, 600) ** 3))
    pairs = eigsh(large, 3, method="lanczos", ncv=15, tol=1e-4)
    assert pairs.info.restarts > 0 and transfers and max(transfers) < 600
    transfers.clear()
    eigsh(large, 3, method="arpack", ncv=15)
    assert max(transfers) == 600


# Traces.


@pytest.mark.parametrize("estimate", [lambda op, s: hutchinson_trace(op, 12, seed=s), hutchpp_trace])
def test_trace_is_unbiased_and_its_error_honest(estimate):
    operator, truth = _foreign(_matrix(SPECTRUM)), SPECTRUM.sum()
    if estimate is hutchpp_trace:
        estimates, probes = [hutchpp_trace(operator, 36, seed=s) for s in range(100)], 12
    else:
        estimates, probes = [estimate(operator, s) for s in range(100)], 12
    values, errors = (np.array([getattr(e, field) for e in estimates]) for field in ("value", "standard_error"))
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / 10
    # The mean square of the errors told is that of the errors made, and Student's intervals cover as they should.
    assert 0.7 < np.sqrt(np.mean(errors**2)) / values.std(ddof=1) < 1.4
    covered = np.mean(np.abs(values - truth) < scipy.stats.t.ppf(0.95, probes - 1) * errors)
    assert 0.82 <= covered <= 0.98


def test_hutchinson_is_exact_for_diagonal_matrices():
    for diagonal in (np.full(50, 3.0), np.arange(50.0)):
        estimate = hutchinson_trace(_foreign(np.diag(diagonal)), 4, seed=1)
        assert estimate.value == pytest.approx(diagonal.sum(), rel=1e-12)
        assert estimate.standard_error == pytest.approx(0.0, abs=1e-9) and estimate.products == 4


def test_hutchpp_is_exact_for_matrices_of_low_rank():
    spectrum = np.concatenate([np.zeros(110), np.geomspace(1.0, 1e3, 8), [-5.0, -50.0]])
    estimate = hutchpp_trace(_foreign(_matrix(spectrum)), 30, seed=1)
    assert estimate.value == pytest.approx(spectrum.sum(), rel=1e-9)
    assert estimate.standard_error < 1e-9 * spectrum.max() and estimate.products == 30


def test_hutchpp_beats_hutchinson_on_a_decaying_spectrum():
    operator = _foreign(_matrix(1.0 / np.arange(1, 201) ** 2))
    plain, better = hutchinson_trace(operator, 48), hutchpp_trace(operator, 48)
    assert better.products == plain.products == 48
    assert better.standard_error < 0.1 * plain.standard_error


def test_hutchpp_of_a_matrix_smaller_than_its_sketch():
    estimate = hutchpp_trace(_foreign(_matrix([1.0, 2.0, 4.0])), 48)
    assert estimate.value == pytest.approx(7.0, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchpp_trace])
@pytest.mark.parametrize("size, value", [(30, 0.0), (1, 0.0), (1, -2.5)])
def test_trace_of_zeros_and_of_one_entry(size, value, estimate, dtype):
    found = estimate(Planted(value * np.eye(size), dtype))
    assert found.value == pytest.approx(size * value) and found.standard_error == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchpp_trace])
def test_trace_of_a_network_and_its_seed(estimate, hessian):
    truth = np.trace(hessian.to_dense())
    first, again, other = (estimate(hessian, 30, seed=seed) for seed in (1, 1, 2))
    assert first == again and first.value != other.value
    assert abs(first.value - truth) < 4 * first.standard_error


@pytest.mark.parametrize(
    "call", [lambda op: hutchinson_trace(op, 0), lambda op: hutchinson_trace(op, 1), lambda op: hutchpp_trace(op, 5)]
)
def test_too_few_probes_are_refused(call):
    with pytest.raises(ValueError, match=r"`num_(probes|products)`"):
        call(_planted("float64"))


# Densities.


@pytest.fixture(scope="module")
def full_density():
    """As many steps as there are eigenvalues: what is left of the error is the probes'."""
    return spectral_density(_planted("float64"), num_probes=24, steps=SIZE, width=0.3)


def _smoothed(grid, width):
    kernel = np.exp(-0.5 * ((grid[:, None] - SPECTRUM) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return kernel.mean(1)


def test_density_integrates_to_one(full_density):
    assert np.trapezoid(full_density.density, full_density.grid) == pytest.approx(1.0, abs=1e-4)
    assert full_density.weights.sum(1) == pytest.approx(np.ones(24), abs=1e-10)
    assert (full_density.density >= 0).all() and (full_density.standard_error >= 0).all()


@pytest.mark.parametrize("power", [1, 2])
def test_moments_of_the_density_are_those_of_the_spectrum(full_density, power):
    moments = (full_density.weights * full_density.nodes**power).sum(1)
    error = moments.std(ddof=1) / np.sqrt(len(moments))
    assert abs(moments.mean() - np.mean(SPECTRUM**power)) < 4 * error < np.abs(SPECTRUM**power).max()


def test_density_is_the_smoothed_spectrum_within_its_error(full_density):
    truth = _smoothed(full_density.grid, 0.3)
    deviation = np.abs(full_density.density - truth) / np.maximum(full_density.standard_error, 1e-12)
    tested = truth > 1e-3
    assert np.mean(deviation[tested] < 2) > 0.8 and deviation[tested].max() < 5
    assert full_density.standard_error[tested].max() < 0.3 * truth.max()


def test_nodes_are_eigenvalues_where_the_space_is_exhausted(full_density):
    weighty = full_density.nodes[full_density.weights > 1e-6]
    assert np.abs(weighty[:, None] - SPECTRUM).min(1).max() < 1e-6
    assert full_density.products == 24 * SIZE


def test_spread_shrinks_with_the_number_of_probes():
    few, many = (spectral_density(_planted("float64"), probes, 20, width=0.3) for probes in (4, 36))
    ratio = np.sqrt(np.mean(many.standard_error**2)) / np.sqrt(np.mean(few.standard_error**2))
    assert 0.15 < ratio < 0.6


def test_options_of_the_density():
    grid = np.linspace(-20.0, 20.0, 4001)
    density = spectral_density(_planted("float32"), 3, 20, grid=grid, width=0.5)
    assert np.array_equal(density.grid, grid) and density.density.shape == density.standard_error.shape == (4001,)
    assert np.trapezoid(density.density, grid) == pytest.approx(1.0, abs=1e-6)
    variance = np.trapezoid(density.density * grid**2, grid)
    assert variance == pytest.approx(np.mean((density.weights * density.nodes**2).sum(1)) + 0.25, rel=1e-6)
    plain = spectral_density(_planted("float32"), 3, 20, num_points=77)
    assert len(plain.grid) == 77 and plain.nodes.shape == plain.weights.shape == (3, 20)
    assert plain.grid[0] < plain.nodes.min() and plain.grid[-1] > plain.nodes.max()
    again = spectral_density(_planted("float32"), 3, 20, num_points=77)
    other = spectral_density(_planted("float32"), 3, 20, num_points=77, seed=1)
    assert np.array_equal(plain.density, again.density) and not np.array_equal(plain.nodes, other.nodes)


def test_density_of_a_multiple_of_the_identity():
    density = spectral_density(Planted(3.0 * np.eye(30)), 2, 10)
    assert density.nodes[density.weights > 1e-6] == pytest.approx(3.0)
    assert np.trapezoid(density.density, density.grid) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size, value", [(30, 0.0), (1, 0.0), (1, -2.5)])
def test_density_of_zeros_and_of_one_entry(size, value, dtype):
    density = spectral_density(Planted(value * np.eye(size), dtype), 2, 40)
    assert density.nodes[density.weights > 1e-6] == pytest.approx(value) and density.products == 2 * size
    assert np.trapezoid(density.density, density.grid) == pytest.approx(1.0, abs=0.01)
    assert np.isfinite(density.density).all() and np.isfinite(density.standard_error).all()


def test_steps_beyond_the_size_are_cut():
    assert spectral_density(_foreign(np.diag([1.0, 2.0, 3.0])), 2, 90).nodes.shape == (2, 3)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"num_probes": 0}, "num_probes"),
        ({"num_probes": 1}, "num_probes"),
        ({"num_points": 0}, "num_points"),
        ({"grid": [[1.0], [2.0]]}, "grid"),
        ({"grid": [1.0, np.nan]}, "grid"),
        ({"steps": 0}, "steps"),
        ({"width": 0.0}, "width"),
        ({"width": -1.0}, "width"),
    ],
)
def test_bad_options_of_the_density_are_refused(options, match):
    with pytest.raises(ValueError, match=f"`{match}`"):
        spectral_density(_planted("float64"), **{"num_probes": 2, "steps": 5, **options})
