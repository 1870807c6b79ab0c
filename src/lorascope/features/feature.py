"""What a feature is, and the family of them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from lorascope.family import Family
from lorascope.symmetry import SiteStack

Change = Literal["scale", "sign", "rotate out", "rotate in"]
"""ΔW ↦ 2 ΔW, −ΔW, Q ΔW, ΔW Qᵀ for a random orthogonal Q: the changes that a feature sees or is blind to."""


@runtime_checkable
class Feature(Protocol):
    """An invariant of GL(rank) at every site.

    A member is a frozen dataclass whose fields are its parameters. It declares for each change of ΔW whether
    it sees it (the value must change) or is blind to it (it must not); the laws test both. Where the value is a sum
    over the singular directions of ΔW, ``directions(stack)`` gives the summands, [N, S, k, d].
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    reference: ClassVar[str]
    sees: ClassVar[frozenset[Change]]
    blind_to: ClassVar[frozenset[Change]]

    def __call__(self, stack: SiteStack) -> Any:
        """The values [N, S, d] at the N adapters and S sites of a stack."""
        ...


FEATURES: Family[type[Feature]] = Family("feature", "lorascope.features.invariants", "FEATURE", "lorascope.features")
