"""The network of `loss_curvature.py` and its runs."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from kit.loss_results import CLASSES, COLUMNS, DENSITY_COLUMNS, DENSITY_POINTS, KEY_COLUMNS
from kit.recording import Key, Row, by, read_rows
from kit.runs import KeyedRun, shuffled


@dataclasses.dataclass(frozen=True)
class Run(KeyedRun):
    """One training run; its fields up to `seed` are columns of the CSV.

    Attributes:
        optimizer: its name.
        dataset: `"mnist"` or `"digits"`.
        image_size: height and width of the images.
        hidden: units of the hidden layer.
        batch_size: examples per iteration.
        learning_rate: of the optimizer.
        damping: of the natural gradient; `None` for the others.
        train_images: how many images it is trained on.
        subsample_images: how many of them a subsample has.
        seed: of weights and batches.
        iterations: updates to be made.
    """

    key_columns = KEY_COLUMNS
    optimizer: str
    dataset: str
    image_size: int
    hidden: int
    batch_size: int
    learning_rate: float
    damping: float | None
    train_images: int
    subsample_images: int
    seed: int
    iterations: int

    @property
    def checkpoints(self) -> list[int]:
        """The iterations at which the curvature is looked at: 0, 1, 3, 10, 30, ... and the last."""
        spaced = (factor * 10**power for power in range(10) for factor in (1, 3))
        return [0, *(iteration for iteration in spaced if iteration < self.iterations), self.iterations]

    @property
    def rows(self) -> int:
        """How many rows it records: each subsample at each checkpoint, and all images at the two ends."""
        return len(self.checkpoints) * (self.train_images // self.subsample_images) + 2

    def is_complete(self, rows: Sequence[Row]) -> bool:
        """Whether these rows are all that this run would record."""
        return len(rows) == self.rows and {int(row["iteration"]) for row in rows} == set(self.checkpoints)


def complete(runs: Mapping[Key, Run], curvature: pathlib.Path, density: pathlib.Path) -> set[Key]:
    """The keys of the runs that are complete in both files."""
    if not (curvature.exists() and density.exists()):
        return set()
    by_key = by(read_rows(curvature, COLUMNS), *KEY_COLUMNS)
    points = by(read_rows(density, DENSITY_COLUMNS), *KEY_COLUMNS)
    return {
        key
        for key, run in runs.items()
        if run.is_complete(by_key.get(key, [])) and len(points.get(key, [])) == (run.seed == 0) * 2 * DENSITY_POINTS
    }


class Network:
    """A network 'pixels, hidden units with tanh, 10 classes' with its optimizer and training images.

    Args:
        data: an `ImageData`.
        optimizer: a Keras optimizer, or a natural gradient.
        hidden: how many hidden units.
        images: how many of the training images are used, from the first on.
        batch_size: examples of a step.
        seed: of weights and batches.
    """

    def __init__(self, data, optimizer, hidden: int, images: int, batch_size: int, seed: int):
        import keras

        import tf_natgrad as ng

        self.x, self.y = data.x_train[:images], data.y_train[:images]
        self.test = data.x_test, data.y_test
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        uniform = keras.initializers.GlorotUniform
        self.net = keras.Sequential(
            [
                keras.Input((data.image_size**2,)),
                keras.layers.Dense(hidden, activation="tanh", kernel_initializer=uniform(2 * seed)),
                keras.layers.Dense(CLASSES, kernel_initializer=uniform(2 * seed + 1)),
            ]
        )
        self._model = ng.natural_gradient_model(self.net)
        # XLA would take longer to compile than the few steps take.
        self._model.compile(optimizer, self.loss, jit_compile=False)
        self._batches = shuffled(seed, len(self.x), batch_size)

    def step(self) -> None:
        """One update, on the next batch of one shuffled pass after another."""
        chosen = next(self._batches)
        self._model.train_on_batch(self.x[chosen], self.y[chosen])

    def evaluate(self) -> dict[str, float]:
        """The loss on the training images and the accuracy on the test set."""
        correct = np.argmax(self.net(self.test[0]), -1) == self.test[1]
        return {"train_loss": float(self.loss(self.y, self.net(self.x))), "test_accuracy": float(correct.mean())}

    def hessian(self, part: slice = slice(None)):
        """The Hessian of the loss of some of the training images, at the present weights."""
        import tf_natgrad as ng

        return ng.operators.Hessian(self.net, self.loss, (self.x[part], self.y[part]))


def grid_of(smallest: float, largest: float, width: float) -> np.ndarray:
    """Where a density is given: the range of the eigenvalues, and beyond it as far as a logarithmic axis shows."""
    return np.linspace(smallest - 6.0 * width, largest + 6.0 * width, DENSITY_POINTS)


def effort(smoke: bool) -> dict[str, int]:
    """Of an estimate of a density."""
    return {"num_probes": 2, "steps": 30} if smoke else {"num_probes": 8, "steps": 90}
