"""An adapter as a GGUF file that llama.cpp loads.

    blk.N.….weight.lora_a [rank, in]    blk.N.….weight.lora_b [out, rank]    adapter.lora.alpha, one for the whole file

llama.cpp computes with (alpha / rank) · lora_b · lora_a, the rank being that of the site. The alpha that gives most
sites their scale is taken. At the others lora_b is multiplied by the ratio, in its own dtype where the product is
exact, else in float32. float64 and float8 become float32, since llama.cpp does not multiply by them. Rows of q and k of
llama-type models go into llama.cpp's order; the file then states the numbers of heads, which llama.cpp does not look
at.

Source: https://github.com/ggml-org/llama.cpp, src/llama-adapter.cpp and convert_lora_to_gguf.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, LowRank, Update
from lorascope.adapter.site import expert_of, experts_of
from lorascope.errors import AdapterError
from lorascope.formats.dtypes import cast_to
from lorascope.formats.folding import times, widened_times
from lorascope.formats.gguf_file import GGUFFields, dense
from lorascope.formats.gguf_names import BLOCK_NAMES, EMBEDDING, PERMUTED, BaseShape, permuted
from lorascope.formats.gguf_output import Field, write_gguf_units
from lorascope.formats.output_file import replaced_file
from lorascope.formats.peft_fields import padded
from lorascope.formats.plain_factors import outlined, worked_out
from lorascope.formats.refusals import at_site, check
from lorascope.formats.stream_file import Unit, site_unit, units_of

BASE_NAME = "general.base_model.0.name"
"""The field that names the base model."""

ALORA_TOKENS = "adapter.alora.invocation_tokens"
"""The field of the tokens after which an activated LoRA acts."""

NEEDED = frozenset(
    {
        *("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha", ALORA_TOKENS),
        *(BASE_NAME, "general.base_model.count"),  # as PEFT's configuration, they stay when metadata are stripped
        *(f"{name}.attention.head_count{end}" for name in PERMUTED for end in ("", "_kv")),
    }
)
"""The fields that a file is not understood without."""

_REPLACED = ("general.alignment", "general.file_type", "general.quantization_version")
_DTYPES = ("float32", "float16", "bfloat16")
_FLOAT32_EPS = float(np.finfo(np.float32).eps)


def write_gguf_adapter(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one file as llama.cpp loads it; an unedited adapter of this format is copied byte for byte.

    The architecture, and the numbers of heads where q and k of llama-type models are adapted, come from
    ``provenance.base_config``.

    Raises:
        AdapterError: where the architecture or the heads are not known, or GGUF has no place for a site.
        OutputError: where the file cannot be written.
    """
    provenance = adapter.provenance
    fields: Mapping[str, str] = provenance.metadata if provenance.format == "gguf" else {}
    is_unedited = adapter.original is not None and dtype is None
    if is_unedited and isinstance(fields, GGUFFields) and (fields.get(BASE_NAME) or None) == provenance.base_model:
        with replaced_file(path) as temporary, temporary.open("wb") as stream:
            stream.write(fields.image)
        return
    if dtype is not None and np.dtype(dtype).name not in _DTYPES:
        raise AdapterError(
            "llama.cpp does not compute with this dtype", expected=", ".join(_DTYPES), found=np.dtype(dtype).name
        )
    if not adapter:
        raise AdapterError("an adapter without sites cannot be written to this format")
    base = BaseShape.of(provenance.base_config)
    if not base.architecture:
        raise AdapterError(
            "a GGUF adapter states the architecture of its base, and it is not known",
            expected=f"a model_type such as {', '.join(list(BLOCK_NAMES)[:4])}",
            hint="give its folder or config.json with --base (base_config=), or name it with --architecture",
        )
    check(gguf_refusals(adapter))
    tensors_of = {site: _tensor_of(site, base) for site in adapter}
    _check_heads(tensors_of, base)
    alpha = _common_alpha({site: _plain(outlined(update), tensors_of[site]) for site, update in adapter.items()})
    owners = {name: site for site, name in tensors_of.items()}
    units: list[Unit] = [
        site_unit(site, _site_tensors, site, name, adapter[site], base, alpha, dtype)
        for site, name in tensors_of.items()
        if expert_of(name) is None
    ]
    units += [
        site_unit(
            path, _expert_tensors, path, [adapter[owners[name]] for _, name in sorted(names.items())], alpha, dtype
        )
        for path, names in experts_of(owners).items()
    ]
    if provenance.format == "gguf":
        units += units_of({name: dense(tensor) for name, tensor in adapter.leftovers.items()})
    write_gguf_units(path, _fields(fields, adapter, base, alpha), units)


def gguf_refusals(adapter: Adapter) -> Iterator[AdapterError]:
    """An error for each site that GGUF has no place for, beside the others that there are."""
    base = BaseShape.of(adapter.provenance.base_config)
    if not base.architecture:  # nothing is known of any site, which is told when the file is written
        return
    owners: dict[str, str] = {}
    plain: dict[str, LowRank] = {}
    for site, update in adapter.items():
        try:
            name = _tensor_of(site, base)
            if owners.setdefault(name, site) != site:
                raise AdapterError("two sites are one tensor", found=owners[name])
            plain[name] = _plain(outlined(update), name)
        except AdapterError as error:
            yield at_site(error, site)
    for names in experts_of(plain).values():
        shapes = {(plain[name].shape, plain[name].rank) for name in names.values()}
        if sorted(names) != list(range(len(names))) or len(shapes) > 1:
            for name in names.values():
                yield AdapterError(
                    "all experts of a layer are one tensor in this format, and these do not fit together",
                    key=owners[name],
                    expected="experts 0 … n of one shape and rank",
                    found=f"{len(names)} experts, {len(shapes)} shapes, the last number {max(names)}",
                )


def _site_tensors(
    site: str, name: str, update: Update, base: BaseShape, alpha: float, dtype: DTypeLike | None
) -> dict[str, NDArray[Any]]:
    plain = _plain(worked_out(update), name)
    heads = base.heads_of(name) if base.is_permuted(name) and name != site else None
    up, A = _scaled(plain, alpha, dtype), _cast(plain.A, dtype)
    B = up if heads is None else permuted(up, heads, site)
    return _pair(name, A.T if name == EMBEDDING else A, B)


def _expert_tensors(
    path: str, updates: Sequence[Update], alpha: float, dtype: DTypeLike | None
) -> dict[str, NDArray[Any]]:
    plain = [_plain(worked_out(update), path) for update in updates]
    ups, downs = [_scaled(one, alpha, dtype) for one in plain], [_cast(one.A, dtype) for one in plain]
    return _pair(path, _stacked(downs), _stacked(ups))


def _stacked(tensors: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Experts as one tensor; where a scale has widened some of them, all of them are."""
    kinds = {tensor.dtype for tensor in tensors}
    return np.stack(tensors if len(kinds) == 1 else [tensor.astype(np.float32) for tensor in tensors])


def _pair(name: str, A: NDArray[Any], B: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{name}.weight.lora_a": A, f"{name}.weight.lora_b": B}


def _tensor_of(site: str, base: BaseShape) -> str:
    """The tensor of a site without ``.weight``; that of an expert with the bracket of its site."""
    expert = expert_of(site)
    name = base.tensor_of(site if expert is None else expert[0])
    if name is None:
        raise AdapterError(
            f"no tensor of llama.cpp's {base.architecture} is known for this module",
            key=site,
            expected="a module such as model.layers.0.mlp.up_proj"
            if base.is_known
            else f"an architecture of {', '.join(BLOCK_NAMES)}",
        )
    return name if expert is None else f"{name}[{expert[1]}]"


def _plain(update: Update, name: str) -> LowRank:
    if not isinstance(update, LowRank):
        raise AdapterError("GGUF adapters hold only LoRA", found=update.kind)
    if update.layer != ("embedding" if name == EMBEDDING else "linear") or update.bias is not None:
        found = f"{update.layer}{' with a bias' * (update.bias is not None)}"
        raise AdapterError("GGUF has no LoRA for such a layer", expected="linear, no bias", found=found)
    if update.is_transposed != (name == EMBEDDING):
        raise AdapterError("llama.cpp has no layer of this layout", expected="a weight stored as [out, in]")
    return padded(update)


def _check_heads(tensors_of: Mapping[str, str], base: BaseShape) -> None:
    for site, name in tensors_of.items():
        if name != site and base.is_permuted(name) and base.heads_of(name) is None:
            raise AdapterError(
                f"llama.cpp keeps the rows of q and k of {base.architecture} models in another order, and the numbers "
                "of heads are not known to put them into it",
                expected=f"num_attention_heads and num_key_value_heads, for {site}",
                hint="give its folder or config.json with --base (base_config=), or --heads and --kv-heads",
            )


def _common_alpha(updates: Mapping[str, LowRank]) -> float:
    """The alpha, a float32 and not 0, of which alpha / rank is the scale of the most sites."""
    counts: Counter[float] = Counter()
    for update in updates.values():
        with np.errstate(over="ignore", under="ignore"):
            alpha = float(np.float32(update.scale * update.rank))
        if alpha and np.isfinite(alpha):
            counts[alpha] += 1
    return counts.most_common(1)[0][0] if counts else 1.0


def _scaled(update: LowRank, alpha: float, dtype: DTypeLike | None) -> NDArray[Any]:
    """B times what alpha / rank leaves of the scale."""
    ratio = update.scale * update.rank / alpha
    if abs(ratio - 1.0) <= _FLOAT32_EPS:  # the rounding of alpha itself, which llama.cpp computes with in float32
        return _cast(update.B, dtype)
    return times(update.B, ratio, dtype) if dtype is not None else widened_times(_cast(update.B, None), ratio)


def _cast(tensor: NDArray[Any], dtype: DTypeLike | None) -> NDArray[Any]:
    return cast_to(tensor, dtype or (tensor.dtype if tensor.dtype.name in _DTYPES else np.float32))


def _fields(old: Mapping[str, str], adapter: Adapter, base: BaseShape, alpha: float) -> dict[str, Field]:
    """The fields to write, those of the file that was read among them, as they were stored."""
    provenance = adapter.provenance
    kept: Mapping[str, bytes] = old.stored if isinstance(old, GGUFFields) else {}
    fields: dict[str, Field] = {key: value for key, value in kept.items() if key not in _REPLACED}
    fields |= {"general.type": "adapter", "general.architecture": base.architecture, "adapter.type": "lora"}
    fields["adapter.lora.alpha"] = alpha
    for name, key in (("attn_q", "head_count"), ("attn_k", "head_count_kv")):
        if name in base.heads:
            fields[f"{base.architecture}.attention.{key}"] = base.heads[name]
    if provenance.base_model is not None and provenance.base_model != old.get(BASE_NAME):
        fields |= {"general.base_model.count": 1, BASE_NAME: provenance.base_model}
    tokens = provenance.config.get("alora_invocation_tokens")
    if tokens is not None and not isinstance(tokens, list):
        raise AdapterError("no list of tokens", key="alora_invocation_tokens", found=ascii(tokens)[:80])
    if tokens is not None:
        fields[ALORA_TOKENS] = tuple(cast("list[int]", tokens))  # checked where they are written
    return fields
