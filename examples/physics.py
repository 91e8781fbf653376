"""A loaded membrane: `u_xx + u_yy = -f` in the unit square and `u = 0` on its boundary, by a small network.

The source `f` is chosen such that the solution is known, so that the error of the network is known too.

    python examples/physics.py
"""

import sys

import keras
import numpy as np

import tf_natgrad as ng

SMOKE = "--smoke" in sys.argv
UNITS, POINTS, ROUNDS, STEPS = (8, 60, 2, 10) if SMOKE else (32, 600, 5, 40)

# Both: Keras takes the precision of layers from its policy. float32 would end the descent early.
keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")
keras.utils.set_random_seed(0)
ops = keras.ops


def solution(x):
    return ops.sin(np.pi * x[:, :1]) * ops.sin(np.pi * x[:, 1:])


def inside(u, x):
    return ng.pde.laplacian(u, x)[2] + 2.0 * np.pi**2 * solution(x)


def boundary(u, x):
    return u(x)


network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(UNITS, "tanh"), keras.layers.Dense(1)])
model = ng.pde.ResidualModel(network, {"inside": inside, "boundary": boundary}, weights={"boundary": 100.0})
model.compile(ng.pde.natural_gradient(), "mse")

rng = np.random.default_rng(0)
edge, number = rng.random((POINTS // 5, 2)), np.arange(POINTS // 5)
edge[number, number % 2] = number // 2 % 2
points = {"inside": rng.random((POINTS, 2)), "boundary": edge}
elsewhere = rng.random((2000, 2))
truth = np.asarray(solution(elsewhere))
for round_ in range(1, ROUNDS + 1):
    (loss,) = model.fit(model.batches(points, repeat=STEPS), verbose=0).history["loss"]
    error = np.linalg.norm(network.predict(elsewhere, verbose=0) - truth) / np.linalg.norm(truth)
    print(f"{round_ * STEPS:4d} steps: loss {loss:.1e}, relative error at new points {error:.1e}")
