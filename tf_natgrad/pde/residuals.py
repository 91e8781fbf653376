"""A network and the residuals of its equations as one Keras model, whose outputs are the residuals."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad.layers.rows import rows
from tf_natgrad.training import NaturalGradientMixin

# Of a network and points `[N, d]`, to residuals `[N, C]`.
Residual = Callable[[keras.Model, tf.Tensor], tf.Tensor]
# The coefficients that were called since a residual model began a term.
_called: contextvars.ContextVar[list[keras.layers.Layer] | None] = contextvars.ContextVar("called", default=None)


@keras.saving.register_keras_serializable(package="tf_natgrad")
class Coefficient(keras.layers.Layer):
    """An unknown number of an equation, trained beside the network: an inverse problem.

    It is called on the points and repeats its number for each of them, so that the natural gradient takes its column of
    the Jacobian like those of all weights.

    >>> import keras, tensorflow as tf
    >>> Coefficient(0.5)(tf.zeros([2, 3])).numpy().tolist()
    [[0.5], [0.5]]

    Args:
        initial: the number at the start, in the units of the equation.
        **kwargs: what every Keras layer takes.

    Raises:
        TypeError: if `initial` is no number.
        ValueError: if it is not finite.
    """

    def __init__(self, initial: float = 0.0, **kwargs: Any):
        _checks.check_number("initial", initial)
        super().__init__(**kwargs)
        self.initial = float(initial)
        self.number = self.add_weight(shape=(), initializer="zeros", name="number")
        # Keras's `Constant` would round to float32.
        self.number.assign(self.initial)
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Repeats the number.

        Args:
            inputs: the points, `[N, d]`.

        Returns:
            `[N, 1]`.
        """
        called = _called.get()
        if called is not None:
            called.append(self)
        return keras.ops.zeros_like(inputs[:, :1]) + self.number

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns `[N, 1]`.

        Args:
            input_shape: `[N, d]`.
        """
        return (input_shape[0], 1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {"initial": self.initial}


_FLOAT64 = (
    "Residuals of differential equations are trained here in single precision, in which their loss cannot fall far. "
    'Call `keras.config.set_floatx("float64")` and `keras.config.set_dtype_policy("float64")` before the network is '
    "made."
)


# Not `NaturalGradientModel`: Keras makes a Functional class of that for good once it is given inputs and outputs.
class ResidualModel(NaturalGradientMixin, keras.Model):
    """A network with the residuals of its equations: `fit` makes `sum_k weight_k mean(residual_k^2)` small.

    Each term (the equation inside, boundary and initial values, data) has its own points. A term is a function of the
    network and the points, made of `laplacian`, `derivatives` and the network itself; its points are all that it sees.
    Compile with the loss `"mse"`, and fit on `batches(points)`, a data set of full batches.

    >>> import keras, numpy as np, tensorflow as tf
    >>> from tf_natgrad.pde import laplacian, natural_gradient
    >>> network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    >>> model = ResidualModel(
    ...     network,
    ...     {"inside": lambda u, x: laplacian(u, x)[2] + tf.sin(x), "boundary": lambda u, x: u(x)},
    ...     weights={"boundary": 10.0},
    ... )
    >>> model.compile(natural_gradient(damping=0.1), "mse")
    >>> points = {"inside": np.linspace(0.1, 3.0, 20)[:, None], "boundary": np.array([[0.0], [np.pi]])}
    >>> history = model.fit(model.batches(points), epochs=3, verbose=0)
    >>> history.history["loss"][-1] < history.history["loss"][0]
    True

    Args:
        network: a Keras model from points `[N, d]` to `[N, C]`, which is what to save and to evaluate afterwards.
        terms: by name, functions of `(network, x)` that return `[N, residuals]`.
        weights: by name, positive numbers; 1 for a term without.
        coefficients: `Coefficient`s and other layers that the terms call beside the network.
        residuals: the number of residuals at each point, the same for all terms.
        **kwargs: what every Keras model takes.

    Raises:
        ValueError: if there are no terms, or a weight belongs to none or is not positive.
        TypeError: if an argument is of the wrong type.
    """

    def __init__(
        self,
        network: keras.Model,
        terms: Mapping[str, Residual],
        weights: Mapping[str, float] | None = None,
        coefficients: list[keras.layers.Layer] | tuple[keras.layers.Layer, ...] = (),
        residuals: int = 1,
        **kwargs: Any,
    ):
        _checks.check_instance("network", network, keras.Model, "a Keras model")
        terms = _functions(terms)
        _checks.check_number("residuals", residuals, minimum=1, integer=True)
        for layer in _checks.as_list("coefficients", coefficients, "a list of Keras layers"):
            _checks.check_instance("coefficients", layer, keras.layers.Layer, "a list of Keras layers")
        weights = _weights(weights, terms)
        # Else Keras would round the points to the precision of this model.
        super().__init__(**{"dtype": _precision(network)} | kwargs)
        self.network, self.coefficients = network, list(coefficients)
        self.residuals, self.term_names = residuals, tuple(terms)
        self.term_weights, self.terms = weights, tuple(terms.values())
        self._count_as_built()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Stock Keras's; the state of `fisher="kfac"` and the like is made if all weights exist.

        Args:
            *args: as Keras takes them.
            **kwargs: likewise.
        """
        self._count_as_built()
        super().compile(*args, **kwargs)

    def _count_as_built(self) -> None:
        """All weights are those of the network and the coefficients: where they exist, no call is needed first."""
        if all(layer.built for layer in (self.network, *self.coefficients)):
            self.built = True

    def call(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Computes the residuals of all terms, each on its own points.

        Args:
            inputs: by term, its points `[N_k, d]`; see `batches`.

        Returns:
            The residuals of one term after the other, in the order of `term_names`: `[N, residuals]`, `N` the sum of
            the `N_k`.

        Raises:
            ValueError: if the points of a term are missing, it returns another shape, or it calls a `Coefficient` that
                is not among `coefficients`.
            TypeError: if a term returns no tensor.
        """
        if not isinstance(inputs, Mapping) or set(inputs) != set(self.term_names):
            came = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else _checks.described(inputs)
            raise ValueError(_checks.message("inputs", came, f"points for each of {', '.join(self.term_names)}"))
        points = [inputs[name] for name in self.term_names]
        counts = [tf.shape(x)[0] if x.shape[0] is None else x.shape[0] for x in points]
        found, start = [], 0
        for name, residual, x, count in zip(self.term_names, self.terms, points, counts, strict=True):
            # The layers see these examples of the batch, and the Gram matrix has blocks for them.
            with rows(start, start + count, sum(counts)), _calls_noted() as called:
                values = residual(self.network, x)
            self._check_coefficients(name, called)
            self._check_residuals(name, values, x)
            found.append(values)
            start += count
        return tf.concat(found, 0)

    def _check_coefficients(self, name: str, called: list[keras.layers.Layer]) -> None:
        if not called:
            return
        known = {id(layer) for layer in _keras.all_layers(self)}
        missing = [layer.name for layer in called if id(layer) not in known]
        if missing:
            came = f"none that is {missing[0]!r}, which the term {name!r} calls: it would not be trained"
            expected = "all coefficients that the terms call"
            raise ValueError(_checks.message("coefficients", came, expected, "For one `k` pass `coefficients=[k]`."))

    def _check_residuals(self, name: str, values: Any, x: tf.Tensor) -> None:
        expected = f"residuals [N, {self.residuals}]"
        if not tf.is_tensor(values):
            kind = f"a tuple of {len(values)}" if isinstance(values, tuple) else f"a {type(values).__name__}"
            remedy = "`laplacian` returns `(u, du, laplacian)`, and `derivatives` a dictionary: take one of them."
            raise TypeError(_checks.message("terms", f"{name!r}, which returns {kind}", expected, remedy))
        shape = values.shape
        if shape.rank != 2 or shape[-1] != self.residuals or shape[0] not in (None, x.shape[0]):
            raise ValueError(_checks.message("terms", f"{name!r}, which returns shape {shape}", expected))

    def batches(self, points: Mapping[str, Any] | Callable[[], Mapping[str, Any]], repeat: int = 1) -> tf.data.Dataset:
        """Makes a data set of full batches of `points`, for `fit`, `evaluate` and the operators.

        Args:
            points: by term, arrays `[N_k, d]` (`d` may differ between terms); or a function without arguments that
                draws them, called for each batch (of the same sizes each time).
            repeat: the number of batches in an epoch. Keras does some work for each epoch: a larger number saves it.

        Returns:
            Batches `(points by term, zeros [N, residuals], sample weights [N])`, `N` the points of all terms, with
            which `"mse"` is the weighted sum of the terms.

        Raises:
            ValueError: if there are no points for a term, or they do not fit.
            TypeError: if `points` is neither.
        """
        _checks.check_number("repeat", repeat, minimum=1, integer=True)
        if not callable(points):
            return tf.data.Dataset.from_tensors(self._packed(points)).repeat(repeat)
        first = self._packed(points())
        signature = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), first)

        def drawn():
            for _ in range(repeat):
                yield self._packed(points())

        return tf.data.Dataset.from_generator(drawn, output_signature=signature)

    def _packed(self, points: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """All points in one batch, by term, with zeros as labels and the weights of their terms."""
        expected = f"arrays [N, d] for each of {', '.join(self.term_names)}"
        if not isinstance(points, Mapping):
            raise TypeError(_checks.message("points", _checks.described(points), expected))
        if set(points) != set(self.term_names):
            raise ValueError(_checks.message("points", f"those of {', '.join(map(str, points)) or 'none'}", expected))
        dtype = _precision(self.network)
        if {dtype, keras.config.floatx()} != {"float64"}:
            _checks.log_once(_FLOAT64, "residuals in single precision")
        parts = [_checks.as_array("points", points[name], expected).astype(dtype) for name in self.term_names]
        if any(p.ndim != 2 or not p.size for p in parts):
            raise ValueError(_checks.message("points", f"shapes {[p.shape for p in parts]}", expected))
        if not all(np.isfinite(p).all() for p in parts):
            raise ValueError(_checks.message("points", "NaN or infinite numbers", expected))
        total = sum(map(len, parts))
        weights = [np.full(len(p), w * total / len(p), dtype) for p, w in zip(parts, self.term_weights, strict=True)]
        inputs = {name: tf.constant(part) for name, part in zip(self.term_names, parts, strict=True)}
        return inputs, tf.zeros([total, self.residuals], dtype), tf.constant(np.concatenate(weights))


@contextlib.contextmanager
def _calls_noted() -> Iterator[list[keras.layers.Layer]]:
    """Lists the coefficients that are called meanwhile."""
    called: list[keras.layers.Layer] = []
    token = _called.set(called)
    try:
        yield called
    finally:
        _called.reset(token)


def _precision(network: keras.Model) -> str:
    """The dtype of points whose residuals are those of a network's outputs."""
    outputs = getattr(network, "outputs", None)
    dtype = keras.backend.standardize_dtype(outputs[0].dtype) if outputs else network.variable_dtype
    # Points in half precision would not be those that were given.
    return dtype if dtype in ("float32", "float64") else network.variable_dtype


def _functions(terms: Any) -> dict[str, Residual]:
    expected = "a dictionary from names to functions of (network, x)"
    if not isinstance(terms, Mapping):
        raise TypeError(_checks.message("terms", _checks.described(terms), expected))
    for name, function in terms.items():
        if not isinstance(name, str) or not callable(function):
            raise TypeError(_checks.message("terms", f"{name!r}: {_checks.described(function)}", expected))
    if not terms:
        raise ValueError(_checks.message("terms", "an empty dictionary", expected))
    return dict(terms)


def _weights(weights: Any, terms: dict[str, Residual]) -> tuple[float, ...]:
    expected = f"a dictionary from some of {', '.join(terms)} to positive numbers"
    given = {} if weights is None else weights
    if not isinstance(given, Mapping):
        raise TypeError(_checks.message("weights", _checks.described(weights), expected))
    unknown = [name for name in given if name not in terms]
    if unknown:
        raise ValueError(_checks.message("weights", f"{unknown[0]!r} in it", expected))
    for value in given.values():
        _checks.check_number("weights", value, minimum=0.0, exclusive=True)
    return tuple(float(given.get(name, 1.0)) for name in terms)


__all__ = ["Coefficient", "ResidualModel"]
