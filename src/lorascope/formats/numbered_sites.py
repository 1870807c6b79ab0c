"""Sites that are numbers in a trainer's order, ``unet:0`` or ``0000``: no model has a layer of that name.

Which layer a number stands for is in no file, so that a format whose names are paths of layers would hold an adapter
that fits no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lorascope.errors import AdapterError
from lorascope.formats.registry import Format

_NUMBER = re.compile(r"\d{4,9}|[^:]+:\d{1,9}", re.DOTALL | re.ASCII)


def nameless(sites: Iterable[str], member: Format) -> str | None:
    """In words, that sites have no name that a format could write; None where they have, or it writes numbers.

    >>> from lorascope.formats import format_named
    >>> peft, own = format_named("peft"), format_named("cloneofsimo")
    >>> nameless(["unet:0", "unet:1"], peft)
    "2 sites such as unet:0 are numbered in the trainer's order, and peft finds layers by their paths"
    >>> nameless(["unet:0"], own), nameless(["layers.0.q"], peft)
    (None, None)
    """
    found = [site for site in sites if _NUMBER.fullmatch(site)]
    if member.is_numbered or not found:
        return None
    sites_are = f"{len(found)} sites such as {found[0]} are" if len(found) > 1 else f"the site {found[0]} is"
    return f"{sites_are} numbered in the trainer's order, and {member.name} finds layers by their paths"


def check_named(sites: Iterable[str], member: Format, file: object = None, *, is_loss_allowed: bool = False) -> str:
    """What would be lost of the names, in words; empty for nothing.

    Raises:
        AdapterError: where something would be, and losses are not allowed.
    """
    text = nameless(sites, member)
    if text is not None and not is_loss_allowed:
        raise AdapterError(
            "no model has layers of these names",
            file=file,
            found=text,
            hint="choose the format that they are from, or take the numbers for names with --allow-loss",
        )
    return text or ""
