"""The tokens of a published CLIP, checked against the text model that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorascope.errors import ForgeError
from lorascope.forge.recipes._published import cause, loaded_part


def clip_tokenizer(text_config: Any, folder: Path, subfolder: str = "") -> Any:
    """The tokenizer of a folder, all whose tokens the text model has embeddings for.

    Args:
        text_config: the configuration of the text model.
        folder: with its files, or with ``subfolder`` that has them.
        subfolder: where in the folder.

    Raises:
        ForgeError: where it cannot be loaded, has tokens that the model does not know or texts that are longer than
            the model's, or cannot bring a text to full length.
    """
    from transformers import CLIPTokenizer

    tokenizer = loaded_part(CLIPTokenizer, folder, subfolder=subfolder)
    place, most, longest = folder / subfolder, tokenizer.model_max_length, text_config.max_position_embeddings
    beyond = max(tokenizer.get_vocab().values(), default=0)
    if beyond >= text_config.vocab_size:
        raise ForgeError(
            "the tokens are not those of the model",
            file=place,
            expected=f"below {text_config.vocab_size}",
            found=beyond,
        )
    if not isinstance(most, int) or not 0 < most <= longest:
        raise ForgeError(
            "texts are of another length than the model takes",
            file=place,
            key="model_max_length",
            expected=f"1 to {longest}",
            found=most,
        )
    try:
        tokenizer("a", padding="max_length", max_length=most, truncation=True, return_tensors="pt")
    except Exception as error:  # as of a tokenizer without a token to pad with
        raise ForgeError("no text can be turned into tokens", file=place, found=cause(error)) from error
    return tokenizer
