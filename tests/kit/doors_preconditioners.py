"""Doors of curvature that outlives a batch."""

import bad_values as bad
import tensorflow as tf
from bad_values import numbers
from doors import LOSS, MODEL, Door, X, Y

import tf_natgrad as ng

DAMPINGS = numbers(0.0, exclusive=True)
BUILT = ng.KFAC()
BUILT.build(MODEL)
SIZE = sum(v.shape.num_elements() for v in (w.value for w in MODEL.trainable_variables))
OWNERS = [BUILT]
KFAC = {
    "recipe": bad.CHOICES,
    "ema": numbers(0.0, maximum=1.0, open_above=True),
    "update_every": numbers(1, integer=True, optional=True),
    "invert_every": numbers(1, integer=True, optional=True),
    "approximation": bad.CHOICES,
    "fisher": bad.CHOICES,
    "mc_samples": numbers(1, integer=True),
    "damping_split": bad.CHOICES,
    "rank": numbers(1, integer=True, optional=True),
    "largest": numbers(1, integer=True, optional=True),
}
EKFAC = {name: KFAC[name] for name in list(KFAC)[:7] if name in KFAC and name != "damping_split"}
NAMES = [None, 3, "nonsense", "", {}, {"name": "nonsense"}, {"name": "kfac", "nonsense": 1}, ["kfac"], bad.a_function]
DOORS = [
    Door("KFAC", ng.KFAC, {}, KFAC),
    Door("preconditioners.KFAC", ng.preconditioners.KFAC, {}, KFAC),
    Door("EKFAC", ng.EKFAC, {}, EKFAC),
    Door("preconditioners.EKFAC", ng.preconditioners.EKFAC, {}, EKFAC),
    Door("preconditioners.get", ng.preconditioners.get, {"preconditioner": "kfac"}, {"preconditioner": NAMES}),
    Door(
        "preconditioners.to_config",
        ng.preconditioners.to_config,
        {"preconditioner": ng.KFAC()},
        {"preconditioner": [None, "kfac", ng.KFAC, {}, bad.a_function]},
    ),
    Door("KFAC.build", lambda model: ng.KFAC().build(model), {"model": MODEL}, {"model": bad.MODELS}),
    Door(
        "KFAC.update",
        BUILT.update,
        {"model": MODEL, "loss": LOSS, "data": (X, Y), "damping": 0.1},
        {"model": bad.MODELS, "loss": bad.LOSSES, "damping": DAMPINGS, "training": bad.FLAGS},
        free=("data",),
    ),
    Door(
        "KFAC.solve",
        BUILT.solve,
        {"gradient": tf.ones([SIZE]), "damping": 0.1},
        {"gradient": bad.vectors(SIZE), "damping": DAMPINGS},
        {"gradient": ("vector",)},
    ),
]
