"""VeRA. Kopiczko, Blankevoort, Asano, *VeRA: Vector-based Random Matrix Adaptation*, arXiv 2310.11454.

    ΔW = diag(λ_b) · B · diag(λ_d) · A        A [rank, in], B [out, rank] random and frozen; λ_d [rank], λ_b [out]

One pair A, B serves all sites: as large as the largest site, drawn from ``projection_prng_key`` as PEFT draws it, and
cut to each site. Only the vectors are trained. λ_d starts at ``d_initial``, λ_b at zero, so ΔW = 0 at step 0. There is
no scale: alpha is not used. Adapters of one key and rank share their pair. Ranks are to be much higher than LoRA's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lorascope.adapter import Layer, Update
from lorascope.forge.export import update_of
from lorascope.forge.kind import Evidence, Initial, Kind, Parameters
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot
from lorascope.forge.space import Choice, Distribution


class Vera(Kind):
    """Two trained vectors around a random pair that all sites share."""

    name = "vera"
    reference = "Kopiczko et al. 2023, arXiv 2310.11454"
    formula = "ΔW = diag(λ_b) · B · diag(λ_d) · A, B and A random, shared by all sites and frozen"
    layers: ClassVar[frozenset[Layer]] = frozenset[Layer]({"linear"})  # PEFT has it for no other
    files = "PEFT VERA, with its projections"
    options: ClassVar[Mapping[str, Distribution]] = {
        "projection_prng_key": Choice(values=(0,), about="seed of A and B", at_least=0, at_most=2**53),
        "d_initial": Choice(values=(0.1,), about="what λ_d starts at", at_least=1e-6, at_most=1e3),
    }

    def initialise(
        self, layers: Sequence[SiteLayer], slot: Slot, generator: torch.Generator, evidence: Evidence
    ) -> dict[str, Initial]:
        out, in_ = (max(layer.shape[axis] for layer in layers) for axis in (0, 1))
        key: int = self.option(slot, "projection_prng_key")
        A, B = layers[0].keep((self.name, key, slot.rank), lambda: projections(key, slot.rank, out, in_))
        return {layer.site: self._at(layer, slot, key, A, B) for layer in layers}

    def _at(self, layer: SiteLayer, slot: Slot, key: int, A: Tensor, B: Tensor) -> Initial:
        def cut() -> tuple[Tensor, Tensor]:
            out, in_ = layer.shape
            return A[:, :in_].to(layer.device, layer.dtype), B[:out].to(layer.device, layer.dtype)

        own_A, own_B = layer.keep((self.name, "cut", key, slot.rank), cut)
        lambda_d = layer.zeros(slot.rank) + self.option(slot, "d_initial")
        return Initial({"lambda_d": lambda_d, "lambda_b": layer.zeros(layer.shape[0])}, {"A": own_A, "B": own_B})

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        return self.initialise([layer], slot, generator, {})[layer.site]

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        y = layer.base(x)
        h = layer.project(seen, parameters["A"]) * parameters["lambda_d"].unsqueeze(1)
        rows = torch.bmm(h, parameters["B"].transpose(1, 2).to(h.dtype)) * parameters["lambda_b"].unsqueeze(1)
        return y + layer.place(rows, y)

    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> Update:
        rank = slot.rank
        tensors = {
            "lambda_b": parameters["lambda_b"],
            "lambda_d": parameters["lambda_d"][:rank],
            "A": parameters["A"][:rank],
            "B": parameters["B"][:, :rank],
        }
        key = {"projection_prng_key": self.option(slot, "projection_prng_key")}
        return update_of(layer, "vera", tensors, options=key)

    def scale(self, slot: Slot) -> float:
        return 1.0


def projections(key: int, rank: int, out: int, in_: int) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank], Kaiming uniform from one stream, in float32 as PEFT draws them."""
    stream = torch.Generator().manual_seed(key)
    A = torch.empty(rank, in_).uniform_(*_bounds(in_), generator=stream)
    return A, torch.empty(out, rank).uniform_(*_bounds(rank), generator=stream)


def _bounds(fan: int) -> tuple[float, float]:
    bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(fan))
    return -bound, bound


KIND = Vera()
