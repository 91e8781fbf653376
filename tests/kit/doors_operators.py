"""Doors of curvature matrices and of parameters."""

import bad_values as bad
import keras
import numpy as np
import tensorflow as tf
from bad_values import INF, NAN, floats, numbers
from doors import DATA, FISHER, FLAT, HESSIAN, LOSS, MATRIX, MODEL, PARTS, ROWS, SIZE, Door, X, Y, products

import tf_natgrad as ng

MODEL_OPTIONS = {
    "sample_weight": bad.WEIGHTS,
    "training": bad.FLAGS,
    "variables": [v for v in bad.variables() if v is not None] + [[keras.Variable(floats(2))]],
    "progress": bad.FLAGS,
    "record_calls": bad.FLAGS,
    "micro_batch_size": numbers(1, integer=True, optional=True),
    "conditions": bad.COLLECTORS,
}
# The labels play no part in the Fisher.
NO_LABELS = [d for d in DATA if not (isinstance(d, tuple) and len(d) == 2)]


def _matrix(name, data, **wrong):
    kind = getattr(ng.operators, name)
    right = {"model": MODEL, "loss": LOSS, "data": (X, Y)}
    return Door(
        f"operators.{name}",
        kind,
        right,
        {"model": bad.MODELS, "loss": bad.LOSSES, "data": data, **MODEL_OPTIONS, **wrong},
        PARTS,
    )


SCORES = ng.operators.ScoreFunctionHessian(
    lambda: tf.square(FLAT.variables[-1]), FLAT.variables[-1:], [1.0, 1.0], [0, 0]
)
KRONECKER = ng.operators.KroneckerFisher(MODEL, LOSS, X)
DAMPINGS = [*numbers(0.0, exclusive=True), tf.zeros([2]), tf.zeros([]), tf.constant(NAN)]
DOORS = [
    _matrix(
        "Fisher",
        NO_LABELS,
        kind=bad.CHOICES,
        seed=[v for v in bad.SEEDS if v != -1],
        mc_samples=numbers(1, integer=True),
    ),
    _matrix("EmpiricalFisher", [*DATA, X]),
    _matrix("Hessian", [*DATA, X]),
    _matrix("GaussNewton", [*DATA, X]),
    Door(
        "operators.Damped",
        ng.operators.Damped,
        {"base": FISHER, "damping": 0.1},
        {
            "base": [*bad.OPERATORS, MATRIX, MODEL],
            "damping": [*numbers(0.0), tf.zeros([2]), tf.constant("a"), 1j * tf.cast(1.0, tf.complex64)],
            "conditions": bad.COLLECTORS,
        },
    ),
    Door(
        "operators.KroneckerFisher",
        ng.operators.KroneckerFisher,
        {"model": MODEL, "loss": LOSS, "data": (X, Y)},
        {
            "model": bad.MODELS,
            "loss": bad.LOSSES,
            "data": NO_LABELS,
            **{name: values for name, values in MODEL_OPTIONS.items() if name not in ("record_calls", "conditions")},
            "approximation": bad.CHOICES,
            "fisher": bad.CHOICES,
            "seed": [v for v in bad.SEEDS if v != -1],
            "mc_samples": numbers(1, integer=True),
        },
        PARTS,
    ),
    Door("KroneckerFisher.inverse", KRONECKER.inverse, {"damping": 0.1}, {"damping": DAMPINGS, "split": bad.CHOICES}),
    Door("KroneckerFisher.log_determinant", KRONECKER.log_determinant, {"damping": 0.1}, {"damping": DAMPINGS}),
    *products(KRONECKER, "matvec", "matmul"),
    Door("Fisher.damped", FISHER.damped, {"damping": 0.1}, {"damping": [*numbers(0.0), tf.zeros([2])]}),
    *products(FISHER, "matvec", "matmul"),
    Door(
        "Fisher.to_dense",
        FISHER.to_dense,
        {},
        {"method": bad.CHOICES, "memory_limit": [*numbers(0, optional=False), 1]},
        free=("name",),
    ),
    Door("Hessian.to_dense", HESSIAN.to_dense, {}, {"memory_limit": [*numbers(0), 1]}, free=("name",)),
    Door("Fisher.factor_matvec", FISHER.factor_matvec, {"x": np.ones(SIZE)}, {"x": bad.vectors(SIZE)}),
    Door(
        "Fisher.factor_transpose_matvec", FISHER.factor_transpose_matvec, {"u": np.ones(ROWS)}, {"u": bad.vectors(ROWS)}
    ),
    Door("Fisher.loss_gradient", FISHER.loss_gradient, {"y": Y}, {"y": bad.LABELS, "sample_weight": bad.WEIGHTS}),
    Door("Fisher.loss", FISHER.loss, {"y": Y}, {"y": bad.LABELS}),
    Door("Fisher.gradient", FISHER.gradient, {"y": Y}, {"y": bad.LABELS}),
    Door(
        "Fisher.plain_gradient",
        FISHER.plain_gradient,
        {"y": Y, "variables": MODEL.trainable_variables},
        {"y": bad.LABELS, "variables": bad.variables()},
    ),
    Door(
        "operators.Penalty",
        ng.operators.Penalty,
        {"parameters": FLAT},
        {"parameters": [None, 3, "x", [], bad.a_function, FISHER]},
    ),
    Door(
        "operators.Sum",
        lambda part: ng.operators.Sum(FISHER, part),
        {"part": FISHER},
        {"part": bad.OPERATORS},
        {"part": ("parts",)},
    ),
    Door(
        "operators.ScoreFunctionHessian",
        ng.operators.ScoreFunctionHessian,
        {
            "log_prob": lambda: FLAT.variables[-1] * tf.constant([1.0, 2.0]),
            "variables": FLAT.variables[-1:],
            "weights": [1.0, 1.0],
            "episode_ids": [0, 0],
        },
        {
            "log_prob": [
                None,
                "f",
                3,
                tf.zeros([2]),
                lambda: None,
                lambda: "x",
                lambda: tf.zeros([2, 2]),
                lambda: tf.zeros([]),
            ],
            "variables": bad.variables(),
            "weights": [*bad.NOT_NUMBERS, [1.0], [[1.0, 1.0]], [NAN, 1.0], [1j, 1.0]],
            "episode_ids": [*bad.NOT_NUMBERS, [0], [0, 2], [1, 1], [0.0, 0.5], [-1, 0]],
            "episode_weights": [*bad.NOT_NUMBERS[1:], [1.0, 1.0], [NAN], [INF], [1j]],
            "estimator": bad.CHOICES,
            "model": bad.MODELS[1:],
        },
        {"log_prob": ("log_prob()",)},
    ),
    *products(SCORES, "matvec", "matmul", "quadratic_forms"),
    Door(
        "parameters.FlatParameters",
        ng.parameters.FlatParameters,
        {"variables": MODEL.trainable_variables},
        {"variables": bad.variables()},
    ),
    Door("FlatParameters.unflatten", FLAT.unflatten, {"vector": np.ones(SIZE)}, {"vector": bad.vectors(SIZE)}),
    Door("FlatParameters.assign", FLAT.assign, {"vector": FLAT.read()}, {"vector": bad.vectors(SIZE)}),
    Door(
        "FlatParameters.flatten",
        FLAT.flatten,
        {"tensors": MODEL.get_weights()},
        {
            "tensors": [
                None,
                3,
                "x",
                [],
                MODEL.get_weights()[1:],
                ["x"] * 4,
                [None] * 4,
                MODEL.get_weights()[::-1],
                bad.a_function,
            ]
        },
    ),
]
