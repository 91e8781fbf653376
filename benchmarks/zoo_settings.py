"""What the settings of the defaults do on the half of the zoo on which they may be chosen.

One setting of a recipe is changed at a time. A number is the test loss after the same seconds of the processor,
relative to the recipe as it comes: below 1 is better. A setting is taken up if the geometric mean over the models of
its recipe is at most 0.95 and none of them is above 1.1; that rule was written down before the first run.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import os
import pathlib
import statistics
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The zoo has layers, which start TensorFlow, before arguments are read.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
from _zoo import ZOO
from _zoo_training import Training

import tf_natgrad as ng
from tf_natgrad._files import CsvFile
from tf_natgrad._progress import progress_bar

FIGURES = pathlib.Path(__file__).parent.parent / "figures"
COLUMNS = ("recipe", "model", "setting", "seed", "seconds", "steps", "loss")
KEY = ("model", "recipe", "setting", "seed", "seconds")
AS_IT_COMES = "as it comes"
# For each recipe: its `fisher`, and what is tried beside its own numbers.
RECIPES: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
    "exact": (
        "exact",
        {
            "learning_rate 0.5": {"learning_rate": 0.5},
            "learning_rate 1": {"learning_rate": 1.0},
            "damping 1": {"damping": {"initial": 1.0}},
            "damping 0.01": {"damping": {"initial": 0.01}},
            "max_kl 0.03": {"max_kl": 0.03},
            "max_kl 0.3": {"max_kl": 0.3},
            "momentum 0.9": {"momentum": 0.9},
            "K-FAC, fixed": {"fisher": {"name": "kfac", "recipe": "fixed"}},
        },
    ),
    "kfac, fixed": (
        {"name": "kfac", "recipe": "fixed"},
        {
            "learning_rate 0.05": {"learning_rate": 0.05},
            "learning_rate 0.2": {"learning_rate": 0.2},
            "damping 0.003": {"damping": 0.003},
            "damping 0.03": {"damping": 0.03},
            "max_kl 2e-5": {"max_kl": 2e-5},
            "max_kl 1e-4": {"max_kl": 1e-4},
            "max_kl 2e-4": {"max_kl": 2e-4},
        },
    ),
}


def recipe_of(name: str) -> str:
    """The recipe that `NaturalGradient()` takes on a model."""
    animal = ZOO[name]
    x, y, *_ = animal.examples()
    few = (keras.tree.map_structure(lambda a: a[: animal.batch], part) for part in (x, y))
    chosen = ng.explain(animal.build(), animal.loss(), *few).choice.fisher
    return chosen if chosen in RECIPES else "kfac, fixed"


def run(name: str, recipe: str, setting: str, seed: int, seconds: float) -> dict[str, Any]:
    """Trains one model at one setting."""
    animal, (fisher, settings) = ZOO[name], RECIPES[recipe]
    keras.config.set_dtype_policy(animal.policy)
    try:
        training = Training(animal, _optimizer(fisher, settings.get(setting, {})), seed)
        while training.seconds < seconds:
            training.step()
        return {
            **{"recipe": recipe, "model": name, "setting": setting, "seed": seed, "seconds": seconds},
            **{"steps": training.steps, "loss": training.loss()},
        }
    finally:
        keras.config.set_dtype_policy("float32")
        keras.backend.clear_session()
        gc.collect()


def _optimizer(fisher: Any, changed: dict[str, Any]) -> ng.NaturalGradient:
    damping = changed.get("damping")
    if isinstance(damping, dict):
        changed = changed | {"damping": ng.LevenbergMarquardt(**damping)}
    return ng.NaturalGradient(**{"fisher": fisher} | changed)


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    """What was run before."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def table_of(path: pathlib.Path) -> str:
    """Ratios of test losses (medians of the seeds) to those as it comes, and their geometric means, in Markdown."""
    rows, blocks = rows_of(path), []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        losses: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            if row["recipe"] == recipe:
                losses.setdefault((row["model"], row["setting"]), []).append(float(row["loss"]))
        found = {key: statistics.median(values) for key, values in losses.items()}
        models = list(dict.fromkeys(model for model, _ in found))
        lines = [[recipe, *models, "geometric mean"], ["---"] * (len(models) + 2)]
        for setting in dict.fromkeys(setting for _, setting in found):
            ratios = [found[model, setting] / found[model, AS_IT_COMES] for model in models]
            mean = math.exp(statistics.mean(map(math.log, ratios))) if all(map(math.isfinite, ratios)) else math.inf
            lines.append([setting, *(f"{ratio:.2f}" for ratio in ratios), f"{mean:.2f}"])
        blocks.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(blocks)


def main() -> None:
    """Runs all settings and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="", help="some of the half aside (default: all)")
    parser.add_argument("--settings", default="", help="some settings, separated by semicolons (default: all)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of training for each run (default 6)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each (default 2)")
    parser.add_argument(
        "--out", type=pathlib.Path, default=FIGURES / "zoo_settings.csv", help="the CSV file, which is added to"
    )
    parser.add_argument("--table", action="store_true", help="print the tables of the CSV file, and nothing else")
    options = parser.parse_args()
    if not options.table:
        names = options.models.split(",") if options.models else [n for n, animal in ZOO.items() if animal.aside]
        wanted = {AS_IT_COMES, *options.settings.split(";")} if options.settings else None
        aside = {name: recipe_of(name) for name in names}
        runs = [
            (name, recipe, setting, seed, options.seconds)
            for seed in range(options.seeds)
            for name, recipe in aside.items()
            for setting in (AS_IT_COMES, *RECIPES[recipe][1])
            if wanted is None or setting in wanted
        ]
        done = {tuple(row[column] for column in KEY) for row in rows_of(options.out)}
        runs = [one for one in runs if tuple(map(str, one)) not in done]
        file = CsvFile(options.out)
        file.resume()
        for one in progress_bar(runs, desc="settings", unit="run"):
            file.append(run(*one))
    print(table_of(options.out))


if __name__ == "__main__":
    main()
