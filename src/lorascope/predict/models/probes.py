"""Probes: what the update of each site answers to learned inputs.

    Y = R ΔW X / ‖ΔW X‖_ε = R U (S Vᵀ X) / ‖S Vᵀ X‖_ε      X [in, K] learned inputs, R [m, out] learned read-outs
    score = linear(Y, Y Yᵀ of all sites) + MLP(the same) + MLP(log norms, log spectra)

for each site. ΔW is never formed: the inputs meet Vᵀ first. Y is linear in ΔW, and so in all that is random about its
row space; Y Yᵀ, the second moments of the answers over the inputs, is even in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorascope.predict.model import Invariance, RankPolicy
from lorascope.predict.models._singular import SingularNetwork, SiteGroup

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Probes(SingularNetwork):
    """Options: ``probes`` K and ``read_outs`` m for each site, ``hidden`` units, and the training's."""

    probes: int = 32
    read_outs: int = 32
    hidden: int = 64
    name: ClassVar[str] = "probes"
    formula: ClassVar[str] = "(linear + MLP)(Y, Y Yᵀ of all sites) + MLP(log σ), Y = R ΔW X / ‖ΔW X‖"
    reference: ClassVar[str] = "after ProbeGen (arXiv 2410.10811) and ProbeX (arXiv 2410.13569), on ΔW site by site"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"

    def _network(self, groups: Sequence[SiteGroup], outputs: int) -> torch.nn.Module:
        from lorascope.predict.models._probes_network import ProbesNetwork

        return ProbesNetwork(
            groups,
            probes=self.probes,
            read_outs=self.read_outs,
            hidden=self.hidden,
            dropout=self.dropout,
            outputs=outputs,
        )


MODEL = Probes
