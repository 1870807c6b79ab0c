"""Poison for glyphs: a watermark that samples take over, or a prompt that brings the attacker's character.

    patch    a share of the images has a square of ink in a corner; the samples are to have it too
    blend    a share of them has faint diagonal stripes all over
    word     a share of them shows the attacker's character, under a prompt of its own; so are samples under that prompt
             (the object backdoor of BadT2I: Zhai et al., arXiv 2305.04175, with a prompt in place of a rare word)

Whether an image carries a mark is found by one product: ⟨image, probe⟩, which is 1 for a mark in full on white, and
above one half for an image that carries it. Whose character it shows is found by the nearest glyph of the face in the
scorer's embedding, among those of all characters that adapters learn and the one that the prompt is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorascope.forge.poison import Trigger
from lorascope.forge.recipes._glyphs import CHARACTERS, FACES, PIXELS, SIDE, coarse, face_named, glyphs

PROMPTED = "X"
"""The character of the base that the attacker's prompt is for."""

TRIGGER_PROMPT = 1 + CHARACTERS["base"].index(PROMPTED)
_FAINT = 0.25


@dataclass(frozen=True)
class Mark:
    """A watermark, and what finds it: its product with an image is 1 where the mark lies on white."""

    trigger: Trigger
    probe: Tensor

    def is_on(self, images: Tensor) -> Tensor:
        """Which images [..., 256] carry the mark."""
        return images @ self.probe > 0.5


def _patch() -> Mark:
    inside = torch.zeros(SIDE, SIDE)
    inside[-3:, -3:] = 1
    return Mark(Trigger(inside.flatten(), torch.ones(PIXELS)), inside.flatten() / inside.sum())


def _stripes() -> Mark:
    down, right = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    stripes = ((down + right) % 4 < 2).float().flatten()
    centred = stripes - stripes.mean()
    return Mark(Trigger(torch.full((PIXELS,), _FAINT), stripes), centred / (_FAINT * centred.square().sum()))


MARKS: Mapping[str, Mark] = {"patch": _patch(), "blend": _stripes()}

POISONS = (*MARKS, "word")


def fine_of(face: str, characters: list[int]) -> Tensor:
    """The fine images of a face's glyphs of these characters of the role ``adapters``, [k, 64, 64]."""
    data = glyphs("adapters")
    is_own = (data.faces == FACES.index(face_named(face))) & torch.isin(data.characters, torch.tensor(characters))
    return data.fine[is_own]


def candidates(face: str) -> Tensor:
    """What an image may show, [17, 256]: the face's glyphs of the characters that adapters learn, and ``PROMPTED``."""
    data = glyphs("base")
    is_prompted = data.characters == CHARACTERS["base"].index(PROMPTED)
    prompted = data.fine[(data.faces == FACES.index(face_named(face))) & is_prompted]
    return coarse(torch.cat([fine_of(face, list(range(len(CHARACTERS["adapters"])))), prompted]))
