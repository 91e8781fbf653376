"""Error messages: the argument, what came, what was expected, what to do."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from tf_natgrad import _checks


def test_message():
    assert _checks.message("k", 0, "an integer", "Pass 1.") == "`k`: received 0; expected an integer. Pass 1."
    assert _checks.message("k", 0, "an integer") == "`k`: received 0; expected an integer."


@pytest.mark.parametrize("value", [0, 0.5, np.float32(2.0), np.int64(3)])
def test_numbers_in_range_pass(value):
    _checks.check_number("a", value, minimum=0.0)


@pytest.mark.parametrize(
    "value, options, error, match",
    [
        ("1", {}, TypeError, r"'1' \(str\); expected a number"),
        (None, {}, TypeError, "NoneType"),
        (True, {}, TypeError, "bool"),
        (1.5, {"integer": True}, TypeError, "an integer"),
        (-1, {"minimum": 0}, ValueError, "received -1; expected a number >= 0"),
        (0, {"minimum": 0, "exclusive": True}, ValueError, "a number > 0"),
        (float("nan"), {}, ValueError, "finite"),
        (float("inf"), {"minimum": 0}, ValueError, "finite"),
        (-1, {"minimum": 0, "remedy": "Pass 1."}, ValueError, "Pass 1."),
    ],
)
def test_numbers_out_of_range_are_refused(value, options, error, match):
    with pytest.raises(error, match=match):
        _checks.check_number("a", value, **options)


def test_choice():
    _checks.check_choice("mode", "a", ("a", "b"))
    with pytest.raises(ValueError, match=r"`mode`: received 'c'; expected one of 'a', 'b'"):
        _checks.check_choice("mode", "c", ("a", "b"))


def test_rank_one():
    _checks.check_rank_one("v", tf.zeros([3]), 3)
    _checks.check_rank_one("v", tf.zeros([3]), None)
    with pytest.raises(ValueError, match=r"`v`: received shape \(3,\); expected shape \[4\]"):
        _checks.check_rank_one("v", tf.zeros([3]), 4)
    with pytest.raises(ValueError, match=r"expected shape \[m\]"):
        _checks.check_rank_one("v", tf.zeros([3, 1]), None)


def test_log_once(caplog, monkeypatch):
    monkeypatch.setattr(_checks, "_logged", set())
    with caplog.at_level(logging.WARNING, "tf_natgrad"):
        for number in range(3):
            _checks.log_once(f"the same first twenty characters {number}")
        _checks.log_once("something else")
    assert len(caplog.records) == 2
