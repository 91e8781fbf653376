"""Records of a step: one trial of it, and its report."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Trial(NamedTuple):
    """Loss, KL divergence and predicted decrease of a step at one scale; scalar tensors.

    Attributes:
        loss: at the weights after the step.
        kl: the mean of `KL(before || after)`, in nats.
        predicted: the decrease of the loss that the quadratic model predicts.
    """

    loss: tf.Tensor
    kl: tf.Tensor
    predicted: tf.Tensor


class StepReport(NamedTuple):
    """The outcome of a step; scalar tensors.

    Attributes:
        accepted: whether the step was accepted.
        scale: the scale that was accepted, 0 if the step was rejected.
        backtracks: the number of backtracking steps.
        predicted_decrease: of the loss, for the scale that was accepted, or else tried last.
        actual_decrease: of the loss, for the same scale.
        reduction_ratio: actual over predicted decrease.
        kl: the measured mean of `KL(before || after)`, in nats; 0 if the step was rejected.
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
            scale: the scale that was tried last.
            trial: the trial of that scale.
            start: the loss before the step.
            backtracks: the number of backtracking steps.
            accepted: whether the step is accepted.

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
