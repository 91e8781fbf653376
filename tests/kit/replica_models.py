"""What trains on replicas: small models, optimizers and data, the same on one device."""

import dataclasses

import keras
import numpy as np
from keras import layers, regularizers

import tf_natgrad as ng

# Three batches an epoch of 12, 12 and 2 examples: of the last one two of four replicas have none.
EXAMPLES, BATCH, FEATURES, CLASSES = 26, 12, 4, 3


def plain(**options):
    return ng.NaturalGradient(**{"learning_rate": 0.5, "damping": 0.1, "max_kl": None, "line_search": None} | options)


def stack(**options):
    return [layers.Dense(5, activation="tanh", **options), layers.Dense(CLASSES, **options)]


def with_adam():
    beside = {".*head/.*": keras.optimizers.Adam(0.05)}
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(plain(), beside))


def named():
    return [layers.Dense(5, activation="tanh"), layers.Dense(CLASSES, name="head")]


def convolutional():
    return [
        layers.Reshape((2, 2, 1)),
        layers.Conv2D(2, 2, padding="same", activation="tanh"),
        layers.LayerNormalization(),
        layers.Flatten(),
        layers.Dense(CLASSES),
    ]


def two_heads():
    inputs = keras.Input((FEATURES,))
    inner = layers.Dense(5, activation="tanh")(inputs)
    return ng.NaturalGradientModel(inputs, [layers.Dense(CLASSES, name="a")(inner), layers.Dense(2, name="b")(inner)])


def words():
    inputs = keras.Input((5,), dtype="int64")
    inner = layers.Embedding(7, 4, mask_zero=True)(inputs)
    return ng.NaturalGradientModel(inputs, layers.Dense(CLASSES)(inner))


def sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


CG = ng.solvers.ConjugateGradient(max_iterations=8, rtol=1e-14)
# Optimizer, layers or model, and which data.
CASES = {
    "gram": (lambda: plain(solver="gram"), stack, {}),
    "auto": (plain, stack, {}),
    "weighted": (lambda: plain(solver="gram"), stack, {"weighted": True}),
    "l2": (lambda: plain(solver="gram"), lambda: stack(kernel_regularizer=regularizers.L2(0.01)), {}),
    "beside": (with_adam, named, {}),
    "layers": (lambda: plain(solver="gram"), convolutional, {}),
    "regression": (lambda: plain(solver="gram"), stack, {"loss": "mse"}),
    "search": (lambda: ng.NaturalGradient(solver="gram"), stack, {}),
    "decay": (lambda: ng.NaturalGradient(2.0, solver="gram", weight_decay=0.01, max_kl=None), stack, {}),
    "cg": (lambda: plain(solver=CG), stack, {}),
    "kfac_cg": (lambda: plain(solver=dataclasses.replace(CG, preconditioner="kfac")), stack, {}),
    "svd": (lambda: plain(solver="svd"), stack, {}),
    "mc": (lambda: plain(solver="gram", fisher="mc"), stack, {}),
    "kfac": (lambda: ng.NaturalGradient(fisher=ng.KFAC(update_every=2, invert_every=4)), stack, {}),
    "kfac_fixed": (lambda: ng.NaturalGradient(fisher=ng.KFAC("fixed", update_every=3)), convolutional, {}),
    "ekfac": (lambda: ng.NaturalGradient(fisher=ng.EKFAC(update_every=2, invert_every=4)), stack, {}),
    "several": (lambda: plain(solver="gram"), two_heads, {"loss": "two"}),
    "masked": (lambda: plain(solver="gram"), words, {"loss": "words"}),
    # Far too long steps: many are shortened ten times, or taken back.
    "far": (lambda: ng.NaturalGradient(30.0, solver="gram", max_kl=None), stack, {}),
    "momentum": (lambda: plain(solver="gram", momentum=0.5), stack, {}),
}


def data(loss=None, weighted=False, spoilt=None):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(EXAMPLES, FEATURES)), rng.integers(0, CLASSES, EXAMPLES)
    weights = rng.uniform(0.0, 2.0, EXAMPLES) if weighted else None
    if loss == "mse":
        y = rng.normal(size=(EXAMPLES, CLASSES))
    elif loss == "two":
        y = [y, rng.normal(size=(EXAMPLES, 2))]
    elif loss == "words":
        # The replicas have different numbers of positions that count.
        x, y = rng.integers(0, 7, (EXAMPLES, 5)), rng.integers(0, CLASSES, (EXAMPLES, 5))
    # In the second batch, on the last replica alone.
    if spoilt == "x":
        x[2 * BATCH - 1, 0] = np.nan
    elif spoilt == "y":
        y[2 * BATCH - 1] = CLASSES
    return x, y, weights


def compiled(case, strategy, **options):
    optimizer, network, given = CASES[case]
    losses = {None: sparse(), "words": sparse(), "mse": "mse", "two": [sparse(), "mse"]}
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = network()
        if isinstance(model, list):
            model = ng.NaturalGradientSequential([keras.Input((FEATURES,)), *model])
        model.compile(optimizer(), losses[given.get("loss")], **options)
    return model


def fitted(model, x, y, weights, epochs=4):
    fit = {"batch_size": BATCH, "epochs": epochs, "shuffle": False, "verbose": 0}
    return model.fit(x, y, sample_weight=weights, **fit).history


def on_each(model, strategy):
    """The weights of each replica, flat."""
    values = [strategy.experimental_local_results(v.value) for v in model.trainable_variables]
    return [np.concatenate([np.ravel(v.numpy()) for v in replica]) for replica in zip(*values, strict=True)]
