"""Small policies: how they are made, trained, saved and loaded, episodes of them, and the curvature that these show."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Sequence

import numpy as np

from kit.policy_results import KEY_COLUMNS, LEVEL, WALK_COLUMNS

# As few as the level allows.
NULL_DRAWS = 39
BASELINE = "value"
# Of the residuals, relative to the greater of the two ends: the other may have a twentieth of its size.
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Task:
    """How an environment is learned.

    Attributes:
        max_steps: after which an episode is cut.
        iterations: updates by default.
        batch: episodes of an update.
        rate: of Adam.
        what: the return in words.
    """

    max_steps: int
    iterations: int
    batch: int
    rate: float
    what: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all rows of a run have in common; the fields of `KEY_COLUMNS` among them.

    Attributes:
        env: the environment.
        max_steps: after which an episode is cut.
        hidden: widths of the hidden layers, as text.
        gamma: the discount factor.
        baseline: of the estimates.
        episodes: drawn at each checkpoint.
        null_draws: of the test.
        rollouts: at each point of a walk.
        points: of a line, on each side of 0.
        radius: of the walks.
    """

    env: str
    max_steps: int
    hidden: str
    gamma: float
    baseline: str
    episodes: int
    null_draws: int
    rollouts: int
    points: int
    radius: float

    def key(self, seed: int, policy: str) -> dict[str, object]:
        """The key columns."""
        own = {name: getattr(self, name) for name in KEY_COLUMNS if hasattr(self, name)}
        return {**own, "seed": seed, "policy": policy}

    @property
    def walk(self) -> dict[str, object]:
        """The columns of the walks."""
        return {name: getattr(self, name) for name in WALK_COLUMNS}

    @property
    def steps(self) -> np.ndarray:
        """The points of a line: closer together near 0."""
        half = self.radius * np.linspace(0, 1, self.points + 1)[1:] ** 1.5
        return np.concatenate([-half[::-1], [0.0], half])

    @property
    def grid(self) -> np.ndarray:
        """The points of a side of the surface."""
        return self.radius * np.linspace(-1, 1, 2 * self.points - 1)


def seed_of(*numbers: int) -> int:
    """A seed that has nothing to do with those of other purposes; vector environments count on from theirs."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 2)


@contextlib.contextmanager
def environments(settings: Settings, count: int):
    """A vector environment whose episodes are cut."""
    import gymnasium as gym

    env = gym.make_vec(
        settings.env,
        num_envs=count,
        vectorization_mode="sync",
        max_episode_steps=settings.max_steps,
        vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP},
    )
    try:
        yield env
    finally:
        env.close()


def draw(settings: Settings, policy, count: int, seed: int):
    """Episodes of a policy."""
    import tf_natgrad.rl as rl

    with environments(settings, min(count, 50)) as env:
        return rl.collect(env, policy, count, seed=seed)


def hessian_of(settings: Settings, policy, episodes):
    """The causal estimate."""
    import tf_natgrad.rl as rl

    return rl.PolicyHessian(policy, episodes, "causal", baseline=settings.baseline, gamma=settings.gamma)


def slopes_of(policy, hessian, episodes, vector: np.ndarray) -> np.ndarray:
    """The derivative of the expected return along a direction as each episode has it, `[N]`."""
    import tensorflow as tf

    variables = [v.value for v in policy.trainable_variables]
    tangents = [tf.cast(t, v.dtype) for t, v in zip(hessian.flat_parameters.unflatten(vector), variables, strict=True)]
    with tf.autodiff.ForwardAccumulator(variables, tangents) as accumulator:
        log_probs = policy.log_prob(episodes.observations, episodes.actions)
    along = accumulator.jvp(log_probs).numpy()
    return np.bincount(episodes.episode_ids, weights=hessian.step_weights * along)


def new_policy(settings: Settings, seed: int):
    """A policy with tanh layers, for the action space of the environment."""
    import gymnasium as gym
    import keras

    import tf_natgrad.rl as rl

    with environments(settings, 1) as env:
        observations, actions = env.single_observation_space.shape, env.single_action_space
    discrete = isinstance(actions, gym.spaces.Discrete)
    widths = [int(width) for width in settings.hidden.split("-") if width]
    outputs = int(actions.n) if discrete else actions.shape[0]
    uniform = keras.initializers.GlorotUniform
    hidden = [
        keras.layers.Dense(width, activation="tanh", kernel_initializer=uniform(seed_of(seed, 0, number)))
        for number, width in enumerate(widths)
    ]
    last = keras.layers.Dense(outputs, kernel_initializer=uniform(seed_of(seed, 1)))
    network = keras.Sequential([keras.Input(observations), *hidden, last])
    return (rl.CategoricalPolicy if discrete else rl.GaussianPolicy)(network)


def train(
    settings: Settings, task: Task, seed: int, iterations: int, checkpoints: Sequence[int], folder: pathlib.Path
) -> None:
    """Trains a policy and keeps it at the checkpoints."""
    import keras

    import tf_natgrad.rl as rl
    from tf_natgrad._progress import progress_bar

    policy = new_policy(settings, seed)
    optimizer = keras.optimizers.Adam(task.rate)
    folder.mkdir(parents=True, exist_ok=True)
    shown = progress_bar(total=iterations, desc=f"training, seed {seed}")
    with environments(settings, task.batch) as env, shown as bar:
        for iteration in range(iterations + 1):
            episodes = rl.collect(env, policy, task.batch, seed=seed_of(seed, 2, iteration))
            if iteration in checkpoints:
                policy.save(folder / f"{name_of(settings, seed, iteration)}.keras")
            if iteration == iterations:
                break
            estimate = rl.PolicyHessian(policy, episodes, "causal", "time", settings.gamma)
            downhill = estimate.flat_parameters.unflatten(-estimate.policy_gradient())
            optimizer.apply(downhill, policy.trainable_variables)
            bar.set_postfix({"return": f"{episodes.returns(settings.gamma).mean():.1f}"})
            bar.update()


def name_of(settings: Settings, seed: int, iteration: int) -> str:
    """The name of a checkpoint."""
    return f"{settings.env}_{settings.hidden}_seed{seed}_{iteration:04d}"


def load(settings: Settings, path: pathlib.Path):
    """A saved policy, or the policy made of a saved network."""
    import keras

    import tf_natgrad.rl as rl

    model = keras.models.load_model(path)
    if isinstance(model, rl.Policy):
        return model
    discrete = isinstance(new_policy(settings, 0), rl.CategoricalPolicy)
    return (rl.CategoricalPolicy if discrete else rl.GaussianPolicy)(model)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """A mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


class Checkpoint:
    """A policy with the episodes drawn at it and the extreme curvature that they show.

    Args:
        settings: of the run.
        path: of the policy.
        seed: of the run.
        number: of the checkpoint, for seeds.
    """

    def __init__(self, settings: Settings, path: pathlib.Path, seed: int, number: int):
        self.settings, self.policy, self.seeds = settings, load(settings, path), (seed, 3, number)
        self.episodes = draw(settings, self.policy, settings.episodes, seed_of(*self.seeds, 0))

    def measure(self) -> list[dict]:
        """What the rows say of both ends."""
        import tf_natgrad.rl as rl

        start = time.perf_counter()
        settings = self.settings
        found = rl.extreme_curvature(
            self.policy,
            self.episodes,
            baseline=settings.baseline,
            gamma=settings.gamma,
            level=LEVEL,
            null_draws=settings.null_draws,
            method="lanczos",
            tol=TOLERANCE,
        )
        value, error = mean_and_error(self.episodes.returns(settings.gamma))
        common = {
            "parameters": int(found.eigenvectors.shape[0]),
            "return": value,
            "return_error": error,
            "length": float(self.episodes.lengths.mean()),
            "seconds": time.perf_counter() - start,
        }
        rows = [
            {
                **common,
                "end": end,
                "eigenvalue": float(found.eigenvalues[i]),
                "low": float(found.intervals[i, 0]),
                "high": float(found.intervals[i, 1]),
                "cross_fitted": float(found.cross_fitted[i]),
                "cross_low": float(found.cross_fitted_intervals[i, 0]),
                "cross_high": float(found.cross_fitted_intervals[i, 1]),
                "null_limit": float(found.null_limits[i]),
                "p_value": float(found.p_values[i]),
                "residual": float(found.residuals[i]),
            }
            for i, end in enumerate(("smallest", "largest"))
        ]
        return rows


@contextlib.contextmanager
def rollouts(checkpoint: Checkpoint):
    """Yields a function of a move of all weights: the returns of episodes there, with the same random numbers at each.

    The policy is put back in the end.
    """
    import tensorflow as tf

    import tf_natgrad.rl as rl
    from tf_natgrad.parameters import FlatParameters

    settings, policy = checkpoint.settings, checkpoint.policy
    flat, seed = FlatParameters(policy.trainable_variables), seed_of(*checkpoint.seeds, 3)
    center = flat.read().numpy()
    with environments(settings, settings.rollouts) as env:

        def returns(move: np.ndarray) -> np.ndarray:
            flat.assign(tf.constant(center + move, flat.dtype))
            # One episode per environment: each has its own seed and row of action noise, wherever the policy is.
            episodes = rl.collect(env, policy, settings.rollouts, seed=seed)
            return episodes.returns(settings.gamma)

        yield returns
    flat.assign(tf.constant(center, flat.dtype))
