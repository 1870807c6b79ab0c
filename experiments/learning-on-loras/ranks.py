"""What another rank does to a predictor of rank 4, by what alpha does, and what can be read there at all.

    python experiments/learning-on-loras/ranks.py            # ranks.md; half an hour on one core, goes on where it was
    python experiments/learning-on-loras/ranks.py --small

Two tables. *By convention*: ``kernels`` taught by all that may be learnt from of ``digits`` (rank 4), asked about 256
adapters at each of other ranks. *By teacher*: as many adapters of rank 4, of the rank that is asked about, and of ranks
2, 4, 8 and 16 mixed teach it, in three draws, and all answer for the same adapters: what none can tell, the rank does
not tell.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from curves import Kept, nested
from zoos import CONVENTIONS, home, zoo_named

from lorascope.predict import MODELS, Dataset, Target
from lorascope.predict.fitting import fit_member
from lorascope.predict.metrics import measure

HERE = Path(__file__).parent
TARGETS = ("classes", "test_accuracy", "log:dataset_size", "poison")
TAUGHT, DRAWS, MEMBERS = 800, 3, 2


def scores(teacher, taught, asked, target, seed):
    """Of each zoo asked, the primary metric of ``kernels`` taught by some adapters of one zoo."""
    model = MODELS["kernels"]()
    structure = teacher.structure(taught)
    values = [teacher.values(target)[i] for i in taught]
    goal = Target.of(target, values)
    inputs = model.inputs([teacher.samples[i] for i in taught], structure)
    groups = [teacher.groups[i] for i in taught]
    member, _ = fit_member(model, inputs, goal.encode(values), groups, goal, structure, seed=seed)
    found = {}
    for name, (zoo, indices) in asked.items():
        predicted = member.fitted.scores(model.inputs([zoo.samples[i] for i in indices], structure))
        truth = goal.encode([zoo.values(target)[i] for i in indices], ignore_unknown=True)
        truth = truth if goal.is_classification else truth * goal.spread + goal.mean
        metric = "auroc" if goal.is_classification else "r2"
        found[name] = measure(goal, truth, member.calibration.predict(goal, predicted))[metric]
    return found


def cell(values):
    """Mean ± sd."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


RANKS = (1, 2, 8, 16)
ALPHA = {"": "8 at every rank", "-same-scale": "2 · rank", "-stabilised": "4 · √rank"}


def by_convention(digits, zoos, ask):
    """Lines of the first table."""
    lines = ["| target | alpha | rank 4 | " + " | ".join(f"rank {rank}" for rank in RANKS) + " |"]
    lines.append("|---|---|" + "---:|" * (1 + len(RANKS)))
    learn, test = digits.where("train", "validation"), digits.where("test")
    asked = {"rank-4": (digits, test), **{name: (zoo, range(len(zoo))) for name, zoo in zoos.items()}}
    for target in TARGETS:
        found = [
            ask("digits", "all", target, seed, partial(scores, digits, learn, asked, target, seed))
            for seed in range(MEMBERS)
        ]
        for convention in CONVENTIONS:
            names = ["rank-4", *(f"digits-rank-{rank}{convention}" for rank in RANKS)]
            cells = " | ".join(cell([one[name] for one in found]) for name in names)
            lines.append(f"| {target} | {ALPHA[convention]} | {cells} |")
    return lines


def by_teacher(digits, teachers, zoos, ask, count):
    """Lines of the second table; of ``teachers`` the one named 0 is of mixed ranks."""
    lines = [
        "| target | asked at | taught at rank 4 | taught at that rank | taught at mixed ranks |",
        "|---|---:|---:|---:|---:|",
    ]
    asked = {f"rank {rank}": (zoo, range(len(zoo))) for rank, zoo in zoos.items()}
    asked["rank 4"] = (digits, digits.where("test"))
    for target in TARGETS:
        found = {}
        for rank, teacher in {4: digits, **teachers}.items():
            learn = digits.where("train", "validation") if rank == 4 else np.arange(len(teacher))
            own = asked if rank in (0, 4) else {f"rank {rank}": asked[f"rank {rank}"]}
            for draw in range(DRAWS):
                chosen = nested([teacher.groups[i] for i in learn], (count,), draw)
                taught = learn[chosen[min(chosen)]]
                key = f"rank {rank}", f"draw {draw}", target, draw
                found[rank, draw] = ask(*key, partial(scores, teacher, taught, own, target, draw))
        for rank in sorted({4, *zoos}):
            cells = [cell([found[by, draw][f"rank {rank}"] for draw in range(DRAWS)]) for by in (4, rank, 0)]
            lines.append(f"| {target} | {rank} | {' | '.join(cells)} |")
    return lines


def main():
    """Fit, ask, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the zoos at a tenth")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    small = arguments.small

    def zoo(name):
        return Dataset.of(zoo_named(name, small=small))

    kept = Kept(home(small=small) / "ranks.jsonl")

    def ask(zoo, model, target, repeat, measured):
        row = {"zoo": zoo, "model": model, "target": target, "size": 0, "repeat": repeat}
        return kept(row, lambda: {"scores": measured()})["scores"]

    digits = zoo("digits")
    names = [f"digits-rank-{rank}{convention}" for convention in CONVENTIONS for rank in RANKS]
    others = {name: zoo(name) for name in names}
    first = by_convention(digits, others, ask)
    teachers = {rank: zoo(f"digits-rank-{rank}-learn") for rank in (2, 8, 16)}
    asked = {rank: others[f"digits-rank-{rank}"] for rank in teachers}
    teachers[0] = zoo("digits-mixed-learn")
    second = by_teacher(digits, teachers, asked, ask, TAUGHT // 10 if small else TAUGHT)
    text = "\n".join(["# Other ranks", "", "## By convention", "", *first, "", "## By teacher", "", *second]) + "\n"
    (arguments.out / "ranks.md").write_text(text)
    print(json.dumps({"written": "ranks.md"}))


if __name__ == "__main__":
    main()
