"""A published zoo, made a zoo of this library from a local folder in its authors' own layout.

    import_published("LoL/diffusion", layout="lol", out="celeba")

Adapters are hard-linked or copied (or stay where they lie, without ``out``); those that are rows of a table are
written. A damaged adapter is counted and named, and the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from lorascope.errors import ZooError
from lorascope.formats.source import CONFIG_NAME
from lorascope.zoo.assembly import assembled, link_file
from lorascope.zoo.imported import ImportReport, check_target, checked_row, write_files, write_in_place
from lorascope.zoo.layout import PUBLISHED_SPLIT, Entry, Layout, Reading
from lorascope.zoo.layouts import LAYOUTS
from lorascope.zoo.paths import inside
from lorascope.zoo.schema import SCHEMA_VERSION, Type, columns_as_dict, columns_with
from lorascope.zoo.store import ADAPTERS, Row, names_of
from lorascope.zoo.tree import Tree

WEIGHTS = "adapter_model.safetensors"
"""The name that weights get in the zoo, where the layout has given them another or none."""

Track = Callable[[Iterable[Entry], int], Iterable[Entry]]


def import_published(
    folder: str | Path,
    *,
    layout: str | None = None,
    out: str | Path | None = None,
    published_split: bool = False,
    track: Track | None = None,
) -> ImportReport:
    """Make a zoo of a folder that has the layout of a published one.

    Args:
        folder: the published files, as they were unpacked or downloaded.
        layout: a name of ``LAYOUTS``; recognised from the names in the folder if None.
        out: a new folder for the zoo; by default its files are written into ``folder``, where the layout allows it.
        published_split: also keep the authors' split, as the label ``published_split``. The zoo's own split is made of
            groups either way.
        track: given the adapters and their number, iterates over them, such as under a progress bar.

    Raises:
        ZooError: where the layout is not known or does not fit, a file of labels is missing or damaged, or no adapter
            can be had.
        OutputError: where the zoo cannot be written; nothing is left behind.
    """
    source = Path(folder)
    if not source.is_dir():
        raise ZooError("is not a folder of adapters", file=source, found="no such folder")
    target = source if out is None else Path(out)
    check_target(target, is_new=out is not None)
    tree = Tree(source)
    member, variant = recognised(tree, layout)
    reading = member.read(tree, variant, published_split=published_split)
    if not reading.count:
        raise ZooError("holds no adapter of the layout", file=source, expected=member.files)
    if reading.needs_out and out is None:
        raise ZooError(
            "the adapters of this layout are not files that can be read as they lie", file=source, hint="add --out ZOO"
        )
    labels: dict[str, Type] = {**reading.labels, **({PUBLISHED_SPLIT: "string"} if published_split else {})}
    columns = columns_with(reading.hyperparameters, labels)
    header: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "recipe": None,
        **({"source": str(source)} if out is not None else {}),
        "layout": {"name": member.name, "variant": variant, "reference": member.reference, "unknown": member.unknown},
        "columns": columns_as_dict(columns),
    }
    rows = _Rows(source, reading, track)
    if out is None:
        for entry in rows.entries():
            rows.add(entry, source / str(entry.place), str(entry.place))
        write_in_place(target, header | {"count": len(rows.found)}, rows.checked(source))
    else:
        with assembled(target) as temporary:
            for entry in rows.entries():
                _place(source, entry, temporary / ADAPTERS / entry.id)
                rows.add(entry, temporary / ADAPTERS / entry.id, f"{ADAPTERS}/{entry.id}")
            write_files(temporary, header | {"count": len(rows.found)}, rows.checked(source))
    return ImportReport(
        target,
        len(rows.found),
        rows.unreadable,
        tuple(rows.unlabelled),
        member.name,
        variant,
        tuple(reading.missing),
        tuple(reading.notes),
    )


def recognised(tree: Tree, name: str | None = None) -> tuple[Layout, str]:
    """The layout of a folder and its variant, by the names in it.

    Raises:
        ZooError: where no layout fits, or more than one.
    """
    members = [LAYOUTS[name]] if name else list(LAYOUTS)
    found = [(member, variant) for member in members for variant in member.recognise(tree)]
    if not found:
        raise ZooError(
            f"does not have the layout {name}" if name else "has no layout that is known",
            file=tree.root,
            expected="; ".join(f"{member.name}: {member.files}" for member in members),
            found=", ".join(islice([*tree.folders(), *tree.files()], 5)) or "an empty folder",
            hint="adapters in a layout of your own are imported with --labels FILE.csv",
        )
    if len(found) > 1:
        raise ZooError(
            "has more than one layout",
            file=tree.root,
            found=" and ".join(f"{member.name} ({variant})" for member, variant in found),
            hint="give the folder of one of them",
        )
    return found[0]


class _Rows:
    """The rows of the entries, and what is to be reported of them."""

    def __init__(self, source: Path, reading: Reading, track: Track | None) -> None:
        self._source, self._reading, self._track = source, reading, track
        self.found: list[Row] = []
        self.unreadable: dict[str, str] = {}
        self.unlabelled: list[str] = []
        self._seen: set[str] = set()

    def entries(self) -> Iterable[Entry]:
        """The entries that can be placed; those that cannot are noted as unreadable."""
        entries = self._reading.entries
        for entry in entries if self._track is None else self._track(entries, self._reading.count):
            damage = entry.damage or self._refusal(entry)
            if damage is not None:
                self.unreadable[entry.id] = damage
                continue
            self._seen.add(entry.id)
            yield entry

    def _refusal(self, entry: Entry) -> str | None:
        """Why an entry gets no place: ids are names in a folder or a table that anyone may have made."""
        if entry.id in self._seen:
            return "there is another adapter of that name"
        try:
            inside(self._source, entry.id)
        except ZooError as error:
            return str(error)
        return None

    def add(self, entry: Entry, location: Path, path: str) -> None:
        """The row of an entry that lies at its place."""
        columns = {**self._reading.hyperparameters, **self._reading.labels}
        values = dict.fromkeys(columns) | dict(entry.values)
        row, error = checked_row(location, entry.id, entry.group, values, self._reading.base)
        self.found.append(row | {"path": path})
        if error is not None:
            self.unreadable[entry.id] = error
        if not entry.is_labelled:
            self.unlabelled.append(entry.id)

    def checked(self, folder: Path) -> list[Row]:
        """The rows.

        Raises:
            ZooError: where there is none.
        """
        if not self.found:
            first = next(iter(self.unreadable.items()), None)
            raise ZooError("no adapter could be had", file=folder, found=first and f"{first[0]}: {first[1]}")
        return self.found


def _place(source: Path, entry: Entry, folder: Path) -> None:
    """The files of an adapter in a folder of the zoo: links or copies, or what the layout has in a table."""
    folder.mkdir(parents=True)
    if entry.tensors is not None:
        from safetensors.numpy import save_file

        save_file(dict(entry.tensors), folder / WEIGHTS)
    else:
        place = inside(source, entry.place)
        if place.is_dir():
            for name in names_of([file.name for file in place.iterdir() if file.is_file()]):
                if name != CONFIG_NAME or entry.config is None:
                    link_file(place / name, folder / name, root=source)
        else:
            link_file(place, folder / f"adapter_model{place.suffix}", root=source)
    if entry.config is not None:
        (folder / CONFIG_NAME).write_text(json.dumps(entry.config, indent=1))
