"""GGUF adapters of llama.cpp: ``blk.0.attn_q.weight.lora_a`` and ``.lora_b``, ``general.type`` = ``adapter``.

    lora_a [rank, in]   lora_b [out, rank]    ΔW = scale · lora_b · lora_a;   experts: a leading axis on both
    token_embd          lora_a [count, rank], that is transposed
    scale = alpha/rank, or 1 where ``adapter.lora.alpha`` is 0 or missing

Sites get the base model's own module names where the architecture is one of those in ``gguf_names``; others keep
GGUF's. The converter puts the rows of q and k of llama-type models into another order, and B's rows with them. That is
undone where the numbers of heads are given or the file states them; files of the converter do not, so there q and k
keep their GGUF names. The converter drops what GGUF has no field for: an rsLoRA adapter, or one with patterns of alpha,
has another scale in GGUF than in the PEFT folder it was made from, and nothing in the file tells. ``gguf_form`` writes.

Source: https://github.com/ggml-org/llama.cpp, convert_lora_to_gguf.py, src/llama-adapter.cpp (``get_scale`` in
src/llama-adapter.h), and gguf-py/gguf/tensor_mapping.py for the names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from lorascope.adapter import Adapter, Layer, Note, Provenance, Update
from lorascope.errors import AdapterError
from lorascope.formats.config_file import checked_alpha
from lorascope.formats.contents import Contents
from lorascope.formats.gguf_file import dense_shape, is_in_blocks
from lorascope.formats.gguf_form import ALORA_TOKENS, BASE_NAME, NEEDED, gguf_refusals, write_gguf_adapter
from lorascope.formats.gguf_names import EMBEDDING, BaseShape, rows_of_a_head
from lorascope.formats.gguf_pair import GgufPair
from lorascope.formats.notes import leftover_notes
from lorascope.formats.pairs import Halves, Scale
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.registry import STATED, Evidence, Format

_PAIR = re.compile(r"(?P<tensor>.+)\.lora_(?P<half>[ab])", re.DOTALL)


def recognise_gguf(contents: Contents) -> Evidence | None:
    """The container is GGUF; whether it is an adapter is said when it is read."""
    # above STATED: a configuration beside the file is that of the folder it was converted from
    return Evidence(STATED + 10, "a GGUF file") if contents.container == "gguf" else None


def read_gguf_adapter(contents: Contents) -> Adapter:
    """The adapter of a GGUF file.

    Raises:
        AdapterError: where the file is a model or another kind of adapter, alpha is no number, or a pair is broken.
    """
    fields = contents.metadata
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora")):
        if fields.get(key) != expected:
            raise AdapterError(
                "no LoRA adapter, although the file is GGUF",
                key=key,
                expected=expected,
                found=repr(fields.get(key, "nothing"))[:80],
            )
    halves, leftover_keys = Halves(), list[str]()
    for key in contents.tensors:
        if match := _PAIR.fullmatch(key):
            halves.add(match["tensor"].removesuffix(".weight"), "A" if match["half"] == "a" else "B", key)
        else:
            leftover_keys.append(key)
    alpha = _alpha(fields)
    names = _Names(fields, contents.base_config)
    sites: dict[str, Update] = {}
    for tensor, (key_b, key_a) in halves.checked().items():
        name = names(tensor)
        keys = {"A": key_a, "B": key_b}
        for site, down, up in _factors(name, tensor, contents.tensors[key_a], contents.tensors[key_b]):
            sites[site] = _update(site, down, up, keys, tensor, names.heads_of(tensor), alpha)
    leftovers = {key: contents.tensors[key] for key in leftover_keys}
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format="gguf",
            kind="lora",
            path=contents.path,
            base_model=fields.get(BASE_NAME) or None,
            metadata=fields,
            base_config=names.base.as_config(),
        ),
        leftovers=leftovers,
        notes=(*names.notes(), *_variants(fields), *leftover_notes(leftovers, {})),
    )


def _scale(alpha: float, rank: int) -> Scale:
    return Scale(alpha / rank, alpha) if alpha else Scale(1.0, None)


def _alpha(fields: Mapping[str, str]) -> float:
    return checked_alpha(_value(fields, "adapter.lora.alpha", 0.0), "adapter.lora.alpha")


def _value(fields: Mapping[str, str], key: str, default: Any) -> Any:
    """A field that is no string; strings that are no JSON come back as they are."""
    try:
        return json.loads(fields[key]) if key in fields else default
    except (ValueError, RecursionError):
        return fields[key]


def _variants(fields: Mapping[str, str]) -> list[Note]:
    if ALORA_TOKENS not in fields:
        return []
    text = f"{ALORA_TOKENS}: activated LoRA: it acts only after its invocation tokens"
    return [Note("config-variant", text, is_doubt=True)]


class _Names:
    """The module names of an architecture, and where the rows of B are to be put back."""

    def __init__(self, fields: Mapping[str, str], given: Mapping[str, Any]) -> None:
        architecture = fields.get("general.architecture", "")
        prefix = f"{architecture}.attention.head_count"
        stated = {
            "num_attention_heads": _value(fields, prefix, None),
            "num_key_value_heads": _value(fields, f"{prefix}_kv", None),
        }
        self.base = replace(BaseShape.of(stated), architecture=architecture)
        known = BaseShape.of(given)
        if known.architecture and known.architecture != architecture:
            raise AdapterError(
                "the base model that was given is of another architecture than the file",
                key="general.architecture",
                expected=known.architecture,
                found=ascii(architecture)[:80],
            )
        if not self.base.heads:
            self.base = replace(self.base, heads=known.heads)
        self._kept: list[str] = []
        self._unknown: list[str] = []

    def __call__(self, tensor: str) -> str:
        """The site's name for a tensor of the file, without ``.weight``."""
        site = self.base.site_of(tensor)
        if site is None:
            self._unknown.append(tensor)
            return tensor
        if self.base.is_permuted(tensor) and self.base.heads_of(tensor) is None:
            self._kept.append(tensor)
            return tensor
        return site

    def heads_of(self, tensor: str) -> int:
        """In how many heads the rows of B are to be put back as the published model has them; 0 where they are."""
        heads = self.base.heads_of(tensor)
        return heads if heads is not None and self.base.is_permuted(tensor) else 0

    def notes(self) -> list[Note]:
        """What keeps GGUF's names, and why."""
        notes: list[Note] = []
        if self._kept:
            text = f"{len(self._kept)} sites of q and k keep GGUF's names: their rows are in llama.cpp's order, and "
            text += "the file does not state the numbers of heads to undo it"
            notes.append(Note("permuted-rows", text, is_doubt=True))
        if self._unknown:
            text = f"{len(self._unknown)} sites keep GGUF's names, such as {self._unknown[0]}"
            notes.append(Note("gguf-names", text))
        return notes


def _factors(name: str, tensor: str, A: NDArray[Any], B: NDArray[Any]) -> list[tuple[str, NDArray[Any], NDArray[Any]]]:
    """(site, A [rank, in], B [out, rank]), A of token_embd as [in, rank]; one entry for each expert."""
    is_cut = A.ndim == 1 and B.ndim == 2 and dense_shape(B)[1] == 1  # ggml drops axes of length 1 at the end
    if A.ndim == B.ndim == 2 or is_cut:
        return [(name, A.reshape((-1, 1) if tensor == EMBEDDING else (1, -1)) if is_cut else A, B)]
    if A.ndim != 3 or B.ndim != 3 or A.shape[0] != B.shape[0] or not A.size:
        raise AdapterError(
            "the two factors do not make a product",
            key=name,
            expected="lora_a [rank, in] and lora_b [out, rank], or both with one axis of experts before",
            found=f"{list(dense_shape(A))} and {list(dense_shape(B))}",
        )
    return [(f"{name}[{expert}]", down, up) for expert, (down, up) in enumerate(zip(A, B, strict=True))]


def _update(
    site: str, A: NDArray[Any], B: NDArray[Any], keys: Mapping[str, str], tensor: str, heads: int, alpha: float
) -> Update:
    """The update of one site; what is not stored as plain rows of numbers is widened when it is asked for."""
    is_turned = tensor == EMBEDDING
    layer: Layer = "embedding" if is_turned else "linear"
    if not heads and not is_in_blocks(A) and not is_in_blocks(B):
        factors = {"A": A.T if is_turned else A, "B": B}
        return built("lora", Parts(site, factors, keys, lambda rank: _scale(alpha, rank), layer))
    out, rank = dense_shape(B)
    if rank != dense_shape(A)[1 if is_turned else 0] or not A.size or not B.size:
        raise AdapterError(
            "the two factors do not make a product",
            key=site,
            expected="lora_a [rank, in] and lora_b [out, rank] of one rank",
            found=f"{list(dense_shape(A))} and {list(dense_shape(B))}",
        )
    if heads:
        rows_of_a_head(out, heads, site)
    scale = _scale(alpha, rank)
    return GgufPair.of(B, A, keys, heads=heads, is_turned=is_turned, scale=scale.scale, alpha=scale.alpha, layer=layer)


FORMATS = (
    Format(
        name="gguf",
        title="GGUF LoRA",
        reference="https://github.com/ggml-org/llama.cpp",
        recognise=recognise_gguf,
        read=read_gguf_adapter,
        write=write_gguf_adapter,
        refusals=gguf_refusals,
        suffix=".gguf",
        base_field=BASE_NAME,
        needed_metadata=NEEDED,
        site_examples=(
            *(f"model.layers.{layer}.self_attn.{name}" for layer in (0, 11) for name in ("q_proj", "v_proj")),
            "model.layers.1.mlp.down_proj",
        ),
        kinds=("lora",),
        writes=("lora",),
        files="`.gguf` adapters of llama.cpp: F32, F16, BF16, F64, Q8_0",
    ),
)
