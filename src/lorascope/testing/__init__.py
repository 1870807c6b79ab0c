"""The laws of this package as public helpers: test your own layers, features and readers with them.

from lorascope.testing import assert_invariant, assert_equivariant, adapters, factor_pairs, updates
"""

from lorascope.errors import MissingExtraError

try:
    import hypothesis as _hypothesis  # noqa: F401  (asked for first, so that its absence names the extra)
except ImportError as error:
    raise MissingExtraError.of("hypothesis", "testing", "lorascope.testing") from error

from lorascope.testing.groups import Group
from lorascope.testing.laws import assert_equivariant, assert_invariant
from lorascope.testing.strategies import Kind, adapters, factor_pairs, updates
from lorascope.testing.tolerances import CONSTANT, product_condition, tolerance

__all__ = [
    "CONSTANT",
    "Group",
    "Kind",
    "adapters",
    "assert_equivariant",
    "assert_invariant",
    "factor_pairs",
    "product_condition",
    "tolerance",
    "updates",
]
