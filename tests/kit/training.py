"""What the tests of training share: small models, batches, modes, and the answers of stock Keras."""

import keras
import numpy as np
import oracle
import tensorflow as tf
from keras import layers

import tf_natgrad as ng

MODES = ("eager", "graph", "xla")
# XLA takes only solvers without SVD and eigh.
RUNS = [("eager", "auto"), ("graph", "auto"), ("eager", "cg"), ("graph", "cg"), ("xla", "cg")]


# Penalties join the damping of the Gram form where its rules take a scale for each variable.


def sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def cg(rtol=1e-6):
    return ng.solvers.ConjugateGradient(rtol=rtol)


def plain(*args, **options):
    """Natural gradient descent as it is written down: one damping, and each step is taken whole."""
    return ng.NaturalGradient(*args, **{"damping": 0.1, "max_kl": None, "line_search": None} | options)


def batch(examples=12, features=4, classes=3, dtype="float32"):
    rng = np.random.default_rng(3)
    return rng.normal(size=(examples, features)).astype(dtype), rng.integers(0, classes, examples)


def mlp():
    return [layers.Dense(5, activation="tanh"), layers.Dense(3)]


def network(stack=None, shape=(4,), dtype=None, kind=ng.NaturalGradientSequential, seed=1):
    """A Sequential model; the same seed gives the same weights and dropout masks, whatever the class."""
    keras.utils.set_random_seed(seed)
    stack = mlp() if stack is None else stack() if callable(stack) else stack
    return kind([keras.Input(shape, dtype=dtype), *stack])


def compiled(model, optimizer=None, loss=None, mode="graph", **kwargs):
    optimizer = plain() if optimizer is None else optimizer
    jit = True if mode == "xla" else kwargs.pop("jit_compile", False)
    model.compile(optimizer, loss or sparse(), run_eagerly=mode == "eager", jit_compile=jit, **kwargs)
    return model


def fit(model, x, y=None, **kwargs):
    """One quiet `fit`, in the order of the data; its history."""
    if not isinstance(x, tf.data.Dataset):
        kwargs = {"batch_size": 4, "shuffle": False, **kwargs}
    return model.fit(x, y, verbose=0, **kwargs).history


def trained(mode="graph", optimizer=None, stack=None, epochs=2, data=None, **kwargs):
    """A new model after a short `fit`, and its history."""
    model = compiled(network(stack), optimizer, mode=mode)
    x, y = data or batch()
    return model, fit(model, x, y, epochs=epochs, **kwargs)


def changes(model, run):
    """By how much `run()` changes each trainable variable."""
    before = [v.numpy() for v in model.trainable_variables]
    run()
    return [v.numpy() - b for v, b in zip(model.trainable_variables, before, strict=True)]


def flat(arrays):
    return np.concatenate([np.asarray(a, "float64").ravel() for a in arrays])


def keras_gradient(model, x, y, sample_weight=None):
    """The gradient of `model.compute_loss`, regularisers included, flat."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True), sample_weight, training=True)
    return flat(map(tf.convert_to_tensor, tape.gradient(loss, [v.value for v in model.trainable_variables])))


def dense_direction(model, x, y, damping, family="categorical", sample_weight=None):
    """`(F + damping I)^-1 g` with the Fisher of the oracle and the gradient of Keras."""
    matrix = oracle.dense_problem(model, x, y, sample_weight, family).matrix
    return np.linalg.solve(matrix + damping * np.eye(len(matrix)), keras_gradient(model, x, y, sample_weight))


def same_weights(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


class Counting(layers.Layer):
    """Counts how often Python runs through it: once per trace."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x


class PoissonPd(ng.distributions.Distribution):
    """A distribution of a user's own: counts with rate exp(z)."""

    @property
    def fisher_rank(self):
        return self.parameters.shape[-1]

    @property
    def rate(self):
        return tf.exp(self.parameters)

    def log_prob(self, value):
        value = tf.cast(value, self.parameters.dtype)
        return tf.reduce_sum(value * self.parameters - self.rate - tf.math.lgamma(value + 1.0), -1)

    def sample(self, seed):
        return tf.random.stateless_poisson(tf.shape(self.parameters), seed, self.rate, self.parameters.dtype)

    def kl(self, other):
        difference = self.parameters - other.parameters
        return tf.reduce_sum(self.rate * difference - self.rate + other.rate, -1)

    def fisher_factor_columns(self):
        return tf.stack(
            [
                tf.sqrt(self.rate) * tf.one_hot(i, self.fisher_rank, dtype=self.parameters.dtype)
                for i in range(self.fisher_rank)
            ]
        )

    def score_factor(self, value):
        return (self.rate - tf.cast(value, self.parameters.dtype)) / tf.sqrt(self.rate)


class StockSubclassed(keras.Model):
    """A model that has no variables before its first call."""

    def __init__(self, dropout=0.3, **kwargs):
        super().__init__(**kwargs)
        self.dropout = dropout
        self.inner = keras.Sequential([layers.Dense(5, activation="tanh"), layers.Dropout(dropout)])
        self.head = layers.Dense(3)

    def get_config(self):
        return {**super().get_config(), "dropout": self.dropout}

    def call(self, x, training=False):
        return self.head(self.inner(x, training=training))


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(ng.NaturalGradientMixin, StockSubclassed):
    """The same, with natural gradients."""
