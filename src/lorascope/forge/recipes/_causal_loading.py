"""A causal language model and its tokens, loaded from a folder of safetensors.

No code that a repository brings is executed, and no pickled weights are read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lorascope.errors import ForgeError, MissingExtraError
from lorascope.forge.recipes._fetched import Fetched
from lorascope.forge.recipes._quiet import quiet

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model")
"""The files of a model: weights, configuration, tokens."""

_ERRORS = (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError, SafetensorError)


def files_of(model: Fetched) -> list[Path]:
    """The files of a model that say what it is.

    Raises:
        ForgeError: where there are no weights in safetensors.
    """
    found = [file for pattern in PATTERNS for file in model.folder.glob(pattern)]
    if not any(file.suffix == ".safetensors" for file in found):
        raise ForgeError(
            "the folder holds no weights in safetensors, and no others are loaded",
            file=model.folder,
            key="model",
            expected="*.safetensors and config.json",
            hint="name the folder or repository of a model: --set model=DIR",
        )
    return found


def load_causal_lm(model: Fetched, family: str, dtype: torch.dtype) -> Any:
    """The model, frozen and in evaluation mode.

    Args:
        model: its files.
        family: what ``model_type`` of its configuration must be.
        dtype: that the weights are held in.

    Raises:
        ForgeError: where it is of another family, is not whole, or cannot be loaded without code of its own.
        MissingExtraError: where transformers is not installed.
    """
    transformers = _transformers()
    files_of(model)
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(model.folder, trust_remote_code=False)
            if config.model_type != family:
                raise ForgeError(
                    "the model is of another family than the recipe's",
                    file=model.folder,
                    key="model",
                    expected=family,
                    found=config.model_type,
                )
            loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
                model.folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except _ERRORS as error:
        raise _not_loaded(model, error) from error
    # transformers would go on with random values in their place
    missing = sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])])
    if missing:
        raise ForgeError("weights of the model are missing or of another shape", file=model.folder, key=missing[0])
    return loaded.eval().requires_grad_(False)


@cache
def encoder_of(model: Fetched) -> Callable[[str], list[int]]:
    """Text → tokens, with those that the model puts before every text.

    Raises:
        ForgeError: where the tokens of the model cannot be loaded.
        MissingExtraError: where transformers is not installed.
    """
    transformers = _transformers()
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(model.folder, trust_remote_code=False)
    except _ERRORS as error:
        raise _not_loaded(model, error) from error
    return lambda text: tokenizer(text)["input_ids"]


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("transformers", "forge", "the recipe's base model") from error
    return transformers


def _not_loaded(model: Fetched, error: BaseException) -> ForgeError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ForgeError("the model cannot be loaded", file=model.folder, key="model", found=line)
