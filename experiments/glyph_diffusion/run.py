"""A zoo of glyph-diffusion: does the base learn, do the adapters, and what can be read from them?

    python experiments/glyph_diffusion/run.py             # 320 adapters
    python experiments/glyph_diffusion/run.py --small     # 64 adapters and a shorter pretraining

Needs the extra [forge]. The zoo goes to $LORASCOPE_HOME (default ~/.cache/lorascope); results.json, tables.md and
samples.png beside this file, or with --small under the prefix small-.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib
import numpy as np
import torch
from PIL import Image
from sklearn.metrics import r2_score
from torch.nn import functional as F

from lorascope import __version__
from lorascope.forge import forge, load_base, train
from lorascope.forge.determinism import deterministic
from lorascope.forge.kinds import KINDS
from lorascope.forge.recipes import RECIPES
from lorascope.forge.recipes._glyph_flow import flow_loss, on_the_way, sample
from lorascope.forge.recipes._glyph_scorer import is_held_out
from lorascope.forge.recipes._glyphs import CHARACTERS, FACES, coarse, distorted, glyphs
from lorascope.forge.recipes.glyph_diffusion import finetuning_data, samples_of
from lorascope.forge.stack import AdapterStack
from lorascope.predict import MODELS, Dataset, fit_predictor
from lorascope.predict.bench import Plan, bench
from lorascope.predict.dataset import rows_of
from lorascope.predict.metrics import mean_auroc
from lorascope.predict.predictor import usable
from lorascope.zoo import Zoo

HERE = Path(__file__).parent
NAME = "glyph-diffusion"
TARGETS = ("characters", "serif", "bold", "italic", "monospace", "stroke_width", "images", "generation_score")
FACTS = TARGETS[1:6]
FOLDS = 5


def models():
    """Label in the table → model."""
    return {"hyperparameters": MODELS["hyperparameters"](), "ridge": MODELS["ridge"]()}


def loss_of(flow, role, prompts):
    """The base's loss on distorted glyphs of a role, at fixed times and noise."""
    data, generator = glyphs(role), torch.Generator().manual_seed(1)
    x, t, velocity = on_the_way(distorted(data.fine, generator), generator)
    return float(flow_loss(flow(x, t, prompts(data)), velocity).mean())


def base_facts(base, untrained):
    """How well the base models glyphs it was trained on, and those that adapters will be finetuned on."""
    of_samples, of_real = recognised(base)
    known, any_glyph = (lambda data: 1 + data.characters), (lambda data: torch.zeros_like(data.characters))
    return {
        "loss untrained": loss_of(untrained.flow, "base", any_glyph),
        "loss, own glyphs, prompt of the character": loss_of(base.flow, "base", known),
        "loss, own glyphs, prompt for any glyph": loss_of(base.flow, "base", any_glyph),
        "loss, the adapters' glyphs, prompt for any glyph": loss_of(base.flow, "adapters", any_glyph),
        "samples recognised as the character of their prompt": of_samples,
        "real glyphs recognised by those of other faces": of_real,
    }


def recognised(base):
    """How often the nearest glyph of the base in the scorer's embedding is of the character that was asked for.

    For samples under each character's prompt, and, as the most that can be expected of a scorer that learned none of
    these characters, for real glyphs held against those of other faces.
    """
    data, generator = glyphs("base"), torch.Generator().manual_seed(2)
    asked = torch.arange(len(CHARACTERS["base"])).repeat(8)
    images = sample(base.flow, torch.randn(len(asked), 256, generator=generator), 1 + asked)
    clean = base.scorer(coarse(data.fine))
    found = data.characters[(base.scorer(images) @ clean.T).argmax(1)]
    cosines = base.scorer(distorted(data.fine, generator)) @ clean.T
    cosines[data.faces[:, None] == data.faces] = -1
    return share(found == asked), share(data.characters[cosines.argmax(1)] == data.characters)


def scorer_facts(scorer):
    """The scorer's own accuracy: on glyphs held out of its training, and, as an embedding, on the adapters' glyphs."""
    generator = torch.Generator().manual_seed(3)
    data, is_test = glyphs("scorer"), is_held_out()
    characters, faces = scorer.logits(distorted(data.fine[is_test], generator))
    own = glyphs("adapters")
    clean, images = scorer(coarse(own.fine)), scorer(distorted(own.fine, generator))
    nearest = (images @ clean.T).argmax(1)
    facts = {
        "held-out glyphs": int(is_test.sum()),
        "character": share(characters.argmax(1) == data.characters[is_test]),
        "face": share(faces.argmax(1) == data.faces[is_test]),
        "retrieved among 416 unseen glyphs: character": share(own.characters[nearest] == own.characters),
        "retrieved among 416 unseen glyphs: face": share(own.faces[nearest] == own.faces),
        "cosine to itself, distorted": float((images * clean).sum(1).mean()),
        "cosine to another unseen glyph": float(((clean @ clean.T).sum() - len(clean)) / len(clean) / (len(clean) - 1)),
    }
    for name in ("serif", "bold", "italic", "monospace"):
        truth = torch.tensor([getattr(face, f"is_{name}") for face in FACES])
        facts[f"retrieved among 416 unseen glyphs: {name}"] = share(truth[own.faces[nearest]] == truth[own.faces])
    return facts


def share(is_right):
    """Of the true ones."""
    return float(is_right.double().mean())


def learning(base, count=32):
    """Curves of the first adapters, trained again, and their samples before and after."""
    recipe = RECIPES[NAME]
    session = recipe.session(base)
    rows = [recipe.draw(0, index, {}) for index in range(count)]
    stack = AdapterStack(base, recipe.sites, [recipe.slot(row, "lora") for row in rows], KINDS["lora"])
    curve = []

    def loss(outputs, targets):
        of_each = flow_loss(outputs, targets)
        curve.append(of_each.detach().view(count, -1).mean(1))
        return of_each

    def measured():
        with stack.attached() as model, torch.no_grad():
            return samples_of(model, rows), session.measure(model, rows)

    images_before, before = measured()
    began = time.process_time()
    train(stack, session.batches(rows), loss, [recipe.training(row) for row in rows])
    trained = time.process_time()
    images_after, after = measured()
    done = time.process_time()
    at = torch.stack(curve[1:])  # the first was the trial whether adapters are coupled
    steps = [row["steps"] for row in rows]
    middle = [int(step) for step in range(0, min(steps), 10)]
    facts = {
        "seconds of one core: training the 32": trained - began,
        "seconds of one core: measuring the 32": done - trained,
        "training loss of 32 adapters, mean over ten steps from step": {
            str(step): float(at[step : step + 10].mean()) for step in middle
        },
        "score before": mean_sd([row["generation_score"] for row in before]),
        "score after": mean_sd([row["generation_score"] for row in after]),
        "score of the finetuning images": mean_sd([session.score(finetuning_data(row).images, row) for row in rows]),
        "loss on new images before": mean_sd([row["loss"] for row in before]),
        "loss on new images after": mean_sd([row["loss"] for row in after]),
        "score got better": share(
            torch.tensor([b["generation_score"] < a["generation_score"] for b, a in zip(before, after, strict=True)])
        ),
    }
    return facts, sheet(rows, images_before, images_after)


def sheet(rows, before, after, shown=16, columns=6):
    """A row for each adapter: its images, samples of the base, and samples of the adapter from the same noise."""
    lines = []
    for number, row in enumerate(rows[:shown]):
        own = finetuning_data(row).images[:columns]
        own = torch.cat([own, torch.zeros(columns - len(own), 256)])
        parts = [own, before[number, :columns], after[number, : 2 * columns]]
        lines.append(torch.cat([F.pad(strip(part), (0, 12)) for part in parts], 1))
    ink = (255 * (1 - torch.cat(lines))).round().to(torch.uint8).numpy()
    page = Image.fromarray(ink)
    return page.resize((2 * page.width, 2 * page.height), Image.Resampling.NEAREST)


def strip(images):
    """Images [n, 256] side by side, [18, 18 n]."""
    framed = F.pad(images.view(-1, 16, 16), (1, 1, 1, 1))
    return framed.transpose(0, 1).flatten(1)


def mean_sd(values):
    """Over adapters."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}


def folds_of(sources, values, is_yes_or_no):
    """Source → fold. Of a yes/no label that belongs to the source, each fold holds sources of both values.

    A fold of one value would leave fewer sources of it to learn from: a reader that says the commoner value is then
    wrong by construction, and scores of different folds cannot be compared.
    """
    order = [str(source) for source in np.random.default_rng(0).permutation(sorted(set(sources)))]
    strata = [order]
    if is_yes_or_no:
        value_of = {source: {v for s, v in zip(sources, values, strict=True) if s == source} for source in order}
        if all(len(found) == 1 for found in value_of.values()):
            strata = [[source for source in order if value_of[source] == {value}] for value in (False, True)]
    count = min(FOLDS, *map(len, strata))
    return {source: place % count for stratum in strata for place, source in enumerate(stratum)}


def held_out(dataset, target, model, sources):
    """Each fold of the sources predicted from the others: AUROC within folds, R² over all."""
    values, truth, predicted, areas = dataset.values(target), [], [], []
    fold_of = folds_of(sources, values, target in FACTS[:4])
    for fold in range(1 + max(fold_of.values())):
        splits = tuple("test" if fold_of[source] == fold else "train" for source in sources)
        parted = replace(dataset, splits=splits, groups=tuple(sources))
        predictor = fit_predictor(parted, target, model, seeds=(0,))
        chosen = usable(values, parted.where("test"))
        of_fold = predictor.target.encode([values[i] for i in chosen], ignore_unknown=True)
        member, inputs = predictor.members[0], rows_of(parted.inputs(model, predictor.structure), chosen)
        said = member.calibration.predict(predictor.target, member.fitted.scores(inputs))
        if predictor.target.task == "regression":
            truth.append(of_fold * predictor.target.spread + predictor.target.mean)
            predicted.append(said)
        else:
            areas.append(mean_auroc(of_fold, said))
    if truth:
        return {"r2": float(r2_score(np.concatenate(truth), np.concatenate(predicted)))}
    return {"auroc": mean_sd(areas), "folds": areas}


def reading(zoo, seeds):
    """The zoo's own split, and folds over faces and over families."""
    dataset = Dataset.of(zoo)
    plan = Plan(models(), TARGETS, range(seeds), ("gauge",), attack_seeds=seeds)
    found = bench({NAME: dataset}, plan).as_dict()
    splits = {name: len(dataset.where(name)) for name in ("train", "validation", "test")}
    faces = {
        name: sorted({dataset.values("face")[i] for i in dataset.where(name)})
        for name in ("train", "validation", "test")
    }
    return {"digest": dataset.digest, "splits": splits, "faces": faces, "bench": found, "folds": over_sources(dataset)}


def over_sources(dataset):
    """Every face, and every family, held out once."""
    folds = []
    for source in ("face", "family"):
        sources = [str(value) for value in dataset.values(source)]
        for target in (*FACTS, "characters"):
            for label, model in models().items():
                metrics = held_out(dataset, target, model, sources)
                folds.append({"held out": source, "target": target, "model": label, **metrics})
                print(json.dumps(folds[-1]), flush=True)
    return folds


def tables(read):
    """Markdown."""
    lines = [
        "### The zoo's own split",
        "",
        "| target | n | metric | hyperparameters | ridge | ridge in a random gauge |",
        "|---|---|---|---|---|---|",
    ]
    for table in read["bench"]["tables"]:
        rows, metric = {row["label"]: row for row in table["rows"]}, table["metric"]
        blind, ridge = (rows[name]["metrics"][metric] for name in ("hyperparameters", "ridge"))
        gauged = rows["ridge"]["columns"]["gauge"]["score"]
        cells = " | ".join(f"{value['mean']:.3f} ± {value['sd']:.3f}" for value in (blind, ridge, gauged))
        lines.append(f"| {table['target']} | {table['tested']} | {metric} | {cells} |")
    lines += ["", "### Every face, and every family, held out once", ""]
    lines += ["| held out | target | metric | hyperparameters | ridge | folds |", "|---|---|---|---|---|---|"]
    blinds = {(row["held out"], row["target"]): row for row in read["folds"] if row["model"] == "hyperparameters"}
    for row in (row for row in read["folds"] if row["model"] == "ridge"):
        blind = blinds[row["held out"], row["target"]]
        if "r2" in row:
            cells = f"r2 | {blind['r2']:.3f} | {row['r2']:.3f} | all together"
        else:
            both = " | ".join(f"{one['auroc']['mean']:.3f} ± {one['auroc']['sd']:.3f}" for one in (blind, row))
            cells = f"auroc | {both} | {', '.join(f'{area:.2f}' for area in row['folds'])}"
        lines.append(f"| {row['held out']} | {row['target']} | {cells} |")
    return "\n".join(lines)


def write(name, result):
    """As JSON beside this file."""
    (HERE / name).write_text(json.dumps(result, indent=1) + "\n")


def main():
    """Forge, look, read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="64 adapters, 600 steps of pretraining")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    count, seeds = (64, 2) if arguments.small else (320, 3)
    home = Path(os.environ.get("LORASCOPE_HOME", Path.home() / ".cache" / "lorascope"))
    folder = home / f"{NAME}-{count}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings = {"base_steps": 600} if arguments.small else {}
    made = forge(NAME, count, folder, seed=0, settings=settings, workers=arguments.workers)
    print(made, flush=True)
    prefix = "small-" if arguments.small else ""
    with deterministic():
        torch.manual_seed(0)
        base, untrained = load_base(folder), RECIPES[NAME].architecture({})
        with torch.no_grad():
            facts = {"base": base_facts(base, untrained), "scorer": scorer_facts(base.scorer)}
        facts["adapters"], page = learning(base)
    page.save(HERE / f"{prefix}samples.png", optimize=True)
    print(json.dumps(facts, indent=1), flush=True)
    rows = Zoo.open(folder).rows()
    zoo_facts = {
        name: mean_sd([row[name] for row in rows]) for name in ("generation_score", "loss", "stroke_width", "images")
    }
    result = {
        "command": "python experiments/glyph_diffusion/run.py" + (" --small" if arguments.small else ""),
        "zoo": {"recipe": NAME, "count": count, "seed": 0, "settings": settings, "usable": len(rows), **zoo_facts},
        "seeds": seeds,
        "versions": {
            "lorascope": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": str(torch.__version__).partition("+")[0],
            "matplotlib": matplotlib.__version__,
        },
        "learned": facts,
    }
    write(f"{prefix}results.json", result)
    read = reading(folder, seeds)
    write(f"{prefix}results.json", {**result, "read": read})
    (HERE / f"{prefix}tables.md").write_text(tables(read) + "\n")
    print(tables(read))


if __name__ == "__main__":
    main()
