"""``Finding``: one thing that is wrong, or worth knowing, about an adapter file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
"""An error makes the adapter unusable as it is; a warning can make it wrong; a note is a fact."""


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
