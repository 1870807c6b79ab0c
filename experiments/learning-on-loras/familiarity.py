"""Is an adapter unlike those of training told from one that is like them? On the digits zoo and its relatives.

    python experiments/learning-on-loras/familiarity.py            # some 10 minutes once the zoos are there
    python experiments/learning-on-loras/familiarity.py --small    # small zoos; 3 minutes

Learned from the training and validation parts of the zoo; the AUROC is of the test part against each kind of strange
adapter, the flags are of p < 0.01. False alarms are also those of 20 random splits. Written to familiarity.md.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from coverage import in_memory
from sklearn.metrics import roc_auc_score
from zoos import zoo_named

from lorascope.adapter import Adapter, LowRank
from lorascope.predict import MODELS, Dataset, Sample, fit_predictor
from lorascope.predict.familiarity import Familiarity
from lorascope.symmetry import stack_adapters

HERE = Path(__file__).parent
RELATIVES = {
    "another base (seed 1)": "digits-base-1",
    **{f"rank {rank}, trained at 4": f"digits-rank-{rank}" for rank in (1, 2, 8, 16)},
}
SPLITS = 20


def times(adapter, factor):
    """ΔW times a factor at every site."""
    sites = {site: update.factors(np.float64) for site, update in adapter.items()}
    return Adapter({site: LowRank(B, A, scale * factor) for site, (B, A, scale) in sites.items()})


def random_spaces(adapter, rng):
    """Random column and row spaces with the norms and spectra of the adapter."""
    sites = {}
    for stack in stack_adapters([adapter]):
        for place, site in enumerate(stack.names):
            S = stack.svd.S[0, place]
            U, V = (np.linalg.qr(rng.standard_normal((n, len(S))))[0] for n in stack.shape)
            sites[site] = LowRank(U * S, V.T)
    return Adapter({site: sites[site] for site in adapter})


def shuffled(adapter, rng):
    """The updates of each shape at each other's sites, in a random cycle."""
    by_shape = {}
    for site, update in adapter.items():
        by_shape.setdefault(update.shape, []).append(site)
    moved = {}
    for names in by_shape.values():
        order = rng.permutation(len(names))
        moved |= {names[order[k]]: adapter[names[order[k - 1]]] for k in range(len(names))}
    return Adapter({site: moved[site] for site in adapter})


CHANGES = {
    "30 times the norm": lambda adapter, rng: times(adapter, 30.0),
    "a 30th of the norm": lambda adapter, rng: times(adapter, 1 / 30),
    "random spaces, norms and spectra kept": random_spaces,
    "updates of equal shape shuffled": shuffled,
}


def sample_of(adapter):
    """The adapter as a sample."""
    return Sample(lambda: adapter, {})


def row(name, usual, judged):
    """A line of the table."""
    strange = [one.unfamiliarity for one in judged]
    area = roc_auc_score(np.repeat([0, 1], [len(usual), len(strange)]), [*usual, *strange])
    flagged = np.mean([one.is_strange for one in judged])
    return f"| {name} | {len(strange)} | {area:.3f} | {100 * flagged:.1f} % |"


def main():
    """Judge all kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    small = arguments.small
    dataset = in_memory(Dataset.of(zoo_named("digits", small=small)))
    train, test = dataset.where("train", "validation"), dataset.where("test")
    structure = dataset.structure(train)
    familiarity = Familiarity.fit([dataset.samples[i] for i in train], [dataset.groups[i] for i in train], structure)
    held = [dataset.samples[i] for i in test]
    usual = familiarity.judge(held)
    scores = [one.unfamiliarity for one in usual]
    lines = [
        f"# Adapters unlike those of training ({len(train)} training adapters)\n",
        "| adapters | n | AUROC against the test part | flagged (p < 0.01) |",
        "|---|---|---|---|",
        f"| test part | {len(held)} | | {100 * np.mean([one.is_strange for one in usual]):.1f} % |",
    ]
    for name, change in CHANGES.items():
        rng = np.random.default_rng(0)
        lines.append(row(name, scores, familiarity.judge([sample_of(change(s.read(), rng)) for s in held])))
    for name, zoo in RELATIVES.items():
        other = in_memory(Dataset.of(zoo_named(zoo, small=small)))
        lines.append(row(name, scores, familiarity.judge(other.samples)))
    lines.append("\nFalse alarms over random splits (mean ± standard error over splits):\n")
    rng = np.random.default_rng(1)
    for count in (40, 100, 400, 1200):
        if 2 * count > len(dataset):
            continue
        alarms = []
        for _ in range(SPLITS):
            order = rng.permutation(len(dataset))
            inside, outside = order[:count], order[count : count + 600]
            samples, groups = ([column[i] for i in inside] for column in (dataset.samples, dataset.groups))
            own = Familiarity.fit(samples, groups, structure)
            alarms.append(100 * np.mean([one.is_strange for one in own.judge([dataset.samples[i] for i in outside])]))
        error = np.std(alarms, ddof=1) / SPLITS**0.5
        lines.append(f"- {count} training adapters: {np.mean(alarms):.2f} ± {error:.2f} %")
    lines += ["", *rates(dataset, familiarity, held)]
    (arguments.out / "familiarity.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def rates(dataset, familiarity, held):
    """Adapters a second from memory, in one batch on one core, with and without the judgement."""
    predictor = fit_predictor(dataset.subset(range(200)), "test_accuracy", MODELS["ridge"]())

    def rate(work):
        best = min(_seconds(work) for _ in range(5))
        return f"{len(held) / best:.0f} adapters/s"

    return [
        f"Judging alone {rate(lambda: familiarity.judge(held))}; inputs of ridge "
        f"{rate(lambda: predictor.model.inputs(held, predictor.structure))}; ridge, judged from the same "
        f"decomposition {rate(lambda: predictor.predict(held))}."
    ]


def _seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
