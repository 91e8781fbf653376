"""What is known of a step: one trial of it, and what became of it."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Trial(NamedTuple):
    """What a step comes to at one scale; scalar tensors.

    Attributes:
        loss: at the weights that the step leads to.
        kl: `KL(before || there)`, the mean KL divergence from the model before the step, in nats.
        predicted: the decrease of the loss that the quadratic model of it predicts.
    """

    loss: tf.Tensor
    kl: tf.Tensor
    predicted: tf.Tensor


class StepReport(NamedTuple):
    """What became of a step; scalar tensors.

    Attributes:
        accepted: whether the step is to be taken.
        scale: the multiple of the step that was accepted, 0 where it was rejected.
        backtracks: the number of times the step was shortened.
        predicted_decrease: of the loss, for the scale that was accepted, or tried last.
        actual_decrease: of the loss, for the same scale.
        reduction_ratio: actual over predicted decrease.
        kl: measured `KL(before || after)` of the step accepted, in nats; 0 where it was rejected.
    """

    accepted: tf.Tensor
    scale: tf.Tensor
    backtracks: tf.Tensor
    predicted_decrease: tf.Tensor
    actual_decrease: tf.Tensor
    reduction_ratio: tf.Tensor
    kl: tf.Tensor

    @classmethod
    def of(cls, scale: tf.Tensor, trial: Trial, start: tf.Tensor, backtracks: tf.Tensor, accepted: tf.Tensor):
        """Makes the report of a trial.

        Args:
            scale: the multiple of the step that was tried last.
            trial: what it came to.
            start: the loss before the step.
            backtracks: the number of times the step was shortened.
            accepted: whether it is to be taken.

        Returns:
            A `StepReport`.
        """
        zero = tf.zeros_like(scale)
        actual = start - trial.loss
        return cls(
            accepted=accepted,
            scale=tf.where(accepted, scale, zero),
            backtracks=backtracks,
            predicted_decrease=trial.predicted,
            actual_decrease=actual,
            reduction_ratio=tf.math.divide_no_nan(actual, trial.predicted),
            kl=tf.where(accepted, trial.kl, zero),
        )


__all__ = ["StepReport", "Trial"]
