"""Layouts of published zoos: what an importer of one declares, and what it finds in a folder.

A layout says which folders are adapters, what is known of each, and which of them belong together: adapters of one
person, one text or one set of images are a group, so that none is on both sides of a split, whatever the authors did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from lorascope.errors import ZooError
from lorascope.zoo.label_files import read_names
from lorascope.zoo.schema import Type
from lorascope.zoo.tree import Tree

PUBLISHED_SPLIT = "published_split"
"""The column of the authors' own split, a label: never an input of a model, and never what an adapter is fitted on."""


@dataclass(frozen=True)
class Entry:
    """One adapter of a published zoo.

    Args:
        id: its name in the zoo, with ``/``; of plain characters, unlike what tables may say.
        group: equal ones stay in one split.
        values: column → value; absent ones are null.
        is_labelled: whether anything told its labels.
        place: the folder or file that it is, relative to the folder of the layout; None where it is in no file.
        tensors: where it is in no file of its own, such as a row of a table: its tensors.
        config: an ``adapter_config.json`` to put beside the weights, where the layout has none but knows one.
        damage: why it cannot be had at all; the others go on.
    """

    id: str
    group: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_labelled: bool = True
    place: str | None = None
    tensors: Mapping[str, NDArray[Any]] | None = None
    config: Mapping[str, Any] | None = None
    damage: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a layout found in a folder.

    Args:
        variant: which of the sets of the layout.
        count: the number of entries, for progress.
        entries: the adapters; read once, and one by one where they take memory.
        hyperparameters: columns known before training, with their types.
        labels: the other columns, with their types.
        missing: rows of label files that name no adapter of the folder.
        base: the base model, where the adapters' own files do not say.
        needs_out: whether adapters must be written, so that the zoo cannot be where they lie.
        notes: what a person should know, counts included.
    """

    variant: str
    count: int
    entries: Iterable[Entry]
    hyperparameters: Mapping[str, Type]
    labels: Mapping[str, Type]
    missing: Sequence[str] = ()
    base: str | None = None
    needs_out: bool = False
    notes: Sequence[str] = ()


class Layout(Protocol):
    """How one published zoo is laid out.

    ``documented`` says where the layout was found, and ``unknown`` what a folder of it does not tell. A layout that
    was never run on the published files themselves is experimental.
    """

    name: str
    title: str
    reference: str
    files: str
    documented: str
    unknown: str
    is_experimental: bool

    def recognise(self, tree: Tree) -> list[str]:
        """The variants that the names in a folder speak for; empty for another layout."""
        ...

    def read(self, tree: Tree, variant: str, *, published_split: bool) -> Reading:
        """The adapters and what is known of them.

        Raises:
            ZooError: where a file of labels is missing or damaged.
        """
        ...


def split_of_names(tree: Tree) -> dict[str, str]:
    """The authors' split, from ``train.pt``, ``valid.pt`` and ``test.pt``: name of an adapter → split.

    Raises:
        ZooError: where a file is missing or damaged, or a name is in two of them.
    """
    splits: dict[str, str] = {}
    for file, split in (("train.pt", "train"), ("valid.pt", "validation"), ("test.pt", "test")):
        for name in read_names(required(tree, file, "the published split")):
            if splits.setdefault(name, split) != split:
                raise ZooError(
                    "the published split has an adapter twice", file=tree.root, key=name[:100], found=splits[name]
                )
    return splits


def split_notes(entries: Sequence[Entry], published: Mapping[str, str]) -> list[str]:
    """What is to be said of a published split: how many groups it puts on two sides, and what of it is not there."""
    sides: dict[str, set[str]] = {}
    for entry in entries:
        if split := entry.values.get(PUBLISHED_SPLIT):
            sides.setdefault(entry.group, set()).add(split)
    straddling = sum(len(splits) > 1 for splits in sides.values())
    placed = sum(PUBLISHED_SPLIT in entry.values for entry in entries)
    notes = [
        f"the published split puts {straddling} of {len(sides)} groups on two sides or more; "
        f"it is the column {PUBLISHED_SPLIT} alone, and the zoo's own split puts none"
    ]
    if len(published) > placed:
        notes.append(f"{len(published) - placed} adapters of the published split are not in the folder")
    return notes


def required(tree: Tree, name: str, what: str) -> Path:
    """A file of the layout.

    Raises:
        ZooError: where there is none.
    """
    file = tree.file(name)
    if file is None:
        raise ZooError(
            f"{what} is missing",
            file=tree.root,
            key=name,
            expected="the file in the folder or in one of its folders",
            hint="adapters without these labels are imported by `lorascope zoo import DIR --labels FILE.csv`",
        )
    return file
