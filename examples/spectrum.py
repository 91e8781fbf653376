"""The eigenvalues of the Hessian of a trained network: extreme ones, trace, and a picture of the density in text.

A small network on MNIST, before and after training by Adam; the Hessian is that of the loss on a thousand images.

    python examples/spectrum.py
"""

import sys

import keras
import numpy as np

import tf_natgrad as ng
from tf_natgrad.data import load_images

SMOKE = "--smoke" in sys.argv
UNITS, EPOCHS, EXAMPLES = (8, 2, 200) if SMOKE else (32, 5, 1000)

data = load_images("digits" if SMOKE else "auto", image_size=14)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
keras.utils.set_random_seed(0)
pixels = keras.Input((data.x_train.shape[1],))
model = keras.Sequential([pixels, keras.layers.Dense(UNITS, "tanh"), keras.layers.Dense(10)])
few = data.x_train[:EXAMPLES], data.y_train[:EXAMPLES]


def described(when):
    hessian = ng.operators.Hessian(model, loss, few)
    pairs = ng.spectrum.eigsh(hessian, k=6, which="BE")
    trace = ng.spectrum.hutchinson_trace(hessian, num_probes=32)
    print(f"\n{when}: {hessian.shape[0]:,} weights, {EXAMPLES} images of {data.name}")
    print("three smallest and three largest eigenvalues:", np.round(pairs.eigenvalues, 3))
    print(f"trace {trace.value:.2f}, standard error {trace.standard_error:.2f}")
    density = ng.spectrum.spectral_density(hessian, num_probes=4, steps=40)
    edges = np.linspace(pairs.eigenvalues[0], pairs.eigenvalues[-1], 13)
    shares, _ = np.histogram(density.nodes, edges, weights=density.weights / len(density.nodes))
    for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
        print(f"{low:7.3f} to {high:7.3f}  {share:8.4f}  " + "#" * round(60 * share**0.25))


described("before training")
model.compile("adam", loss)
model.fit(data.x_train, data.y_train, batch_size=64, epochs=EPOCHS, verbose=2)
described("after training")
print("\nThe bars show the fourth root of the share: nearly all eigenvalues are near zero.")
