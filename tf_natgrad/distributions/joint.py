"""Several outputs with a loss each, combined into one likelihood by stacking their Fisher factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_natgrad import _checks, _replicas
from tf_natgrad._conditions import Checked
from tf_natgrad._typing import ModelLike, TensorLike
from tf_natgrad.distributions._base import Distribution
from tf_natgrad.distributions.categorical import CategoricalPd
from tf_natgrad.distributions.likelihood import Likelihood, Reading


class _Part(NamedTuple):
    """One output's distribution, and the weights of its positions relative to those of the examples `[N, ...]`."""

    pd: Distribution
    weights: tf.Tensor

    @property
    def positions(self) -> int:
        """T, the number of positions of one example."""
        return self.pd.parameters.shape[1:-1].num_elements()

    @property
    def rank(self) -> int:
        """`T R`, the number of columns of the part's factor."""
        return self.positions * self.pd.fisher_rank


class JointPd(Distribution):
    """Independent distributions of several outputs, combined into one distribution per example.

    The parameters are those of all parts side by side, `[N, P]`. Each part `k` counts with a weight `w_k` per position:
    the log-probability is `sum_k w_k log p_k`, and the Fisher is block diagonal with blocks `w_k S_k S_k^T`.

    Args:
        parts: distributions with parameters `[N, ..., C]`, all but N known, each with its weights `[N, ...]`.
        parameters: `[N, P]`, if other than the parameters of the parts.

    Raises:
        ValueError: if the number of positions of a part is not known statically.
    """

    def __init__(self, parts: Sequence[tuple[Distribution, tf.Tensor]], parameters: tf.Tensor | None = None):
        self._given = [_Part(*part) for part in parts]
        for part in self._given:
            if part.positions is None:
                raise ValueError(
                    _checks.message(
                        "model",
                        f"several outputs, one of shape {part.pd.parameters.shape}",
                        "outputs whose numbers of positions are known",
                        "Give the inputs a fixed length.",
                    )
                )
        if parameters is None:
            dtype = max((p.pd.parameters.dtype for p in self._given), key=lambda dtype: dtype.size)
            parameters = tf.concat([_per_example(tf.cast(p.pd.parameters, dtype)) for p in self._given], -1)
        super().__init__(parameters)

    @property
    def _parts(self) -> list[_Part]:
        """The parts as functions of `parameters`, made anew for whoever differentiates by them now."""
        own = self._split(self.parameters, [p.pd.parameters.shape[1:] for p in self._given])
        return [
            _Part(p.pd.with_parameters(z), tf.cast(p.weights, z.dtype)) for p, z in zip(self._given, own, strict=True)
        ]

    @property
    def parts(self) -> list[Distribution]:
        """The distributions of the outputs."""
        return [part.pd for part in self._parts]

    @property
    def fisher_rank(self) -> int:
        return sum(part.rank for part in self._given)

    def with_parameters(self, parameters: tf.Tensor) -> JointPd:
        return JointPd(self._given, parameters)

    def log_prob(self, value: TensorLike) -> tf.Tensor:
        """Computes `sum_k w_k log p_k`, `[N]`, of labels as `pack` returns them."""
        terms = [p.pd.log_prob(y) for p, y in zip(self._parts, self._unpacked(value), strict=True)]
        return self._weighted_sum(terms)

    def kl(self, other: JointPd) -> tf.Tensor:
        self._same_kind(other, JointPd)
        return self._weighted_sum([p.pd.kl(q.pd) for p, q in zip(self._parts, other._parts, strict=True)])

    def mode(self) -> tf.Tensor:
        """Returns the most probable labels, in the form that `pack` returns."""
        return self.pack([part.pd.mode() for part in self._parts])

    def sample(self, seed: TensorLike) -> tf.Tensor:
        _checks.check_words("seed", seed)
        seeds = [tf.random.experimental.stateless_fold_in(seed, k) for k in range(len(self._parts))]
        return self.pack([part.pd.sample(s) for part, s in zip(self._parts, seeds, strict=True)])

    def score_factor(self, value: TensorLike) -> tf.Tensor:
        labels = self._unpacked(value)
        return self._columns([self._root(p) * p.pd.score_factor(y) for p, y in zip(self._parts, labels, strict=True)])

    def score_of_drawn(self, value: TensorLike) -> tf.Tensor:
        # The outer product has the weights once, where that of two gradients would have them squared.
        labels = self._unpacked(value)
        return self.fisher_factor(
            self._columns([p.pd.score_factor(y) for p, y in zip(self._parts, labels, strict=True)])
        )

    def fisher_factor(self, vector: TensorLike) -> tf.Tensor:
        vector = self._operand(vector, self.fisher_rank)
        pieces = self._split(vector, [[*p.pd.parameters.shape[1:-1], p.pd.fisher_rank] for p in self._parts])
        return self._columns([self._root(p) * p.pd.fisher_factor(v) for p, v in zip(self._parts, pieces, strict=True)])

    def fisher_factor_transpose(self, vector: TensorLike) -> tf.Tensor:
        vector = self._operand(vector, self.parameters.shape[-1])
        pieces = self._split(vector, [p.pd.parameters.shape[1:] for p in self._parts])
        return self._columns(
            [p.pd.fisher_factor_transpose(self._root(p) * v) for p, v in zip(self._parts, pieces, strict=True)]
        )

    def fisher_factor_columns(self) -> tf.Tensor:
        rows, before, total = [], 0, self.parameters.shape[-1]
        for part in self._parts:
            own = _each_position(part.pd.fisher_factor_columns() * self._root(part))
            size = own.shape[-1]
            rows.append(tf.pad(own, [[0, 0], [0, 0], [before, total - before - size]]))
            before += size
        return tf.concat(rows, 0)

    def pack(self, labels: Sequence[tf.Tensor]) -> tf.Tensor:
        """Concatenates the labels of all parts.

        Args:
            labels: for each part, as its distribution takes them.

        Returns:
            `[N, E]` in the dtype of the parameters, class indices as one-hot rows.
        """
        pieces = []
        for part, y in zip(self._parts, labels, strict=True):
            z = part.pd.parameters
            if isinstance(part.pd, CategoricalPd) and y.shape.rank == z.shape.rank - 1:
                y = tf.one_hot(tf.cast(y, tf.int32), z.shape[-1], dtype=z.dtype)
            pieces.append(tf.reshape(tf.cast(y, self.parameters.dtype), [-1, _labels_of(part.pd)]))
        return tf.concat(pieces, -1)

    def _unpacked(self, value: TensorLike) -> list[tf.Tensor]:
        """For each part its labels, out of what `pack` returned."""
        return self._split(self._value(value), [[*p.pd.parameters.shape[1:-1], _event(p.pd)] for p in self._parts])

    def _split(self, vector: tf.Tensor, shapes: Sequence[Any]) -> list[tf.Tensor]:
        """`[N, sum of sizes]` in pieces `[N, *shape]`."""
        sizes = [tf.TensorShape(shape).num_elements() for shape in shapes]
        pieces = tf.split(vector, sizes, axis=-1)
        return [tf.reshape(v, [-1, *shape]) for v, shape in zip(pieces, shapes, strict=True)]

    @staticmethod
    def _root(part: _Part) -> tf.Tensor:
        return tf.sqrt(part.weights)[..., None]

    @staticmethod
    def _columns(pieces: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.concat([_per_example(piece) for piece in pieces], -1)

    def _weighted_sum(self, terms: Sequence[tf.Tensor]) -> tf.Tensor:
        weighted = [p.weights * tf.cast(t, p.weights.dtype) for p, t in zip(self._parts, terms, strict=True)]
        return tf.add_n([tf.reduce_sum(_per_example(t[..., None]), -1) for t in weighted])


def _event(pd: Distribution) -> int:
    """The numbers that one label has."""
    if isinstance(pd, CategoricalPd):
        return pd.parameters.shape[-1]
    if pd.event_size is None:
        raise ValueError(
            _checks.message(
                "loss",
                f"{type(pd).__name__} without an `event_size`, among several outputs",
                "distributions that say how many numbers a label has",
                "Define the property `event_size`.",
            )
        )
    return pd.event_size


def _labels_of(pd: Distribution) -> int:
    """The numbers that the labels of one example have."""
    return pd.parameters.shape[1:-1].num_elements() * _event(pd)


def _per_example(tensor: tf.Tensor) -> tf.Tensor:
    """`[N, T..., C] -> [N, T C]`."""
    return tf.reshape(tensor, [-1, tensor.shape[1:].num_elements()])


def _each_position(columns: tf.Tensor) -> tf.Tensor:
    """`[R, N, T..., C] -> [T R, N, T C]`: each column looks at one position and is zero elsewhere."""
    rank, outputs = columns.shape[0], columns.shape[-1]
    positions = columns.shape[2:-1].num_elements()
    flat = tf.reshape(columns, [1, rank, -1, positions, outputs])
    selected = flat * tf.reshape(tf.eye(positions, dtype=columns.dtype), [positions, 1, 1, positions, 1])
    return tf.reshape(selected, [positions * rank, -1, positions * outputs])


@dataclasses.dataclass(frozen=True)
class JointLikelihood(Likelihood):
    """Losses of several outputs, each with a loss weight, as one likelihood.

    Attributes:
        parts: for each output of the model its likelihood and loss weight, or `None` for an output without a loss.
        names: the names of the outputs, or `None` if the outputs are identified by their order.
        in_order: whether the parts are in the order of the model's outputs, so that a list can be matched with them.
    """

    parts: tuple[tuple[Likelihood, float] | None, ...] = ()
    names: tuple[str, ...] | None = None
    in_order: bool = False

    def for_model(self, model: ModelLike) -> JointLikelihood:
        known = tuple(getattr(model, "output_names", None) or ())
        if self.names is None:
            return dataclasses.replace(self, names=known if len(known) == len(self.parts) else None, in_order=True)
        if set(known) != set(self.names):
            return self
        by_name = dict(zip(self.names, self.parts, strict=True))
        return dataclasses.replace(self, names=known, parts=tuple(by_name[name] for name in known), in_order=True)

    def distribution(self, outputs: Any) -> JointPd:
        """Makes the joint distribution of a batch without sample weights.

        Args:
            outputs: a list or dictionary of tensors `[N, ..., C]`.

        Returns:
            A `JointPd`.
        """
        return self.read(outputs, None).pd

    def parameters(self, outputs: Any) -> tf.Tensor:
        """Returns the parameters of all parts side by side, `[N, P]`.

        Args:
            outputs: a list or dictionary of tensors `[N, ..., C]`.

        Returns:
            A tensor.
        """
        pairs = zip(self.parts, self._flat("model", outputs), strict=True)
        pds = [part[0].distribution(z) for part, z in pairs if part is not None]
        return JointPd([(pd, tf.ones_like(pd.parameters[..., 0])) for pd in pds]).parameters

    def read(self, outputs: Any, sample_weight: Any) -> Reading:
        alone = not isinstance(sample_weight, dict | list | tuple)
        given = [sample_weight] * len(self.parts) if alone else self._flat("sample_weight", sample_weight)
        used = [
            (part[0].read(z, w), part[1])
            for part, z, w in zip(self.parts, self._flat("model", outputs), given, strict=True)
            if part is not None
        ]
        examples = tf.shape(used[0][0].weights)[0]

        def count(dtype: tf.DType) -> tf.Tensor:
            return tf.ones([], dtype) if self.reduction == "sum" else _replicas.total(tf.cast(examples, dtype))

        # Examples count alike; what else the outputs and the sample weights count is the parts' own.
        pd = JointPd([(r.pd, weight * r.weights * count(r.weights.dtype)) for r, weight in used])
        dtype = pd.parameters.dtype
        weights = tf.fill([examples], tf.math.divide_no_nan(tf.ones([], dtype), count(dtype)))
        weights.set_shape(pd.parameters.shape[:1])
        return Reading(pd, weights, [condition for r, _ in used for condition in r.conditions])

    def checked_targets(self, y: Any, pd: Distribution) -> Checked:
        _checks.check_instance("pd", pd, JointPd, "a `JointPd`")
        labels = zip(self.parts, self._flat("y", y), strict=True)
        used = [(part[0], label) for part, label in labels if part is not None]
        checked = [likelihood.checked_targets(label, p) for (likelihood, label), p in zip(used, pd.parts, strict=True)]
        return Checked(pd.pack([c.value for c in checked]), [condition for c in checked for condition in c.conditions])

    def checked_weights(self, outputs: Any, pd: Distribution, sample_weight: Any) -> Checked:
        raise ValueError(
            _checks.message(
                "sample_weight",
                "weights of their own for the gradient of several outputs",
                "those of the matrix",
                "Pass them with the data.",
            )
        )

    def _flat(self, argument: str, value: Any) -> list[Any]:
        """One entry per part, out of a list in the order of the outputs, or a dictionary by their names."""
        received, expected = _checks.described(value), f"a list or dictionary of {len(self.parts)}, one for each loss"
        if argument == "model" and not isinstance(value, dict | list | tuple):
            argument, received, expected = "loss", f"{len(self.parts)} in a list or dictionary", "one, for one output"
        if isinstance(value, dict) and self.names is not None:
            wanted = [name for name, part in zip(self.names, self.parts, strict=True) if part is not None]
            if not set(wanted) <= set(value):
                received, expected = f"a dictionary with the keys {sorted(value)}", f"the keys {sorted(wanted)}"
            else:
                return [value.get(name) for name in self.names]
        elif isinstance(value, list | tuple) and (self.in_order or self.names is None):
            if len(value) == len(self.parts):
                return list(value)
            received = f"{len(value)} of them"
        raise ValueError(_checks.message(argument, received, expected, "Give one loss for each output of the model."))


__all__ = ["JointLikelihood", "JointPd"]
