"""minilm-text-qkvo: as minilm-text, with adapters on the keys and outputs of the attention too (8 sites)."""

from __future__ import annotations

from lorascope.forge.recipes import _minilm
from lorascope.forge.recipes.minilm_text import FIRST, MiniLMTextRecipe


class MiniLMTextAllRecipe(MiniLMTextRecipe):
    """LoRAs on the whole attention of the published MiniLM."""

    name = "minilm-text-qkvo"
    about = "minilm-text, with adapters on query, key, value and output (8 sites)"
    sites = tuple(
        f"encoder.layer.{layer}.attention.{projection}"
        for layer in range(FIRST, _minilm.LAYERS)
        for projection in ("self.query", "self.key", "self.value", "output.dense")
    )


RECIPE = MiniLMTextAllRecipe()
