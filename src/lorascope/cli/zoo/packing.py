"""``lorascope zoo pack`` and ``unpack``: thousands of small adapters in a few archives, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorascope.zoo import PackResult


def pack(
    zoo: Annotated[Path, typer.Argument(help="A zoo; not one whose adapters were imported where they lie.")],
    shard_size: Annotated[int, typer.Option(min=1, max=20_000, help="Adapters in an archive.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Move the adapters of a zoo into archives.

    Every verb reads these by mapping their stored files, without unpacking. An archive is whole on the disk before any
    file is deleted; the same command goes on after an interruption.
    """
    from lorascope.cli.output import progress
    from lorascope.report.numbers import counted
    from lorascope.zoo import Zoo
    from lorascope.zoo import pack as run

    opened = Zoo.open(zoo)
    with progress("packing", len(opened)) as advance:
        result = run(opened, shard_size=shard_size, on_progress=advance)
    _print(result, f"packed into {counted(result.shards, 'archive')}", as_json)


def unpack(
    zoo: Annotated[Path, typer.Argument(help="A packed zoo.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Put the adapters of a packed zoo back into folders.

    They are what they were, byte for byte.
    """
    from lorascope.cli.output import progress
    from lorascope.report.numbers import counted
    from lorascope.zoo import Zoo
    from lorascope.zoo import unpack as run

    opened = Zoo.open(zoo)
    with progress("unpacking", len(opened)) as advance:
        result = run(opened, on_progress=advance)
    _print(result, f"unpacked from {counted(result.shards, 'archive')}", as_json)


def _print(result: PackResult, what: str, as_json: bool) -> None:
    from lorascope.cli.output import console, print_json
    from lorascope.report.numbers import counted
    from lorascope.report.tables import safe

    if as_json:
        print_json(result.as_dict())
        return
    screen = console()
    screen.print(f"{result.zoo}: {counted(result.count, 'adapter')} {what}", markup=False, soft_wrap=True)
    for path, why in list(result.left.items())[:10]:
        screen.print(safe(f"  left as it is: {path}: {why}", width=2000), markup=False, soft_wrap=True)
    if len(result.left) > 10:
        screen.print(f"  … {len(result.left)} left in all; --json lists them")
