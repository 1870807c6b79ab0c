"""``Finding``: one thing that is wrong, or worth knowing, about an adapter file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lorascope.errors import LorascopeError

Severity = Literal["error", "warning", "note"]
"""An error makes the adapter unusable as it is; a warning can make it wrong; a note is a fact."""


OBSTACLES = frozenset({"not-found", "no-hub", "needs-torch"})
"""Codes that say nothing about the file: it is not there, or could not be looked at here."""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        code: stable and machine-readable, such as ``non-finite``.
        severity: how bad it is.
        text: one sentence.
        site: the site concerned, or None.
        hint: what to do, or None.
    """

    code: str
    severity: Severity
    text: str
    site: str | None = None
    hint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return asdict(self)


def explained(error: LorascopeError) -> str:
    """What an error says, in one sentence: with what was expected and found, without file, place and hint.

    >>> explained(LorascopeError("the rank is wrong", expected=4, found=8))
    'the rank is wrong (expected 4, found 8)'
    """
    compared = [f"{name} {value}" for name, value in (("expected", error.expected), ("found", error.found)) if value]
    return error.what + (f" ({', '.join(compared)})" if compared else "")
