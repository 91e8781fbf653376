"""Conditions as data: judged at once in eager code, an error at the border of a graph, or collected by the caller."""

import numpy as np
import pytest
import tensorflow as tf

from tf_natgrad import _conditions, errors
from tf_natgrad._conditions import Checked, Condition

GOOD, BAD = Condition(tf.constant(True), "never"), Condition(tf.constant(False), "no good")


def test_the_first_condition_that_fails_is_the_error():
    _conditions.judge([GOOD])
    mismatch = Condition(tf.constant(False), "other", errors.GramMismatchError)
    with pytest.raises(errors.GramMismatchError, match="other"):
        _conditions.judge([GOOD, mismatch, BAD])


def test_a_list_takes_what_is_not_to_be_judged_yet():
    kept = []
    _conditions.note([BAD], kept)
    assert _conditions.noted(Checked(tf.constant(3.0), [GOOD, BAD]), kept) == 3.0
    assert [c.text for c in kept] == ["no good", "never", "no good"] and not _conditions.all_hold(kept)
    with pytest.raises(ValueError, match="no good"):
        _conditions.noted(Checked(tf.constant(3.0), [GOOD, BAD]), None)


def test_all_of_nothing_holds():
    assert _conditions.all_hold([])


def test_a_graph_gives_the_class_of_the_error_and_its_text():
    @tf.function
    def guarded(x):
        condition = Condition(x > 0, '`x`: it\'s "negative".', errors.GramMismatchError)
        return Checked(x, [condition]).judged()

    assert guarded(tf.constant(1.0)) == 1.0
    with pytest.raises(errors.GramMismatchError, match=r'^`x`: it\'s "negative".$'), _conditions.as_value_error():
        guarded(tf.constant(-1.0))


def test_require_raises_at_once_in_eager_mode():
    _conditions.require(tf.constant(True), "never")
    with pytest.raises(ValueError, match=r"^no good$"):
        _conditions.require(tf.constant(False), "no good")


def test_require_in_a_graph_is_a_value_error_at_the_border():
    @tf.function
    def guarded(x):
        _conditions.require(tf.reduce_all(x > 0), "`x`: received -1.")
        return x

    with _conditions.as_value_error():
        guarded(tf.constant([1.0]))
    with pytest.raises(ValueError, match=r"^`x`: received -1\.$"), _conditions.as_value_error():
        guarded(tf.constant([-1.0]))


def test_other_errors_pass_the_border_as_they_are():
    with pytest.raises(tf.errors.InvalidArgumentError), _conditions.as_value_error():
        tf.debugging.assert_positive(tf.constant(-1.0), message="not ours")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_is_finite(bad):
    good = tf.constant([1.0, 2.0])
    assert _conditions.is_finite(good, tf.constant([1, 2]))
    assert not _conditions.is_finite(good, tf.constant([1.0, bad]))
    assert _conditions.is_finite()
