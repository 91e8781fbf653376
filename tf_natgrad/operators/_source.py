"""What every source of examples or episodes does, and sources of examples: a batch, a replica's share of it, many."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_natgrad import _checks, _keras, _replicas
from tf_natgrad.operators._batch import Batch


class Source(abc.ABC):
    """What a matrix is a sum over, in one part or in several; it computes such sums."""

    @abc.abstractmethod
    def sum(
        self,
        name: str,
        function: Callable[..., tf.Tensor],
        like: tf.Tensor,
        *operands: tf.Tensor,
        record_calls: bool = False,
    ) -> tf.Tensor:
        """Computes the sum of `function(part, *operands)` over the parts, eagerly or as graph code.

        Args:
            name: identifies this function among those of the same operator.
            function: of a part (of examples: a `Batch`) and the operands.
            like: a tensor of the shape and dtype of the result.
            *operands: tensors that are the same for all parts.
            record_calls: whether `function` looks at the recorded calls of the layers.

        Returns:
            A tensor like `like`.

        Raises:
            ValueError: if a part does not fit, or a data set ends earlier or later than it did at first.
        """

    def map_rows(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        """Computes `function`, which contains a `sum`, of each row; as graph code.

        Args:
            function: of one row, to a tensor like it.
            rows: `[k, ...]`.

        Returns:
            What `function` returned, stacked; one row after the other, unless a source knows better.
        """
        return tf.map_fn(function, rows, parallel_iterations=1)

    def prepare(self) -> None:  # noqa: B027
        """Computes what all products share, once and outside of any loop; nothing where no pass outlives a sum."""


class Examples(Source):
    """The examples of a model's matrix."""

    @property
    @abc.abstractmethod
    def batch(self) -> Batch | None:
        """The single batch, recorded once; `None` if the model is called again for each sum."""

    @property
    def is_step_by_step(self) -> bool:
        """Whether eager sums go through the batches in Python, to show their progress or as they have to."""
        return False

    @property
    @abc.abstractmethod
    def gram_refusal(self) -> str | None:
        """The reason why these examples have no Gram matrix, or `None`."""


class OneBatch(Examples):
    """One batch after its forward pass: a sum over it is a call.

    Args:
        batch: the batch.
    """

    def __init__(self, batch: Batch):
        self._batch = batch

    @property
    def batch(self) -> Batch:
        return self._batch

    @property
    def gram_refusal(self) -> str | None:
        return self._batch.gram_refusal()

    def sum(
        self,
        name: str,
        function: Callable[..., tf.Tensor],
        like: tf.Tensor,
        *operands: tf.Tensor,
        record_calls: bool = False,
    ) -> tf.Tensor:
        del name, like, record_calls
        return function(self._batch, *operands)

    def map_rows(self, function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
        return self._batch.linearization.map_products(function, rows)

    def prepare(self) -> None:
        self._batch.linearization.prepare_jvp()


class Replicated(OneBatch):
    """The examples of a batch that is spread over replicas: each has its share after the forward pass, and sums it."""

    def sum(
        self,
        name: str,
        function: Callable[..., tf.Tensor],
        like: tf.Tensor,
        *operands: tf.Tensor,
        record_calls: bool = False,
    ) -> tf.Tensor:
        return _replicas.total(super().sum(name, function, like, *operands, record_calls=record_calls))


class InParts(Examples):
    """Several batches, one after the other: the model is called on each of them for each sum."""

    def __init__(self):
        self._run: Callable[..., Batch] | None = None
        self._compiled: Callable | None = None

    def bind(self, run: Callable[..., Batch], compiled: Callable) -> None:
        """Says how a part becomes a `Batch`, and how eager code makes a graph of what is done with it.

        Args:
            run: of `(x, y, sample_weight, index, record_calls)`.
            compiled: of a key and a function, to a function.
        """
        self._run, self._compiled = run, compiled

    @property
    def batch(self) -> None:
        return None

    @property
    def gram_refusal(self) -> str:
        return "The Gram matrix of a data set of many batches is not formed. Use `solver=ConjugateGradient()`."

    def sum(
        self,
        name: str,
        function: Callable[..., tf.Tensor],
        like: tf.Tensor,
        *operands: tf.Tensor,
        record_calls: bool = False,
    ) -> tf.Tensor:
        def of_part(x, y, sample_weight, index, *operands):
            batch = self._run(x, y, sample_weight, index, record_calls)
            _refuse_mask(batch)
            return function(batch, *operands), tf.size(batch.weights)

        return self._sum(name, of_part, tf.zeros_like(like), operands)

    @abc.abstractmethod
    def _sum(self, name: str, function: Callable, initial: tf.Tensor, operands: Sequence[tf.Tensor]) -> tf.Tensor:
        """`sum_b share_b function(x_b, y_b, sample_weight_b, b, *operands)`, eagerly or as graph code.

        `function` returns a tensor like `initial`, and the number of positions; it is the same for the same name.
        """


def _refuse_mask(batch: Batch) -> None:
    if _keras.mask_of(batch.outputs) is not None and batch.likelihood.reduction != "sum":
        raise ValueError(
            _checks.message(
                "data",
                "a data set for a model whose outputs are masked",
                "one batch, or a loss with reduction='sum'",
                "The mean over the unmasked positions of all batches is not a mean of the batches' means.",
            )
        )


__all__ = ["Examples", "InParts", "OneBatch", "Replicated", "Source"]
