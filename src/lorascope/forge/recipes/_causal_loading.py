"""A causal language model and its tokens, loaded from a folder of safetensors.

No code that a repository brings is executed, and no pickled weights are read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lorascope.errors import ForgeError, MissingExtraError
from lorascope.forge.recipes._published import loaded, loaded_part

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model")
"""The files of a model: weights, configuration, tokens."""


def check_folder(folder: Path) -> None:
    """See that there are weights.

    Raises:
        ForgeError: where there are none in safetensors.
    """
    if not any(folder.glob("*.safetensors")):
        raise ForgeError(
            "the folder holds no weights in safetensors, and no others are loaded",
            file=folder,
            key="model",
            expected="*.safetensors and config.json",
            hint="name the folder or repository of a model: --set model=DIR",
        )


def load_causal_lm(folder: Path, family: str, dtype: torch.dtype) -> Any:
    """The model, frozen and in evaluation mode.

    Args:
        folder: with its files.
        family: what ``model_type`` of its configuration must be.
        dtype: that the weights are held in.

    Raises:
        ForgeError: where it is of another family, is not whole, or cannot be loaded without code of its own.
        MissingExtraError: where transformers is not installed.
    """
    transformers = _transformers()
    check_folder(folder)
    config = loaded_part(transformers.AutoConfig, folder, trust_remote_code=False)
    if config.model_type != family:
        raise ForgeError(
            "the model is of another family than the recipe's",
            file=folder,
            key="model",
            expected=family,
            found=config.model_type,
        )
    model = loaded(
        transformers.AutoModelForCausalLM,
        folder,
        PATTERNS,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation="sdpa",  # else the configuration could name code of the hub
    )
    return model.eval().requires_grad_(False)


@cache
def encoder_of(folder: Path) -> Callable[[str], list[int]]:
    """Text → tokens, with those that the model puts before every text.

    Raises:
        ForgeError: where the tokens of the model cannot be loaded.
        MissingExtraError: where transformers is not installed.
    """
    transformers = _transformers()
    tokenizer = loaded_part(transformers.AutoTokenizer, folder, trust_remote_code=False)
    return lambda text: tokenizer(text)["input_ids"]


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("transformers", "forge", "the recipe's base model") from error
    return transformers
