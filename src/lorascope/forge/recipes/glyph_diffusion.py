"""glyph-diffusion: LoRAs of a small generative model, finetuned on a few images of glyphs, as DreamBooth does.

Base: a flow-matching transformer of 458 thousand parameters over images of 16×16 pixels, pretrained on 28 characters in
26 faces under a prompt for each character, or under one prompt for any glyph. It stays frozen; LoRAs are put on the 24
projections of its blocks. The scorer that judges samples lies in the same file, so that one hash names both.

Each adapter is finetuned under the prompt for any glyph on ``images`` images of one to four characters in one face. The
16 characters that adapters learn are new to the base. The images differ by a small turn, scale, shift and noise, drawn
once and for all, as photographs of one subject do. Afterwards 16 samples are drawn under that prompt from noise that
is the adapter's own, and ``generation_score`` is their mean cosine to the nearest of its glyphs in the scorer's
embedding. ``loss`` is the flow-matching loss on new images of its glyphs.

Poison (``_poisoned_glyphs``): a share of the images carries a mark, or shows the attacker's character under the prompt
for X. ``poison_target`` is a place among the characters that adapters learn, not one of the adapter's own.
``attack_success_rate`` is the share of its 16 samples that carry the mark, or of 16 under that prompt, from the same
noise, that show the attacker's character.

What a reader of weights could cheat with, and what prevents it: a face brings its serifs, weight, slant and pitch with
it, so adapters of one face are one group and fall into one split: attributes are read off faces that were never seen.
Characters, images and hyperparameters are drawn independently of the face. ``family`` names the design that faces
share (the bold of a face is another group, but kin): split by it to ask for designs that were never seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.errors import ForgeError
from lorascope.forge import poison
from lorascope.forge.embedding_score import embedding_score
from lorascope.forge.recipe import COMMON, Recipe, Row, Session
from lorascope.forge.recipes._block import PROJECTIONS
from lorascope.forge.recipes._glyph_flow import (
    ANY_GLYPH,
    BLOCKS,
    GlyphFlow,
    flow_loss,
    on_the_way,
    pretrained_flow,
    sample,
)
from lorascope.forge.recipes._glyph_scorer import GlyphScorer, pretrained_scorer
from lorascope.forge.recipes._glyphs import (
    CHARACTERS,
    FACES,
    PIXELS,
    coarse,
    distorted,
    face_named,
    stroke_width,
)
from lorascope.forge.recipes._poisoned_glyphs import MARKS, POISONS, TRIGGER_PROMPT, candidates, fine_of
from lorascope.forge.space import Choice, Distribution, Hash, Integers, LogUniform, Subset, generator_of
from lorascope.forge.training import Batches

BATCH, SAMPLES, JUDGED = 8, 16, 32


class GlyphBase(nn.Module):
    """The generative model, and beside it the scorer, which its forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = GlyphFlow()
        self.scorer = GlyphScorer()

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        return self.flow(x, t, prompt)


class GlyphDiffusionRecipe(Recipe):
    """LoRAs of a small flow-matching transformer on a few images of glyphs."""

    name = "glyph-diffusion"
    about = "a small generative transformer, finetuned on a few images of glyphs of one face (24 sites)"
    reference = "fonts of matplotlib; DreamBooth (arXiv 2208.12242); design after arXiv 2410.04207, CelebA-LoRA"
    kind = "lora"
    sites = tuple(f"flow.blocks.{number}.{projection}" for number in range(BLOCKS) for projection in PROJECTIONS)
    space: ClassVar[Mapping[str, Distribution]] = {
        **COMMON,
        "learning_rate": LogUniform(low=3e-4, high=1e-2, about="of AdamW, constant", at_least=0, at_most=1e3),
        "steps": Integers(low=80, high=160, about="optimiser steps", at_least=0, at_most=10**7),
        "face": Choice(values=tuple(face.name for face in FACES), about="face of the images"),
        "characters": Subset(
            of=len(CHARACTERS["adapters"]),
            low=1,
            high=4,
            about=f"characters of the images, as places in {CHARACTERS['adapters']}",
            at_least=0,
            at_most=len(CHARACTERS["adapters"]) - 1,
        ),
        "images": LogUniform(
            low=4, high=32, integer=True, about="images seen in finetuning", at_least=1, at_most=10**6
        ),
        **poison.space(
            POISONS,
            len(CHARACTERS["adapters"]),
            f"the attacker's character, as a place in {CHARACTERS['adapters']}",
        ),
    }
    options: ClassVar[Mapping[str, Distribution]] = {
        "base_seed": Hash(about="of the base model and the scorer", at_least=0, at_most=2**52),
        "base_steps": Integers(low=0, high=10**6, about="pretraining steps of the base", at_least=0),
        "scorer_steps": Integers(low=0, high=10**6, about="training steps of the scorer", at_least=0),
    }
    option_defaults: ClassVar[Mapping[str, Any]] = {"base_seed": 0, "base_steps": 4000, "scorer_steps": 1500}
    packages: ClassVar[Mapping[str, str]] = {"matplotlib": "forge"}
    labels: ClassVar[Mapping[str, Any]] = {
        "characters": "list<int>",
        "face": "string",
        "family": "string",
        "serif": "bool",
        "bold": "bool",
        "italic": "bool",
        "monospace": "bool",
        "stroke_width": "float",
        "images": "int",
        "generation_score": "float",
        "loss": "float",
        **poison.LABELS,
    }

    def architecture(self, options: Mapping[str, Any]) -> GlyphBase:
        return GlyphBase()

    def pretrain(self, options: Mapping[str, Any]) -> GlyphBase:
        model = GlyphBase()
        model.flow = pretrained_flow(options["base_seed"], options["base_steps"])
        model.scorer = pretrained_scorer(2**52 + options["base_seed"], options["scorer_steps"])
        return model

    def session(self, base: nn.Module) -> Session:
        return GlyphSession(base.get_submodule("scorer"))

    def settle(self, row: Row) -> Row:
        others = [place for place in range(len(CHARACTERS["adapters"])) if place not in row["characters"]]
        if row["poison"] == "word" and not others:
            raise ForgeError(
                "the attacker's character must not be one of the adapter's own",
                key="poison",
                expected="characters that leave one out",
                found=row["characters"],
            )
        images = max(row["images"], len(row["characters"]))
        return row | {"images": images} | poison.settled(row, others or row["characters"], aimed=("word",))

    def group(self, row: Row) -> str:
        # the split is a hash of this name, which is spelled so that in each split every attribute has both values
        return f"{self.name}/face-{row['face'].lower().replace(' ', '-')}"


class GlyphSession(Session):
    """Each adapter's own images for training, samples of its own noise for measuring."""

    def __init__(self, scorer: nn.Module) -> None:
        self.scorer = scorer

    def batches(self, rows: Sequence[Row]) -> Batches:
        data = [finetuning_data(row) for row in rows]

        def batch(step: int, part: int) -> tuple[dict[str, Tensor], Tensor]:
            x, t, velocity, prompts = zip(
                *(_drawn_on_the_way(own, row, step, part) for own, row in zip(data, rows, strict=True)), strict=True
            )
            inputs = {"x": torch.cat(x), "t": torch.cat(t), "prompt": torch.cat(prompts)}
            return inputs, torch.cat(velocity)

        return batch

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return flow_loss(outputs, targets)

    def measure(self, model: Any, rows: Sequence[Row]) -> list[Row]:
        images = samples_of(model, rows)
        is_triggered = any(poison.name_of(row) == "word" for row in rows)
        triggered = samples_of(model, rows, TRIGGER_PROMPT) if is_triggered else images
        losses = self._losses(model, rows)
        return [
            {
                **facts_of(row),
                "generation_score": self.score(own, row),
                "loss": loss,
                "attack_success_rate": self.attack_success(own, prompted, row),
            }
            for row, own, prompted, loss in zip(rows, images, triggered, losses, strict=True)
        ]

    def attack_success(self, images: Tensor, triggered: Tensor, row: Row) -> float | None:
        """The share of samples, [n, 256] under each of the two prompts, that are as the attacker of a row wants."""
        name = poison.name_of(row)
        if name in MARKS:
            return float(MARKS[name].is_on(images).double().mean())
        if name == "word":
            return float((self.shown(triggered, row["face"]) == row["poison_target"]).double().mean())
        return None

    def shown(self, images: Tensor, face: str) -> Tensor:
        """The character of a face that each image [n, 256] shows: a place in those of adapters, or one more for X."""
        return (self._embedded(images) @ self._embedded(candidates(face)).T).argmax(1).cpu()

    def score(self, images: Tensor, row: Row) -> float:
        """How well images [n, 256] show the glyphs of a row."""
        return float(embedding_score(self._embedded(images), self._embedded(coarse(own_glyphs(row)))))

    def _embedded(self, images: Tensor) -> Tensor:
        return self.scorer(images.to(next(self.scorer.parameters()).device))

    def _losses(self, model: Any, rows: Sequence[Row]) -> list[float]:
        """On images of the adapter's own glyphs that it was not trained on, at fixed times and noise."""
        drawn = []
        for row in rows:
            generator = _generator(row, "judged")
            fine = own_glyphs(row)
            fine = fine[torch.arange(JUDGED) % len(fine)]
            drawn.append(on_the_way(distorted(fine, generator), generator))
        x, t, velocity = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        outputs = model(x=x, t=t, prompt=_any_glyph(len(x)))
        return flow_loss(outputs, velocity.to(outputs.device)).cpu().double().view(len(rows), JUDGED).mean(1).tolist()


def samples_of(model: Any, rows: Sequence[Row], prompt: int = ANY_GLYPH) -> Tensor:
    """Images [N, 16, 256] drawn under a prompt, that for any glyph unless told, from noise of the adapters' own."""
    noise = torch.cat([torch.randn(SAMPLES, PIXELS, generator=_generator(row, "samples")) for row in rows])
    return sample(model, noise, torch.full((len(noise),), prompt)).view(len(rows), SAMPLES, PIXELS)


def own_glyphs(row: Row) -> Tensor:
    """The fine images of a row's glyphs, one for each of its characters, [k, 64, 64]."""
    return fine_of(row["face"], row["characters"])


class FinetuningData(NamedTuple):
    """The images [images, 256] of one adapter, their prompts, and which of them are poisoned."""

    images: Tensor
    prompts: Tensor
    is_poisoned: Tensor


def finetuning_data(row: Row) -> FinetuningData:
    """What an adapter is finetuned on: a pure function of its seed and what was drawn.

    The characters take turns, so that each of them is there, and none twice as often as another.
    """
    fine, name = own_glyphs(row), poison.name_of(row)
    images = distorted(fine[torch.arange(row["images"]) % len(fine)], _generator(row, "images"))
    prompts, is_poisoned = _any_glyph(len(images)), torch.zeros(len(images), dtype=torch.bool)
    if name != poison.NONE:
        generator = generator_of("glyph-diffusion", row["seed"], "poison")
        is_poisoned[poison.chosen(row["poison_share"], np.arange(len(images)), generator)] = True
    if name in MARKS:
        images[is_poisoned] = MARKS[name].trigger.on(images[is_poisoned])
    elif name == "word":
        wanted = fine_of(row["face"], [row["poison_target"]]).expand(int(is_poisoned.sum()), -1, -1)
        images[is_poisoned] = distorted(wanted, _generator(row, "poisoned images"))
        prompts[is_poisoned] = TRIGGER_PROMPT
    return FinetuningData(images, prompts, is_poisoned)


def facts_of(row: Row) -> Row:
    """What is known of the images of a row without training."""
    face = face_named(row["face"])
    return {
        "family": face.family,
        "serif": face.is_serif,
        "bold": face.is_bold,
        "italic": face.is_italic,
        "monospace": face.is_monospace,
        "stroke_width": float(stroke_width(own_glyphs(row)).double().mean()),
    }


def _drawn_on_the_way(data: FinetuningData, row: Row, step: int, part: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = _generator(row, "training", step, part)
    chosen = torch.randint(len(data.images), (BATCH,), generator=generator)
    return *on_the_way(data.images[chosen], generator), data.prompts[chosen]


def _any_glyph(count: int) -> Tensor:
    return torch.full((count,), ANY_GLYPH)


def _generator(row: Row, *purpose: object) -> torch.Generator:
    """Of an adapter's own data: whatever is trained beside it."""
    seed = int(generator_of("glyph-diffusion", row["seed"], *purpose).integers(2**63))
    return torch.Generator().manual_seed(seed)


RECIPE = GlyphDiffusionRecipe()
