"""Adapters against each other: distances, angles, signs, and all pairs of many at once."""

from lorascope.compare.angles import Angles
from lorascope.compare.comparison import Comparison, SitePair, compare
from lorascope.compare.pairwise import Pairwise, pairwise, pairwise_reference
from lorascope.compare.signs import Signs, sign_agreement

__all__ = [
    "Angles",
    "Comparison",
    "Pairwise",
    "Signs",
    "SitePair",
    "compare",
    "pairwise",
    "pairwise_reference",
    "sign_agreement",
]
