"""Adapters found by their weights: sketches, an index of them, nearest neighbours, duplicates, who was made of whom."""

from lorascope.retrieve.duplicates import Duplicates, Member, duplicates
from lorascope.retrieve.exact import Measured, measured
from lorascope.retrieve.explanation import MergeExplanation, Part, explain_merge
from lorascope.retrieve.finding import Found, Search, nearest
from lorascope.retrieve.fingerprint import are_neighbours, fingerprint
from lorascope.retrieve.index import Entry, Index, read_index, write_index
from lorascope.retrieve.indexing import Indexed, adapters_in, build_index, place_of
from lorascope.retrieve.lineage import Edge, lineage
from lorascope.retrieve.sketch import Sketch, miss_probability, sketch_of
from lorascope.retrieve.vectors import Vectors

__all__ = [
    "Duplicates",
    "Edge",
    "Entry",
    "Found",
    "Index",
    "Indexed",
    "Measured",
    "Member",
    "MergeExplanation",
    "Part",
    "Search",
    "Sketch",
    "Vectors",
    "adapters_in",
    "are_neighbours",
    "build_index",
    "duplicates",
    "explain_merge",
    "fingerprint",
    "lineage",
    "measured",
    "miss_probability",
    "nearest",
    "place_of",
    "read_index",
    "sketch_of",
    "write_index",
]
