"""The two lines that change in a Keras program: the model's class, and the optimizer.

A small network on MNIST (scikit-learn's digits where MNIST cannot be had), trained by Adam and by natural gradient from
the same weights.

    python examples/keras_two_lines.py
"""

import sys
import time

import keras

import tf_natgrad as ng
from tf_natgrad.data import load_images

SMOKE = "--smoke" in sys.argv
EPOCHS, BATCH = (1 if SMOKE else 3), 64

data = load_images("digits" if SMOKE else "auto", image_size=14)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    keras.utils.set_random_seed(0)
    pixels = keras.Input((data.x_train.shape[1],))
    return keras.Sequential([pixels, keras.layers.Dense(32, "tanh"), keras.layers.Dense(10)])


def trained(model, optimizer):
    model.compile(optimizer, loss, metrics=["accuracy"])
    start = time.perf_counter()
    model.fit(data.x_train, data.y_train, batch_size=BATCH, epochs=EPOCHS, verbose=2)
    seconds = time.perf_counter() - start
    test_loss, accuracy = model.evaluate(data.x_test, data.y_test, verbose=0)
    print(f"{optimizer.name}: test loss {test_loss:.3f}, accuracy {accuracy:.1%}, {seconds:.0f} s with tracing\n")


print(f"{data.name}: {len(data.x_train):,} images for training")
trained(network(), keras.optimizers.Adam())
trained(ng.natural_gradient_model(network()), ng.NaturalGradient())
