"""Photographs from folders that anyone may have filled: bounded, decoded as JPEG alone, cut to a square.

As DreamBooth's scripts prepare them (diffusers, ``train_dreambooth_lora.py --center_crop``): turned as the camera says,
the shorter side brought to the resolution by bilinear interpolation, the middle kept, values in −1..1.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorascope.errors import ForgeError
from lorascope.forge.recipes._published import cause

BYTES, PIXELS = 1 << 25, 1 << 25
"""The most that a file may have, and that it may be decoded to."""


def photograph(path: Path, resolution: int) -> Any:
    """The image as Pillow's, RGB, resolution × resolution.

    Raises:
        ForgeError: where the file is missing, no JPEG, damaged, or larger than the bounds.
    """
    from PIL import Image, ImageOps

    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        if path.stat().st_size > BYTES:
            raise ForgeError("is too large for a photograph", file=path, expected=f"at most {BYTES} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("JPEG",)) as image:
                if image.width * image.height > PIXELS:
                    raise ForgeError(
                        "is too large for a photograph",
                        file=path,
                        expected=f"at most {PIXELS} pixels",
                        found=f"{image.width} × {image.height}",
                    )
                upright = ImageOps.exif_transpose(image).convert("RGB")
        return ImageOps.fit(upright, (resolution, resolution), Image.Resampling.BILINEAR)
    except ForgeError:
        raise
    except Exception as error:  # what decoders raise for bytes that are no photograph is not of few kinds
        raise ForgeError(
            "is not a photograph that can be read", file=path, expected="a JPEG file", found=cause(error)
        ) from error


def pixels(image: Any) -> Tensor:
    """The values of an image of Pillow's, [3, height, width] in −1..1."""
    return torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)
