"""What is raced: problems, networks, targets, budgets and grids, committed before the first run.

What was decided by looking at runs was decided on seed 1000, of no race: the autoencoders' units, batches and targets,
and those of the deep and the residual network.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

TUNING_SEED = 100
SEEDS = (0, 1, 2)
# Nothing is tuned: the tuning seed's time goes into more seeds.
DEFAULTS_SEEDS = (0, 1, 2, 3, 4)
DIVERGED = 10.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be learned, and how far.

    Attributes:
        title: for people.
        metric: what the targets are about; less is better.
        targets: from the loosest to the tightest.
        budget: seconds of training.
        batch_size: examples per iteration; all of them if `None`.
        image_size: of MNIST; no images if `None`.
        test_images: how many test images are looked at.
        evaluations: about how many there are in a run that takes the whole budget (up to twice as many).
        xla: whether XLA compiles the first-order contestants: it does where that is faster on one core.
        precision: Keras's `floatx`.
    """

    title: str
    metric: str
    targets: tuple[float, ...]
    budget: float
    batch_size: int | None
    image_size: int | None
    test_images: int = 10_000
    evaluations: int = 30
    xla: bool = False
    precision: str = "float32"


PROBLEMS: dict[str, Problem] = {
    "blog": Problem("softmax regression, 14x14", "test loss (nats)", (0.5, 0.4, 0.35), 4.0, 32, 14),
    "mlp": Problem("784-512-512-10, relu", "test error", (0.05, 0.03, 0.025), 12.0, 128, 28, xla=True),
    "conv": Problem("2c2d, 3.3 million weights", "test error", (0.05, 0.03, 0.02), 18.0, 64, 28, 2_000),
    "autoencoder": Problem(
        *("autoencoder 784-1000-500-250-30-..., tanh", "test loss (nats per pixel)", (0.2, 0.15, 0.12)),
        *(36.0, 256, 28, 2_000),
    ),
    # First-order methods slow down on the way to these.
    "autoencoder_low": Problem(
        "autoencoder 784-1000-500-250-30-..., tanh, lower targets",
        "test loss (nats per pixel)",
        (0.2, 0.15, 0.12, 0.1, 0.09),
        budget=50.0,
        batch_size=256,
        image_size=28,
        test_images=2_000,
    ),
    "sigmoid": Problem(
        *("autoencoder, sigmoid, sparse initialisation", "test loss (nats per pixel)", (0.2, 0.15, 0.12)),
        *(40.0, 1_000, 28, 2_000),
    ),
    "deep": Problem("784, ten times 100 tanh, 10", "test error", (0.05, 0.04, 0.03), 12.0, 256, 28, xla=True),
    "resnet": Problem("ResNet, BatchNormalization", "test error", (0.05, 0.03, 0.02), 16.0, 128, 28, 2_000),
    "regression": Problem(
        "1-64-64-1, tanh, 256 points", "training loss", (1e-2, 1e-4, 1e-6), 10.0, None, None, precision="float64"
    ),
}
# With sigmoid units and Glorot's initialisation the first hundreds of steps lie on a plateau near 0.265, the loss of
# predicting the mean image: Adam (rate 0.001) leaves it after 10 s and is at 0.19 after 25, the natural gradients that
# were looked at (Monte-Carlo Gram, CG) had not left it by then. A race there would tell no more than that. With tanh
# units all contestants move, and with sigmoid units so they do from Martens's sparse initialisation.
AUTOENCODERS = ("autoencoder", "autoencoder_low", "sigmoid")
AUTOENCODER = (1000, 500, 250)
# Weights of a unit that are not zero at the start (J. Martens, "Deep learning via Hessian-free optimization", 2010).
SPARSE = 15
# y = sin(8 pi x) + x/2 at equidistant points of this interval: eight periods of the sine.
REGRESSION_INTERVAL = (-1.0, 1.0)
REGRESSION_POINTS = 256

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


def network(name: str, shape: tuple[int, ...]):
    """Makes the network of a problem; Keras's global seed decides the weights.

    Args:
        name: a key of `PROBLEMS`.
        shape: of an input.

    Returns:
        A Keras model and its loss.
    """
    import keras

    dense, inputs = keras.layers.Dense, keras.Input(shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if name == "resnet":
        return _resnet(inputs), loss
    if name == "blog":
        layers = [dense(10, use_bias=False)]
    elif name == "mlp":
        layers = [dense(512, "relu"), dense(512, "relu"), dense(10)]
    elif name == "deep":
        layers = [*(dense(100, "tanh") for _ in range(10)), dense(10)]
    elif name == "conv":
        layers = []
        for channels in (32, 64):
            layers.append(keras.layers.Conv2D(channels, 5, padding="same", activation="relu"))
            layers.append(keras.layers.MaxPooling2D(2))
        layers += [keras.layers.Flatten(), dense(1024, "relu"), dense(10)]
    elif name == "regression":
        layers, loss = [dense(64, "tanh"), dense(64, "tanh"), dense(1)], keras.losses.MeanSquaredError()
    else:
        units, start = ("sigmoid", _sparse) if name == "sigmoid" else ("tanh", "glorot_uniform")
        widths = [*AUTOENCODER, 30, *reversed(AUTOENCODER), shape[-1]]
        linear = (len(AUTOENCODER), len(widths) - 1)
        layers = [dense(w, None if i in linear else units, kernel_initializer=start) for i, w in enumerate(widths)]
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return keras.Sequential([inputs, *layers]), loss


def _sparse(shape, dtype=None):
    """Weights of which each unit has `SPARSE`, drawn from a standard normal distribution."""
    import keras

    rows, columns = shape
    order = np.argsort(np.asarray(keras.random.uniform((columns, rows))), 1)[:, :SPARSE]
    mask = np.zeros((columns, rows), bool)
    np.put_along_axis(mask, order, True, 1)
    return keras.random.normal(shape, dtype=dtype) * keras.ops.cast(mask.T, dtype)


def _resnet(inputs):
    """Three blocks of two convolutions, 16, 32 and 64 channels."""
    import keras
    from keras import layers

    def convolved(x, channels, size=3, strides=1):
        x = layers.Conv2D(channels, size, strides, padding="same", use_bias=False)(x)
        # The averages of Keras's default, 0.99, are those of a race's beginning until late.
        return layers.BatchNormalization(momentum=0.9)(x)

    x = layers.Activation("relu")(convolved(inputs, 16, strides=2))
    for channels, strides in ((16, 1), (32, 2), (64, 2)):
        y = layers.Activation("relu")(convolved(x, channels, strides=strides))
        shortcut = x if strides == 1 else convolved(x, channels, 1, strides)
        x = layers.Activation("relu")(layers.Add()([convolved(y, channels), shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


__all__ = [
    "AUTOENCODERS",
    "DEFAULTS_SEEDS",
    "DIVERGED",
    "LEARNING_RATES",
    "NATURAL",
    "OWN_BATCH",
    "PROBLEMS",
    "REGRESSION_INTERVAL",
    "REGRESSION_POINTS",
    "SEEDS",
    "TUNING_SEED",
    "Problem",
    "network",
]
