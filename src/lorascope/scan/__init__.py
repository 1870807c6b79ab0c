"""Findings about adapters: rules over one adapter file or many."""

from lorascope.scan.finding import Finding, Severity
from lorascope.scan.verify import verify

__all__ = ["Finding", "Severity", "verify"]
