"""The attributes of celebrities, from those of their photographs in CelebA: an attribute is had where its mean is ≥ 0.

list_attr_celeba.csv                       one line a photograph in the order of their numbers, 1 and -1
<folder>/celeb_<celebrity>/<number>.jpg    the photographs that an adapter was trained on
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorascope.errors import ZooError
from lorascope.zoo.label_files import Table
from lorascope.zoo.layout import required
from lorascope.zoo.tree import Tree, joined

CELEBRITY = re.compile(r"celeb_(?P<celebrity>\d{1,9})")
_IMAGE = re.compile(r"0*(?P<number>\d{1,9})(_\w*)?\.jpg", re.IGNORECASE)
_NAME_COLUMNS = ("image_id", "img_id", "filename", "image")


@dataclass(frozen=True)
class Celebrities:
    """``names`` of the attributes, ``had``: celebrity → attribute → whether at least half of the photographs have it.

    ``unknown`` is the number of photographs that the table has not.
    """

    names: Sequence[str]
    had: Mapping[int, Mapping[str, bool]]
    unknown: int = 0


def attributes_of_celebrities(tree: Tree) -> Celebrities:
    """The attributes of the celebrities whose photographs are in the folder.

    Raises:
        ZooError: where the table or the folders of photographs are missing, or have nothing in common.
    """
    table = Table(required(tree, "list_attr_celeba.csv", "the table of attributes"))
    images = _images(tree)
    names = [name for name in table.names if name.lower() not in _NAME_COLUMNS]
    sums: dict[int, Counter[str]] = {}
    for place, line in enumerate(table, 1):
        stated = next((line.text(name) for name in table.names if name.lower() in _NAME_COLUMNS), None)
        match = _IMAGE.fullmatch(Path(stated).name) if stated else None
        celebrity = images.pop(int(match["number"]) if match else place, None)
        if celebrity is None:
            continue
        total = sums.setdefault(celebrity, Counter())
        for name in names:
            total[name] += 1 if line.is_set(name) else -1
    if not sums:
        raise ZooError("holds none of the photographs", file=table.file, expected=f"one of {len(images)}")
    had = {celebrity: {name: total[name] >= 0 for name in names} for celebrity, total in sums.items()}
    return Celebrities(names, had, len(images))


def _images(tree: Tree) -> dict[int, int]:
    """Number of a photograph → celebrity."""
    found: dict[int, int] = {}
    folders = tree.matching(CELEBRITY)
    for path, folder in folders:
        for name in tree.files(path):
            if match := _IMAGE.fullmatch(name):
                found[int(match["number"])] = int(folder["celebrity"])
    if not found:
        raise ZooError(
            "the folders of photographs are missing, which say whose they are",
            file=tree.root,
            expected=joined("celeb_organized", "celeb_<celebrity>/<number>.jpg"),
        )
    return found
