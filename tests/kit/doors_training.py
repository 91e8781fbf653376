"""Doors of training."""

import bad_values as bad
import keras
import numpy as np
import tensorflow as tf
from bad_values import CLASSES, EXAMPLES, INF, NAN, WIDTH, floats, numbers
from doors import DATA, LOSS, MODEL, PARTS, SOLVERS, Door, X, Y, network

import tf_natgrad as ng

TRAINED = ng.natural_gradient_model(network())
TRAINED.compile(ng.NaturalGradient(), LOSS, run_eagerly=True)
IN_GRAPH = ng.natural_gradient_model(network())
IN_GRAPH.compile(ng.NaturalGradient(solver="cg"), LOSS, jit_compile=False)

OPTIMIZER = {
    "learning_rate": numbers(0.0),
    "damping": [*numbers(0.0), ng.LineSearch(), {"nonsense": 1}, {"initial": -1.0}],
    "solver": SOLVERS,
    "fisher": bad.CHOICES,
    "momentum": [*numbers(0.0, maximum=1.0, open_above=True), "nonsense"],
    "warm_start": numbers(0.0),
    "max_kl": numbers(0.0, exclusive=True, optional=True),
    "line_search": [True, 3, "yes", ng.LevenbergMarquardt(), {"nonsense": 1}, {"shrink": 2.0}, ng.LineSearch],
    "micro_batch_size": numbers(1, integer=True, optional=True),
    "budget": numbers(0.0, exclusive=True),
    "on_nonfinite": bad.CHOICES,
    "weight_decay": numbers(0.0, optional=True),
    "clipnorm": numbers(0.0, exclusive=True, optional=True),
    "clipvalue": numbers(0.0, exclusive=True, optional=True),
    "global_clipnorm": numbers(0.0, exclusive=True, optional=True),
    "use_ema": bad.FLAGS,
    "ema_momentum": numbers(0.0, maximum=1.0),
    "ema_overwrite_frequency": numbers(1, integer=True, optional=True),
    "gradient_accumulation_steps": [4, "2", -1],
}
# Of a dictionary the message names the field.
FIELDS = {"damping": ("initial",), "line_search": ("shrink",)}


def _compile(loss):
    # Compiled again without a loss, a model would keep the one before. It shares its weights.
    model = ng.natural_gradient_model(MODEL)
    model.compile(ng.NaturalGradient(learning_rate=0.0), loss, run_eagerly=True)
    model.train_on_batch(X, Y)


def _train(x=X, y=Y, sample_weight=None):
    TRAINED.train_on_batch(x, y, sample_weight=sample_weight)


def _fit(x=X, y=Y, sample_weight=None):
    IN_GRAPH.fit(x, y, sample_weight=sample_weight, batch_size=EXAMPLES, epochs=1, verbose=0)


def _optimizer():
    optimizer = ng.NaturalGradient()
    optimizer.build([keras.Variable(floats(2))])
    return optimizer


BATCH = {"model": MODEL, "loss": LOSS, "x": X, "y": Y}
VARIABLE = keras.Variable(floats(2))
OWNERS = [TRAINED, IN_GRAPH, TRAINED.optimizer, IN_GRAPH.optimizer]
DOORS = [
    Door("NaturalGradient", ng.NaturalGradient, {}, OPTIMIZER, FIELDS, free=("name", "kwargs")),
    Door(
        "NaturalGradient.damping",
        lambda value: setattr(_optimizer(), "damping", value),
        {"value": 0.1},
        {"value": numbers(0.0)},
        {"value": ("damping",)},
    ),
    Door(
        "NaturalGradient.apply_direction",
        lambda **given: ng.NaturalGradient().apply_direction(**given),
        {"direction": [floats(2)], "variables": [VARIABLE]},
        {
            "direction": [None, 3, "x", [], ["x"], [None], [floats(3)], [floats(2), floats(2)], bad.a_function],
            "variables": [None, 3, "x", [], [None], [3], ["w"], [VARIABLE, VARIABLE], bad.a_function],
            "through": [3, "adam", keras.optimizers.Adam, bad.a_function],
            "decayed": bad.FLAGS,
        },
        {"variables": ("direction",)},
    ),
    Door(
        "NaturalGradient.decay_weights",
        lambda variables: ng.NaturalGradient(weight_decay=0.1).decay_weights(variables),
        {"variables": [VARIABLE]},
        {"variables": [None, 3, "x", [None], [3], ["w"], bad.a_function]},
    ),
    Door(
        "LevenbergMarquardt",
        ng.LevenbergMarquardt,
        {},
        {
            "initial": [*numbers(0.0, exclusive=True), 1e9, 1e-12],
            "decay": numbers(0.0, exclusive=True, maximum=1.0, open_above=True),
            "period": numbers(1, integer=True),
            "low": [*numbers(), 0.8],
            "high": [*numbers(), 0.1],
            "minimum": [*numbers(0.0, exclusive=True), 1.0],
            "maximum": [*numbers(0.0, exclusive=True), 0.01],
            "relative": bad.FLAGS,
        },
        {"high": ("low",), "minimum": ("initial",), "maximum": ("initial",)},
    ),
    Door(
        "LineSearch",
        ng.LineSearch,
        {},
        {
            "max_backtracks": numbers(0, integer=True),
            "shrink": numbers(0.0, exclusive=True, maximum=1.0, open_above=True),
            "min_ratio": numbers(0.0, maximum=1.0, open_above=True),
        },
    ),
    Door(
        "explain",
        ng.explain,
        BATCH,
        {
            "model": bad.MODELS,
            "loss": bad.LOSSES,
            "x": bad.INPUTS,
            "budget": numbers(0.0, exclusive=True),
            "training": bad.FLAGS,
        },
        free=("y",),
    ),
    Door(
        "natural_gradient",
        ng.natural_gradient,
        BATCH,
        {
            "model": bad.MODELS,
            "loss": bad.LOSSES,
            "x": bad.INPUTS,
            "y": [None, *bad.LABELS],
            "sample_weight": bad.WEIGHTS,
            "damping": [*numbers(0.0), tf.constant(-1.0), tf.zeros([2]), tf.constant("a")],
            "solver": [v for v in SOLVERS if not isinstance(v, dict)],
            "training": bad.FLAGS,
        },
        # A tuple of inputs is inputs.
        {"loss": ("loss", "y"), "x": ("x", "x, y")},
    ),
    Door(
        "natural_gradient_model",
        ng.natural_gradient_model,
        {"model": MODEL},
        {"model": [*bad.MODELS, keras.Sequential([keras.layers.Dense(2)]), keras.Model(), keras.layers.Dense(2)]},
    ),
    Door(
        "fisher_scoring",
        ng.fisher_scoring,
        {"model": MODEL, "loss": LOSS, "data": (X, Y), "max_iterations": 0, "progress": False},
        {
            "model": bad.MODELS,
            "loss": bad.LOSSES,
            "data": [*DATA, X],
            "sample_weight": bad.WEIGHTS,
            "damping": numbers(0.0),
            "solver": bad.CHOICES,
            "gtol": numbers(0.0, optional=True),
            "max_iterations": numbers(0, integer=True),
            "line_search": [None, True, 3, "yes", ng.LineSearch, ng.LevenbergMarquardt(), {}],
            "progress": bad.FLAGS,
        },
        {**PARTS, "sample_weight": ("data",)},
    ),
    Door(
        "callbacks.StepLogger",
        ng.callbacks.StepLogger,
        {},
        {"path": bad.PATHS, "every": numbers(1, integer=True), "append": bad.FLAGS},
    ),
    Door(
        "train_on_batch",
        _train,
        {},
        {
            "x": [
                floats(EXAMPLES, WIDTH, fill=NAN),
                floats(EXAMPLES, WIDTH, fill=INF),
                floats(EXAMPLES, WIDTH + 1),
                floats(0, WIDTH),
            ],
            "y": [None, *(y for y in bad.LABELS if isinstance(y, np.ndarray) and y.dtype.kind in "if")],
            "sample_weight": [w for w in bad.WEIGHTS if isinstance(w, np.ndarray) and w.dtype.kind == "f"],
        },
    ),
    Door("compile", _compile, {"loss": LOSS}, {"loss": bad.LOSSES}),
    Door(
        "fit",
        _fit,
        {},
        {
            "x": [floats(EXAMPLES, WIDTH, fill=NAN), floats(EXAMPLES, WIDTH + 1)],
            "y": [None, np.full(EXAMPLES, CLASSES), np.zeros([EXAMPLES, CLASSES], int)],
            "sample_weight": [floats(EXAMPLES, fill=NAN), floats(EXAMPLES, fill=-1.0)],
        },
    ),
    Door("wait_for_workers", ng.wait_for_workers, {}, {"timeout": numbers(0.0, exclusive=True)}),
]
