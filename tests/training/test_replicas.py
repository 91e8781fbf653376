"""Training on several replicas: the numbers of one device, the same weights everywhere, and one verdict for all.

The runs are in `tests/kit/replica_runs.py`, a process for each group of them: logical devices, and the processes of
several workers, have to be there before TensorFlow starts.
"""

import functools
import signal

import pytest
from processes import finished, pair, started

# Roundings of float64 that ten steps may take; a search adds those of the losses that it compares.
FIXED, SEARCHED = 1e-10, 1e-9
# Group -> the number of replicas and the runs of its process. `tests/kit/slow.py` names the slow ones.
GROUPS = {
    "quick": ("2", ["search", "spoilt:x"]),
    "ways": ("2", ["auto", "cg", "kfac_cg", "svd", "mc", "momentum"]),
    "factors": ("2", ["kfac", "kfac_fixed", "ekfac", "stateful:"]),
    "losses": ("2", ["weighted", "l2", "beside", "layers", "regression", "decay", "several", "masked", "far"]),
    "faults": ("2", ["spoilt:y", "spoilt:skipped", *(f"refused:{w}" for w in ("cg", "parts", "eager", "outside"))]),
    "four": ("4", ["gram", "search", "mc", "kfac", "spoilt:x"]),
    "single": ("2", ["single:1", "single:10", "mixed:mixed_bfloat16", "mixed:mixed_float16"]),
}
TRAININGS = [(g, case) for g, (_, cases) in GROUPS.items() for case in cases if ":" not in case]
WORKERS = ("gram", "search", "cg", "mc", "kfac")
REFUSALS = {
    "cg": "ConjugateGradient(max_iterations=20)",
    "parts": "`micro_batch_size`",
    "eager": "`run_eagerly`",
    "outside": "strategy.scope()",
}


@functools.cache
def ran(group):
    return finished(started(*GROUPS[group]))


@functools.cache
def workers():
    return [finished(process) for process in pair(*WORKERS, "inference:", "spoilt:x")]


def tolerated(case):
    return SEARCHED if case in ("search", "decay", "far", "kfac", "ekfac") else FIXED


@pytest.mark.parametrize(("group", "case"), TRAININGS)
def test_training_is_that_of_one_device(group, case):
    found = ran(group)[case]
    assert found["difference"] < tolerated(case)
    assert found["equal"], "the replicas have different weights"
    assert found["names"]
    # Losses, dampings, scales and counts of steps taken back.
    logs = found["logs"]
    if case == "masked":
        # As in stock Keras the mean over replicas knows their examples, not the positions that count.
        assert logs.pop("loss") < 1e-2
    assert max(logs.values()) < 1e3 * tolerated(case), logs


@pytest.mark.parametrize(
    ("group", "case"),
    [("quick", "spoilt:x"), ("four", "spoilt:x"), ("faults", "spoilt:y"), ("faults", "spoilt:skipped")],
)
def test_a_batch_that_is_spoilt_on_one_replica_is_left_out_by_all(group, case):
    found = ran(group)[case]
    alone, several = found["errors"]
    assert alone == several
    assert bool(alone) == (case != "spoilt:skipped")
    assert found["left_out"] == [1, 1]
    assert found["difference"] < FIXED and found["equal"]


@pytest.mark.parametrize("which", REFUSALS)
def test_what_does_not_go_with_replicas_is_refused(which):
    (text,) = ran("faults")[f"refused:{which}"]["errors"]
    assert REFUSALS[which] in text
    assert "2 replicas" in text


def test_layers_with_a_state_train_as_in_stock_keras():
    found = ran("factors")["stateful:"]
    assert found["equal"] and found["finite"] and found["moved"] > 0
    assert {"accuracy", "loss", "val_accuracy", "val_loss"} <= set(found["logs"])
    assert not any("refused" in name for name in found["logs"])


@pytest.mark.parametrize(("steps", "tolerance"), [("1", 1e-5), ("10", 1e-3)])
def test_single_precision(steps, tolerance):
    found = ran("single")[f"single:{steps}"]
    assert found["difference"] < tolerance and found["equal"]


@pytest.mark.parametrize(("policy", "rounding"), [("mixed_bfloat16", 2**-8), ("mixed_float16", 2**-11)])
def test_mixed_precision(policy, rounding):
    found = ran("single")[f"mixed:{policy}"]
    # Each replica rounds its sum over its share; another order of the batch on one device need not round at all.
    assert 0 < found["difference"] <= max(rounding, found["permuted"]) and found["equal"]


@pytest.mark.parametrize("case", WORKERS)
def test_workers_train_as_one_device(case):
    first, second = (found[case] for found in workers())
    assert first["difference"] < tolerated(case)
    assert first["weights"] == second["weights"]
    assert first["logs"]["loss"] < 1e-9


def test_workers_evaluate_and_predict():
    first, second = (found["inference:"] for found in workers())
    assert first["loss"] == second["loss"]
    assert abs(first["loss"] - first["expected"]) < 1e-9
    assert first["shape"] == [26, 3]


def test_workers_leave_out_a_batch_together():
    for found in workers():
        alone, several = found["spoilt:x"]["errors"]
        assert alone == several != ""


def test_keras_still_needs_to_be_mended_on_several_workers():
    """Where this fails, `_keras.UnderStrategies` has two methods too many."""
    for found in workers():
        assert found["inference:"]["stock"] != "", "stock Keras trains on several workers now"


def test_a_worker_that_is_killed_and_comes_back_goes_on(tmp_path):
    case = f"backup:{tmp_path}"
    chief, other = pair(case)
    _, errors = chief.communicate(timeout=900)
    other.communicate(timeout=900)
    assert other.returncode == -signal.SIGKILL
    # The one that waits for it gives up after a while, and says for whom.
    assert chief.returncode != 0
    assert "UnavailableError" in errors and "/job:worker/replica:0/task:1" in errors
    first, second = (finished(process)[case] for process in pair(case))
    assert first["difference"] < SEARCHED
    assert first["weights"] == second["weights"]
    # The first epoch was over before the fault.
    assert first["epochs"] == 3
