"""What the tables of the public doors share: for each a call that is right, and for each argument what is wrong."""

from collections.abc import Callable
from typing import Any, NamedTuple

import bad_values as bad
import keras
import numpy as np
import tensorflow as tf
from bad_values import CLASSES, EXAMPLES, WIDTH, floats

import tf_natgrad as ng


class Door(NamedTuple):
    """One public callable.

    Attributes:
        name: as users write it.
        call: the callable.
        right: arguments with which it works.
        wrong: values to refuse, by argument.
        also: other names that the message may give for an argument: what it is in the end.
        free: arguments of which any value will do, or which Keras or Python checks.
    """

    name: str
    call: Callable
    right: dict[str, Any]
    wrong: dict[str, list]
    also: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 (read only)
    free: tuple[str, ...] = ()

    def cases(self):
        """Pairs of an argument and a bad value, without those that are pending."""
        waiting = PENDING.get(self.name, {})
        for argument, values in self.wrong.items():
            yield from ((argument, v) for i, v in enumerate(values) if i not in waiting.get(argument, ()))


# Values that are not refused yet: by door and argument their numbers.
PENDING: dict[str, dict[str, tuple[int, ...]]] = {"fit": {"y": (2,)}}


def network(last=CLASSES):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(last)])


def sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


X, Y = np.random.default_rng(0).normal(size=(EXAMPLES, WIDTH)).astype("float32"), np.arange(EXAMPLES) % CLASSES
WEIGHTS = floats(EXAMPLES)
MODEL, LOSS = network(), sparse()
FISHER = ng.operators.Fisher(MODEL, LOSS, (X, Y))
HESSIAN = ng.operators.Hessian(MODEL, LOSS, (X, Y))
SIZE, ROWS = FISHER.shape[0], FISHER.rows
FLAT = FISHER.flat_parameters
MATRIX = tf.linalg.LinearOperatorFullMatrix(tf.linalg.diag([3.0, 2.0, 1.0]), is_self_adjoint=True)

# Of data the message names the part.
DATA = [*bad.INPUTS, *((X, y) for y in bad.LABELS), *((X, Y, w) for w in bad.WEIGHTS), (), (X, Y, WEIGHTS, X)]
DATA += [
    tf.data.Dataset.from_tensors((X, Y)).repeat(),
    tf.data.Dataset.from_tensors((X, Y)).take(0),
    tf.data.Dataset.from_tensors((floats(EXAMPLES, WIDTH + 1), Y)),
]
PARTS = {"data": ("x", "y", "sample_weight", "weights")}
SOLVERS = [None, "nonsense", 3, ng.solvers.Gram, {"name": "gram", "nonsense": 1}, {"rcond": 1.0}, bad.a_function]


def products(operator, *names):
    """The doors of an operator's products."""
    size, kind = operator.shape[0], type(operator).__name__
    given = {
        "matvec": ("x", [size], bad.vectors(size), {}),
        "matmul": ("x", [size, 2], bad.matrices(size), {"adjoint_arg": bad.FLAGS}),
        "quadratic_forms": ("vector", [size], bad.vectors(size), {}),
    }
    for name in names:
        argument, shape, values, wrong = given[name]
        right, free = {argument: np.ones(shape)}, ("adjoint", "name")
        yield Door(f"{kind}.{name}", getattr(operator, name), right, {argument: values, **wrong}, free=free)
