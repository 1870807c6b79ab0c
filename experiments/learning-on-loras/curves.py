"""What more adapters would bring: test scores of some models over the number of adapters that they learn from.

    python experiments/learning-on-loras/curves.py                       # digits, glyphs, minilm; goes on where it was
    python experiments/learning-on-loras/curves.py --zoos digits --models kernels,ridge --repeats 3
    python experiments/learning-on-loras/curves.py --small

Each point is the mean over ``--repeats`` choices of groups from the training and validation splits (the same for all
models; smaller choices lie inside larger ones), measured on the whole test split. Writes curves.md and curves.json.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from zoos import home, zoo_named

from lorascope.predict import MODELS, Dataset, Target
from lorascope.predict.fitting import fit_member
from lorascope.predict.metrics import measure

HERE = Path(__file__).parent
TARGETS = {
    "digits": ("classes", "test_accuracy", "log:dataset_size", "poison"),
    "glyphs": ("characters", "stroke_width", "generation_score", "log:images"),
    "minilm": ("sources", "loss", "log:dataset_size"),
}
SIZES = (50, 100, 200, 400, 800, 1600)


def nested(groups, sizes, seed):
    """For each size, samples of whole groups that make up at least as many; the last is all of them."""
    names = np.random.default_rng(seed).permutation(sorted(set(groups)))
    order = {name: place for place, name in enumerate(names)}
    places = np.array([order[group] for group in groups])
    counts = np.cumsum(np.bincount(places))
    chosen = {}
    for size in sizes:
        if size < len(groups):
            last = int(np.searchsorted(counts, size))
            chosen[int(counts[last])] = np.flatnonzero(places <= last)
    return {**chosen, len(groups): np.arange(len(groups))}


class Kept:
    """The scores that are measured already, one line of a file each."""

    def __init__(self, path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.found = {self.key(row): row for row in map(json.loads, lines)}

    @staticmethod
    def key(row):
        """What a line is of."""
        return tuple(row[name] for name in ("zoo", "target", "model", "size", "repeat"))

    def __call__(self, row, measured):
        """The row with its score: that of the file, or measured now and written there."""
        key = self.key(row)
        if key not in self.found:
            self.found[key] = {**row, **measured()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.found[key]) + "\n")
            print(json.dumps(self.found[key]), flush=True)
        return self.found[key]


def curve(zoo, dataset, target, name, repeats, kept):
    """One row for each size and repeat: the primary metric on the test split."""
    model = MODELS[name]()
    learn, test = dataset.where("train", "validation"), dataset.where("test")
    structure = dataset.structure(learn)
    values = dataset.values(target)
    goal = Target.of(target, [values[i] for i in learn])
    encoded = goal.encode([values[i] for i in learn])
    truth = goal.encode([values[i] for i in test], ignore_unknown=True)
    truth = truth if goal.is_classification else truth * goal.spread + goal.mean
    groups = [dataset.groups[i] for i in learn]
    metric = "auroc" if goal.is_classification else "r2"

    def measured(own, repeat):
        # inputs are made for each fit alone and go with it: those of all sizes at once would not fit
        inputs = model.inputs([dataset.samples[learn[i]] for i in own], structure)
        part = [groups[i] for i in own]
        member, _ = fit_member(model, inputs, encoded[own], part, goal, structure, seed=repeat)
        del inputs
        unseen = model.inputs([dataset.samples[i] for i in test], structure)
        predicted = member.calibration.predict(goal, member.fitted.scores(unseen))
        return {"metric": metric, "score": measure(goal, truth, predicted)[metric]}

    rows = []
    for repeat in range(repeats):
        for size, own in nested(groups, SIZES, repeat).items():
            row = {"zoo": zoo, "target": target, "model": name, "size": size, "repeat": repeat}
            rows.append(kept(row, partial(measured, own, repeat)))
    return rows


def table(rows):
    """Sizes as columns; groups are whole, so sizes of several repeats may differ by some and are named by the first."""
    lines = []
    for zoo in dict.fromkeys(row["zoo"] for row in rows):
        own = [row for row in rows if row["zoo"] == zoo]
        first = [
            row["size"]
            for row in own
            if (row["target"], row["model"], row["repeat"]) == tuple(own[0][k] for k in ("target", "model", "repeat"))
        ]
        lines += [
            "",
            f"| {zoo} | model | " + " | ".join(f"{size:,}" for size in first) + " |",
            "|---|---|" + "---|" * len(first),
        ]
        for target, model in dict.fromkeys((row["target"], row["model"]) for row in own):
            mine = [row for row in own if (row["target"], row["model"]) == (target, model)]
            by_repeat = [
                [row["score"] for row in mine if row["repeat"] == r] for r in sorted({row["repeat"] for row in mine})
            ]
            scores = np.array(by_repeat)
            spread = scores.std(axis=0, ddof=1) if len(scores) > 1 else np.full(scores.shape[1], np.nan)
            cells = " | ".join(f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(scores.mean(axis=0), spread, strict=True))
            lines.append(f"| {target} ({mine[0]['metric']}) | {model} | {cells} |")
    return "\n".join(lines)


def main():
    """Fit and measure, zoo by zoo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoos", type=lambda text: text.split(","), default=list(TARGETS))
    parser.add_argument("--models", type=lambda text: text.split(","), default=["kernels", "ridge", "gram"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="the zoos at a tenth")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    rows, kept = [], Kept(home(small=arguments.small) / "curves.jsonl")
    for zoo in arguments.zoos:
        dataset = Dataset.of(zoo_named(zoo, small=arguments.small))
        for target in TARGETS[zoo]:
            for name in arguments.models:
                rows += curve(zoo, dataset, target, name, arguments.repeats, kept)
    (arguments.out / "curves.json").write_text(json.dumps(rows, indent=1) + "\n")
    head = "# Learning curves\n\nTest score by the number of adapters offered (85 % train, as in a bench), mean ± sd."
    (arguments.out / "curves.md").write_text(f"{head}\n{table(rows)}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
