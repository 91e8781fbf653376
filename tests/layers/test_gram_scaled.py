"""The Gram matrix in another metric, and the damping that differs by variable which it serves."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import difference
from test_gram import VARIANTS, _variant

from tf_natgrad.layers import Rule, WeightGradientRule, fallback, registry
from tf_natgrad.layers.fallback import FallbackRule
from tf_natgrad.operators import Damped, FactoredRhs, Fisher
from tf_natgrad.operators._factored_model import FactoredModelOperator
from tf_natgrad.solvers import Gram

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-10


def _scales(fisher, seed=3):
    """A scale for each variable, from 0.01 to 100; and the same for each entry of `[n]`."""
    flat = fisher.flat_parameters
    values = 10.0 ** np.random.default_rng(seed).uniform(-2, 2, len(flat.sizes))
    by_id = {id(v): tf.constant(s, flat.dtype) for v, s in zip(flat.variables, values, strict=True)}
    return by_id, np.repeat(values, flat.sizes)


def _assert_scaled(fisher, factor=None):
    factor = fisher.factor().numpy() if factor is None else factor
    by_id, per_entry = _scales(fisher)
    gram = fisher.compiled("scaled", lambda: fisher.gram_matrix(by_id))()
    assert difference(gram, (factor * per_entry) @ factor.T) < TOLERANCE


# Recurrent layers take seconds to trace, and go the way of any other layer without a rule.
@pytest.mark.parametrize("name", sorted(set(cases.CASES) - {"lstm"}))
def test_every_case_in_another_metric(name):
    problem = cases.shared(name)
    _assert_scaled(problem.fisher, problem.factor)


# One for each way in which parts and variables belong together.
LAYERS = [
    "conv2d_groups",
    "conv2d_no_bias",
    "conv1d_causal",
    "transposed2d",
    "separable2d",
    "depthwise2d",
    "layer_norm_no_scale",
    "layer_norm_no_offset",
    "rms_norm",
    "batch_norm",
    "einsum_dense",
    "dense_on_images",
]


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_in_another_metric(name):
    _assert_scaled(_variant(name))


def test_the_fallback_in_another_metric(monkeypatch):
    problem = cases.shared("mlp")
    for layer_class in list(registry._RULES):
        monkeypatch.delitem(registry._RULES, layer_class)
    # In chunks of seven rows of the largest layer, and all at once of the smallest.
    largest = max(layer.count_params() for layer in problem.model.layers)
    monkeypatch.setattr(fallback, "MEMORY_LIMIT", 7 * 2 * 8 * largest)
    _assert_scaled(problem.make_fisher(), problem.factor)


class _Old(Rule):
    """A rule from before there were scales."""

    def gram(self, calls, summaries, dtype):
        return FallbackRule().gram(calls, summaries, dtype)


class _InParts(WeightGradientRule):
    """One part for two variables."""

    def weight_gradients(self, calls, gradients, dtype):
        kernel = tf.einsum("nf,qnu->qnfu", calls[0].inputs, gradients[0])
        return [tf.concat([tf.reshape(kernel, [*kernel.shape[:2], -1]), gradients[0]], -1)]


@pytest.mark.parametrize(("rule", "message"), [(_Old(), "takes no scales"), (_InParts(), "part_variables")])
def test_a_rule_without_scales_serves_where_none_are_asked_for(rule, message, monkeypatch):
    monkeypatch.setitem(registry._RULES, keras.layers.Dense, rule)
    problem = cases.shared("softmax_regression")
    fisher = problem.make_fisher()
    assert difference(fisher.gram(), problem.factor @ problem.factor.T) < TOLERANCE
    with pytest.raises(ValueError, match=message):
        fisher.gram_matrix(_scales(fisher)[0])


def test_a_missing_scale_is_named():
    fisher = cases.shared("mlp").fisher
    by_id, _ = _scales(fisher)
    by_id.pop(id(fisher.flat_parameters.variables[1]))
    with pytest.raises(ValueError, match=r"scales.*bias"):
        fisher.gram_matrix(by_id)


# Damping that differs by variable.

# The layer of the last one goes through the fallback.
SOLVED = ["mlp", "sequence", "cnn", "embedding", "layer_norm", "shared_layer", "einsum_dense"]


def _fisher(name):
    return _variant(name) if name in VARIANTS else cases.shared(name).make_fisher()


@pytest.fixture
def damped_by_variable(monkeypatch):
    """Makes a damped operator with one number for each variable."""

    def make(fisher):
        by_id, per_entry = _scales(fisher)
        dampings = [1.0 / by_id[id(v)] for v in fisher.flat_parameters.variables]
        monkeypatch.setattr(Damped, "damping_by_variable", dampings, raising=False)
        return fisher.damped(0.5), 1.0 / per_entry

    return make


@pytest.mark.parametrize(
    ("name", "parts"), [*((name, "u, shift and rest") for name in SOLVED), ("mlp", "u"), ("mlp", "rest")]
)
def test_damping_by_variable_against_the_dense_matrix(name, parts, damped_by_variable, rng):
    fisher = _fisher(name)
    operator, per_entry = damped_by_variable(fisher)
    factor = fisher.factor().numpy()
    u, shift, rest = (rng.normal(size=size) for size in (*factor.shape, factor.shape[1]))
    rhs = FactoredRhs(
        u if "u" in parts else None, shift if "shift" in parts else None, rest if "rest" in parts else None
    )
    flat = sum(
        part
        for part, given in ((factor.T @ u, rhs.u), (per_entry * shift, rhs.shift), (rest, rhs.rest))
        if given is not None
    )
    expected = np.linalg.solve(factor.T @ factor + np.diag(per_entry), flat)
    value, info = Gram().solve(operator, rhs)
    assert difference(value, expected) < TOLERANCE
    assert info.quadratic_form == pytest.approx(expected @ factor.T @ (factor @ expected), rel=1e-9)
    assert not info.used_eigh and info.rank == len(factor)
    scaled = (factor / per_entry) @ factor.T + np.eye(len(factor))
    assert 1.0 <= info.condition_number <= np.linalg.cond(scaled) * (1 + 1e-9)


def test_a_plain_vector_is_solved_for_too(damped_by_variable, rng):
    problem = cases.shared("mlp")
    operator, per_entry = damped_by_variable(problem.make_fisher())
    g = rng.normal(size=problem.size)
    expected = np.linalg.solve(problem.dense + np.diag(per_entry), g)
    assert difference(Gram().solve(operator, g).value, expected) < TOLERANCE


def test_equal_dampings_are_the_damping(monkeypatch):
    problem = cases.shared("mlp")
    fisher = problem.make_fisher()
    expected = Gram().solve(fisher.damped(0.3), problem.rhs)
    dampings = [tf.constant(0.3, tf.float64)] * len(fisher.flat_parameters.variables)
    monkeypatch.setattr(Damped, "damping_by_variable", dampings, raising=False)
    value, info = Gram().solve(problem.make_fisher().damped(0.3), problem.rhs)
    assert difference(value, expected.value) < TOLERANCE
    assert info.quadratic_form == pytest.approx(expected.info.quadratic_form, rel=1e-10)


def test_damping_below_rounding_takes_more_digits(monkeypatch):
    # Duplicated examples, in float32: the system is singular but for the damping.
    problem = cases.singular_digits(dtype="float32")
    with cases.precision("float32"):
        fisher = Fisher(problem.model, problem.loss, problem.x)
        dampings = [tf.constant(d) for d in (1e-9, 3e-9)]
        monkeypatch.setattr(Damped, "damping_by_variable", dampings, raising=False)
        value, info = Gram().solve(fisher.damped(0.5), fisher.loss_gradient(problem.y))
    assert info.used_eigh and info.used_float64 and np.isfinite(value).all()


# What a step in training does not ask for is not computed.


def test_a_rest_is_mapped_once_where_there_is_damping(monkeypatch, rng):
    problem, count = cases.shared("mlp"), []
    fisher, product = problem.make_fisher(), FactoredModelOperator.factor_product
    rest = rng.normal(size=problem.size)

    def counted(self, vector):
        image = product(self, vector)
        return tf.ensure_shape(tf.py_function(lambda t: count.append(1) or t, [image], image.dtype), image.shape)

    monkeypatch.setattr(FactoredModelOperator, "factor_product", counted)

    @tf.function(autograph=False)
    def solve(damping):
        return Gram().solve(fisher.damped(damping), FactoredRhs(problem.rhs.u, rest=tf.constant(rest))).value

    flat = problem.factor.T @ problem.rhs.u.numpy() + rest
    expected = np.linalg.solve(problem.dense + 0.1 * np.eye(problem.size), flat)
    assert difference(solve(tf.constant(0.1, tf.float64)), expected) < TOLERANCE
    assert len(count) == 1
    # Without damping it is needed too: `d0` is zero then, and `A rest` is what enters.
    expected = np.linalg.pinv(problem.dense, rcond=1e-6, hermitian=True) @ flat
    assert difference(solve(tf.constant(0.0, tf.float64)), expected) < 1e-8
    assert len(count) == 3
