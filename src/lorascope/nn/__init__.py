"""Neural layers that know the symmetry: every layer states the feature types it maps between."""

from lorascope.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401  (asked for first, so that its absence names the extra)
except ImportError as error:
    raise MissingExtraError.of("torch", "learn", "a neural model") from error

from lorascope.nn.activation import GLReLU
from lorascope.nn.dropout import EquivariantDropout
from lorascope.nn.glnet import GLNet, StackShape
from lorascope.nn.head import InvariantHead
from lorascope.nn.layer import EquivariantLayer
from lorascope.nn.linear import EquivariantLinear
from lorascope.nn.normalisation import EquivariantNorm
from lorascope.nn.values import GLFeatures

__all__ = [
    "EquivariantDropout",
    "EquivariantLayer",
    "EquivariantLinear",
    "EquivariantNorm",
    "GLFeatures",
    "GLNet",
    "GLReLU",
    "InvariantHead",
    "StackShape",
]
