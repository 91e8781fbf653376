"""The settings that the contestants of `races.py` try: four each, committed before the first run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kit.recording import as_text

Setting = Mapping[str, Any]

# The settings are tried on it, and the race has others.
TUNING_SEED = 100
FIRST_ORDER = ("sgd", "momentum", "adam", "adamw")
OWN = "adam_own"

# First-order contestants: learning rates about half a decade apart around what is customary. AdamW has Keras's weight
# decay, 0.004.
_OF_CLASSIFIERS = {
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "momentum": (0.01, 0.03, 0.1, 0.3),
    "adam": (3e-4, 1e-3, 3e-3, 1e-2),
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2),
}
# The loss is a mean over pixels: rates that are customary for sums are 784 times larger here.
_OF_PIXELS = {
    "sgd": (1.0, 3.0, 10.0, 30.0),
    "momentum": (0.3, 1.0, 3.0, 10.0),
    "adam": (3e-4, 1e-3, 3e-3, 1e-2),
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2),
}
LEARNING_RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "blog": {
        "sgd": (0.1, 0.3, 1.0, 3.0),
        "momentum": (0.01, 0.03, 0.1, 0.3),
        "adam": (1e-3, 3e-3, 1e-2, 3e-2),
        "adamw": (1e-3, 3e-3, 1e-2, 3e-2),
    },
    "mlp": _OF_CLASSIFIERS,
    "conv": {
        "sgd": (0.03, 0.1, 0.3, 1.0),
        "momentum": (0.01, 0.03, 0.1, 0.3),
        "adam": (1e-4, 3e-4, 1e-3, 3e-3),
        "adamw": (1e-4, 3e-4, 1e-3, 3e-3),
    },
    "autoencoder": _OF_PIXELS,
    "autoencoder_low": _OF_PIXELS,
    "sigmoid": _OF_PIXELS,
    "deep": _OF_CLASSIFIERS,
    "resnet": {
        "sgd": (0.03, 0.1, 0.3, 1.0),
        "momentum": (0.03, 0.1, 0.3, 1.0),
        "adam": (1e-3, 3e-3, 1e-2, 3e-2),
        "adamw": (1e-3, 3e-3, 1e-2, 3e-2),
    },
    "regression": {
        "sgd": (0.01, 0.03, 0.1, 0.3),
        "momentum": (0.003, 0.01, 0.03, 0.1),
        "adam": (1e-3, 3e-3, 1e-2, 3e-2),
        "adamw": (1e-3, 3e-3, 1e-2, 3e-2),
    },
}
# Adam where the batch is its own to choose: the race's batch is large for the sake of curvature.
OWN_BATCH: dict[str, tuple[dict[str, Any], ...]] = {
    name: (
        {"batch_size": 64, "learning_rate": 3e-4},
        {"batch_size": 64, "learning_rate": 1e-3},
        {"batch_size": 128, "learning_rate": 1e-3},
        {"batch_size": 512, "learning_rate": 3e-3},
    )
    for name in ("autoencoder_low", "sigmoid")
}
# Natural gradient: arguments of `NaturalGradient`. An object is written {"ClassName": {its arguments}}; it is looked
# up in `tf_natgrad`, then in `tf_natgrad.solvers`. Each grid holds the plain update with one damping (where it does not
# diverge at once), adaptive damping, and cheaper Fishers or solves.
_PLAIN = {"max_kl": 0.1, "line_search": None}


def _lm(initial: float, **options: Any) -> dict[str, Any]:
    return {"damping": {"LevenbergMarquardt": {"initial": initial, **options}}}


def _cg(iterations: int, rtol: float = 1e-3) -> dict[str, Any]:
    options = {"rtol": rtol, "max_iterations": iterations, "stopping": "progress"}
    return {"solver": {"ConjugateGradient": options}}


def _factored(kind: str, recipe: str, *changes: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple({"fisher": {kind: {"recipe": recipe}}, **change} for change in changes)


def _relative(initial: float) -> dict[str, Any]:
    return _lm(initial, relative=True)


# K-FAC and EKFAC: a recipe as it comes, and three changes to it.
_FIXED = ({"damping": 0.003}, {}, {"damping": 0.03}, {"max_kl": 1e-4})
_QUADRATIC = ({}, _relative(1.0), _relative(10.0), {"line_search": None})
# A damping that falls fast, for a loss without noise.
_FAST = _lm(1e-3, decay=0.8, period=1)
_GRAM = {"solver": "gram"}
# One label per example drawn from the model: a Gram matrix of the size of the batch.
_MC = {"solver": "gram", "fisher": "mc", "momentum": "optimal"}
NATURAL: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "blog": {
        "gram": (
            {**_GRAM, "learning_rate": 0.7, "damping": 0.1, "max_kl": None, "line_search": None},
            {**_GRAM, "learning_rate": 0.7, **_lm(0.1), "momentum": 0.9},
            {**_GRAM, "learning_rate": 0.7, **_lm(0.1)},
            {**_GRAM, "learning_rate": 0.3, **_lm(1.0), "max_kl": 0.02},
        ),
        "cg": (
            {**_cg(30, 1e-2), "learning_rate": 0.7, "damping": 0.1, "max_kl": None, "line_search": None},
            {**_cg(30, 1e-2), "learning_rate": 0.7, "damping": 0.3, "max_kl": None, "line_search": None},
            {**_cg(30, 1e-2), "learning_rate": 0.7, **_lm(0.1)},
            {**_cg(30, 1e-2), "learning_rate": 0.3, **_lm(1.0), "max_kl": 0.02},
        ),
        "kfac": (
            *_factored("KFAC", "fixed", {}, {"damping": 0.03}, {"max_kl": 5e-4}),
            *_factored("KFAC", "quadratic", {}),
        ),
        "ekfac": (
            *_factored("EKFAC", "fixed", {}, {"damping": 0.03}, {"max_kl": 5e-4}),
            *_factored("EKFAC", "quadratic", {}),
        ),
    },
    "mlp": {
        "gram": (
            {**_GRAM, "learning_rate": 0.7, "damping": 0.1, **_PLAIN},
            {**_GRAM, "learning_rate": 0.7, **_lm(0.1)},
            {**_GRAM, "learning_rate": 0.7, **_lm(0.1), "momentum": 0.9},
            {**_MC, "learning_rate": 1.0, **_lm(0.1)},
        ),
        "cg": (
            {**_cg(10), "learning_rate": 0.7, "damping": 0.1, **_PLAIN},
            {**_cg(10), "learning_rate": 0.7, "damping": 0.3, **_PLAIN, "max_kl": 0.05},
            {**_cg(10), "learning_rate": 0.7, **_lm(0.1), "warm_start": 0.95},
            {**_cg(5), "learning_rate": 0.5, **_lm(0.1), "momentum": "optimal"},
        ),
        "kfac": _factored("KFAC", "fixed", *_FIXED),
        "ekfac": _factored("EKFAC", "fixed", *_FIXED),
    },
    "conv": {
        "gram": (
            {**_GRAM, "learning_rate": 0.7, **_lm(0.1)},
            {**_MC, "learning_rate": 1.0, **_lm(0.1)},
            {**_MC, "learning_rate": 0.5, **_lm(0.01)},
            {"solver": "gram", "fisher": "mc", "learning_rate": 0.7, "damping": 0.1, **_PLAIN},
        ),
        "cg": (
            {**_cg(10), "learning_rate": 0.7, "damping": 0.1, **_PLAIN},
            {**_cg(10), "learning_rate": 0.7, **_lm(0.1), "warm_start": 0.95},
            {**_cg(5), "learning_rate": 0.7, **_lm(0.1), "momentum": "optimal"},
            {**_cg(5), "learning_rate": 0.7, **_lm(1.0), "momentum": "optimal"},
        ),
        "kfac": _factored("KFAC", "fixed", *_FIXED),
        # An eigendecomposition of its factor of 3,137 takes half of the budget: EKFAC is not raced.
    },
    # 784 outputs x 256 rows do not fit into the exact Gram matrix.
    "autoencoder": {
        "gram": (
            {**_MC, "learning_rate": 1.0, **_lm(1e-6), "max_kl": None},
            {**_MC, "learning_rate": 1.0, **_lm(1e-4), "max_kl": None},
            {**_MC, "learning_rate": 0.7, **_lm(1e-6), "max_kl": None},
            {**_MC, "learning_rate": 1.0, **_lm(1e-5), "max_kl": None, "momentum": 0.9},
        ),
        "cg": (
            {**_cg(20), "learning_rate": 1.0, **_lm(1e-5), "max_kl": None, "warm_start": 0.95},
            {**_cg(20), "learning_rate": 1.0, **_lm(1e-4), "max_kl": None, "warm_start": 0.95},
            {**_cg(10), "learning_rate": 1.0, **_lm(1e-5), "max_kl": None, "warm_start": 0.95, "momentum": "optimal"},
            {**_cg(10), "learning_rate": 1.0, **_lm(1e-4), "max_kl": None, "warm_start": 0.95, "momentum": "optimal"},
        ),
        "kfac": _factored("KFAC", "quadratic", *_QUADRATIC),
        "ekfac": _factored("EKFAC", "quadratic", *_QUADRATIC),
    },
    "autoencoder_low": {
        "kfac": _factored("KFAC", "quadratic", *_QUADRATIC),
        "ekfac": _factored("EKFAC", "quadratic", *_QUADRATIC),
    },
    "sigmoid": {
        "kfac": _factored("KFAC", "quadratic", *_QUADRATIC),
        "ekfac": _factored("EKFAC", "quadratic", *_QUADRATIC),
    },
    "deep": {
        "kfac": _factored("KFAC", "fixed", *_FIXED),
        "ekfac": _factored("EKFAC", "fixed", *_FIXED),
    },
    "resnet": {
        "kfac": _factored("KFAC", "fixed", *_FIXED),
        "ekfac": _factored("EKFAC", "fixed", *_FIXED),
    },
    "regression": {
        "gram": (
            {**_GRAM, "learning_rate": 1.0, **_lm(0.01)},
            {**_GRAM, "learning_rate": 1.0, **_lm(0.01), "max_kl": None, "momentum": 0.9},
            {**_GRAM, "learning_rate": 1.0, **_lm(0.01, decay=0.9), "max_kl": None},
            {**_GRAM, "learning_rate": 1.0, **_FAST, "max_kl": None},
        ),
        "cg": (
            {**_cg(100), "learning_rate": 1.0, **_lm(0.01), "warm_start": 0.95},
            {**_cg(100), "learning_rate": 1.0, **_lm(1e-3), "warm_start": 0.95, "max_kl": None},
            {**_cg(200, 1e-4), "learning_rate": 1.0, **_lm(0.01), "max_kl": None},
            {**_cg(100), "learning_rate": 1.0, **_FAST, "max_kl": None},
        ),
        "kfac": _factored("KFAC", "quadratic", {}, _relative(0.3), _FAST, {"momentum": 0.0}),
        "ekfac": _factored("EKFAC", "quadratic", {}, _relative(0.3), _FAST, {"momentum": 0.0}),
    },
}


def grid(problem: str, contestant: str) -> tuple[Setting, ...]:
    """The settings of a contestant: arguments of its optimizer, and its batch size if not the problem's; or none."""
    if contestant == "defaults":
        return ({},)
    if contestant == OWN:
        return OWN_BATCH.get(problem, ())
    if contestant in FIRST_ORDER:
        return tuple({"learning_rate": rate} for rate in LEARNING_RATES[problem][contestant])
    return NATURAL[problem].get(contestant, ())


def setting_text(setting: Setting) -> str:
    """A setting as it stands in the CSV, on one line and without commas between its parts."""
    return "; ".join(f"{name}={_value_text(value)}" for name, value in setting.items()) or "as it comes"


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        ((name, arguments),) = value.items()
        return f"{name}({' '.join(f'{k}={_value_text(v)}' for k, v in arguments.items())})"
    return as_text(value)
