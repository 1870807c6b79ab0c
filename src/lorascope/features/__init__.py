"""Numbers about an update that no gauge changes: spectra, sketches of ΔW and of its two spaces."""

from lorascope.features.feature import FEATURES, Feature
from lorascope.features.featurise import featurise
from lorascope.features.projection import projections
from lorascope.features.side import filtered_projector

__all__ = ["FEATURES", "Feature", "featurise", "filtered_projector", "projections"]
