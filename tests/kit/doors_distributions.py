"""Doors of distributions."""

import bad_values as bad
import keras
import numpy as np
import tensorflow as tf
from bad_values import CLASSES, EXAMPLES, floats, numbers
from doors import LOSS, WEIGHTS, Door, Y

import tf_natgrad as ng

SHAPE = (EXAMPLES, CLASSES)
# No parameters of a distribution over the last axis.
PARAMETERS = [
    None,
    "x",
    3,
    3.0,
    bad.a_function,
    bad.Unrelated(),
    np.zeros(SHAPE, int),
    np.array([["a", "b"]]),
    [[1.0], [1.0, 2.0]],
]
PARAMETERS += [np.zeros(SHAPE, complex), {"a": 1}]
PDS = {
    "CategoricalPd": (ng.distributions.CategoricalPd(floats(*SHAPE)), np.zeros(EXAMPLES, int), "logits"),
    "BernoulliPd": (ng.distributions.BernoulliPd(floats(*SHAPE)), floats(*SHAPE), "parameters"),
    "DiagGaussianPd": (ng.distributions.DiagGaussianPd(floats(*SHAPE)), floats(EXAMPLES, 1), "parameters"),
    "ProbabilitiesPd": (
        ng.distributions.CategoricalPd.from_probabilities(floats(*SHAPE, fill=0.5)),
        np.zeros(EXAMPLES, int),
        None,
    ),
    "FixedStdGaussianPd": (ng.distributions.DiagGaussianPd.with_fixed_std(floats(*SHAPE), 1.0), floats(*SHAPE), None),
}


def _distribution(name, pd, value, argument):
    rank = pd.fisher_rank
    if argument is not None:
        yield Door(
            f"distributions.{name}",
            type(pd),
            {argument: floats(*SHAPE)},
            {argument: PARAMETERS},
            {argument: ("parameters",)},
        )
    values = [*bad.NOT_NUMBERS, COMPLEX]
    yield Door(f"{name}.log_prob", pd.log_prob, {"value": value}, {"value": values})
    yield Door(f"{name}.score_factor", pd.score_factor, {"value": value}, {"value": values})
    yield Door(
        f"{name}.sample",
        pd.sample,
        {"seed": [0, 1]},
        {"seed": [None, "x", 3, [1], [1, 2, 3], [0.5, 1.0], bad.a_function, [[1, 2]]]},
    )
    others = [
        None,
        3,
        floats(*SHAPE),
        type(pd),
        bad.a_function,
        next(p for p, _, _ in PDS.values() if not isinstance(p, type(pd)) and not isinstance(pd, type(p))),
    ]
    yield Door(f"{name}.kl", pd.kl, {"other": pd}, {"other": others})
    for method, size in (("fisher_factor", rank), ("fisher_factor_transpose", CLASSES), ("fisher_matvec", CLASSES)):
        wrong = [*bad.NOT_NUMBERS, floats(EXAMPLES, size + 1), floats(EXAMPLES + 1, size), floats(size + 2), COMPLEX]
        yield Door(f"{name}.{method}", getattr(pd, method), {"vector": floats(EXAMPLES, size)}, {"vector": wrong})
    yield Door(
        f"{name}.with_parameters",
        pd.with_parameters,
        {"parameters": floats(*SHAPE)},
        {"parameters": PARAMETERS},
        {"parameters": ("logits",)},
    )


COMPLEX = 1j * np.ones(SHAPE)
LIKELIHOOD = ng.distributions.likelihood_of(LOSS)
OUTPUTS = tf.constant(floats(*SHAPE))
PD = LIKELIHOOD.distribution(OUTPUTS)
DOORS = [
    *(door for name, given in PDS.items() for door in _distribution(name, *given)),
    Door(
        "CategoricalPd.from_probabilities",
        ng.distributions.CategoricalPd.from_probabilities,
        {"probabilities": floats(*SHAPE, fill=0.5)},
        {"probabilities": PARAMETERS},
        {"probabilities": ("logits", "parameters")},
    ),
    Door(
        "BernoulliPd.from_probabilities",
        ng.distributions.BernoulliPd.from_probabilities,
        {"probabilities": floats(*SHAPE, fill=0.5)},
        {"probabilities": PARAMETERS},
        {"probabilities": ("logits", "parameters")},
    ),
    Door(
        "DiagGaussianPd.with_fixed_std",
        ng.distributions.DiagGaussianPd.with_fixed_std,
        {"mean": floats(*SHAPE), "std": 1.0},
        {"mean": PARAMETERS, "std": numbers(0.0, exclusive=True)},
        {"mean": ("parameters",)},
    ),
    Door("distributions.likelihood_of", ng.distributions.likelihood_of, {"loss": LOSS}, {"loss": bad.NO_LOSSES}),
    Door(
        "distributions.joint_likelihood",
        ng.distributions.joint_likelihood,
        {"losses": ["mse", LOSS], "loss_weights": [1.0, 2.0]},
        {
            "losses": [None, "mse", 3, bad.a_function, [], {}, [None, None], ["nonsense", LOSS], [LOSS]],
            "loss_weights": [3, "x", [1.0], [1.0, -1.0], [1.0, "a"], {"a": 1.0}, bad.a_function, [1.0, bad.NAN]],
        },
        {"losses": ("loss", "loss_weights")},
    ),
    Door(
        "Likelihood.distribution",
        LIKELIHOOD.distribution,
        {"outputs": OUTPUTS},
        {
            "outputs": [
                None,
                "x",
                3,
                [OUTPUTS, OUTPUTS],
                {"a": OUTPUTS},
                tf.zeros([2]),
                tf.zeros([2, 1]),
                tf.zeros([2, 2], tf.int32),
                bad.a_function,
            ]
        },
        {"outputs": ("model", "logits", "parameters")},
    ),
    Door(
        "Likelihood.targets",
        LIKELIHOOD.targets,
        {"y": Y, "pd": PD},
        {"y": [None, *bad.LABELS], "pd": [None, 3, OUTPUTS, bad.a_function]},
    ),
    Door(
        "Likelihood.weights",
        LIKELIHOOD.weights,
        {"outputs": OUTPUTS, "pd": PD, "sample_weight": WEIGHTS},
        {"sample_weight": bad.WEIGHTS, "pd": [None, 3, OUTPUTS, bad.a_function]},
        free=("outputs",),
    ),
    Door(
        "distributions.NegativeLogLikelihood",
        ng.distributions.NegativeLogLikelihood,
        {"distribution": ng.distributions.DiagGaussianPd},
        {"distribution": [None, "DiagGaussianPd", 3, PD, keras.Model, bad.a_function, "mse"]},
        free=("reduction", "name"),
    ),
]
