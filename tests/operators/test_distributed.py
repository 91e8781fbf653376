"""Matrices over a data set that a strategy shares out are those of one device, on replicas and on workers."""

import functools

import pytest
from operator_runs import KINDS
from processes import finished, pair, started

# Roundings of float64; eigenvalues come from iterations that end at their tolerance.
ROUNDED = 1e-12
REFUSALS = {"outside": "`strategy.scope()`", "graph": "eager code", "training": "`training`"}


@functools.cache
def ran():
    return finished(started("2", ["operators:"]))["operators:"]


@functools.cache
def workers():
    return [finished(process)["operators:"] for process in pair("operators:")]


@pytest.mark.parametrize("name", [*KINDS, "sums"])
def test_replicas_sum_up_what_one_device_computes(name):
    found = ran()["differences"][name]
    assert max(found.values()) < ROUNDED, found


@pytest.mark.parametrize("name", [*KINDS, "sums"])
def test_workers_sum_up_what_one_device_computes(name):
    for found in workers():
        assert max(found["differences"][name].values()) < ROUNDED, found


@pytest.mark.parametrize("which", REFUSALS)
def test_what_cannot_be_summed_up_is_refused(which):
    assert REFUSALS[which] in ran()["errors"][which]
