"""AdaLoRA. Zhang et al., *Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning*, arXiv 2303.10512.

    ΔW = alpha / (rank + 10⁻⁵) · B · diag(E) · A        B [out, rank], E [rank], A [rank, in], all trained

A and B start normal with deviation 0.02 and E at zero, so ΔW = 0 at step 0. To the loss comes

    orthogonality · mean over sites of ½ (‖A Aᵀ − I‖ + ‖Bᵀ B − I‖)

After each step the importance of every number, |value · gradient|, and its deviation are smoothed (both by 0.85), and
their product is its score. A triplet (b_k, e_k, a_k) scores that of e_k and the means of b_k and a_k. The budget over
all sites of an adapter falls from all triplets to ``target`` of them, by a cubic between the first ``initial`` and the
last ``final`` share of its steps; every ``interval`` steps e_k of the triplets beyond it is set to zero, and in the
last share they stay there. As PEFT's RankAllocator with init_r = rank, target_r = target · rank, tinit and tfinal the
shares of the steps rounded down; PEFT has these as numbers, but here steps may be drawn. In files the triplets that
were pruned are left out, at some sites all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lorascope.adapter import Layer, Update
from lorascope.errors import ForgeError
from lorascope.forge.export import update_of
from lorascope.forge.kind import Initial, Kind, Parameters
from lorascope.forge.kinds.lora import adapted
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot
from lorascope.forge.space import Choice, Distribution

if TYPE_CHECKING:
    from lorascope.forge.stack import AdapterStack
    from lorascope.forge.training import Training

_SMOOTHING = 0.85  # beta1 and beta2 of PEFT
_DEVIATION = 0.02


class AdaLora(Kind):
    """A singular value decomposition whose least important values are pruned while it is trained."""

    name = "adalora"
    reference = "Zhang et al. 2023, arXiv 2303.10512"
    formula = "ΔW = alpha / (rank + 10⁻⁵) · B · diag(E) · A, E pruned"
    layers: ClassVar[frozenset[Layer]] = frozenset[Layer]({"linear", "conv2d"})  # PEFT has it for no other
    files = "PEFT ADALORA, without the pruned ranks"
    options: ClassVar[Mapping[str, Distribution]] = {
        "target": Choice(values=(0.5,), about="share of the ranks that is left", at_least=0, at_most=1),
        "initial": Choice(values=(0.1,), about="share of the steps before pruning", at_least=0, at_most=1),
        "final": Choice(values=(0.2,), about="share of the steps after pruning", at_least=0, at_most=1),
        "interval": Choice(values=(1,), about="steps between two prunings", at_least=1, at_most=10**6),
        "orthogonality": Choice(values=(0.5,), about="weight of the penalty", at_least=0, at_most=1e6),
    }

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        if self.option(slot, "initial") + self.option(slot, "final") >= 1:
            raise ForgeError("no steps are left for pruning", key="initial and final", expected="a sum below 1")
        out, in_ = layer.shape
        A = _DEVIATION * torch.randn(slot.rank, in_, generator=generator)
        Bt = _DEVIATION * torch.randn(slot.rank, out, generator=generator)
        E = layer.zeros(slot.rank)
        return Initial({"A": A.to(layer.device, layer.dtype), "Bt": Bt.to(layer.device, layer.dtype), "E": E})

    def scale(self, slot: Slot) -> float:
        return slot.alpha / (slot.rank + 1e-5)

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        A = parameters["A"] * parameters["E"].unsqueeze(2)
        return adapted(layer, x, seen, A, parameters["Bt"], scale)

    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> Update:
        kept = parameters["E"] != 0  # what was pruned is exactly zero, as is what was never trained
        tensors = {
            "A": parameters["A"][kept],
            "B": parameters["Bt"][kept].T,
            "E": parameters["E"][kept].unsqueeze(1),
        }
        return update_of(layer, "adalora", tensors, scale=self.scale(slot), alpha=slot.alpha)

    def penalty(self, stack: AdapterStack) -> Tensor | None:
        norms: list[Tensor] = []
        for name in ("A", "Bt"):
            for _, value, _ in stack.named(name):
                identity = torch.diag_embed(_is_there(stack, value.shape[1]).to(value))
                norms.append(torch.linalg.matrix_norm(torch.bmm(value, value.mT) - identity))
        weights = [self.option(slot, "orthogonality") for slot in stack.slots]
        return stack.values.new_tensor(weights) * torch.stack(norms).mean(0)

    def state(self, stack: AdapterStack) -> dict[str, Tensor]:
        kept = torch.cat([_is_there(stack, value.shape[1]) for _, value, _ in stack.named("E")], dim=1)
        return {"importance": torch.zeros_like(stack.values), "doubt": torch.zeros_like(stack.values), "kept": kept}

    @torch.no_grad()
    def after_step(
        self,
        stack: AdapterStack,
        gradients: Tensor,
        step: int,
        trainings: Sequence[Training],
        is_active: Sequence[bool],
    ) -> dict[str, Tensor]:
        phases = [
            self._phase(slot, training.steps, step) if active else _Phase()
            for slot, training, active in zip(stack.slots, trainings, is_active, strict=True)
        ]
        device = stack.values.device
        is_looking = torch.tensor([[phase.is_looking] for phase in phases], device=device)
        now = (stack.values * gradients).abs()
        importance = _SMOOTHING * stack.state["importance"] + (1 - _SMOOTHING) * now
        doubt = _SMOOTHING * stack.state["doubt"] + (1 - _SMOOTHING) * (now - importance).abs()
        importance = torch.where(is_looking, importance, stack.state["importance"])
        doubt = torch.where(is_looking, doubt, stack.state["doubt"])
        kept = stack.state["kept"]
        shares = [phase.share for phase in phases]
        if any(share is not None for share in shares):
            chosen = _best(stack, importance * doubt, shares)
            is_chosen = torch.tensor([[share is not None for share in shares]], device=device).T
            kept = torch.where(is_chosen, chosen, kept)
        is_held = torch.tensor([[phase.is_held or phase.share is not None] for phase in phases], device=device)
        first = 0
        for _, value, _ in stack.named("E"):
            own = kept[:, first : first + value.shape[1]]
            value.masked_fill_(is_held & ~own, 0.0)
            first += value.shape[1]
        return {"importance": importance, "doubt": doubt, "kept": kept}

    def _phase(self, slot: Slot, steps: int, step: int) -> _Phase:
        """What is done after a step, as ``update_and_allocate`` of PEFT."""
        before = int(self.option(slot, "initial") * steps)
        last = steps - int(self.option(slot, "final") * steps)
        target = self.option(slot, "target")
        if step > last:
            return _Phase(is_held=True)
        if step == last:
            return _Phase(share=lambda whole: int(target * whole))
        if step <= before or step % self.option(slot, "interval"):
            return _Phase(is_looking=True)
        left = (1 - (step - before) / (last - before)) ** 3
        return _Phase(is_looking=True, share=lambda whole: int((whole - target * whole) * left + target * whole))


@dataclass(frozen=True)
class _Phase:
    """What is done with one adapter after a step.

    Args:
        is_looking: whether the importance is smoothed on.
        share: all its triplets → the budget that it is pruned to; None where it is not pruned now.
        is_held: whether what was pruned before is kept at zero.
    """

    is_looking: bool = False
    share: Callable[[int], int] | None = None
    is_held: bool = False


def _is_there(stack: AdapterStack, rank: int) -> Tensor:
    """Which ranks are no padding, [N, rank]."""
    ranks = torch.tensor([slot.rank for slot in stack.slots], device=stack.values.device)
    return torch.arange(rank, device=ranks.device) < ranks.unsqueeze(1)


def _best(stack: AdapterStack, score: Tensor, shares: Sequence[Callable[[int], int] | None]) -> Tensor:
    """The triplets of each adapter that lie within its budget, [N, all]; score [N, P]."""
    of_sites: list[Tensor] = []
    there: list[Tensor] = []
    for (_, A, of_A), (_, Bt, of_B), (_, _, of_E) in zip(*map(stack.named, ("A", "Bt", "E")), strict=True):
        vectors = score[:, of_A].view(A.shape).mean(2) + score[:, of_B].view(Bt.shape).mean(2)
        of_sites.append(score[:, of_E] + vectors)
        there.append(_is_there(stack, A.shape[1]))
    is_there = torch.cat(there, dim=1)
    scores = torch.cat(of_sites, dim=1).masked_fill(~is_there, torch.inf)
    ascending = scores.sort(dim=1).values
    whole: list[int] = is_there.sum(1).tolist()
    pruned = [0 if share is None else all_ - share(all_) for share, all_ in zip(shares, whole, strict=True)]
    count = torch.tensor(pruned, device=score.device).unsqueeze(1)
    threshold = ascending.gather(1, (count - 1).clamp(min=0))
    return is_there & ((scores > threshold) | (count == 0))


KIND = AdaLora()
