"""Several zoos as one: rows of the same columns, ids that stay unique, and every adapter's origin kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorascope.errors import ZooError
from lorascope.formats.source import CONFIG_NAME, stored_names
from lorascope.zoo.assembly import assembled, check_new, link_file
from lorascope.zoo.lock import OWN
from lorascope.zoo.regular import check_no_links
from lorascope.zoo.schema import IDENTITY, SCHEMA_VERSION, Column, columns_as_dict, split_of
from lorascope.zoo.store import ADAPTERS, HEADER, Row, write_cohort, write_json, write_manifest
from lorascope.zoo.zoo import Zoo

Groups = Literal["joined", "apart"]

ROWS_OF_A_RECORD = 1000
_ORIGIN = ("recipe", "recipe_version", "seed", "settings", "base_hash", "source", "merged")


@dataclass(frozen=True)
class MergeResult:
    """What was merged: adapters, of how many zoos, and how many got another id."""

    zoo: Path
    count: int
    zoos: int
    renamed: int

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "zoo": str(self.zoo),
            "count": self.count,
            "zoos": self.zoos,
            "renamed": self.renamed,
        }


def merge_zoos(
    zoos: Sequence[str | Path], out: str | Path, *, union: bool = False, groups: Groups = "joined"
) -> MergeResult:
    """Make one zoo of several; their files are hard-linked or copied, and packed adapters unpacked.

    An id that two zoos have gets the number of its zoo before it, ``1/a``. Rows keep recipe, kind, base and base hash;
    the header keeps the recipe, seed and settings of each zoo under ``merged``. The split is made anew of the groups.

    Args:
        zoos: two or more.
        out: a new folder.
        union: take all columns of all zoos, null where a zoo has them not; else all must have the same.
        groups: ``joined``: groups of one name are one group, so that the data that they stand for never straddle a
            split; ``apart``: names of different zoos are not related.

    Raises:
        ZooError: where columns differ, or have another type or role, or a file or folder of a zoo is a link.
        OutputError: where ``out`` is not new; nothing is left behind.
    """
    target = Path(out)
    opened = [Zoo.open(path) for path in zoos]
    if len(opened) < 2 or groups not in ("joined", "apart"):
        raise ZooError("nothing to merge", expected="two zoos or more, groups joined or apart", found=len(opened))
    for zoo in opened:
        check_no_links(zoo.path, [name for name in OWN if name != "base"])  # which may be its owner's, and is not read
    check_new(target)
    columns = _columns(opened, union=union)
    rows = [zoo.recorded_rows() for zoo in opened]
    times = Counter(row["id"] for of_one in rows for row in of_one)
    merged: list[Row] = []
    with assembled(target) as temporary:
        for number, (zoo, of_one) in enumerate(zip(opened, rows, strict=True)):
            for row in of_one:
                path = f"{ADAPTERS}/{number}/{row['path'].removeprefix(f'{ADAPTERS}/')}"
                _copy(zoo, row, temporary / path)
                group = f"{number}/{row['group']}" if groups == "apart" else row["group"]
                new = {"path": path, "group": group, "split": split_of(str(group))}
                if times[row["id"]] > 1:
                    new["id"] = f"{number}/{row['id']}"
                merged.append(dict.fromkeys(columns) | row | new)
        if len({row["id"] for row in merged}) < len(merged):
            raise ZooError("ids of the zoos collide even with their numbers before them", file=target)
        header = {
            "schema_version": SCHEMA_VERSION,
            "recipe": None,
            "count": len(merged),
            "groups": groups,
            "merged": [{name: zoo.header[name] for name in _ORIGIN if name in zoo.header} for zoo in opened],
            "columns": columns_as_dict(columns),
        }
        write_json(temporary / HEADER, header)
        for number, first in enumerate(range(0, len(merged), ROWS_OF_A_RECORD)):
            write_cohort(temporary, number, merged[first : first + ROWS_OF_A_RECORD])
        write_manifest(temporary)
    renamed = sum(times[row["id"]] > 1 for of_one in rows for row in of_one)
    return MergeResult(target, len(merged), len(opened), renamed)


def _columns(zoos: Sequence[Zoo], *, union: bool) -> dict[str, Column]:
    """Identity first, then the hyperparameters of all zoos, then their labels."""
    found: dict[str, Column] = {}
    for zoo in zoos:
        for name, column in zoo.columns.items():
            if found.setdefault(name, column) != column:
                raise ZooError(
                    "a column is another thing in another zoo",
                    file=zoo.path,
                    key=name,
                    expected=f"{found[name].role} {found[name].type}",
                    found=f"{column.role} {column.type}",
                )
    for zoo in zoos:
        missing = sorted(found.keys() - zoo.columns.keys() - IDENTITY.keys())
        if missing and not union:
            raise ZooError(
                "the zoos have not the same columns",
                file=zoo.path,
                found=f"no {', '.join(missing)}",
                hint="--union takes all columns, null where a zoo has them not",
            )
    roles: Mapping[str, int] = {"hyperparameter": 0, "label": 1}
    others = sorted(
        (column for column in found.values() if column.role != "identity"), key=lambda column: roles[column.role]
    )
    return {**IDENTITY, **{column.name: column for column in others}}


def _copy(zoo: Zoo, row: Row, place: Path) -> None:
    """The files of a row at another place: those of its folder, or its file and the configuration beside it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    source = zoo.adapter_path(row)
    if source.is_dir():
        place.mkdir()
        for file in sorted(source.iterdir()):
            if file.is_file():
                link_file(file, place / file.name, root=zoo.path)
        return
    beside = source.with_name(CONFIG_NAME)
    if source.exists():
        link_file(source, place, root=zoo.path)
        if beside.is_file() and not place.with_name(CONFIG_NAME).exists():
            link_file(beside, place.with_name(CONFIG_NAME), root=zoo.path)
        return
    archive = zoo.shards.find(row["path"])
    if archive is None:
        raise ZooError("the adapter of a row is missing", file=source, key=str(row["id"]))
    stored_names(archive, row["path"])  # an adapter that can be read, or the error that says why not
    if row["path"] in archive.members:
        place.write_bytes(archive.members[row["path"]])
        return
    place.mkdir()
    for name in archive.folders[row["path"]]:
        (place / name).write_bytes(archive.members[f"{row['path']}/{name}"])
