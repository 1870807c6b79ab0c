"""arc-llama: LoRAs of Llama-3.2-3B on ARC without some of its sources, as Llama-ARC of arXiv 2410.04207.

Model: meta-llama/Llama-3.2-3B (28 layers, so 56 sites; gated: its terms must be accepted on the hub). Which Llama was
taken is not said in the code, whose readers expect 56 layers of LoRAs (llm/metanet/main.py), as this one has. It is
for a GPU, the data and all else are those of ``_arc_recipe``:

    lorascope forge arc-llama --count 2000 --out zoo --device cuda --precision bfloat16
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lorascope.forge.recipes._arc_recipe import ArcRecipe, options_with


class ArcLlamaRecipe(ArcRecipe):
    """LoRAs of a Llama on ARC."""

    name = "arc-llama"
    about = "Llama-3.2-3B, finetuned on ARC without some of 19 sources (56 sites; for a GPU)"
    family = "llama"
    options = options_with("meta-llama/Llama-3.2-3B@13afe5124825b4f3751f836b40dafda64c1ed062")
    option_defaults: ClassVar[Mapping[str, Any]] = {name: of.values[0] for name, of in options.items()}


RECIPE = ArcLlamaRecipe()
