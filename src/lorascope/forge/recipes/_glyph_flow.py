"""A small flow-matching transformer over images of glyphs: the base of ``glyph-diffusion``.

    x_t = (1 − t) · noise + t · image        v(x_t, t, prompt) ≈ image − noise

Flow matching along straight lines (Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003) with a transformer
over patches (Peebles & Xie, arXiv 2212.09748), where the time and the prompt are two more tokens. A sample follows v
from noise to an image in steps of Euler's method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.forge.recipes._block import Block
from lorascope.forge.recipes._glyphs import CHARACTERS, PIXELS, SIDE, distorted, glyphs

WIDTH, HIDDEN, HEADS, BLOCKS, PATCH = 96, 384, 3, 4, 4
TOKENS = (SIDE // PATCH) ** 2
FREQUENCIES = 16

ANY_GLYPH = 0
"""The prompt for a glyph of any character; prompt 1 + k is for character k of those the base is pretrained on."""

PROMPTS = 1 + len(CHARACTERS["base"])
SAMPLING_STEPS = 16


class GlyphFlow(nn.Module):
    """Images [n, 256] on their way, times [n] in 0..1, prompts [n] → velocities [n, 256].

    Images are in −1..1 here, ink at 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.position = nn.Parameter(torch.zeros(TOKENS, WIDTH))
        self.time = nn.Linear(2 * FREQUENCIES, WIDTH)
        self.prompt = nn.Embedding(PROMPTS, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, HIDDEN, HEADS) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, PATCH * PATCH)

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        patches = self.embed(_as_patches(x)) + self.position
        conditions = torch.stack([self.time(_waves(t)), self.prompt(prompt)], 1)
        tokens = torch.cat([patches, conditions], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return _as_images(self.head(self.norm(tokens[:, :TOKENS])))


def _as_patches(x: Tensor) -> Tensor:
    """[n, 256] → [n, 16, 16]."""
    across = SIDE // PATCH
    return x.view(-1, across, PATCH, across, PATCH).transpose(2, 3).reshape(-1, TOKENS, PATCH * PATCH)


def _as_images(patches: Tensor) -> Tensor:
    """The inverse of ``_as_patches``."""
    across = SIDE // PATCH
    return patches.view(-1, across, across, PATCH, PATCH).transpose(2, 3).reshape(-1, PIXELS)


def _waves(t: Tensor) -> Tensor:
    """cos and sin of 16 frequencies of t, [n, 32]."""
    angles = t.unsqueeze(1) * torch.exp(torch.linspace(0, math.log(200.0), FREQUENCIES, device=t.device))
    return torch.cat([angles.cos(), angles.sin()], 1)


def on_the_way(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and the velocity to learn, of images [n, 256] in 0..1; t is logit-normal (arXiv 2403.03206)."""
    noise = torch.randn(images.shape, generator=generator)
    t = torch.randn(len(images), generator=generator).sigmoid()
    image = 2 * images - 1
    velocity = image - noise
    return noise + t.unsqueeze(1) * velocity, t, velocity


def flow_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each example, [n]."""
    return (velocity - target).square().mean(1)


def sample(model: Callable[..., Any], noise: Tensor, prompts: Tensor, steps: int = SAMPLING_STEPS) -> Tensor:
    """Images [n, 256] in 0..1 from noise [n, 256]: Euler's method in equal steps."""
    x = noise
    for step in range(steps):
        t = torch.full((len(x),), step / steps)
        x = x + model(x=x, t=t, prompt=prompts).to(x.device) / steps
    return ((x + 1) / 2).clamp(0, 1)


def pretrained_flow(seed: int, steps: int, *, batch: int = 64, rate: float = 2e-3) -> GlyphFlow:
    """The base after so many steps on the glyphs of the role ``base``, an eighth of them under ``ANY_GLYPH``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GlyphFlow()
        nn.init.normal_(model.position, std=0.02)
        nn.init.normal_(model.prompt.weight, std=0.5)
    generator = torch.Generator().manual_seed(seed)
    data = glyphs("base")
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1)
    for _ in range(steps):
        chosen = torch.randint(len(data.fine), (batch,), generator=generator)
        images = distorted(data.fine[chosen], generator)
        is_any = torch.rand(batch, generator=generator) < 1 / 8
        prompts = torch.where(is_any, ANY_GLYPH, 1 + data.characters[chosen])
        x, t, velocity = on_the_way(images, generator)
        flow_loss(model(x, t, prompts), velocity).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return model
