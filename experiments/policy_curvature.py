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
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from drawing.policy_curvature import draw_curvature, draw_lines, draw_surface, draw_variance
from kit import arguments as options
from kit.policies import (
    BASELINE,
    NULL_DRAWS,
    TOLERANCE,
    Checkpoint,
    Settings,
    Task,
    draw,
    hessian_of,
    load,
    mean_and_error,
    name_of,
    rollouts,
    seed_of,
    slopes_of,
    train,
)
from kit.policy_results import (
    ALL_COLUMNS,
    COLUMNS,
    FILES,
    KEY_COLUMNS,
    LINE_COLUMNS,
    SURFACE_COLUMNS,
    WALK_COLUMNS,
    table,
)
from kit.recording import Recorder, as_text, read_rows
from kit.tabular import run_variances

# TensorFlow, Gymnasium and matplotlib are imported where they are used: `--help` and `--replot` need not wait for them.

# --- The recipe -------------------------------------------------------------------------------------------------------

# Steps after which an episode is cut, updates, episodes of an update, rate of Adam, the return in words.
TASKS = {
    "CartPole-v1": Task(200, 25, 32, 0.01, "1 per step"),
    "Acrobot-v1": Task(500, 40, 16, 0.01, "-1 per step"),
    "Pendulum-v1": Task(200, 60, 32, 0.01, "negative cost"),
}
TOP, BOTTOM = "top eigenvector", "bottom eigenvector"
DIRECTIONS = ("gradient", TOP, BOTTOM, "random")


def directions_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Unit vectors `[n]` by name: gradient, extreme eigenvectors, random; from the episodes of the checkpoint."""
    import tf_natgrad as ng

    own = hessian_of(checkpoint.settings, checkpoint.policy, checkpoint.episodes)
    found = ng.spectrum.eigsh(own, 2, "BE", method="lanczos", tol=TOLERANCE)
    bottom, top = (found.eigenvectors[:, i].numpy() for i in (0, 1))
    gradient = own.policy_gradient().numpy()
    vectors = {
        "gradient": gradient,
        TOP: top,
        BOTTOM: bottom,
        "random": np.random.default_rng(seed_of(*checkpoint.seeds, 1)).standard_normal(len(top)),
    }
    vectors = {name: (vector / np.linalg.norm(vector)).astype(top.dtype) for name, vector in vectors.items()}
    # An eigenvector has no sign: both are turned uphill.
    return {name: -v if "eigen" in name and v @ gradient < 0 else v for name, v in vectors.items()}


class Quadratic:
    """Slope and curvature of the return along directions, from fresh episodes: nothing was chosen to fit their noise.

    Args:
        checkpoint: the policy.
        vectors: the directions by name.
    """

    def __init__(self, checkpoint: Checkpoint, vectors: Mapping[str, np.ndarray]):
        settings, policy = checkpoint.settings, checkpoint.policy
        fresh = draw(settings, policy, settings.episodes, seed_of(*checkpoint.seeds, 2))
        hessian = hessian_of(settings, policy, fresh)
        self.slopes = {name: slopes_of(policy, hessian, fresh, vector) for name, vector in vectors.items()}
        self.forms = {name: hessian.quadratic_forms(vector).numpy() for name, vector in vectors.items()}
        self.across = float(vectors[BOTTOM] @ hessian.matvec(vectors[TOP]).numpy())

    def along(self, name: str, step: float) -> np.ndarray:
        """The change of the return as each episode predicts it, `[N]`."""
        return step * self.slopes[name] + 0.5 * step**2 * self.forms[name]

    def over(self, a: float, b: float) -> float:
        """The change of the return at `a` times the bottom and `b` times the top eigenvector."""
        predicted = a * self.slopes[BOTTOM].mean() + b * self.slopes[TOP].mean() + a * b * self.across
        return float(predicted + 0.5 * (a**2 * self.forms[BOTTOM].mean() + b**2 * self.forms[TOP].mean()))


def walk(checkpoint: Checkpoint, surface: bool) -> tuple[list[dict], list[dict]]:
    """Rollouts along lines and, if wanted, over the surface of the two eigenvectors, beside the quadratic.

    Args:
        checkpoint: the policy to start from, and to come back to.
        surface: whether to go over the surface too.

    Returns:
        Rows of the lines and of the surface.
    """
    from tf_natgrad._progress import progress_bar

    settings, vectors = checkpoint.settings, directions_of(checkpoint)
    quadratic = Quadratic(checkpoint, vectors)
    grid = [(a, b) for a in settings.grid for b in settings.grid] if surface else []
    total = len(vectors) * (len(settings.steps) - 1) + len(grid)
    bar = progress_bar(total=total, desc="rollouts", unit="point", leave=False)
    with rollouts(checkpoint) as returns, bar:
        at_center = returns(0.0 * vectors["random"])
        lines, found = [], []
        for name, vector in vectors.items():
            for step in settings.steps:
                there = at_center if step == 0.0 else returns(step * vector)
                row = {"direction": name, "step": float(step)}
                row["return"], row["return_error"] = mean_and_error(there)
                row["change"], row["change_error"] = mean_and_error(there - at_center)
                row["predicted"], row["predicted_error"] = mean_and_error(quadratic.along(name, step))
                lines.append(row)
                bar.update(step != 0.0)
        for a, b in grid:
            there = returns(a * vectors[BOTTOM] + b * vectors[TOP])
            row = {"step_bottom": float(a), "step_top": float(b), "return": float(there.mean())}
            row["change"], row["change_error"] = mean_and_error(there - at_center)
            found.append({**row, "predicted": quadratic.over(a, b)})
            bar.update()
    return lines, found


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
                train(settings, TASKS[settings.env], seed, arguments.iterations, at, out / "policies")
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
        found = walk(Checkpoint(settings, path, seed, number), surface=number == best and values not in surface)
        for target, rows in zip((lines, surface), found, strict=True):
            if values not in target:
                for row in rows:
                    target.append(**key, iteration=iteration, **row)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser_of(__doc__)
    add = parser.add_argument
    add("--env", choices=tuple(TASKS), default="CartPole-v1", help="the environment (default CartPole-v1)")
    add("--policies", type=pathlib.Path, nargs="+", metavar="FILE", help="saved Keras policies, instead of training")
    add("--seed", type=int, default=0, help="the first seed (default 0)")
    add("--seeds", type=options.positive(int), default=1, help="how many runs (default 1); walks belong to the first")
    add("--iterations", type=options.positive(int), help="updates of the training (default 25 to 60; 2 with --smoke)")
    add("--checkpoints", type=options.positive(int), help="how many policies are looked at (default 6; 2 with --smoke)")
    add("--episodes", type=options.positive(int), help="drawn at each checkpoint (default 500; 20 with --smoke)")
    add("--rollouts", type=options.positive(int), help="episodes at each point of a walk (default 200; 8 with --smoke)")
    add("--radius", type=options.positive(float), default=0.5, help="how far a walk goes (default 0.5)")
    add("--hidden", default="16", help="widths of the hidden layers, such as 32-32 (default 16)")
    add("--max-steps", type=options.positive(int), help="cut episodes here (default 200, Acrobot 500; 20 with --smoke)")
    add("--gamma", type=options.positive(float), default=0.99, help="the discount factor (default 0.99)")
    add("--device", help="where TensorFlow computes, such as CPU:0 or GPU:0 (default: its own choice)")
    options.add_recording(parser)
    arguments = parser.parse_args(argv)
    options.check_recording(parser, arguments)
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
    options.show_log()
    start = time.perf_counter()
    out = options.output_folder(arguments, "policy_curvature")
    paths = [out / name for name in FILES]
    if arguments.replot:
        if missing := options.none_of(paths):
            return options.failed(f"nothing to draw: {missing}")
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
