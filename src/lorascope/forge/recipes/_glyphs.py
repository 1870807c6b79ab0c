"""Glyphs of the fonts that come with matplotlib: 26 faces × 62 characters, drawn, distorted and measured.

A face is a font file, or a range of mathematical alphanumerics of STIX (its sans-serif and typewriter letters). Each
glyph is drawn unhinted, 13 pixels to the em, centred by its box on 16×16 pixels, so that the size of a letter, its
width and its strokes stay what the face makes them. It is drawn four times finer than it is used: a distortion turns
the fine image and averages afterwards.

Characters belong to one of three roles, both cases of a letter to the same, and look-alikes (o O 0, l I 1) too: what
the base was pretrained on, the scorer learned from, and adapters are finetuned on have no glyph in common.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIDE, FINE, EM = 16, 4, 13
PIXELS = SIDE * SIDE

Role = Literal["base", "scorer", "adapters"]

CHARACTERS: dict[Role, str] = {
    "base": "CIJLOPSUVXZcijlopsuvxz014789",
    "scorer": "FKMQTWYfkmqtwy2356",
    "adapters": "ABDEGHNRabdeghnr",
}


@dataclass(frozen=True)
class Face:
    """One face.

    Args:
        family: the design that it shares with its bold and its italic.
        style: empty, Bold, Italic or Bold Italic.
        file: of the font, without its ending.
        starts: code points of A, a and 0; None where the face has no digits.
    """

    family: str
    style: str
    file: str
    is_serif: bool
    is_bold: bool
    is_italic: bool
    is_monospace: bool
    starts: tuple[int, int, int | None] = (ord("A"), ord("a"), ord("0"))

    @property
    def name(self) -> str:
        """As in the manifest."""
        return f"{self.family} {self.style}".strip()

    def code(self, character: str) -> int | None:
        """The code point of a character, None where the face has it not."""
        upper, lower, digit = self.starts
        first, start = ("0", digit) if character.isdigit() else ("A", upper) if character.isupper() else ("a", lower)
        return None if start is None else start + ord(character) - ord(first)


def _styles(family: str, files: tuple[str, ...], *, is_serif: bool, is_monospace: bool = False) -> list[Face]:
    """Regular, bold, italic and both."""
    styles = (("", False, False), ("Bold", True, False), ("Italic", False, True), ("Bold Italic", True, True))
    return [
        Face(family, style, file, is_serif, is_bold, is_italic, is_monospace)
        for file, (style, is_bold, is_italic) in zip(files, styles, strict=True)
    ]


_STIX = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")

FACES: tuple[Face, ...] = (
    *_styles(
        "DejaVu Sans",
        ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
        is_serif=False,
    ),
    *_styles(
        "DejaVu Sans Mono",
        ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
        is_serif=False,
        is_monospace=True,
    ),
    *_styles(
        "DejaVu Serif",
        ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
        is_serif=True,
    ),
    *_styles("STIX", _STIX, is_serif=True),
    Face("STIX Sans", "", _STIX[0], False, False, False, False, (0x1D5A0, 0x1D5BA, 0x1D7E2)),
    Face("STIX Sans", "Bold", _STIX[1], False, True, False, False, (0x1D5D4, 0x1D5EE, 0x1D7EC)),
    Face("STIX Sans", "Italic", _STIX[2], False, False, True, False, (0x1D608, 0x1D622, None)),
    Face("STIX Sans", "Bold Italic", _STIX[3], False, True, True, False, (0x1D63C, 0x1D656, None)),
    Face("STIX Mono", "", _STIX[0], True, False, False, True, (0x1D670, 0x1D68A, 0x1D7F6)),
    Face("Computer Modern", "", "cmr10", True, False, False, False),
    Face("Computer Modern", "Bold", "cmb10", True, True, False, False),
    Face("Computer Modern", "Italic", "cmti10", True, False, True, False),
    Face("Computer Modern Sans", "", "cmss10", False, False, False, False),
    Face("Computer Modern Mono", "", "cmtt10", True, False, False, True),
)


def face_named(name: str) -> Face:
    """The face of that name."""
    return next(face for face in FACES if face.name == name)


def _ft2font() -> Any:
    """matplotlib's binding of FreeType; it is of an extra, and need not be there to import this file."""
    return importlib.import_module("matplotlib.ft2font")


@cache
def _font(file: str) -> Any:
    fonts = Path(importlib.import_module("matplotlib").get_data_path()) / "fonts" / "ttf"
    font = _ft2font().FT2Font(str(fonts / f"{file}.ttf"))
    font.set_size(EM * FINE, 72)
    return font


def drawn(face: Face, character: str) -> Tensor | None:
    """The ink of a glyph in 0..1, [64, 64], centred by its box; None where the face has it not."""
    code = face.code(character)
    if code is None:
        return None
    font = _font(face.file)
    if code not in font.get_charmap():
        return None
    font.set_text(chr(code), 0.0, flags=_ft2font().LoadFlags.NO_HINTING)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = np.asarray(font.get_image(), np.float32) / 255
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    canvas = torch.zeros(SIDE * FINE, SIDE * FINE)
    top, left = ((SIDE * FINE - size) // 2 for size in ink.shape)
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = torch.from_numpy(ink)
    return canvas


@dataclass(frozen=True, eq=False)
class Glyphs:
    """All glyphs of one role: fine images [n, 64, 64], numbers of their faces [n], of their characters [n]."""

    fine: Tensor
    faces: Tensor
    characters: Tensor


@cache
def glyphs(role: Role) -> Glyphs:
    """Every face in every character of the role, face by face."""
    found = [
        (image, number, place)
        for number, face in enumerate(FACES)
        for place, character in enumerate(CHARACTERS[role])
        if (image := drawn(face, character)) is not None
    ]
    images, faces, characters = zip(*found, strict=True)
    return Glyphs(torch.stack(images), torch.tensor(faces), torch.tensor(characters))


def coarse(fine: Tensor) -> Tensor:
    """Fine images [n, 64, 64] → images [n, 256] in 0..1, as they are used."""
    return F.avg_pool2d(fine.unsqueeze(1), FINE).flatten(1)


def distorted(fine: Tensor, generator: torch.Generator) -> Tensor:
    """Images [n, 256] of fine ones [n, 64, 64], each turned, scaled and shifted a little, with noise on its pixels.

    Up to 6 degrees, 8 %, and one pixel either way; noise of standard deviation 0.03.
    """
    count = len(fine)
    angle, scale, right, down = (2 * torch.rand(4, count, generator=generator) - 1).unbind()
    angle, scale = angle * math.radians(6), torch.exp(0.08 * scale)
    step = 2 / SIDE  # a pixel, where the image reaches from -1 to 1
    matrix = torch.stack(
        [
            torch.stack([angle.cos() / scale, angle.sin() / scale, step * right], -1),
            torch.stack([-angle.sin() / scale, angle.cos() / scale, step * down], -1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [count, 1, SIDE * FINE, SIDE * FINE], align_corners=False)
    turned = F.grid_sample(fine.unsqueeze(1), grid, align_corners=False).squeeze(1)
    noise = 0.03 * torch.randn(count, PIXELS, generator=generator)
    return (coarse(turned) + noise).clamp(0, 1)


def stroke_width(fine: Tensor) -> Tensor:
    """The mean width of the strokes in pixels, [n]: 2 · area / perimeter, that of a long strip.

    The perimeter is ∫ |∇ink| (the coarea formula), which needs no threshold.
    """
    down, right = torch.gradient(F.pad(fine, (1, 1, 1, 1)), dim=(1, 2))
    perimeter = torch.hypot(down, right).sum((1, 2))
    return 2 * fine.sum((1, 2)) / perimeter / FINE
