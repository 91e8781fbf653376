"""The step from a dense matrix: whatever the units of the parameters, and the shortest where several solve it."""

import numpy as np
import pytest
import tensorflow as tf
from oracle import difference

from tf_natgrad.training._factorised import factorised

SPANS = (0, 3, 6, 8)


def solve(matrix, gradient, damping=0.0, dtype="float64"):
    return factorised(matrix.astype(dtype), tf.constant(gradient, dtype), damping)


def factor(rng, rows=30, size=6):
    return rng.normal(size=(rows, size)) / np.sqrt(rows)


@pytest.mark.parametrize("span", SPANS)
def test_the_units_of_the_parameters_do_not_matter(span, rng):
    a, g = factor(rng), rng.normal(size=6)
    units = 10.0 ** rng.permutation(np.linspace(-span, span, 6))
    expected = np.linalg.solve(a.T @ a, g)
    step = solve((a * units).T @ (a * units), g * units)
    assert difference(step.value * units, expected) < 1e-12
    assert float(step.quadratic_form) == pytest.approx(g @ expected, rel=1e-12)


def test_units_in_single_precision(rng):
    a, g = factor(rng), rng.normal(size=6)
    units = 10.0 ** np.linspace(-5, 5, 6)
    step = solve((a * units).T @ (a * units), g * units, dtype="float32")
    assert step.value.dtype == tf.float32 and difference(step.value * units, np.linalg.solve(a.T @ a, g)) < 1e-5


@pytest.mark.parametrize("span", (0, 6))
def test_of_several_solutions_the_shortest(span, rng):
    # The null space is spanned by one vector over the parameters 0 to 2, one over 3 and 4, and parameter 6.
    a = factor(rng, size=7)
    a[:, 2], a[:, 4], a[:, 6] = -a[:, 0] - a[:, 1], a[:, 3], 0.0
    # One unit for each block: the null vectors stay what they are.
    units = np.repeat(10.0 ** np.linspace(0, span, 3), (3, 2, 2))
    a, g = a * units, a.T @ rng.normal(size=30) * units
    blocks = np.linalg.pinv(a / units) @ np.linalg.pinv((a / units).T) @ (g / units) / units
    step = solve(a.T @ a, g).value.numpy()
    assert difference(step * units, blocks * units) < 1e-9
    assert abs(step[:3].sum()) < 1e-12 * np.abs(step[:3]).max() and step[6] == 0.0
    assert abs(step[3] - step[4]) < 1e-9 * abs(step[3])


def test_damping_is_that_of_the_parameters_as_they_are(rng):
    a, g = factor(rng, rows=3), rng.normal(size=6)
    a *= 10.0 ** np.linspace(-2, 2, 6)
    step = solve(a.T @ a, g, damping=0.3)
    expected = np.linalg.solve(a.T @ a + 0.3 * np.eye(6), g)
    assert difference(step.value, expected) < 1e-12
    assert float(step.quadratic_form) == pytest.approx(np.sum((a @ expected) ** 2), rel=1e-10)


def test_negative_curvature_is_left_out(rng):
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    values = np.array([2.0, 1.0, 0.5, 0.1, -0.3, 0.0])
    g = q[:, :4] @ rng.normal(size=4)
    step = solve((q * values) @ q.T, g)
    assert float(tf.tensordot(step.value, tf.constant(g), 1)) > 0 and float(step.quadratic_form) > 0
    assert abs(q[:, 5] @ step.value.numpy()) < 1e-12
