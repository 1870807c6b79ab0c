"""The bench: models side by side on zoos, with honest baselines, under attack, and whether a difference is one."""

from lorascope.predict.bench.contenders import Contender, contenders
from lorascope.predict.bench.paired import above_chance
from lorascope.predict.bench.run import BenchResult, Plan, attack_names, bench, cells_of
from lorascope.predict.bench.tables import Entry, Row, Table

__all__ = [
    "BenchResult",
    "Contender",
    "Entry",
    "Plan",
    "Row",
    "Table",
    "above_chance",
    "attack_names",
    "bench",
    "cells_of",
    "contenders",
]
