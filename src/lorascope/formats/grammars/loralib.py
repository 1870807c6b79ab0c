"""loralib: ``<site>.lora_A`` and ``<site>.lora_B``, without ``.weight``; the scale is in no file.

    linear       A [rank, in]              B [out, rank]               ΔW = scale · B · A
    embedding    A [rank, count]           B [dim, rank]               told by its name
    merged       A [groups · rank, in]     B [groups · rows, rank]     group g of the fused layer: B_g · A_g
    convolution  A [rank · k, in · k]      B [out · k, rank · k]       ΔW = (B · A) in the shape [out, in, k, k]

The groups of a merged layer (q and v of a fused q, k, v) become one site each, ``<site>[0]``, ``<site>[1]``; which
rows of the layer they change is not in the file. A convolution is known only where its weight lies in the file too; its
factors are those of the reshaped product, of rank k² · rank. The scale is lora_alpha/rank with lora_alpha chosen in
the training script; without it lora_alpha is taken as 1, the library's default.

Files that are written have the scale in B for that default (in float32 where the product is not exact in the dtype of
B), so that a model built without lora_alpha and loaded with ``load_state_dict(strict=False)`` has it right, and state
the alpha of 1 beside each site, which the library passes over.

Source: https://github.com/microsoft/LoRA, loralib/layers.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, Layer, LowRank, Note, Provenance, Update
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError
from lorascope.formats.contents import Contents, Tensors
from lorascope.formats.dtypes import cast_to
from lorascope.formats.embedding_names import is_embedding
from lorascope.formats.folding import times, widened_times
from lorascope.formats.given_scale import is_scale_open
from lorascope.formats.notes import assumed_scale_note, leftover_notes
from lorascope.formats.pairs import Halves, Scale
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.peft_fields import padded
from lorascope.formats.pickle_output import SUFFIXES, write_pickle
from lorascope.formats.plain_factors import outlined
from lorascope.formats.refusals import at_site, check
from lorascope.formats.registry import SPECIFIC, Evidence, Format
from lorascope.formats.scalars import stated_alpha
from lorascope.formats.stream_file import site_unit, units_of, write_units
from lorascope.formats.unedited_file import is_unedited
from lorascope.formats.unscaled_file import plain_update

_GROUP = re.compile(r"(?P<site>.+)\.#(?P<group>\d{1,6})", re.DOTALL)
_FACTOR = re.compile(r"(?P<site>.+)\.lora_(?P<half>[AB])", re.DOTALL)


def recognise_loralib(contents: Contents) -> Evidence | None:
    """Keys that end ``lora_A`` and ``lora_B`` where others have ``.weight`` after it."""
    key = next((key for key in contents.tensors if key.endswith((".lora_A", ".lora_B"))), None)
    return None if key is None else Evidence(SPECIFIC, f"keys such as {key[-80:]}")


def read_loralib(contents: Contents) -> Adapter:
    """The adapter of a loralib file.

    Raises:
        AdapterError: where a pair is broken or the shapes are those of no layer of loralib.
    """
    halves, leftover_keys, alphas = Halves(), list[str](), dict[str, float | None]()
    for key in contents.tensors:
        if match := _FACTOR.fullmatch(key):
            halves.add(match["site"], "A" if match["half"] == "A" else "B", key)
        else:
            leftover_keys.append(key)
    pairs = halves.checked()
    for key in leftover_keys:
        if key.endswith(".alpha") and (site := key.removesuffix(".alpha")) in pairs:
            alphas[site] = stated_alpha(contents.tensors[key], key)
    sites: dict[str, Update] = {}
    merged: list[str] = []
    assumed: list[str] = []
    for site, (key_b, key_a) in pairs.items():
        alpha = alphas.get(site)
        keys = {"B": key_b, "A": key_a}
        for name, update in _updates(site, contents.tensors, keys, alpha):
            if name in sites:
                raise AdapterError("two tensors are one site", key=name)
            sites[name] = update
            if alpha is None:
                assumed.append(name)
        if site not in sites:
            merged.append(site)
    alpha_keys = {f"{site}.alpha" for site in alphas}
    leftovers = {key: contents.tensors[key] for key in leftover_keys if key not in alpha_keys}
    return Adapter(
        sites=sites,
        provenance=Provenance(format="loralib", kind="lora", path=contents.path, metadata=contents.metadata),
        leftovers=leftovers,
        notes=(*_notes(assumed, merged), *leftover_notes(leftovers, {}, has_whole_layers=True)),
    )


def _notes(assumed: list[str], merged: list[str]) -> list[Note]:
    notes: list[Note] = []
    if assumed:
        why = "scale unknown: lora_alpha is in no loralib file; taken as 1, so that the scale is 1/rank"
        notes.append(assumed_scale_note(assumed, why, is_unknown=True))
    if merged:
        text = f"{len(merged)} fused layers, such as {merged[0]}: which rows its parts change is not in the file"
        notes.append(Note("fused-parts", text, is_doubt=True))
    return notes


def _updates(site: str, tensors: Tensors, keys: Mapping[str, str], alpha: float | None) -> Iterator[tuple[str, Update]]:
    A, B = (Parts(site, {role: tensors[keys[role]] for role in "AB"}, keys).tensor(role, None, None) for role in "AB")
    weight = tensors.get(f"{site}.weight", tensors.get(f"{site}.conv.weight"))
    kernel = None if weight is None else _kernel(weight.shape, A, B)
    if kernel is not None:
        yield site, _convolution(site, A, B, kernel, keys, alpha)
        return
    groups = A.shape[0] // B.shape[1]
    if groups < 1 or A.shape[0] % B.shape[1] or B.shape[0] % groups:
        raise AdapterError(
            "the two factors do not make a product",
            key=site,
            expected="lora_A [groups · rank, in] and lora_B [groups · rows, rank]",
            found=f"{list(A.shape)} and {list(B.shape)}",
        )
    layer: Layer = "embedding" if is_embedding(site) and groups == 1 else "linear"
    is_transposed = weight is not None and _is_transposed(weight.shape, B.shape[0], A.shape[1], groups)
    downs, ups = (factor.reshape(groups, -1, factor.shape[1]) for factor in (A, B))
    for group in range(groups):
        name = site if groups == 1 else f"{site}.#{group}"  # no bracket: the rows are not known
        parts = Parts(
            name,
            {"A": downs[group], "B": ups[group]},
            keys,
            lambda rank: _scale(alpha, rank),
            layer,
            is_transposed,
        )
        yield name, built("lora", parts)


def _scale(alpha: float | None, rank: int) -> Scale:
    return Scale(1.0 / rank, None, is_assumed=True) if alpha is None else Scale(alpha / rank, alpha)


def _is_transposed(shape: tuple[int, ...], out: int, in_: int, groups: int) -> bool:
    """Whether the weight in the file is stored as [in, out]; a fused layer has more rows than its groups."""
    if len(shape) != 2 or shape[0] == shape[1]:
        return False
    return shape == (in_, out) if groups == 1 else shape[0] == in_ and shape[1] >= out


def _kernel(shape: tuple[int, ...], A: NDArray[Any], B: NDArray[Any]) -> tuple[int, int, int] | None:
    """(channels, k, k) of the convolution whose weight has that shape; None where the factors are not its."""
    if len(shape) != 4 or shape[2] != shape[3]:
        return None
    out, channels, k, _ = shape
    is_its = A.shape[1] == channels * k and B.shape[0] == out * k and A.shape[0] == B.shape[1] and not A.shape[0] % k
    return (channels, k, k) if is_its else None


def _convolution(
    site: str, A: NDArray[Any], B: NDArray[Any], kernel: tuple[int, int, int], keys: Mapping[str, str], alpha: Any
) -> LowRank:
    """The product as rows [out, k · (in · k)]: block c of the columns is B[:, c] · A, so A stands in k blocks."""
    k = kernel[1]
    inner, width = A.shape
    check_room(k * inner, k * width, what="a factor of the convolution", key=site)
    down = np.zeros((k, inner, k, width), A.dtype)
    for block in range(k):
        down[block, :, block] = A
    up = B.reshape(-1, k * inner)
    scale = _scale(alpha, inner // k)
    return LowRank(
        up,
        down.reshape(k * inner, k * width),
        scale.scale,
        layer="conv2d",
        kernel=kernel,
        alpha=scale.alpha,
        keys=(keys["B"], keys["A"]),
    )


def write_loralib(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write a state dict: with ``torch.save`` where the suffix is one of PyTorch's, else as safetensors.

    The parts of a merged layer, ``<site>.#0`` …, become one layer again. An unedited adapter of this format is written
    as it was.

    Raises:
        AdapterError: where loralib has no layer of that kind, or a file would not tell which it is.
        MissingExtraError: for a pickled file without PyTorch.
        OutputError: where the file cannot be written.
    """
    is_own = adapter.provenance.format == "loralib"
    if is_unedited(adapter, ("loralib",), dtype):
        units = units_of(adapter.original or {})
    elif not adapter:
        raise AdapterError("an adapter without sites cannot be written to this format")
    else:
        check(loralib_refusals(adapter))
        is_assumed = is_own and is_scale_open(adapter)
        units = [
            site_unit(
                name, _layer_tensors, name, [adapter[site] for _, site in sorted(sites.items())], dtype, is_assumed
            )
            for name, sites in _layers(adapter).items()
        ]
        units += units_of(adapter.leftovers if is_own else {})
    if path.suffix.lower() in SUFFIXES:
        write_pickle(path, {name: tensor for unit in units for name, tensor in unit().items()})
    else:
        write_units(path, units, adapter.provenance.metadata if is_own else None)


def loralib_refusals(adapter: Adapter) -> Iterator[AdapterError]:
    """An error for each site that a loralib file has no place for, beside the others that there are."""
    leftovers: Tensors = adapter.leftovers if adapter.provenance.format == "loralib" else {}
    plain: dict[str, LowRank] = {}
    for site, update in adapter.items():
        match = _GROUP.fullmatch(site)
        try:
            plain[site] = _plain(site, site if match is None else match["site"], outlined(update), leftovers)
        except AdapterError as error:
            yield at_site(error, site)
    for sites in _layers(plain).values():
        is_whole = sorted(sites) in ([-1], list(range(max(len(sites), 2))))
        if not is_whole or len({(plain[site].shape, plain[site].rank) for site in sites.values()}) > 1:
            for site in sites.values():
                yield AdapterError(
                    "the parts of a merged layer do not fit together",
                    key=site,
                    expected="parts #0 … #n of one shape and rank",
                    found=f"{len(sites)} parts",
                )


def _layers(sites: Iterable[str]) -> dict[str, dict[int, str]]:
    """Layer → number of the part, −1 of a layer without parts → site."""
    layers: dict[str, dict[int, str]] = {}
    for site in sites:
        match = _GROUP.fullmatch(site)
        name, group = (site, -1) if match is None else (match["site"], int(match["group"]))
        layers.setdefault(name, {})[group] = site
    return layers


def _layer_tensors(
    name: str, updates: Sequence[Update], dtype: DTypeLike | None, is_assumed: bool
) -> dict[str, NDArray[Any]]:
    plain = [plain_update(update) for update in updates]
    # the library divides its default lora_alpha of 1 by the rank
    factors = [one.scale * one.rank for one in plain]
    Bs = [
        widened_times(one.B, factor) if dtype is None else times(one.B, factor, dtype)
        for one, factor in zip(plain, factors, strict=True)
    ]
    As = [one.A if dtype is None else cast_to(one.A, dtype) for one in plain]
    tensors = {f"{name}.lora_A": np.concatenate(As), f"{name}.lora_B": np.concatenate(Bs)}
    if is_assumed and all(one.alpha is None for one in plain):  # an assumption is not made a statement
        return tensors
    return tensors | {f"{name}.alpha": np.array(1.0, np.float32)}


def _plain(site: str, name: str, update: Update, leftovers: Tensors) -> LowRank:
    """The update, where a loralib file tells its layer; what tells it is a name or a weight in the file."""
    if not isinstance(update, LowRank):
        raise AdapterError("loralib files hold only LoRA", key=site, found=update.kind)
    if update.bias is not None:
        raise AdapterError("loralib has no bias beside a LoRA", key=site)
    if update.layer not in ("linear", "embedding"):
        raise AdapterError(
            "loralib factors a convolution in another way, of another rank",
            key=site,
            expected="linear, embedding",
            found=update.layer,
        )
    is_rows = is_embedding(site) and site == name
    weight = leftovers.get(f"{name}.weight")
    is_turned = weight is not None and _is_transposed(weight.shape, *update.shape, 1 if site == name else 2)
    if (update.layer == "embedding") != is_rows or update.is_transposed != (is_rows or is_turned):
        raise AdapterError(
            "a loralib file tells embeddings by name and transposed layers by their weights, and tells wrong here",
            key=site,
            expected="an embedding under a name of one, or a layer stored as [out, in]",
            found=f"{'transposed ' * update.is_transposed}{update.layer}",
        )
    return padded(update)


FORMATS = (
    Format(
        name="loralib",
        title="loralib",
        reference="https://github.com/microsoft/LoRA",
        recognise=recognise_loralib,
        read=read_loralib,
        write=write_loralib,
        refusals=loralib_refusals,
        kinds=("lora",),
        writes=("lora",),
        files="`<site>.lora_A`/`.lora_B`: linear, merged, convolution, embedding; also ComfyUI's mochi names",
        other_suffixes=SUFFIXES,
    ),
)
