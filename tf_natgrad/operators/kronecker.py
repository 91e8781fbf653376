"""The Kronecker-factored approximation of the Fisher matrix: block by layer, each a product of two small matrices."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import LossLike, ModelLike, TensorLike, plain_python
from tf_natgrad.layers.kronecker import APPROXIMATIONS
from tf_natgrad.operators._base import CurvatureOperator
from tf_natgrad.operators._kronecker import (
    Factors,
    KroneckerBlock,
    KroneckerInverse,
    diagonal_of,
    eigenvalues_of,
    times_inputs,
)
from tf_natgrad.operators.damped import positive_damping
from tf_natgrad.operators.fisher import EmpiricalFisher, Fisher

SPLITS = ("pi", "exact")


class KroneckerFisher(CurvatureOperator):
    """Approximates the Fisher by `A_l (x) G_l` for each layer l, and zero between layers, `[n, n]`.

    `A` is the weighted mean of `h h^T` over the layer's inputs `h` (with a 1 for the bias), `G` the sum of
    `w_i E[d d^T]` over the gradients `d` of the log-likelihood at its outputs, for labels drawn from the model. It is
    exact for one example at one position, and for deep linear networks with squared error; elsewhere an approximation.

    Dense, EinsumDense, Embedding (with a diagonal `A`) and convolutional layers have such a product, transposed ones
    too, and the pointwise kernels of separable ones. Of other weights (depthwise kernels, grouped convolutions,
    normalisation, recurrent layers, one's own) only the exact diagonal is kept; `blocks` tells. A layer that is called
    several times has all of its calls as positions.

    >>> import keras, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    >>> fisher = KroneckerFisher(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), tf.ones([5, 3]))
    >>> [(block.inputs.shape[0], block.gradients.shape[0]) for block in fisher.blocks]
    [(4, 4), (5, 2)]
    >>> fisher.inverse(0.1).matvec(tf.ones([26])).shape
    TensorShape([26])

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a `Distribution` subclass; for several outputs a list or dictionary of losses.
        data: one batch, or a `tf.data.Dataset`, which is read once; see `Fisher`.
        approximation: `"expand"` (positions count as examples) or `"reduce"` (`h` is averaged, and `d` summed, over
            the positions of an example). Without positions they are the same.
        fisher: the labels: `"exact"` (the expectation in closed form), `"mc"` (drawn from the model) or `"empirical"`
            (those of the data).
        seed: of the labels of `"mc"`.
        mc_samples: the number of draws per example, for `"mc"`.
        **options: `sample_weight`, `training`, `variables`, `progress`, `micro_batch_size`; see `Fisher`.

    Raises:
        ValueError: if an argument is out of its range, or a variable belongs to no layer of its own.

    References:
        J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML (2015),
        section 3. R. Grosse, J. Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", ICML
        (2016). R. Eschenhagen et al., "Kronecker-factored approximate curvature for modern neural network
        architectures", NeurIPS (2023), for the names of the approximations.
    """

    def __init__(
        self,
        model: ModelLike,
        loss: LossLike,
        data: Any,
        *,
        approximation: str = "expand",
        fisher: str = "exact",
        seed: int | tf.Tensor = 0,
        mc_samples: int = 1,
        **options: Any,
    ):
        _checks.check_choice("approximation", approximation, APPROXIMATIONS)
        _checks.check_choice("fisher", fisher, ("exact", "mc", "empirical"))
        if fisher == "empirical":
            base: Fisher | EmpiricalFisher = EmpiricalFisher(model, loss, data, record_calls=True, **options)
        else:
            drawn = {"seed": seed, "mc_samples": mc_samples}
            base = Fisher(model, loss, data, kind=fisher, record_calls=True, **drawn, **options)
        super().__init__(base.flat_parameters, name="KroneckerFisher")
        self._factors = _keras.Untracked(Factors.of(base, model, approximation))

    @property
    def blocks(self) -> list[KroneckerBlock]:
        """The blocks, one per layer, and two of a separable convolution."""
        return self._factors.value.blocks

    def prepare(self) -> None:
        """Does nothing: the factors were computed on construction."""

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        def of_block(block: KroneckerBlock, v: tf.Tensor) -> tf.Tensor:
            return tf.linalg.matmul(times_inputs(block.inputs, v), block.gradients)

        return self._factors.value.map(vector, of_block, lambda diagonal, v: diagonal * v)

    def diagonal(self) -> tf.Tensor:
        def of_block(block: KroneckerBlock, ones: tf.Tensor) -> tf.Tensor:
            return ones * diagonal_of(block.inputs)[:, None] * tf.linalg.diag_part(block.gradients)

        ones = tf.ones([self._flat.size], self.dtype)
        return self._factors.value.map(ones, of_block, lambda diagonal, v: diagonal * v)

    def inverse(self, damping: TensorLike, split: str = "exact") -> CurvatureOperator:
        """Returns the inverse of the damped matrix, as an operator.

        Args:
            damping: a number > 0, or a scalar tensor.
            split: `"exact"`: `(A (x) G + damping I)^-1`, by the eigenvalues of the factors; `"pi"`:
                `(A + pi sqrt(damping) I)^-1 (x) (G + sqrt(damping) / pi I)^-1`, by Cholesky, with
                `pi^2 = (tr A / d_in) / (tr G / d_out)`, which is cheaper and damps more.

        Returns:
            An operator whose products are those of the inverse.

        Raises:
            ValueError: if `damping` is not positive, or `split` unknown.

        References:
            J. Martens, R. Grosse (2015), section 6.3, for the split.
        """
        _checks.check_choice("split", split, SPLITS)
        return KroneckerInverse(self._factors.value, positive_damping(damping, self.dtype), split)

    @plain_python
    def eigenvalues(self) -> tf.Tensor:
        """Computes all eigenvalues, from those of the factors, in ascending order, `[n]`."""
        found = []
        for block in self.blocks:
            if block.diagonal is not None:
                found.append(block.diagonal)
            else:
                a, g = eigenvalues_of(block.inputs), tf.linalg.eigvalsh(block.gradients)
                found.append(tf.reshape(a[:, None] * g, [-1]))
        return tf.sort(tf.concat(found, 0))

    @plain_python
    def log_determinant(self, damping: TensorLike) -> tf.Tensor:
        """Computes the logarithm of the determinant of `self + damping I`, from the eigenvalues of the factors.

        Args:
            damping: a number > 0, or a scalar tensor.

        Returns:
            A scalar.

        Raises:
            ValueError: if `damping` is not positive.
        """
        damping = positive_damping(damping, self.dtype)
        return tf.reduce_sum(tf.math.log(tf.nn.relu(self.eigenvalues()) + damping))


__all__ = ["KroneckerFisher"]
