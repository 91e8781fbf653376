"""K-FAC beside Adam on a wider network, after the same seconds of training.

784-512-512-10 on MNIST in batches of 128 (scikit-learn's digits with `--smoke`, or where MNIST cannot be had). Batches
of this size are noisy, so K-FAC takes the recipe with fixed numbers. The clock starts after the first step, which is
traced.

    python examples/kfac.py
"""

import sys
import time

import keras

import tf_natgrad as ng
from tf_natgrad.data import load_images

SMOKE = "--smoke" in sys.argv
SECONDS, UNITS = (1.0, 32) if SMOKE else (15.0, 512)

data = load_images("digits" if SMOKE else "auto")
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class StopAfter(keras.callbacks.Callback):
    """Stops the training after so many seconds, not counting the first step."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.steps, self.start = seconds, 0, None

    def on_train_batch_end(self, batch, logs=None):
        self.start = self.start or time.perf_counter()
        self.steps += 1
        self.model.stop_training = time.perf_counter() - self.start > self.seconds


def trained(optimizer):
    keras.utils.set_random_seed(0)
    inner = [keras.layers.Dense(UNITS, "relu"), keras.layers.Dense(UNITS, "relu"), keras.layers.Dense(10)]
    model = ng.NaturalGradientSequential([keras.Input((data.x_train.shape[1],)), *inner])
    model.compile(optimizer, loss, metrics=["accuracy"])
    clock = StopAfter(SECONDS)
    model.fit(data.x_train, data.y_train, batch_size=128, epochs=1000, verbose=0, callbacks=[clock])
    test_loss, accuracy = model.evaluate(data.x_test, data.y_test, verbose=0)
    print(f"{optimizer.name}: {clock.steps} steps, test loss {test_loss:.3f}, test error {1 - accuracy:.2%}")


print(f"{data.name}, {SECONDS:g} s each")
trained(keras.optimizers.Adam(0.001))
trained(ng.NaturalGradient(fisher=ng.KFAC(recipe="fixed"), name="kfac"))
