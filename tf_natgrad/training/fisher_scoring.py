"""Fisher scoring: natural gradient steps on a whole data set, to its maximum-likelihood or penalised fit."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_natgrad import _checks, _conditions
from tf_natgrad._progress import progress_bar
from tf_natgrad._typing import LossLike, TensorLike, plain_python
from tf_natgrad.solvers import Solver
from tf_natgrad.steps import LineSearch
from tf_natgrad.training._scoring import Along, Fit, step_solver
from tf_natgrad.training._separation import no_finite_fit
from tf_natgrad.training._whole_data import as_dataset

_LOGGER = logging.getLogger("tf_natgrad")

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


@plain_python
def fisher_scoring(
    model: keras.Model,
    loss: LossLike,
    data: Any,
    *,
    sample_weight: TensorLike | None = None,
    damping: float = 0.0,
    solver: str | Solver = "auto",
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
            `"dense"` where that is slow for want of a penalty. Or a solver of `tf_natgrad.solvers` that does
            without the Gram matrix, which takes `F + R + damping I` by products or, if dense, by unit vectors.
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
    _check_options(model, damping, solver, gtol, max_iterations, line_search, progress)
    dataset = as_dataset(data, sample_weight)
    fit = Fit(model, loss, dataset)
    solve, how = step_solver(fit, solver, damping)
    gtol = gtol if gtol is not None else 1e-8 if fit.flat.dtype == tf.float64 else 1e-5

    theta = fit.flat.read()
    with _conditions.as_value_error():
        value, gradient = fit.value_and_gradient()
    if not _conditions.is_finite(value, gradient):
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
            along = Along(fit, theta, value, gradient, solution)
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


def _check_options(
    model: Any, damping: Any, solver: Any, gtol: Any, max_iterations: Any, line_search: Any, progress: Any
) -> None:
    _checks.check_model("model", model)
    _checks.check_flag("progress", progress)
    _checks.check_instance("line_search", line_search, LineSearch, "a `LineSearch`")
    _checks.check_number("damping", damping, minimum=0.0)
    _checks.check_number("max_iterations", max_iterations, minimum=0, integer=True)
    if not isinstance(solver, Solver):
        _checks.check_choice("solver", solver, ("auto", "dense", "cg"))
    if gtol is not None:
        _checks.check_number("gtol", gtol, minimum=0.0)


def _end(history: list[ScoringStep], gtol: float, max_iterations: int) -> str | None:
    if history[-1].gradient_norm <= gtol:
        return "converged: the gradient norm is within gtol"
    if len(history) > max_iterations:
        return "stopped at max_iterations"
    return None


__all__ = ["FisherScoringResult", "ScoringStep", "fisher_scoring"]
