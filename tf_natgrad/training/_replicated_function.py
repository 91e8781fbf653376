"""What `fit` calls for each step on several replicas: it draws the batches in Python, and raises what was refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad.errors import GramMismatchError
from tf_natgrad.solvers import Planned
from tf_natgrad.training._replicated import raise_refusal
from tf_natgrad.training.train_function import TrainFunction, without_optionals


class ReplicatedFunction(TrainFunction):
    """The train function of a model under a strategy of several replicas.

    The solver is chosen once, on the first batch, by all replicas together. Where a preconditioner is not updated at
    each step, the steps that update it have a graph of their own: a graph of a replica may not exchange in a branch.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._step = self._of_batches(self._step)
        # The graphs of the phases of a preconditioner.
        self._of_phase: dict[Any, Callable] = {}

    def __call__(self, iterator: Any) -> dict[str, Any]:
        """Takes the next step, or as many as `steps_per_execution` says.

        Args:
            iterator: of batches, as `fit` and `train_on_batch` give it.

        Returns:
            The logs of the last step.

        Raises:
            StopIteration: if there is no batch left.
            ValueError: if a batch is refused.
        """
        logs = None
        for batch in itertools.islice(iterator, self._model.steps_per_execution):
            if self._looks and self.planned is None:
                self.planned = self._planned_together(batch)
            try:
                logs = self._take_together(batch)
            except GramMismatchError as error:
                self._do_without_gram(error)
                # It is not left out after all.
                self._natural.skipped_steps.assign_sub(1)
                logs = self._take_together(batch)
        if logs is None:
            raise StopIteration
        return self._reported(logs)

    def _take_together(self, batch: Any) -> dict[str, Any]:
        preconditioner, step = self._natural.preconditioner, self._step
        if preconditioner is not None:
            # What is traced now is for this phase.
            preconditioner.phase = phase = preconditioner.next_phase()
            if phase not in self._of_phase:
                self._of_phase[phase] = self._of_batches(self._make_step())
            step = self._of_phase[phase]
        try:
            return raise_refusal(dict(step(batch)))
        finally:
            if preconditioner is not None:
                preconditioner.phase = None

    def _renew(self, planned: Planned) -> None:
        super()._renew(planned)
        self._step = self._of_batches(self._step)

    def _of_batches(self, step: Callable) -> Callable:
        """A step of one batch that was drawn, out of Keras's function of an iterator; one graph for all sizes.

        All workers must trace alike, whatever the sizes of their shares.
        """
        graphs: dict[Any, Callable] = {}

        def take(batch: Any) -> Any:
            batch = without_optionals(batch)
            flat = tf.nest.flatten(batch, expand_composites=True)
            given = [tf.convert_to_tensor(t) for t in flat if t is not None]
            specs = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in given]

            def whole(*tensors: tf.Tensor) -> Any:
                rest = iter(tensors)
                filled = [None if t is None else next(rest) for t in flat]
                return step(iter([tf.nest.pack_sequence_as(batch, filled, expand_composites=True)]))

            key = tuple(specs)
            if key not in graphs:
                graphs[key] = tf.function(whole, autograph=False).get_concrete_function(*specs)
            return graphs[key](*given)

        return take

    def _planned_together(self, batch: Any) -> Planned:
        """The solver for batches like this one, as all replicas choose it with the sizes of the global batch."""
        found = []

        def plan(batch: Any) -> None:
            found.append(self._plan(keras.utils.unpack_x_y_sample_weight(batch))[0])

        self._model.distribute_strategy.run(plan, args=(batch,))
        return found[0]


def check_replicated(model: keras.Model, natural: Any, strategy: tf.distribute.Strategy) -> None:
    """Refuses what does not go with several replicas.

    Args:
        model: a compiled model.
        natural: its `NaturalGradient`.
        strategy: under which it trains.

    Raises:
        ValueError: naming the argument.
    """
    several = f"on {strategy.num_replicas_in_sync} replicas"
    for name, variables in (("model", model.trainable_variables), ("optimizer", natural.variables)):
        if not all(isinstance(v.value, tf.distribute.DistributedValues) for v in variables):
            received = f"one that was made outside of the scope of the strategy, {several}"
            remedy = "Make and compile the model within `with strategy.scope():`; its variables are on one device only."
            raise ValueError(_checks.message(name, received, "one that was made within it", remedy))
    if model.run_eagerly:
        remedy = "Exchanges between replicas belong to a graph."
        raise ValueError(_checks.message("run_eagerly", f"True, {several}", "False", remedy))
    if natural.micro_batch_size is not None:
        remedy = "Each replica linearises its share of the batch at once: use more replicas, or a smaller batch."
        raise ValueError(_checks.message("micro_batch_size", f"{natural.micro_batch_size} {several}", "None", remedy))


__all__ = ["ReplicatedFunction", "check_replicated"]
