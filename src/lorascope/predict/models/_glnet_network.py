"""The GL-net of ``lorascope.nn`` as a network on named arrays; apart because it needs PyTorch to be defined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lorascope.nn import GLFeatures, GLNet, StackShape
from lorascope.predict.training import Batch


class OnArrays(torch.nn.Module):
    """GL-net on a batch with arrays B0, A0, B1, A1, …"""

    def __init__(self, net: GLNet) -> None:
        super().__init__()
        self.net = net

    @staticmethod
    def features(batch: Mapping[str, torch.Tensor]) -> list[GLFeatures]:
        """The arrays as one value per stack."""
        return [GLFeatures.from_factors(batch[f"B{i}"], batch[f"A{i}"]) for i in range(len(batch) // 2)]

    def forward(self, batch: Batch) -> torch.Tensor:
        """[n, outputs]."""
        return self.net(self.features(batch))


def network(options: Any, inputs: Mapping[str, torch.Tensor], outputs: int, generator: torch.Generator) -> OnArrays:
    """A GL-net for inputs of these shapes; its unit of each site is set where there are adapters."""
    shapes = []
    for i in range(len(inputs) // 2):
        B, A = inputs[f"B{i}"], inputs[f"A{i}"]
        shapes.append(StackShape(B.shape[1], B.shape[2], A.shape[3]))
    net = GLNet(
        shapes,
        hidden=options.hidden,
        layers=options.layers,
        head_hidden=options.head_hidden,
        outputs=outputs,
        gate=options.gate,
        share=options.share,
        norm=options.norm,
        dropout=options.dropout,
        generator=generator,
    )
    wrapped = OnArrays(net)
    if len(inputs["B0"]):
        net.calibrate(wrapped.features(inputs))
    return wrapped
