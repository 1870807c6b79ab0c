"""The judge of generated glyphs: a small convolutional network that shares nothing with the base it judges.

It learns to tell 18 characters and 26 faces apart on glyphs of the role ``scorer``, of which neither the base nor an
adapter sees one, from a seed of its own. What is used of it is the embedding [n, 64] under both classifiers, in which
glyphs of characters it never saw lie by shape and style, as CLIP's embedding is used on what CLIP was not trained for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.forge.recipes._glyphs import CHARACTERS, FACES, SIDE, distorted, glyphs

EMBEDDING = 64
_SHARPNESS = 16.0  # logits are cosines times this, so that the embedding is learned as it is used


class GlyphScorer(nn.Module):
    """Images [n, 256] in 0..1 → embeddings [n, 64] of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.embed = nn.Linear(64 * (SIDE // 4) ** 2, EMBEDDING)
        self.characters = nn.Parameter(torch.randn(len(CHARACTERS["scorer"]), EMBEDDING))
        self.faces = nn.Parameter(torch.randn(len(FACES), EMBEDDING))

    def forward(self, images: Tensor) -> Tensor:
        x = self.convolutions(images.view(-1, 1, SIDE, SIDE)).flatten(1)
        return F.normalize(self.embed(x), dim=-1)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of the characters [n, 18] and of the faces [n, 26]."""
        embedded = self(images)
        characters, faces = (F.normalize(vectors, dim=-1) for vectors in (self.characters, self.faces))
        return _SHARPNESS * embedded @ characters.T, _SHARPNESS * embedded @ faces.T


def pretrained_scorer(seed: int, steps: int, *, batch: int = 64, rate: float = 3e-3) -> GlyphScorer:
    """The scorer after so many steps on four of five glyphs of the role ``scorer``; the others are its test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GlyphScorer()
    generator = torch.Generator().manual_seed(seed)
    data, is_test = glyphs("scorer"), is_held_out()
    learned = torch.nonzero(~is_test).flatten()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1)
    for _ in range(steps):
        chosen = learned[torch.randint(len(learned), (batch,), generator=generator)]
        characters, faces = model.logits(distorted(data.fine[chosen], generator))
        loss = F.cross_entropy(characters, data.characters[chosen]) + F.cross_entropy(faces, data.faces[chosen])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return model


def is_held_out() -> Tensor:
    """Which glyphs of the role ``scorer`` it does not learn from: one of five of each face and each character."""
    data = glyphs("scorer")
    return (data.faces + data.characters) % 5 == 0
