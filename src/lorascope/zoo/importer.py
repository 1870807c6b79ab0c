"""A zoo of one's own adapters: a folder of files and a table of what is known of them.

The table is a CSV file with one row per adapter. Its column ``path`` (or ``file``, or ``adapter``) names a file or a
folder, relative to the folder of the adapters; every other column is a label, unless it is declared a hyperparameter.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope.errors import AdapterError, LorascopeError, OutputError, ZooError
from lorascope.formats import find, read
from lorascope.formats.source import CONFIG_NAME
from lorascope.zoo.assembly import assembled, check_new, link_file
from lorascope.zoo.paths import inside
from lorascope.zoo.regular import check_no_links
from lorascope.zoo.schema import SCHEMA_VERSION, Column, Type, columns_as_dict, columns_with, split_of
from lorascope.zoo.store import (
    COHORTS,
    HEADER,
    MANIFEST,
    Row,
    hashes_of,
    read_json,
    write_cohort,
    write_json,
    write_manifest,
)
from lorascope.zoo.values import parse_column

PATH_COLUMNS = ("path", "file", "adapter")
MAXIMUM_ROWS = 5_000_000


@dataclass(frozen=True)
class ImportReport:
    """What was imported: ``unreadable`` path → error; ``unlabelled`` adapters that no row names."""

    zoo: Path
    count: int
    unreadable: Mapping[str, str]
    unlabelled: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "zoo": str(self.zoo),
            "count": self.count,
            "unreadable": dict(self.unreadable),
            "unlabelled": list(self.unlabelled),
        }


def import_zoo(
    folder: str | Path,
    labels: str | Path,
    *,
    out: str | Path | None = None,
    hyperparameters: Sequence[str] = (),
    group: str | None = None,
    track: Callable[[Sequence[str]], Iterable[str]] | None = None,
) -> ImportReport:
    """Make a zoo of the adapters in ``folder`` that the table ``labels`` names.

    Args:
        folder: the adapters, in any tree.
        labels: the CSV file.
        out: a new folder for the zoo, with the adapters hard-linked (or copied) into it; by default the zoo's files
            are written into ``folder`` and refer to the adapters where they lie.
        hyperparameters: columns that were known before training.
        group: the column whose equal values must not straddle a split, such as the person or the data set; by
            default each adapter is its own group.
        track: given all paths, iterates over them, such as under a progress bar.

    Raises:
        ZooError: for a table that is damaged, names no file, or names one twice.
        OutputError: where the zoo cannot be written; nothing is left behind.
    """
    source, table = Path(folder), Path(labels)
    if not source.is_dir():
        raise ZooError("is not a folder of adapters", file=source, found="no such folder")
    names, records = _read_table(table)
    key = _path_column(names, table)
    _check_known("--hyperparameter", hyperparameters, names, table)
    _check_known("--group", [group] if group else [], names, table)
    paths = _paths(source, [record[key] for record in records], table)
    others = [name for name in names if name != key]
    parsed = {name: parse_column(name, [record[name] for record in records], table) for name in others}
    target = source if out is None else Path(out)
    _check_target(target, is_new=out is not None)
    types: dict[str, Type] = {name: type_ for name, (type_, _) in parsed.items()}
    columns = columns_with(
        {name: types[name] for name in others if name in hyperparameters},
        {name: types[name] for name in others if name not in hyperparameters},
    )
    rows: list[Row] = []
    unreadable: dict[str, str] = {}
    for index, path in enumerate(paths if track is None else track(paths)):
        values = {name: column[index] for name, (_, column) in parsed.items()}
        row = _row(source, path, values, group)
        if row["status"] != "ok":
            unreadable[path] = row.pop("error")
        rows.append(row)
    named = {(source / path).resolve() for path in paths}
    found = [path for path in find(source) if target not in path.parents or target == source]
    unlabelled = [
        path.relative_to(source).as_posix()
        for path in found
        if path.resolve() not in named and not any((path / name).resolve() in named for name in _files_of(path))
    ]
    _write(source, target, rows, columns, is_new=out is not None)
    return ImportReport(target, len(rows), unreadable, unlabelled)


def _files_of(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()] if path.is_dir() else []


def _read_table(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    if not table.is_file():
        raise ZooError("the labels cannot be read", file=table, expected="a CSV file", found="no regular file")
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            names = [name.strip() for name in next(reader, [])]
            if not names or len(set(names)) != len(names) or "" in names:
                raise ZooError(
                    "the header line needs one distinct name per column",
                    file=table,
                    found=", ".join(names) or "nothing",
                )
            records: list[dict[str, str]] = []
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(names) or len(records) >= MAXIMUM_ROWS:
                    raise ZooError(
                        "a line has another number of cells than the header",
                        file=table,
                        key=f"line {reader.line_num}",
                        expected=len(names),
                        found=len(cells),
                    )
                records.append({name: cell.strip() for name, cell in zip(names, cells, strict=True)})
    except OSError as error:
        raise ZooError("the labels cannot be read", file=table, found=error.strerror) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ZooError("is not a CSV file in UTF-8", file=table, found=error) from error
    if not records:
        raise ZooError("the table has no rows", file=table)
    return names, records


def _path_column(names: Sequence[str], table: Path) -> str:
    for name in PATH_COLUMNS:
        if name in names:
            return name
    raise ZooError(
        "no column says which adapter a row is about",
        file=table,
        expected=f"a column named {' or '.join(PATH_COLUMNS)}",
        found=", ".join(names),
    )


def _check_known(option: str, asked: Sequence[str], names: Sequence[str], table: Path) -> None:
    for name in asked:
        if name not in names or name in PATH_COLUMNS:
            raise ZooError(f"{option} names no column", file=table, key=name, expected=", ".join(names))


def _paths(source: Path, stated: Sequence[str], table: Path) -> list[str]:
    """The paths relative to the source, each inside it, present and named once."""
    try:
        missing = [path for path in stated if not inside(source, path).exists()]
    except OSError as error:
        raise ZooError("a path cannot be looked up", file=table, found=error.strerror) from error
    if missing:
        raise ZooError(
            "labels that name no file",
            file=table,
            expected=f"paths relative to {source}",
            found=f"{len(missing)} of {len(stated)}: {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}",
        )
    seen: dict[Path, str] = {}
    for path in stated:
        resolved = (source / path).resolve()
        if resolved in seen:
            raise ZooError("two rows name one adapter", file=table, key=path, found=f"{seen[resolved]} and {path}")
        seen[resolved] = path
    return list(stated)


def _check_target(target: Path, *, is_new: bool) -> None:
    if is_new:
        check_new(target)
    check_no_links(target, (COHORTS, MANIFEST, HEADER))
    if (target / HEADER).is_file() and read_json(target / HEADER).get("recipe") is not None:
        raise OutputError("there is a forged zoo already", file=target, hint="name another folder with --out")
    ancestor = target.absolute()
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise OutputError("the folder for the zoo cannot be written", file=ancestor)


def _row(source: Path, path: str, values: Mapping[str, Any], group: str | None) -> Row:
    """The manifest row of one adapter; unreadable ones keep their labels and say why in ``error``."""
    name = str(values[group]) if group and values[group] is not None else path
    row: Row = {
        "schema_version": SCHEMA_VERSION,
        "id": path,
        "path": path,
        "sha256": None,
        "config_sha256": None,
        "status": "ok",
        "recipe": None,
        "kind": None,
        "base": None,
        "base_hash": None,
        "base_seed": None,
        "group": name,
        "split": split_of(name),
        **values,
    }
    try:
        adapter = read(source / path)
        adapter.norm()  # every value is looked at, so that NaN is found here and not while fitting
    except AdapterError as error:
        return row | {"status": "unreadable", "error": str(error)}
    return row | {
        **hashes_of(source / path),
        "kind": adapter.provenance.kind,
        "base": adapter.provenance.base_model,
    }


def _write(source: Path, target: Path, rows: list[Row], columns: dict[str, Column], *, is_new: bool) -> None:
    header = {
        "schema_version": SCHEMA_VERSION,
        "recipe": None,
        **({"source": str(source)} if is_new else {}),
        "count": len(rows),
        "columns": columns_as_dict(columns),
    }
    if not is_new:
        is_first = not (target / COHORTS).exists()
        try:
            _write_files(target, header, rows)
        except (OSError, LorascopeError) as error:
            if is_first:
                shutil.rmtree(target / COHORTS, ignore_errors=True)
                (target / HEADER).unlink(missing_ok=True)
            if isinstance(error, LorascopeError):
                raise
            raise OutputError("the zoo cannot be written", file=target, found=error.strerror) from error
        return
    with assembled(target) as temporary:
        for row in rows:
            _link(source, row["path"], temporary / "adapters")
            row["path"] = f"adapters/{row['path']}"
        _write_files(temporary, header, rows)


def _write_files(zoo: Path, header: Mapping[str, Any], rows: list[Row]) -> None:
    write_cohort(zoo, 0, rows)
    write_json(zoo / HEADER, header)
    write_manifest(zoo)


def _link(root: Path, path: str, adapters: Path) -> None:
    """The file or folder at another place: hard links where the file system has them, else copies."""
    source, place = root / path, adapters / path
    if source.is_dir():
        folder, files = place, [source / name for name in _files_of(source) if (source / name).is_file()]
    else:  # a PEFT file is nothing without the scale in its configuration
        config = source.with_name(CONFIG_NAME)
        folder, files = place.parent, [source, *([config] if config.is_file() else [])]
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (folder / file.name).exists():
            link_file(file, folder / file.name, root=root)
