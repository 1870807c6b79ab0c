"""Indexes and what was found in them, as text and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorascope.report.listed import print_listed
from lorascope.report.numbers import DASH, counted
from lorascope.report.tables import safe
from lorascope.retrieve import Duplicates, Index, Indexed, Search, miss_probability
from lorascope.retrieve.duplicates import SAME

SCHEMA_VERSION = 1


def indexed_as_dict(found: Indexed, output: str) -> dict[str, Any]:
    """What an index holds now, and what was done for it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "output": output,
        "adapters": len(found.index),
        "read": found.read,
        "unchanged": found.kept,
        "gone": found.gone,
        "failures": _failures(found.index),
    }


def indexed_as_text(found: Indexed, output: str, console: Console) -> None:
    """Print the same."""
    console.print(
        f"{safe(output, 4096)}: {counted(len(found.index), 'adapter')} ({found.read} read, {found.kept} unchanged, "
        f"{found.gone} gone)",
        soft_wrap=True,
    )
    _print_failures(found.index, console)


def search_as_dict(found: Search, index: Index, adapter: str, fingerprint: str) -> dict[str, Any]:
    """The neighbours, how many were read for them, and what could not be."""
    return {
        "schema_version": SCHEMA_VERSION,
        "adapter": adapter,
        "fingerprint": fingerprint,
        "found": [
            {
                "path": one.entry.path,
                "distance": one.distance,
                "relative_distance": one.relative_distance,
                "cosine": one.cosine,
                "norm": one.norm,
                "sites": one.entry.sites,
                "base": one.entry.base,
            }
            for one in found.found
        ],
        "searched": found.searched,
        "read": found.read,
        "apart": found.apart,
        "is_approximate": found.is_approximate,
        "miss_probability": None if found.is_approximate else miss_probability(),
        "unread": found.unread,
        "failures": _failures(index),
    }


def search_as_text(found: Search, index: Index, console: Console) -> None:
    """Print the neighbours as a table, nearest first."""
    if found.found:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
        for name in ("distance", "relative distance", "cosine"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("adapter", overflow="fold")
        for one in found.found:
            cosine = DASH if one.cosine is None else f"{one.cosine:.4g}"
            path = Text(safe(one.entry.path, 4096))
            table.add_row(f"{one.distance:.4g}", f"{one.relative_distance:.4g}", cosine, path)
        console.print(table)
    else:
        console.print("nothing is that near")
    how = "approximate: by sketches" if found.is_approximate else f"exact: {found.read} read, the others are further"
    console.print(Text(f"{counted(found.searched, 'adapter')} searched, {how}", "dim"), soft_wrap=True)
    if found.apart:
        has = "has" if found.apart == 1 else "have"
        text = f"{counted(found.apart, 'adapter')} of those read {has} no site in common with it and stand in no order"
        console.print(Text(text, "dim"), soft_wrap=True)
    _print_unread(found.unread, console)
    _print_failures(index, console)


def duplicates_as_dict(found: Duplicates, index: Index) -> dict[str, Any]:
    """The groups; ``kind`` is ``same`` where all are one update to the rounding of float32, else ``near``.

    That of a member is told of it and the first of its group.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "groups": [
            {
                "kind": _kind(group),
                "members": [
                    {
                        "path": one.entry.path,
                        "kind": _kind([one]),
                        "distance": one.distance,
                        "relative_distance": one.relative_distance,
                        "sites": one.entry.sites,
                        "base": one.entry.base,
                    }
                    for one in group
                ],
            }
            for group in found.groups
        ],
        "searched": found.searched,
        "measured": found.candidates,
        "miss_probability": miss_probability(),
        "unread": found.unread,
        "failures": _failures(index),
    }


def duplicates_as_text(found: Duplicates, index: Index, console: Console) -> None:
    """Print each group, a line for each member: how it is related to the first, and how far it is from it."""
    for number, group in enumerate(found.groups, 1):
        console.print(f"{number}  {counted(len(group), 'adapter')}")
        for place, one in enumerate(group):
            kind = _kind([one]) if place else "first"
            text = f"   {kind:5} {one.relative_distance:9.3g}  {safe(one.entry.path, 4096)}"
            console.print(Text(text), soft_wrap=True)
    copies = sum(len(group) - 1 for group in found.groups)
    console.print(f"{counted(len(found.groups), 'group')}; {copies} of {counted(found.searched, 'adapter')} could go")
    _print_unread(found.unread, console)
    _print_failures(index, console)


def _kind(group: Any) -> str:
    return "same" if max(one.relative_distance for one in group) <= SAME else "near"


def _failures(index: Index) -> dict[str, str]:
    return {entry.path: entry.error or "" for entry in index.failures}


def _print_failures(index: Index, console: Console) -> None:
    print_listed("not searched", (entry.error or entry.path for entry in index.failures), console)


def _print_unread(unread: dict[str, str], console: Console) -> None:
    print_listed("could not be compared", unread.values(), console)
