"""A contestant of `races.py` on a problem: its data, its model, and steps against the clock."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping

import numpy as np

from kit.race_grids import FIRST_ORDER, OWN, TUNING_SEED, Setting, setting_text
from kit.race_networks import AUTOENCODERS, Problem, network
from kit.race_results import KEY_COLUMNS
from kit.runs import KeyedRun, put_back, shuffled

# y = sin(8 pi x) + x/2 at equidistant points of this interval: eight periods of the sine.
REGRESSION_INTERVAL = (-1.0, 1.0)
REGRESSION_POINTS = 256
EVALUATED_AT_ONCE = 1_000


@dataclasses.dataclass(frozen=True)
class Run(KeyedRun):
    """One training run; its fields are key columns of the CSV, the setting as text.

    Attributes:
        problem: the name of one.
        dataset: `"mnist"` or `"digits"`; `"sine"` for the regression.
        contestant: a key of `NAMES`.
        arguments: of its optimizer.
        seed: of weights and batches.
        budget: seconds of training.
        threads: of TensorFlow.
    """

    key_columns = KEY_COLUMNS
    problem: str
    dataset: str
    contestant: str
    arguments: Setting
    seed: int
    budget: float
    threads: int

    @property
    def setting(self) -> str:
        """The arguments as text."""
        return setting_text(self.arguments)


class Task:
    """A problem with its data and network: what all contestants share.

    Args:
        name: decides its network.
        problem: how far it is to be learned, and on what.
        dataset: see `load_images`.
    """

    def __init__(self, name: str, problem: Problem, dataset: str):
        import tensorflow as tf

        self.name = name
        self.problem = problem
        if self.problem.image_size is None:
            x = np.linspace(*REGRESSION_INTERVAL, REGRESSION_POINTS)[:, None]
            self.dataset, y = "sine", np.sin(8.0 * np.pi * x) + 0.5 * x
            arrays = (x, y, x, y)
        else:
            from tf_natgrad.data import load_images

            data = load_images(dataset, self.problem.image_size)
            self.dataset, self.image_size = data.name, data.image_size
            tests = slice(self.problem.test_images)
            arrays = (data.x_train, data.y_train, data.x_test[tests], data.y_test[tests])
            if name in ("conv", "resnet"):
                shape = (-1, data.image_size, data.image_size, 1)
                arrays = (arrays[0].reshape(shape), arrays[1], arrays[2].reshape(shape), arrays[3])
            if name in AUTOENCODERS:
                arrays = (arrays[0], arrays[0], arrays[2], arrays[2])
        self.x, self.y, self.x_test, self.y_test = map(tf.constant, arrays)

    def batches(self, seed: int, size: int | None) -> Iterator[tuple]:
        """Batches without end: one shuffled pass through the training set after another, or the whole set."""
        import tensorflow as tf

        if size is None:
            while True:
                yield self.x, self.y
        for chosen in shuffled(seed, len(self.x), size):
            yield tf.gather(self.x, chosen), tf.gather(self.y, chosen)


def optimizer_of(contestant: str, arguments: Setting):
    """A contestant's optimizer.

    Args:
        contestant: a key of `NAMES`.
        arguments: its setting.

    Returns:
        A Keras optimizer.
    """
    import keras

    import tf_natgrad as ng

    def made(value):
        if not isinstance(value, Mapping):
            return value
        ((name, arguments),) = value.items()
        return getattr(ng if hasattr(ng, name) else ng.solvers, name)(**arguments)

    classes = {
        "sgd": keras.optimizers.SGD,
        "momentum": lambda **kwargs: keras.optimizers.SGD(momentum=0.9, nesterov=True, **kwargs),
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        OWN: keras.optimizers.Adam,
    }
    return classes.get(contestant, ng.NaturalGradient)(**{name: made(value) for name, value in arguments.items()})


class Contest:
    """One contestant on one problem, traced and ready to start.

    Args:
        task: the problem.
        run: the contestant and its setting.
    """

    def __init__(self, task: Task, run: Run):
        import keras

        import tf_natgrad as ng

        self.task = task
        keras.utils.set_random_seed(run.seed)
        self.network, self.loss = network(task.name, tuple(task.x.shape[1:]))
        is_natural = run.contestant not in (*FIRST_ORDER, OWN)
        options = dict(run.arguments)
        self._size = options.pop("batch_size", task.problem.batch_size)
        if run.contestant == "defaults":
            # Chosen here, the state of the curvature is there before the first step, and can be put back after it.
            found = ng.explain(self.network, self.loss, *next(task.batches(TUNING_SEED, self._size)))
            optimizer = ng.NaturalGradient(fisher={"name": "auto", "chosen": found.choice.fisher})
        else:
            optimizer = optimizer_of(run.contestant, options)
        self.model = ng.natural_gradient_model(self.network) if is_natural else self.network
        # XLA makes loops of CG many times slower on a CPU, and the Gram solver cannot have it.
        xla = task.problem.xla and not is_natural
        self.model.compile(optimizer, self.loss, jit_compile=xla)
        self.model.optimizer.build(self.model.trainable_variables)
        self._batches = task.batches(run.seed, self._size)
        self._evaluate = self._compiled_evaluation()
        self._warm_up()

    def _warm_up(self) -> None:
        """Traces the step and the evaluation by making one of each, and puts everything back."""
        self.model.make_train_function()
        # Those of the run are not touched: this is the first of a series of its own.
        batch = next(self.task.batches(TUNING_SEED, self._size))
        from tf_natgrad.errors import NonFiniteError

        # Those of metrics and seeds are among them.
        with put_back(lambda: (*self.model.variables, *self.model.optimizer.variables)):
            # A step that is refused is traced all the same, and the first one of the run will be refused too.
            with contextlib.suppress(NonFiniteError):
                self.model.train_function(iter([batch]))
            self.evaluate()
        self.model.reset_metrics()

    def _compiled_evaluation(self):
        import tensorflow as tf

        is_error = self.task.problem.metric == "test error"

        @tf.function(autograph=False, reduce_retracing=True)
        def evaluate(x, y):
            outputs = self.network(x, training=False)
            loss = tf.reduce_mean(self.loss(y, outputs))
            if not is_error:
                return loss, loss
            wrong = tf.not_equal(tf.argmax(outputs, -1, y.dtype), y)
            return tf.reduce_mean(tf.cast(wrong, loss.dtype)), loss

        return evaluate

    def evaluate(self) -> dict[str, float]:
        """The metric and the loss, on the test images or the training points."""
        x, y = self.task.x_test, self.task.y_test
        starts = range(0, len(x), EVALUATED_AT_ONCE)
        parts = [(x[i : i + EVALUATED_AT_ONCE], y[i : i + EVALUATED_AT_ONCE]) for i in starts]
        found = np.array([[float(value) for value in self._evaluate(*part)] for part in parts])
        metric, loss = np.average(found, 0, [len(part[0]) for part in parts])
        return {"metric": float(metric), "loss": float(loss)}

    def steps(self, count: int) -> tuple[int, float, float, float]:
        """Makes steps against the clock.

        Args:
            count: how many.

        Returns:
            `(steps made, seconds, seconds of the processor, mean loss of the batches)`; fewer steps and NaN where one
            was refused.
        """
        from tf_natgrad.errors import NonFiniteError

        batches = iter([next(self._batches) for _ in range(count)])
        self.model.reset_metrics()
        made, start, cpu = 0, time.perf_counter(), time.process_time()
        try:
            for made in range(1, count + 1):  # noqa: B007
                logs = self.model.train_function(batches)
            loss = float(logs["loss"])
        except NonFiniteError:
            loss = math.nan
        return made, time.perf_counter() - start, time.process_time() - cpu, loss
