"""K-FAC: Kronecker factors of the Fisher, averaged over batches."""

from __future__ import annotations

from tf_natgrad import _checks
from tf_natgrad.layers.kronecker import APPROXIMATIONS, Block
from tf_natgrad.operators.kronecker import SPLITS
from tf_natgrad.preconditioners._base import Preconditioner
from tf_natgrad.preconditioners._blocks import BlockState, EigenState, SplitState
from tf_natgrad.preconditioners._labels import KINDS
from tf_natgrad.preconditioners._recipes import RECIPES, Recipe

# Above it an eigendecomposition takes seconds on a CPU: 10 s for 3,137.
_SLOW = 2048
_DECOMPOSES = (
    "{} decomposes the factor of {} into its {:,} eigenvectors at each inversion, which takes seconds on a CPU. "
    "`KFAC(damping_split='pi')` keeps the leading ones."
)


class KFAC(Preconditioner):
    """Kronecker-factored approximate curvature: running averages of the factors of each layer's Fisher.

    The block of a layer is `A (x) G`, see `operators.KroneckerFisher`. Its factors are averaged over batches, and
    inverted every now and then, so that a step costs little more than a gradient, and knows more than its own batch.
    Pass it to the optimizer, whose `learning_rate`, `damping`, `momentum`, `max_kl` and `line_search` are then the
    recipe's unless they are given:

    * `"quadratic"`, for large batches, autoencoders, regression: the damping is adapted (Levenberg-Marquardt), and the
      step is the combination of the direction and the last one at which the quadratic model with the exact Fisher of
      the batch is minimal. It takes two products with the Jacobian and the loss after the step.
    * `"fixed"`, for small noisy batches: a learning rate, a fixed damping, heavy-ball momentum, and a limit of the KL
      divergence of each new direction before momentum. It takes no product.

    >>> import keras, numpy as np, tf_natgrad as ng
    >>> model = ng.natural_gradient_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(ng.NaturalGradient(fisher=ng.KFAC(recipe="fixed")), loss)
    >>> history = model.fit(np.eye(3), np.array([0, 1, 1]), epochs=3, verbose=0)
    >>> history.history["loss"][-1] < history.history["loss"][0]
    True

    In a loop of one's own:

    >>> import tensorflow as tf
    >>> kfac = ng.KFAC()
    >>> kfac.build(model)
    >>> x, y = tf.eye(3), tf.constant([0, 1, 1])
    >>> with tf.GradientTape() as tape:
    ...     value = loss(y, model(x))
    >>> gradient = tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(value, model.trainable_weights)], 0)
    >>> _ = kfac.update(model, loss, (x, y), damping=0.01)
    >>> kfac.solve(gradient, damping=0.01).shape
    TensorShape([8])

    Args:
        recipe: `"quadratic"` or `"fixed"`.
        ema: the weight of the past in the running averages, in [0, 1); smaller at the start, where it is that of a
            plain mean.
        update_every: steps between two updates of the averages; by default the recipe's. The first steps all update.
        invert_every: steps between two inversions; by default the recipe's. At the start they are made after 1, 2, 5
            and 17 steps, too.
        approximation: `"expand"` or `"reduce"`, see `operators.KroneckerFisher`.
        fisher: the labels of the factors: `"mc"` (drawn from the model), `"exact"` (the expectation), `"empirical"`
            (those of the data).
        mc_samples: draws per example, for `"mc"`.
        damping_split: `"pi"`: the damping is split between the factors, whose inverses are kept; `"exact"`: it is added
            to their product, whose eigenvectors are kept.
        rank: the number of leading eigenpairs that stand for a factor above `largest`, for `damping_split="pi"`; the
            other eigenvalues become one. By default the recipe's: 256 for `"quadratic"`, 64 for `"fixed"`, whose
            damping hides the others.
        largest: the size up to which a factor is inverted whole; by default the recipe's: 2048 and 256.

    Raises:
        ValueError: if a number is out of its range, or an option unknown.

    References:
        J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML (2015),
        sections 3 to 7. R. Grosse, J. Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers",
        ICML (2016). J. Ba, R. Grosse, J. Martens, "Distributed second-order optimization using Kronecker-factored
        approximations", ICLR (2017), section 5 (the limit before momentum).
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
        damping_split: str = "pi",
        rank: int | None = None,
        largest: int | None = None,
    ):
        _checks.check_choice("recipe", recipe, tuple(RECIPES))
        _checks.check_number("ema", ema, minimum=0.0)
        if ema >= 1.0:
            raise ValueError(_checks.message("ema", ema, "a number in [0, 1)"))
        upkeep = {"update_every": update_every, "invert_every": invert_every, "rank": rank, "largest": largest}
        for name, value in upkeep.items():
            if value is not None:
                _checks.check_number(name, value, minimum=1, integer=True)
        _checks.check_number("mc_samples", mc_samples, minimum=1, integer=True)
        _checks.check_choice("approximation", approximation, APPROXIMATIONS)
        _checks.check_choice("fisher", fisher, KINDS)
        _checks.check_choice("damping_split", damping_split, SPLITS)
        choices = {"approximation": approximation, "fisher": fisher, "damping_split": damping_split}
        super().__init__({"recipe": recipe, "ema": ema, "mc_samples": mc_samples, **choices, **upkeep})
        given = {name: value for name, value in upkeep.items() if value is not None}
        self._upkeep = RECIPES[recipe][1]._replace(**given)

    @property
    def supports_jit(self) -> bool:
        """Whether XLA compiles it into something usable: not the eigenvectors of factors."""
        return self._options["damping_split"] == "pi"

    @property
    def recipe(self) -> Recipe:
        """What `NaturalGradient` does where its arguments are left to the recipe."""
        return RECIPES[self._options["recipe"]][0]

    @property
    def periods(self) -> tuple[int, int]:
        """The numbers of steps between two updates of the averages, and of the inverses."""
        return self._upkeep.update_every, self._upkeep.invert_every

    def _state_of(self, block: Block) -> BlockState:
        if self._options["damping_split"] == "exact":
            size = max(block.matrix.columns, 0 if block.matrix.is_table else block.matrix.rows)
            if size > _SLOW:
                text = _DECOMPOSES.format(type(self).__name__, block.variables[0].path, size)
                _checks.log_once(text, key=text)
            return EigenState(block)
        return SplitState(block, self._upkeep.rank, self._upkeep.largest)


__all__ = ["KFAC"]
