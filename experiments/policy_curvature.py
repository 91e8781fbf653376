"""What the curvature of the expected return does while a small policy learns, and whether rollouts agree with it.

A policy with one hidden tanh layer is trained by the policy gradient with Adam and a baseline. At checkpoints, episodes
are drawn and the smallest and largest eigenvalue of the Hessian of the expected discounted return are found, with
confidence intervals, cross-fitted values and what pure noise gives. At an early checkpoint and at that of the greatest
return, fresh rollouts then follow the gradient, the two eigenvectors and a random direction, all with the same random
numbers, and are held against the quadratic that other episodes predict.

An episode is cut after `--max-steps` steps: that is part of what is called the return here. A last figure, on small
random tabular problems, compares the variance of the estimators over the horizon.

Policies are kept in the folder `policies` beside the CSV files; `--policies` takes these, or others.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from drawing.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, pyplot, save, set_caption
from kit.arguments import add_recording, check_recording, output_folder, positive, show_log
from kit.recording import Recorder, Row, as_text, read_rows

# TensorFlow, Gymnasium and matplotlib are imported where they are used: `--help` and `--replot` need not wait for them.

LOGGER = logging.getLogger("tf_natgrad")
KEY_COLUMNS = ("env", "max_steps", "hidden", "gamma", "baseline", "episodes", "null_draws", "seed", "policy")
COLUMNS = (
    *(*KEY_COLUMNS, "iteration", "parameters", "return", "return_error", "length", "end", "eigenvalue", "low", "high"),
    *("cross_fitted", "cross_low", "cross_high", "null_limit", "p_value", "residual", "seconds"),
)
WALK_COLUMNS = ("rollouts", "points", "radius")
LINE_COLUMNS = (
    *(*KEY_COLUMNS, *WALK_COLUMNS, "iteration", "direction", "step", "return", "return_error"),
    *("change", "change_error", "predicted", "predicted_error"),
)
SURFACE_COLUMNS = (
    *(*KEY_COLUMNS, *WALK_COLUMNS, "iteration", "step_bottom", "step_top", "return", "change", "change_error"),
    "predicted",
)
VARIANCE_KEY_COLUMNS = ("mdp", "horizon", "samples")
VARIANCE_COLUMNS = (*VARIANCE_KEY_COLUMNS, "estimator", "reward_offset", "variance", "factor")

LEVEL = 0.05
# As few as the level allows.
NULL_DRAWS = 39
DIRECTIONS = {"gradient": BLUE, "top eigenvector": RED, "bottom eigenvector": GREEN, "random": GREY}
BASELINE = "value"
# Of the residuals, relative to the greater of the two ends: the other may have a twentieth of its size.
TOLERANCE = 1e-3
VARIANCE_HORIZONS = (10, 50, 200)
# Estimator, its baseline in words, offset of the rewards per step (their standard deviation being 1), colour.
VARIANCE_CASES = {
    "causal, state baseline": (0.0, BLUE),
    "trajectory, constant baseline J": (0.0, ORANGE),
    "trajectory, no baseline, rewards + 0.1": (0.1, PURPLE),
    "trajectory, no baseline, rewards + 0.5": (0.5, RED),
}


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


TASKS = {
    "CartPole-v1": Task(200, 25, 32, 0.01, "1 per step"),
    "Acrobot-v1": Task(500, 40, 16, 0.01, "-1 per step"),
    "Pendulum-v1": Task(200, 60, 32, 0.01, "negative cost"),
}


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


def train(settings: Settings, seed: int, iterations: int, checkpoints: Sequence[int], folder: pathlib.Path) -> None:
    """Trains a policy and keeps it at the checkpoints."""
    import keras

    import tf_natgrad.rl as rl
    from tf_natgrad._progress import progress_bar

    task, policy = TASKS[settings.env], new_policy(settings, seed)
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
        self.settings, self.policy, self._seeds = settings, load(settings, path), (seed, 3, number)
        self.episodes = draw(settings, self.policy, settings.episodes, seed_of(*self._seeds, 0))

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

    def walk(self, surface: bool) -> tuple[list[dict], list[dict]]:
        """Rollouts along lines and, if wanted, over the surface of the two eigenvectors, beside the quadratic.

        The directions come from the episodes of the checkpoint, slope and curvature along them from fresh ones, so
        that nothing has been chosen to fit the noise of what it is then compared with.

        Args:
            surface: whether to go over the surface too.

        Returns:
            Rows of the lines and of the surface.
        """
        import tensorflow as tf

        import tf_natgrad as ng
        from tf_natgrad._progress import progress_bar

        settings = self.settings
        own = hessian_of(settings, self.policy, self.episodes)
        found = ng.spectrum.eigsh(own, 2, "BE", method="lanczos", tol=TOLERANCE)
        flat = own.flat_parameters
        bottom, top = (found.eigenvectors[:, i].numpy() for i in (0, 1))
        vectors = {
            "gradient": own.policy_gradient().numpy(),
            "top eigenvector": top,
            "bottom eigenvector": bottom,
            "random": np.random.default_rng(seed_of(*self._seeds, 1)).standard_normal(len(top)),
        }
        vectors = {name: (vector / np.linalg.norm(vector)).astype(top.dtype) for name, vector in vectors.items()}
        # An eigenvector has no sign: both are turned uphill.
        gradient = own.policy_gradient().numpy()
        vectors = {name: -v if "eigen" in name and v @ gradient < 0 else v for name, v in vectors.items()}
        fresh = draw(settings, self.policy, settings.episodes, seed_of(*self._seeds, 2))
        hessian = hessian_of(settings, self.policy, fresh)
        slopes = {name: slopes_of(self.policy, hessian, fresh, v) for name, v in vectors.items()}
        forms = {name: hessian.quadratic_forms(v).numpy() for name, v in vectors.items()}
        across = float(vectors["bottom eigenvector"] @ hessian.matvec(vectors["top eigenvector"]).numpy())
        center, rollouts_seed = flat.read().numpy(), seed_of(*self._seeds, 3)

        with environments(settings, settings.rollouts) as env:
            import tf_natgrad.rl as rl

            def returns(move: np.ndarray) -> np.ndarray:
                flat.assign(tf.constant(center + move, flat.dtype))
                # One episode per environment: each has its own seed and row of action noise, wherever the policy is.
                episodes = rl.collect(env, self.policy, settings.rollouts, seed=rollouts_seed)
                return episodes.returns(settings.gamma)

            grid = [(a, b) for a in settings.grid for b in settings.grid] if surface else []
            total = len(vectors) * (len(settings.steps) - 1) + len(grid)
            with progress_bar(total=total, desc="rollouts", unit="point", leave=False) as bar:
                at_center = returns(np.zeros_like(center))
                lines = []
                for name, vector in vectors.items():
                    for step in settings.steps:
                        there = at_center if step == 0.0 else returns(step * vector)
                        value, error = mean_and_error(there)
                        change, change_error = mean_and_error(there - at_center)
                        predicted, predicted_error = mean_and_error(step * slopes[name] + 0.5 * step**2 * forms[name])
                        lines.append(
                            {
                                "direction": name,
                                "step": float(step),
                                "return": value,
                                "return_error": error,
                                "change": change,
                                "change_error": change_error,
                                "predicted": predicted,
                                "predicted_error": predicted_error,
                            }
                        )
                        bar.update(step != 0.0)
                found_surface = []
                low, high = "bottom eigenvector", "top eigenvector"
                for a, b in grid:
                    there = returns(a * vectors[low] + b * vectors[high])
                    change, error = mean_and_error(there - at_center)
                    predicted = a * slopes[low].mean() + b * slopes[high].mean() + a * b * across
                    predicted += 0.5 * (a**2 * forms[low].mean() + b**2 * forms[high].mean())
                    found_surface.append(
                        {
                            "step_bottom": float(a),
                            "step_top": float(b),
                            "return": float(there.mean()),
                            "change": change,
                            "change_error": error,
                            "predicted": float(predicted),
                        }
                    )
                    bar.update()
        flat.assign(tf.constant(center, flat.dtype))
        return lines, found_surface


def slopes_of(policy, hessian, episodes, vector: np.ndarray) -> np.ndarray:
    """The derivative of the expected return along a direction as each episode has it, `[N]`."""
    import tensorflow as tf

    variables = [v.value for v in policy.trainable_variables]
    tangents = [tf.cast(t, v.dtype) for t, v in zip(hessian.flat_parameters.unflatten(vector), variables, strict=True)]
    with tf.autodiff.ForwardAccumulator(variables, tangents) as accumulator:
        log_probs = policy.log_prob(episodes.observations, episodes.actions)
    along = accumulator.jvp(log_probs).numpy()
    return np.bincount(episodes.episode_ids, weights=hessian.step_weights * along)


class TabularProblem:
    """A random problem of 3 states and 2 actions, with a softmax policy of one logit per state and action.

    Rewards have standard deviation 1 over states and actions, and are centred for each horizon so that the expected
    return, undiscounted, is exactly 0.

    Args:
        seed: of transitions, rewards and logits.
    """

    states, actions = 3, 2

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self._rng = rng
        self.transitions = rng.dirichlet(np.ones(self.states), [self.states, self.actions])
        self.start = rng.dirichlet(np.ones(self.states))
        rewards = rng.standard_normal([self.states, self.actions])
        self.rewards = (rewards - rewards.mean()) / rewards.std()
        logits = rng.standard_normal([self.states, self.actions])
        self.policy = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def values(self, horizon: int, rewards: np.ndarray) -> np.ndarray:
        """The value of each state at each time, `[horizon + 1, states]`."""
        values = np.zeros([horizon + 1, self.states])
        for t in reversed(range(horizon)):
            values[t] = (self.policy * (rewards + self.transitions @ values[t + 1])).sum(1)
        return values

    def variances(self, horizon: int, samples: int) -> dict[str, float]:
        """The variance per episode of each estimate of the Hessian, mean over its entries.

        Args:
            horizon: steps of an episode.
            samples: episodes.

        Returns:
            By the name of the case.
        """
        found = self.estimates(horizon, samples)
        return {name: float(matrices.var(0, ddof=1).mean()) for name, matrices in found.items()}

    def estimates(self, horizon: int, samples: int) -> dict[str, np.ndarray]:
        """The estimates of single episodes, `[samples, n, n]`, by the name of the case."""
        rewards = self.rewards - self.start @ self.values(horizon, self.rewards)[0] / horizon
        values = self.values(horizon, rewards)
        states, actions = self._sample(horizon, samples)
        to_go = np.cumsum(rewards[states, actions][:, ::-1], 1)[:, ::-1]
        causal_weights = to_go - values[np.arange(horizon), states]
        size = self.states * self.actions
        sums = np.zeros([samples, size])
        curvatures = np.zeros([samples, size, size])
        causal = np.zeros([samples, size, size])
        score, hessian = self._derivatives()
        for t in range(horizon):
            s, a = states[:, t], actions[:, t]
            g, h, w = score[s, a], hessian[s], causal_weights[:, t, None, None]
            # The pairs of which this step is the later one, and the step with itself.
            outer = g[:, :, None] * (0.5 * g + sums)[:, None, :]
            causal += w * (h + outer + outer.transpose(0, 2, 1))
            sums += g
            curvatures += h
        whole = sums[:, :, None] * sums[:, None, :] + curvatures
        found = {}
        for name, (offset, _) in VARIANCE_CASES.items():
            # The constant baseline J is 0 where the rewards are centred.
            returns = to_go[:, 0] + offset * horizon
            found[name] = causal if name.startswith("causal") else returns[:, None, None] * whole
        return found

    def _sample(self, horizon: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
        states, actions = np.zeros([samples, horizon], int), np.zeros([samples, horizon], int)
        state = _choose(self._rng, np.broadcast_to(self.start, [samples, self.states]))
        for t in range(horizon):
            states[:, t], actions[:, t] = state, _choose(self._rng, self.policy[state])
            state = _choose(self._rng, self.transitions[state, actions[:, t]])
        return states, actions

    def _derivatives(self) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and Hessian of the log-probabilities, `[states, actions, n]` and `[states, n, n]`."""
        size = self.states * self.actions
        score, hessian = np.zeros([self.states, self.actions, size]), np.zeros([self.states, size, size])
        for s in range(self.states):
            block, p = slice(s * self.actions, (s + 1) * self.actions), self.policy[s]
            score[s, :, block] = np.eye(self.actions) - p
            hessian[s, block, block] = np.outer(p, p) - np.diag(p)
        return score, hessian


def _choose(rng: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """One index per row."""
    return np.minimum(
        (rng.random([len(probabilities), 1]) > np.cumsum(probabilities, 1)).sum(1), probabilities.shape[1] - 1
    )


def run_variances(problems: int, samples: int, path: pathlib.Path, resume: bool) -> None:
    """Records the variances of all problems and horizons."""
    from tf_natgrad._progress import progress_bar

    wanted = [(seed, horizon) for seed in range(problems) for horizon in VARIANCE_HORIZONS]
    keys = {tuple(map(as_text, (seed, horizon, samples))) for seed, horizon in wanted}
    recorder = Recorder(
        path,
        VARIANCE_COLUMNS,
        VARIANCE_KEY_COLUMNS,
        resume,
        lambda key, rows: key in keys and len(rows) == len(VARIANCE_CASES),
    )
    for seed, horizon in progress_bar(wanted, desc="variances"):
        key = {"mdp": seed, "horizon": horizon, "samples": samples}
        if tuple(key.values()) in recorder:
            continue
        found = TabularProblem(seed).variances(horizon, samples)
        for name, variance in found.items():
            factor = variance / found["causal, state baseline"]
            offset = VARIANCE_CASES[name][0]
            recorder.append(**key, estimator=name, reward_offset=offset, variance=variance, factor=factor)


def run_all(arguments: argparse.Namespace, settings: Settings, out: pathlib.Path) -> None:
    """Trains, measures, walks and records."""
    from tf_natgrad._progress import progress_bar

    run_variances(2 if arguments.smoke else 5, 500 if arguments.smoke else 4000, out / FILES[3], arguments.resume)
    plans = []
    if arguments.policies:
        for path in arguments.policies:
            load(settings, path)
        plans.append((0, [(path.stem, number, path) for number, path in enumerate(arguments.policies)]))
    else:
        at = np.unique(np.linspace(0, arguments.iterations, arguments.checkpoints).round().astype(int)).tolist()
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            names = {iteration: name_of(settings, seed, iteration) for iteration in at}
            paths = {iteration: out / "policies" / f"{name}.keras" for iteration, name in names.items()}
            if not (arguments.resume and all(path.is_file() for path in paths.values())):
                train(settings, seed, arguments.iterations, at, out / "policies")
            plans.append((seed, [(names[i], i, paths[i]) for i in at]))

    def recorder(name, columns, count):
        wanted = {tuple(map(as_text, settings.key(seed, policy).values())) for seed, p in plans for policy, _, _ in p}
        walk = tuple(map(as_text, settings.walk.values()))
        keys = KEY_COLUMNS if count == 2 else (*KEY_COLUMNS, *WALK_COLUMNS)
        own = wanted if count == 2 else {(*key, *walk) for key in wanted}
        return Recorder(
            out / name, columns, keys, arguments.resume, lambda key, rows: key in own and len(rows) == count
        )

    curvature = recorder(FILES[0], COLUMNS, 2)
    lines = recorder(FILES[1], LINE_COLUMNS, len(DIRECTIONS) * len(settings.steps))
    surface = recorder(FILES[2], SURFACE_COLUMNS, len(settings.grid) ** 2)
    for seed, plan in plans:
        with progress_bar(total=len(plan), desc=f"curvature, seed {seed}", unit="checkpoint") as bar:
            for number, (name, iteration, path) in enumerate(plan):
                key = settings.key(seed, name)
                if tuple(key.values()) not in curvature:
                    rows = Checkpoint(settings, path, seed, number).measure()
                    for row in rows:
                        curvature.append(**key, iteration=iteration, **row)
                bar.update()
    seed, plan = plans[0]
    returns = {row["policy"]: float(row["return"]) for row in curvature.rows() if row["seed"] == str(seed)}
    best = max(range(len(plan)), key=lambda number: returns[plan[number][0]])
    for number in dict.fromkeys([min(1, len(plan) - 1), best]):
        name, iteration, path = plan[number]
        key = {**settings.key(seed, name), **settings.walk}
        values = tuple(key.values())
        if values in lines and (number != best or values in surface):
            continue
        found = Checkpoint(settings, path, seed, number).walk(surface=number == best and values not in surface)
        for target, rows in zip((lines, surface), found, strict=True):
            if values not in target:
                for row in rows:
                    target.append(**key, iteration=iteration, **row)


FILES = ("policy_curvature.csv", "policy_lines.csv", "policy_surface.csv", "policy_variance.csv")
ALL_COLUMNS = (COLUMNS, LINE_COLUMNS, SURFACE_COLUMNS, VARIANCE_COLUMNS)


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """A column as numbers."""
    return np.array([float(row[name] or "nan") for row in rows])


def by(rows: Sequence[Row], *names: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the values of some columns, in their order."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def described(row: Row) -> str:
    """Environment and policy in words."""
    return f"{row['env']}, at most {row['max_steps']} steps, discount {row['gamma']}"


def draw_curvature(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws return and extreme eigenvalues along training."""
    figure, axes = pyplot().subplots(1, 3, figsize=(16, 6.6))
    returns, largest, smallest = axes
    for number, ((_,), of_seed) in enumerate(by(rows, "seed").items()):
        dash = ("-", "--", ":", "-.")[number % 4]
        ends = {end: of_end for (end,), of_end in by(of_seed, "end").items()}
        x = column(ends["largest"], "iteration")
        value, error = column(ends["largest"], "return"), column(ends["largest"], "return_error")
        returns.errorbar(x, value, 1.96 * error, color="black", linestyle=dash, marker="o", capsize=2, markersize=4)
        # Beside one another: bars at the same place would hide one another.
        shift = 0.012 * max(float(np.ptp(x)), 1.0)
        for axis, end, colour in ((largest, "largest", RED), (smallest, "smallest", GREEN)):
            at = ends[end]
            for offset, name, low, high, tint, label in (
                (-shift, "eigenvalue", "low", "high", colour, "all episodes"),
                (shift, "cross_fitted", "cross_low", "cross_high", BLUE, "cross-fitted"),
            ):
                middle = column(at, name)
                bars = np.abs([middle - column(at, low), column(at, high) - middle])
                axis.errorbar(
                    *(x + offset, middle, bars),
                    color=tint,
                    linestyle=dash,
                    marker="o",
                    markersize=4,
                    capsize=2,
                    label=None if number else f"{label}, {1 - LEVEL:.0%} interval",
                )
            label = None if number else "limit of pure noise"
            axis.plot(x, column(at, "null_limit"), color=GREY, linestyle=dash, marker="_", markersize=12, label=label)
    for axis, end in ((largest, "largest"), (smallest, "smallest")):
        axis.axhline(0.0, color="black", linewidth=0.6)
        axis.set_yscale("symlog", linthresh=threshold_of(rows))
        axis.set_ylabel("eigenvalue (return / weight², symmetric logarithm)")
        axis.set_title(f"{end.capitalize()} eigenvalue of the Hessian")
        axis.legend(fontsize=9)
    returns.set_ylabel("expected discounted return")
    returns.set_title("Expected return")
    for axis in axes:
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.25)
    first = rows[0]
    figure.suptitle(f"Curvature of the expected return along training, {described(first)}", fontsize=15)
    clear = [(row["end"], row["iteration"]) for row in rows if float(row["p_value"] or 1) <= LEVEL / 2]
    where = "; ".join(
        f"the {end} one at iteration{'s' if len(found) > 1 else ''} {', '.join(i for _, i in found)}"
        for (end,), found in ((key, [c for c in clear if c[0] == key[0]]) for key in by(rows, "end"))
        if found
    )
    set_caption(
        figure,
        f"{first['episodes']} episodes at each checkpoint, {first['parameters']} weights, causal estimator with a "
        f"cross-fitted state baseline. Bars: {1 - LEVEL:.0%} intervals over episodes. Eigenvalues of all episodes are "
        "biased outward, cross-fitted ones (eigenvector of one half, curvature of the other) inward. Grey: what the "
        f"extreme eigenvalue stays within where all actions are drawn anew, at a level of {LEVEL / 2:.1%} per end "
        f"({first['null_draws']} draws). Significantly beyond it: {where or 'none'}. The vertical axis is "
        f"linear within {threshold_of(rows):g} of 0.",
    )
    save(figure, path)


def threshold_of(rows: Sequence[Row]) -> float:
    """Below which the axis of eigenvalues is linear: a round number near the smallest magnitude."""
    least = np.abs(column(rows, "eigenvalue"))
    return 10.0 ** math.floor(math.log10(max(least.min(), 1e-3 * least.max(), 1e-12)))


def draw_lines(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the change of the return along the directions, beside the quadratic."""
    policies = by(sorted(rows, key=lambda row: int(row["iteration"])), "policy")
    figure, axes = pyplot().subplots(
        len(policies), len(DIRECTIONS), figsize=(16, 1.9 + 3.9 * len(policies)), squeeze=False
    )
    inside = total = 0
    for row_axes, of_policy in zip(axes, policies.values(), strict=True):
        for axis, (name, colour) in zip(row_axes, DIRECTIONS.items(), strict=True):
            line = [row for row in of_policy if row["direction"] == name]
            step, change, error = (column(line, c) for c in ("step", "change", "change_error"))
            predicted, uncertain = column(line, "predicted"), column(line, "predicted_error")
            gap = np.abs(change - predicted) <= 1.96 * np.hypot(error, uncertain)
            near = (np.abs(step) < 0.2) & (step != 0)
            inside, total = inside + int(gap[near].sum()), total + int(near.sum())
            axis.errorbar(step, change, 1.96 * error, color=colour, marker="o", markersize=4, capsize=2, linewidth=1)
            axis.plot(step, predicted, color="black", linestyle="--", linewidth=1.2)
            low, high = predicted - 1.96 * uncertain, predicted + 1.96 * uncertain
            axis.fill_between(step, low, high, color="black", alpha=0.12, linewidth=0)
            # The rollouts decide what is seen: a parabola leaves the picture where it no longer applies.
            bottom, top = (change - 1.96 * error).min(), (change + 1.96 * error).max()
            margin = 0.35 * max(top - bottom, 1e-9)
            axis.set_ylim(bottom - margin, top + margin)
            axis.set_title(f"iteration {line[0]['iteration']}: {name}", fontsize=11)
            axis.set_xlabel("step (Euclidean norm)")
            axis.grid(alpha=0.25)
        row_axes[0].set_ylabel("change of the expected return")
    handles = [
        pyplot().Line2D([], [], color=BLUE, marker="o", markersize=4, label="rollouts"),
        pyplot().Line2D([], [], color="black", linestyle="--", label="quadratic prediction"),
    ]
    axes[0, 0].legend(handles=handles, fontsize=9)
    first = rows[0]
    figure.suptitle(f"Expected return along directions, and the quadratic prediction, {described(first)}", fontsize=15)
    set_caption(
        figure,
        f"Dots: change of the mean return of {first['rollouts']} episodes with the same random numbers at every step; "
        f"bars: 95% intervals of the paired differences. Dashed: slope and curvature from {first['episodes']} other "
        "episodes, band: 95%. Directions are unit vectors, found on yet other episodes; eigenvectors point uphill. Of "
        f"the steps shorter than 0.2, {inside} of {total} agree with the prediction within the two intervals "
        "combined. Vertical scales differ.",
    )
    save(figure, path)


def draw_surface(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the return over the two extreme eigenvectors, from rollouts and from the quadratic."""
    a, b = (np.unique(column(rows, name)) for name in ("step_bottom", "step_top"))
    found = {name: column(rows, name).reshape(len(a), len(b)).T for name in ("change", "predicted", "change_error")}
    figure, axes = pyplot().subplots(1, 3, figsize=(16, 5.6))
    bound = max(np.abs(found["change"]).max(), 1e-9)
    panels = (
        ("change", "Rollouts", "RdBu", found["change"]),
        ("change", "Quadratic prediction", "RdBu", found["predicted"]),
        ("difference", "Rollouts less prediction", "PuOr", found["change"] - found["predicted"]),
    )
    for axis, (what, title, colours, values) in zip(axes, panels, strict=True):
        levels = np.linspace(-bound, bound, 21)
        drawn = axis.contourf(a, b, values, levels, cmap=colours, extend="both")
        axis.contour(a, b, values, [0.0], colors="black", linewidths=0.8)
        axis.plot(0, 0, "k+", markersize=10)
        axis.set_title(title)
        axis.set_xlabel("step along the bottom eigenvector")
        axis.set_ylabel("step along the top eigenvector")
        figure.colorbar(drawn, ax=axis, label=f"{what} of the expected return", shrink=0.75, format="%.3g")
        axis.set_aspect("equal")
    first = rows[0]
    figure.suptitle(
        f"Expected return over the two extreme eigenvectors, iteration {first['iteration']}, {described(first)}",
        fontsize=15,
    )
    off = np.abs(panels[2][3])
    middle = off[np.ix_(np.abs(b) <= 0.5 * b.max(), np.abs(a) <= 0.5 * a.max())]
    set_caption(
        figure,
        f"{first['rollouts']} episodes at each of {len(a)} x {len(b)} points, the same random numbers at all; return "
        f"at the cross {float(rows[len(rows) // 2]['return']):.1f}, standard errors of the change up to "
        f"{found['change_error'].max():.2g}. Prediction from {first['episodes']} other episodes, with its mixed term. "
        f"Largest difference: {middle.max():.2g} in the inner half of either step, {off.max():.2g} at all points. "
        "Black line: no change, or no difference. Values beyond the scale have the colour of its end.",
    )
    save(figure, path)


def draw_variance(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the variances of the estimators against the horizon."""
    figure, axes = pyplot().subplots(1, 2, figsize=(14, 6.4))
    medians = {}
    for name, (_, colour) in VARIANCE_CASES.items():
        own = by([row for row in rows if row["estimator"] == name], "mdp")
        horizon = column(next(iter(own.values())), "horizon")
        for axis, quantity in zip(axes, ("variance", "factor"), strict=True):
            values = np.array([column(of_mdp, quantity) for of_mdp in own.values()])
            axis.plot(horizon, values.T, color=colour, alpha=0.3, linewidth=0.9)
            axis.plot(horizon, np.median(values, 0), color=colour, marker="o", linewidth=2, label=name)
        medians[name] = values
    for axis, label, title in zip(
        axes,
        ("variance per episode, mean over entries (logarithmic)", "factor (logarithmic)"),
        ("Variance of the estimated Hessian", "Variance over that of causal with a state baseline"),
        strict=True,
    ):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(horizon, [f"{h:.0f}" for h in horizon])
        axis.minorticks_off()
        axis.set_xlabel("horizon (steps, logarithmic)")
        axis.set_ylabel(label)
        axis.set_title(title)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=9, loc="upper left")

    def spoken(name: str) -> str:
        values = medians[name]
        return (
            ", ".join(f"{m:.1f}" for m in np.median(values, 0)) + f" (range {values.min():.1f} to {values.max():.1f})"
        )

    count = len({row["mdp"] for row in rows})
    figure.suptitle("Variance of policy-Hessian estimators against the horizon, tabular problems", fontsize=15)
    names = [name for name in VARIANCE_CASES if not name.startswith("causal")]
    set_caption(
        figure,
        f"{count} random problems of 3 states and 2 actions, no discount, {int(rows[0]['samples']):,} episodes each; "
        "thin: single problems, thick: medians. Rewards of standard deviation 1 (over states and actions), centred so "
        "that J = 0; an offset is added to each reward. The state baseline is the exact value function. Factors at "
        f"horizons {', '.join(f'{h:.0f}' for h in horizon)}, medians: "
        + "; ".join(f"{name}: {spoken(name)}" for name in names)
        + ".",
    )
    save(figure, path)


def table(rows: Sequence[Row]) -> str:
    """What was found at the checkpoints, for people."""
    lines = [
        f"{described(rows[0])}, {rows[0]['parameters']} weights, {rows[0]['episodes']} episodes a checkpoint",
        "",
        f"{'policy':32s}{'return':>9s}{'end':>10s}{'eigenvalue':>12s}{'interval':>20s}{'cross-fitted':>14s}"
        f"{'noise limit':>13s}{'p':>7s}",
    ]
    for row in rows:
        number = {name: float(row[name] or "nan") for name in COLUMNS[COLUMNS.index("eigenvalue") :]}
        lines.append(
            f"{row['policy']:32s}{float(row['return']):>9.1f}{row['end']:>10s}{number['eigenvalue']:>12.3g}"
            f"{number['low']:>11.3g}{number['high']:>9.3g}{number['cross_fitted']:>14.3g}"
            f"{number['null_limit']:>13.3g}{number['p_value']:>7.2g}"
        )
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--env", choices=tuple(TASKS), default="CartPole-v1", help="the environment (default CartPole-v1)")
    add("--policies", type=pathlib.Path, nargs="+", metavar="FILE", help="saved Keras policies, instead of training")
    add("--seed", type=int, default=0, help="the first seed (default 0)")
    add("--seeds", type=positive(int), default=1, help="how many runs (default 1); walks belong to the first")
    add("--iterations", type=positive(int), help="updates of the training (default 25 to 60; 2 with --smoke)")
    add("--checkpoints", type=positive(int), help="how many policies are looked at (default 6; 2 with --smoke)")
    add("--episodes", type=positive(int), help="drawn at each checkpoint (default 500; 20 with --smoke)")
    add("--rollouts", type=positive(int), help="episodes at each point of a walk (default 200; 8 with --smoke)")
    add("--radius", type=positive(float), default=0.5, help="how far a walk goes (default 0.5)")
    add("--hidden", default="16", help="widths of the hidden layers, such as 32-32 (default 16)")
    add("--max-steps", type=positive(int), help="cut episodes here (default: 200, Acrobot 500; 20 with --smoke)")
    add("--gamma", type=positive(float), default=0.99, help="the discount factor (default 0.99)")
    add("--device", help="where TensorFlow computes, such as CPU:0 or GPU:0 (default: its own choice)")
    add_recording(parser)
    arguments = parser.parse_args(argv)
    check_recording(parser, arguments)
    task, smoke = TASKS[arguments.env], arguments.smoke
    arguments.iterations = arguments.iterations or (2 if smoke else task.iterations)
    arguments.checkpoints = arguments.checkpoints or (2 if smoke else 6)
    arguments.episodes = arguments.episodes or (20 if smoke else 500)
    arguments.rollouts = arguments.rollouts or (8 if smoke else 200)
    arguments.max_steps = arguments.max_steps or (20 if smoke else task.max_steps)
    for problem, wrong in (
        ("--episodes: at least 8 are needed", arguments.episodes < 8),
        ("--rollouts: at least 2 are needed", arguments.rollouts < 2),
        ("--gamma: expected at most 1", arguments.gamma > 1),
    ):
        if wrong:
            parser.error(problem)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, records, draws and reports."""
    arguments = parse(argv)
    show_log()
    start = time.perf_counter()
    out = output_folder(arguments, "policy_curvature")
    paths = [out / name for name in FILES]
    if arguments.replot:
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            print(f"error: nothing to draw: there is no {' and no '.join(missing)}", file=sys.stderr)
            return 1
    else:
        import tensorflow as tf

        settings = Settings(
            *(arguments.env, arguments.max_steps, arguments.hidden, arguments.gamma, BASELINE, arguments.episodes),
            *(NULL_DRAWS, arguments.rollouts, 2 if arguments.smoke else 5, arguments.radius),
        )
        with tf.device(arguments.device) if arguments.device else contextlib.nullcontext():
            run_all(arguments, settings, out)
    recorded = [read_rows(path, columns) for path, columns in zip(paths, ALL_COLUMNS, strict=True)]
    for rows, path, drawing in zip(
        recorded, paths, (draw_curvature, draw_lines, draw_surface, draw_variance), strict=True
    ):
        drawing(rows, path.with_suffix(".png"))
    print(f"\n{table(recorded[0])}\n\nCSV files and figures: {out} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
