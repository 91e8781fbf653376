"""The interface of a layer rule, which computes the share of one layer in the Gram matrix without the Jacobian."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import keras
import tensorflow as tf

from tf_natgrad import _checks, _replicas
from tf_natgrad.layers._matrix import MatrixShape
from tf_natgrad.layers._products import products
from tf_natgrad.layers.rows import Rows
from tf_natgrad.layers.work import Work, gradients_of_weights, positions_of
from tf_natgrad.parameters import FlatParameters

T = TypeVar("T")
# A positive scalar for each variable, by the id of the variable.
Scales = Mapping[int, tf.Tensor]


@dataclasses.dataclass
class LayerCall:
    """One call of one layer, as recorded by `capture`.

    Attributes:
        layer: the layer.
        args: positional arguments of `layer.call`, in the layer's compute dtype; of a call on some of the examples,
            padded to all of them (see `rows`).
        kwargs: keyword arguments of `layer.call`.
        output: the tensor at which the rule takes gradients: the pre-activation, or the layer's output.
        values: the trainable variables' values at the time of the call.
        refusal: the reason why no rule applies to this call, or `None`.
        function: what made the output of the arguments, where that is not the layer itself.
        biased: the number of positions, from the first, that the bias acts on; `None` for all of them.
        rows: the examples that the call saw, which are those of `output`; `None` for all of them. The other examples
            have some values in `args`, weight zero, and gradients of zero, see `padded`.
    """

    layer: keras.layers.Layer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: tf.Tensor | None = None
    values: list[tf.Tensor] = dataclasses.field(default_factory=list)
    refusal: str | None = None
    function: Callable[..., tf.Tensor] | None = None
    biased: int | None = None
    rows: Rows | None = None

    @property
    def inputs(self) -> tf.Tensor:
        """The first argument."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def padded(self, gradients: tf.Tensor) -> tf.Tensor:
        """Adds zeros for the examples that the call did not see.

        Args:
            gradients: at `output`, `[Q, rows, ...]`.

        Returns:
            `[Q, N, ...]`.
        """
        return gradients if self.rows is None else self.rows.padded(gradients, 1)

    def of_all_replicas(self) -> LayerCall:
        """Returns the call with the arguments of all replicas, for `Rule.gram`; `output` stays that of this one."""

        def gathered(a: Any) -> Any:
            return _replicas.gathered(a) if tf.is_tensor(a) and a.shape.rank else a

        args, kwargs = tf.nest.map_structure(gathered, (self.args, self.kwargs))
        # The gradients at examples that it did not see are zeros by now.
        return dataclasses.replace(self, args=args, kwargs=kwargs, rows=None)


# Variables with a tensor of the same shape each.
Squares = list[tuple[keras.Variable, tf.Tensor]]


class Rule(abc.ABC):
    """Computes the share of layers of some classes in `K = A A^T`.

    With `d` the gradients of `Q` output columns of each of `N` examples with respect to a call's output
    (`[Q, N, ...]`, column q of example i in `d[q, i]`), and `G[q, i]` the resulting gradient of the layer's
    variables, the layer's share is `K[(q, i), (r, j)] = <G[q, i], G[r, j]>`, `[Q N, Q N]`, rows with q major.
    """

    # Whether `LayerCall.output` is what the layer's `activation` is given, rather than the layer's output.
    pre_activation: bool = False

    def supports(self, layer: keras.layers.Layer) -> bool:
        """Returns whether this rule is right for this instance of the layer class."""
        return True

    def matrix_shape(self, layer: keras.layers.Layer) -> MatrixShape | None:
        """Returns the shape of the layer's variables as one matrix that acts on its inputs, or `None`."""
        del layer
        return None

    def matrix_inputs(self, calls: Sequence[LayerCall], dtype: tf.DType) -> tf.Tensor:
        """Computes what that matrix acts on, for rules whose `matrix_shape` is not `None`.

        Args:
            calls: every call of the layer within one forward pass of the model.
            dtype: in which sums are taken.

        Returns:
            `h`, `[N, T, d_in]`, the positions of all calls, with a 1 at the end where there is a bias; or, of a table,
            row numbers `[N, T]`.
        """
        raise NotImplementedError

    def position_axes(self, call: LayerCall) -> list[int]:
        """Returns the axes of a call's output that are positions: all but the batch and the units."""
        return list(range(1, call.output.shape.rank - 1))

    def matrix_gradients(
        self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType
    ) -> tf.Tensor:
        """Computes the gradients at the outputs of that matrix.

        Args:
            calls: every call of the layer within one forward pass of the model.
            gradients: for each call, the gradients `[Q, N, ...]` of the columns with respect to its output.
            dtype: in which sums are taken.

        Returns:
            `d`, `[Q, N, T, d_out]`.
        """
        del calls
        return tf.concat([with_positions(tf.cast(g, dtype), 2) for g in gradients], 2)

    def squares(self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType) -> Squares | None:
        """Computes `sum_qi G[q, i]^2`, the share of these columns in the diagonal of the curvature matrix.

        Args:
            calls: every call of the layer within one forward pass of the model.
            gradients: for each call, the gradients `[Q, N, ...]` of the columns with respect to its output.
            dtype: in which sums are taken.

        Returns:
            Each variable with a tensor of its shape; `None`: the rule of all layers is to do it.
        """
        del calls, gradients, dtype
        return None

    def summarise(self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType) -> list[tf.Tensor]:
        """Reduces the gradients of some columns to what `gram` needs: by default, the gradients themselves.

        If the gradients of all columns would not fit in memory, a few columns are differentiated at a time. A rule that
        needs less than the gradients at every position reduces them here.

        Args:
            calls: every call of the layer within one forward pass of the model.
            gradients: for each call, the gradients `[Q, N, ...]` of the columns with respect to its output.
            dtype: in which sums are taken.

        Returns:
            Tensors `[Q, N, ...]`.
        """
        return list(gradients)

    def of_all_replicas(
        self, calls: Sequence[LayerCall], summaries: Sequence[tf.Tensor]
    ) -> tuple[Sequence[LayerCall], list[tf.Tensor]]:
        """Collects what `gram` needs of the examples of all replicas: of each a summary that no other example changes.

        Args:
            calls: of the examples of this replica.
            summaries: what `summarise` returned for them.

        Returns:
            The same of all examples.
        """
        return [call.of_all_replicas() for call in calls], [_replicas.gathered(t, axis=1) for t in summaries]

    @abc.abstractmethod
    def gram(
        self,
        calls: Sequence[LayerCall],
        summaries: Sequence[tf.Tensor],
        dtype: tf.DType,
        scales: Scales | None = None,
    ) -> tf.Tensor:
        """Computes the share `[Q N, Q N]` of all calls of one layer, cross terms between calls included.

        Args:
            calls: every call of the layer within one forward pass of the model.
            summaries: what `summarise` returned, for all columns together.
            dtype: in which the sums are taken.
            scales: `s_v > 0` for each trainable variable `v` of the layer, by `id(v)`, in that dtype: the share is
                then `sum_v s_v K_v`, where `K_v` is that of `v` alone. `None` for all ones. A rule whose `gram`
                does not take this argument is used only where there are no scales.

        Returns:
            A symmetric matrix.
        """

    def gram_work(self, calls: Sequence[LayerCall], columns: int, examples: int, itemsize: int) -> Work:
        """Estimates what `summarise` and `gram` cost: by default, per-example gradients of the weights, formed at once.

        Args:
            calls: every call of the layer within one forward pass of the model.
            columns: `Q`.
            examples: `N`.
            itemsize: bytes of a number.

        Returns:
            A `Work`.
        """
        size = sum(v.shape.num_elements() for v in calls[0].layer.trainable_variables)
        units = max(1, calls[0].output.shape[-1] or 1)
        return gradients_of_weights(size, columns * examples, examples, sum(map(positions_of, calls)), units, itemsize)


class WeightGradientRule(Rule):
    """A rule that forms the per-example gradients of the layer's weights, `Q N n_layer` numbers."""

    @abc.abstractmethod
    def weight_gradients(
        self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType
    ) -> list[tf.Tensor]:
        """Computes one tensor `[Q, N, ...]` per variable (or per part of the layer), summed over positions and calls.

        Args:
            calls: every call of the layer within one forward pass of the model.
            gradients: for each call, the gradients `[Q, N, ...]` of the columns with respect to its output.
            dtype: in which sums are taken.

        Returns:
            The gradients `G[q, i]`, in parts.
        """

    def part_variables(self, calls: Sequence[LayerCall]) -> list[keras.Variable]:
        """Returns the variable of each of the `weight_gradients`: by default, one part per variable, in order.

        Args:
            calls: every call of the layer within one forward pass of the model.

        Returns:
            One variable per part.
        """
        return list(calls[0].layer.trainable_variables)

    def summarise(self, calls: Sequence[LayerCall], gradients: Sequence[tf.Tensor], dtype: tf.DType) -> list[tf.Tensor]:
        return self.weight_gradients(calls, gradients, dtype)

    def of_all_replicas(
        self, calls: Sequence[LayerCall], summaries: Sequence[tf.Tensor]
    ) -> tuple[Sequence[LayerCall], list[tf.Tensor]]:
        # The inputs are in the gradients already.
        return calls, [_replicas.gathered(t, axis=1) for t in summaries]

    def gram(
        self,
        calls: Sequence[LayerCall],
        summaries: Sequence[tf.Tensor],
        dtype: tf.DType,
        scales: Scales | None = None,
    ) -> tf.Tensor:
        if scales is None:
            return tf.add_n([products(part) for part in summaries])
        variables = self.part_variables(calls)
        if len(variables) != len(summaries):
            raise ValueError(
                _checks.message(
                    "scales",
                    f"{len(summaries)} parts for {len(variables)} variables from {type(self).__name__}",
                    "a variable for each part of the gradient",
                    "Override `part_variables`.",
                )
            )
        return tf.add_n([scales[id(v)] * products(part) for v, part in zip(variables, summaries, strict=True)])


def with_positions(tensor: tf.Tensor, batch_axes: int) -> tf.Tensor:
    """Makes all axes between the first and the last one axis of positions.

    Args:
        tensor: `[*batch, ..., D]`.
        batch_axes: the number of axes before those of the positions.

    Returns:
        `[*batch, T, D]`.
    """
    shape = tf.shape(tensor)
    positions = tensor.shape[batch_axes:-1].num_elements()
    middle = [-1 if positions is None else positions]
    return tf.reshape(tensor, tf.concat([shape[:batch_axes], middle, [tensor.shape[-1]]], 0))


def sharing_variables(
    items: Iterable[T], layer_of: Callable[[T], keras.layers.Layer], flat_parameters: FlatParameters
) -> list[list[T]]:
    """Groups layers, or their calls, so that those that share trainable variables are together.

    Args:
        items: in order.
        layer_of: the layer of an item.
        flat_parameters: the variables of interest.

    Returns:
        The groups that have some of them.
    """
    groups: list[tuple[set[int], list[T]]] = []
    for item in items:
        own = {id(v) for v in layer_of(item).trainable_variables}
        joined = [g for g in groups if g[0] & own]
        merged = (own.union(*(g[0] for g in joined)), [i for g in joined for i in g[1]] + [item])
        groups = [g for g in groups if not any(g is j for j in joined)] + [merged]
    wanted = {id(v) for v in flat_parameters.variables}
    return [found for own, found in groups if own & wanted]


def owns_exactly(layer: keras.layers.Layer, *weights: keras.Variable | None) -> bool:
    """Returns whether these are all the trainable variables of a layer, so that a rule for them is right for the layer.

    Args:
        layer: the layer.
        *weights: its variables, `None` for one that the layer does not have.

    Returns:
        `True` or `False`.
    """
    return {id(v) for v in layer.trainable_variables} == {id(v) for v in weights if v is not None}


__all__ = [
    "LayerCall",
    "Rule",
    "Scales",
    "Squares",
    "WeightGradientRule",
    "owns_exactly",
    "sharing_variables",
    "with_positions",
]
