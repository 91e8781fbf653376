"""The public doors of the package: for each a call that is right, and for each argument what is wrong."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import bad_values as bad
import gymnasium
import keras
import numpy as np
import tensorflow as tf
from bad_values import CLASSES, EXAMPLES, INF, NAN, WIDTH, floats, numbers

import tf_natgrad as ng
from tf_natgrad import rl
from tf_natgrad.rl.normalization import RunningMoments


a = bad.a_function


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
    also: dict[str, tuple[str, ...]] = {}
    free: tuple[str, ...] = ()


def _network(last=CLASSES):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(last)])


def _sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


X, Y = np.random.default_rng(0).normal(size=(EXAMPLES, WIDTH)).astype("float32"), np.arange(EXAMPLES) % CLASSES
WEIGHTS = floats(EXAMPLES)
MODEL, LOSS = _network(), _sparse()
FISHER = ng.operators.Fisher(MODEL, LOSS, (X, Y))
HESSIAN = ng.operators.Hessian(MODEL, LOSS, (X, Y))
SIZE, ROWS = FISHER.shape[0], FISHER.rows
FLAT = FISHER.flat_parameters
FACTORED = FISHER.loss_gradient()
MATRIX = tf.linalg.LinearOperatorFullMatrix(tf.linalg.diag([3.0, 2.0, 1.0]), is_self_adjoint=True)

TRAINED = ng.natural_gradient_model(_network())
TRAINED.compile(ng.NaturalGradient(), LOSS, run_eagerly=True)
IN_GRAPH = ng.natural_gradient_model(_network())
IN_GRAPH.compile(ng.NaturalGradient(solver="cg"), LOSS, jit_compile=False)

POLICY = rl.CategoricalPolicy(_network())
GAUSSIAN = rl.GaussianPolicy(_network())
STEPS = 3
EPISODES = rl.Episodes.from_arrays(
    np.random.default_rng(0).normal(size=(4, STEPS, WIDTH)), np.arange(12).reshape(4, STEPS) % 2, np.ones((4, STEPS))
)
CURVATURE = rl.PolicyHessian(POLICY, EPISODES)
SCORES = ng.operators.ScoreFunctionHessian(
    lambda: tf.square(FLAT.variables[-1]), FLAT.variables[-1:], [1.0, 1.0], [0, 0]
)


class Field(gymnasium.Env):
    """Three numbers to see, two things to do, over after three steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (WIDTH,))
    action_space = gymnasium.spaces.Discrete(CLASSES)

    def reset(self, *, seed=None, options=None):
        self.left = STEPS
        return self.observation_space.low, {}

    def step(self, action):
        self.left -= 1
        return self.observation_space.low, 1.0, self.left == 0, False, {}


AGENT = rl.TRPO(Field, n_steps=4)
FOLDER = pathlib.Path(tempfile.mkdtemp())
AGENT.save(FOLDER / "agent.npz")
EPISODES.save(FOLDER / "episodes.npz")
(FOLDER / "text.npz").write_text("nothing of the kind")

# All that no refused call may change.
MODELS = [MODEL, TRAINED, IN_GRAPH, POLICY, GAUSSIAN, AGENT.policy, AGENT.critic.network]


def variables():
    optimizers = [model.optimizer for model in (TRAINED, IN_GRAPH)]
    return [v for owner in (*MODELS, *optimizers) for v in owner.variables]


OPTIMIZER = {
    "learning_rate": numbers(0.0),
    "damping": [*numbers(0.0), ng.LineSearch(), {"nonsense": 1}, {"initial": -1.0}],
    "solver": [None, "nonsense", 3, ng.solvers.Gram, {"name": "gram", "nonsense": 1}, {"rcond": 1.0}, bad.a_function],
    "fisher": bad.CHOICES,
    "momentum": [*numbers(0.0, maximum=1.0, open_above=True), "nonsense"],
    "warm_start": numbers(0.0),
    "max_kl": numbers(0.0, exclusive=True, optional=True),
    "line_search": [True, 3, "yes", ng.LevenbergMarquardt(), {"nonsense": 1}, {"shrink": 2.0}, ng.LineSearch],
    "micro_batch_size": numbers(1, integer=True, optional=True),
    "on_nonfinite": bad.CHOICES,
    "weight_decay": numbers(0.0, optional=True),
    "clipnorm": numbers(0.0, exclusive=True, optional=True),
    "clipvalue": numbers(0.0, exclusive=True, optional=True),
    "global_clipnorm": numbers(0.0, exclusive=True, optional=True),
    "use_ema": bad.FLAGS,
    "ema_momentum": numbers(0.0, maximum=1.0),
    "ema_overwrite_frequency": numbers(1, integer=True, optional=True),
    "gradient_accumulation_steps": [4, "2", -1],
}
# Of a dictionary the message names the field.
FIELDS = {"damping": ("initial",), "line_search": ("shrink",)}


def _agent_numbers():
    return {
        "env": [None, 3, "NoSuchEnv-v0", Field(), gymnasium.spaces.Discrete(2), [Field], "", bad.a_function],
        "learning_rate": numbers(0.0, exclusive=True),
        "n_steps": numbers(1, integer=True),
        "batch_size": numbers(1, integer=True),
        "gamma": numbers(0.0, maximum=1.0),
        "cg_max_steps": numbers(1, integer=True),
        "cg_damping": numbers(0.0),
        "n_critic_updates": numbers(1, integer=True),
        "gae_lambda": numbers(0.0, maximum=1.0),
        "normalize_advantage": bad.FLAGS,
        "target_kl": numbers(0.0, exclusive=True),
        "sub_sampling_factor": [*numbers(1, integer=True), 10**6],
        "n_envs": numbers(1, integer=True),
        "normalize_observations": bad.FLAGS,
        "normalize_rewards": bad.FLAGS,
        "policy": ["policy", 3, MODEL, rl.CategoricalPolicy, bad.a_function, GAUSSIAN, rl.CategoricalPolicy(_network(3))],
        "value_network": ["network", 3, MODEL, keras.Sequential, bad.a_function, [], np.zeros(2)],
        "seed": bad.SEEDS,
    }


MODEL_OPTIONS = {
    "sample_weight": bad.WEIGHTS,
    "training": bad.FLAGS,
    "variables": [v for v in bad.variables() if v is not None] + [[keras.Variable(floats(2))]],
    "progress": bad.FLAGS,
    "micro_batch_size": numbers(1, integer=True, optional=True),
}
DATA = [*bad.INPUTS, *((X, y) for y in bad.LABELS), *((X, Y, w) for w in bad.WEIGHTS), (), (X, Y, WEIGHTS, X)]
DATA += [
    tf.data.Dataset.from_tensors((X, Y)).repeat(),
    tf.data.Dataset.from_tensors((X, Y)).take(0),
    tf.data.Dataset.from_tensors((floats(EXAMPLES, WIDTH + 1), Y)),
]
PARTS = {"data": ("x", "y", "sample_weight", "weights")}
# The labels play no part in the Fisher.
NO_LABELS = [d for d in DATA if not (isinstance(d, tuple) and len(d) == 2)]


def _matrix(name, data, **wrong):
    kind = getattr(ng.operators, name)
    right = {"model": MODEL, "loss": LOSS, "data": (X, Y)}
    return Door(
        f"operators.{name}", kind, right, {"model": bad.MODELS, "loss": bad.LOSSES, "data": data, **MODEL_OPTIONS, **wrong}, PARTS
    )


OPERATORS = [
    _matrix("Fisher", NO_LABELS, kind=bad.CHOICES, seed=[v for v in bad.SEEDS if v != -1], mc_samples=numbers(1, integer=True)),
    _matrix("EmpiricalFisher", [*DATA, X]),
    _matrix("Hessian", [*DATA, X]),
    _matrix("GaussNewton", [*DATA, X]),
    Door(
        "operators.Damped",
        ng.operators.Damped,
        {"base": FISHER, "damping": 0.1},
        {"base": [*bad.OPERATORS, MATRIX, MODEL], "damping": [*numbers(0.0), tf.zeros([2]), tf.constant("a"), 1j * tf.cast(1.0, tf.complex64)]},
    ),
    Door("Fisher.damped", FISHER.damped, {"damping": 0.1}, {"damping": [*numbers(0.0), tf.zeros([2])]}),
    Door("Fisher.matvec", FISHER.matvec, {"x": np.ones(SIZE)}, {"x": bad.vectors(SIZE)}, free=("adjoint", "name")),
    Door(
        "Fisher.matmul",
        FISHER.matmul,
        {"x": np.ones([SIZE, 2])},
        {"x": bad.matrices(SIZE), "adjoint_arg": bad.FLAGS},
        free=("adjoint", "name"),
    ),
    Door(
        "Fisher.to_dense",
        FISHER.to_dense,
        {},
        {"method": bad.CHOICES, "memory_limit": [*numbers(0, optional=False), 1]},
        free=("name",),
    ),
    Door("Hessian.to_dense", HESSIAN.to_dense, {}, {"memory_limit": [*numbers(0), 1]}, free=("name",)),
    Door("Fisher.factor_matvec", FISHER.factor_matvec, {"x": np.ones(SIZE)}, {"x": bad.vectors(SIZE)}),
    Door("Fisher.factor_transpose_matvec", FISHER.factor_transpose_matvec, {"u": np.ones(ROWS)}, {"u": bad.vectors(ROWS)}),
    Door(
        "Fisher.loss_gradient", FISHER.loss_gradient, {"y": Y}, {"y": bad.LABELS, "sample_weight": bad.WEIGHTS}
    ),
    Door("Fisher.loss", FISHER.loss, {"y": Y}, {"y": bad.LABELS}),
    Door("Fisher.gradient", FISHER.gradient, {"y": Y}, {"y": bad.LABELS}),
    Door(
        "Fisher.plain_gradient",
        FISHER.plain_gradient,
        {"y": Y, "variables": MODEL.trainable_variables},
        {"y": bad.LABELS, "variables": bad.variables()},
    ),
    Door(
        "operators.ScoreFunctionHessian",
        ng.operators.ScoreFunctionHessian,
        {
            "log_prob": lambda: FLAT.variables[-1] * tf.constant([1.0, 2.0]),
            "variables": FLAT.variables[-1:],
            "weights": [1.0, 1.0],
            "episode_ids": [0, 0],
        },
        {
            "log_prob": [None, "f", 3, tf.zeros([2]), lambda: None, lambda: "x", lambda: tf.zeros([2, 2]), lambda: tf.zeros([])],
            "variables": bad.variables(),
            "weights": [*bad.NOT_NUMBERS, [1.0], [[1.0, 1.0]], [NAN, 1.0], [1j, 1.0]],
            "episode_ids": [*bad.NOT_NUMBERS, [0], [0, 2], [1, 1], [0.0, 0.5], [-1, 0]],
            "episode_weights": [*bad.NOT_NUMBERS[1:], [1.0, 1.0], [NAN], [INF], [1j]],
            "estimator": bad.CHOICES,
            "model": bad.MODELS[1:],
        },
        {"log_prob": ("log_prob()",)},
    ),
    *(
        Door(f"{type(h).__name__}.{name}", getattr(h, name), {argument: np.ones(shape)}, {argument: values}, free=("adjoint", "adjoint_arg", "name"))
        for h in (SCORES, CURVATURE)
        for name, argument, shape, values in (
            ("matvec", "x", [h.shape[0]], bad.vectors(h.shape[0])),
            ("matmul", "x", [h.shape[0], 2], bad.matrices(h.shape[0])),
            ("quadratic_forms", "vector", [h.shape[0]], bad.vectors(h.shape[0])),
        )
    ),
    Door("parameters.FlatParameters", ng.parameters.FlatParameters, {"variables": MODEL.trainable_variables}, {"variables": bad.variables()}),
    Door("FlatParameters.unflatten", FLAT.unflatten, {"vector": np.ones(SIZE)}, {"vector": bad.vectors(SIZE)}),
    Door("FlatParameters.assign", FLAT.assign, {"vector": FLAT.read()}, {"vector": bad.vectors(SIZE)}),
    Door(
        "FlatParameters.flatten",
        FLAT.flatten,
        {"tensors": MODEL.get_weights()},
        {"tensors": [None, 3, "x", [], MODEL.get_weights()[1:], ["x"] * 4, [None] * 4, MODEL.get_weights()[::-1], a]},
    ),
]

SYSTEM = {"operator": FISHER.damped(0.1), "rhs": np.ones(SIZE)}
SOLVE = {
    "operator": [*bad.OPERATORS, MODEL],
    "rhs": [*bad.vectors(SIZE), ng.operators.FactoredRhs(np.ones(ROWS + 1, "float32")), ng.operators.FactoredRhs(None)],
    "x0": bad.vectors(SIZE)[1:],
}
SOLVE["rhs"] += [
    ng.operators.FactoredRhs("x"),
    ng.operators.FactoredRhs(None, rest=np.ones(SIZE + 1, "float32")),
    ng.operators.FactoredRhs(None, shift=np.ones([SIZE, 1], "float32")),
]
SOLVERS = [
    Door("solvers.Gram", ng.solvers.Gram, {}, {"rcond": numbers(0.0, maximum=1.0, open_above=True)}),
    Door("solvers.SVDPseudoInverse", ng.solvers.SVDPseudoInverse, {}, {"rcond": numbers(0.0, maximum=1.0, open_above=True)}),
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
    Door("Gram.solve", ng.solvers.Gram().solve, SYSTEM, {**SOLVE, "operator": [*SOLVE["operator"], HESSIAN, MATRIX]}, {"operator": ("rhs",)}),
    Door("SVDPseudoInverse.solve", ng.solvers.SVDPseudoInverse().solve, SYSTEM, SOLVE),
    Door("ConjugateGradient.solve", ng.solvers.ConjugateGradient().solve, SYSTEM, SOLVE),
    Door("Auto.solve", ng.solvers.Auto().solve, SYSTEM, SOLVE),
    Door("Auto.choose", ng.solvers.Auto().choose, {"operator": FISHER}, {"operator": bad.OPERATORS}),
    Door(
        "solvers.get",
        ng.solvers.get,
        {"solver": "cg"},
        {"solver": [*OPTIMIZER["solver"], {}, ["gram"], {"name": "cg", "rtol": -1.0}, {"name": 3}]},
        {"solver": ("rtol",)},
    ),
    Door("solvers.to_config", ng.solvers.to_config, {"solver": ng.solvers.Gram()}, {"solver": [None, "gram", ng.solvers.Gram, 3]}),
]

SPECTRUM = [
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


def _compile(loss):
    # Compiled again without a loss, a model would keep the one before. It shares its weights.
    model = ng.natural_gradient_model(MODEL)
    model.compile(ng.NaturalGradient(learning_rate=0.0), loss, run_eagerly=True)
    model.train_on_batch(X, Y)


def _train(x=X, y=Y, sample_weight=None):
    TRAINED.train_on_batch(x, y, sample_weight=sample_weight)


def _fit(x=X, y=Y, sample_weight=None):
    IN_GRAPH.fit(x, y, sample_weight=sample_weight, batch_size=EXAMPLES, epochs=1, verbose=0)


def _optimizer():
    optimizer = ng.NaturalGradient()
    optimizer.build([keras.Variable(floats(2))])
    return optimizer


BATCH = {"model": MODEL, "loss": LOSS, "x": X, "y": Y}
VARIABLE = keras.Variable(floats(2))
TRAINING = [
    Door("NaturalGradient", ng.NaturalGradient, {}, OPTIMIZER, FIELDS, free=("name", "kwargs")),
    Door("NaturalGradient.damping", lambda value: setattr(_optimizer(), "damping", value), {"value": 0.1}, {"value": numbers(0.0)}, {"value": ("damping",)}),
    Door(
        "NaturalGradient.apply_direction",
        lambda **given: ng.NaturalGradient().apply_direction(**given),
        {"direction": [floats(2)], "variables": [VARIABLE]},
        {
            "direction": [None, 3, "x", [], ["x"], [None], [floats(3)], [floats(2), floats(2)], a],
            "variables": [None, 3, "x", [], [None], [3], ["w"], [VARIABLE, VARIABLE], a],
            "through": [3, "adam", keras.optimizers.Adam, a],
            "decayed": bad.FLAGS,
        },
        {"variables": ("direction",)},
    ),
    Door(
        "NaturalGradient.decay_weights",
        lambda variables: ng.NaturalGradient(weight_decay=0.1).decay_weights(variables),
        {"variables": [VARIABLE]},
        {"variables": [None, 3, "x", [None], [3], ["w"], a]},
    ),
    Door(
        "LevenbergMarquardt",
        ng.LevenbergMarquardt,
        {},
        {
            "initial": [*numbers(0.0, exclusive=True), 1e9, 1e-12],
            "decay": numbers(0.0, exclusive=True, maximum=1.0, open_above=True),
            "period": numbers(1, integer=True),
            "low": [*numbers(), 0.8],
            "high": [*numbers(), 0.1],
            "minimum": [*numbers(0.0, exclusive=True), 1.0],
            "maximum": [*numbers(0.0, exclusive=True), 0.01],
        },
        {"high": ("low",), "minimum": ("initial",), "maximum": ("initial",)},
    ),
    Door(
        "LineSearch",
        ng.LineSearch,
        {},
        {
            "max_backtracks": numbers(0, integer=True),
            "shrink": numbers(0.0, exclusive=True, maximum=1.0, open_above=True),
            "min_ratio": numbers(0.0, maximum=1.0, open_above=True),
        },
    ),
    Door(
        "natural_gradient",
        ng.natural_gradient,
        BATCH,
        {
            "model": bad.MODELS,
            "loss": bad.LOSSES,
            "x": bad.INPUTS,
            "y": [None, *bad.LABELS],
            "sample_weight": bad.WEIGHTS,
            "damping": [*numbers(0.0), tf.constant(-1.0), tf.zeros([2]), tf.constant("a")],
            "solver": [v for v in OPTIMIZER["solver"] if not isinstance(v, dict)],
            "training": bad.FLAGS,
        },
        # A tuple of inputs is inputs.
        {"loss": ("loss", "y"), "x": ("x", "x, y")},
    ),
    Door(
        "natural_gradient_model",
        ng.natural_gradient_model,
        {"model": MODEL},
        {"model": [*bad.MODELS, keras.Sequential([keras.layers.Dense(2)]), keras.Model(), keras.layers.Dense(2)]},
    ),
    Door(
        "fisher_scoring",
        ng.fisher_scoring,
        {"model": MODEL, "loss": LOSS, "data": (X, Y), "max_iterations": 0, "progress": False},
        {
            "model": bad.MODELS,
            "loss": bad.LOSSES,
            "data": [*DATA, X],
            "sample_weight": bad.WEIGHTS,
            "damping": numbers(0.0),
            "solver": bad.CHOICES,
            "gtol": numbers(0.0, optional=True),
            "max_iterations": numbers(0, integer=True),
            "line_search": [None, True, 3, "yes", ng.LineSearch, ng.LevenbergMarquardt(), {}],
            "progress": bad.FLAGS,
        },
        {**PARTS, "sample_weight": ("data",)},
    ),
    Door(
        "callbacks.StepLogger",
        ng.callbacks.StepLogger,
        {},
        {"path": bad.PATHS, "every": numbers(1, integer=True), "append": bad.FLAGS},
    ),
    Door(
        "train_on_batch",
        _train,
        {},
        {
            "x": [floats(EXAMPLES, WIDTH, fill=NAN), floats(EXAMPLES, WIDTH, fill=INF), floats(EXAMPLES, WIDTH + 1), floats(0, WIDTH)],
            "y": [None, *(y for y in bad.LABELS if isinstance(y, np.ndarray) and y.dtype.kind in "if")],
            "sample_weight": [w for w in bad.WEIGHTS if isinstance(w, np.ndarray) and w.dtype.kind == "f"],
        },
    ),
    Door("compile", _compile, {"loss": LOSS}, {"loss": bad.LOSSES}),
    Door(
        "fit",
        _fit,
        {},
        {
            "x": [floats(EXAMPLES, WIDTH, fill=NAN), floats(EXAMPLES, WIDTH + 1)],
            "y": [None, np.full(EXAMPLES, CLASSES), np.zeros([EXAMPLES, CLASSES], int)],
            "sample_weight": [floats(EXAMPLES, fill=NAN), floats(EXAMPLES, fill=-1.0)],
        },
    ),
]

SHAPE = (EXAMPLES, CLASSES)
# No parameters of a distribution over the last axis.
PARAMETERS = [None, "x", 3, 3.0, a, bad.Unrelated(), np.zeros(SHAPE, int), np.array([["a", "b"]]), [[1.0], [1.0, 2.0]]]
PARAMETERS += [np.zeros(SHAPE, complex), {"a": 1}]
PDS = {
    "CategoricalPd": (ng.distributions.CategoricalPd(floats(*SHAPE)), np.zeros(EXAMPLES, int), "logits"),
    "BernoulliPd": (ng.distributions.BernoulliPd(floats(*SHAPE)), floats(*SHAPE), "parameters"),
    "DiagGaussianPd": (ng.distributions.DiagGaussianPd(floats(*SHAPE)), floats(EXAMPLES, 1), "parameters"),
    "ProbabilitiesPd": (ng.distributions.CategoricalPd.from_probabilities(floats(*SHAPE, fill=0.5)), np.zeros(EXAMPLES, int), None),
    "FixedStdGaussianPd": (ng.distributions.DiagGaussianPd.with_fixed_std(floats(*SHAPE), 1.0), floats(*SHAPE), None),
}


def _distribution(name, pd, value, argument):
    rank = pd.fisher_rank
    if argument is not None:
        yield Door(f"distributions.{name}", type(pd), {argument: floats(*SHAPE)}, {argument: PARAMETERS}, {argument: ("parameters",)})
    values = [*bad.NOT_NUMBERS, COMPLEX]
    yield Door(f"{name}.log_prob", pd.log_prob, {"value": value}, {"value": values})
    yield Door(f"{name}.score_factor", pd.score_factor, {"value": value}, {"value": values})
    yield Door(f"{name}.sample", pd.sample, {"seed": [0, 1]}, {"seed": [None, "x", 3, [1], [1, 2, 3], [0.5, 1.0], a, [[1, 2]]]})
    others = [None, 3, floats(*SHAPE), type(pd), a, next(p for p, _, _ in PDS.values() if not isinstance(p, type(pd)) and not isinstance(pd, type(p)))]
    yield Door(f"{name}.kl", pd.kl, {"other": pd}, {"other": others})
    for method, size in (("fisher_factor", rank), ("fisher_factor_transpose", CLASSES), ("fisher_matvec", CLASSES)):
        wrong = [*bad.NOT_NUMBERS, floats(EXAMPLES, size + 1), floats(EXAMPLES + 1, size), floats(size + 2), COMPLEX]
        yield Door(f"{name}.{method}", getattr(pd, method), {"vector": floats(EXAMPLES, size)}, {"vector": wrong})
    yield Door(f"{name}.with_parameters", pd.with_parameters, {"parameters": floats(*SHAPE)}, {"parameters": PARAMETERS}, {"parameters": ("logits",)})


COMPLEX = 1j * np.ones(SHAPE)
LIKELIHOOD = ng.distributions.likelihood_of(LOSS)
OUTPUTS = tf.constant(floats(*SHAPE))
PD = LIKELIHOOD.distribution(OUTPUTS)
DISTRIBUTIONS = [
    *(door for name, given in PDS.items() for door in _distribution(name, *given)),
    Door("CategoricalPd.from_probabilities", ng.distributions.CategoricalPd.from_probabilities, {"probabilities": floats(*SHAPE, fill=0.5)}, {"probabilities": PARAMETERS}, {"probabilities": ("logits", "parameters")}),
    Door("BernoulliPd.from_probabilities", ng.distributions.BernoulliPd.from_probabilities, {"probabilities": floats(*SHAPE, fill=0.5)}, {"probabilities": PARAMETERS}, {"probabilities": ("logits", "parameters")}),
    Door("DiagGaussianPd.with_fixed_std", ng.distributions.DiagGaussianPd.with_fixed_std, {"mean": floats(*SHAPE), "std": 1.0}, {"mean": PARAMETERS, "std": numbers(0.0, exclusive=True)}, {"mean": ("parameters",)}),
    Door("distributions.likelihood_of", ng.distributions.likelihood_of, {"loss": LOSS}, {"loss": bad.LOSSES}),
    Door("Likelihood.distribution", LIKELIHOOD.distribution, {"outputs": OUTPUTS}, {"outputs": [None, "x", 3, [OUTPUTS, OUTPUTS], {"a": OUTPUTS}, tf.zeros([2]), tf.zeros([2, 1]), tf.zeros([2, 2], tf.int32), a]}, {"outputs": ("model", "logits")}),
    Door("Likelihood.targets", LIKELIHOOD.targets, {"y": Y, "pd": PD}, {"y": [None, *bad.LABELS], "pd": [None, 3, OUTPUTS, a]}),
    Door("Likelihood.weights", LIKELIHOOD.weights, {"outputs": OUTPUTS, "pd": PD, "sample_weight": WEIGHTS}, {"sample_weight": bad.WEIGHTS, "pd": [None, 3, OUTPUTS, a]}, free=("outputs",)),
    Door(
        "distributions.NegativeLogLikelihood",
        ng.distributions.NegativeLogLikelihood,
        {"distribution": ng.distributions.DiagGaussianPd},
        {"distribution": [None, "DiagGaussianPd", 3, PD, keras.Model, a, "mse"]},
        free=("reduction", "name"),
    ),
]

FLAT_STEPS = {
    "observations": EPISODES.observations,
    "actions": EPISODES.actions,
    "rewards": EPISODES.rewards,
    "lengths": EPISODES.lengths,
    "terminated": EPISODES.terminated,
}
PADDED = {"observations": np.zeros((4, STEPS, WIDTH)), "actions": np.zeros((4, STEPS), int), "rewards": np.ones((4, STEPS))}
WRONG_ROWS = [v for v in bad.NOT_NUMBERS if v is not None] + [3.0, np.zeros([5, STEPS])]
OVER = np.zeros((STEPS, 2), bool)
ADVANTAGES = {"rewards": np.ones((STEPS, 2)), "values": np.ones((STEPS, 2)), "next_values": np.ones((STEPS, 2)), "terminated": OVER, "truncated": OVER}
ROWS_OF_STEPS = [*bad.NOT_NUMBERS, 3.0, np.zeros(STEPS), np.zeros([STEPS, 3]), np.ones((STEPS, 2)) * 1j]
WRONG_EPISODES = [None, "episodes", 3, FLAT_STEPS, np.zeros([4, 3]), rl.Episodes, a]
WRONG_POLICIES = [None, "policy", 3, MODEL, rl.CategoricalPolicy, a]
BASELINES = [
    "nonsense",
    NAN,
    True,
    [1.0],
    np.zeros(2),
    bad.Unrelated(),
    lambda o, t: np.zeros(3),
    lambda o, t: None,
    lambda o, t: np.full(12, NAN),
    lambda o, t: ["x"] * 12,
]
OBSERVATIONS = [*bad.NOT_NUMBERS, floats(2, WIDTH + 1), floats(2, 2, WIDTH), 3.0]
EPISODE_CALLS = {"policy": WRONG_POLICIES, "estimator": bad.CHOICES, "baseline": BASELINES, "gamma": numbers(0.0, maximum=1.0)}
LEARN = {"total_steps": 0, "progress": False}
AGENT_RANGES = _agent_numbers()
RL = [
    Door("rl.TRPO", rl.TRPO, {"env": Field}, {**AGENT_RANGES, "line_search_shrinking_factor": numbers(0.0, exclusive=True, maximum=1.0, open_above=True), "line_search_max_iter": numbers(1, integer=True)}, free=("options",)),
    Door("rl.NaturalPolicyGradient", rl.NaturalPolicyGradient, {"env": Field}, AGENT_RANGES),
    Door(
        "TRPO.learn",
        AGENT.learn,
        LEARN,
        {
            "total_steps": numbers(0, integer=True),
            "callbacks": [None, "f", 3, [3], [None], {"a": 1}],
            "progress": bad.FLAGS,
            "log_path": bad.PATHS,
            "tensorboard": bad.PATHS,
            "checkpoint": bad.PATHS,
            "checkpoint_every": numbers(1, integer=True),
        },
    ),
    Door("TRPO.predict", AGENT.predict, {"observation": X}, {"observation": [*OBSERVATIONS, floats(2, WIDTH, fill=NAN), floats(0, WIDTH), np.zeros([])], "deterministic": bad.FLAGS, "seed": bad.SEEDS[1:]}),
    Door("TRPO.evaluate", AGENT.evaluate, {"episodes": 1}, {"episodes": numbers(1, integer=True), "deterministic": bad.FLAGS, "seed": [*bad.SEEDS, 2**31]}, {"episodes": ("num_episodes",)}),
    Door("TRPO.collect", AGENT.collect, {"episodes": 1}, {"episodes": numbers(1, integer=True), "deterministic": bad.FLAGS, "seed": [*bad.SEEDS, 2**31]}, {"episodes": ("num_episodes",)}),
    Door("TRPO.save", AGENT.save, {"path": FOLDER / "again.npz"}, {"path": [None, *bad.PATHS]}),
    Door("TRPO.load", rl.TRPO.load, {"path": FOLDER / "agent.npz", "env": Field}, {"path": [None, *bad.PATHS, FOLDER / "text.npz", FOLDER / "episodes.npz", FOLDER], "env": [None, 3, "NoSuchEnv-v0", Field()]}),
    Door("rl.collect", rl.collect, {"env": Field, "policy": POLICY, "num_episodes": 1}, {"env": [*AGENT_RANGES["env"]], "policy": [*WRONG_POLICIES, GAUSSIAN], "num_episodes": numbers(1, integer=True), "seed": [*bad.SEEDS, 2**31], "deterministic": bad.FLAGS, "progress": bad.FLAGS}),
    Door("rl.CategoricalPolicy", rl.CategoricalPolicy, {"network": MODEL}, {"network": bad.MODELS}, free=("name",)),
    Door(
        "rl.GaussianPolicy",
        rl.GaussianPolicy,
        {"network": MODEL},
        {"network": [*bad.MODELS, keras.Sequential([keras.layers.Dense(2)])], "initial_log_std": numbers()},
        free=("name",),
    ),
    *(
        Door(f"{type(policy).__name__}.{name}", getattr(policy, name), {"observations": X, **more}, {"observations": OBSERVATIONS, **wrong}, also)
        for policy, actions in ((POLICY, Y), (GAUSSIAN, floats(EXAMPLES, CLASSES)))
        for name, more, wrong, also in (
            ("distribution", {}, {}, {}),
            ("log_prob", {"actions": actions}, {"actions": [*bad.NOT_NUMBERS, np.zeros([5, 5]), np.zeros([3, 1, 1]), COMPLEX]}, {"actions": ("value",)}),
            ("sample", {"seed": [0, 1]}, {"seed": [None, "x", 3, [1], [1, 2, 3], [0.5, 1.0], a]}, {}),
        )
    ),
    *(
        Door(f"{type(policy).__name__}.check_action_space", policy.check_action_space, {"space": space}, {"space": [None, 3, "x", gymnasium.spaces.Discrete(7), wrong]}, {"space": ("policy",)})
        for policy, space, wrong in (
            (POLICY, gymnasium.spaces.Discrete(2), gymnasium.spaces.Box(-1, 1, (2,))),
            (GAUSSIAN, gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)),
        )
    ),
    Door(
        "rl.Episodes",
        rl.Episodes,
        FLAT_STEPS,
        {
            "observations": [*bad.NOT_NUMBERS, floats(11, WIDTH), floats(12, WIDTH, fill=NAN), 3.0],
            "actions": [*bad.NOT_NUMBERS, np.zeros(11, int), np.full(12, NAN), 3, np.zeros(12, complex)],
            "rewards": [*bad.NOT_NUMBERS, np.ones(11), np.full(12, INF), 3.0, np.ones([12, 1]), np.zeros(12, complex)],
            "lengths": [*bad.NOT_NUMBERS, [], [3, 3, 3, 0], [3, 3, 3, -1], [3.0, 3.0, 3.0, 2.5], 12, [[3, 3, 3, 3]], [5, 5], [NAN] * 4],
            "terminated": [*bad.NOT_NUMBERS, [True], True, [0.5] * 4, [[True] * 4]],
            "final_observations": [*bad.NOT_NUMBERS[1:], np.zeros([3, WIDTH]), np.zeros([4, WIDTH + 1]), 3.0],
            "weights": [*bad.NOT_NUMBERS[1:], np.ones(3), np.full(4, NAN), 3.0, np.ones([4, 1]), np.ones(4) * 1j],
        },
        {"lengths": ("observations",)},
    ),
    Door(
        "Episodes.from_arrays",
        rl.Episodes.from_arrays,
        PADDED,
        {
            "observations": [None, *WRONG_ROWS, np.full((4, STEPS, WIDTH), NAN)],
            "actions": [None, *WRONG_ROWS, np.full((4, STEPS), NAN)],
            "rewards": [None, *WRONG_ROWS, np.zeros(3), np.full((4, STEPS), NAN)],
            "lengths": [*WRONG_ROWS, [3], [1, 1, 1, 9], [1, 1, 1, 0], [1, 1, 1, 2.5], [NAN] * 4],
            "weights": [*WRONG_ROWS, np.ones(3), np.full(4, NAN)],
            "terminated": [*WRONG_ROWS, [True], ["no"] * 4, [0.5] * 4],
        },
        {"rewards": ("observations",)},
    ),
    Door("Episodes.rewards_to_go", EPISODES.rewards_to_go, {"gamma": 1.0}, {"gamma": numbers(0.0, maximum=1.0)}),
    Door("Episodes.returns", EPISODES.returns, {"gamma": 1.0}, {"gamma": numbers(0.0, maximum=1.0)}),
    Door("Episodes.select", EPISODES.select, {"chosen": [0, 2]}, {"chosen": [*bad.NOT_NUMBERS, [], [4], [-5], [0.5], 1, [[0]], [True, False, True, False], [NAN]]}),
    Door("Episodes.save", EPISODES.save, {"path": FOLDER / "more.npz"}, {"path": [None, *bad.PATHS]}),
    Door("Episodes.load", rl.Episodes.load, {"path": FOLDER / "episodes.npz"}, {"path": [None, *bad.PATHS, FOLDER / "text.npz", FOLDER / "agent.npz"]}),
    Door(
        "rl.PolicyHessian",
        rl.PolicyHessian,
        {"policy": POLICY, "episodes": EPISODES},
        {**EPISODE_CALLS, "policy": [*WRONG_POLICIES, GAUSSIAN], "episodes": WRONG_EPISODES, "chunk_steps": numbers(1, integer=True, optional=True)},
    ),
    Door(
        "rl.extreme_curvature",
        rl.extreme_curvature,
        {"policy": POLICY, "episodes": EPISODES, "null_draws": 0},
        {
            **EPISODE_CALLS,
            "estimator": [*bad.CHOICES, "algorithm1"],
            "episodes": [*WRONG_EPISODES, EPISODES.select([0, 1])],
            "level": numbers(0.0, exclusive=True, maximum=1.0, open_above=True),
            "null_draws": [*numbers(0, integer=True), 5],
            "method": bad.CHOICES,
            "tol": numbers(0.0),
            "seed": bad.SEEDS,
        },
        {"estimator": ("operator",)},
    ),
    Door(
        "rl.step_weights",
        rl.step_weights,
        {"episodes": EPISODES, "estimator": "causal", "baseline": None, "gamma": 1.0},
        {"episodes": WRONG_EPISODES, "estimator": bad.CHOICES, "baseline": BASELINES, "gamma": numbers(0.0, maximum=1.0)},
    ),
    Door(
        "rl.generalized_advantages",
        rl.generalized_advantages,
        ADVANTAGES,
        {
            "rewards": [*ROWS_OF_STEPS, np.full((STEPS, 2), NAN)],
            "values": ROWS_OF_STEPS,
            "next_values": ROWS_OF_STEPS,
            "terminated": [*ROWS_OF_STEPS, np.full((STEPS, 2), "no"), np.full((STEPS, 2), 0.5)],
            "truncated": [*ROWS_OF_STEPS, np.full((STEPS, 2), "no"), np.full((STEPS, 2), 0.5)],
            "gamma": numbers(0.0, maximum=1.0),
            "gae_lambda": numbers(0.0, maximum=1.0),
        },
        {"rewards": ("values",)},
    ),
    Door("ObservationNormalization.set_moments", lambda moments: _layer().set_moments(moments), {"moments": RunningMoments((WIDTH,))}, {"moments": [None, 3, "x", np.zeros(WIDTH), RunningMoments((WIDTH + 1,))]}),
]


def _layer():
    layer = rl.ObservationNormalization()
    layer.build((None, WIDTH))
    return layer


DOORS = {door.name: door for door in (*OPERATORS, *SOLVERS, *SPECTRUM, *TRAINING, *DISTRIBUTIONS, *RL)}
