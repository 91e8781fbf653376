"""What `fit` calls for each step: it sees a batch in Python before a step for it is traced."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks
from tf_natgrad._conditions import as_value_error
from tf_natgrad.errors import GramMismatchError, NonFiniteError
from tf_natgrad.operators._inputs import check_fits
from tf_natgrad.solvers import Auto, Planned
from tf_natgrad.training.planning import needs_plan, shapes_of, without_gram
from tf_natgrad.training.progress_line import EpochMeans
from tf_natgrad.training.step import NOT_FINITE

# Nats of a step beyond which the quadratic model of the KL, and so the step, is not to be trusted.
_FAR = 1.0
_TOO_FAR = (
    "A step of natural gradient moves the outputs' distribution by {:.1f} nats (KL), too far for the "
    "quadratic model that it rests on, and the loss may rise. Raise `damping`, or set `max_kl` (0.1, say)."
)


class TrainFunction:
    """Keras's train function, behind a look at the batches where the solver's choice hangs on them.

    The first batch is drawn in Python, looked at, and used. Where all batches of an iterator are known to be no larger,
    the rest of the epoch is Keras's own affair; where their size is not known beforehand, each is drawn here. A batch
    that is larger than those before is looked at again, and the step traced anew if that changes the solver.

    Attributes:
        planned: the solver that was chosen, or `None` before the first batch and where there is no choice.
        last_logs: what the last step reported.
        means: of what the steps of the epoch reported.

    Args:
        model: a compiled model.
        natural: its `NaturalGradient`.
        make_step: makes Keras's train function of the model, anew at each call.
        plan: from `(x, y, sample_weight)` to the solver for such batches (`None` where a preconditioner was chosen),
            and whether that was checked to the end; or
            `None` where a `train_step` of the model's own makes another batch of the one that it is given.
    """

    def __init__(
        self,
        model: keras.Model,
        natural: Any,
        make_step: Callable[[], Callable],
        plan: Callable[[tuple], tuple[Planned | None, bool]] | None,
    ):
        self.planned: Planned | None = None
        self.last_logs: dict[str, Any] = {}
        self.means = EpochMeans()
        self._model, self._natural = model, natural
        self._make_step, self._plan = make_step, plan
        self._step = make_step()
        self._known: Any = None
        self._of_spec: dict[tuple, Callable] = {}
        self._largest: tuple[tf.TensorShape, ...] | None = None
        # XLA drops assertions; there the count of steps left out tells.
        self._counts = model.jit_compile and natural.on_nonfinite == "raise"
        # A batch in parts goes with conjugate gradients alone.
        self._chooses = (
            natural.preconditioner is None and needs_plan(natural.solver) and natural.micro_batch_size is None
        )
        self._looks = self._chooses and plan is not None

    def __call__(self, iterator: Any) -> dict[str, Any]:
        """Takes the next step, or as many as `steps_per_execution` says.

        Args:
            iterator: of batches, as `fit` and `train_on_batch` give it.

        Returns:
            The logs: metrics, and the means over the epoch of what the steps reported.

        Raises:
            StopIteration: if there is no batch left.
            ValueError: if a batch is refused.
        """
        natural = self._natural
        specification = iterator.element_spec if isinstance(iterator, tf.data.Iterator) else None
        if specification is not None and specification is not self._known:
            # A graph that was made for several shapes would fail in a layer's words.
            self._known = specification
            if self._plan is not None:
                check_fits(self._model, keras.utils.unpack_x_y_sample_weight(specification)[0])
        before = int(natural.skipped_steps) if self._counts else 0
        with as_value_error():
            logs = self._planned_steps(iterator) if self._chooses else self._step(iterator)
        if self._counts and int(natural.skipped_steps) > before:
            raise NonFiniteError(NOT_FINITE)
        return self._reported(logs)

    def _reported(self, logs: dict[str, Any]) -> dict[str, Any]:
        """The logs for Keras, after a step."""
        self._warn_of_far_steps(logs)
        self.last_logs = logs
        return self.means.after(logs)

    def _warn_of_far_steps(self, logs: dict[str, Any]) -> None:
        # Where the loss after the step is looked at there is nothing to warn of, and to wait for.
        if self._natural.line_search is None and (kl := float(logs["kl"])) > _FAR:
            _checks.log_once(_TOO_FAR.format(kl))

    def _planned_steps(self, iterator: Any) -> dict[str, Any]:
        if self._needs_no_look(iterator):
            try:
                with as_value_error():
                    return self._step(iterator)
            except GramMismatchError as error:
                # This batch is gone with the graph that drew it: it was counted as one that was left out.
                self._do_without_gram(error)
                return self._step(iterator)
        batches = [without_optionals(b) for b in itertools.islice(iterator, self._model.steps_per_execution)]
        if not batches:
            raise StopIteration
        for batch in batches:
            if self._looks:
                self._look_at(batch)
            try:
                with as_value_error():
                    logs = self._take(iterator, batch)
            except GramMismatchError as error:
                self._do_without_gram(error)
                # It is not left out after all.
                self._natural.skipped_steps.assign_sub(1)
                logs = self._take(iterator, batch)
        return logs

    def _needs_no_look(self, iterator: Any) -> bool:
        """Whether the step may draw its batches itself."""
        if not self._looks:
            return isinstance(iterator, tf.data.Iterator)
        spec = _spec_of(iterator)
        return spec is not None and self._covers(tuple(s.shape for s in spec))

    def _covers(self, shapes: tuple[tf.TensorShape, ...]) -> bool:
        """Whether a batch at least as large as one of these shapes was looked at already."""
        if self._largest is None or len(shapes) != len(self._largest):
            return False
        pairs = zip(shapes, self._largest, strict=True)
        return all(a.rank == b.rank and all(i <= j for i, j in zip(a, b, strict=True)) for a, b in pairs)

    def _look_at(self, batch: Any) -> None:
        shapes = shapes_of(batch)
        if self._covers(shapes):
            return
        planned, checked = self._plan(keras.utils.unpack_x_y_sample_weight(batch))
        if planned is None:
            # Curvature that outlives a batch: nothing hangs on the sizes of the next ones.
            self._chooses = self._looks = False
            self._renew(None)
            return
        if self.planned is None:
            self.planned = planned
        elif planned.algorithm != self.planned.algorithm:
            self._renew(planned)
        if checked:
            self._largest = self._joined(shapes)

    def _joined(self, shapes: tuple[tf.TensorShape, ...]) -> tuple[tf.TensorShape, ...]:
        if self._largest is None or [s.rank for s in shapes] != [s.rank for s in self._largest]:
            return shapes
        pairs = zip(shapes, self._largest, strict=True)
        return tuple(tf.TensorShape([max(i, j) for i, j in zip(a, b, strict=True)]) for a, b in pairs)

    def _take(self, iterator: Any, batch: Any) -> dict[str, Any]:
        if self._model.run_eagerly or not isinstance(iterator, tf.data.Iterator) or _spec_of(iterator) is not None:
            again = None if self._model.run_eagerly or self._model.steps_per_execution > 1 else _like(iterator, batch)
            return self._step(iter([batch]) if again is None else again)
        # One trace for all sizes of batches that the data set announces.
        tensors, specs = _tensors_of(batch), _present(iterator.element_spec)
        key = tuple(specs)
        if key not in self._of_spec:
            model, structure = self._model, tf.nest.map_structure(lambda t: t is None, batch)

            def step(*given: Any) -> dict[str, Any]:
                rest = iter(given)
                filled = [None if absent else next(rest) for absent in tf.nest.flatten(structure)]
                return model.train_step(tf.nest.pack_sequence_as(structure, filled))

            self._of_spec[key] = tf.function(
                step, input_signature=specs, jit_compile=model.jit_compile, autograph=False
            )
        return self._of_spec[key](*tensors)

    def _do_without_gram(self, error: GramMismatchError) -> None:
        """Chooses and traces anew, after a step was refused because its Gram matrix was wrong."""
        if not isinstance(self._natural.solver, Auto):
            raise error
        size = sum(v.shape.num_elements() for v in self._model.trainable_variables)
        solver = self._natural.solver if self.planned is None else self.planned.otherwise
        self._renew(without_gram(solver, size, error))
        # Another batch may look right again; what it looks like is not asked any more.
        self._chooses = self._looks = False

    def _renew(self, planned: Planned | None) -> None:
        self.planned = planned
        self._of_spec.clear()
        self._step = self._make_step()


def _spec_of(iterator: Any) -> list[tf.TypeSpec] | None:
    """What each batch of an iterator is, one entry per tensor, if all of its sizes are known beforehand."""
    if not isinstance(iterator, tf.data.Iterator):
        return None
    present = _present(iterator.element_spec)
    return present if all(isinstance(s, tf.TensorSpec) and s.shape.is_fully_defined() for s in present) else None


def _like(iterator: Any, batch: Any) -> tf.data.Iterator | None:
    """An iterator of one batch for which Keras has the same graph as for a data set's own, or `None`.

    Given a batch by itself Keras would compile its step, and compile it again for the iterator.
    """
    if not isinstance(iterator, tf.data.Iterator) or _present(iterator.element_spec) != tf.nest.flatten(
        iterator.element_spec
    ):
        return None
    dataset = tf.data.Dataset.from_tensors(batch)
    return iter(dataset) if dataset.element_spec == iterator.element_spec else None


def _present(spec: Any) -> list[tf.TypeSpec]:
    """The parts of a data set's element that are not absent: Keras puts empty optionals there, others `None`."""
    absent = (type(None), tf.experimental.Optional)
    return [s for s in tf.nest.flatten(spec) if s.value_type not in absent]


def _tensors_of(batch: Any) -> list[Any]:
    return [t for t in tf.nest.flatten(batch) if t is not None]


def without_optionals(batch: Any) -> Any:
    """Replaces what a data set gives as an empty optional by `None`, as Keras does.

    Args:
        batch: a structure.

    Returns:
        The same structure.
    """
    return tf.nest.map_structure(lambda t: None if isinstance(t, tf.experimental.Optional) else t, batch)


__all__ = ["TrainFunction", "without_optionals"]
