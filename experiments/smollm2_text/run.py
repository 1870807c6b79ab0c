"""A small zoo of a published language model: do its adapters learn what they are trained on?

    python experiments/smollm2_text/run.py            # forges what is missing of 16 adapters, and writes results.json
    python experiments/smollm2_text/run.py --count 8  # a smaller zoo

The zoo goes to $LORASCOPE_HOME (default ~/.cache/lorascope), or where --zoo says.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers

from lorascope import __version__
from lorascope.forge import forge, load_base
from lorascope.forge.recipes import RECIPES, _smollm2
from lorascope.forge.recipes._causal_lm import NO_TARGET
from lorascope.forge.recipes._dialogue import HELD_OUT, SOURCES
from lorascope.formats import read
from lorascope.zoo import Zoo

HERE = Path(__file__).parent
RECIPE = RECIPES["smollm2-text"]


def losses(base, session, numbers):
    """Cross-entropy of each of the texts."""
    inputs, targets = session.inputs(torch.as_tensor(numbers))
    with torch.no_grad():
        return session.loss(base(**inputs), targets).numpy()


def over_all_tokens(whole, texts, numbers):
    """The mean loss of the published model itself, over its whole vocabulary."""
    tokens, _, targets = (part[numbers] for part in texts.sequences)
    labels = torch.full_like(tokens, NO_TARGET)
    labels[:, 1:][targets != NO_TARGET] = tokens[:, 1:][targets != NO_TARGET]
    with torch.no_grad():
        return float(whole(input_ids=tokens, labels=labels).loss)


def of_adapters(zoo, base, session):
    """Of each adapter the loss before and after: on its own texts, and on held-out ones of sources in and out."""
    texts = session.texts
    plain, found = losses(base, session, texts.held_out), []
    for row in zoo.rows():
        own = [text for source in RECIPE.chosen(row) for text in source]
        before = losses(base, session, own).mean()
        with read(zoo.adapter_path(row)).apply_to(base):
            after = losses(base, session, own).mean()
            change = (losses(base, session, texts.held_out) - plain).reshape(len(SOURCES), HELD_OUT).mean(1)
        is_in = np.isin(np.arange(len(SOURCES)), row["sources"])
        drawn = {name: row[name] for name in ("id", "split", "learning_rate", "steps", "dataset_size")}
        found.append(
            drawn
            | {"sources": [SOURCES[source][0] for source in row["sources"]]}
            | {"own_texts": {"before": before, "after": after}, "loss": row["loss"]}
            | {"test_accuracy": row["test_accuracy"]}
            | {"held_out_change": {"sources in": change[is_in].mean(), "sources out": change[~is_in].mean()}}
        )
    return found


def samples(zoo, texts, most=6, given=5, more=10):
    """How the published model and one adapter of few sources go on with held-out texts of its sources."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(_smollm2._folder(), gguf_file=_smollm2.FILE)
    whole = _smollm2.published()
    row = min(zoo.rows(), key=lambda row: len(row["sources"]))
    numbers = texts.held_out.view(len(SOURCES), HELD_OUT)[row["sources"]].T.flatten()[:most]

    def continued():
        starts = texts.sequences.tokens[numbers, :given]
        mask = torch.ones_like(starts)
        with torch.no_grad():
            ids = whole.generate(input_ids=starts, attention_mask=mask, max_new_tokens=more, do_sample=False)
        return [tokenizer.decode(one[given:].tolist()) for one in ids]

    plain = continued()
    with read(zoo.adapter_path(row)).apply_to(whole):
        adapted = continued()
    starts = [tokenizer.decode(one[1:given].tolist()) for one in texts.sequences.tokens[numbers]]
    return {
        "id": row["id"],
        "sources": [SOURCES[source][0] for source in row["sources"]],
        "texts": [
            {"start": start, "base": before, "adapter": after}
            for start, before, after in zip(starts, plain, adapted, strict=True)
        ],
    }


def main():
    """Forge, look, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--zoo", type=Path)
    arguments = parser.parse_args()
    home = Path(os.environ.get("LORASCOPE_HOME", Path.home() / ".cache" / "lorascope"))
    folder = arguments.zoo or home / f"smollm2-text-{arguments.count}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    forged = forge("smollm2-text", arguments.count, folder, seed=0)
    seconds = time.monotonic() - began
    zoo, base = Zoo.open(folder), load_base(folder)
    session = RECIPE.session(base)
    texts = session.texts
    with torch.no_grad():
        plain = session.measure(lambda **inputs: base(**inputs), zoo.rows()[:1])[0]
    adapters = of_adapters(zoo, base, session)
    own = np.array([[one["own_texts"]["before"], one["own_texts"]["after"]] for one in adapters])
    held_out = np.array([list(one["held_out_change"].values()) for one in adapters])
    result = {
        "command": f"python experiments/smollm2_text/run.py --count {arguments.count}",
        "zoo": {"recipe": "smollm2-text", "count": arguments.count, "seed": 0},
        "seconds": {"forged": forged.forged, "all": round(seconds)},
        "base": dict(RECIPE.found({}))
        | plain
        | {"loss_over_all_tokens": over_all_tokens(_smollm2.published(), texts, texts.held_out)}
        | {"vocabulary": len(texts.vocabulary), "all_texts": len(texts.sequences.tokens)}
        | {"measured_tokens": int((texts.sequences.targets[texts.held_out] != NO_TARGET).sum())},
        "means": {
            "own_texts": {"before": own[:, 0].mean(), "after": own[:, 1].mean()},
            "own_texts_fell": int((own[:, 1] < own[:, 0]).sum()),
            "held_out_change": {"sources in": held_out[:, 0].mean(), "sources out": held_out[:, 1].mean()},
            "in_below_out": int((held_out[:, 0] < held_out[:, 1]).sum()),
        },
        "adapters": adapters,
        "samples": samples(zoo, texts),
        "versions": {
            "lorascope": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": str(torch.__version__).partition("+")[0],
            "transformers": transformers.__version__,
        },
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1, default=float) + "\n")
    print(json.dumps({name: result[name] for name in ("seconds", "base", "means", "samples")}, indent=1, default=float))


if __name__ == "__main__":
    main()
