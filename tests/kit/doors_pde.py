"""Doors of differential equations."""

import bad_values as bad
import keras
import tensorflow as tf
from bad_values import floats, numbers
from doors import Door

import tf_natgrad as ng

NETWORK = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
OWNERS = [NETWORK]
POINTS = floats(4, 2)
BAD_POINTS = [None, "nonsense", floats(4), floats(4, 3), floats(4, 2, 2), bad.a_function, tf.constant(["a"])]
INDICES = [None, 3, [], [3], ["a"], [(2,)], [(-1,)], [(0, 0, 0)], [(0.0,)], [(True,)]]
SUBCLASSED = type("Subclassed", (keras.Model,), {})()
TERMS = {"inside": lambda network, x: ng.pde.laplacian(network, x)[2]}
MODEL = ng.pde.ResidualModel(NETWORK, TERMS)
WRONG = [None, "nonsense", floats(4), floats(0, 2), floats(4, 2) * float("nan")]
FUNCTIONS = [None, 3, "nonsense"]
DOORS = [
    Door(
        "pde.laplacian",
        ng.pde.laplacian,
        {"network": NETWORK, "x": POINTS},
        {"network": [*bad.MODELS, SUBCLASSED], "x": BAD_POINTS},
    ),
    Door(
        "pde.derivatives",
        ng.pde.derivatives,
        {"network": NETWORK, "x": POINTS, "wanted": [(0,), (0, 1)]},
        {"network": [*bad.MODELS, SUBCLASSED], "x": BAD_POINTS, "wanted": INDICES},
    ),
    Door(
        "pde.FourierFeatures",
        ng.pde.FourierFeatures,
        {"features": 3},
        {
            "features": numbers(1, integer=True),
            "scale": numbers(0.0, exclusive=True),
            "seed": numbers(0, integer=True),
        },
    ),
    Door(
        "pde.HardBoundary",
        ng.pde.HardBoundary,
        {"distance": keras.ops.sin},
        {"distance": FUNCTIONS, "lift": FUNCTIONS[1:]},
    ),
    Door("pde.Coefficient", ng.pde.Coefficient, {}, {"initial": numbers()}),
    Door(
        "pde.ResidualModel",
        ng.pde.ResidualModel,
        {"network": NETWORK, "terms": TERMS},
        {
            "network": bad.MODELS,
            "terms": [None, 3, {}, {"inside": 3}, {3: keras.ops.sin}, [keras.ops.sin]],
            "weights": [3, "nonsense", {"nonsense": 1.0}, {"inside": 0.0}, {"inside": -1.0}, {"inside": "1"}],
            "coefficients": [None, 3, [3], ["nonsense"]],
            "residuals": numbers(1, integer=True),
        },
    ),
    Door(
        "pde.ResidualModel.batches",
        MODEL.batches,
        {"points": {"inside": POINTS}},
        {
            "points": [None, 3, {}, POINTS, *({"inside": x} for x in WRONG), {"inside": POINTS, "other": POINTS}],
            "repeat": numbers(1, integer=True),
        },
    ),
    Door("pde.natural_gradient", lambda **given: ng.pde.natural_gradient(**given), {}, {}),
]
