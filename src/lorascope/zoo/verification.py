"""Is a zoo what its records say: every adapter there, every byte of it, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lorascope.errors import LorascopeError
from lorascope.formats.source import CONFIG_NAME, SHARDS
from lorascope.zoo.lock import OWN
from lorascope.zoo.schema import SCHEMA_VERSION
from lorascope.zoo.store import (
    ADAPTERS,
    BASE,
    COHORTS,
    DIVERGED,
    MANIFEST,
    Row,
    import_pyarrow,
    names_of,
    read_cohort,
    record_files,
    sha256_of,
)
from lorascope.zoo.zoo import Zoo

_LINK = "is a link: what it leads to is not part of the zoo"

Problem = Literal["damaged", "missing", "extra", "shard", "record", "base", "manifest"]


@dataclass(frozen=True)
class Defect:
    """One thing that is not as recorded.

    Args:
        problem: ``damaged`` or ``missing`` adapters; ``extra``: links, and files that no record names; a ``shard``, a
            ``record``, the ``base`` or the ``manifest`` that is damaged.
        path: relative to the zoo.
        what: in words.
        id: of the adapter, where it is one.
    """

    problem: Problem
    path: str
    what: str
    id: str | None = None


@dataclass(frozen=True)
class Verification:
    """What was looked at, and what is wrong.

    Args:
        zoo: the zoo.
        count: rows that the records hold.
        asked: adapters that a forged zoo is to hold in the end; fewer so far is no defect.
        hashed: adapters whose every byte was compared.
        defects: what is wrong.
        hint: what to do, None where nothing is wrong.
    """

    zoo: Path
    count: int
    asked: int
    hashed: int
    defects: Sequence[Defect]
    hint: str | None

    def ids(self) -> frozenset[str]:
        """The adapters that are damaged or missing."""
        return frozenset(one.id for one in self.defects if one.problem in ("damaged", "missing") and one.id)

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "zoo": str(self.zoo),
            "ok": not self.defects,
            "count": self.count,
            "asked": self.asked,
            "hashed": self.hashed,
            "defects": [asdict(one) for one in self.defects],
            "hint": self.hint,
        }


def verify_zoo(zoo: str | Path, *, track: Callable[[Sequence[Row]], Iterable[Row]] | None = None) -> Verification:
    """Compare every adapter of a zoo with its recorded hashes; nothing is changed.

    Args:
        zoo: its folder.
        track: given all rows, iterates over them, such as under a progress bar.

    Raises:
        ZooError: where there is no zoo, or its header is damaged.
        MissingExtraError: without pyarrow, since a manifest that cannot be read is not a damaged one.
    """
    opened = Zoo.open(zoo)
    import_pyarrow()  # before hours of hashing
    rows, defects = _recorded(opened)
    hashed = 0
    for row in rows if track is None else track(rows):
        defect = defect_of(opened, row)
        hashed += defect is None and row.get("sha256") is not None
        defects += [] if defect is None else [defect]
    defects += _extra(opened, rows)
    defects += [Defect("shard", path, what) for path, what in opened.shards.damaged.items()]
    defects += _base(opened)
    defects += _manifest(opened) if not any(one.problem == "record" for one in defects) else []
    asked = opened.header.get("count")
    return Verification(
        opened.path,
        len(rows),
        asked if isinstance(asked, int) else len(rows),
        hashed,
        tuple(defects),
        _hint(opened, defects) if defects else None,
    )


def _recorded(zoo: Zoo) -> tuple[list[Row], list[Defect]]:
    """The rows of the records that can be read, and the others."""
    if not (zoo.path / COHORTS).is_dir():
        return zoo.rows(only_usable=False), []
    rows: list[Row] = []
    defects: list[Defect] = []
    for path in record_files(zoo.path):
        where = f"{COHORTS}/{path.name}"
        try:
            found = read_cohort(path)
        except LorascopeError as error:
            defects.append(Defect("record", where, error.what))
            continue
        nameless = [row for row in found if not isinstance(row.get("id"), str) or not isinstance(row.get("path"), str)]
        if nameless:
            defects.append(Defect("record", where, "a row has no id or no path"))
            continue
        rows += found
    for name, times in Counter(row["id"] for row in rows).items():
        if times > 1:
            defects.append(Defect("record", COHORTS, f"an adapter has {times} rows", name))
    return rows, defects


def defect_of(zoo: Zoo, row: Row) -> Defect | None:
    """What is wrong with the files of a row, compared with its recorded hashes; None where nothing is."""
    try:
        zoo.adapter_path(row)
    except LorascopeError as error:
        return Defect("missing", row["path"], error.what, row["id"])
    if row.get("sha256") is None:  # an unreadable file in an imported zoo: there is nothing to compare with
        return None
    try:
        found = zoo.hashes(row)
    except LorascopeError as error:
        return Defect("missing", row["path"], error.what, row["id"])
    except OSError as error:
        return Defect("damaged", row["path"], error.strerror or "cannot be read", row["id"])
    for name, of in (("sha256", "the weights are"), ("config_sha256", "the configuration is")):
        if name in row and row[name] != found[name]:  # records of before config_sha256 have none
            what = f"{of} missing" if found[name] is None else f"{of} not what was recorded"
            return Defect("damaged", row["path"], what, row["id"])
    return None


def _extra(zoo: Zoo, rows: Sequence[Row]) -> Iterator[Defect]:
    """What lies among the adapters and is in no record."""
    linked = [own for own in OWN if (zoo.path / own).is_symlink() and not (own == "base" and not zoo.is_forged)]
    yield from (Defect("extra", own, _LINK) for own in linked)
    if ADAPTERS in linked or DIVERGED in linked:
        return
    named = {row["path"] for row in rows}
    above = {str(parent) for name in named for parent in Path(name).parents}

    def beside(folder: Path, name: str) -> Iterator[Defect]:
        """What lies in an adapter's folder; adapters of others have model cards and tokenizers in it."""
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        known = names_of([file.name for file in files])
        for file in files:
            if file.is_symlink():
                yield Defect("extra", f"{name}/{file.name}", _LINK)
            elif zoo.is_forged and file.name not in known:
                yield Defect("extra", f"{name}/{file.name}", "is not of the adapter")

    def within(folder: Path) -> Iterator[Defect]:
        for path in sorted(folder.iterdir()):
            name = path.relative_to(zoo.path).as_posix()
            if path.is_symlink():
                yield Defect("extra", name, _LINK)
            elif name in named:
                yield from beside(path, name)
            elif path.name == CONFIG_NAME and str(Path(name).parent) in above:
                continue
            elif name in above and path.is_dir():
                yield from within(path)
            else:
                yield Defect("extra", name, "is in no record")

    # adapters that were imported where they lie have other files of their owner around them
    for shard, place in zoo.shards.names():
        if place not in named:
            yield Defect("extra", f"{shard}/{place}", "is in no record")
    for archive in zoo.shards.archives if zoo.is_forged else ():
        for folder in named & archive.folders.keys():
            for name in sorted(set(archive.folders[folder]) - set(names_of(archive.folders[folder]))):
                yield Defect("extra", f"{SHARDS}/{archive.path.name}/{folder}/{name}", "is not of the adapter")
    for own in (ADAPTERS, DIVERGED):
        if (zoo.path / own).is_dir() and all(name.split("/")[0] in (ADAPTERS, DIVERGED) for name in named):
            yield from within(zoo.path / own)


def _base(zoo: Zoo) -> list[Defect]:
    expected = zoo.header.get("base_hash")
    path = zoo.path / BASE
    if expected is None:
        return []
    if not path.is_file():
        return [Defect("base", BASE, "the base model is missing")]
    if sha256_of(path) != expected:
        return [Defect("base", BASE, "the base model is not the one that the adapters were trained on")]
    return []


def _manifest(zoo: Zoo) -> list[Defect]:
    try:
        zoo.check_manifest()
        _ = zoo.table
    except LorascopeError as error:
        return [Defect("manifest", MANIFEST, error.what)]
    return []


def _hint(zoo: Zoo, defects: Sequence[Defect]) -> str:
    hints: list[str] = []
    if any(one.problem != "extra" for one in defects):
        if zoo.is_forged:
            hints.append(f"`lorascope zoo repair {zoo.path}` makes them again, bit for bit")
        else:
            source = zoo.header.get("source")
            origin = f"from {source}, where they came from" if source else "from where they came"
            hints.append(f"put the files back {origin}, or import again")
    if any(one.problem == "extra" for one in defects):
        again = "the same forge command makes a run that was killed whole; " if zoo.is_forged else ""
        hints.append(f"{again}delete extra files that you do not know")
    return "; ".join(hints)
