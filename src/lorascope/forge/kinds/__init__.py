"""Kinds of adapters that the forge trains: one file each, with paper, formula and initialisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorascope.family import Family

if TYPE_CHECKING:
    from lorascope.forge.kind import Kind

KINDS: Family[Kind] = Family("kind", "lorascope.forge.kinds", "KIND", "lorascope.kinds")
