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
from tf_natgrad.training.train_function import TrainFunction


class ReplicatedFunction(TrainFunction):
    """The train function of a model under a strategy of several replicas.

    The solver is chosen once, on the first batch, by all replicas together. Where a preconditioner is not updated at
    each step, the steps that update it have a graph of their own: a graph of a replica may not exchange in a branch.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
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
        self._warn_of_far_steps(logs)
        return logs

    def _take_together(self, batch: Any) -> dict[str, Any]:
        preconditioner, step = self._natural.preconditioner, self._step
        if preconditioner is not None:
            # What is traced now is for this phase.
            preconditioner.phase = phase = preconditioner.next_phase()
            if phase not in self._of_phase:
                self._of_phase[phase] = self._make_step()
            step = self._of_phase[phase]
        try:
            return raise_refusal(dict(step(iter([batch]))))
        finally:
            if preconditioner is not None:
                preconditioner.phase = None

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
    if not isinstance(natural.damping.value, tf.distribute.DistributedValues):
        received = "a `NaturalGradient` that was made outside of the scope of the strategy"
        expected = "an optimizer that is made within `strategy.scope()`"
        raise ValueError(_checks.message("optimizer", received, expected, "Its variables are on one device only."))
    if model.run_eagerly:
        remedy = "Exchanges between replicas belong to a graph."
        raise ValueError(_checks.message("run_eagerly", f"True, {several}", "False", remedy))
    if natural.micro_batch_size is not None:
        remedy = "Each replica linearises its share of the batch at once: use more replicas, or a smaller batch."
        raise ValueError(_checks.message("micro_batch_size", f"{natural.micro_batch_size} {several}", "None", remedy))


__all__ = ["ReplicatedFunction", "check_replicated"]
