"""Does the base learn, do the adapters, and which sources can be read from their weights?

    python experiments/minilm_text/run.py            # forges what is missing of 320 adapters, and writes results.json
    python experiments/minilm_text/run.py --count 96 # a smaller zoo

The zoo goes to $LORASCOPE_HOME (default ~/.cache/lorascope), or where --zoo says.
"""

import argparse
import json
import os
import platform
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from torch.nn import functional as F
from transformers import AutoTokenizer

from lorascope import __version__
from lorascope.forge import forge, load_base
from lorascope.forge.recipes import RECIPES, _minilm
from lorascope.forge.recipes._dialogue import HELD_OUT, SOURCES
from lorascope.forge.recipes._masked_text import NO_TARGET, VARIANTS
from lorascope.formats import read
from lorascope.predict import MODELS, Dataset, fit_predictor
from lorascope.predict.bench import Plan, bench
from lorascope.predict.metrics import mean_auroc
from lorascope.predict.predictor import usable
from lorascope.zoo import Zoo

HERE = Path(__file__).parent
TARGETS = ("sources", "loss", "test_accuracy_at_10", "test_accuracy", "dataset_size")


def losses(base, session, numbers):
    """Cross-entropy of each of the examples."""
    inputs, targets = session.inputs(numbers)
    with torch.no_grad():
        return session.loss(base(**inputs), targets).numpy()


def of_the_base(base, texts):
    """Held-out loss of the head, beside that of guessing by frequency alone."""
    session = RECIPES["minilm-text"].session(base)
    inputs, targets = session.inputs(texts.held_out)
    is_masked = targets != NO_TARGET
    counts = torch.bincount(texts.rest.targets[texts.rest.targets != NO_TARGET], minlength=len(texts.vocabulary)) + 0.1
    frequency = (counts / counts.sum()).log().expand(int(is_masked.sum()), -1)
    with torch.no_grad():
        scores = base(**inputs)[is_masked]
    truths = targets[is_masked]
    return {
        name: {
            "loss": float(F.cross_entropy(guess, truths)),
            "accuracy": float((guess.argmax(-1) == truths).double().mean()),
            "accuracy_at_10": float((guess.topk(10).indices == truths.unsqueeze(-1)).any(-1).double().mean()),
        }
        for name, guess in (("frequency of tokens", frequency), ("head", scores))
    } | {"masked_tokens": len(truths), "vocabulary": len(texts.vocabulary)}


def of_adapters(zoo, base, texts):
    """Changes of loss against the base: on own texts, and on held-out ones of sources that were in and were not."""
    recipe = RECIPES["minilm-text"]
    session = recipe.session(base)
    plain = losses(base, session, texts.held_out)
    rows = [row for row in zoo.rows() if row["status"] == "ok" and row["split"] == "test"]
    changes, matrix = [], np.full((len(rows), len(SOURCES)), np.nan)
    for number, row in enumerate(rows):
        own = torch.tensor([text for source in recipe.chosen(row) for text in source]) * VARIANTS
        before = losses(base, session, own).mean()
        with read(zoo.adapter_path(row)).apply_to(base):
            after = losses(base, session, own).mean()
            matrix[number] = (losses(base, session, texts.held_out) - plain).reshape(len(SOURCES), HELD_OUT).mean(1)
        is_in = np.isin(np.arange(len(SOURCES)), row["sources"])
        changes.append((before, after, matrix[number][is_in].mean(), matrix[number][~is_in].mean()))
    is_in = np.array([np.isin(np.arange(len(SOURCES)), row["sources"]) for row in rows])
    before, after, inside, outside = np.array(changes).T
    return {
        "adapters": len(rows),
        "own_texts": {"before": before.mean(), "after": after.mean(), "share_that_fell": (after < before).mean()},
        "held_out_change": {"sources in": inside.mean(), "sources out": outside.mean()},
        "share_with_in_below_out": (inside < outside).mean(),
        "by_source": {
            name: {
                "in": float(np.mean(matrix[is_in[:, s], s])),
                "out": float(np.mean(matrix[~is_in[:, s], s])),
            }
            for s, (name, _) in enumerate(SOURCES)
        },
    }


def samples(zoo, base, texts, most=6):
    """What the base and one adapter of few sources guess in held-out texts of its sources, to be looked at."""
    tokenizer = AutoTokenizer.from_pretrained(_minilm._folder())
    session = RECIPES["minilm-text"].session(base)
    row = min((row for row in zoo.rows() if row["split"] == "test"), key=lambda row: len(row["sources"]))
    numbers = texts.held_out.view(len(SOURCES), HELD_OUT)[row["sources"]].T.flatten()[:most]
    inputs, targets = session.inputs(numbers)

    def guesses():
        with torch.no_grad():
            return base(**inputs).topk(3).indices

    def words(scored):
        return tokenizer.convert_ids_to_tokens([texts.vocabulary[token] for token in scored])

    plain = guesses()
    with read(zoo.adapter_path(row)).apply_to(base):
        adapted = guesses()
    seen = []
    for n, number in enumerate(numbers):
        tokens = texts.examples.tokens[number]
        places = texts.examples.places[number]
        masked = sorted((targets[n] != NO_TARGET).nonzero().flatten().tolist(), key=places.tolist().__getitem__)
        seen.append(
            {
                "text": tokenizer.decode(tokens[tokens != 0]),
                "truth": words(targets[n][masked].tolist()),
                "base": [words(plain[n, place].tolist()) for place in masked],
                "adapter": [words(adapted[n, place].tolist()) for place in masked],
            }
        )
    return {"id": row["id"], "sources": [SOURCES[source][0] for source in row["sources"]], "texts": seen}


def of_labels(zoo):
    """Spread of the measured labels over the zoo."""
    rows = [row for row in zoo.rows() if row["status"] == "ok"]
    return {
        name: dict(zip(("least", "median", "most"), np.quantile([row[name] for row in rows], (0, 0.5, 1)), strict=True))
        for name in ("loss", "test_accuracy", "test_accuracy_at_10", "dataset_size", "learning_rate", "steps")
    }


def readings(dataset, seeds):
    """Ridge and the baselines on every label; and the AUROC of each source."""
    ridge = MODELS["ridge"]()
    plan = Plan({"ridge": ridge}, TARGETS, range(seeds), ("gauge",), attack_seeds=seeds)
    found = bench({"minilm-text": dataset}, plan, done=lambda _: print(".", end="", flush=True))
    test = dataset.subset(usable(dataset.values("sources"), dataset.where("test")))
    predictor = fit_predictor(dataset, "sources", ridge, seeds=range(seeds))
    inputs = ridge.inputs(test.samples, predictor.structure)
    scores = np.mean([member.fitted.scores(inputs) for member in predictor.members], axis=0)
    truth = predictor.target.encode(test.values("sources"), ignore_unknown=True)
    by_source = {
        SOURCES[int(source)][0]: round(float(mean_auroc(truth[:, [place]], scores[:, [place]])), 3)
        for place, source in enumerate(predictor.target.classes)
    }
    return found.as_dict(), by_source


def main():
    """Forge, look, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    home = Path(os.environ.get("LORASCOPE_HOME", Path.home() / ".cache" / "lorascope"))
    folder = arguments.zoo or home / f"minilm-text-{arguments.count}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    forge("minilm-text", arguments.count, folder, seed=0, workers=arguments.workers)
    zoo, base, texts = Zoo.open(folder), load_base(folder), RECIPES["minilm-text"].texts()
    dataset = Dataset.of(zoo)
    result = {
        "command": f"python experiments/minilm_text/run.py --count {arguments.count}",
        "zoo": {"recipe": "minilm-text", "count": arguments.count, "seed": 0, "digest": dataset.digest},
        "base": dict(RECIPES["minilm-text"].found({})) | of_the_base(base, texts),
        "splits": {name: len(dataset.where(name)) for name in ("train", "validation", "test")},
        "labels": of_labels(zoo),
        "adapters": of_adapters(zoo, base, texts),
        "samples": samples(zoo, base, texts),
    }
    print(json.dumps(result, indent=1, default=float), flush=True)
    found, by_source = readings(dataset, arguments.seeds)
    result |= {
        "seeds": arguments.seeds,
        "auroc_by_source": by_source,
        "bench": found,
        "versions": {
            "lorascope": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": str(torch.__version__).partition("+")[0],
            "transformers": transformers.__version__,
        },
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1, default=float) + "\n")
    print(json.dumps(by_source))


if __name__ == "__main__":
    main()
