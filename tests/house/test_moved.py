"""Names that existed once go on working."""

import importlib
import sys

import pytest

import tf_natgrad
from tf_natgrad import _moved

# What each of these modules offered before it moved.
NAMES = {
    "gram": ["LayerCall", "Record", "Rule", "WeightGradientRule", "capture", "register_rule", "rule_for"],
    "models": ["NaturalGradientMixin", "NaturalGradientModel", "NaturalGradientSequential", "natural_gradient_model"],
    "optimizers": ["NaturalGradient"],
    "step": ["LevenbergMarquardt", "LineSearch", "Objective", "StepReport", "kl_radius", "restore", "take"],
    "rl.agent_log": ["CsvLog", "ProgressBar", "Record", "TensorBoardLog", "logs"],
    "rl.baselines": ["Baseline", "step_weights"],
    "rl.checkpoint": ["read_checkpoint", "write_checkpoint"],
    "rl.critic": ["Critic"],
    "rl.policy_hessian": ["PolicyHessian"],
    "rl.policy_step": ["PolicyStep", "PolicyStepReport"],
    "rl.significance": ["ExtremeCurvature", "Sample", "assess", "extreme_curvature"],
}


@pytest.fixture
def forgotten():
    """As in a new process, and again afterwards."""

    def forget():
        for name in NAMES:
            sys.modules.pop(f"tf_natgrad.{name}", None)
            vars(tf_natgrad).pop(name, None)

    forget()
    yield
    forget()


def test_all_are_known():
    assert NAMES.keys() == _moved.MOVED.keys()


@pytest.mark.parametrize("name", NAMES)
def test_an_old_module_warns_and_has_what_it_had(name, forgotten):
    with pytest.warns(FutureWarning, match=rf"tf_natgrad\.{name} is now tf_natgrad\.{_moved.MOVED[name]}"):
        old = importlib.import_module(f"tf_natgrad.{name}")
    new = importlib.import_module(f"tf_natgrad.{_moved.MOVED[name]}")
    for offered in NAMES[name]:
        assert getattr(old, offered) is getattr(new, offered)


def test_an_old_module_is_an_attribute_too(forgotten):
    with pytest.warns(FutureWarning, match="is now tf_natgrad.steps"):
        assert tf_natgrad.step.LineSearch is tf_natgrad.LineSearch


def test_callbacks_are_found_both_ways():
    from tf_natgrad.callbacks import StepLogger

    assert StepLogger is tf_natgrad.callbacks.StepLogger


def test_other_names_are_unknown():
    with pytest.raises(AttributeError, match="'tf_natgrad' has no attribute 'sorcery'"):
        _ = tf_natgrad.sorcery
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tf_natgrad.sorcery")
