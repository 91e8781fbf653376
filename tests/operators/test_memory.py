"""Ceilings of memory: what is too large to be formed is not formed, measured on the process and on the graphs."""

import json
import subprocess
import sys
import textwrap

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import difference

from tf_natgrad.layers import fallback
from tf_natgrad.linearize import Linearization
from tf_natgrad.operators import Fisher, GaussNewton, Hessian
from tf_natgrad.operators._base import over_units
from tf_natgrad.solvers import ConjugateGradient, Gram
from tf_natgrad.spectrum import eigsh, extreme, hutchinson_trace

# The package exports a function of the module's name.
capture_module = sys.modules["tf_natgrad.layers.capture"]

_PREAMBLE = """
import os, resource, json
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, tensorflow as tf
import tf_natgrad as ng
tf.config.threading.set_intra_op_parallelism_threads(1)
rng, megabytes = np.random.default_rng(0), {}

def peak():
    # The high-water mark of this process since `reset`, in MiB.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

def measure(name, call):
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before = peak()
    result = call()
    megabytes[name] = peak() - before
    return result
"""


def _megabytes(body):
    """What each `measure` in a process of its own took, in MiB."""
    code = _PREAMBLE + textwrap.dedent(body) + "\nprint(json.dumps(megabytes))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _can_measure():
    try:
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _can_measure(), reason="the system does not reset the high-water mark of a process")
def test_peak_memory_of_products_solvers_and_spectra():
    # n = 814,090 and m = 288: a vector takes 3.1 MiB, the Jacobian 894 MiB, the Fisher 2.4 TiB.
    megabytes = _megabytes(
        """
        model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(1024, "relu"), keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        x, y = rng.normal(size=(32, 784)).astype("float32"), rng.integers(0, 10, 32)
        fisher, hessian = ng.operators.Fisher(model, loss, x), ng.operators.Hessian(model, loss, (x, y))
        rhs, damped = fisher.loss_gradient(y), fisher.damped(0.1)
        assert fisher.shape[0] == 814_090 and fisher.rows == 288
        measure("gram", fisher.gram)
        exact = measure("solve", lambda: ng.solvers.Gram().solve(damped, rhs)).value
        cg = measure("cg", lambda: ng.solvers.ConjugateGradient(rtol=1e-4).solve(damped, rhs)).value
        assert np.linalg.norm(cg - exact) < 1e-3 * np.linalg.norm(exact)
        measure("eigsh", lambda: ng.spectrum.eigsh(hessian, 2, tol=1e-2, ncv=10, max_products=12))
        measure("eigsh by gram", lambda: ng.spectrum.eigsh(fisher, 3))
        measure("trace", lambda: ng.spectrum.hutchinson_trace(hessian, 4))
        measure("as much as the jacobian", lambda: np.ones([288, 814_090], np.float32))
        for operator in (fisher, hessian):
            try:
                operator.to_dense()
            except ValueError as error:
                assert "takes 2468.9 GiB" in str(error), error
            else:
                raise AssertionError("the dense matrix was not refused")
        """
    )
    jacobian = 288 * 814_090 * 4 / 2**20
    # The yardstick works: an array of that size is seen.
    assert megabytes.pop("as much as the jacobian") > 0.9 * jacobian
    assert all(taken < 0.2 * jacobian for taken in megabytes.values()), megabytes


@pytest.mark.skipif(not _can_measure(), reason="the system does not reset the high-water mark of a process")
def test_peak_memory_over_a_data_set_is_that_of_a_batch():
    # Thirty batches of 4.8 MB each.
    megabytes = _megabytes(
        """
        def batch(i):
            x = tf.random.stateless_normal([120, 10_000], tf.stack([tf.constant(0, tf.int64), i]))
            return x, tf.zeros([120], tf.int64)
        dataset = tf.data.Dataset.range(30).map(batch)
        model = keras.Sequential([keras.Input((10_000,)), keras.layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        hessian = measure("construction", lambda: ng.operators.Hessian(model, loss, dataset))
        v = tf.ones([30_003])
        hessian.matvec(v)
        measure("product", lambda: hessian.matvec(v))
        whole = measure("whole", lambda: [x for x, _ in dataset])
        """
    )
    assert megabytes["whole"] > 120
    assert megabytes["product"] < 50 and megabytes["construction"] < 100, megabytes


# The graphs that an operator has made.


def _graphs(graph, seen):
    """A graph and those that its operations call."""
    if id(graph) in seen:
        return
    seen[id(graph)] = graph
    for function in graph._functions.values():
        inner = getattr(function, "graph", None)
        if inner is not None:
            _graphs(inner, seen)


def _largest(operator):
    """The largest number of entries of a tensor in any graph of an operator, where it is known statically."""
    seen = {}
    for entry in operator._compiled_functions.value.values():
        if hasattr(entry, "graph"):
            _graphs(entry.graph, seen)
        for function in (getattr(entry, "_extend", None), getattr(entry, "_orthonormal", None)):
            if function is not None:
                _graphs(function.graph, seen)
    assert seen
    tensors = [t for graph in seen.values() for op in graph.get_operations() for t in op.outputs]
    return max(t.shape.num_elements() or 0 for t in tensors)


WIDE, EXAMPLES = 300, 24


@pytest.fixture(scope="module")
def wide():
    """A network of 300-60-5: n = 18,365 parameters, m = 96 rows."""
    with cases.precision("float32"):
        rng = np.random.default_rng(0)
        stack = [keras.Input((WIDE,)), keras.layers.Dense(60, "tanh"), keras.layers.Dense(5)]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return (
            keras.Sequential(stack),
            loss,
            (rng.normal(size=(EXAMPLES, WIDE)).astype("float32"), rng.integers(0, 5, EXAMPLES)),
        )


def test_gram_and_its_solver_form_no_jacobian(wide):
    model, loss, (x, y) = wide
    fisher = Fisher(model, loss, x)
    n, m = fisher.shape[0], fisher.rows
    damped = fisher.damped(0.1)
    fisher.gram()
    Gram().solve(damped, fisher.loss_gradient(y))
    eigsh(fisher, 3)
    # Three eigenvectors are the largest that these need.
    assert fisher.rows == 96 and max(_largest(fisher), _largest(damped)) <= 3 * n < m * n / 20
    # The same look at the graph finds the Jacobian where it is asked for.
    fisher.factor()
    assert _largest(fisher) >= m * n


@pytest.mark.parametrize("kind", [Hessian, GaussNewton, Fisher])
def test_products_and_iterations_form_no_jacobian_and_no_matrix(kind, wide):
    model, loss, data = wide
    operator = kind(model, loss, data)
    damped, n = operator.damped(10.0), operator.shape[0]
    operator.matvec(tf.ones([n]))
    ConjugateGradient(max_iterations=3).solve(damped, tf.ones([n]))
    eigsh(operator, 2, method="lanczos", ncv=10, max_products=10)
    hutchinson_trace(operator, 2)
    # A block of eight Lanczos vectors is the largest that these need.
    assert max(_largest(operator), _largest(damped)) <= 8 * n < 96 * n


def test_units_come_in_chunks():
    seen = []
    units = over_units(lambda u: seen.append(u.shape.num_elements()) or u, 300, tf.float32)
    assert difference(units, np.eye(300)) == 0 and max(seen) <= 128 * 300


# Limits that are set.


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("name", ["mlp", "cnn", "sequence"])
def test_columns_keep_within_the_limit(name, at_once, monkeypatch, float64):
    problem, held, map_rows = cases.shared(name), [], Linearization.map_rows
    expected = problem.fisher.gram()
    fisher = problem.make_fisher()
    # The check of the batch, which comes first, has columns of its own.
    assert fisher.gram_refusal is None
    outputs = [call.output for group in fisher.batch.record.groups(problem.flat) for call in group]
    bytes_per_column = 4 * 8 * sum(output.shape.num_elements() for output in outputs)

    def spy(self, function, rows, signature=None):
        held.append(rows.shape[0])
        return map_rows(self, function, rows, signature)

    monkeypatch.setattr(Linearization, "map_rows", spy)
    monkeypatch.setattr(capture_module, "MEMORY_LIMIT", at_once * bytes_per_column)
    assert difference(fisher.gram(), expected) < 1e-10
    columns = 6 if name == "sequence" else 2
    assert max(held) == min(at_once, columns) and sum(held) == columns


def test_rows_of_the_fallback_keep_within_the_limit(monkeypatch, float64):
    problem, sizes, rows = cases.shared("layer_norm"), [], fallback.FallbackRule._rows
    rule = fallback.FallbackRule(memory_limit=2 * 3 * 20 * 8)
    monkeypatch.setattr(capture_module, "rule_for_group", lambda calls: rule)

    def spy(self, calls, gradients, chosen, dtype):
        block = rows(self, calls, gradients, chosen, dtype)
        tf.py_function(lambda b: sizes.append(int(tf.size(b))), [block], [])
        return block

    monkeypatch.setattr(fallback.FallbackRule, "_rows", spy)
    assert difference(problem.make_fisher().gram(), problem.factor @ problem.factor.T) < 1e-10
    assert sizes and max(sizes) <= 3 * 20


def test_the_krylov_space_is_as_large_as_a_gibibyte_allows(monkeypatch):
    sizes, make = [], extreme.krylov_of
    monkeypatch.setattr(extreme, "krylov_of", lambda operator, size: sizes.append(size) or make(operator, size))
    for n in (1_000, 3_000_000):
        operator = tf.linalg.LinearOperatorScaledIdentity(n, tf.constant(2.0))
        assert eigsh(operator, 1, method="lanczos", max_products=2).eigenvalues == pytest.approx([2.0])
    assert sizes == [100, 88] and 89 * 3_000_000 * 4 <= 2**30
