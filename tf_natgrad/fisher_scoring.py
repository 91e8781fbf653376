"""Fisher scoring: natural gradient steps on a whole data set, to its maximum-likelihood or penalised fit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._direction import penalty_gradient, refuse_activity_losses
from tf_natgrad._factorised import Step, factorised
from tf_natgrad._progress import progress_bar
from tf_natgrad._separation import no_finite_fit
from tf_natgrad._typing import LossLike, TensorLike
from tf_natgrad.distributions import likelihood_of
from tf_natgrad.gram import LayerCall, rule_for
from tf_natgrad.gram.dense import DenseRule
from tf_natgrad.operators import CurvatureOperator, Fisher
from tf_natgrad.operators._batch import Batch, unpack
from tf_natgrad.operators._dense import DENSE_MEMORY_LIMIT, check_dense_memory
from tf_natgrad.parameters import FlatParameters
from tf_natgrad.solvers import ConjugateGradient
from tf_natgrad.step import LineSearch

_LOGGER = logging.getLogger("tf_natgrad")

# Examples of arrays that are taken at once.
_CHUNK = 2048
# Parameters up to which "auto" forms the matrix: for one Dense layer with so many units at most, and for others.
# On softmax regression with n = 1,970 and a penalty of 1e-5 products alone took 0.4 of the processor time.
_ONE_LAYER_LIMIT, _ONE_LAYER_UNITS, _DENSE_LIMIT = 1_000, 64, 500
# Relative residuals of conjugate gradients, the next the closer the fit.
_FORCING = (1e-1, 1e-2, 1e-4)
_NO_FIT = (
    "stopped: no finite maximum-likelihood fit exists, for the loss falls for ever along the last step (fitted "
    "probabilities go to 0 or 1 and coefficients grow without end: the labels are separable, or a class never occurs); "
    "add a penalty such as `kernel_regularizer` and `bias_regularizer`, or more data, or drop the class or feature"
)
_LINE_SEARCH = LineSearch(max_backtracks=20, shrink=0.5, min_ratio=1e-4)


class ScoringStep(NamedTuple):
    """One iterate of `fisher_scoring` and the step that led to it; zeros for the start.

    Attributes:
        loss: the loss with its penalties (for a squared error, up to a constant).
        gradient_norm: Euclidean norm of its gradient.
        scale: the multiple of the full step that the line search took.
        predicted_decrease: of the loss, by the quadratic model.
        actual_decrease: of the loss.
        solver_iterations: of conjugate gradients; 1 for a factorisation.
    """

    loss: float
    gradient_norm: float
    scale: float = 0.0
    predicted_decrease: float = 0.0
    actual_decrease: float = 0.0
    solver_iterations: int = 0


class FisherScoringResult(NamedTuple):
    """Report of `fisher_scoring`; the fit itself is in the model's weights.

    Attributes:
        iterations: steps taken.
        converged: whether the gradient norm is within `gtol`, and the last step does not show that there is no fit.
        loss: at the end, penalties included (for a squared error, up to a constant).
        gradient_norm: at the end.
        reason: why it ended, in words.
        solver: how the steps were solved for, and why so.
        history: a `ScoringStep` for the start and for each step.
    """

    iterations: int
    converged: bool
    loss: float
    gradient_norm: float
    reason: str
    solver: str
    history: list[ScoringStep]


@tf.autograph.experimental.do_not_convert
def fisher_scoring(
    model: keras.Model,
    loss: LossLike,
    data: Any,
    *,
    sample_weight: TensorLike | None = None,
    damping: float = 0.0,
    solver: str = "auto",
    gtol: float | None = None,
    max_iterations: int = 50,
    line_search: LineSearch = _LINE_SEARCH,
    progress: bool = True,
) -> FisherScoringResult:
    """Fits a model to a whole data set by `theta <- theta - s (F + R + damping I)^-1 g`, `s = 1` unless that fails.

    `g` is the gradient of the loss with its weight regularisers, `F` the exact Fisher over all data, `R` the Hessian of
    the regularisers. For softmax, logistic, Poisson and least-squares regression this is Fisher scoring, there the
    same as Newton's method: it converges quadratically to the (penalised) maximum-likelihood fit. For a network it is
    the Gauss-Newton method, for which `damping` is advised. The model is called in inference mode.

    >>> import keras, numpy as np
    >>> keras.utils.set_random_seed(0)
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> y = (x @ [1.0, -2.0, 0.5] + np.random.default_rng(1).logistic(size=200) > 0).astype(int)
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, dtype="float64")])
    >>> loss = keras.losses.BinaryCrossentropy(from_logits=True)
    >>> result = fisher_scoring(model, loss, (x, y), progress=False)
    >>> result.converged, result.iterations < 10
    (True, True)

    Where the Fisher is singular but the equations are consistent (the biases of a softmax, features that are always
    zero), the step is the one without a share in the null space, up to rounding.

    Where no finite maximum-likelihood fit exists (separable labels, a class that never occurs), the gradient falls
    within `gtol` all the same; `converged` is false then, and `reason` says so. That is looked for along the last step,
    in one pass over the data, for outputs that are linear in the weights. Where they are not, nothing is claimed.

    Args:
        model: a Keras model with one output, or a subclassed one that was called once. float64 is advised.
        loss: a Keras loss, its name, or a `Distribution` subclass; never guessed.
        data: arrays `(x, y)` or `(x, y, sample_weight)`, of which 2,048 examples are taken at once; or a finite
            `tf.data.Dataset` of such batches, the same each time.
        sample_weight: weights of the examples, where `data` are arrays.
        damping: a number >= 0, added to the diagonal: for networks, and for penalties with a kink such as L1.
        solver: `"dense"` forms the matrix once per step and factorises it: it needs memory for it and for a few times
            batch size times n numbers. `"cg"` takes products alone, each a pass over the data, and solves the more
            exactly the smaller the gradient. `"auto"` takes `"dense"` up to 1,000 parameters for one `Dense` layer
            of at most 64 units (frozen layers aside), up to 500 for other models, and `"cg"` beyond; ask for
            `"dense"` where that is slow for want of a penalty.
        gtol: the gradient norm at which the fit counts as converged; by default 1e-8, in single precision 1e-5.
        max_iterations: steps at most.
        line_search: how a step is shortened.
        progress: whether to show a progress bar.

    Returns:
        A `FisherScoringResult`. The weights are those of the last accepted step, also after an interruption.

    Raises:
        ValueError: if an argument does not fit, the data are not finite, or all `sample_weight` are zero; the weights
            are as they were.
        TypeError: if an argument is of the wrong type.

    References:
        A. Albert, J. A. Anderson, "On the existence of maximum likelihood estimates in logistic regression models",
        Biometrika 71 (1984).
        J. A. Nelder, R. W. M. Wedderburn, "Generalized linear models", J. R. Stat. Soc. A 135 (1972), section 1.3.
        N. T. Longford, "A fast scoring algorithm for maximum likelihood estimation in unbalanced mixed models",
        Biometrika 74 (1987).
        R. S. Dembo, S. C. Eisenstat, T. Steihaug, "Inexact Newton methods", SIAM J. Numer. Anal. 19 (1982).
    """
    _checks.check_model("model", model)
    _checks.check_flag("progress", progress)
    _checks.check_instance("line_search", line_search, LineSearch, "a `LineSearch`")
    _checks.check_number("damping", damping, minimum=0.0)
    _checks.check_number("max_iterations", max_iterations, minimum=0, integer=True)
    _checks.check_choice("solver", solver, ("auto", "dense", "cg"))
    if gtol is not None:
        _checks.check_number("gtol", gtol, minimum=0.0)
    dataset = _as_dataset(data, sample_weight)
    fit = _Fit(model, loss, dataset)
    solve, how = _solver(fit, solver, damping)
    gtol = gtol if gtol is not None else 1e-8 if fit.flat.dtype == tf.float64 else 1e-5

    theta = fit.flat.read()
    with _checks.as_value_error():
        value, gradient = fit.value_and_gradient()
    if not _checks.is_finite(value, gradient):
        raise ValueError(
            _checks.message(
                "model", "a loss or gradient that is not finite", "finite ones at the start", "Look at its weights."
            )
        )
    history = [ScoringStep(float(value), float(tf.norm(gradient)))]
    last = None
    bar = progress_bar(total=max_iterations, disable=not progress, desc="Fisher scoring", leave=False)
    try:
        while (reason := _end(history, gtol, max_iterations)) is None:
            bar.set_postfix(loss=f"{history[-1].loss:.6g}", gradient_norm=f"{history[-1].gradient_norm:.1e}")
            first = history[0].gradient_norm
            solution = solve(gradient, history[-1].gradient_norm / first)
            last = gradient, solution
            along = _Along(fit, theta, value, gradient, solution)
            report = line_search.run(along, along.move, fit.flat.variables)
            if not report.accepted:
                reason = "stopped: no multiple of the step lowers the loss, the weights of the last step are kept"
                break
            theta, (value, gradient) = fit.flat.read(), along.here()
            history.append(
                ScoringStep(
                    float(value),
                    float(tf.norm(gradient)),
                    float(report.scale),
                    float(report.predicted_decrease),
                    float(report.actual_decrease),
                    solution.iterations,
                )
            )
            bar.update()
    except BaseException:
        # An interruption, or a data set that fails, may come in the middle of a line search.
        fit.flat.assign(theta)
        raise
    finally:
        bar.close()
    converged = history[-1].gradient_norm <= gtol
    if no_finite_fit(fit.fisher, value, *(last or (gradient, solve(gradient, 1.0)))):
        converged, reason = False, _NO_FIT
        _checks.log_once(f"Fisher scoring {reason}")
    elif not converged:
        _LOGGER.warning("Fisher scoring %s; the gradient norm is %.1e", reason, history[-1].gradient_norm)
    end = history[-1]
    return FisherScoringResult(len(history) - 1, converged, end.loss, end.gradient_norm, reason, how, history)


def _end(history: list[ScoringStep], gtol: float, max_iterations: int) -> str | None:
    if history[-1].gradient_norm <= gtol:
        return "converged: the gradient norm is within gtol"
    if len(history) > max_iterations:
        return "stopped at max_iterations"
    return None


class _Fit:
    """The loss with its penalties, its derivatives and the Fisher, all at the weights of the moment."""

    def __init__(self, model: keras.Model, loss: LossLike, dataset: tf.data.Dataset):
        likelihood = likelihood_of(loss)
        with _checks.as_value_error():
            self.fisher = Fisher(model, likelihood, dataset)
            x, _, _ = unpack(next(iter(dataset)))
            # One call on a few examples shows which layers there are.
            few = Fisher(model, likelihood, tf.nest.map_structure(lambda t: t[:2], x), record_calls=True)
        refuse_activity_losses(model)
        self.flat = self.fisher.flat_parameters
        self.layer = _only_dense_layer(few)
        self.penalised = [v for v in self.flat.variables if getattr(v, "regularizer", None) is not None]
        self._penalty = tf.function(lambda: (self._penalty_value(), penalty_gradient(self.flat)), autograph=False)

    def _penalty_value(self) -> tf.Tensor:
        return tf.add_n([tf.cast(v.regularizer(v), self.flat.dtype) for v in self.penalised])

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
        if self.penalised:
            penalty, slope = self._penalty()
            value, gradient = value + penalty, gradient + slope
        return value, gradient

    def penalty_product(self, vector: tf.Tensor) -> tf.Tensor:
        """`R v`, as graph code: the derivative of the penalties' gradient along `v`."""
        if not self.penalised:
            return tf.zeros_like(vector)
        with tf.GradientTape() as tape:
            slope = tf.reduce_sum(penalty_gradient(self.flat) * vector)
        zero = tf.UnconnectedGradients.ZERO
        return self.flat.flatten(tape.gradient(slope, self.flat.tensors, unconnected_gradients=zero))

    def penalty_matrix(self) -> tf.Tensor:
        """`R` `[n, n]`, as graph code: one block per variable, for a penalty looks at one variable."""
        blocks = []
        for variable, tensor, size in zip(self.flat.variables, self.flat.tensors, self.flat.sizes, strict=True):
            block = tf.zeros([size, size], self.flat.dtype)
            if getattr(variable, "regularizer", None) is not None:
                with tf.GradientTape() as tape:
                    gradient = tf.reshape(penalty_gradient(FlatParameters([variable])), [-1])
                rows = tape.jacobian(gradient, tensor, unconnected_gradients=tf.UnconnectedGradients.ZERO)
                block = tf.reshape(rows, [size, size])
            blocks.append(tf.linalg.LinearOperatorFullMatrix(block))
        return tf.linalg.LinearOperatorBlockDiag(blocks).to_dense()

    def matrix(self) -> np.ndarray:
        """`F + R` `[n, n]`."""
        if self.layer is None:
            fisher = self.fisher.to_dense()
        else:
            fisher = self.fisher.compiled("one_layer", self._fisher_of_one_layer)()
        if self.penalised:
            fisher = fisher + self.fisher.compiled("penalty", self.penalty_matrix)()
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


class _Along:
    """The loss along one step, measured from where the step starts: the objective of the line search.

    Where the decrease that is predicted is below the rounding of the loss, it is measured by the gradients at both
    ends, `s (g_0 + g_s)^T d / 2`, which does not cancel (the error is of third order in the step).
    """

    def __init__(self, fit: _Fit, theta: tf.Tensor, loss: tf.Tensor, gradient: tf.Tensor, step: Step):
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
        """The loss and its gradient at the weights of the moment."""
        if self._here is None:
            self._here = self._fit.value_and_gradient()
        return self._here

    def loss(self) -> tf.Tensor:
        """The loss of the moment, less that at the start of the step."""
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


def _solver(fit: _Fit, solver: str, damping: float) -> tuple[Callable[[tf.Tensor, float], Step], str]:
    """What solves for a step, given the gradient and its norm relative to the first one; and a description."""
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
    curvature = _Penalised(fit).damped(damping)

    def iterated(gradient: tf.Tensor, ratio: float) -> Step:
        # A few tolerances only: each is compiled once.
        wanted = min(0.1, math.sqrt(ratio))
        rtol = next((r for r in _FORCING if r <= wanted), _FORCING[-1])
        value, info = ConjugateGradient(rtol=rtol).solve(curvature, gradient)
        return Step(value, tf.constant(info.quadratic_form, gradient.dtype), info.iterations)

    return iterated, f"conjugate gradients{why}"


class _Penalised(CurvatureOperator):
    """`F + R`, by products."""

    def __init__(self, fit: _Fit):
        super().__init__(fit.flat, name="Penalised")
        self._terms = (fit.fisher.product, fit.penalty_product)

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        return tf.add_n([term(vector) for term in self._terms])


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
    fits = call.inputs.shape.rank == 2 and layer.units <= _ONE_LAYER_UNITS
    return layer if in_order and fits else None


def _as_dataset(data: Any, sample_weight: TensorLike | None) -> tf.data.Dataset:
    """Arrays in chunks, or the data set that was given; refuses what is not finite before anything else happens."""
    if isinstance(data, tf.data.Dataset):
        if sample_weight is not None:
            raise ValueError(
                _checks.message("sample_weight", "a value together with a data set", "`(x, y, sample_weight)` in it")
            )
        if data.cardinality() != tf.data.INFINITE_CARDINALITY:
            weighs = []
            for batch in data:
                x, y, weights = unpack(batch)
                _refuse_non_finite(x, y, weights)
                weighs.append(_weighs(weights))
            _refuse_no_weight(weighs)
        return data
    x, y, weights = unpack(data)
    weights = weights if sample_weight is None else sample_weight
    if y is None:
        raise ValueError(_checks.message("data", "inputs without labels", "`(x, y)` or a `tf.data.Dataset` of it"))
    weights = None if weights is None else _checks.as_tensor("sample_weight", weights)
    _refuse_non_finite(x, y, weights)
    _refuse_no_weight([_weighs(weights)])
    parts = (x, y) if weights is None else (x, y, weights)
    sizes = {name: len(tf.nest.flatten(p)[0]) for name, p in zip(("x", "y", "sample_weight"), parts, strict=False)}
    if len(set(sizes.values())) > 1:
        raise ValueError(_checks.message("data", f"{sizes} examples", "as many labels and weights as inputs"))
    size = sizes["x"]
    whole = size // _CHUNK * _CHUNK
    rest = tf.nest.map_structure(lambda t: t[whole:], parts)
    if not whole:
        return tf.data.Dataset.from_tensors(rest)
    chunks = tf.nest.map_structure(lambda t: tf.reshape(t[:whole], [-1, _CHUNK, *t.shape[1:]]), parts)
    dataset = tf.data.Dataset.from_tensor_slices(chunks)
    return dataset.concatenate(tf.data.Dataset.from_tensors(rest)) if size > whole else dataset


def _refuse_non_finite(x: Any, y: Any, sample_weight: Any) -> None:
    for name, value in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        tensors = [tf.convert_to_tensor(t) for t in tf.nest.flatten(value) if t is not None]
        if any(tensor.shape.rank == 0 for tensor in tensors):
            raise ValueError(_checks.message(name, "a scalar", "an array [N, ...]"))
        if not _checks.is_finite(*tensors):
            raise ValueError(
                _checks.message(name, "NaN or infinite values", "finite ones", "Clean the data before the fit.")
            )


def _weighs(sample_weight: TensorLike | None) -> bool:
    """Whether any example of a batch counts; an empty one is refused elsewhere."""
    return sample_weight is None or not np.size(sample_weight) or bool(np.any(np.asarray(sample_weight) != 0))


def _refuse_no_weight(weighs: list[bool]) -> None:
    if weighs and not any(weighs):
        raise ValueError(
            _checks.message(
                "sample_weight",
                "zeros only",
                "a positive weight for at least one example",
                "Leave the weights out to count all examples alike.",
            )
        )


__all__ = ["FisherScoringResult", "ScoringStep", "fisher_scoring"]
