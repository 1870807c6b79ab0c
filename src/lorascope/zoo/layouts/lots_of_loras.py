"""Lots-of-LoRAs: an adapter of Mistral-7B for each task of Natural Instructions. Brüel-Gabrielsson, arXiv 2407.00066.

    …<anything>-r<rank>-task<number>/adapter_model.safetensors, adapter_config.json, README.md
    models--Lots-of-LoRAs--Mistral-7B-Instruct-v0.2-4b-r16-task<number>/snapshots/<commit>/…      the cache of the hub

One folder for each repository ``Lots-of-LoRAs/Mistral-7B-Instruct-v0.2-4b-r16-task<number>`` of the hub. Their names
and those of the data sets beside them (``Lots-of-LoRAs/task033_winogrande_answer_generation``) are documented by the
hub's pages; the text of the cards was not found, so of a card nothing is taken but a name ``task<number>_<words>`` of
the adapter's own number.

Groups: the first word of the task's name, which in Natural Instructions is the data set that the task was made of
(tasks 33 and 1391 are both of WinoGrande): tasks of one source stay together. Without a card, each task is a group.
"""

from __future__ import annotations

import os
import re

from lorascope.errors import ZooError
from lorascope.zoo.layout import Entry, Reading
from lorascope.zoo.regular import open_regular
from lorascope.zoo.tree import Tree, joined

_NAME = re.compile(r".+-r(?P<rank>\d{1,4})-task(?P<task>\d{1,5})", re.DOTALL)
_CARD = "README.md"
_CARD_BYTES = 256 << 10
BASE = "mistralai/Mistral-7B-Instruct-v0.2"


class LotsOfLoras:
    """An adapter for each task of Natural Instructions."""

    name = "lots-of-loras"
    title = "Lots-of-LoRAs (tasks of Natural Instructions)"
    reference = "Brüel-Gabrielsson et al. 2024, arXiv 2407.00066"
    files = "<name>-r<rank>-task<number>/ for each task, or the hub's cache of them"
    documented = "names of repositories and data sets by the hub's pages; the text of the cards was not found"
    unknown = (
        "hyperparameters but rank and alpha, how good an adapter is, the category of a task, and, where its README.md "
        "is not there, its name and so which tasks are of one source"
    )
    is_experimental = True

    def recognise(self, tree: Tree) -> list[str]:
        return ["tasks"] if tree.matching(_NAME) else []

    def read(self, tree: Tree, variant: str, *, published_split: bool) -> Reading:
        if published_split:
            raise ZooError("the layout has no published split", file=tree.root)
        entries = [self._entry(tree, path, match) for path, match in tree.matching(_NAME)]
        unnamed = sum(not entry.is_labelled for entry in entries)
        return Reading(
            variant=variant,
            count=len(entries),
            entries=entries,
            hyperparameters={"rank": "int"},
            labels={"task": "int", "task_name": "string", "source": "string"},
            base=BASE,
            notes=[f"{unnamed} adapters have no card that names their task: a group each"] if unnamed else [],
        )

    def _entry(self, tree: Tree, path: str, match: re.Match[str]) -> Entry:
        place = _snapshot(tree, path)
        task = int(match["task"])
        values: dict[str, object] = {"rank": int(match["rank"]), "task": task}
        if place is None:
            damage = "the hub's cache holds no snapshot of it, or several"
            return Entry(path, f"task {task}", values, damage=damage)
        name = _task_name(tree, place, task)
        source = name.partition("_")[2].partition("_")[0] if name else None
        values |= {"task_name": name, "source": source}
        return Entry(path, f"source {source}" if source else f"task {task}", values, name is not None, place)


def _snapshot(tree: Tree, path: str) -> str | None:
    """The folder with the files: the folder itself, or the one snapshot in a folder of the hub's cache."""
    if not path.rpartition("/")[2].startswith("models--"):
        return path
    inside = joined(path, "snapshots")
    commits = tree.folders(inside) if "snapshots" in tree.folders(path) else []
    return joined(inside, commits[0]) if len(commits) == 1 else None


def _task_name(tree: Tree, place: str, task: int) -> str | None:
    """``task033_winogrande_answer_generation`` of the card, where it names the task of that number."""
    if _CARD not in tree.files(place):
        return None
    try:
        with os.fdopen(open_regular(tree.at(joined(place, _CARD)), os.O_RDONLY, follow=True), "rb") as stream:
            text = stream.read(_CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    match = re.search(rf"\btask0*{task}_[A-Za-z0-9_]{{1,200}}", text)
    return match[0] if match else None


LAYOUT = LotsOfLoras()
