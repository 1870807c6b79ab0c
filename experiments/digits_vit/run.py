"""All models on a zoo of 1,000 digits-vit adapters, three seeds, clean and in random gauges.

The same as ``lorascope bench`` with rows of other options; interrupted, it goes on from its cells beside the zoo.

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
from rich.progress import Progress

from lorascope import __version__
from lorascope.forge import forge
from lorascope.predict import MODELS, Dataset
from lorascope.predict.bench import Plan, bench, cells_of
from lorascope.report.bench import bench_as_markdown

HERE = Path(__file__).parent
TARGETS = ("classes", "test_accuracy")


def models():
    """Label in the table → model."""
    ridge, glnet = MODELS["ridge"], MODELS["glnet"]
    return {
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
    zoos = {"digits-vit": dataset}
    plan = Plan(models(), TARGETS, range(seeds), ("gauge",), attack_seeds=seeds)
    with Progress() as progress:
        task = progress.add_task("fitting", total=cells_of(zoos, plan))
        advance = lambda n: progress.advance(task, n)  # noqa: E731  a name keeps the line below readable
        found = bench(zoos, plan, cells=home / "cells" / "digits-vit", done=advance)
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
        "bench": found.as_dict(),
    }
    prefix = ("small-" if arguments.small else "") + ("shared-" if arguments.init == "shared" else "")
    (HERE / f"{prefix}results.json").write_text(json.dumps(result, indent=1) + "\n")
    text = bench_as_markdown(found)
    (HERE / f"{prefix}tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
