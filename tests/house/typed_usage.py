"""Calls as users write them, with the types that they may count on: `mypy` reads this file, nothing runs it.

A wrong call carries the complaint that it must draw; one that draws none is an error (`warn_unused_ignores`).
"""

from typing import assert_type

import keras
import numpy as np

import tf_natgrad as ng
from tf_natgrad.rl import ExtremeCurvature
from tf_natgrad.spectrum import Eigenpairs, SpectralDensity, TraceEstimate

NETWORK = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = np.ones((8, 4), "float32"), np.zeros(8, "int32")


def training() -> None:
    optimizer = ng.NaturalGradient(
        0.5, damping=ng.LevenbergMarquardt(1.0), solver=ng.solvers.ConjugateGradient(), momentum="optimal", max_kl=None
    )
    ng.NaturalGradient(fisher=ng.KFAC("fixed", ema=0.9), damping=0.01)
    ng.NaturalGradient(fisher="ekfac", momentum="auto", line_search=None)
    model = ng.natural_gradient_model(NETWORK)
    model.compile(optimizer, LOSS)
    model.fit(X, Y, callbacks=[ng.callbacks.StepLogger("steps.csv", every=10)])
    own: ng.NaturalGradientModel = ng.NaturalGradientModel(NETWORK.inputs, NETWORK.outputs)
    stack: ng.NaturalGradientSequential = ng.NaturalGradientSequential([keras.layers.Dense(3)])
    own.summary()
    stack.summary()


def a_loop_of_ones_own() -> None:
    weights = ng.parameters.FlatParameters(NETWORK.trainable_variables)
    direction, _ = ng.natural_gradient(NETWORK, LOSS, X, Y, damping=0.1, solver="gram")
    weights.assign(weights.read() - direction)


def scoring() -> None:
    result = ng.fisher_scoring(NETWORK, LOSS, (X, Y), progress=False)
    assert_type(result.converged, bool)
    assert_type(result.reason, str)
    assert_type(result.iterations, int)
    assert_type(result.gradient_norm, float)


def matrices() -> None:
    fisher, hessian = ng.operators.Fisher(NETWORK, LOSS, X), ng.operators.Hessian(NETWORK, LOSS, (X, Y))
    solution = ng.solvers.Gram().solve(fisher.damped(0.1), fisher.loss_gradient(Y))
    assert_type(solution, ng.solvers.Solution)
    pairs = ng.spectrum.eigsh(hessian, k=5, which="BE")
    assert_type(pairs, Eigenpairs)
    assert_type(pairs.eigenvalues, np.ndarray)
    assert_type(ng.spectrum.hutchinson_trace(hessian, num_probes=32), TraceEstimate)
    assert_type(ng.spectrum.spectral_density(hessian, num_probes=4, steps=30), SpectralDensity)


def policies() -> None:
    policy = ng.rl.CategoricalPolicy(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    episodes = ng.rl.collect("CartPole-v1", policy, num_episodes=100, seed=0)
    hessian = ng.rl.PolicyHessian(policy, episodes, estimator="causal", baseline="leave_one_out", gamma=0.99)
    assert_type(ng.spectrum.eigsh(hessian), Eigenpairs)
    found = ng.rl.extreme_curvature(policy, episodes, null_draws=39)
    assert_type(found, ExtremeCurvature)
    assert_type(found.rejects, bool)
    agent = ng.rl.TRPO("CartPole-v1", n_envs=4, n_steps=512, seed=0)
    agent.learn(total_steps=10_000, log_path="trpo.csv", checkpoint="agent.npz")
    assert_type(agent.evaluate(episodes=10, deterministic=True, seed=1), np.ndarray)


def equations() -> None:
    ng.pde.laplacian(NETWORK, X)
    ng.pde.derivatives(NETWORK, X, [(), (0,), (0, 1)])
    model = ng.pde.ResidualModel(
        NETWORK, {"inside": lambda u, x: ng.pde.laplacian(u, x)[2]}, weights={"inside": 2.0}, residuals=3
    )
    assert_type(ng.pde.natural_gradient(momentum=0.9), ng.NaturalGradient)
    model.fit(model.batches({"inside": X}, repeat=10))


def wrong() -> None:
    ng.NaturalGradient(solver=3)  # type: ignore[arg-type]
    ng.NaturalGradient(line_search="backtracking")  # type: ignore[arg-type]
    ng.LevenbergMarquardt("large")  # type: ignore[arg-type]
    ng.fisher_scoring(NETWORK, LOSS, (X, Y), max_iterations="many")  # type: ignore[arg-type]
    ng.natural_gradient(NETWORK, LOSS)  # type: ignore[call-arg]
    ng.spectrum.eigsh(ng.operators.Fisher(NETWORK, LOSS, X), k="all")  # type: ignore[arg-type]
    ng.rl.collect("CartPole-v1", None, num_episodes="few")  # type: ignore[arg-type]
    ng.solver  # type: ignore[attr-defined]  # noqa: B018
