"""What a format has no place for, site by site.

A writer raises the first error of its ``refusals``; a conversion asks for all of them at once and leaves those sites
out, where that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable

from lorascope.errors import AdapterError


def at_site(error: AdapterError, site: str) -> AdapterError:
    """The error, which names the site and no tensor of it."""
    error.key = site
    return error


def check(refusals: Iterable[AdapterError]) -> None:
    """Raise the first of them, if there is one.

    Raises:
        AdapterError: which names a site.
    """
    for error in refusals:
        raise error
