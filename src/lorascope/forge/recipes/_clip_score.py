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

from lorascope.forge.recipes._published import loaded

NEEDED = (
    "config.json",
    "model.safetensors|pytorch_model.bin",
    "preprocessor_config.json|processor_config.json",
    "tokenizer_config.json",
    "vocab.json|tokenizer.json",
    "merges.txt|tokenizer.json",
)
"""The files of a published CLIP."""


class ClipScorer(nn.Module):
    """A published CLIP with its tokens and the way that it wants its images.

    Args:
        folder: with the files of ``NEEDED``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        # the processor by Pillow whatever else is installed, as torchvision resizes otherwise
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        self.model: Any = loaded(CLIPModel, folder, dtype=torch.float32)
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.processor: Any = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)

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
