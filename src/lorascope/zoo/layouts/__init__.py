"""Layouts of published zoos: one file each, with its reference, its files, and what they leave open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorascope.family import Family

if TYPE_CHECKING:
    from lorascope.zoo.layout import Layout

LAYOUTS: Family[Layout] = Family("layout", "lorascope.zoo.layouts", "LAYOUT", "lorascope.layouts")
