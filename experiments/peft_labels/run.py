"""Are the labels right? 20 random adapters of each zoo are loaded with peft, one at a time, and measured again.

    python experiments/peft_labels/run.py            # results.json beside this file; about 15 minutes on 2 cores
    python experiments/peft_labels/run.py --small    # 4 adapters of each; small-results.json

Zoos of 32 are forged where they are missing, under $LORASCOPE_HOME: the recipes with LoRA, and digits-vit with every
other kind. What is compared is each label that is measured. A share of test images or tokens can differ by one of them,
since peft multiplies in another order; anything more would be a wrong label.
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import peft
import torch

from lorascope import __version__
from lorascope.forge import forge
from lorascope.forge.base import load_base
from lorascope.forge.determinism import deterministic
from lorascope.forge.kinds import KINDS
from lorascope.forge.recipes import RECIPES
from lorascope.zoo import Zoo
from lorascope.zoo.log import machine

HERE = Path(__file__).parent
HOME = Path(os.environ.get("LORASCOPE_HOME", Path.home() / ".cache" / "lorascope")) / "peft_labels"
MEASURED = ("test_accuracy", "test_accuracy_at_10", "loss", "generation_score", "attack_success_rate")
ZOOS = {
    "digits-vit": ("digits-vit", {}),
    "digits-vit, poisoned": ("digits-vit", {"poison": "patch|blend|flip"}),
    "glyph-diffusion": ("glyph-diffusion", {}),
    "minilm-text": ("minilm-text", {}),
    **{f"digits-vit, {kind}": ("digits-vit", {"kind": kind}) for kind in KINDS.names() if kind != "lora"},
}
COUNT = 32


def again(zoo, row, recipe):
    """The labels of one adapter as peft gives them."""
    model = peft.PeftModel.from_pretrained(load_base(zoo.path), str(zoo.adapter_path(row))).eval()
    session = recipe.session(load_base(zoo.path))
    with torch.no_grad():
        return session.measure(model, [row])[0]


def compared(name, chosen):
    """How far the labels of some adapters of a zoo are from those in the manifest, at most."""
    recipe_name, settings = ZOOS[name]
    folder = HOME / name.replace(", ", "-")
    forge(recipe_name, COUNT, folder, settings=settings, workers=2)
    zoo, recipe = Zoo.open(folder), RECIPES[recipe_name]
    rows = random.Random(0).sample([row for row in zoo.rows() if row["status"] == "ok"], chosen)
    largest = {}
    options = recipe.options_of(zoo.header["settings"])
    with deterministic():
        for row in rows:
            found = again(zoo, options | row, recipe)
            for label in MEASURED:
                if row.get(label) is not None:
                    largest[label] = max(largest.get(label, 0.0), abs(found[label] - row[label]))
    spread = {label: max(row[label] or 0 for row in rows) - min(row[label] or 0 for row in rows) for label in largest}
    return {"adapters": len(rows), "largest_difference": largest, "range_in_the_manifest": spread}


def main():
    """Compare all zoos, and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    is_small = parser.parse_args().small
    record = {"lorascope": __version__, "peft": peft.__version__, "machine": machine(), "zoos": {}}
    for name in ZOOS:
        if not KINDS[ZOOS[name][1].get("kind", "lora")].files.startswith("PEFT"):
            continue
        record["zoos"][name] = compared(name, 4 if is_small else 20)
        print(name, json.dumps(record["zoos"][name]), file=sys.stderr, flush=True)
        path = HERE / ("small-results.json" if is_small else "results.json")
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
