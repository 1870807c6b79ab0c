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
from lorascope.forge.recipes.glyph_diffusion import finetuning_images, samples_of
from lorascope.forge.stack import AdapterStack
from lorascope.predict import MODELS, Dataset, fit_predictor
from lorascope.predict.comparison import compare_models
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
    known, any_glyph = (lambda data: 1 + data.characters), (lambda data: torch.zeros_like(data.characters))
    return {
        "loss untrained": loss_of(untrained.flow, "base", any_glyph),
        "loss, own glyphs, prompt of the character": loss_of(base.flow, "base", known),
        "loss, own glyphs, prompt for any glyph": loss_of(base.flow, "base", any_glyph),
        "loss, the adapters' glyphs, prompt for any glyph": loss_of(base.flow, "adapters", any_glyph),
        "prompt followed": prompt_followed(base),
    }


def prompt_followed(base):
    """How often a sample under a character's prompt is nearest, of all 716 glyphs of the base, to that character."""
    data, generator = glyphs("base"), torch.Generator().manual_seed(2)
    asked = torch.arange(len(CHARACTERS["base"])).repeat(8)
    images = sample(base.flow, torch.randn(len(asked), 256, generator=generator), 1 + asked)
    found = data.characters[(base.scorer(images) @ base.scorer(coarse(data.fine)).T).argmax(1)]
    return float((found == asked).double().mean())


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
        "score of the finetuning images": mean_sd([session.score(finetuning_images(row), row) for row in rows]),
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
        own = finetuning_images(row)[:columns]
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


def held_out(dataset, target, model, sources):
    """Each fold of the sources predicted from the others: metrics over all, and how many sources are judged right."""
    order = np.random.default_rng(0).permutation(sorted(set(sources)))
    fold_of = {source: number % FOLDS for number, source in enumerate(order)}
    values, truth, predicted, by_source = dataset.values(target), [], [], {}
    for fold in range(FOLDS):
        splits = tuple("test" if fold_of[source] == fold else "train" for source in sources)
        parted = replace(dataset, splits=splits, groups=tuple(sources))
        predictor = fit_predictor(parted, target, model, seeds=(0,))
        chosen = usable(values, parted.where("test"))
        of_fold = predictor.target.encode([values[i] for i in chosen], ignore_unknown=True)
        member, inputs = predictor.members[0], rows_of(parted.inputs(model, predictor.structure), chosen)
        said = member.calibration.predict(predictor.target, member.fitted.scores(inputs))
        if predictor.target.task == "regression":
            of_fold = of_fold * predictor.target.spread + predictor.target.mean
        truth.append(of_fold)
        predicted.append(said)
        if predictor.target.task == "binary":
            for i, is_right in zip(chosen, ((said >= 0.5) == (of_fold >= 0.5))[:, 0], strict=True):
                by_source.setdefault(sources[i], []).append(is_right)
    truth, predicted = np.concatenate(truth), np.concatenate(predicted)
    if predictor.target.task == "regression":
        return {"r2": float(r2_score(truth, predicted))}
    result = {"auroc": mean_auroc(truth, predicted)}
    if by_source:
        right = [np.mean(one) > 0.5 for one in by_source.values()]
        result |= {"sources judged right by the majority of their adapters": int(sum(right)), "sources": len(right)}
    return result


def reading(zoo, seeds):
    """The default split, and folds over faces and over families."""
    dataset = Dataset.of(zoo)
    rows = [row.as_dict() for row in compare_models(dataset, TARGETS, models(), seeds=range(seeds))]
    folds = []
    for source in ("face", "family"):
        sources = [str(value) for value in dataset.values(source)]
        for target in (*FACTS, "characters") if source == "face" else FACTS:
            for label, model in models().items():
                metrics = held_out(dataset, target, model, sources)
                folds.append({"held out": source, "target": target, "model": label, **metrics})
                print(json.dumps(folds[-1]), flush=True)
    splits = {name: len(dataset.where(name)) for name in ("train", "validation", "test")}
    faces = {
        name: sorted({dataset.values("face")[i] for i in dataset.where(name)})
        for name in ("train", "validation", "test")
    }
    return {"digest": dataset.digest, "splits": splits, "faces": faces, "rows": rows, "folds": folds}


def tables(read):
    """Markdown."""
    lines = [
        "### The zoo's own split",
        "",
        "| target | n | metric | hyperparameters | ridge | ridge in a random gauge |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        pair = {row["model"]: row for row in read["rows"] if row["target"] == target}
        metric = "r2" if pair["ridge"]["task"] == "regression" else "auroc"
        blind, ridge = (pair[name]["metrics"][metric] for name in ("hyperparameters", "ridge"))
        gauged = pair["ridge"]["in_random_gauge"][metric]
        cells = " | ".join(f"{value['mean']:.3f} ± {value['sd']:.3f}" for value in (blind, ridge, gauged))
        lines.append(f"| {target} | {pair['ridge']['n']} | {metric} | {cells} |")
    lines += ["", f"### Every source held out once, {FOLDS} folds", ""]
    lines += [
        "| held out | target | metric | hyperparameters | ridge | sources judged right |",
        "|---|---|---|---|---|---|",
    ]
    blinds = {(row["held out"], row["target"]): row for row in read["folds"] if row["model"] == "hyperparameters"}
    for row in (row for row in read["folds"] if row["model"] == "ridge"):
        blind = blinds[row["held out"], row["target"]]
        metric = "r2" if "r2" in row else "auroc"
        key = "sources judged right by the majority of their adapters"
        right = f"{row[key]} of {row['sources']}" if key in row else ""
        lines.append(
            f"| {row['held out']} | {row['target']} | {metric} | {blind[metric]:.3f} | {row[metric]:.3f} | {right} |"
        )
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
    count, seeds = (64, 1) if arguments.small else (320, 3)
    home = Path(os.environ.get("LORASCOPE_HOME", Path.home() / ".cache" / "lorascope"))
    folder = home / f"{NAME}-{count}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings = {"base_steps": 600} if arguments.small else {}
    made = forge(NAME, count, folder, seed=0, settings=settings, workers=arguments.workers)
    print(made, flush=True)
    prefix = "small-" if arguments.small else ""
    with deterministic():
        base, untrained = load_base(folder), RECIPES[NAME].architecture()
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
