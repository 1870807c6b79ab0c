"""arc-qwen2: LoRAs of Qwen2-1.5B on ARC without some of its sources, as Qwen2-ARC-LoRA of arXiv 2410.04207.

Model: Qwen/Qwen2-1.5B (arXiv 2407.10671, Apache-2.0; 28 layers, so 56 sites). It is for a GPU, the data and all else
are those of ``_arc_recipe``:

    lorascope forge arc-qwen2 --count 2000 --out zoo --device cuda --precision bfloat16
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lorascope.forge.recipes._arc_recipe import ArcRecipe, options_with


class ArcQwen2Recipe(ArcRecipe):
    """LoRAs of a Qwen2 on ARC."""

    name = "arc-qwen2"
    about = "Qwen2-1.5B, finetuned on ARC without some of 19 sources (56 sites; for a GPU)"
    family = "qwen2"
    options = options_with("Qwen/Qwen2-1.5B@8a16abf2848eda07cc5253dec660bf1ce007ad7a")
    option_defaults: ClassVar[Mapping[str, Any]] = {name: of.values[0] for name, of in options.items()}


RECIPE = ArcQwen2Recipe()
