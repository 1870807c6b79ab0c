"""What all imports share: the row of an adapter that is read and looked at, and the files of the zoo."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorascope.errors import AdapterError, LorascopeError, OutputError
from lorascope.formats import read
from lorascope.zoo.assembly import check_new
from lorascope.zoo.regular import check_no_links
from lorascope.zoo.schema import SCHEMA_VERSION, split_of
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


@dataclass(frozen=True)
class ImportReport:
    """What was imported.

    ``unreadable``: path → error. ``unlabelled``: adapters that no row names; of a published zoo they are kept, with
    null labels. ``missing``: rows of labels that name no adapter, and ``notes``, of a published zoo.
    """

    zoo: Path
    count: int
    unreadable: Mapping[str, str]
    unlabelled: tuple[str, ...]
    layout: str | None = None
    variant: str | None = None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "zoo": str(self.zoo),
            "count": self.count,
            "unreadable": dict(self.unreadable),
            "unlabelled": list(self.unlabelled),
            "layout": self.layout,
            "variant": self.variant,
            "missing": list(self.missing),
            "notes": list(self.notes),
        }


def check_target(target: Path, *, is_new: bool) -> None:
    """Refuse a place where the zoo cannot be written, before anything is read.

    Raises:
        OutputError: where something else is there, or the folder cannot be written.
        ZooError: where a file of a zoo is a link.
    """
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


def checked_row(
    location: Path, path: str, group: str, values: Mapping[str, Any], base: str | None = None
) -> tuple[Row, str | None]:
    """The manifest row of one adapter, and why it cannot be read, if so; such rows keep their labels.

    Args:
        location: the adapter.
        path: its id, and its path in the zoo.
        group: of its split.
        values: of the other columns.
        base: the base model, where the adapter does not name one.
    """
    row: Row = {
        "schema_version": SCHEMA_VERSION,
        "id": path,
        "path": path,
        "sha256": None,
        "config_sha256": None,
        "status": "ok",
        "recipe": None,
        "kind": None,
        "base": base,
        "base_hash": None,
        "base_seed": None,
        "group": group,
        "split": split_of(group),
        **values,
    }
    try:
        adapter = read(location)
        adapter.norm()  # every value is looked at, so that NaN is found here and not while fitting
    except AdapterError as error:
        return row | {"status": "unreadable"}, str(error)
    known = {"kind": adapter.provenance.kind, "base": adapter.provenance.base_model or base}
    return row | hashes_of(location) | known, None


def write_files(zoo: Path, header: Mapping[str, Any], rows: list[Row]) -> None:
    """The files of a zoo of these rows."""
    write_cohort(zoo, 0, rows)
    write_json(zoo / HEADER, header)
    write_manifest(zoo)


def write_in_place(zoo: Path, header: Mapping[str, Any], rows: list[Row]) -> None:
    """As :func:`write_files`, into the folder of the adapters; the first import leaves nothing behind if it fails.

    Raises:
        OutputError: where it cannot be written.
    """
    is_first = not (zoo / COHORTS).exists()
    try:
        write_files(zoo, header, rows)
    except (OSError, LorascopeError) as error:
        if is_first:
            shutil.rmtree(zoo / COHORTS, ignore_errors=True)
            (zoo / HEADER).unlink(missing_ok=True)
        if isinstance(error, LorascopeError):
            raise
        raise OutputError("the zoo cannot be written", file=zoo, found=error.strerror) from error
