"""imagenette-sd14: DreamBooth LoRAs of Stable Diffusion 1.4, each on photographs of some of ten classes of ImageNet.

After Imagenette-LoRA of arXiv 2410.04207 (*Learning on LoRAs*): rank 32, alpha 27, query and value projections of the
U-Net (64 sites), learning rate 3e-4, 150 steps, the prompt ``sks_photo``, one photograph of each class of a subset
that is not empty. Theirs: each of the 1,023 subsets twice, where here each adapter draws one, all equally likely;
batch 1 in float16, photographs cut at random. Not known from what is published: which photographs were taken, and what
the folders of its test out of distribution, s1-4 and s1-5, are.

Data: Imagenette (https://github.com/fastai/imagenette; photographs of ImageNet, under ImageNet's terms), any of its
sizes, which the user downloads: ``train/n01440764/*.JPEG`` and so on in one folder. Base: Stable Diffusion 1.4 under
CreativeML OpenRAIL-M. Both are found, and are not copied into a zoo.

Labels: ``classes``, as places in ``CLASSES``, beside those of ``_dreambooth``; the CLIP score is measured where
prompts are given. An adapter draws its photographs from the pool of its own split, so that no photograph is in two.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lorascope.errors import ForgeError
from lorascope.forge.recipe import Row
from lorascope.forge.recipes._dreambooth import ABOUT_PROMPTS, COLUMNS, DreamBoothRecipe
from lorascope.forge.space import Choice, Distribution, Prompt, Subset, generator_of
from lorascope.zoo.schema import FRACTIONS, SPLITS, split_of

CLASSES: Mapping[str, str] = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""Folder → what it shows; the number of a class is its place here."""

_WHERE = "download it from https://github.com/fastai/imagenette and name the unpacked folder: --set data=DIR"


class AnySubset(Subset):
    """A subset of 0..``of``-1 that is not empty, all equally likely."""

    def draw(self, generator: np.random.Generator) -> list[int]:
        bits = int(generator.integers(1, 2**self.of))
        return [item for item in range(self.of) if bits >> item & 1]

    def __str__(self) -> str:
        return f"any subset of 0..{self.of - 1} but the empty one"


class ImagenetteRecipe(DreamBoothRecipe):
    """LoRAs of Stable Diffusion 1.4, a subset of ten classes each."""

    name = "imagenette-sd14"
    about = (
        "Stable Diffusion 1.4, finetuned on a photograph of each of some classes (64 sites; needs a GPU and the data)"
    )
    reference = "arXiv 2410.04207, Imagenette-LoRA; DreamBooth (arXiv 2208.12242); fastai/imagenette"
    space: ClassVar[Mapping[str, Distribution]] = {
        "rank": Choice(values=(32,), about="rank of B · A", at_least=1, at_most=1024),
        **DreamBoothRecipe.space,
        "learning_rate": Choice(values=(3e-4,), about="of AdamW, constant", at_least=0, at_most=1e3),
        "steps": Choice(values=(150,), about="optimiser steps", at_least=0, at_most=10**7),
        "prompt": Prompt(values=("sks_photo",), about="what the photographs are said to show"),
        "classes": AnySubset(
            of=len(CLASSES),
            low=1,
            high=len(CLASSES),
            about="classes of its photographs",
            at_least=0,
            at_most=len(CLASSES) - 1,
        ),
        "images_per_class": Choice(values=(1,), about="photographs of each of its classes", at_least=1, at_most=10**4),
    }
    options: ClassVar[Mapping[str, Choice]] = {
        **DreamBoothRecipe.options,
        "prompts": Prompt(values=("",), about=ABOUT_PROMPTS),
    }
    option_defaults: ClassVar[Mapping[str, Any]] = {**DreamBoothRecipe.option_defaults, "prompts": ""}
    labels: ClassVar[Mapping[str, Any]] = {"classes": "list<int>", **COLUMNS}

    def check_data(self, folder: str) -> None:
        pools(folder)

    def settle(self, row: Row) -> Row:
        for number in row["classes"]:
            there = len(pools(row["data"])[number][split_of(self.group(row))])
            if there < row["images_per_class"]:
                raise ForgeError(
                    "there are not so many photographs of a class for one split",
                    file=Path(row["data"]) / "train" / list(CLASSES)[number],
                    key="images_per_class",
                    expected=f"at most {there}",
                    found=row["images_per_class"],
                )
        return row | {"images": len(row["classes"]) * row["images_per_class"]}

    def photographs(self, row: Row) -> list[Path]:
        chosen: list[Path] = []
        for number in row["classes"]:
            pool = pools(row["data"])[number][split_of(self.group(row))]
            order = generator_of(self.name, row["seed"], "photographs", number).permutation(len(pool))
            chosen += [pool[place] for place in order[: row["images_per_class"]]]
        return chosen

    def facts_of(self, row: Row) -> Row:
        return {}


@cache
def pools(folder: str) -> list[Mapping[str, tuple[Path, ...]]]:
    """The photographs of each class for each split; listed once in a process.

    They are put in an order that is a pure function of their names and divided, 70/15/15, at least one to each split.

    Raises:
        ForgeError: where a class has not as many as there are splits.
    """
    return [_divided(folder, name) for name in CLASSES]


def _divided(folder: str, name: str) -> Mapping[str, tuple[Path, ...]]:
    place = Path(folder) / "train" / name
    paths = (
        sorted(place.glob("*.JPEG"), key=lambda path: hashlib.sha256(os.fsencode(path.name)).digest()) if folder else []
    )
    if len(paths) < len(SPLITS):
        raise ForgeError(
            "Imagenette is not there",
            file=place if folder else None,
            key="data",
            expected=f"at least {len(SPLITS)} photographs *.JPEG of {CLASSES[name]}",
            found=len(paths),
            hint=_WHERE,
        )
    few = [max(1, int(fraction * len(paths))) for fraction in FRACTIONS[1:]]
    ends = [len(paths) - sum(few), len(paths) - few[1], len(paths)]
    return {split: tuple(paths[first:end]) for split, first, end in zip(SPLITS, [0, *ends[:-1]], ends, strict=True)}


RECIPE = ImagenetteRecipe()
