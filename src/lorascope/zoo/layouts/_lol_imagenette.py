"""Imagenette-LoRA of *Learning on LoRAs*: Stable Diffusion 1.4 on one image of each class of a subset of ten."""

from __future__ import annotations

import re

from lorascope.zoo.layout import Entry, Reading
from lorascope.zoo.layouts._lol_celeba import BASE
from lorascope.zoo.tree import Tree, joined

IMAGENETTE_NAME = re.compile(r"model_num_(?P<classes>[01]{10})_(?P<copy>\d{1,6})")


def read_imagenette(tree: Tree) -> Reading:
    """The adapters; label and group are in the name: which of the ten classes, and the subset that they make."""
    entries: list[Entry] = []
    for path, match in tree.matching(IMAGENETTE_NAME):
        classes = [place for place, bit in enumerate(match["classes"]) if bit == "1"]
        values = {"copy": int(match["copy"]), "classes": classes, "class_count": len(classes)}
        entries.append(Entry(path, f"classes {match['classes']}", values, place=joined(path, "unet")))
    return Reading(
        variant="imagenette",
        count=len(entries),
        entries=entries,
        hyperparameters={"copy": "int"},
        labels={"classes": "list<int>", "class_count": "int"},
        base=BASE,
    )
