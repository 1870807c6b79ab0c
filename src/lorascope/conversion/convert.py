"""``convert``: an adapter file in another format, its ΔW the same to rounding, and a report of what was lost.

To its own format an unedited adapter is written bit for bit. To another format: a site of a kind that the target holds
is written as it is, a structured one of low rank is expanded to plain factors, and what the target cannot hold is
refused, or dropped where losses are allowed. The file that was written is read again and compared with the source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lorascope import formats
from lorascope.adapter import Adapter, Expanded, LowRank, Provenance, Update
from lorascope.conversion.loss import Loss, LossReport, error_of, ratio
from lorascope.errors import AdapterError
from lorascope.formats import Format, format_named

_HARMLESS_FIELDS = frozenset({"monteclora_config", "velora_config", "megatron_config"})


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str,
    source_format: str | None = None,
    dtype: DTypeLike | None = None,
    is_scale_folded: bool = False,
    base_name: str | None = None,
    is_metadata_kept: bool = True,
    is_loss_allowed: bool = False,
) -> LossReport:
    """Write the adapter at ``source`` to ``target`` in the format ``to``.

    Args:
        source: a path or hub id.
        target: a folder for formats that are folders (PEFT, MLX), else a file.
        to: the name of a format that this version writes.
        source_format: the format of the source, where the file leaves it open.
        dtype: of the factors written, such as ``"float16"``; as stored if None.
        is_scale_folded: multiply the scale into B, so that alpha equals the rank everywhere.
        base_name: the base model's name to write, where the format has a place for it.
        is_metadata_kept: whether metadata go with the tensors where the format is the same.
        is_loss_allowed: write what can be written, and report the rest, instead of refusing.

    Raises:
        AdapterError: where something cannot be expressed and losses are not allowed; it says what.
        OutputError: where the target cannot be written.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> adapter = Adapter({"q": LowRank(np.ones((4, 2), np.float32), np.ones((2, 3), np.float32), scale=0.5)})
    >>> formats.write(adapter, f"{folder}/a")
    >>> report = convert(f"{folder}/a", f"{folder}/b.safetensors", to="kohya")
    >>> report.relative_error, report.lost
    (0.0, ())
    """
    member = format_named(to)
    adapter = formats.read(source, format=source_format)
    is_same = adapter.provenance.format == to
    changes = dtype is not None or is_scale_folded
    if is_same and not changes:
        plan = _Plan(adapter)
    else:
        plan = _crossed(adapter, member, is_same=is_same, is_scale_folded=is_scale_folded)
    prepared = _labelled(plan, is_same=is_same, base_name=base_name, is_metadata_kept=is_metadata_kept, to=to)
    _write(plan, prepared, Path(target), member, dtype, is_loss_allowed=is_loss_allowed)
    return _report(adapter, plan, source, target, to)


@dataclass
class _Plan:
    """What is about to be written, and what of the source is not in it."""

    adapter: Adapter
    expanded: list[str] = field(default_factory=list[str])
    dropped: list[Loss] = field(default_factory=list[Loss])
    lost: list[Loss] = field(default_factory=list[Loss])


def _crossed(adapter: Adapter, member: Format, *, is_same: bool, is_scale_folded: bool) -> _Plan:
    plan = _Plan(adapter)
    sites: dict[str, Update] = {}
    for site, update in adapter.items():
        expressed = _expressed(site, update, member, plan)
        if expressed is not None:
            sites[site] = _folded(expressed) if is_scale_folded else expressed
    plan.adapter = adapter.with_sites(sites)
    if not is_same:
        plan.lost += [
            Loss(key, "a tensor that belongs to no site, which only its own format keeps") for key in adapter.leftovers
        ]
        plan.lost += _lost_facts(adapter, member)
        plan.dropped += _dropped_facts(adapter.provenance)
    return plan


def _expressed(site: str, update: Update, member: Format, plan: _Plan) -> Update | None:
    """The update as the target can hold it, or None with the loss noted."""
    if update.kind in member.writes:
        return update
    if isinstance(update, Expanded) and "lora" in member.writes:
        try:
            factors = update.factors(np.float64)
        except AdapterError as error:
            plan.lost.append(Loss(site, f"{error.what} ({update.kind}, {error.found})"))
            return None
        plan.expanded.append(site)
        wide = np.float64 if "float64" in update.dtype else np.float32
        return LowRank(
            factors.B.astype(wide),
            factors.A.astype(wide),
            factors.scale,
            layer=update.layer,
            kernel=update.kernel,
            is_transposed=update.is_transposed,
            bias=update.bias,
        )
    why = "relative to the base weight" if update.needs == "base weight" else "not of low rank"
    plan.lost.append(Loss(site, f"{update.kind} is {why}, and {member.name} has no place for it"))
    return None


def _folded(update: Update) -> Update:
    if not isinstance(update, LowRank):
        raise AdapterError("the scale can be folded into plain low-rank updates only", found=update.kind)
    wide = (update.B.astype(np.float64) * update.scale).astype(update.B.dtype)
    bias = None if update.bias is None else (update.bias.astype(np.float64) * update.scale).astype(update.bias.dtype)
    return replace(update, B=wide, bias=bias, scale=1.0, alpha=None)


def _lost_facts(adapter: Adapter, member: Format) -> list[Loss]:
    lost: list[Loss] = []
    if not adapter.provenance.is_relative_to_base:
        lost.append(
            Loss("init_lora_weights", f"ΔW is not relative to the published base, which {member.name} can't say")
        )
    for note in adapter.notes:
        key = note.text.partition(":")[0]
        if note.code == "config-variant" and key not in _HARMLESS_FIELDS:
            lost.append(Loss(key, note.text))
    return lost


def _dropped_facts(provenance: Provenance) -> list[Loss]:
    dropped = [Loss(f"metadata {key}", "the target has its own metadata") for key in provenance.metadata]
    if provenance.config:
        names = ", ".join(sorted(provenance.config)[:60])
        dropped.append(Loss("configuration", f"replaced by the target's own: {names}"))
    return dropped


def _labelled(plan: _Plan, *, is_same: bool, base_name: str | None, is_metadata_kept: bool, to: str) -> Adapter:
    provenance = plan.adapter.provenance
    if base_name is not None:
        provenance = replace(provenance, base_model=base_name)
        if is_same and provenance.config:
            config: Mapping[str, Any] = {**provenance.config, "base_model_name_or_path": base_name}
            provenance = replace(provenance, config=config, config_text=json.dumps(config, indent=2))
        elif to not in ("peft", "mlx"):
            plan.dropped.append(Loss(f"base model {base_name}", f"{to} files do not name their base"))
    if not is_metadata_kept and provenance.metadata:
        plan.dropped += [Loss(f"metadata {key}", "stripped as asked") for key in provenance.metadata if is_same]
        provenance = replace(provenance, metadata={})
    if not is_same and not provenance.is_relative_to_base:
        provenance = replace(provenance, is_relative_to_base=True, config={})
    return replace(plan.adapter, provenance=provenance)


def _write(
    plan: _Plan, adapter: Adapter, path: Path, member: Format, dtype: DTypeLike | None, *, is_loss_allowed: bool
) -> None:
    """Write what the target holds; each site that its writer refuses is a loss."""
    while True:
        if plan.lost and not is_loss_allowed:
            raise _refused(plan, member)
        if not adapter.sites:
            raise AdapterError(f"nothing is left that {member.name} can hold", found=_listed(plan.lost))
        try:
            formats.write(adapter, path, format=member.name, dtype=dtype)
            return
        except AdapterError as error:
            site = error.key if error.key in adapter.sites else None
            if site is None or not is_loss_allowed:
                raise
            update = adapter[site]
            if update.bias is not None and isinstance(update, LowRank):
                plan.lost.append(Loss(f"{site}: bias", error.what))
                kept = {**adapter.sites, site: replace(update, bias=None)}
            else:
                plan.lost.append(Loss(site, error.what))
                kept = {name: one for name, one in adapter.items() if name != site}
            adapter = adapter.with_sites(kept)


def _refused(plan: _Plan, member: Format) -> AdapterError:
    return AdapterError(
        f"{member.name} cannot express all of this adapter",
        file=plan.adapter.provenance.path,
        found=_listed(plan.lost),
        hint="allow the loss with --allow-loss (is_loss_allowed=True), or choose another format",
    )


def _listed(losses: list[Loss]) -> str:
    shown = "; ".join(f"{loss.what}: {loss.why}" for loss in losses[:3])
    return shown + (f"; and {len(losses) - 3} more" if len(losses) > 3 else "")


def _report(
    adapter: Adapter, plan: _Plan, source: str | os.PathLike[str], target: str | os.PathLike[str], to: str
) -> LossReport:
    written = formats.read(target, format=to)
    names = _pairing(adapter, written, {loss.what for loss in plan.lost})
    errors: dict[str, tuple[float, float]] = {}
    for site, name in names.items():
        try:
            errors[site] = error_of(adapter[site], written[name])
        except AdapterError as error:
            error.key, error.file = error.key or site, error.file or str(target)
            raise
    worst = max(errors, key=lambda site: ratio(*errors[site]), default=None)
    total = ratio(_root(error for error, _ in errors.values()), _root(norm for _, norm in errors.values()))
    return LossReport(
        source=os.fspath(source),
        target=os.fspath(target),
        source_format=adapter.provenance.format,
        target_format=to,
        is_identical=_is_identical(adapter, written),
        sites=len(written),
        expanded=tuple(plan.expanded),
        renamed={site: name for site, name in names.items() if site != name},
        dropped=tuple(plan.dropped),
        lost=tuple(plan.lost),
        relative_error=total,
        worst_site=worst if worst is not None and ratio(*errors[worst]) > 0 else None,
        worst_error=0.0 if worst is None else ratio(*errors[worst]),
    )


def _pairing(adapter: Adapter, written: Adapter, lost: set[str]) -> dict[str, str]:
    """Source site → site of the written file; by name, and where names changed by their order."""
    kept = [site for site in adapter if site not in lost]
    if len(kept) != len(written):
        raise AdapterError("the written file has other sites", expected=len(kept), found=len(written))
    if set(kept) == set(written):
        return {site: site for site in kept}
    rest = [name for name in written if name not in kept]
    missing = [site for site in kept if site not in written]
    return {site: site for site in kept if site in written} | dict(zip(missing, rest, strict=True))


def _is_identical(adapter: Adapter, written: Adapter) -> bool:
    one, two = adapter.original, written.original
    if one is None or two is None or set(one) != set(two):
        return False
    return all(
        (one[key].dtype, one[key].shape, one[key].tobytes()) == (two[key].dtype, two[key].shape, two[key].tobytes())
        for key in one
    )


def _root(values: Any) -> float:
    return float(np.linalg.norm(np.fromiter(values, np.float64)))
