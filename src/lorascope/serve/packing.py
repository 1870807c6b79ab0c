"""``serve_pack``: adapters of one base in the shapes that multi-adapter servers load.

    index.json                  what is where, and how far each adapter is from what it was
    rank-16.safetensors         of each group of like rank:  <site>.B [n, out, rank],  <site>.A [n, rank, in]
    peft/<name>/                each adapter as a PEFT folder, all of one rank, of the same sites, alpha = rank

Ranks are rounded up to those that servers compile kernels for, factors filled up with zeros, a site that an adapter
lacks with zeros: none of it changes ΔW. Ranks above the limit are cut, each site optimally.

vLLM takes one ``r`` and ``lora_alpha`` from adapter_config.json for all sites (no ``rank_pattern``), refuses DoRA,
biases and ``modules_to_save``, and allocates every slot for ``max_lora_rank``, which must be one of ``RANKS``; SGLang
matches short names in ``target_modules``. So the scale goes into the factors and the names are short ones.

Source: https://github.com/vllm-project/vllm, vllm/lora/peft_helper.py, vllm/config/lora.py;
https://github.com/sgl-project/sglang; S-LoRA, arXiv 2311.03285; Punica, arXiv 2310.18547.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, LowRank, Provenance, Update
from lorascope.compress.names import told_apart
from lorascope.compress.resize import resize
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats import format_named, write
from lorascope.formats.dtypes import floating_dtype
from lorascope.formats.numbered_sites import check_named
from lorascope.formats.output_file import written_folder
from lorascope.formats.output_name import check_folder
from lorascope.formats.source import CONFIG_NAME
from lorascope.formats.stream_file import Unit, site_unit, write_units
from lorascope.symmetry.common_sites import CommonSites
from lorascope.symmetry.site_names import named_alike
from lorascope.symmetry.truncation import Cut

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM has kernels for."""

VERSION = 1

Form = Literal["stacks", "peft", "both"]


@dataclass(frozen=True)
class ServedAdapter:
    """``name`` in the files; ``rank`` of its group, ``place`` in the group; how far ΔW is from what it was."""

    name: str
    source: str
    rank: int
    place: int
    relative_error: float


@dataclass(frozen=True)
class Served:
    """What was written: the adapters in order, the rank of the PEFT folders, what was left out in words, the dtype."""

    output: str
    adapters: tuple[ServedAdapter, ...]
    sites: Mapping[str, tuple[int, int]]
    peft_rank: int | None
    left_out: tuple[str, ...] = ()
    dtype: str = "float16"

    def as_dict(self) -> dict[str, Any]:
        """The index as it is written."""
        groups: dict[int, list[str]] = {}
        for adapter in self.adapters:
            groups.setdefault(adapter.rank, []).append(adapter.name)
        return {
            "schema_version": VERSION,
            "dtype": self.dtype,
            "sites": {site: list(shape) for site, shape in self.sites.items()},
            "groups": [{"file": _file(rank), "rank": rank, "adapters": groups[rank]} for rank in sorted(groups)],
            "peft": None if self.peft_rank is None else {"folder": "peft", "rank": self.peft_rank},
            "adapters": [
                {"name": one.name, "source": one.source, "rank": one.rank, "place": one.place,
                 "relative_error": one.relative_error}
                for one in self.adapters
            ],
            "left_out": list(self.left_out),
        }  # fmt: skip


def serve_pack(
    adapters: Sequence[Adapter],
    output: Path,
    names: Sequence[str] | None = None,
    *,
    max_rank: int = 64,
    form: Form = "both",
    dtype: DTypeLike = np.float16,
    is_any_base: bool = False,
    is_loss_allowed: bool = False,
    is_overwritten: bool = False,
    advance: Callable[[int], Any] | None = None,
) -> Served:
    """Write adapters for a multi-adapter server into a new folder, whole or not at all.

    Args:
        adapters: of one base; they are held in memory, in ``dtype``.
        output: a folder that is not there yet, or is empty.
        names: of the adapters; made fit for file names.
        max_rank: larger ranks are cut to it.
        form: stacks for each group of like rank, PEFT folders of one rank, or both.
        dtype: of the factors.
        is_any_base: take adapters that name different base models.
        is_loss_allowed: leave out saved tensors and changes of biases instead of refusing.
        is_overwritten: replace a folder with no other files than are written.
        advance: called with the number of adapters done.

    Raises:
        AdapterError: where the adapters are not of one base, or something has no place.
        LorascopeError: for a rank or form that has no meaning.
        OutputError: where there is something at the output already, or it cannot be written.

    >>> import tempfile
    >>> one = Adapter({"m.q": LowRank(np.eye(4, 2), np.eye(2, 3))})
    >>> served = serve_pack([one, one], Path(tempfile.mkdtemp()) / "out", ["a", "a"])
    >>> [(adapter.name, adapter.rank, adapter.relative_error) for adapter in served.adapters]
    [('a', 8, 0.0), ('a-2', 8, 0.0)]
    """
    if form not in ("stacks", "peft", "both"):
        raise LorascopeError("no such form", key="form", expected="stacks, peft or both", found=form)
    if not adapters:
        raise LorascopeError("there are no adapters", expected="one or more")
    check_folder(output, None, is_overwritten=is_overwritten)
    kind = floating_dtype(dtype)
    common = CommonSites.of(named_alike(adapters), names, is_any_base=is_any_base)
    left_out: list[str] = []
    small: list[Adapter] = []
    errors: list[float] = []
    for adapter, name in zip(common.adapters, common.names, strict=True):
        plain = _plain(adapter, name, left_out, is_loss_allowed=is_loss_allowed)
        try:
            resized = resize(plain, Cut(rank=max_rank), dtype=kind)
        except AdapterError as error:
            error.file = error.file or name
            raise
        small.append(resized.adapter)
        errors.append(resized.relative_error)
        if advance is not None:
            advance(1)
    ranks = [_rounded(max(update.rank for update in one.values()), max_rank) for one in small]
    plain_names = told_apart(common.names)
    served = Served(
        str(output),
        tuple(
            ServedAdapter(plain_names[at], common.names[at], ranks[at], ranks[:at].count(ranks[at]), errors[at])
            for at in range(len(small))
        ),
        {site: common.example(site).shape for site in common.all},
        max(ranks) if form != "stacks" else None,
        tuple(left_out),
        kind.name,
    )
    index = served.as_dict()
    if form == "peft":
        index["groups"] = []
    check_folder(output, _files(ranks, plain_names, form), is_overwritten=is_overwritten)
    with written_folder(output, is_replaced=is_overwritten) as folder:
        if form != "peft":
            for rank in sorted(set(ranks)):
                members = [one for one, own in zip(small, ranks, strict=True) if own == rank]
                units = [_unit(common, site, members, rank, kind) for site in common.all]
                write_units(folder / _file(rank), units, {"format": "pt"})
        if form != "stacks":
            for one, name in zip(small, plain_names, strict=True):
                _write_peft(common, one, folder / "peft" / name, max(ranks), kind)
        (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    return served


def _file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _files(ranks: Sequence[int], names: Sequence[str], form: Form) -> list[str]:
    """All files that are written, relative to the folder."""
    stacks = [_file(rank) for rank in ranks] if form != "peft" else []
    folders = names if form != "stacks" else ()
    peft = [f"peft/{name}/{file}" for name in folders for file in format_named("peft").folder_files]
    return ["index.json", *stacks, *peft]


def _rounded(rank: int, limit: int) -> int:
    """The next rank that servers have kernels for, at most the limit.

    >>> _rounded(4, 64), _rounded(17, 64), _rounded(17, 24)
    (8, 32, 24)
    """
    return min(limit, next((one for one in RANKS if one >= rank), rank))


def _plain(adapter: Adapter, name: str, left_out: list[str], *, is_loss_allowed: bool) -> Adapter:
    """The adapter without what servers have no place for; refused where that is not allowed."""
    unnamed = check_named(adapter, format_named("peft"), name, is_loss_allowed=is_loss_allowed)
    what = [f"the tensor {key}" for key in adapter.leftovers]
    what += [f"the change of the bias at {site}" for site, update in adapter.items() if update.bias is not None]
    if what and not is_loss_allowed:
        raise AdapterError(
            "servers have no place for tensors that are saved whole, nor for changes of biases",
            file=name,
            found=what[0] + (f" and {len(what) - 1} more" if len(what) > 1 else ""),
            hint="--allow-loss leaves them out",
        )
    for site, update in adapter.items():
        if update.needs not in ("nothing",):
            raise AdapterError(
                "servers have no place for this kind of update", file=name, key=site, found=update.kind,
                hint="extract a low-rank adapter from the base it was baked into",
            )  # fmt: skip
    left_out += [f"{one} of {name}" for one in what] + ([f"names of layers of {name}: {unnamed}"] if unnamed else [])
    sites = {
        site: replace(update, bias=None) if isinstance(update, LowRank) else update for site, update in adapter.items()
    }
    return replace(adapter, sites=sites, leftovers={}, original=None)


def _filled(common: CommonSites, adapter: Adapter, site: str, rank: int, dtype: np.dtype[Any]) -> LowRank:
    """The update of a site filled up with zeros to a rank; zeros alone where the adapter has none."""
    example = common.example(site)
    out, in_ = example.shape
    B, A = np.zeros((out, rank), dtype), np.zeros((rank, in_), dtype)
    if site in adapter:
        own = adapter[site].stored
        B[:, : own["B"].shape[1]], A[: own["A"].shape[0]] = own["B"], own["A"]
    return LowRank(B, A, layer=example.layer, kernel=example.kernel, is_transposed=example.is_transposed)


def _unit(common: CommonSites, site: str, members: Sequence[Adapter], rank: int, dtype: np.dtype[Any]) -> Unit:
    def stacked() -> dict[str, NDArray[Any]]:
        pairs = [_filled(common, one, site, rank, dtype) for one in members]
        return {f"{site}.B": np.stack([one.B for one in pairs]), f"{site}.A": np.stack([one.A for one in pairs])}

    return site_unit(site, stacked)


def _write_peft(common: CommonSites, adapter: Adapter, path: Path, rank: int, dtype: np.dtype[Any]) -> None:
    sites: dict[str, Update] = {site: _filled(common, adapter, site, rank, dtype) for site in common.all}
    base = next((one.provenance.base_model for one in common.adapters if one.provenance.base_model), None)
    write(Adapter(sites, Provenance(base_model=base)), path, format="peft")
    config_path = path / CONFIG_NAME
    config = json.loads(config_path.read_text())
    short = sorted({site.rpartition(".")[2] for site in config.get("target_modules") or ()})
    if short and not any(name.isdigit() for name in short):  # the number of a layer in a list says nothing
        config["target_modules"] = short
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
