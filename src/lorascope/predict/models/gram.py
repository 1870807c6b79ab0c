"""Gram network: where ΔW writes, what it reads, and how the two are joined, in learned coordinates.

    left     P U f(S) Uᵀ Pᵀ       right    Q V f(S) Vᵀ Qᵀ       cross    P U S Vᵀ Qᵀ / ‖ΔW‖_ε
    f(σ) = σ² / (σ² + δ² ‖ΔW‖² + ε²),      score = head(standardised tokens of all sites) + MLP(log norms, log spectra)

P [h, out] and Q [h, in] are learned for each site. f is smooth with f(0) = 0, so left and right are functions of ΔW
alone: neither GL(r), nor signs, nor rotations inside a cluster of equal singular values, nor the rank that a file
declares change them. ``head="linear"`` is ``ridge`` with learned projections instead of random ones; ``"attention"``
makes a token of each site and lets the sites look at each other.

What GL-net with h channels cannot say and this can. All that a GL-net ever sees of a site is (W₁B, AW₂ᵀ), so by
invariance W₁ ΔW W₂ᵀ, whatever its depth: h² linear images of the out · in entries of ΔW. If h < out there is x ≠ 0 with
W₁x = 0, and ΔW and ΔW + x yᵀ get the same score for every y. But their norms differ, and so do their column spaces: no
function of that image is ‖ΔW‖_F, or ⟨C, U f(S) Uᵀ⟩ for all C. Gram reads the first exactly, and the second for the C
that P spans. For the same reason the noise of A reaches every feature of a GL-net, and none of ``left``. With h < out
Gram too is blind to something (what P does not see, at equal spectrum), and its linear head adds up tokens where the
perceptron of GL-net can multiply them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lorascope.predict.model import Invariance, RankPolicy
from lorascope.predict.models._singular import SingularNetwork, SiteGroup, check_width

if TYPE_CHECKING:
    import torch

HEADS = Literal["linear", "attention"]


@dataclass(frozen=True)
class Gram(SingularNetwork):
    """Options: ``size`` h, ``delta`` δ, the head (``width`` of its tokens if attention), ``hidden``, the training's."""

    size: int = 32
    delta: float = 0.05
    head: HEADS = "linear"
    width: int = 64
    hidden: int = 64
    name: ClassVar[str] = "gram"
    formula: ClassVar[str] = "head(P U f(S) Uᵀ Pᵀ, Q V f(S) Vᵀ Qᵀ, P U S Vᵀ Qᵀ / ‖ΔW‖ of all sites) + MLP(log σ)"
    reference: ClassVar[str] = "lorascope; ridge on invariants with learned projections"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_width(self.width)

    def _network(self, groups: Sequence[SiteGroup], outputs: int) -> torch.nn.Module:
        from lorascope.predict.models._gram_network import GramNetwork

        return GramNetwork(
            groups,
            size=self.size,
            delta=self.delta,
            head=self.head,
            width=self.width,
            hidden=self.hidden,
            dropout=self.dropout,
            outputs=outputs,
        )


MODEL = Gram
