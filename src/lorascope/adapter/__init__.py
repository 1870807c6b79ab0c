"""An adapter as one exact object: site names, and for each the update ΔW = scale · B · A."""

from lorascope.adapter.adapter import Adapter, Note, Provenance
from lorascope.adapter.additive import Dense, Expanded
from lorascope.adapter.application import Application
from lorascope.adapter.low_rank import LowRank
from lorascope.adapter.relative import InPlace, Relative
from lorascope.adapter.structured import Structured
from lorascope.adapter.update import Factors, Layer, Need, Update

__all__ = [
    "Adapter",
    "Application",
    "Dense",
    "Expanded",
    "Factors",
    "InPlace",
    "Layer",
    "LowRank",
    "Need",
    "Note",
    "Provenance",
    "Relative",
    "Structured",
    "Update",
]
