"""Names of llama.cpp's tensors and the module paths that they stand for, by architecture; and the order of q's rows.

    model.layers.3.self_attn.q_proj  ↔  blk.3.attn_q        model.embed_tokens  ↔  token_embd        lm_head  ↔  output

llama.cpp's converter puts the rows of q and k of llama-type models into another order for its rotary embedding, and
B's rows with them: within each head row h · (n/2) + i goes to 2 · i + h, with h in {0, 1} and n rows a head.

Source: https://github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py (``LlamaModel.permute``) and
gguf-py/gguf/tensor_mapping.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from numpy.typing import NDArray

from lorascope.errors import AdapterError

EMBEDDING = "token_embd"
"""The tensor of the token embedding, the only one whose lora_a is stored transposed."""

_NAMES: Mapping[str, str] = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED_NAMES: Mapping[str, str] = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_PLAIN = ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "command-r", "olmo2", "stablelm")
PERMUTED = ("llama", "granite", "smollm3")
"""The architectures whose q and k have their rows in another order than the published models."""

BLOCK_NAMES: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(_PLAIN + PERMUTED, _NAMES),
    "phi3": _FUSED_NAMES,
}
"""Architecture → tensor of a block → path within a layer."""

OUTER_NAMES: Mapping[str, str] = {EMBEDDING: "model.embed_tokens", "output": "lm_head"}
"""Tensor outside the blocks → module path."""

MODEL_TYPES: Mapping[str, str] = {
    **{name: name for name in BLOCK_NAMES},
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "cohere": "command-r",
}
"""``model_type`` of a base's config.json, or an architecture of llama.cpp → that architecture."""

_BLOCK = re.compile(r"blk\.(?P<block>\d{1,6})\.(?P<name>[a-z_]+)")
_LAYER = re.compile(r"model\.layers\.(?P<block>\d{1,6})\.(?P<path>.+)")
_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


@dataclass(frozen=True)
class BaseShape:
    """What the names and the order of rows depend on: the architecture, and the heads of q and k where known.

    >>> base = BaseShape.of({"model_type": "mistral", "num_attention_heads": 32, "num_key_value_heads": 8})
    >>> base.architecture, base.site_of("blk.3.attn_q"), base.tensor_of("model.layers.3.self_attn.q_proj")
    ('llama', 'model.layers.3.self_attn.q_proj', 'blk.3.attn_q')
    >>> base.heads_of("blk.3.attn_k"), base.heads_of("blk.3.attn_v"), base.is_permuted("blk.3.attn_k")
    (8, None, True)
    """

    architecture: str
    heads: Mapping[str, int]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> BaseShape:
        """From a base's ``config.json``; keys of its ``text_config`` count where it has one."""
        config = text_config(config)
        name = config.get("model_type")
        named = name if isinstance(name, str) else ""
        counts = [config.get(key) for key in _HEADS.values()]
        if counts[1] is None:  # as in transformers: a model without grouped queries states one number
            counts[1] = counts[0]
        is_known = all(type(count) is int and count > 0 for count in counts)
        heads = dict(zip(_HEADS, cast("list[int]", counts), strict=True)) if is_known else {}
        return cls(MODEL_TYPES.get(named, named), heads)

    def as_config(self) -> dict[str, Any]:
        """The keys of ``config.json`` that give the same again."""
        return {"model_type": self.architecture} | {_HEADS[name]: count for name, count in self.heads.items()}

    @property
    def is_known(self) -> bool:
        """Whether the names of the architecture's modules are known."""
        return self.architecture in BLOCK_NAMES

    def site_of(self, tensor: str) -> str | None:
        """The module path of a tensor, given without ``.weight``; None where it is not known."""
        if not self.is_known:
            return None
        match = _BLOCK.fullmatch(tensor)
        if match is None:
            return OUTER_NAMES.get(tensor)
        path = BLOCK_NAMES[self.architecture].get(match["name"])
        return None if path is None else f"model.layers.{match['block']}.{path}"

    def tensor_of(self, site: str) -> str | None:
        """The tensor of a module path or of a name of llama.cpp's own, without ``.weight``; None if none is known."""
        if _BLOCK.fullmatch(site) or site in OUTER_NAMES:
            return site
        if not self.is_known:
            return None
        match = _LAYER.fullmatch(site)
        if match is None:
            return next((tensor for tensor, path in OUTER_NAMES.items() if path == site), None)
        found = (name for name, path in BLOCK_NAMES[self.architecture].items() if path == match["path"])
        name = next(found, None)
        return None if name is None else f"blk.{match['block']}.{name}"

    def is_permuted(self, tensor: str) -> bool:
        """Whether llama.cpp keeps the rows of this tensor in another order than the published model."""
        match = _BLOCK.fullmatch(tensor)
        return self.architecture in PERMUTED and match is not None and match["name"] in _HEADS

    def heads_of(self, tensor: str) -> int | None:
        """The number of heads of a tensor of q or k, or None where it is not known or there are none."""
        match = _BLOCK.fullmatch(tensor)
        return None if match is None else self.heads.get(match["name"])


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` with the keys of its ``text_config`` in the place of its own, as models with images have it."""
    inner = config.get("text_config")
    return {**config, **cast("dict[str, Any]", inner), "text_config": None} if isinstance(inner, dict) else dict(config)


def permuted(B: NDArray[Any], heads: int, site: str) -> NDArray[Any]:
    """B [out, rank] with its rows in llama.cpp's order.

    Raises:
        AdapterError: where the rows cannot be cut into that many heads.
    """
    rows = rows_of_a_head(B.shape[0], heads, site)
    return B.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(B.shape)


def unpermuted(B: NDArray[Any], heads: int, site: str) -> NDArray[Any]:
    """B [out, rank] with its rows as published: the inverse of ``permuted``.

    Raises:
        AdapterError: where the rows cannot be cut into that many heads.
    """
    rows = rows_of_a_head(B.shape[0], heads, site)
    return B.reshape(heads, rows // 2, 2, -1).swapaxes(1, 2).reshape(B.shape)


def rows_of_a_head(rows: int, heads: int, site: str) -> int:
    """The rows of one head.

    Raises:
        AdapterError: where the rows cannot be cut into that many heads.
    """
    if rows % (2 * heads):
        raise AdapterError(
            "the rows of B cannot be cut into the heads that are stated",
            key=site,
            expected=f"a multiple of {2 * heads}",
            found=rows,
        )
    return rows // heads
