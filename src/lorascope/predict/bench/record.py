"""What a bench leaves in a folder: results, the splits that they are of, and the cells of what was measured.

results.json          all tables, schema version 1
splits.json           the split, a file that ``--splits`` takes; of several zoos ``splits-NAME.json`` each
tables.md, NAME.png   for people, by ``lorascope.report.bench``
cells/*.json          what was measured of each member
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lorascope.errors import OutputError
from lorascope.predict.bench.run import BenchResult
from lorascope.predict.dataset import Dataset
from lorascope.zoo import Splitting, Zoo
from lorascope.zoo.store import write_json

RESULTS, CELLS = "results.json", "cells"


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a place that holds something other than an earlier bench.

    Raises:
        OutputError: with the reason.
    """
    is_other = folder.is_dir() and any(folder.iterdir()) and not (folder / CELLS).is_dir()
    if is_other or (folder.exists() and not folder.is_dir()):
        raise OutputError(
            "there is something else at the place of the bench",
            file=folder,
            expected="a new or empty folder, or that of an earlier bench to go on with",
            hint="name another folder with --out",
        )
    try:
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("the folder of the bench cannot be made", file=folder, found=error.strerror) from error


def splitting_of(zoo: Zoo, dataset: Dataset) -> Splitting:
    """The split that a bench of this dataset used, with the rule by which it was made."""
    splits = dict(zip(dataset.ids, dataset.splits, strict=True))
    if zoo.splitting is None:
        return Splitting(splits=splits)
    return Splitting(zoo.splitting.by, zoo.splitting.salt, zoo.splitting.fractions, splits)


def write_record(result: BenchResult, splittings: Mapping[str, Splitting], folder: Path) -> list[Path]:
    """Write the results and the splits, each file whole or not at all; the paths, results first.

    Args:
        result: of the bench.
        splittings: name of the zoo → its split.
        folder: as :func:`check_folder` made it.
    """
    paths = [folder / RESULTS]
    digests: dict[str, str] = {}
    for name, splitting in splittings.items():
        path = folder / ("splits.json" if len(splittings) == 1 else f"splits-{file_name(name)}.json")
        splitting.save(path)
        digests[name] = splitting.digest
        paths.append(path)
    write_json(folder / RESULTS, {**result.as_dict(), "split_digests": digests})
    return paths


def file_name(name: str) -> str:
    """The name of a zoo as a part of a file's name.

    >>> file_name("my/zoo")
    'my-zoo'
    """
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".") or "zoo"
