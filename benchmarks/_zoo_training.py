"""Training of one model of the zoo, timed on the processor's clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from _zoo import Animal

import tf_natgrad as ng


class Training:
    """One model in training, timed on the processor's clock.

    Args:
        animal: the model and its task.
        optimizer: of Keras.
        seed: of weights and batches.
    """

    def __init__(self, animal: Animal, optimizer: Any, seed: int):
        keras.utils.set_random_seed(seed)
        self.model = ng.natural_gradient_model(animal.build())
        self.model.compile(optimizer, animal.loss())
        self._x, self._y, *self._test = animal.examples(seed)
        data = tf.data.Dataset.from_tensor_slices((self._x, self._y)).shuffle(10_000, seed=seed)
        self._batches: Iterator = iter(data.batch(animal.batch, drop_remainder=True).repeat())
        self.seconds, self.steps = 0.0, 0
        self.model.make_train_function()
        start = time.perf_counter()
        self._step()
        self.first = time.perf_counter() - start

    def _step(self) -> None:
        logs = self.model.train_function(self._batches)
        float(logs["loss"])

    def batch(self) -> tuple[Any, Any]:
        """The next batch."""
        return next(self._batches)

    def step(self) -> float:
        """Takes a step; returns its seconds."""
        start = time.process_time()
        self._step()
        taken = time.process_time() - start
        self.seconds += taken
        self.steps += 1
        return taken

    def loss(self, train: bool = False) -> float:
        """The loss on the test data, or on the training data."""
        x, y = (self._x, self._y) if train else self._test
        self.model.reset_metrics()
        return float(self.model.evaluate(x, y, batch_size=256, verbose=0))
