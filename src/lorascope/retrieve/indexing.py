"""Making an index: every adapter below some folders is read once; what has not changed since is not read again.

A file is taken for unchanged where its size, its time and a hash of its first 64 KiB and of the configuration beside it
are the same. What cannot be read, or has no ΔW without the base weight, is kept with its error and counted; the others
go on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lorascope.errors import AdapterError, LorascopeError, MissingExtraError
from lorascope.formats import find, read
from lorascope.formats.config_file import MAX_CONFIG
from lorascope.formats.source import config_beside, exists, stored_names, weights_at
from lorascope.formats.stored_zip import open_stored, through_stored
from lorascope.retrieve.index import Entry, Index
from lorascope.retrieve.sites import sites_digest
from lorascope.retrieve.sketch import Sketch, sketch_of

HEAD = 1 << 16
"""Bytes of the weights that are hashed to tell whether they changed."""

SAVED_EVERY = 30.0
"""Seconds after which what has been read is saved."""


@dataclass(frozen=True, eq=False)
class Indexed:
    """``index``, and how many adapters were ``read`` for it, were ``kept`` as they were, and are ``gone``."""

    index: Index
    read: int
    kept: int
    gone: int


def adapters_in(sources: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The absolute paths of the adapters that are at or below the sources, each once.

    Raises:
        LorascopeError: where a source is not there, or holds none.
    """
    found: dict[str, None] = {}
    for source in sources:
        path = Path(source)
        here = [str(one.absolute()) for one in find(path)] if path.is_dir() else []
        if not here and (path.is_file() or through_stored(path) is not None):
            here = [str(path.absolute())]
        if not here:
            what = "the folder holds no adapters" if path.is_dir() else "no such file or folder"
            raise LorascopeError(what, file=source, expected="a folder, a zoo or a file of adapters")
        found.update(dict.fromkeys(os.path.normpath(one) for one in here))
    return list(found)


def place_of(location: str | os.PathLike[str]) -> str | None:
    """The absolute path of an adapter, however it is written, of a folder's weights the folder; None where it is not.

    >>> place_of("no/such/adapter") is None
    True
    """
    path = Path(os.path.normpath(Path(location).absolute()))
    if not exists(path) and through_stored(path) is None:
        return None
    folder = path.parent
    return str(folder) if path.is_file() and _is_taken(path) else str(path)


def _is_taken(path: Path) -> bool:
    """Whether a file is what reading its folder reads."""
    try:
        return weights_at(path.parent) == path
    except AdapterError:
        return False


def build_index(
    paths: Sequence[str],
    previous: Index | None = None,
    *,
    save: Callable[[Index], Any] | None = None,
    advance: Callable[[int], Any] | None = None,
) -> Indexed:
    """The index of the adapters at ``paths``, and of those of ``previous`` that are still there.

    Args:
        paths: from ``adapters_in``.
        previous: an index that is brought up to date.
        save: called now and then, and where the work is interrupted, with all that there is so far.
        advance: called with the number of paths done.

    >>> import tempfile, numpy as np
    >>> from lorascope.adapter import Adapter, LowRank
    >>> from lorascope.formats import write
    >>> folder = tempfile.mkdtemp()
    >>> write(Adapter({"q": LowRank(np.ones((4, 2)), np.ones((2, 3)))}), f"{folder}/one")
    >>> first = build_index(adapters_in([folder]))
    >>> again = build_index(adapters_in([folder]), first.index)
    >>> first.read, again.read, again.kept, again.index.norms.round(9)
    (1, 0, 1, array([6.92820323]))
    """
    parts = {} if previous is None else previous.parts()
    asked = set(paths)
    gone = [path for path in parts if path not in asked and not _is_there(path)]
    for path in gone:
        del parts[path]
    count = kept = 0
    saved = time.monotonic()
    try:
        for path in paths:
            part = parts.get(path)
            facts = _facts(path)
            if part is not None and _is_same(part[0], facts):
                kept += 1
            else:
                parts[path] = _read(facts)
                count += 1
            if advance is not None:
                advance(1)
            if save is not None and count and time.monotonic() - saved > SAVED_EVERY:
                save(Index.of(list(parts.values())))
                saved = time.monotonic()
    except KeyboardInterrupt:
        if save is not None and count:
            save(Index.of(list(parts.values())))
        raise
    return Indexed(Index.of(list(parts.values())), count, kept, len(gone))


def _is_there(path: str) -> bool:
    return os.path.lexists(path) or through_stored(path) is not None


def _is_same(one: Entry, other: Entry) -> bool:
    return (one.size, one.modified, one.header) == (other.size, other.modified, other.header)


def _facts(path: str) -> Entry:
    """What tells whether a file has changed; an error of the place itself is kept with it."""
    try:
        through = through_stored(path)
        head = b"".join(_stored_heads(*through) if through is not None else _heads(Path(path)))
        facts = (through[0] if through is not None else weights_at(path)).stat()
    except AdapterError as error:
        return Entry(path, -1, -1, "", error=_said(error))
    except OSError as error:
        return Entry(path, -1, -1, "", error=_said(AdapterError("cannot be read", file=path, found=error.strerror)))
    digest = blake2b(head, digest_size=16).hexdigest()
    return Entry(path, facts.st_size, facts.st_mtime_ns, digest)


def _heads(path: Path) -> Iterator[bytes]:
    weights = weights_at(path)
    if not weights.is_file():
        raise AdapterError("not a regular file", file=weights)
    config = config_beside(weights)
    for part, limit in ((weights, HEAD), (config, MAX_CONFIG)):
        if part is not None:
            with part.open("rb") as stream:
                yield stream.read(limit)
        yield b"\0"


def _stored_heads(archive: Path, place: str) -> Iterator[bytes]:
    opened = open_stored(archive)
    for name, limit in zip(stored_names(opened, place), (HEAD, MAX_CONFIG), strict=True):
        if name is not None:
            yield bytes(opened.members[name][:limit])
        yield b"\0"


def _read(facts: Entry) -> tuple[Entry, Sketch | None]:
    if facts.error is not None:
        return facts, None
    try:
        adapter = read(facts.path)
        if not len(adapter):
            raise AdapterError("the adapter has no sites", file=facts.path)
        found = sketch_of(adapter)
        known = replace(facts, sites=len(adapter), layers=sites_digest(adapter), base=adapter.provenance.base_model)
    except LorascopeError as error:
        error.file = error.file or facts.path
        # what is missing here today may be installed tomorrow: without its header it is tried again
        header = "" if isinstance(error, MissingExtraError) else facts.header
        return replace(facts, header=header, error=_said(error)), None
    return known, found


def _said(error: LorascopeError) -> str:
    """The error without its hint, in one line."""
    return str(error).partition("\n")[0]
