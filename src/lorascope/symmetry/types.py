"""Feature types: how a value at one site answers to a change of gauge, as a printable value.

Under M in GL(rank), an ``out`` channel is a row vector b ↦ b M⁻¹ (a row of B is one), an ``in`` channel a
column vector a ↦ M a (a column of A is one), and an ``inv`` channel a number that stays.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureType:
    """``out`` copies of b ↦ b M⁻¹, ``in_`` copies of a ↦ M a, ``inv`` invariants.

    >>> print(FeatureType(out=3, in_=2, inv=8))
    3×out ⊕ 2×in ⊕ 8×inv
    >>> print(FeatureType())
    0
    >>> FeatureType(inv=4).is_invariant
    True
    """

    out: int = 0
    in_: int = 0
    inv: int = 0

    def __post_init__(self) -> None:
        if min(self.out, self.in_, self.inv) < 0:
            raise ValueError(f"a feature type has no negative multiplicities: {self!r}")

    def __str__(self) -> str:
        parts = [(self.out, "out"), (self.in_, "in"), (self.inv, "inv")]
        return " ⊕ ".join(f"{count}×{name}" for count, name in parts if count) or "0"

    @property
    def is_invariant(self) -> bool:
        """Whether no gauge changes a value of this type."""
        return self.out == 0 and self.in_ == 0
