"""``convert``: an adapter file in another format, its ΔW the same to rounding, and a report of what was lost.

To its own format an unedited adapter is written bit for bit. To another format a site of a kind that the target holds
is written as it is, a structured one of low rank is worked out to plain factors, and what the target cannot hold is
refused, or left out where losses are allowed. What was written is read again and compared, site by site, before it
takes its place: a conversion that moved ΔW by more than the rounding of its dtypes is refused too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lorascope import formats
from lorascope.adapter import Adapter, Expanded, LowRank, Update
from lorascope.conversion.loss import Loss, LossReport, error_of, ratio, rounding_bound
from lorascope.errors import AdapterError, OutputError
from lorascope.formats import Format, format_named
from lorascope.formats.dtypes import cast_to, floating_dtype
from lorascope.formats.output_file import staged
from lorascope.formats.parametrisations.dora import DoRA


def convert(
    source: str | os.PathLike[str] | Adapter,
    target: str | os.PathLike[str],
    *,
    to: str,
    source_format: str | None = None,
    scale: float | None = None,
    mapping: Mapping[str, Any] | None = None,
    dtype: DTypeLike | None = None,
    is_scale_folded: bool = False,
    base_name: str | None = None,
    base_config: Mapping[str, Any] | None = None,
    is_metadata_kept: bool = True,
    is_loss_allowed: bool = False,
) -> LossReport:
    """Write the adapter at ``source`` to ``target`` in the format ``to``.

    Args:
        source: a path, a hub id, or an adapter.
        target: a new folder for formats that are folders (PEFT, MLX), else a file; a file that is there is replaced.
        to: the name of a format that this version writes.
        source_format, scale, mapping: as for ``lorascope.read``.
        dtype: of the factors written, such as ``"float16"``; as stored if None.
        is_scale_folded: multiply the scale into B, so that alpha equals the rank everywhere.
        base_name: the base model's name to write, where the format has a place for it.
        base_config: what is known of the base model's ``config.json``. GGUF files are written from its ``model_type``
            and, where q and k of llama-type models are adapted, its numbers of heads.
        is_metadata_kept: whether metadata go with the tensors where the format is the same; metadata that the tensors
            cannot be understood without always do.
        is_loss_allowed: write what can be written, and report the rest, instead of refusing.

    Raises:
        AdapterError: where something cannot be expressed, is in doubt, or moved by more than rounding, and losses are
            not allowed; it says what. Nothing is written then.
        OutputError: where the target cannot be written.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> adapter = Adapter({"q": LowRank(np.ones((4, 2), np.float32), np.ones((2, 3), np.float32), scale=0.5)})
    >>> report = convert(adapter, f"{folder}/b.safetensors", to="kohya")
    >>> report.relative_error, report.lost
    (0.0, ())
    """
    member = format_named(to)
    kind = None if dtype is None else floating_dtype(dtype)
    if isinstance(source, Adapter):
        adapter, name = source, str(source.provenance.path or "memory")
    else:
        adapter = formats.read(source, format=source_format, scale=scale, mapping=mapping, base_config=base_config)
        name = os.fspath(source)
    if base_config:
        adapter = replace(adapter, provenance=replace(adapter.provenance, base_config=base_config))
    is_same = adapter.provenance.format == to
    plan = _Plan(adapter, is_loss_allowed)
    if not is_same or kind is not None or is_scale_folded:
        _cross(plan, adapter, member, is_same=is_same, is_scale_folded=is_scale_folded)
    elif adapter.original is None:
        plan.adapter = adapter.with_sites(adapter.sites)
    plan.adapter = _labelled(plan, member, base_name=base_name, is_metadata_kept=is_metadata_kept)
    plan.check(member)
    path = Path(target)
    if path.exists() and path.is_dir() != (member.is_folder or (path.is_dir() and to == "diffusers")):
        kind_of = "folder" if member.is_folder else "file"
        raise OutputError(f"{to} is written as a {kind_of}", file=path, found="a folder" if path.is_dir() else "a file")
    if path.is_dir() and any(path.iterdir()):  # files of another adapter would be left beside the new ones
        raise OutputError("the folder is not empty", file=path, hint="give a new name")
    with staged(path) as temporary:
        _write(plan, temporary, member, kind)
        written = formats.read(temporary, format=to)
        report = _report(adapter, plan, written, member, kind, name, os.fspath(target))
        plan.check(member)
    return report


@dataclass
class _Plan:
    """What is about to be written, and what of the source is not in it."""

    adapter: Adapter
    is_loss_allowed: bool
    expanded: list[str] = field(default_factory=list[str])
    dropped: list[Loss] = field(default_factory=list[Loss])
    lost: list[Loss] = field(default_factory=list[Loss])

    def check(self, member: Format) -> None:
        """Refuse what was lost, unless losses are allowed."""
        if self.lost and not self.is_loss_allowed:
            raise AdapterError(
                f"{member.name} cannot express all of this adapter",
                file=self.adapter.provenance.path,
                found=_listed(self.lost),
                hint="allow the loss with --allow-loss (is_loss_allowed=True), or choose another format",
            )
        if not self.adapter.sites:
            raise AdapterError(f"nothing is left that {member.name} can hold", found=_listed(self.lost))


def _cross(plan: _Plan, adapter: Adapter, member: Format, *, is_same: bool, is_scale_folded: bool) -> None:
    sites: dict[str, Update] = {}
    for site, update in adapter.items():
        try:
            expressed = _expressed(site, update, member, plan)
            if expressed is not None:
                sites[site] = _folded(expressed) if is_scale_folded else expressed
        except AdapterError as error:
            plan.lost.append(Loss(site, error.what))
    plan.adapter = adapter.with_sites(sites)
    doubts = [Loss(note.code, note.text) for note in adapter.notes if note.is_doubt]
    if is_same:
        return
    plan.lost += [
        Loss(key, "a tensor that belongs to no site, which only its own format keeps") for key in adapter.leftovers
    ]
    plan.lost += doubts
    plan.dropped += [Loss(note.code, note.text) for note in adapter.notes if note.code in ("scale-assumed",)]
    plan.dropped += [Loss(f"metadata {key}", "the target has its own metadata") for key in adapter.provenance.metadata]
    if adapter.provenance.config:
        names = ", ".join(sorted(adapter.provenance.config)[:60])
        plan.dropped.append(Loss("configuration", f"replaced by the target's own: {names}"))


def _expressed(site: str, update: Update, member: Format, plan: _Plan) -> Update | None:
    """The update as the target can hold it, or None with the loss noted."""
    if update.kind in member.writes:
        return update
    if isinstance(update, Expanded) and "lora" in member.writes:
        try:
            plain = update.as_low_rank()
        except AdapterError as error:
            plan.lost.append(Loss(site, f"{error.what} ({update.kind}, {error.found})"))
            return None
        plan.expanded.append(site)
        return plain
    why = "relative to the base weight" if update.needs == "base weight" else "not of low rank"
    plan.lost.append(Loss(site, f"{update.kind} is {why}, and {member.name} has no place for it"))
    return None


def _folded(update: Update) -> Update:
    """The update with its scale in B, so that the scale is 1."""
    if isinstance(update, LowRank):
        B = cast_to(update.B.astype(np.float64) * update.scale, update.B.dtype)
        bias = update.bias
        if bias is not None and not update.is_bias_whole:
            bias = cast_to(bias.astype(np.float64) * update.scale, bias.dtype)
        return replace(update, B=B, bias=bias, scale=1.0, alpha=None, scalar=1.0)
    if isinstance(update, DoRA) and isinstance(update.inner, LowRank):
        folded = _folded(update.inner)
        stored = {**update.stored, **folded.stored}
        return replace(update, inner=folded, stored=stored, scale=1.0, alpha=None, bias=folded.bias)
    raise AdapterError(f"the scale of {update.kind} cannot be folded into one factor")


def _labelled(plan: _Plan, member: Format, *, base_name: str | None, is_metadata_kept: bool) -> Adapter:
    """The adapter with the name of its base and its metadata as asked for."""
    provenance = plan.adapter.provenance
    is_same = provenance.format == member.name
    if base_name is not None:
        provenance = replace(provenance, base_model=base_name)
        if member.base_field is None:
            plan.dropped.append(Loss(f"base model {base_name}", f"{member.name} files do not name their base"))
        elif is_same and provenance.config:
            config: Mapping[str, Any] = {**provenance.config, member.base_field: base_name}
            provenance = replace(provenance, config=config, config_text=json.dumps(config, indent=2))
    if not is_metadata_kept:
        stripped = [key for key in provenance.metadata if key not in member.needed_metadata]
        plan.dropped += [Loss(f"metadata {key}", "stripped as asked") for key in stripped if is_same]
        kept = {key: text for key, text in provenance.metadata.items() if key in member.needed_metadata}
        provenance = replace(provenance, metadata=kept)
    if not is_same and not provenance.is_relative_to_base:
        provenance = replace(provenance, is_relative_to_base=True, config={})
    return replace(plan.adapter, provenance=provenance)


def _write(plan: _Plan, path: Path, member: Format, dtype: DTypeLike | None) -> None:
    """Write what the target holds; each site that its writer refuses is a loss."""
    while True:
        plan.check(member)
        adapter = plan.adapter
        try:
            formats.write(adapter, path, format=member.name, dtype=dtype)
            return
        except AdapterError as error:
            site = error.key if error.key in adapter.sites else None
            if site is None:
                raise
            update = adapter[site]
            if update.bias is not None and isinstance(update, LowRank):
                plan.lost.append(Loss(f"{site}: bias", error.what))
                kept: dict[str, Update] = {**adapter.sites, site: replace(update, bias=None)}
            else:
                plan.lost.append(Loss(site, error.what + (f" ({error.found})" if error.found else "")))
                kept = {name: one for name, one in adapter.items() if name != site}
            plan.adapter = adapter.with_sites(kept)


def _listed(losses: list[Loss]) -> str:
    shown = "; ".join(f"{loss.what}: {loss.why}" for loss in losses[:3])
    return shown + (f"; and {len(losses) - 3} more" if len(losses) > 3 else "")


def _report(
    adapter: Adapter, plan: _Plan, written: Adapter, member: Format, dtype: np.dtype[Any] | None, name: str, target: str
) -> LossReport:
    """Compare what was written with the source; sites that moved by more than rounding are added to the losses."""
    lost = {loss.what for loss in plan.lost}
    kept = [site for site in adapter if site not in lost]
    gone = [site for site in kept if site not in written]
    plan.lost += [Loss(site, "the target gives this site another name, or loses it") for site in gone]
    errors: dict[str, tuple[float, float]] = {}
    for site in kept:
        if site in written:
            errors[site] = error_of(adapter[site], written[site])
            found, bound = ratio(*errors[site]), rounding_bound(adapter[site], written[site], dtype)
            if found > bound:
                plan.lost.append(Loss(site, f"ΔW moved by {found:.3g}, more than rounding ({bound:.3g})"))
    if written.provenance.format == adapter.provenance.format:
        plan.dropped += _changed_fields(adapter, written, {loss.what for loss in plan.dropped})
    worst = max(errors, key=lambda site: ratio(*errors[site]), default=None)
    total = ratio(_root(error for error, _ in errors.values()), _root(norm for _, norm in errors.values()))
    return LossReport(
        source=name,
        target=target,
        source_format=adapter.provenance.format,
        target_format=member.name,
        is_identical=_is_identical(adapter, written),
        sites=len(written),
        expanded=tuple(plan.expanded),
        folded=tuple(site for site in errors if _is_rescaled(adapter[site].scale, written[site].scale)),
        dropped=tuple(plan.dropped),
        lost=tuple(plan.lost),
        relative_error=total,
        worst_site=worst if worst is not None and ratio(*errors[worst]) > 0 else None,
        worst_error=0.0 if worst is None else ratio(*errors[worst]),
    )


def _is_rescaled(before: float, after: float) -> bool:
    """Whether two scales differ by more than the rounding of an alpha that is stored as float32."""
    return not math.isclose(before, after, rel_tol=2 * float(np.finfo(np.float32).eps))


def _changed_fields(adapter: Adapter, written: Adapter, known: set[str]) -> list[Loss]:
    """Metadata and fields of the configuration that a file of the same format has no longer."""
    old, new = adapter.provenance, written.provenance
    changes = [
        Loss(f"metadata {key}", "not kept")
        for key in old.metadata
        if key not in new.metadata and f"metadata {key}" not in known
    ]
    stated = [key for key, value in old.config.items() if key not in new.config and value not in (None, False, {}, [])]
    return changes + [Loss(f"configuration {key}", "not kept in an edited adapter") for key in stated]


def _is_identical(adapter: Adapter, written: Adapter) -> bool:
    one, two = adapter.original, written.original
    if one is None or two is None or set(one) != set(two):
        return False
    return all(
        one[key].dtype == two[key].dtype
        and one[key].shape == two[key].shape
        and np.array_equal(_bytes_of(one[key]), _bytes_of(two[key]))
        for key in one
    )


def _bytes_of(tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)


def _root(values: Any) -> float:
    return float(np.linalg.norm(np.fromiter(values, np.float64)))
