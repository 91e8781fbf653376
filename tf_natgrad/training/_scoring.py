"""What Fisher scoring fits: a loss with penalties over a whole data set, its curvature, and the solution for a step."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _conditions
from tf_natgrad._typing import LossLike
from tf_natgrad.distributions import likelihood_of
from tf_natgrad.layers import LayerCall, rule_for
from tf_natgrad.layers.dense import DenseRule
from tf_natgrad.operators import CurvatureOperator, Fisher, Penalty
from tf_natgrad.operators._batch import Batch
from tf_natgrad.operators._dense import DENSE_MEMORY_LIMIT, check_dense_memory
from tf_natgrad.operators._inputs import unpack
from tf_natgrad.solvers import ConjugateGradient, Solver
from tf_natgrad.training._factorised import Step, factorised
from tf_natgrad.training.direction import refuse_activity_losses

# Parameters up to which "auto" forms the matrix: for one Dense layer with so many units at most, and for others.
# On softmax regression with n = 1,970 and a penalty of 1e-5 products alone took 0.4 of the processor time.
_ONE_LAYER_LIMIT, _ONE_LAYER_UNITS, _DENSE_LIMIT = 1_000, 64, 500
# Relative residuals of conjugate gradients, the next the closer the fit.
_FORCING = (1e-1, 1e-2, 1e-4)


class Fit:
    """The loss with its penalties, its derivatives and the Fisher, all at the current weights.

    Args:
        model: a Keras model.
        loss: see `likelihood_of`.
        dataset: batches of the whole data.
    """

    def __init__(self, model: keras.Model, loss: LossLike, dataset: tf.data.Dataset):
        likelihood = likelihood_of(loss)
        with _conditions.as_value_error():
            self.fisher = Fisher(model, likelihood, dataset)
            x, _, _ = unpack(next(iter(dataset)))
            # One call on a few examples shows which layers there are.
            few = Fisher(model, likelihood, tf.nest.map_structure(lambda t: t[:2], x), record_calls=True)
        refuse_activity_losses(model)
        self.flat = self.fisher.flat_parameters
        self.layer = _only_dense_layer(few)
        self.penalty = Penalty(self.flat)
        self._penalty = tf.function(lambda: (self.penalty.value(), self.penalty.gradient()), autograph=False)

    @property
    def curvature(self) -> CurvatureOperator:
        """`F + R`."""
        return self.fisher if self.penalty.is_zero else self.fisher + self.penalty

    def value_and_gradient(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss with its penalties, and its gradient `[n]`, in one pass over the data."""
        flat = self.flat

        def of_batch(batch: Batch) -> tf.Tensor:
            gradient = flat.flatten(batch.gradient(flat.tensors, None, batch.weights))
            return tf.concat([tf.cast(batch.loss(), flat.dtype)[None], gradient], 0)

        def whole() -> tf.Tensor:
            return self.fisher.source.sum("value", of_batch, tf.zeros([flat.size + 1], flat.dtype))

        both = self.fisher.compiled("value", whole)()
        value, gradient = both[0], both[1:]
        if not self.penalty.is_zero:
            penalty, slope = self._penalty()
            value, gradient = value + penalty, gradient + slope
        return value, gradient

    def matrix(self) -> np.ndarray:
        """`F + R` `[n, n]`."""
        if self.layer is None:
            fisher = self.fisher.to_dense()
        else:
            fisher = self.fisher.compiled("one_layer", self._fisher_of_one_layer)()
        if not self.penalty.is_zero:
            fisher = fisher + self.penalty.to_dense()
        return fisher.numpy()

    def _fisher_of_one_layer(self) -> tf.Tensor:
        """The Fisher of one Dense layer on inputs `[N, D]`, `sum_i h_i h_i^T (x) M_i`, as graph code.

        `M_i` `[U, U]` is the Fisher in the layer's U pre-activations. Block by block that is `U (U + 1) / 2` weighted
        products of the inputs, 16 times less work than `A^T A` for ten classes.
        """
        flat = self.flat

        def of_batch(batch: Batch) -> tf.Tensor:
            (call,) = batch.record.groups(flat)[0]
            h = tf.cast(call.inputs, flat.dtype)
            if call.layer.use_bias:
                h = tf.concat([h, tf.ones_like(h[:, :1])], 1)
            linear = batch.linearization
            columns = batch.factor.columns() * tf.sqrt(batch.output_weights)
            d = linear.map_rows(lambda c: linear.pullback_to([call.output], c)[0], columns)
            units, features = call.layer.units, h.shape[1]
            middle = tf.einsum("rnu,rnv->nuv", tf.cast(d, flat.dtype), tf.cast(d, flat.dtype))
            # The upper triangle, half of its diagonal: the matrix is this plus its transpose.
            middle = tf.linalg.set_diag(middle, 0.5 * tf.linalg.diag_part(middle))
            rows = []
            for u in range(units):
                right = tf.reshape(h[:, :, None] * middle[:, u, None, u:], [-1, features * (units - u)])
                block = tf.reshape(tf.linalg.matmul(h, right, transpose_a=True), [features, features, units - u])
                rows.append(tf.pad(block, [[0, 0], [0, 0], [u, 0]]))
            return tf.reshape(tf.stack(rows, 1), [flat.size, flat.size])

        zeros = tf.zeros([flat.size, flat.size], flat.dtype)
        upper = self.fisher.source.sum("one_layer", of_batch, zeros, record_calls=True)
        return upper + tf.transpose(upper)


class Along:
    """The loss along one step, measured from where the step starts: the objective of the line search.

    Where the decrease that is predicted is below the rounding of the loss, it is measured by the gradients at both
    ends, `s (g_0 + g_s)^T d / 2`, which does not cancel (the error is of third order in the step).

    Args:
        fit: the problem.
        theta: the weights at which the step starts.
        loss: at these.
        gradient: at these.
        step: to be subtracted.
    """

    def __init__(self, fit: Fit, theta: tf.Tensor, loss: tf.Tensor, gradient: tf.Tensor, step: Step):
        self._fit, self._theta, self._loss, self._gradient, self._step = fit, theta, loss, gradient, step
        self._slope = tf.tensordot(gradient, step.value, 1)
        self._rounding = 100.0 * np.finfo(loss.dtype.as_numpy_dtype).eps * (1.0 + abs(float(loss)))
        self._scale = tf.zeros_like(loss)
        self._here: tuple[tf.Tensor, tf.Tensor] | None = None

    def move(self, scale: tf.Tensor) -> None:
        """Goes to this multiple of the step."""
        self._scale, self._here = scale, None
        self._fit.flat.assign(self._theta - scale * self._step.value)

    def here(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the loss and its gradient at the current weights."""
        if self._here is None:
            self._here = self._fit.value_and_gradient()
        return self._here

    def loss(self) -> tf.Tensor:
        """Computes the loss at the current weights, less that at the start of the step."""
        if self._scale == 0:
            return tf.zeros_like(self._loss)
        loss, gradient = self.here()
        if self.predicted(self._scale) > self._rounding:
            return loss - self._loss
        return -0.5 * self._scale * tf.tensordot(self._gradient + gradient, self._step.value, 1)

    def kl(self) -> tf.Tensor:
        """Not measured: there is no limit to it."""
        return tf.zeros_like(self._loss)

    def predicted(self, scale: tf.Tensor) -> tf.Tensor:
        """The decrease by the quadratic model with `F + R`."""
        return scale * self._slope - 0.5 * tf.square(scale) * self._step.quadratic_form


def step_solver(fit: Fit, solver: str | Solver, damping: float) -> tuple[Callable[[tf.Tensor, float], Step], str]:
    """Chooses what solves for the steps.

    Args:
        fit: the problem.
        solver: `"auto"`, `"dense"`, `"cg"`, or a solver of the package.
        damping: added to the diagonal.

    Returns:
        A function of the gradient and its norm relative to the first one, to a step; and a description.
    """
    curvature = fit.curvature.damped(damping) if damping else fit.curvature
    if isinstance(solver, Solver):
        return lambda gradient, _: _step(solver, curvature, gradient), type(solver).__name__
    n, one = fit.flat.size, fit.layer is not None
    if solver == "auto":
        limit = _ONE_LAYER_LIMIT if one else _DENSE_LIMIT
        kind, why = ("dense", "at most") if n <= limit else ("cg", "more than")
        why = f", because {n:,} parameters are {why} {limit:,}"
    else:
        kind, why = solver, ""
    if kind == "dense":
        check_dense_memory(n, fit.flat.dtype, DENSE_MEMORY_LIMIT)
        route = "one Dense layer, block by block" if one else "products with unit vectors"
        return lambda gradient, _: factorised(fit.matrix(), gradient, damping), f"dense ({route}){why}"

    def iterated(gradient: tf.Tensor, ratio: float) -> Step:
        # A few tolerances only: each is compiled once.
        wanted = min(0.1, math.sqrt(ratio))
        rtol = next((r for r in _FORCING if r <= wanted), _FORCING[-1])
        return _step(ConjugateGradient(rtol=rtol), curvature, gradient)

    return iterated, f"conjugate gradients{why}"


def _step(solver: Solver, curvature: CurvatureOperator, gradient: tf.Tensor) -> Step:
    value, info = solver.solve(curvature, gradient)
    return Step(value, tf.constant(info.quadratic_form, gradient.dtype), getattr(info, "iterations", 1))


def _only_dense_layer(fisher: Fisher) -> keras.layers.Dense | None:
    """The layer, if all parameters are those of one `Dense` layer that is called once, on inputs `[N, D]`.

    Where the Gram matrix is refused, a weight acts otherwise than through the call of its layer.
    """
    flat = fisher.flat_parameters
    groups = fisher.batch.record.groups(flat)
    if fisher.gram_refusal is not None or len(groups) != 1 or len(groups[0]) != 1:
        return None
    call: LayerCall = groups[0][0]
    layer = call.layer
    if type(layer) is not keras.layers.Dense or not isinstance(rule_for(layer), DenseRule):
        return None
    own = [layer.kernel, layer.bias] if layer.use_bias else [layer.kernel]
    in_order = [id(v) for v in flat.variables] == [id(v) for v in own]
    fits = call.rows is None and call.inputs.shape.rank == 2 and layer.units <= _ONE_LAYER_UNITS
    return layer if in_order and fits else None


__all__ = ["Along", "Fit", "step_solver"]
