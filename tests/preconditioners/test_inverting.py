"""Shares of the inversions; that their results are those of one device is in `training/test_replicas.py`."""

import itertools

import pytest

from tf_natgrad.preconditioners._inverting import shared_out


def test_one_does_all():
    assert shared_out([3.0, 1.0, 2.0], 1) == [0, 0, 0]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_nobody_has_more_than_a_third_above_the_best_share(count):
    # R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17 (1969): 4/3 - 1/(3 count).
    work = [7.0, 7.0, 6.0, 5.0, 5.0, 4.0, 1.0]
    owners = shared_out(work, count)
    loads = [sum(w for w, owner in zip(work, owners, strict=True) if owner == k) for k in range(count)]
    best = min(
        max(sum(w for w, owner in zip(work, some, strict=True) if owner == k) for k in range(count))
        for some in itertools.product(range(count), repeat=len(work))
    )
    assert max(loads) <= (4 / 3 - 1 / (3 * count)) * best
