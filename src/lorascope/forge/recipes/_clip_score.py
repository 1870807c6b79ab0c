"""The scorer of generated photographs: CLIP's embeddings of images and of texts (Radford et al., arXiv 2103.00020).

``lorascope.forge.embedding_score`` of an image and its prompt is the CLIP score, of images and photographs of the
subject the fidelity of DreamBooth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.errors import ForgeError
from lorascope.forge.recipes._clip_tokens import clip_tokenizer
from lorascope.forge.recipes._published import cause, loaded, loaded_part

NEEDED = (
    "config.json",
    "model.safetensors|pytorch_model.bin",
    "preprocessor_config.json|processor_config.json",
    "tokenizer_config.json",
    "vocab.json|tokenizer.json",
    "merges.txt|tokenizer.json",
    "*.json",  # whichever of them the tokens are read from
)
"""The files of a published CLIP."""

MOST_SIDE = 4096
"""The most pixels of a side that an image may be brought to."""


class ClipScorer(nn.Module):
    """A published CLIP with its tokens and the way that it wants its images.

    Args:
        folder: with the files of ``NEEDED``.

    Raises:
        ForgeError: where they cannot be loaded, or no image can be embedded with them.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        # the processor by Pillow whatever else is installed, as torchvision resizes otherwise
        from transformers import CLIPImageProcessorPil, CLIPModel

        self.model: Any = loaded(CLIPModel, folder, NEEDED, dtype=torch.float32, attn_implementation="sdpa")
        self.tokenizer: Any = clip_tokenizer(self.model.config.text_config, folder)
        self.processor: Any = loaded_part(CLIPImageProcessorPil, folder)
        self._try(folder)

    def _try(self, folder: Path) -> None:
        """See that an image can be brought to what the model takes."""
        from PIL import Image

        sizes = {name: getattr(self.processor, name, None) or {} for name in ("size", "crop_size")}
        try:
            for name, size in sizes.items():
                if any(side is not None and not 0 < side <= MOST_SIDE for side in dict(size).values()):
                    raise ForgeError(
                        "images would be too large", file=folder, key=name, expected=f"1 to {MOST_SIDE}", found=size
                    )
            self.of_images([Image.new("RGB", (8, 8))])
        except ForgeError:
            raise
        except Exception as error:  # whatever a scorer of anyone raises for its first image
            raise ForgeError(
                "images cannot be brought to what the model takes",
                file=folder,
                key="preprocessor_config.json",
                found=cause(error),
            ) from error

    @torch.no_grad()
    def of_images(self, images: Sequence[Any]) -> Tensor:
        """Embeddings [n, d] of images of Pillow's, one by one, so that none depends on what is beside it."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.model.device)
        return torch.cat([self.model.get_image_features(one).pooler_output.cpu() for one in pixels.split(1)])

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [n, d] of texts; one that is too long is cut, as CLIP does."""
        embeddings = []
        for text in texts:
            tokens = self.tokenizer(text, truncation=True, return_tensors="pt").to(self.model.device)
            embeddings.append(self.model.get_text_features(**tokens).pooler_output.cpu())
        return torch.cat(embeddings)
