"""The registry of cases: a model, a loss, a batch and its weights, each small enough for a dense oracle."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import oracle
from keras import layers, losses

import tf_natgrad as ng

EXAMPLES = 5


@contextlib.contextmanager
def precision(dtype):
    """Keras's `floatx` and default policy, restored afterwards."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


@dataclasses.dataclass(frozen=True)
class Case:
    """How to make one problem. `family` names the textbook formulas of `oracle`."""

    model: Callable[[], keras.Model]
    loss: Callable[[], Any]
    family: str
    x: Callable[[np.random.Generator], Any]
    y: Callable[[np.random.Generator], np.ndarray]
    weighted: bool = True

    def build(self, dtype="float64"):
        rng = np.random.default_rng(7)
        with precision(dtype):
            model, loss = self.model(), self.loss()
            model.set_weights([rng.normal(0.1, 0.6, w.shape) for w in model.get_weights()])
            x = _as_floats(self.x(rng), dtype)
            y = _as_floats(self.y(rng), dtype)
            weight = rng.uniform(0.2, 2.0, EXAMPLES).astype(dtype) if self.weighted else None
        return Problem(model, loss, self.family, x, y, weight, dtype)


@dataclasses.dataclass
class Problem:
    """One case, built. The properties are made once."""

    model: keras.Model
    loss: Any
    family: str
    x: Any
    y: np.ndarray
    weight: np.ndarray | None
    dtype: str
    name: str = ""

    def make_fisher(self, **kwargs):
        with precision(self.dtype):
            return ng.operators.Fisher(self.model, self.loss, self.x, sample_weight=self.weight, **kwargs)

    @functools.cached_property
    def fisher(self):
        return self.make_fisher()

    @functools.cached_property
    def dense(self):
        return self.fisher.to_dense().numpy()

    @functools.cached_property
    def factor(self):
        return self.fisher.factor().numpy()

    @functools.cached_property
    def rhs(self):
        return self.fisher.loss_gradient(self.y)

    @functools.cached_property
    def oracle(self):
        """The dense truth, in float64."""
        return oracle.dense_problem(self.model, self.x, self.y, self.weight, self.family)

    @property
    def flat(self):
        return ng.parameters.FlatParameters(self.model.trainable_variables)

    @property
    def size(self):
        return self.flat.size


def _as_floats(data, dtype):
    if isinstance(data, list):
        return [_as_floats(d, dtype) for d in data]
    return data.astype(dtype) if data.dtype.kind == "f" else data


def _mlp(outputs, activation=None):
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="tanh"),
            layers.Dense(4, activation="softplus"),
            layers.Dense(outputs, activation=activation),
        ]
    )


def _mixture():
    inputs = keras.Input((4,))
    return keras.Model(inputs, 0.9 * layers.Dense(3, activation="softmax")(inputs) + 0.1 / 3)


def _shared_layer():
    first, second = keras.Input((4,)), keras.Input((4,))
    twice = layers.Dense(4, activation="tanh")
    hidden = layers.concatenate([twice(twice(first)), twice(second)])
    return keras.Model([first, second], layers.Dense(3)(hidden))


def _nested():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="tanh"), layers.Dense(3)])
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(3)(inner(inputs) + inner(-inputs)))


def _frozen():
    model = _mlp(3)
    model.layers[1].trainable = False
    return model


def _attention():
    inputs = keras.Input((3, 4))
    hidden = layers.MultiHeadAttention(1, 2, attention_axes=(1,))(inputs, inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(hidden)))


def _sequential(shape, *stack, dtype=None):
    return lambda: keras.Sequential([keras.Input(shape, dtype=dtype), *(make() for make in stack)])


def _dense(units, **kwargs):
    return lambda: layers.Dense(units, **kwargs)


def _floats(*shape):
    return lambda rng: rng.normal(size=(EXAMPLES, *shape))


def _zeros_and_ones(*shape):
    return lambda rng: rng.integers(0, 2, (EXAMPLES, *shape)).astype("float64")


def _labels(classes, *shape):
    return lambda rng: rng.integers(0, classes, (EXAMPLES, *shape))


def _soft(classes):
    return lambda rng: rng.dirichlet(np.ones(classes), EXAMPLES)


def _sparse():
    return losses.SparseCategoricalCrossentropy(from_logits=True)


CASES = {
    "softmax_regression": Case(_sequential((4,), _dense(3)), _sparse, "categorical", _floats(4), _labels(3)),
    "unweighted": Case(_sequential((4,), _dense(3)), _sparse, "categorical", _floats(4), _labels(3), weighted=False),
    "mlp": Case(lambda: _mlp(3), _sparse, "categorical", _floats(4), _labels(3)),
    "soft_targets": Case(
        lambda: _mlp(3), lambda: losses.CategoricalCrossentropy(from_logits=True), "categorical", _floats(4), _soft(3)
    ),
    "softmax_in_model": Case(
        lambda: _mlp(3, "softmax"), losses.SparseCategoricalCrossentropy, "probabilities", _floats(4), _labels(3)
    ),
    "mixture": Case(_mixture, losses.SparseCategoricalCrossentropy, "probabilities", _floats(4), _labels(3)),
    "binary": Case(
        lambda: _mlp(2),
        lambda: losses.BinaryCrossentropy(from_logits=True),
        "bernoulli",
        _floats(4),
        _zeros_and_ones(2),
    ),
    "sigmoid_in_model": Case(
        lambda: _mlp(1, "sigmoid"),
        losses.BinaryCrossentropy,
        "bernoulli_probabilities",
        _floats(4),
        _zeros_and_ones(1),
    ),
    "regression": Case(lambda: _mlp(3), lambda: "mse", "squared_error", _floats(4), _floats(3)),
    "learned_std": Case(lambda: _mlp(4), lambda: ng.distributions.DiagGaussianPd, "gaussian", _floats(4), _floats(2)),
    "cnn": Case(
        _sequential(
            (5, 4, 1),
            lambda: layers.Conv2D(2, 3, activation="tanh"),
            lambda: layers.AveragePooling2D((2, 1)),
            layers.Flatten,
            _dense(3),
        ),
        _sparse,
        "categorical",
        _floats(5, 4, 1),
        _labels(3),
    ),
    "sequence": Case(
        _sequential((3, 4), _dense(4, activation="tanh"), _dense(3)),
        _sparse,
        "categorical",
        _floats(3, 4),
        _labels(3, 3),
    ),
    "long_sequence": Case(
        _sequential((7, 2), _dense(2, activation="tanh"), layers.GlobalAveragePooling1D, _dense(3)),
        _sparse,
        "categorical",
        _floats(7, 2),
        _labels(3),
    ),
    "shared_layer": Case(
        _shared_layer, _sparse, "categorical", lambda rng: [_floats(4)(rng), _floats(4)(rng)], _labels(3)
    ),
    "nested": Case(_nested, _sparse, "categorical", _floats(4), _labels(3)),
    "frozen": Case(_frozen, _sparse, "categorical", _floats(4), _labels(3)),
    "embedding": Case(
        _sequential((3,), lambda: layers.Embedding(6, 3), layers.Flatten, _dense(3), dtype="int32"),
        _sparse,
        "categorical",
        _labels(6, 3),
        _labels(3),
    ),
    "lstm": Case(
        _sequential((3, 2), lambda: layers.LSTM(2), _dense(3)), _sparse, "categorical", _floats(3, 2), _labels(3)
    ),
    "layer_norm": Case(
        _sequential((4,), _dense(4), layers.LayerNormalization, _dense(3, use_bias=False)),
        _sparse,
        "categorical",
        _floats(4),
        _labels(3),
    ),
    "attention": Case(_attention, _sparse, "categorical", _floats(3, 4), _labels(3)),
}


def fresh(name, dtype="float64"):
    """A problem of one's own, to be changed at will."""
    problem = CASES[name].build(dtype)
    problem.name = name
    return problem


@functools.cache
def shared(name, dtype="float64"):
    """The same problem for all tests of a process."""
    return fresh(name, dtype)


def singular_digits(examples=12, dtype="float64", scale=1.0, hidden=(), classes=3, softmax=False, seed=0):
    """Real digits with every source of singularity: constant-zero pixels, duplicates, zero weights.

    Args:
        examples: how many, of which the last two repeat the first two and the third has weight zero.
        dtype: of model and data.
        scale: of the logits; 1,000 saturates the softmax.
        hidden: sizes of hidden layers.
        classes: digits 0 to classes - 1.
        softmax: whether the model ends in a softmax.
        seed: of the model's weights.
    """
    images, labels = digits()
    chosen = np.flatnonzero(labels < classes)[: examples - 2]
    chosen = np.concatenate([chosen, chosen[:2]])
    rng = np.random.default_rng(seed)
    with precision(dtype):
        stack = [layers.Dense(units, activation="tanh") for units in hidden]
        head = layers.Dense(classes, activation="softmax" if softmax else None)
        model = keras.Sequential([keras.Input((16,)), *stack, head])
        weights = [rng.normal(0.0, 1.0 / np.sqrt(max(w.shape[0], 1)), w.shape) for w in model.get_weights()]
        model.set_weights([*weights[:-2], weights[-2] * scale, weights[-1] * scale])
        loss = losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    weight = np.ones(examples, dtype)
    weight[2] = 0.0
    family = "probabilities" if softmax else "categorical"
    return Problem(model, loss, family, images[chosen].astype(dtype), labels[chosen], weight, dtype)


@functools.cache
def digits():
    """scikit-learn's handwritten digits at 4x4 `[1797, 16]`, scaled to [0, 1], border pixels constant; and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pooled = data.images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16) / 16.0
    pooled[:, [0, 4]] = 0.0
    return pooled, data.target
