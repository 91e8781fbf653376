"""What a step is predicted to cost: shapes of a trace, work of the layers' rules, the choice among ways."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from training import sparse

import tf_natgrad as ng
from tf_natgrad import costs
from tf_natgrad.costs.choice import free_memory
from tf_natgrad.layers.work import Work, product_of_rows

# A machine of round numbers, on which nothing depends on what else runs here.
MACHINE = costs.Machine(product=1e10, cholesky=2e9, memory=1e9, node=1e-6)
EVERYTHING = ("exact", "mc", "kfac", "kfac, fixed")


def network(stack, shape=(6,), examples=8, loss=None, **options):
    model = keras.Sequential([keras.Input(shape), *stack])
    x = tf.zeros([examples, *shape])
    return costs.network_of(model, loss or sparse(), (x, None), **options)


class _Sums(layers.Layer):
    """The sum of each example's numbers, however many there are."""

    def call(self, x):
        return tf.reduce_sum(x, 1)[:, None]


def chosen(found, budget=8.0, memory=1e12, allowed=EVERYTHING):
    return costs.choose(costs.ways_of(found, MACHINE, budget), found, budget, memory, allowed)


def test_work_adds_up_and_holds_the_most():
    both = Work(1.0, 2.0, 3.0, 10.0).plus(Work(10.0, 20.0, 30.0, 5.0))
    assert both == Work(11.0, 22.0, 33.0, 10.0)
    assert both.times(2.0) == Work(22.0, 44.0, 66.0, 10.0)
    assert MACHINE.seconds(Work(1e10, 1e9, 1e6)) == pytest.approx(3.0)


def test_a_trace_tells_the_shapes():
    found = network([layers.Dense(5, "relu"), layers.Dense(3)])
    assert (found.examples, found.size, found.variables) == (8, 6 * 5 + 5 + 5 * 3 + 3, 4)
    assert found.columns == {"exact": 2, "mc": 1}
    assert found.refusals == {"exact": None, "mc": None} and found.refusal is None
    assert found.factors == [(7, 5, 1, False), (6, 3, 1, False)] and found.diagonal == 0
    assert found.forward.flops == 2 * 8 * (6 * 5 + 5 * 3)


@pytest.mark.parametrize(
    ("stack", "shape", "flops"),
    [
        ([layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()], (8, 8, 2), 2 * 6 * 6 * 9 * 2 * 4),
        ([layers.Conv3D(4, 2), layers.GlobalAveragePooling3D()], (4, 4, 4, 2), 2 * 27 * 8 * 2 * 4),
        ([layers.Conv2DTranspose(4, 2, strides=2), layers.GlobalAveragePooling2D()], (4, 4, 3), 2 * 16 * 4 * 3 * 4),
        ([layers.EinsumDense("abc,cd->abd", (None, 4)), layers.GlobalAveragePooling1D()], (5, 3), 2 * 5 * 3 * 4),
    ],
    ids=["conv2d", "conv3d", "transposed", "einsum"],
)
def test_products_and_convolutions_are_counted(stack, shape, flops):
    found = network(stack, shape)
    assert found.forward.flops == 8 * flops


def test_a_loop_counts_with_its_steps():
    short, long = (network([layers.GRU(4), layers.Dense(2)], (steps, 3)).forward for steps in (5, 50))
    assert 5 < long.nodes / short.nodes < 10


def test_ragged_inputs_have_a_cost():
    model = keras.Sequential([keras.Input((None,), ragged=True), _Sums(), layers.Dense(3)])
    found = costs.network_of(model, sparse(), (tf.ragged.constant([[1.0, 2.0], [3.0], []]), None))
    assert found.size == 6 and chosen(found).fisher in EVERYTHING


def test_nothing_is_computed_or_changed():
    model = keras.Sequential([keras.Input((6,)), layers.Dropout(0.5), layers.BatchNormalization(), layers.Dense(3)])
    before = [v.numpy().tobytes() for v in model.variables]
    costs.network_of(model, sparse(), (tf.ones([8, 6]), None))
    assert [v.numpy().tobytes() for v in model.variables] == before


def test_the_gram_matrix_costs_the_square_of_its_rows():
    small, large = (network([layers.Dense(64), layers.Dense(3)], examples=n).gram["exact"] for n in (50, 500))
    assert large.flops / small.flops == pytest.approx(100.0, rel=0.05)


def test_products_of_rows_are_those_that_numpy_makes():
    rows, columns = 300, 40
    # The half of the products, with what blocks waste.
    assert rows**2 * columns < product_of_rows(rows, columns, 4).flops < 2 * rows**2 * columns


def test_the_exact_step_is_taken_within_the_budget():
    found = network([layers.Dense(30, "relu"), layers.Dense(3)], (50,))
    assert chosen(found).name == "exact Gram step"
    assert chosen(found, allowed=("exact",)).solver == "gram"


def test_few_rows_for_many_weights_go_to_kfac():
    for units, fisher in ((150, "exact"), (400, "kfac, fixed")):
        found = network([layers.Dense(units, "relu"), layers.Dense(3)])
        assert (found.size > 128 * 16) == (fisher != "exact")
        assert chosen(found).fisher == fisher
        assert chosen(found, allowed=("exact",)).solver == "gram"


def test_many_rows_go_to_kfac_by_the_size_of_the_batch():
    for examples, fisher in ((64, "kfac, fixed"), (256, "kfac")):
        found = network([layers.Dense(32, "relu"), layers.Dense(100)], examples=examples, loss="mse")
        exact, *_ = costs.ways_of(found, MACHINE, 8.0)
        assert exact.gradients > 8.0
        assert chosen(found).fisher == fisher


def test_where_only_the_exact_fisher_is_allowed_the_iterations_are_bounded():
    found = network([layers.Dense(32, "relu"), layers.Dense(100)], examples=64, loss="mse")
    way = chosen(found, budget=30.0, allowed=("exact",))
    assert way.solver == "cg" and way.gradients <= 30.0 < way.gradients * (way.iterations + 1) / way.iterations
    # Fewer than ten would hardly be better than the gradient.
    assert chosen(found, budget=1.0, allowed=("exact",)).iterations == 10


def test_memory_is_a_limit():
    found = network([layers.Dense(200, "relu"), layers.Dense(3)], (50,), examples=200)
    exact, *_ = costs.ways_of(found, MACHINE, 1e9)
    assert chosen(found, budget=1e9).name == exact.name
    assert chosen(found, budget=1e9, memory=exact.memory / 2).fisher == "kfac"


def test_few_weights_go_by_the_dense_matrix():
    found = network([layers.Dense(2)], (3,), examples=2_000)
    assert chosen(found).solver == "dense"


def test_what_mixes_examples_has_no_gram_matrix():
    found = network([layers.Dense(8), layers.BatchNormalization(), layers.Dense(3)])
    assert "BatchNormalization" in found.refusals["exact"] and found.refusal is None
    assert chosen(found).fisher == "kfac, fixed"
    assert (
        network([layers.Dense(8), layers.BatchNormalization(), layers.Dense(3)], training=False).refusals["exact"]
        is None
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rates_are_measured_once(dtype):
    machine = costs.measured(dtype)
    assert machine is costs.measured(dtype)
    assert all(np.isfinite(rate) and rate > 0 for rate in machine)
    assert machine.product > 1e8 and machine.node < 1e-2


def test_free_memory_is_what_the_host_says(monkeypatch):
    assert 1e8 < free_memory() < 1e14

    def refused(*args):
        raise OSError

    monkeypatch.setattr("builtins.open", refused)
    assert 1e8 < free_memory() < 1e14


def test_the_table_shows_every_way_and_the_choice():
    model = keras.Sequential([keras.Input((50,)), layers.Dense(30, "relu"), layers.Dense(3)])
    found = ng.explain(model, sparse(), tf.zeros([8, 50]))
    text = str(found)
    assert all(way.name in text for way in found.ways)
    assert next(line for line in text.splitlines() if "chosen" in line).startswith(found.choice.name)
    assert found.line.startswith("exact Gram step, 16 rows, about") and "other ways:" in found.line
    assert "too much memory" in str(found._replace(memory=0.0))
