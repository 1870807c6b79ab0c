"""Merges that are run: 2 to 8 adapters of disjoint tasks, by every method and by PEFT's, on the same draws.

    python experiments/merging/run.py                # 20 draws of each number; an hour; goes on where it was
    python experiments/merging/run.py --small        # 3 draws

Normalised accuracy: that of the base with the merged adapter on a task's test images, over that of the task's own
adapter; the mean over the tasks of a draw. Each method has one number to choose, the common weight of the adapters,
chosen from ``SCALES`` on validation images by the mean over all draws of that number of tasks. Writes results.json and
tables.md. Needs the extra [forge].
"""

import argparse
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from tasks import RANK, VIEWS, Task, accuracies, base, parts, trained

from lorascope.errors import LorascopeError
from lorascope.formats import read, write
from lorascope.merge import METHODS, merge

HERE = Path(__file__).parent
SCALES = (0.03, 0.05, 0.07, 0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4)
"""The common weight of the adapters: a merge of weights 1/n is multiplied by n times this, as every method is
homogeneous in its weights."""
PEFT = {
    "linear": {},
    "cat": {},
    "svd": {},
    "ties_svd": {"density": 0.2},
    "dare_linear_svd": {"density": 0.5},
    "dare_ties_svd": {"density": 0.5},
    "magnitude_prune_svd": {"density": 0.5},
}
ROWS = Path.home() / ".cache/lorascope/merging/rows.jsonl"
NOT_HERE = {"subtract", "b-lora", "ffa", "fed-sb"}
"""Methods of another question: one without the others, parts of a base, adapters that share a factor."""


def ours(adapters, method):
    """The merge by a method, of weights that sum to 1."""
    return merge(adapters, METHODS[method](), weights=np.full(len(adapters), 1 / len(adapters))).adapter


def scaled(adapter, factor):
    """The adapter with ΔW multiplied."""
    return adapter.with_sites({site: update.rescaled(factor * update.scale) for site, update in adapter.items()})


class Kept:
    """The rows that are measured already, one line of a file for each method of a draw."""

    def __init__(self, path):
        self.path = path
        self.found = {}
        if path.exists():
            for line in path.read_text().splitlines():
                rows = json.loads(line)
                self.found[self.key(rows[0])] = rows

    @staticmethod
    def key(row):
        """What a line is of."""
        return tuple(row[name] for name in ("setting", "tasks", "draw", "method"))

    def __call__(self, head, method, measured):
        """The rows of a method of a draw: those of the file, or measured now and written there."""
        key = self.key({**head, "method": method})
        if key not in self.found:
            self.found[key] = [{**head, "method": method, **row} for row in measured()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(self.found[key]) + "\n")
        return self.found[key]


class Peft:
    """The adapters of all tasks in one PEFT model, and what PEFT merges of them."""

    def __init__(self, adapters):
        from peft import PeftModel

        self.folder = tempfile.TemporaryDirectory()
        self.names = {}
        model = None
        for number, (key, adapter) in enumerate(adapters.items()):
            path = Path(self.folder.name) / f"a{number}"
            write(adapter, path, format="peft")
            self.names[key] = f"a{number}"
            if model is None:
                model = PeftModel.from_pretrained(base(), path, adapter_name=f"a{number}")
            else:
                model.load_adapter(path, adapter_name=f"a{number}")
        self.model = model

    def __call__(self, keys, kind, options):
        """The merge of weights 1, read back from what PEFT saves."""
        names = [self.names[key] for key in keys]
        rank = {} if kind in ("linear", "cat") else {"svd_rank": RANK * len(keys)}
        self.model.add_weighted_adapter(names, [1.0] * len(keys), "merged", combination_type=kind, **rank, **options)
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder, selected_adapters=["merged"])
            merged = merge([read(Path(folder) / "merged")], "linear").adapter  # a copy: the folder goes
        self.model.delete_adapter("merged")
        return merged


def main():
    """Train, merge, run, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="3 draws of each number")
    parser.add_argument("--methods", nargs="*", help="ours; by default all that take any adapters")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--rows", type=Path, help="where each draw is kept when it is done", default=ROWS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draws = 3 if arguments.small else 20
    methods = arguments.methods or [name for name in METHODS.names() if name not in NOT_HERE]
    model, kept = base(), Kept(arguments.rows)
    rows = []
    for setting in SETTINGS:
        for count in setting.counts:
            rows += ran(model, setting, count, draws, methods, kept)
    summary = summarised(rows)
    (arguments.out / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = "\n".join(f"## {setting.title}\n\n{table(summary, setting)}" for setting in SETTINGS)
    (arguments.out / "tables.md").write_text(text)
    print(text)


class Setting(NamedTuple):
    """A kind of tasks: how many at once, and how an adapter learns one."""

    name: str
    title: str
    counts: tuple[int, ...]
    steps: int
    rate: float


SETTINGS = (
    Setting("classes", "Classes: the ten digits parted among the adapters", (2, 3, 5), 100, 2e-3),
    Setting("views", "Views: all digits, each adapter in another view", (2, 4, 8), 300, 3e-3),
)


def drawn_tasks(setting, count, number):
    """The tasks of a draw and a seed for each adapter: the same whatever else is drawn."""
    random = np.random.default_rng([setting.counts[0], count, number])
    seeds = random.integers(1 << 20, size=count).tolist()
    if setting.name == "views":
        return [Task(str(name)) for name in random.permutation([*VIEWS][1:])[:count]], seeds
    order = random.permutation(10)
    return [Task("upright", tuple(sorted(order[k::count].tolist()))) for k in range(count)], seeds


def ran(model, setting, count, draws, methods, kept):
    """The rows of one number of tasks: every method at every scale, on every draw."""
    images, start, rows = parts(), time.perf_counter(), []
    drawn = [drawn_tasks(setting, count, number) for number in range(draws)]
    tasks, seeds = [[task] for own, _ in drawn for task in own], [seed for _, own in drawn for seed in own]
    single = trained(model, tasks, seeds, [setting.steps] * len(tasks), setting.rate)
    # what the draws have in common makes one ceiling, but for its seed
    ceilings = [own for own, _ in drawn]
    if setting.name == "classes" or count == len(VIEWS) - 1:
        ceilings = [own for own, _ in drawn[: min(draws, 3)]]
    together = trained(
        model,
        ceilings,
        list(range(len(ceilings))),
        [setting.steps * count] * len(ceilings),
        setting.rate,
        rank=RANK * count,
    )
    peft = Peft(dict(enumerate(single)))
    print(
        json.dumps({"setting": setting.name, "tasks": count, "trained": len(single), "seconds": _since(start)}),
        flush=True,
    )
    for number, (own, _) in enumerate(drawn):
        places = list(range(number * count, (number + 1) * count))
        adapters = [single[place] for place in places]
        score = Score(model, own, adapters, images)
        measures = {
            "base alone": lambda score=score: [score(None, None)],
            "best single": lambda score=score, adapters=adapters: [score(k, one) for k, one in enumerate(adapters)],
            "trained together": lambda score=score, number=number: [score(None, together[number % len(together)])],
        }
        for method in methods:
            measures[method] = partial(score.at_scales, partial(ours, adapters, method), count)
        for kind, options in PEFT.items():
            measures[f"peft {kind}"] = partial(score.at_scales, partial(peft, places, kind, options), 1)
        head = {"setting": setting.name, "tasks": count, "draw": number}
        for method, measure in measures.items():
            rows += kept(head, method, measure)
        print(json.dumps({**head, "seconds": _since(start)}), flush=True)
    return rows


class Score:
    """The normalised accuracies of adapters over the tasks of one draw, of which each has its own adapter."""

    def __init__(self, model, tasks, adapters, images):
        self.model, self.tasks, self.images = model, tasks, images
        self.alone = [
            accuracies(model, adapter, [task], images.test)[0] for adapter, task in zip(adapters, tasks, strict=True)
        ]

    def __call__(self, scale, adapter):
        """The row of one adapter."""
        chosen, judged = (
            float(np.mean(np.divide(accuracies(self.model, adapter, self.tasks, part), self.alone)))
            for part in (self.images.validation, self.images.test)
        )
        return {"scale": scale, "validation": chosen, "test": judged}

    def at_scales(self, make, factor):
        """The rows of a merge at each scale, or why it cannot be made."""
        try:
            merged = make()
        except LorascopeError as error:
            return [{"error": str(error)}]
        return [self(scale, scaled(merged, scale * factor)) for scale in SCALES]


def _since(start):
    return round(time.perf_counter() - start, 1)


def summarised(rows):
    """For each number of tasks and method, the scale that validation chooses and the test scores of its draws."""
    found = []
    for setting, count in dict.fromkeys((row["setting"], row["tasks"]) for row in rows):
        mine = [row for row in rows if (row["setting"], row["tasks"]) == (setting, count)]
        for method in dict.fromkeys(row["method"] for row in mine):
            own = [row for row in mine if row["method"] == method]
            failed = next((row["error"] for row in own if "error" in row), None)
            if failed is not None:
                found.append({"setting": setting, "tasks": count, "method": method, "error": failed})
                continue
            if method == "best single":
                best = [
                    max((r for r in own if r["draw"] == d), key=lambda r: r["validation"])
                    for d in sorted({r["draw"] for r in own})
                ]
                scale = None
            else:
                by_scale = {row["scale"]: [] for row in own}
                for row in own:
                    by_scale[row["scale"]].append(row)
                scale = max(by_scale, key=lambda one: np.mean([row["validation"] for row in by_scale[one]]))
                best = by_scale[scale]
            scores = [row["test"] for row in sorted(best, key=lambda row: row["draw"])]
            found.append(
                {
                    "setting": setting,
                    "tasks": count,
                    "method": method,
                    "scale": scale,
                    "mean": float(np.mean(scores)),
                    "sd": float(np.std(scores, ddof=1)),
                    "scores": scores,
                }
            )
    return found


def table(summary, setting):
    """Methods as rows, best first by the mean over the numbers of tasks."""
    counts, own = setting.counts, [row for row in summary if row["setting"] == setting.name]
    cells = {(row["method"], row["tasks"]): row for row in own}
    methods = list(dict.fromkeys(row["method"] for row in own))

    def mean(method):
        return np.mean([cells[method, count].get("mean", np.nan) for count in counts])

    lines = ["| method | " + " | ".join(f"{count} tasks" for count in counts) + " |", "|---|" + "---:|" * len(counts)]
    for method in sorted(methods, key=lambda one: -np.nan_to_num(mean(one), nan=-1)):
        shown = []
        for count in counts:
            row = cells[method, count]
            scale = "" if row.get("scale") is None else f" ({row['scale']:g})"
            shown.append("–" if "error" in row else f"{row['mean']:.3f} ± {row['sd']:.3f}{scale}")
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
