"""A recipe of your own in one file: LoRAs of a small network that is finetuned on sines.

    lorascope forge examples/my_recipe.py --count 200 --out sines
    lorascope fit sines --target frequency --model ridge --out predictor

The base learns y = sin x. Each adapter then learns y = amplitude · sin(frequency · x) with its own frequency and
amplitude, and what an adapter was trained on is to be read from its weights. All that a recipe has to say is
here: the base, the sites, what is drawn for each adapter, its data, and what is measured afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.forge import Recipe, Session
from lorascope.forge.recipe import COMMON, STEPS
from lorascope.forge.space import Distribution, Hash, LogUniform, generator_of

BATCH = 16
TEST_POINTS = torch.linspace(-3, 3, 64).unsqueeze(1)


class Network(nn.Module):
    """x [n, 1] → y [n, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(1, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Sines(Recipe):
    """Adapters of the network that each know one sine."""

    name = "sines"
    about = "a small network, finetuned on sines of other frequencies and amplitudes (2 sites)"
    reference = "arXiv 1703.03400, section 5.1"
    kind = "lora"
    sites = ("second", "last")
    space: ClassVar[Mapping[str, Distribution]] = {
        **COMMON,
        "steps": STEPS,
        "learning_rate": LogUniform(low=3e-3, high=3e-2, about="of AdamW", at_least=0, at_most=1e3),
        "frequency": LogUniform(low=0.5, high=2.0, about="of the sine", at_least=0, at_most=100),
        "amplitude": LogUniform(low=0.3, high=3.0, about="of the sine", at_least=0, at_most=100),
    }
    options: ClassVar[Mapping[str, Distribution]] = {
        "base_seed": Hash(about="of the base model", at_least=0, at_most=2**53)
    }
    option_defaults: ClassVar[Mapping[str, Any]] = {"base_seed": 0}
    labels: ClassVar[Mapping[str, Any]] = {"frequency": "float", "amplitude": "float", "loss": "float"}

    def architecture(self, options) -> nn.Module:
        return Network()

    def pretrain(self, options: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options["base_seed"])
            model = Network()
        generator = torch.Generator().manual_seed(options["base_seed"])
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(300):
            x = 6 * torch.rand(64, 1, generator=generator) - 3
            (model(x) - torch.sin(x)).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        return model

    def session(self, base: nn.Module) -> Session:
        return Points()


class Points(Session):
    """Points of each adapter's own sine."""

    def batches(self, rows: Any) -> Any:
        amplitudes = torch.tensor([row["amplitude"] for row in rows]).view(-1, 1, 1)
        frequencies = torch.tensor([row["frequency"] for row in rows]).view(-1, 1, 1)

        def batch(step: int, part: int) -> tuple[Tensor, Tensor]:
            # a pure function of the adapter and the step, so that the zoo is the same however it is made
            drawn = [generator_of("sines", row["seed"], step, part).uniform(-3, 3, (BATCH, 1)) for row in rows]
            x = torch.from_numpy(np.stack(drawn)).float()  # [N, b, 1]
            y = amplitudes * torch.sin(frequencies * x)
            return x.flatten(0, 1), y.flatten(0, 1)

        return batch

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    def measure(self, model: Any, rows: Any) -> list[dict[str, Any]]:
        outputs = model(TEST_POINTS.repeat(len(rows), 1)).cpu().view(len(rows), -1)
        x = TEST_POINTS.squeeze(1)
        truths = torch.stack([row["amplitude"] * torch.sin(row["frequency"] * x) for row in rows])
        return [{"loss": float(loss)} for loss in (outputs - truths).square().mean(1)]


RECIPE = Sines()
