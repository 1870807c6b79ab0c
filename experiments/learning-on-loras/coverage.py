"""Do intervals hold their share of truths? 20 random splits of the digits zoo, and what the members do to it.

    python experiments/learning-on-loras/coverage.py                  # kernels, ridge, svd and glnet; an hour or two
    python experiments/learning-on-loras/coverage.py --small          # 4 splits, ridge alone, the small zoo; 2 minutes
    python experiments/learning-on-loras/coverage.py --models ridge

Each split takes 400 groups to learn from and 600 others to test on, anew. Written to coverage.md beside this file, and
one JSON line per split, target and model to coverage.jsonl.
"""

import argparse
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from zoos import zoo_named

from lorascope.adapter import Adapter, LowRank
from lorascope.predict import MODELS, Dataset, fit_predictor
from lorascope.predict.dataset import rows_of
from lorascope.predict.predictor import usable

HERE = Path(__file__).parent
MEMBERS = {"kernels": (1,), "ridge": (1, 3), "svd": (1, 3), "glnet": (1,)}
EPOCHS = {"svd": 60, "glnet": 15}
LEARN, TEST = 400, 600


def in_memory(dataset):
    """The dataset with its adapters read once, and the logarithm of dataset_size among its labels."""

    def held(sample):
        adapter = Adapter({name: LowRank(*update.factors(np.float32)) for name, update in sample.read().items()})
        return sample._replace(read=lambda: adapter)

    labels = {**dataset.labels, "log_dataset_size": [math.log(size) for size in dataset.labels["dataset_size"]]}
    return replace(dataset, samples=tuple(held(sample) for sample in dataset.samples), labels=labels)


def split_anew(dataset, split, *, learn, test):
    """The dataset with ``learn`` groups in training, ``test`` in test and the others in neither."""
    groups = sorted(set(dataset.groups))
    order = np.random.default_rng(split).permutation(len(groups))
    part = {groups[k]: "train" if place < learn else "test" for place, k in enumerate(order[: learn + test])}
    return replace(dataset, splits=tuple(part.get(group, "unused") for group in dataset.groups))


def measured(dataset, target, name, members):
    """Coverage, width and error of one fit on the test part."""
    options = {"epochs": EPOCHS[name]} if name in EPOCHS else {}
    model = MODELS[name](**options)
    start = time.perf_counter()
    predictor = fit_predictor(dataset, target, model, seeds=range(members))
    seconds = time.perf_counter() - start
    chosen = usable(dataset.values(target), dataset.where("test"))
    inputs = rows_of(dataset.inputs(model, predictor.structure), chosen)
    values = [dataset.values(target)[i] for i in chosen]
    metrics = predictor.evaluate(inputs, values).metrics
    kept = ("coverage_90", "width_90", "mae", "r2")
    return {**{key: metrics[key]["mean"] for key in kept if key in metrics}, "seconds": round(seconds, 1)}


def table(rows):
    """The rows as Markdown: coverage as mean and standard deviation over splits, and its standard error."""
    lines = [
        "| model | members | target | splits | coverage of 90 % intervals | sd over splits | width | R² |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted({(row["model"], row["members"], row["target"]) for row in rows}):
        own = [row for row in rows if (row["model"], row["members"], row["target"]) == key]
        coverage = [100 * row["coverage_90"] for row in own]
        error = np.std(coverage, ddof=1) / math.sqrt(len(own)) if len(own) > 1 else math.nan
        width, r2 = (np.mean([row[name] for row in own]) for name in ("width_90", "r2"))
        spread = np.std(coverage, ddof=1) if len(own) > 1 else math.nan
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | {len(own)} | {np.mean(coverage):.1f} ± {error:.1f} % "
            f"| {spread:.1f} % | {width:.3g} | {r2:.3f} |"
        )
    return "\n".join(lines)


def main():
    """Fit and measure, split by split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the small zoo, 4 splits, ridge")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--models", nargs="*", default=list(MEMBERS))
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    models = ["ridge"] if arguments.small else arguments.models
    learn, test = (140, 80) if arguments.small else (LEARN, TEST)
    dataset = in_memory(Dataset.of(zoo_named("digits", small=arguments.small)))
    rows = []
    with (arguments.out / "coverage.jsonl").open("w") as lines:
        for split in range(4 if arguments.small else arguments.splits):
            part = split_anew(dataset, split, learn=learn, test=test)
            for name in models:
                for members in MEMBERS.get(name, (1,)):
                    for target in ("test_accuracy", "log_dataset_size"):
                        row = {"split": split, "model": name, "members": members, "target": target}
                        rows.append({**row, **measured(part, target, name, members)})
                        lines.write(json.dumps(rows[-1]) + "\n")
                        lines.flush()
    (arguments.out / "coverage.md").write_text("# Coverage of 90 % intervals\n\n" + table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
