"""The symmetry of low-rank updates: (B, A) and (B M⁻¹, M A) are the same ΔW, for every invertible M."""

from lorascope.symmetry.align import Aligned, align, random_template
from lorascope.symmetry.canonical import SVD, balance, numerical_rank, thin_svd
from lorascope.symmetry.cores import distance, inner, norm, principal_angles
from lorascope.symmetry.gauge import act, pad_rank, random_gauge
from lorascope.symmetry.stack import SiteStack, gauged, refactored, stack_adapters
from lorascope.symmetry.types import FeatureType

__all__ = [
    "SVD",
    "Aligned",
    "FeatureType",
    "SiteStack",
    "act",
    "align",
    "balance",
    "distance",
    "gauged",
    "inner",
    "norm",
    "numerical_rank",
    "pad_rank",
    "principal_angles",
    "random_gauge",
    "random_template",
    "refactored",
    "stack_adapters",
    "thin_svd",
]
