"""``EquivariantLayer``: a map of features that states its input and output type and holds its input to it."""

import torch

from lorascope.nn.values import GLFeatures
from lorascope.symmetry import FeatureType


class EquivariantLayer(torch.nn.Module):
    """Base of the layers: f(act(M, x)) = act(M, f(x)) for every M in GL(rank) at each site.

    A subclass writes ``compute``; ``forward`` checks the type first.
    ``lorascope.testing.assert_equivariant`` tests the law, for layers written elsewhere too.

    Args:
        input_type, output_type: the feature types at each site.
        sites: the number S of sites, or None where any number will do.
    """

    def __init__(self, input_type: FeatureType, output_type: FeatureType, *, sites: int | None = None) -> None:
        super().__init__()
        self.input_type = input_type
        self.output_type = output_type
        self.sites = sites

    def forward(self, features: GLFeatures) -> GLFeatures:
        """The features in the output type.

        Raises:
            ValueError: where the features have another type or number of sites than the layer is for.
        """
        self.check(features)
        return self.compute(features)

    def check(self, features: GLFeatures) -> None:
        """Raise the error of ``forward`` where the features are not what the layer is for."""
        if features.type != self.input_type:
            raise ValueError(
                f"{type(self).__name__} got features of the wrong type (expected {self.input_type}, "
                f"found {features.type})"
            )
        if self.sites is not None and features.sites != self.sites:
            raise ValueError(
                f"{type(self).__name__} got the wrong number of sites (expected {self.sites}, found {features.sites})"
            )

    def compute(self, features: GLFeatures) -> GLFeatures:
        """The map itself, on features of the right type."""
        raise NotImplementedError  # every layer writes its own; abstract methods and torch.nn.Module do not mix

    def extra_repr(self) -> str:
        """The types, for ``repr``."""
        return f"{self.input_type} → {self.output_type}" + (f", sites={self.sites}" if self.sites else "")
