"""DreamBooth LoRAs of Stable Diffusion: what the recipes have in common but for their photographs.

Each adapter is finetuned on a few photographs under one prompt (Ruiz et al., arXiv 2208.12242, without images that
keep the prior). A step takes one photograph, one time and one noise, all from the adapter's own generators; the loss
is the squared error of the predicted noise. Batch 1, AdamW with weight decay 0.01 and gradients of norm at most 1 are
those of the scripts ``train_dreambooth.py`` of peft and ``train_dreambooth_lora.py`` of diffusers. Unlike theirs,
photographs are cut in the middle and not at random, so that the VAE sees each once; its noise is drawn anew each step.

Measured of each adapter:

    loss               squared error on its own photographs, at 16 times spread evenly and noise of its own
    generation_score   mean cosine of samples under its prompt, from noise of its own, to the nearest of its photographs
    clip_score         mean cosine of one sample for each of the zoo's ``prompts`` to the prompt, from noise that is the
                       same for all adapters, so that the score is a function of the weights

both scores by ``lorascope.forge.embedding_score`` in the embedding of CLIP. ``images_sha256`` names the bytes that were
trained on.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorascope.forge.embedding_score import embedding_score
from lorascope.forge.recipe import Recipe, Row, Session
from lorascope.forge.recipes import _clip_score, _stable_diffusion
from lorascope.forge.recipes._clip_score import ClipScorer
from lorascope.forge.recipes._photographs import photograph, pixels
from lorascope.forge.recipes._published import digest_of, folder_of
from lorascope.forge.recipes._stable_diffusion import StableDiffusion
from lorascope.forge.space import Choice, Distribution, Prompt, Text, generator_of
from lorascope.forge.training import Batches, Training
from lorascope.zoo.store import sha256_of

JUDGED = 16
CLIP_SEED = 42  # as in the published measuring of arXiv 2410.04207
MOST_NORM = 1.0

USUAL = "usual"
PROMPTS = (
    "a lighthouse at noon",
    "a mountain hut at night",
    "two apples on a table",
    "a horse in a green field",
    "a chair made of glass",
    "a train on a bridge in the fog",
    "a watercolour of a harbour",
    "a cat asleep on a red sofa",
    "a person on a staircase",
    "a celebrity in a garden",
    "a crowd in a city street",
    "a robot that reads a newspaper",
)
"""The prompts of ``USUAL``."""

ABOUT_PROMPTS = f"prompts for clip_score, with | between; {USUAL}: {len(PROMPTS)} of all sorts; empty: none"

COLUMNS: Mapping[str, Any] = {
    "images": "int",
    "images_sha256": "string",
    "generation_score": "float",
    "clip_score": "float",
    "loss": "float",
}
"""The labels that every such recipe has."""


class DreamBoothRecipe(Recipe):
    """LoRAs of Stable Diffusion on a few photographs; which photographs is for a subclass to say."""

    kind = "lora"
    cohort = 4
    packages: ClassVar[Mapping[str, str]] = {"diffusers": "forge", "transformers": "forge", "PIL": "forge"}
    space: ClassVar[Mapping[str, Distribution]] = {
        "alpha": Choice(values=(27.0,), about="ΔW = alpha / rank · B · A", at_least=1e-6, at_most=1e6),
        "weight_decay": Choice(values=(0.01,), about="of the optimiser", at_least=0, at_most=1e3),
    }
    options: ClassVar[Mapping[str, Choice]] = {
        "model": Text(values=("CompVis/stable-diffusion-v1-4",), about="folder, or owner/name[@revision] on the Hub"),
        "clip": Text(values=("openai/clip-vit-base-patch16",), about="the scorer: folder or name, as of model"),
        "data": Text(values=("",), about="folder of the photographs, as they are published"),
        "sites": Text(values=("to_q,to_v",), about="ends of the paths of the adapted layers of the U-Net"),
        "resolution": Choice(values=(512,), about="side of photographs and samples", at_least=8, at_most=2048),
        "samples": Choice(values=(4,), about="samples for generation_score; 0: none", at_least=0, at_most=10**4),
        "prompts": Prompt(values=(USUAL,), about=ABOUT_PROMPTS),
        "sampling_steps": Choice(values=(20,), about="steps of DDIM", at_least=1, at_most=1000),
        "guidance": Choice(values=(7.5,), about="of classifier-free guidance", at_least=0, at_most=100),
    }
    option_defaults: ClassVar[Mapping[str, Any]] = {name: of.values[0] for name, of in options.items()}

    @abstractmethod
    def check_data(self, folder: str) -> None:
        """See that the folder of photographs is as it is published.

        Raises:
            ForgeError: naming where it is published.
        """

    @abstractmethod
    def photographs(self, row: Row) -> list[Path]:
        """The photographs of one adapter: a pure function of its seed and what was drawn."""

    @abstractmethod
    def facts_of(self, row: Row) -> Row:
        """The labels that are known without training."""

    def check_options(self, options: Mapping[str, Any]) -> None:
        self.check_data(options["data"])
        _folders(options["model"], options["clip"])

    def architecture(self, options: Mapping[str, Any]) -> StableDiffusion:
        model, clip = _folders(options["model"], options["clip"])
        adapted = [end.strip() for end in options["sites"].split(",")]
        base = StableDiffusion(model, ClipScorer(clip), options["resolution"], adapted)
        base.check_sampling(options["sampling_steps"])
        return base

    def pretrain(self, options: Mapping[str, Any]) -> StableDiffusion:
        return self.architecture(options)

    def made(self, base: nn.Module) -> Mapping[str, Tensor]:
        return {}

    def found(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        model, clip = _folders(options["model"], options["clip"])
        return {
            "model": options["model"],
            "model_sha256": digest_of(model, _stable_diffusion.NEEDED),
            "clip": options["clip"],
            "clip_sha256": digest_of(clip, _clip_score.NEEDED),
        }

    def sites_of(self, base: nn.Module) -> Sequence[str]:
        return _checked(base).sites

    def training(self, row: Row) -> Training:
        return replace(super().training(row), clip=MOST_NORM)

    def session(self, base: nn.Module) -> Session:
        return DreamBoothSession(self, _checked(base))


@cache
def _folders(model: str, clip: str) -> tuple[Path, Path]:
    return folder_of(model, _stable_diffusion.NEEDED, "model"), folder_of(clip, _clip_score.NEEDED, "clip")


def _checked(base: nn.Module) -> StableDiffusion:
    if not isinstance(base, StableDiffusion):
        raise TypeError(f"the base is a StableDiffusion, not a {type(base).__name__}")
    return base


class DreamBoothSession(Session):
    """Each adapter's own photographs as latents, encoded once."""

    def __init__(self, recipe: DreamBoothRecipe, base: StableDiffusion) -> None:
        self.recipe, self.base = recipe, base

    def batches(self, rows: Sequence[Row]) -> Batches:
        moments = [self._moments(row) for row in rows]
        prompts = self.base.embedded([row["prompt"] for row in rows])

        def batch(step: int, part: int) -> tuple[dict[str, Tensor], Tensor]:
            drawn = [self._drawn(own, row, step, part) for own, row in zip(moments, rows, strict=True)]
            noisy, times, targets = (torch.cat(of_each) for of_each in zip(*drawn, strict=True))
            return {"sample": noisy, "timestep": times, "encoder_hidden_states": prompts}, targets

        return batch

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.float() - targets.float()).square().flatten(1).mean(1)

    def measure(self, model: Any, rows: Sequence[Row]) -> list[Row]:
        losses = self._losses(model, rows)
        faithful, prompted = self._generation_scores(model, rows), self._clip_scores(model, rows)
        return [
            {
                **self.recipe.facts_of(row),
                "images_sha256": _digest(self.recipe.photographs(row)),
                "generation_score": fidelity,
                "clip_score": score,
                "loss": loss,
            }
            for row, fidelity, score, loss in zip(rows, faithful, prompted, losses, strict=True)
        ]

    def _photographs(self, row: Row) -> list[Any]:
        return [photograph(path, self.base.resolution) for path in self.recipe.photographs(row)]

    def _moments(self, row: Row) -> tuple[Tensor, Tensor]:
        return self.base.moments([pixels(image) for image in self._photographs(row)])

    def _drawn(self, moments: tuple[Tensor, Tensor], row: Row, step: int, part: int) -> tuple[Tensor, Tensor, Tensor]:
        """One photograph of the adapter on its way to noise; each of them once before any of them again."""
        count = len(moments[0])
        epoch, place = divmod(step * row["accumulate"] + part, count)
        number = int(generator_of("dreambooth", row["seed"], "order", epoch).permutation(count)[place])
        generator = _generator(row, "training", step, part)
        times = torch.randint(self.base.schedule.config.num_train_timesteps, (1,), generator=generator)
        return self._on_the_way(moments, number, times, generator)

    def _on_the_way(
        self, moments: tuple[Tensor, Tensor], number: int, times: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, deviation = moments
        chosen = slice(number, number + 1)
        latent = self.base.drawn((mean[chosen], deviation[chosen]), generator)
        noise = torch.randn(latent.shape, generator=generator)
        noisy, target = self.base.with_noise(latent, noise, times)
        return noisy, times, target

    def _losses(self, model: Any, rows: Sequence[Row]) -> list[float]:
        moments = [self._moments(row) for row in rows]
        prompts = self.base.embedded([row["prompt"] for row in rows])
        generators = [_generator(row, "judged") for row in rows]
        total = torch.zeros(len(rows), dtype=torch.float64)
        whole = self.base.schedule.config.num_train_timesteps
        for number in range(JUDGED):
            times = torch.tensor([(2 * number + 1) * whole // (2 * JUDGED)])
            drawn = [
                self._on_the_way(own, number % len(own[0]), times, generator)
                for own, generator in zip(moments, generators, strict=True)
            ]
            noisy, at, targets = (torch.cat(of_each) for of_each in zip(*drawn, strict=True))
            outputs = model(sample=noisy, timestep=at, encoder_hidden_states=prompts)
            total += self.loss(outputs.cpu(), targets).double()
        return (total / JUDGED).tolist()

    def _generation_scores(self, model: Any, rows: Sequence[Row]) -> list[float | None]:
        count = rows[0]["samples"]
        if not count:
            return [None] * len(rows)
        prompts = self.base.embedded([row["prompt"] for row in rows])
        generators = [_generator(row, "samples") for row in rows]
        images: list[list[Any]] = [[] for _ in rows]
        for _ in range(count):
            noise = torch.stack([torch.randn(self.base.latent_shape, generator=one) for one in generators])
            for own, image in zip(images, self._sampled(model, noise, prompts, rows), strict=True):
                own.append(image)
        embed = _scorer(self.base).of_images
        return [
            float(embedding_score(embed(own), embed(self._photographs(row))))
            for own, row in zip(images, rows, strict=True)
        ]

    def _clip_scores(self, model: Any, rows: Sequence[Row]) -> list[float | None]:
        texts = _prompts(rows[0]["prompts"])
        if not texts:
            return [None] * len(rows)
        scorer = _scorer(self.base)
        shape = (len(texts), *self.base.latent_shape)
        noises = torch.randn(shape, generator=torch.Generator().manual_seed(CLIP_SEED))
        total = torch.zeros(len(rows), dtype=torch.float64)
        for noise, prompt, target in zip(noises, self.base.embedded(texts), scorer.of_texts(texts), strict=True):
            images = self._sampled(model, noise.expand(len(rows), *noise.shape), prompt.expand(len(rows), -1, -1), rows)
            total += embedding_score(scorer.of_images(images).unsqueeze(1), target.unsqueeze(0)).double()
        return (total / len(texts)).tolist()

    def _sampled(self, model: Any, noise: Tensor, prompts: Tensor, rows: Sequence[Row]) -> list[Any]:
        return self.base.sample(model, noise, prompts, rows[0]["sampling_steps"], rows[0]["guidance"])


def _prompts(given: str) -> Sequence[str]:
    return PROMPTS if given == USUAL else [text.strip() for text in given.split("|") if text.strip()]


def _scorer(base: StableDiffusion) -> ClipScorer:
    assert isinstance(base.scorer, ClipScorer)
    return base.scorer


def _digest(paths: Sequence[Path]) -> str:
    return hashlib.sha256("".join(map(sha256_of, paths)).encode()).hexdigest()


def _generator(row: Row, *purpose: object) -> torch.Generator:
    """Of an adapter's own data: whatever is trained beside it."""
    return torch.Generator().manual_seed(int(generator_of("dreambooth", row["seed"], *purpose).integers(2**63)))
