"""`NaturalGradient()` as it comes beside Adam as Keras has it, on a zoo of models that nothing was tuned on.

For each model: how the step was chosen, what it was predicted to cost and what it cost, the first step of `fit`, and
the loss after the same seconds and after the same steps. Costs are in steps of Adam, timed in turns; seconds are those
of the processor, on one thread. The CSV file has all of it, and `--table` prints the table of the docs.
"""

from __future__ import annotations

import argparse
import csv
import gc
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
# Steps of a turn, and turns, of the timing.
TURN, TURNS = 10, 5
COLUMNS = (
    *("model", "aside", "weights", "batch", "way", "predicted", "measured", "first_adam", "first", "seconds"),
    *("steps_adam", "steps", "loss_adam", "loss", "loss_adam_same_steps", "train_adam", "train"),
)


def row_of(name: str, seconds: float, seed: int) -> dict[str, Any]:
    """Everything about one model."""
    animal = ZOO[name]
    keras.config.set_dtype_policy(animal.policy)
    try:
        adam, natural = Training(animal, "adam", seed), Training(animal, ng.NaturalGradient(), seed)
        x, y = natural.batch()
        found = ng.explain(natural.model, animal.loss(), x, y)
        ratios = []
        for _ in range(TURNS):
            taken = [statistics.mean(one.step() for _ in range(TURN)) for one in (adam, natural)]
            ratios.append(taken[1] / taken[0])
        adam, natural = Training(animal, "adam", seed), Training(animal, ng.NaturalGradient(), seed)
        while natural.seconds < seconds:
            natural.step()
        same_steps = None
        while adam.seconds < seconds:
            adam.step()
            if adam.steps == natural.steps:
                same_steps = adam.loss()
        return {
            **{"model": name, "aside": int(animal.aside), "weights": natural.model.count_params()},
            **{"batch": animal.batch, "way": f"{found.choice.name}, {found.choice.detail}"},
            **{"predicted": found.choice.gradients, "measured": statistics.median(ratios)},
            **{"first_adam": adam.first, "first": natural.first, "seconds": seconds},
            **{"steps_adam": adam.steps, "steps": natural.steps, "loss_adam": adam.loss(), "loss": natural.loss()},
            **{"loss_adam_same_steps": "" if same_steps is None else same_steps},
            **{"train_adam": adam.loss(train=True), "train": natural.loss(train=True)},
        }
    finally:
        keras.config.set_dtype_policy("float32")
        keras.backend.clear_session()
        # What was traced is in cycles.
        gc.collect()


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    """What was measured before."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def table_of(path: pathlib.Path) -> str:
    """The table of the docs, in Markdown."""
    rows = sorted(rows_of(path), key=lambda row: list(ZOO).index(row["model"]))
    header = (
        *("model", "weights, batch", "way", "step: predicted", "measured", "first step, s (Adam's)"),
        *("test loss", "Adam's", "Adam's after as many steps"),
    )
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
    for row in rows:
        ours, theirs = (f"{float(row[name]):.3g}" for name in ("loss", "loss_adam"))
        if float(row["loss"]) < float(row["loss_adam"]):
            ours = f"**{ours}**"
        same = row["loss_adam_same_steps"]
        cells = (
            *(row["model"] + (" (aside)" if row["aside"] == "1" else ""), f"{int(row['weights']):,}, {row['batch']}"),
            *(row["way"], f"{float(row['predicted']):.1f}", f"{float(row['measured']):.1f}"),
            f"{float(row['first']):.1f} ({float(row['first_adam']):.1f})",
            *(ours, theirs, f"{float(same):.3g}" if same else ""),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the zoo and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(ZOO), help=f"some of {', '.join(ZOO)} (default: all)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of training for each optimizer (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default 0)")
    parser.add_argument("--out", type=pathlib.Path, default=FIGURES / "zoo.csv", help="CSV file; rows of others stay")
    parser.add_argument("--table", action="store_true", help="print the table of the CSV file, and nothing else")
    options = parser.parse_args()
    names = options.models.split(",")
    unknown = [name for name in names if name not in ZOO]
    if unknown or options.seconds <= 0:
        parser.error(f"unknown models: {', '.join(unknown)}" if unknown else "--seconds must be positive")
    if not options.table:
        kept = [row for row in rows_of(options.out) if row["model"] not in names]
        file = CsvFile(options.out, COLUMNS)
        file.clear()
        for row in kept:
            file.append(row)
        for name in progress_bar(names, desc="zoo", unit="model"):
            row = row_of(name, options.seconds, options.seed)
            file.append({column: row[column] for column in COLUMNS})
    print(table_of(options.out))


if __name__ == "__main__":
    main()
