"""All models on a zoo of 1,000 digits-vit adapters, three seeds, clean and in random gauges.

    python experiments/digits_vit/run.py             # forges what is missing; about 25 minutes on 2 cores
    python experiments/digits_vit/run.py --small     # 200 adapters, 2 seeds; about 4 minutes

The zoo goes to $LORASCOPE_HOME (default ~/.cache/lorascope); the tables and results.json beside this file, or with
--small beside them under the name small-results.json.
"""

import argparse
import json
import os
import platform
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy
import torch
from rich.progress import track

from lorascope import __version__
from lorascope.forge import forge
from lorascope.predict import MODELS, Dataset
from lorascope.predict.comparison import compare_models

HERE = Path(__file__).parent
METRICS = {"classes": ("auroc", "accuracy", "brier"), "test_accuracy": ("r2", "kendall_tau", "mae", "coverage_90")}


def models():
    """Label in the table → model."""
    ridge, glnet = MODELS["ridge"], MODELS["glnet"]
    return {
        "hyperparameters": MODELS["hyperparameters"](),
        "norms + ridge": ridge(features=("log-norm",)),
        "spectra + ridge": ridge(features=("log-norm", "log-spectrum")),
        "svd (MLP)": MODELS["svd"](),
        "mlp": MODELS["mlp"](),
        "glnet": glnet(),
        "glnet, 2 layers": glnet(layers=2),
        "delta + ridge": ridge(features=("delta",)),
        "row space + ridge": ridge(features=("row-space",)),
        "column space + ridge": ridge(features=("column-space",)),
        "ridge, sketches of 32": ridge(size=32),
        "ridge": ridge(),
    }


def table(rows, target):
    """A Markdown table of one target."""
    chosen = [row for row in rows if row["target"] == target]
    names = METRICS[target]
    lines = [
        f"### {target}: {chosen[0]['task']}, {chosen[0]['n']} test adapters",
        "",
        "| model | invariant to | " + " | ".join(names) + f" | {names[0]} in random gauge | fit, s |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    for row in chosen:
        cells = [plus_minus(row["metrics"][name]) for name in names]
        left = plus_minus(row["in_random_gauge"][names[0]])
        lines.append(
            f"| {row['model']} | {row['invariance']} | " + " | ".join(cells) + f" | {left} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def plus_minus(value):
    """mean ± sd over seeds."""
    return f"{value['mean']:.3f} ± {value['sd']:.3f}"


def main():
    """Forge, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="200 adapters, 2 seeds")
    parser.add_argument("--init", choices=("own", "shared"), default="own", help="of A, one per adapter or one for all")
    arguments = parser.parse_args()
    count, seeds = (200, 2) if arguments.small else (1000, 3)
    home = Path(os.environ.get("LORASCOPE_HOME", Path.home() / ".cache" / "lorascope"))
    zoo = home / f"digits-vit-{arguments.init}-{count}"
    zoo.parent.mkdir(parents=True, exist_ok=True)
    forge("digits-vit", count, zoo, seed=0, settings={"init": arguments.init}, workers=os.cpu_count() or 1)
    dataset = Dataset.of(zoo)
    chosen = models()
    comparisons = compare_models(dataset, list(METRICS), chosen, seeds=range(seeds))
    rows = [row.as_dict() for row in track(comparisons, "fitting", total=2 * len(chosen))]
    result = {
        "command": "python experiments/digits_vit/run.py" + (" --small" if arguments.small else ""),
        "zoo": {"recipe": "digits-vit", "count": count, "seed": 0, "init": arguments.init, "digest": dataset.digest},
        "splits": {name: len(dataset.where(name)) for name in ("train", "validation", "test")},
        "seeds": seeds,
        "versions": {
            "lorascope": __version__,
            "python": platform.python_version(),
            "numpy": numpy.__version__,
            "torch": str(torch.__version__).partition("+")[0],
        },
        "rows": rows,
    }
    prefix = ("small-" if arguments.small else "") + ("shared-" if arguments.init == "shared" else "")
    (HERE / f"{prefix}results.json").write_text(json.dumps(result, indent=1) + "\n")
    text = "\n\n".join(table(rows, target) for target in METRICS)
    (HERE / f"{prefix}tables.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
