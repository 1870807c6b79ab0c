"""Findings about adapters: rules over one adapter file or many."""

from lorascope.scan.finding import OBSTACLES, Finding, Severity
from lorascope.scan.survey import Survey, survey
from lorascope.scan.verify import Examination, examine, verify, worst_first

__all__ = ["OBSTACLES", "Examination", "Finding", "Severity", "Survey", "examine", "survey", "verify", "worst_first"]
