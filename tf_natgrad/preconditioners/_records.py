"""What a preconditioner returns: its state as values, the direction of a batch, a report."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_natgrad._conditions import Condition


class State(NamedTuple):
    """The state of a preconditioner as values.

    Attributes:
        step: how many steps were taken.
        updates: how many batches entered the averages.
        averages: for each block, its running averages.
        inverses: for each block, what is made of them every now and then.
        changed: whether averages or inverses are others than those in the variables, a scalar boolean.
    """

    step: tf.Tensor
    updates: tf.Tensor
    averages: list[list[tf.Tensor]]
    inverses: list[list[tf.Tensor]]
    changed: tf.Tensor | bool = False


class Phase(NamedTuple):
    """What a step does beside the direction.

    Attributes:
        update: whether the batch enters the running averages.
        invert: whether the inverses are made anew.
        check: whether the layers' calls are compared with the Jacobian.
    """

    update: bool
    invert: bool
    check: bool


class PreconditionerInfo(NamedTuple):
    """Report of a preconditioner, in place of a solver's.

    Attributes:
        solver: its name.
        updated: whether the batch entered the running averages.
        inverted: whether the inverses were made anew.
        raised: by how many powers of ten the damping was raised where a factor was not positive definite.
        why: the form in which each layer's inverse is kept.
    """

    solver: str
    updated: tf.Tensor
    inverted: tf.Tensor
    raised: tf.Tensor
    why: str = ""


class Preconditioned(NamedTuple):
    """The direction of a batch, and the state that goes with it.

    Attributes:
        direction: `d`, one tensor per variable.
        slope: `g^T d`, a scalar.
        damping: with which it was computed.
        state: after the batch; it is not in the variables yet.
        info: the report.
        conditions: on the batch.
    """

    direction: list[tf.Tensor]
    slope: tf.Tensor
    damping: tf.Tensor
    state: State
    info: PreconditionerInfo
    conditions: list[Condition]


__all__ = ["Phase", "Preconditioned", "PreconditionerInfo", "State"]
