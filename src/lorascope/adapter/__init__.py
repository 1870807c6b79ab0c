"""An adapter as one exact object: site names, and for each the update ΔW = scale · B · A."""

from lorascope.adapter.adapter import Adapter, Note, Provenance
from lorascope.adapter.application import Application
from lorascope.adapter.update import Factors, Layer, LowRank, Need, Update

__all__ = ["Adapter", "Application", "Factors", "Layer", "LowRank", "Need", "Note", "Provenance", "Update"]
