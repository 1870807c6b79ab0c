"""Several adapters given on the command line: zoos, folders of adapters, files, hub ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    from lorascope.formats import find, is_adapter
    from lorascope.zoo.store import HEADER

    path = Path(source)
    if not path.is_dir():
        return None
    if (path / HEADER).is_file():
        from lorascope.zoo import Zoo

        zoo = Zoo.open(path)
        return iter([(str(row["id"]), zoo.adapter_path(row)) for row in zoo.rows()])
    if is_adapter(path):
        return None
    found = [(str(one.relative_to(path)), one) for one in find(path)]
    return iter(found) if found else None
