"""Direction tokens: a transformer over the singular directions of each site, then over the sites.

    token i    t_i = Σ_j f(σ_j) κ(σ_i, σ_j) W [P u_j u_jᵀ Pᵀ, Q v_j v_jᵀ Qᵀ, P u_j v_jᵀ Qᵀ] + W′ (log σ_i, log ‖ΔW‖)
    site       Σ_i f(σ_i) t′_i / Σ_i f(σ_i), t′ after attention among the t with log f(σ) added to its logits
    adapter    attention among sites with learned embeddings, a linear map of all; plus MLP(log norms, log spectra)

with κ(σ, τ) = exp(−(log σ − log τ)² / 2β²). After W2T, which makes a token of (u_i, v_i, σ_i) with the sign set by the
largest entry of u. What differs, and why:

- Products of u and v do not know the sign, so nothing has to be fixed, and nothing flips near a tie. They matter for
  another reason too: what sits in a column space is an even function of u, which a network on u with its sign set by
  a convention would first have to learn to make.
- A token sums over the directions whose singular values are near its own: at equal values over all of the cluster,
  which no rotation inside it changes. So tokens move with ΔW at a rate of 1/β, where single singular vectors move at
  a rate of 1/gap. The price: directions nearer than β in log σ are seen as one space.
- Directions count by f(σ) = σ² / (σ² + δ² ‖ΔW‖² + ε²) in tokens, attention and pooling: as σ → 0 one fades out, and
  padding counts nothing. The logarithms, of σ relative to the norm and of the norm, are standardised over training
  adapters and not over ranks, so that scale is seen.

The scores are functions of ΔW alone, repeated and vanishing singular values included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorascope.predict.model import Invariance, RankPolicy
from lorascope.predict.models._singular import SingularNetwork, SiteGroup, check_width

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tokens(SingularNetwork):
    """Options: ``size`` of P and Q, ``width`` of tokens, ``layers`` over sites, β, δ, ``hidden``, the training's."""

    size: int = 16
    width: int = 64
    layers: int = 1
    bandwidth: float = 0.2
    delta: float = 0.05
    hidden: int = 64
    name: ClassVar[str] = "tokens"
    formula: ClassVar[str] = "attention over t_i = W Σ_j f(σ_j) κ(σ_i, σ_j) [u_j u_jᵀ, v_j v_jᵀ, u_j v_jᵀ], and sites"
    reference: ClassVar[str] = "after W2T (arXiv 2603.15990), with tokens that see neither signs nor rotations"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_width(self.width)

    def _network(self, groups: Sequence[SiteGroup], outputs: int) -> torch.nn.Module:
        from lorascope.predict.models._tokens_network import TokensNetwork

        return TokensNetwork(
            groups,
            size=self.size,
            width=self.width,
            layers=self.layers,
            bandwidth=self.bandwidth,
            delta=self.delta,
            dropout=self.dropout,
            hidden=self.hidden,
            outputs=outputs,
        )


MODEL = Tokens
