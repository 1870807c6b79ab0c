"""Adapters to one adapter: a family of methods, exact where exact is possible and with their error where not."""

from lorascope.merge.learned_weights import LearnedWeights, learn_weights
from lorascope.merge.merging import Merged, SiteError, merge
from lorascope.merge.method import METHODS, Method, Parts, Product, Rows, concatenated
from lorascope.merge.weights import Weights
from lorascope.symmetry.truncation import Cut

__all__ = [
    "METHODS",
    "Cut",
    "LearnedWeights",
    "Merged",
    "Method",
    "Parts",
    "Product",
    "Rows",
    "SiteError",
    "Weights",
    "concatenated",
    "learn_weights",
    "merge",
]
