"""Doors of solvers and spectra."""

import bad_values as bad
import numpy as np
from bad_values import INF, NAN, floats, numbers
from doors import FISHER, HESSIAN, MATRIX, MODEL, ROWS, SIZE, Door
from doors import SOLVERS as NO_SOLVERS

import tf_natgrad as ng

SYSTEM = {"operator": FISHER.damped(0.1), "rhs": np.ones(SIZE)}
SOLVE = {
    "operator": [*bad.OPERATORS, MODEL],
    "rhs": [*bad.vectors(SIZE), ng.operators.FactoredRhs(np.ones(ROWS + 1, "float32")), ng.operators.FactoredRhs(None)],
    "x0": bad.vectors(SIZE)[1:],
    "conditions": bad.COLLECTORS,
}
SOLVE["rhs"] += [
    ng.operators.FactoredRhs("x"),
    ng.operators.FactoredRhs(None, rest=np.ones(SIZE + 1, "float32")),
    ng.operators.FactoredRhs(None, shift=np.ones([SIZE, 1], "float32")),
]
DOORS = [
    Door("solvers.Gram", ng.solvers.Gram, {}, {"rcond": numbers(0.0, maximum=1.0, open_above=True)}),
    Door(
        "solvers.SVDPseudoInverse",
        ng.solvers.SVDPseudoInverse,
        {},
        {"rcond": numbers(0.0, maximum=1.0, open_above=True)},
    ),
    Door("solvers.Cholesky", ng.solvers.Cholesky, {}, {"memory_limit": numbers(0.0)}),
    Door(
        "solvers.Auto",
        ng.solvers.Auto,
        {},
        {
            "rcond": numbers(0.0, maximum=1.0, open_above=True),
            "rtol": numbers(0.0),
            "max_iterations": numbers(1, integer=True, optional=True),
        },
    ),
    Door(
        "solvers.ConjugateGradient",
        ng.solvers.ConjugateGradient,
        {},
        {
            "rtol": numbers(0.0),
            "atol": numbers(0.0),
            "max_iterations": numbers(1, integer=True, optional=True),
            "preconditioner": ["nonsense", 3, True, [], np.zeros(2), np.array(["a", "b"]), {}],
            "patience": numbers(1, integer=True),
            "stopping": bad.CHOICES,
            "progress_tolerance": numbers(0.0, exclusive=True),
        },
    ),
    Door(
        "Gram.solve",
        ng.solvers.Gram().solve,
        SYSTEM,
        {**SOLVE, "operator": [*SOLVE["operator"], HESSIAN, MATRIX]},
        {"operator": ("rhs",)},
    ),
    Door("SVDPseudoInverse.solve", ng.solvers.SVDPseudoInverse().solve, SYSTEM, SOLVE),
    Door("Cholesky.solve", ng.solvers.Cholesky().solve, SYSTEM, SOLVE),
    Door("ConjugateGradient.solve", ng.solvers.ConjugateGradient().solve, SYSTEM, SOLVE),
    Door("Auto.solve", ng.solvers.Auto().solve, SYSTEM, SOLVE),
    Door("Auto.choose", ng.solvers.Auto().choose, {"operator": FISHER}, {"operator": bad.OPERATORS}),
    Door(
        "solvers.get",
        ng.solvers.get,
        {"solver": "cg"},
        {"solver": [*NO_SOLVERS, {}, ["gram"], {"name": "cg", "rtol": -1.0}, {"name": 3}]},
        {"solver": ("rtol",)},
    ),
    Door(
        "solvers.to_config",
        ng.solvers.to_config,
        {"solver": ng.solvers.Gram()},
        {"solver": [None, "gram", ng.solvers.Gram, 3]},
    ),
    Door(
        "spectrum.eigsh",
        ng.spectrum.eigsh,
        {"operator": MATRIX, "k": 2},
        {
            "operator": bad.OPERATORS,
            "k": [*numbers(1, integer=True), 4],
            "which": bad.CHOICES,
            "method": bad.CHOICES,
            "tol": numbers(0.0),
            "max_products": numbers(1, integer=True),
            "ncv": [*numbers(1, integer=True, optional=True), 1],
            "seed": bad.SEEDS,
            "v0": [*bad.vectors(3)[1:], np.zeros(3, "float32"), floats(3, fill=NAN)],
        },
    ),
    Door(
        "spectrum.hutchinson_trace",
        ng.spectrum.hutchinson_trace,
        {"operator": MATRIX},
        {"operator": bad.OPERATORS, "num_probes": numbers(2, integer=True), "seed": bad.SEEDS},
    ),
    Door(
        "spectrum.hutchpp_trace",
        ng.spectrum.hutchpp_trace,
        {"operator": MATRIX},
        {"operator": bad.OPERATORS, "num_products": numbers(6, integer=True), "seed": bad.SEEDS},
    ),
    Door(
        "spectrum.spectral_density",
        ng.spectrum.spectral_density,
        {"operator": MATRIX, "steps": 2},
        {
            "operator": bad.OPERATORS,
            "num_probes": numbers(2, integer=True),
            "steps": numbers(1, integer=True),
            "grid": ["x", 3.0, [], [[1.0]], [NAN], [INF], ["a"], [1j], bad.a_function, Ellipsis],
            "num_points": [*numbers(1, integer=True)],
            "width": numbers(0.0, exclusive=True, optional=True),
            "seed": bad.SEEDS,
        },
    ),
]
