"""Reports: what a person or a program is told about an adapter."""

from lorascope.report.summary import SCHEMA_VERSION, summarise

__all__ = ["SCHEMA_VERSION", "summarise"]
