"""Several adapters given on the command line: zoos, folders of adapters, files, hub ids."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorascope.adapter import Adapter
    from lorascope.errors import LorascopeError


@dataclass(frozen=True, eq=False)
class Given:
    """The adapters with their names, and the errors of those that a zoo or folder has and that cannot be read."""

    adapters: list[Adapter]
    names: list[str]
    failures: list[LorascopeError]


def adapters_at(sources: Sequence[str]) -> Given:
    """Read adapters, looking at every number of those of zoos and folders, so that one bad file does not stop many.

    Raises:
        LorascopeError: where an adapter that was named itself cannot be read.
    """
    from lorascope.cli.output import track
    from lorascope.errors import LorascopeError
    from lorascope.formats import read

    adapters: list[Adapter] = []
    names: list[str] = []
    failures: list[LorascopeError] = []
    for source in sources:
        many = _inside(source)
        if many is None:
            adapters.append(read(source))
            say_passed_by(source, "taken")
            names.append(source)
            continue
        for name, path in track(many, None, "reading"):
            try:
                adapter = read(path)
                adapter.norm()
            except LorascopeError as error:
                error.file = error.file or str(path)
                failures.append(error)
            else:
                adapters.append(adapter)
                names.append(name)
    return Given(adapters, names, failures)


def _inside(source: str) -> Iterator[tuple[str, Path]] | None:
    """The adapters of a zoo or a folder of adapters, None where the source is itself one."""
    from lorascope.zoo.store import HEADER

    path = Path(source)
    if not path.is_dir():
        return None
    if (path / HEADER).is_file():
        from lorascope.zoo import Zoo

        zoo = Zoo.open(path)
        return iter([(str(row["id"]), zoo.adapter_path(row)) for row in zoo.rows()])
    found = inside(path)
    if found is None:
        return None
    say_files_beside(found, "taken")
    return iter((str(one.relative_to(path)) if one != path else path.resolve().name, one) for one in found)


def inside(path: Path) -> list[Path] | None:
    """The adapters of a folder of adapters; None where it is itself one, holds none, or is no folder."""
    from lorascope.formats import find, is_adapter

    return None if not path.is_dir() or is_adapter(path) else find(path) or None


def say_passed_by(source: str, done: str, *, is_files_said: bool = True) -> None:
    """Say what else is in a folder that is one adapter: adapters in its subfolders, and weights files beside its own.

    Args:
        source: what the command line names; nothing is said of what is no folder.
        done: what is done with the adapter and not with these, such as ``shown``.
    """
    from lorascope.formats import find

    path = Path(source)
    below = len(find(path)) - 1 if path.is_dir() else 0
    if below > 0:
        more = "1 more adapter" if below == 1 else f"{below} more adapters"
        sys.stderr.write(f"{ascii(source)[1:-1]}: {more} in its subfolders, not {done}\n")
    if is_files_said:
        say_files_beside([path], done)


def say_files_beside(adapters: Iterable[str | Path], done: str) -> None:
    """Say in one line which weights files lie in the folders of adapters and are not theirs."""
    from lorascope.formats import beside

    files = [file for path in adapters if Path(path).is_dir() for file in beside(path)]
    if files:
        shown = ", ".join(ascii(str(file))[1:-1] for file in files[:3]) + ", …" * (len(files) > 3)
        what = "1 weights file" if len(files) == 1 else f"{len(files)} weights files"
        sys.stderr.write(f"{what} beside an adapter's own, not {done}: {shown}\n")
