"""The last stage of reading: contents → adapter, by the key grammar that the evidence speaks for."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

from lorascope.adapter import Adapter
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.contents import Contents
from lorascope.formats.notes import repeated_notes
from lorascope.formats.registry import STATED, Evidence, format_named, formats, recognised


def interpreted(contents: Contents, format: str | None = None) -> Adapter:
    """What the tensors mean.

    Args:
        contents: tensors, metadata and configuration.
        format: the name of a format, where the file itself leaves it open.

    Raises:
        AdapterError: where no format is recognised, or several, or the file is not what its format asks for.
    """
    try:
        if format is None:
            member, evidence = recognised(contents)
        else:
            member, evidence = format_named(format), Evidence(STATED, "the format was given")
        if member.read is None:
            raise AdapterError(
                f"{member.title} is recognised, but not read by this version",
                hint="this version reads " + ", ".join(one.name for one in formats() if one.read),
            )
        adapter = member.read(contents)
    except AdapterError as error:
        error.file = error.file or (contents.path and str(contents.path))
        raise
    return replace(
        adapter,
        provenance=replace(adapter.provenance, evidence=evidence.reason),
        notes=(*adapter.notes, *repeated_notes(contents.config_text)),
    )


@contextmanager
def placed(location: str | os.PathLike[str]) -> Generator[None]:
    """Every error inside names the location, and those of the system become errors of this package."""
    try:
        yield
    except LorascopeError as error:
        error.file = error.file or str(location)
        raise
    except OSError as error:
        raise AdapterError("the file cannot be read", file=location, found=error.strerror) from error
