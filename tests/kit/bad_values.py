"""What may be given by mistake, by the kind of argument. `WIDTH` inputs, `CLASSES` outputs, `EXAMPLES` examples."""

import keras
import numpy as np
import tensorflow as tf

WIDTH, CLASSES, EXAMPLES = 3, 2, 4
NAN, INF = float("nan"), float("inf")


def a_function(*args, **kwargs):
    return 0.0


class Unrelated:
    """An object of no use here."""

    def __repr__(self):
        return "Unrelated()"


def numbers(minimum=None, *, exclusive=False, maximum=None, open_above=False, integer=False, optional=False):
    """Not a number of this range."""
    values = ["1", NAN, INF, -INF, True, [0.5], 1j, np.zeros(2), Unrelated()]
    if not optional:
        values.append(None)
    if minimum is not None:
        values += [minimum - 1, -(10**9)] + [minimum] * exclusive
    if maximum is not None:
        values += [maximum + 1] + [maximum] * open_above
    return values + [1.5] * integer


SEEDS = [None, "0", -1, 0.5, True, NAN, [0], Unrelated()]
FLAGS = [None, "yes", 1, 0.0, [], [True], np.array([True, False]), Unrelated()]
CHOICES = [None, "nonsense", "", 3, True, ["nonsense"], {}, np.array(["a", "b"]), a_function]
PATHS = [3, 1.5, True, ["file"], a_function, Unrelated()]
MODELS = [None, "model", 3, a_function, np.zeros([2, 2]), keras.Sequential, keras.losses.MeanSquaredError(), [1]]
NO_LOSSES = [
    None,
    "nonsense",
    "",
    3,
    a_function,
    keras.losses.MeanSquaredError,
    keras.losses.Huber(),
    [3],
    [],
    np.zeros(2),
    tf.zeros([2]),
    keras.losses.MeanSquaredError(reduction="none"),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0),
]
# Of several outputs, for a model with one.
LOSSES = [*NO_LOSSES, ["mse", "mse"], {"a": "mse"}]
COLLECTORS = [3, "x", (), {}, a_function, Unrelated()]

# What no tensor of numbers can be made of.
NOT_NUMBERS = [
    None,
    "x",
    ["a"] * EXAMPLES,
    np.array(["a"] * EXAMPLES),
    a_function,
    Unrelated(),
    {"a": 1},
    [[1.0], [1.0, 2.0]],
]
COMPLEX = 1j * np.ones([EXAMPLES, WIDTH])


def floats(*shape, fill=1.0):
    return np.full(shape, fill, "float32")


# Inputs of a model: one batch `[EXAMPLES, WIDTH]`.
INPUTS = [
    None,
    "x",
    3.0,
    [],
    a_function,
    Unrelated(),
    np.array([["a"] * WIDTH] * EXAMPLES),
    np.array([[None] * WIDTH] * EXAMPLES),
    [[1.0], [1.0, 2.0]],
    floats(0, WIDTH),
    floats(EXAMPLES, WIDTH, fill=NAN),
    floats(EXAMPLES, WIDTH, fill=INF),
    floats(EXAMPLES, WIDTH + 1),
    floats(EXAMPLES),
    floats(EXAMPLES, WIDTH, 2),
    COMPLEX,
]
# Class indices `[EXAMPLES]`; whether a class exists is looked at in the tests of the distributions.
LABELS = [
    "y",
    3,
    [],
    a_function,
    Unrelated(),
    np.array(["a"] * EXAMPLES),
    np.zeros(EXAMPLES + 1, int),
    np.zeros([EXAMPLES, CLASSES], int),
    np.zeros([EXAMPLES, 1, 1], int),
    np.full(EXAMPLES, CLASSES),
    np.full(EXAMPLES, -1),
    np.full(EXAMPLES, 0.5, "float32"),
    np.full(EXAMPLES, NAN, "float32"),
    np.full(EXAMPLES, 1j),
]
WEIGHTS = [
    "w",
    [],
    a_function,
    Unrelated(),
    np.array(["a"] * EXAMPLES),
    floats(EXAMPLES + 1),
    floats(EXAMPLES, fill=-1.0),
    floats(EXAMPLES, fill=NAN),
    floats(EXAMPLES, fill=INF),
    floats(EXAMPLES, 3),
    np.full(EXAMPLES, 1j),
]


def vectors(size):
    """Not a vector `[size]` of float32."""
    return [
        None,
        "v",
        3.0,
        [],
        a_function,
        Unrelated(),
        ["a"] * size,
        [[1.0], [1.0, 2.0]],
        np.zeros(size + 1, "float32"),
        np.zeros([size, 1], "float32"),
        np.zeros(size, "complex64"),
        tf.zeros([size], tf.complex64),
    ]


def matrices(size):
    """Not a matrix `[size, k]` of float32."""
    return [
        *vectors(size)[:-3],
        np.zeros(size, "float32"),
        np.zeros([size + 1, 2], "float32"),
        np.zeros([size, 1, 1], "float32"),
        tf.zeros([size, 1], tf.float64),
    ]


def _operator(array):
    return tf.linalg.LinearOperatorFullMatrix(array)


OPERATORS = [
    None,
    "fisher",
    3,
    a_function,
    np.eye(3, dtype="float32"),
    tf.eye(3),
    tf.linalg.LinearOperatorIdentity,
    _operator(tf.zeros([3, 2])),
    _operator(tf.zeros([2, 3, 3])),
    _operator(tf.cast(tf.eye(3), tf.complex64)),
]


def variables():
    """Not a list of trainable variables of one floating-point dtype."""
    double = keras.Variable(np.zeros(2), dtype="float64")
    return [
        None,
        "w",
        3,
        [],
        [None],
        ["w"],
        [3],
        [np.zeros(2)],
        [tf.zeros([2])],
        a_function,
        Unrelated(),
        [keras.Variable([1, 2], dtype="int32")],
        [keras.Variable(floats(2)), double],
    ]
