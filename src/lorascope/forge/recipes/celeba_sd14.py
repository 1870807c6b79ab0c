"""celeba-sd14: DreamBooth LoRAs of Stable Diffusion 1.4, each on photographs of one person of CelebA.

After CelebA-LoRA of arXiv 2410.04207 (*Learning on LoRAs*): rank 4, alpha 27, query and value projections of the
U-Net (64 sites), 21 photographs, learning rate, steps and accumulation of gradients drawn from their lists, finetuned
under a bare word. Theirs: batch 1 in float16, photographs cut at random, PNDM for sampling, 33 prompts for the CLIP
score (those of their ``clips.py``; name them with ``--set prompts=…`` to score as they do, up to the sampler).
Not known from what is published: which persons were chosen, and whether 3e-4 was among the learning rates (the paper
says so, the script has 3e-3 twice).

Data: CelebA (Liu et al., ICCV 2015; https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; for research that is not
commercial), which the user downloads: ``img_align_celeba/``, ``list_attr_celeba.txt`` and ``identity_CelebA.txt`` in
one folder. Base: Stable Diffusion 1.4 under CreativeML OpenRAIL-M. Both are found, and are not copied into a zoo.

Labels: ``identity``, and five attributes by majority over the person's chosen photographs (a tie counts as yes, as
theirs), beside those of ``_dreambooth``. A person is a group, so that no person is in two splits: in the published
split half of the test adapters are of persons that have adapters in training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from lorascope.errors import ForgeError
from lorascope.forge.recipe import Row
from lorascope.forge.recipes._dreambooth import COLUMNS, DreamBoothRecipe
from lorascope.forge.space import Choice, Distribution, Prompt, generator_of

IMAGES, ATTRIBUTES, PEOPLE = "img_align_celeba", "list_attr_celeba.txt", "identity_CelebA.txt"
LABELS: Mapping[str, str] = {
    "male": "Male",
    "young": "Young",
    "wearing_lipstick": "Wearing_Lipstick",
    "big_lips": "Big_Lips",
    "no_beard": "No_Beard",
}
"""Column → attribute of CelebA: those that arXiv 2410.04207 predicts."""

_NAME = re.compile(r"[0-9]+\.jpg")  # it becomes part of a path
_PERSON = re.compile(r"[0-9]{1,9}")  # there are 10,177
_WHERE = "download it from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and name its folder: --set data=DIR"


@dataclass(frozen=True)
class CelebA:
    """What the text files say.

    Args:
        folder: where they are.
        people: person → the names of the photographs, sorted.
        attributes: name of a photograph → whether it has each of ``LABELS``, in their order.
    """

    folder: Path
    people: Mapping[int, tuple[str, ...]]
    attributes: Mapping[str, tuple[bool, ...]]

    def with_images(self, count: int) -> list[int]:
        """The persons of whom there are so many photographs."""
        return sorted(person for person, names in self.people.items() if len(names) >= count)


class CelebARecipe(DreamBoothRecipe):
    """LoRAs of Stable Diffusion 1.4, a person each."""

    name = "celeba-sd14"
    about = (
        "Stable Diffusion 1.4, finetuned on photographs of one person of CelebA (64 sites; needs a GPU and the data)"
    )
    reference = "arXiv 2410.04207, CelebA-LoRA; DreamBooth (arXiv 2208.12242); CelebA (ICCV 2015)"
    space: ClassVar[Mapping[str, Distribution]] = {
        "rank": Choice(values=(4,), about="rank of B · A", at_least=1, at_most=1024),
        **DreamBoothRecipe.space,
        "learning_rate": Choice(values=(1e-4, 3e-4, 1e-3, 3e-3), about="of AdamW, constant", at_least=0, at_most=1e3),
        "steps": Choice(values=(100, 133, 167, 200), about="optimiser steps", at_least=0, at_most=10**7),
        "accumulate": Choice(
            values=(1, 2), about="photographs of a step, whose gradients are averaged", at_least=1, at_most=10**4
        ),
        "prompt": Prompt(values=("celebrity", "person", "thing", "skd"), about="what the photographs are said to show"),
        "identity": Choice(
            values=(0,), about="number of the person; 0: any of whom there are so many images", at_least=0
        ),
        "images": Choice(values=(21,), about="photographs seen in finetuning", at_least=1, at_most=10**4),
    }
    labels: ClassVar[Mapping[str, Any]] = {**dict.fromkeys(LABELS, "bool"), "identity": "int", **COLUMNS}

    def check_data(self, folder: str) -> None:
        celeba(folder)

    def settle(self, row: Row) -> Row:
        data, person = celeba(row["data"]), row["identity"]
        known = data.with_images(row["images"])
        if not known or (person and person not in known):
            raise ForgeError(
                "there are not so many photographs of any person" if not person else "there is no such person",
                file=data.folder / PEOPLE,
                key="identity" if person else "images",
                expected=f"{row['images']} photographs",
                found=f"{len(data.people.get(person, ()))} of person {person}" if person else None,
                hint="ask for fewer: --set images=…",
            )
        chosen = person or known[int(generator_of(self.name, row["seed"], "person").integers(len(known)))]
        return row | {"identity": chosen}

    def group(self, row: Row) -> str:
        return f"{self.name}/person-{row['identity']}"

    def names(self, row: Row) -> list[str]:
        """The names of one adapter's photographs."""
        of_person = celeba(row["data"]).people[row["identity"]]
        order = generator_of(self.name, row["seed"], "photographs").permutation(len(of_person))
        return [of_person[number] for number in order[: row["images"]]]

    def photographs(self, row: Row) -> list[Path]:
        return [celeba(row["data"]).folder / IMAGES / name for name in self.names(row)]

    def facts_of(self, row: Row) -> Row:
        attributes = celeba(row["data"]).attributes
        of_each = zip(*(attributes[name] for name in self.names(row)), strict=True)
        return {label: 2 * sum(has) >= len(has) for label, has in zip(LABELS, of_each, strict=True)}


@cache
def celeba(folder: str) -> CelebA:
    """The text files of CelebA in a folder, read once in a process.

    Raises:
        ForgeError: where one is missing or is not as published.
    """
    place = Path(folder)
    missing = [name for name in (IMAGES, ATTRIBUTES, PEOPLE) if not folder or not (place / name).exists()]
    if missing:
        raise ForgeError(
            "CelebA is not there", file=folder or None, key="data", expected=", ".join(missing), hint=_WHERE
        )
    people: dict[int, list[str]] = {}
    for number, fields in _lines(place / PEOPLE, first=1):
        if len(fields) != 2 or not _PERSON.fullmatch(fields[1]):
            raise _malformed(place / PEOPLE, number, "000001.jpg 2880")
        people.setdefault(int(fields[1]), []).append(fields[0])
    attributes: dict[str, tuple[bool, ...]] = {}
    columns: list[int] = []
    for number, fields in _lines(place / ATTRIBUTES, first=2):
        if number == 2:
            if not set(LABELS.values()) <= set(fields):
                raise _malformed(place / ATTRIBUTES, number, f"the names of attributes, {', '.join(LABELS.values())}")
            columns = [fields.index(name) for name in LABELS.values()]
            width = len(fields)
            continue
        if len(fields) != width + 1 or not set(fields[1:]) <= {"1", "-1"}:
            raise _malformed(place / ATTRIBUTES, number, "a name and 1 or -1 for each attribute")
        attributes[fields[0]] = tuple(fields[1 + column] == "1" for column in columns)
    lacking = next((name for names in people.values() for name in names if name not in attributes), None)
    if lacking is not None:
        raise ForgeError("a photograph has no attributes", file=place / ATTRIBUTES, key=lacking)
    return CelebA(place, {person: tuple(sorted(names)) for person, names in people.items()}, attributes)


def _lines(path: Path, first: int) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of the lines from ``first`` on; that of a photograph begins with its name."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        with path.open(encoding="ascii") as file:
            for number, line in enumerate(file, start=1):
                fields = line.split()
                if number < first or not fields:
                    continue
                if not _NAME.fullmatch(fields[0]) and not (first == 2 and number == 2):
                    raise _malformed(path, number, "a line that begins 000001.jpg")
                yield number, fields
    except (OSError, UnicodeDecodeError) as error:
        raise ForgeError("cannot be read", file=path, found=error) from error


def _malformed(path: Path, number: int, expected: str) -> ForgeError:
    return ForgeError("is not as CelebA is published", file=path, key=f"line {number}", expected=expected)


RECIPE = CelebARecipe()
