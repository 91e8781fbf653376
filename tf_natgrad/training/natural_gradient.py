"""The natural gradient of one batch, for a custom training loop; compiled once, and kept with the model."""

from __future__ import annotations

import collections
import dataclasses
import json
import types
from collections.abc import Callable, Hashable
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _conditions, _keras, _replicas
from tf_natgrad._typing import LossLike, TensorLike, plain_python
from tf_natgrad.distributions import Distribution, Likelihood, likelihood_of
from tf_natgrad.distributions.joint import JointLikelihood
from tf_natgrad.errors import GramMismatchError, NonFiniteError
from tf_natgrad.operators._inputs import as_inputs, as_labels
from tf_natgrad.solvers import Auto, Planned, Solver, get
from tf_natgrad.solvers._base import readable
from tf_natgrad.steps import restore
from tf_natgrad.training.direction import DirectionSettings, batch_direction
from tf_natgrad.training.planning import needs_plan, plan_solver, shapes_of, without_gram

# Compiled functions, and choices of a solver, that are kept for one model.
_KEPT = 32


@plain_python
def natural_gradient(
    model: keras.Model,
    loss: LossLike,
    x: Any,
    y: TensorLike,
    sample_weight: TensorLike | None = None,
    damping: float = 0.1,
    solver: str | Solver = "auto",
    training: bool = True,
) -> tuple[tf.Tensor, Any]:
    """Computes the natural gradient `(F + damping I)^-1 g` of one batch, for a custom training loop.

    `g` is the gradient of the loss with its weight regularisers, and `F` the exact Fisher of the batch plus the
    curvature of the regularisers. The computation is compiled once per shape of the batch; the graphs are kept with the
    model.

    >>> import keras, numpy as np
    >>> from tf_natgrad.parameters import FlatParameters
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> x, y = np.ones((4, 3), "float32"), np.array([0, 1, 1, 1])
    >>> direction, info = natural_gradient(model, loss, x, y, damping=0.1)
    >>> flat = FlatParameters(model.trainable_variables)
    >>> flat.assign(flat.read() - 0.7 * direction)
    >>> info.solver
    'Gram'

    Args:
        model: a Keras model with one output; a subclassed one must have been called once.
        loss: a Keras loss, its name, or a `Distribution` subclass. An unknown loss is an error.
        x: the inputs of the batch.
        y: its labels, as the loss takes them.
        sample_weight: non-negative sample weights, or `None`.
        damping: a number >= 0, added to the diagonal of the Fisher; 0 gives the pseudo-inverse.
        solver: a solver of `tf_natgrad.solvers`, or `"auto"`, `"gram"`, `"cg"`, `"svd"`, `"cholesky"`.
        training: the mode in which the model is called. With `True`, as in `fit`, BatchNorm statistics are updated.

    Returns:
        `(direction, info)`: `[n]` in the layout of `FlatParameters(model.trainable_variables)`, to be subtracted from
        the weights; and the solver's report. The weights do not change.

    Raises:
        ValueError: if an argument does not fit, or the result is not finite.
        TypeError: if an argument is of the wrong type.

    References:
        S. Amari, "Natural gradient works efficiently in learning", Neural Computation 10 (1998), theorem 1.
    """
    _checks.check_model("model", model)
    _checks.check_flag("training", training)
    solver = get(solver)
    known = not (tf.is_tensor(damping) or hasattr(damping, "assign"))
    if not known:
        _checks.check_scalar("damping", damping)
    if known or tf.executing_eagerly():
        value = damping if known else float(damping)
        _checks.check_number("damping", value, minimum=0.0, remedy="Pass `damping=0.1`, or 0 for the pseudo-inverse.")
    if not tf.executing_eagerly():
        settings = DirectionSettings(solver, damping, training)
        result = batch_direction(model, loss, (x, y, sample_weight), settings)
        return result.value, result.info
    if _replicas.several():
        received, expected = f"eager code of one of {_replicas.count()} replicas", "a graph of all of them"
        remedy = "Put `strategy.run` into a `tf.function`."
        raise ValueError(_checks.message("natural_gradient", received, expected, remedy))
    likelihood = likelihood_of(loss).for_model(model)
    several = isinstance(likelihood, JointLikelihood)
    if y is None:
        raise TypeError(_checks.message("y", "None", "labels"))
    x, y = as_inputs(x), as_labels("y", y, several)
    sample_weight = as_labels("sample_weight", sample_weight, several)
    is_zero = not tf.is_tensor(damping) and not hasattr(damping, "assign") and damping == 0
    kept = _keras.kept_with(model, "_tf_natgrad_directions", _Kept)
    # A batch that is refused leaves no statistics behind.
    statistics = model.non_trainable_variables
    before = [tf.identity(v.value) for v in statistics]
    try:
        call = _Call(model, likelihood, solver, training, is_zero)
        with _conditions.as_value_error():
            value, info = kept.direction(call, (x, y, sample_weight), tf.constant(float(damping), tf.float64))
        finite = bool(_conditions.is_finite(value))
    except ValueError:
        restore(statistics, before)
        raise
    if not finite:
        restore(statistics, before)
        raise NonFiniteError(
            _checks.message(
                "x, y",
                "a batch whose natural gradient is not finite",
                "finite losses, gradients and curvature",
                "Look for overflow in the model's outputs, or raise `damping`.",
            )
        )
    return value, readable(info)


@dataclasses.dataclass(frozen=True)
class _Call:
    """What a compiled direction depends on, beside the shapes of the batch."""

    model: keras.Model
    likelihood: Likelihood
    solver: Solver
    training: bool
    undamped: bool

    def key(self) -> Hashable:
        """Equal for calls that compute the same, whichever objects say so."""
        variables = tuple(id(v) for v in self.model.trainable_variables)
        return _key_of_likelihood(self.likelihood), _key_of(self.solver), self.training, self.undamped, variables

    def compiled(self) -> Callable:
        """The direction and the report, as a graph."""

        @tf.function(autograph=False)
        def direction(x, y, sample_weight, damping):
            damping = 0 if self.undamped else damping
            settings = DirectionSettings(self.solver, damping, self.training)
            result = batch_direction(self.model, self.likelihood, (x, y, sample_weight), settings)
            return result.value, result.info

        return direction


class _Kept:
    """The compiled directions of one model and the solvers chosen for its batches: the last few of each."""

    def __init__(self):
        self._functions: collections.OrderedDict[Hashable, tuple[_Call, Callable]] = collections.OrderedDict()
        self._plans: collections.OrderedDict[Hashable, Planned] = collections.OrderedDict()

    def direction(self, call: _Call, data: tuple, damping: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """The direction of a batch `(x, y, sample_weight)`, by the solver that was chosen for its shapes.

        A choice that turns out to be wrong on this batch is made anew, where it is `"auto"`'s to make.
        """
        if not needs_plan(call.solver):
            return self._run(call, data, damping)
        key = call.key(), shapes_of(data)
        batch = data if data[2] is not None else data[:2]
        planned = self._plans.get(key)
        if planned is None:
            planned, checked = plan_solver(
                call.model,
                call.likelihood,
                batch,
                solver=call.solver,
                training=call.training,
                damping=0.0 if call.undamped else 1.0,
            )
            if checked:
                _keep(self._plans, key, planned)
        try:
            with _conditions.as_value_error():
                return self._run(call, data, damping, planned)
        except GramMismatchError as error:
            if not isinstance(call.solver, Auto):
                raise
            size = sum(v.shape.num_elements() for v in call.model.trainable_variables)
            self._plans[key] = without_gram(call.solver, size, error)
            return self._run(call, data, damping, self._plans[key])

    def _run(
        self, call: _Call, data: tuple, damping: tf.Tensor, planned: Planned | None = None
    ) -> tuple[tf.Tensor, Any]:
        if planned is not None:
            # The reason names sizes, which are no reason for another graph.
            call = dataclasses.replace(call, solver=dataclasses.replace(planned, why=""))
        key = call.key()
        if key not in self._functions:
            # The call is kept with its function: the key holds ids.
            _keep(self._functions, key, (call, call.compiled()))
        self._functions.move_to_end(key)
        value, info = self._functions[key][1](*data, damping)
        return value, info if planned is None or info.why else info._replace(why=planned.why)


def _keep(table: collections.OrderedDict, key: Hashable, value: Any) -> None:
    table[key] = value
    if len(table) > _KEPT:
        table.popitem(last=False)
        _checks.log_once(
            f"`natural_gradient` keeps the last {_KEPT} graphs of a model, and more are asked for: each further one is "
            "traced anew. Pass the same `loss` and `solver` at each call, and batches of few different shapes."
        )


def _key_of_likelihood(likelihood: Likelihood) -> Hashable:
    """Equal for likelihoods of equal losses."""
    if not isinstance(likelihood, JointLikelihood):
        return _key_of_loss(likelihood.loss)
    parts = [None if part is None else (_key_of_likelihood(part[0]), part[1]) for part in likelihood.parts]
    return tuple(parts), likelihood.names, likelihood.in_order


def _key_of_loss(loss: LossLike) -> Hashable:
    """Equal for losses of one class and configuration."""
    if not isinstance(loss, keras.losses.Loss):
        return loss
    config = {k: v for k, v in loss.get_config().items() if k != "name"}
    own = getattr(loss, "distribution", None)
    return (
        type(loss),
        own if isinstance(own, type) and issubclass(own, Distribution) else None,
        json.dumps(config, sort_keys=True, default=repr),
    )


def _key_of(value: Any) -> Hashable:
    """Equal for solvers of one configuration, and for functions that one line of a program makes again and again."""
    if dataclasses.is_dataclass(value):
        return type(value), *(_key_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, types.FunctionType):
        cells = tuple(id(cell.cell_contents) for cell in value.__closure__ or ())
        defaults = tuple(map(id, (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())))
        return value.__code__, cells, defaults, id(value.__globals__)
    return value


__all__ = ["natural_gradient"]
