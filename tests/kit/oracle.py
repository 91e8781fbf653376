"""An independent dense oracle: per-example Jacobians by `GradientTape.jacobian`, and textbook formulas in NumPy."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf


class Dense(NamedTuple):
    """The dense truth of one problem; positions of a sequence count as examples.

    Attributes:
        jacobian: `[P, C, n]`.
        outputs: `[P, C]`.
        output_fisher: `[P, C, C]`.
        weights: `[P]`.
        scores: `[P, C]`, the gradient of each position's loss in the outputs.
        matrix: the Fisher, `[n, n]`.
        gradient: of the loss, `[n]`.
    """

    jacobian: np.ndarray
    outputs: np.ndarray
    output_fisher: np.ndarray
    weights: np.ndarray
    scores: np.ndarray
    matrix: np.ndarray
    gradient: np.ndarray


def dense_problem(model, x, y, sample_weight, family):
    """Everything about one batch, dense."""
    outputs, jacobian = outputs_and_jacobian(model, x)
    examples, positions = outputs.shape[0], int(np.prod(outputs.shape[1:-1]))
    z = outputs.reshape(-1, outputs.shape[-1])
    jacobian = jacobian.reshape(*z.shape, -1)
    weights = np.ones(examples) if sample_weight is None else np.asarray(sample_weight, "float64")
    weights = np.repeat(weights, positions) / len(z)
    curvature, scores = FAMILIES[family](z, targets(y, z, family))
    matrix = np.einsum("p,pcm,pcd,pdn->mn", weights, jacobian, curvature, jacobian, optimize=True)
    gradient = np.einsum("p,pc,pcn->n", weights, scores, jacobian)
    return Dense(jacobian, z, curvature, weights, scores, matrix, gradient)


def outputs_and_jacobian(model, x):
    """`z` `[N, ..., C]` and `dz/dtheta` `[N, ..., C, n]` in float64."""
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        outputs = model(x)
    blocks = tape.jacobian(outputs, variables, experimental_use_pfor=False, unconnected_gradients="zero")
    blocks = [np.reshape(tf.convert_to_tensor(b), (*outputs.shape, -1)) for b in blocks]
    return outputs.numpy().astype("float64"), np.concatenate(blocks, -1).astype("float64")


def rows_first(variables):
    """Where in the variables of a transposed convolution the entries of their matrix are, row by row."""
    kernel = np.arange(int(np.prod(variables[0].shape))).reshape(variables[0].shape)
    count = sum(int(np.prod(v.shape)) for v in variables)
    return np.concatenate([np.swapaxes(kernel, -1, -2).ravel(), np.arange(kernel.size, count)])


def targets(y, z, family):
    """One row of targets per position: one-hot for class indices."""
    y = np.asarray(y)
    if family in ("categorical", "probabilities") and y.dtype.kind in "iu":
        return np.eye(z.shape[-1])[y.reshape(-1)]
    return y.reshape(len(z), -1).astype("float64")


# The Hessian of each position's loss in the outputs, where it depends on the label; elsewhere it is the Fisher.


def _nll_hessian_of_probabilities(p, y):
    return _diagonal(y / p**2)


def _nll_hessian_of_gaussian(z, y):
    mean, std = z[:, : z.shape[-1] // 2], np.exp(z[:, z.shape[-1] // 2 :])
    error = (mean - y) / std
    mixed = _diagonal(-2.0 * error / std)
    return np.block([[_diagonal(std**-2), mixed], [mixed, _diagonal(2.0 * error**2)]])


NLL_HESSIANS = {"probabilities": _nll_hessian_of_probabilities, "gaussian": _nll_hessian_of_gaussian}


def gauss_newton(truth, y, family):
    """`sum_i w_i J_i^T M_i J_i` of a `Dense`, `M_i` the Hessian of the loss in the outputs."""
    middle = truth.output_fisher
    if family in NLL_HESSIANS:
        middle = NLL_HESSIANS[family](truth.outputs, targets(y, truth.outputs, family))
    return np.einsum("p,pcm,pcd,pdn->mn", truth.weights, truth.jacobian, middle, truth.jacobian, optimize=True)


def empirical_fisher(truth, family):
    """`sum_i w_i g_i g_i^T` of a `Dense`, `g_i` the gradient of the negative log-likelihood at the label.

    Binary cross-entropy is the mean of `C` of those, which is part of the weight.
    """
    count = truth.outputs.shape[-1] if family.startswith("bernoulli") else 1
    gradients = np.einsum("pc,pcn->pn", truth.scores, truth.jacobian) * count
    return np.einsum("p,pm,pn->mn", truth.weights / count, gradients, gradients)


# Central differences of the first derivative, exact to the eighth order of the step.
_STEP = 5e-3
_STENCIL = ((1, 4 / 5), (2, -1 / 5), (3, 4 / 105), (4, -1 / 280))


def hessian(model, x, y, weights, family, training=False):
    """The Hessian of the loss `[n, n]`: differences of gradients, so that nothing is differentiated twice.

    Args:
        weights: of the positions, as in `Dense`.
    """
    variables = model.trainable_variables
    ends = np.cumsum([int(np.prod(v.shape)) for v in variables])

    def weighted_scores(z):
        rows = z.reshape(-1, z.shape[-1])
        return (weights[:, None] * FAMILIES[family](rows, targets(y, rows, family))[1]).reshape(z.shape)

    @tf.function
    def gradient(theta):
        parts = np.split(np.arange(ends[-1]), ends[:-1])
        values = [tf.reshape(tf.gather(theta, part), v.shape) for part, v in zip(parts, variables, strict=True)]
        with tf.GradientTape() as tape:
            tape.watch(values)
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                z = model(x, training=training)
        cotangent = tf.ensure_shape(tf.numpy_function(weighted_scores, [z], z.dtype), z.shape)
        gradients = tape.gradient(z, values, output_gradients=cotangent, unconnected_gradients="zero")
        return tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)

    theta = np.concatenate([np.reshape(v.numpy(), -1) for v in variables])
    rows = []
    for unit in np.eye(len(theta)) * _STEP:
        pairs = [(c, gradient(theta + k * unit).numpy() - gradient(theta - k * unit).numpy()) for k, c in _STENCIL]
        rows.append(sum(c * pair for c, pair in pairs) / _STEP)
    return (np.array(rows) + np.transpose(rows)) / 2


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _diagonal(values):
    return values[..., None] * np.eye(values.shape[-1])


def _categorical(z, y):
    p = softmax(z)
    return _diagonal(p) - p[:, :, None] * p[:, None, :], p * y.sum(-1, keepdims=True) - y


def _probabilities(p, y):
    return _diagonal(1.0 / p), -y / p


def _bernoulli(z, y):
    p, outputs = 1.0 / (1.0 + np.exp(-z)), z.shape[-1]
    return _diagonal(p * (1.0 - p)) / outputs, (p - y) / outputs


def _bernoulli_probabilities(p, y):
    variance, outputs = p * (1.0 - p), p.shape[-1]
    return _diagonal(1.0 / variance) / outputs, (p - y) / variance / outputs


def _squared_error(z, y):
    outputs = z.shape[-1]
    return _diagonal(np.full_like(z, 2.0 / outputs)), 2.0 * (z - y) / outputs


def _gaussian(z, y):
    mean, std = z[:, : z.shape[-1] // 2], np.exp(z[:, z.shape[-1] // 2 :])
    error = (mean - y) / std
    return (
        _diagonal(np.concatenate([std**-2, np.full_like(std, 2.0)], -1)),
        np.concatenate([error / std, 1.0 - error**2], -1),
    )


# From outputs and targets to the Fisher in the outputs and the gradient of the loss in the outputs.
FAMILIES = {
    "categorical": _categorical,
    "probabilities": _probabilities,
    "bernoulli": _bernoulli,
    "bernoulli_probabilities": _bernoulli_probabilities,
    "squared_error": _squared_error,
    "gaussian": _gaussian,
}


def difference(actual, expected):
    """The relative difference of two arrays in the Euclidean norm; infinite where one is not finite."""
    actual, expected = np.asarray(actual, "float64"), np.asarray(expected, "float64")
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return np.inf
    scale = np.linalg.norm(expected)
    return np.linalg.norm(actual - expected) / (scale if scale > 0 else 1.0)
