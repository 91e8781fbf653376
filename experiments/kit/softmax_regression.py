"""The model of `mnist_natgrad.py`, its data, and the runs made of it."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kit.mnist_results import KEY_COLUMNS, has_exploded
from kit.recording import Row
from kit.runs import KeyedRun, shuffled

LOGGER = logging.getLogger("tf_natgrad")


@dataclasses.dataclass(frozen=True)
class Run(KeyedRun):
    """One training run; its fields up to `seed` are columns of the CSV.

    Attributes:
        run: name of the configuration.
        dataset: `"mnist"` or `"digits"`.
        image_size: height and width of the images.
        batch_size: examples per iteration.
        learning_rate: factor of the direction.
        damping: added to the diagonal of the Fisher; 0 is the pseudo-inverse.
        metric: `"euclidean"`, `"logits"` (the Fisher), or `"probs"` (the blog's: probabilities taken as logits).
        solver: `"gram"`, `"cg"`, `"svd"` (dense `tf.hessians` and SVD), or `"none"`.
        seed: of weights and batches.
        iterations: updates to be made, unless it explodes.
    """

    key_columns = KEY_COLUMNS
    run: str
    dataset: str
    image_size: int
    batch_size: int
    learning_rate: float
    damping: float
    metric: str
    solver: str
    seed: int
    iterations: int

    def is_complete(self, rows: Sequence[Row]) -> bool:
        """Whether these rows are all that this run would record."""
        last = int(rows[-1]["iteration"])
        return last == self.iterations or (last < self.iterations and has_exploded(float(rows[-1]["loss"])))


class SoftmaxRegression:
    """Softmax regression without biases on one data set.

    Args:
        data: an `ImageData`.

    Attributes:
        model: `[N, pixels]` to logits.
        softmax_model: the same to probabilities.
        weights: the matrix `[pixels, 10]`, a `tf.Variable`.
    """

    def __init__(self, data):
        import keras
        import tensorflow as tf

        self.data = data
        self.dense = keras.layers.Dense(10, use_bias=False)
        self.model = keras.Sequential([keras.Input((data.image_size**2,)), self.dense])
        self.softmax_model = keras.Sequential([self.model, keras.layers.Softmax()])
        self.weights = self.dense.kernel.value
        x_test, y_test = tf.constant(data.x_test), tf.constant(data.y_test)

        @tf.function
        def evaluate():
            logits = self.model(x_test)
            correct = tf.equal(tf.argmax(logits, -1, tf.int32), y_test)
            return cross_entropy(logits, y_test), tf.reduce_mean(tf.cast(correct, tf.float32))

        self._evaluate = evaluate

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return 10 * self.data.image_size**2

    def reset(self, seed: int) -> None:
        """Draws the initial weights; the blog's variable was a flat vector, and TensorFlow 1 drew it as such."""
        import keras

        vector = keras.initializers.GlorotUniform(seed=seed)([self.parameters])
        self.dense.kernel.assign(keras.ops.reshape(vector, self.dense.kernel.shape))

    def batches(self, seed: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches without end: one shuffled pass through the training set after another."""
        for chosen in shuffled(seed, len(self.data.x_train), batch_size):
            yield self.data.x_train[chosen], self.data.y_train[chosen]

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the test set."""
        loss, accuracy = self._evaluate()
        return float(loss), float(accuracy)

    def compiled(self, function: Callable, batch_size: int) -> Callable:
        """Graph code of `(x, y)` as a compiled function, traced now: that is not to be in anyone's seconds."""
        import tensorflow as tf

        x = tf.TensorSpec([batch_size, self.data.image_size**2], tf.float32)
        y = tf.TensorSpec([batch_size], tf.int32)
        return tf.function(function, autograph=False).get_concrete_function(x, y)


def cross_entropy(logits, y):
    """The mean cross-entropy, a scalar."""
    import tensorflow as tf

    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))


def load(arguments: argparse.Namespace) -> dict[int, SoftmaxRegression]:
    """The problems by image size, the main one first; scikit-learn's digits have only one size."""
    from tf_natgrad.data import load_images

    problems = {}
    for image_size in dict.fromkeys((arguments.image_size, 28)):
        data = load_images(arguments.dataset, image_size)
        if data.image_size not in problems:
            problems[data.image_size] = SoftmaxRegression(data)
        if data.name == "digits":
            size = data.image_size
            LOGGER.warning("data set: scikit-learn's digits; everything runs at %dx%d, none of it is MNIST", size, size)
            break
    return problems
