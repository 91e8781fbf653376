"""EKFAC: K-FAC's eigenbasis, with eigenvalues that are estimated in it."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_natgrad import _conditions, _keras, _replicas
from tf_natgrad.layers.eigenvalues import second_moments
from tf_natgrad.operators import Fisher
from tf_natgrad.preconditioners.kfac import KFAC


class EKFAC(KFAC):
    """Kronecker-factored curvature whose eigenvalues are second moments of the gradients in its eigenbasis.

    The block of a layer is `U_A (x) U_G` with the eigenvectors of K-FAC's factors, and instead of the products of their
    eigenvalues `s = E[(U_A^T V U_G)^2]`, with `V` the gradient of one example: of all matrices with these eigenvectors
    the one that is closest to the Fisher. `s` is averaged at each update since the last inversion, beginning from the
    products. The damping is added to it as it is. It takes about as long as `KFAC(damping_split="exact")`, more for
    layers with positions, whose examples are gone through one by one. Embeddings keep the products.

    >>> import keras, numpy as np, tf_natgrad as ng
    >>> model = ng.natural_gradient_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(ng.NaturalGradient(fisher="ekfac"), loss)
    >>> history = model.fit(np.eye(3), np.array([0, 1, 1]), epochs=3, verbose=0)
    >>> history.history["loss"][-1] < history.history["loss"][0]
    True

    Args:
        recipe: see `KFAC`.
        ema: of the factors, see `KFAC`.
        update_every: see `KFAC`.
        invert_every: see `KFAC`.
        approximation: of the factors, see `KFAC`.
        fisher: see `KFAC`.
        mc_samples: see `KFAC`.

    Raises:
        ValueError: if a number is out of its range, or an option unknown.

    References:
        T. George, C. Laurent, X. Bouthillier, N. Ballas, P. Vincent, "Fast approximate natural gradient descent in a
        Kronecker-factored eigenbasis", NeurIPS (2018), section 3.
    """

    def __init__(
        self,
        recipe: str = "quadratic",
        ema: float = 0.95,
        update_every: int | None = None,
        invert_every: int | None = None,
        approximation: str = "expand",
        fisher: str = "mc",
        mc_samples: int = 1,
    ):
        super().__init__(
            recipe, ema, update_every, invert_every, approximation, fisher, mc_samples, damping_split="exact"
        )

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        own = ("damping_split", "rank", "largest")
        return {name: value for name, value in super().get_config().items() if name not in own}

    def _corrected(
        self, inverses: list[list[tf.Tensor]], fisher: Fisher, step: tf.Tensor, columns: Callable[[], tf.Tensor]
    ) -> list[list[tf.Tensor]]:
        blocks = self._layout.blocks
        chosen = [k for k, b in enumerate(blocks) if b.matrix is not None and not b.matrix.is_table]
        update, invert = self.periods
        # The products of the eigenvalues count as one batch.
        batches = tf.cast((step % invert) // update + 2, fisher.dtype)
        batch, before = fisher.batch, [inverses[k][2] for k in chosen]

        def updated() -> list[tf.Tensor]:
            bases = [(inverses[k][0], inverses[k][1]) for k in chosen]
            mine = second_moments([blocks[k] for k in chosen], bases, batch.record, batch.linearization, columns())
            found = _replicas.total(mine)
            mixed = [s + (new - s) / batches for s, new in zip(before, found, strict=True)]
            return _conditions.chosen(_conditions.is_finite(*found), mixed, before)

        due = self._due(step)[0]
        values = _replicas.cond(due, updated, lambda: before, _keras.seldom) if chosen else []
        after = dict(zip(chosen, values, strict=True))
        return [[*parts[:2], after[k]] if k in after else parts for k, parts in enumerate(inverses)]


__all__ = ["EKFAC"]
