"""What a conversion is going to write, and what of the source will not be in it: decided before anything is written."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lorascope.adapter import Adapter, Expanded, LowRank, Update
from lorascope.adapter.layout import fitting
from lorascope.conversion.folding import folded
from lorascope.conversion.fused_rows import with_whole_rows
from lorascope.conversion.loss import Loss
from lorascope.errors import AdapterError
from lorascope.formats import Format
from lorascope.formats.checkpoint import Checkpoint
from lorascope.formats.notes import DECIDING
from lorascope.formats.numbered_sites import nameless
from lorascope.formats.open_kernels import kernel_of
from lorascope.formats.plain_factors import is_expanded, outlined

MAX_GROWTH = 32
"""How many times larger plain factors may be than the tensors that they are worked out from."""

FREE_GROWTH = 256 << 20
"""Bytes of plain factors that are no growth to speak of."""

_REPLACED = DECIDING | {
    "base_model_name_or_path",
    "target_modules",
    "exclude_modules",
    "inference_mode",
    "peft_version",
}
_SAYS_NOTHING = (None, False, 0, "", "none", [], {})


@dataclass
class Plan:
    """What is about to be written, and what of the source is not in it."""

    adapter: Adapter
    member: Format
    is_loss_allowed: bool
    expanded: list[str] = field(default_factory=list[str])
    dropped: list[Loss] = field(default_factory=list[Loss])
    lost: list[Loss] = field(default_factory=list[Loss])
    is_base_wanted: bool = False

    def check(self) -> None:
        """Refuse what was lost, unless losses are allowed.

        Raises:
            AdapterError: saying what, or that nothing is left.
        """
        if self.lost and not self.is_loss_allowed:
            raise AdapterError(
                f"{self.member.name} cannot express all of this adapter",
                file=self.adapter.provenance.path,
                found=_listed(self.lost),
                hint=("give the base, which may settle it: --base (base=); else " if self.is_base_wanted else "")
                + "allow the loss with --allow-loss (is_loss_allowed=True), or choose another format",
            )
        if not self.adapter.sites:
            raise AdapterError(f"nothing is left that {self.member.name} can hold", found=_listed(self.lost))


def planned(
    adapter: Adapter,
    member: Format,
    *,
    checkpoint: Checkpoint | None,
    dtype: np.dtype[Any] | None,
    is_scale_folded: bool,
    base_name: str | None,
    is_metadata_kept: bool,
    is_loss_allowed: bool,
) -> tuple[Adapter, Plan]:
    """The adapter to compare the result with, and the plan.

    The one to compare with has the sites of the source, with rows of one weight brought together and with what the base
    tells filled in.

    Raises:
        AdapterError: where something would be lost and losses are not allowed, or nothing would be left.
    """
    is_same = adapter.provenance.format == member.name
    is_kept = is_same and not is_scale_folded  # a scale that goes into a factor makes plain factors of every kind
    plan = Plan(adapter, member, is_loss_allowed)
    if not is_kept:
        whole = adapter if member.names_rows else with_whole_rows(adapter, checkpoint)
        plan.expanded += [site for site in whole if site not in adapter]
        adapter = whole if checkpoint is None else _resolved(whole, checkpoint)
    if not is_same or dtype is not None or is_scale_folded:
        _cross(plan, adapter, is_same=is_same, is_scale_folded=is_scale_folded, has_base=checkpoint is not None)
        _leave_out_refused(plan)
        kept = _kept(member, plan.adapter, is_scale_folded=is_scale_folded)
        fused = set(plan.expanded)
        plan.expanded += [site for site in plan.adapter if site not in fused and is_expanded(adapter[site], kept)]
        plan.expanded = [site for site in plan.expanded if site in plan.adapter]
    elif adapter.original is None:
        plan.adapter = adapter.with_sites(adapter.sites)
        _leave_out_refused(plan)
    plan.adapter = _labelled(plan, base_name=base_name, is_metadata_kept=is_metadata_kept)
    plan.check()
    return adapter, plan


def check_growth(plan: Plan, dtype: np.dtype[Any] | None) -> None:
    """Refuse to work out factors that are many times larger than what they come from.

    Raises:
        AdapterError: saying both sizes.
    """
    before = after = 0
    for site in plan.expanded:
        update = plan.adapter[site]
        before += sum(tensor.nbytes for tensor in update.stored.values())
        after += sum(
            tensor.size * (tensor.dtype if dtype is None else dtype).itemsize
            for role, tensor in outlined(update).stored.items()
            if role in ("B", "A")
        )
    if after > max(FREE_GROWTH, MAX_GROWTH * before):
        raise AdapterError(
            f"plain factors, which {plan.member.name} needs, would be {after // max(before, 1)} times as large",
            file=plan.adapter.provenance.path,
            expected=f"at most {MAX_GROWTH} times",
            found=f"{_megabytes(before)} at {len(plan.expanded)} sites, worked out {_megabytes(after)}",
            hint="choose a format that keeps the kind (`lorascope formats --kinds`), or accept the size with "
            "--allow-growth (is_growth_allowed=True)",
            code="too-large",
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _resolved(adapter: Adapter, checkpoint: Checkpoint) -> Adapter:
    """The adapter with kernels and open axes as the base has them.

    Raises:
        AdapterError: where a site is not in the base, or does not fit it.
    """
    sites: dict[str, Update] = {}
    for site, update in adapter.items():
        spot = checkpoint.spot(site)
        try:
            resolved = update.resolved(spot.shape) if len(spot.shape) > 2 or -1 in update.shape else update
        except AdapterError:
            resolved = None
        if resolved is None or not fitting(resolved, spot):
            raise AdapterError(
                "the update does not fit the weight of the base",
                file=adapter.provenance.path,
                key=site,
                expected=f"a weight of shape {list(update.base_shape)}",
                found=list(spot.shape),
                hint="is this the base that the adapter was made for?",
            )
        sites[site] = resolved
    return replace(adapter, sites=sites)


def _kept(member: Format, adapter: Adapter, *, is_scale_folded: bool) -> tuple[str, ...]:
    """The kinds of update that stay what they are; others of low rank are worked out."""
    if is_scale_folded:
        return ()
    return member.writes if member.kept is None else member.kept(adapter)


def _cross(plan: Plan, adapter: Adapter, *, is_same: bool, is_scale_folded: bool, has_base: bool) -> None:
    sites: dict[str, Update] = {}
    unknown: list[str] = []
    is_told = has_base or (is_same and not is_scale_folded)
    kept = () if is_told else _kept(plan.member, adapter, is_scale_folded=is_scale_folded)
    for site, update in adapter.items():
        plan.is_base_wanted |= update.needs == "base shape" and not has_base
        try:
            if _is_expressible(site, update, plan) and (is_told or _has_layout(plan, adapter, site, unknown, kept)):
                sites[site] = folded(update) if is_scale_folded else update
        except AdapterError as error:
            plan.lost.append(Loss(site, error.what))
    plan.adapter = adapter.with_sites(sites)
    if unknown:
        where = f"{len(unknown)} sites" if len(unknown) > 1 else unknown[0]
        why = "taken for linear layers: as a convolution they would have a kernel, which --base (base=) tells"
        plan.lost.append(Loss(where, why))
        plan.is_base_wanted = True
    if is_same:
        return
    if (text := nameless(sites, plan.member)) is not None:
        plan.lost.append(Loss("names of layers", text))
    plan.lost += [
        Loss(key, "a tensor that belongs to no site, which only its own format keeps") for key in adapter.leftovers
    ]
    plan.lost += [Loss(note.code, note.text) for note in adapter.notes if note.is_doubt]
    plan.dropped += [Loss(note.code, note.text, True) for note in adapter.notes if note.code in ("scale-assumed",)]
    plan.dropped += [Loss(f"metadata {key}", "the target has its own metadata") for key in adapter.provenance.metadata]
    plan.dropped += _of_configuration(adapter.provenance.config)


def _of_configuration(config: Mapping[str, Any]) -> list[Loss]:
    """What of a configuration the target says in its own words, and what it has no place for."""
    replaced = sorted(key for key in config if key in _REPLACED)
    gone = sorted(key for key, value in config.items() if key not in _REPLACED and value not in _SAYS_NOTHING)
    groups = ((replaced, "replaced by the target's own", True), (gone, "the target has no place for", False))
    return [
        Loss("configuration", f"{why}: {', '.join(names[:60])}", is_replaced)
        for names, why, is_replaced in groups
        if names
    ]


def _is_expressible(site: str, update: Update, plan: Plan) -> bool:
    """Whether the target has a place for an update of this kind; where it has none, the loss is noted."""
    member = plan.member
    if update.kind in member.writes:
        return True
    if isinstance(update, Expanded) and "lora" in member.writes:
        try:
            update.outline()
        except AdapterError as error:
            plan.lost.append(Loss(site, f"{error.what} ({update.kind}, {error.found})"))
            return False
        return True
    why = "relative to the base weight" if update.needs == "base weight" else "not of low rank"
    plan.lost.append(Loss(site, f"{update.kind} is {why}, and {member.name} has no place for it"))
    return False


def _has_layout(plan: Plan, adapter: Adapter, site: str, unknown: list[str], kept: Collection[str]) -> bool:
    """Whether the file tells the layout of a site's tensors in the target; where it does not, the loss is noted."""
    update = adapter[site]
    told = kernel_of(adapter, site)
    if told == "known" or (not is_expanded(update, kept) and not update.kernel):  # a matrix stays one
        return True
    if told == "convolution":
        why = f"the {update.kind} of a convolution whose kernel is not in the file; --base (base=) tells it"
        plan.lost.append(Loss(site, why))
        plan.is_base_wanted = True
        return False
    unknown.append(site)
    return True


def _leave_out_refused(plan: Plan) -> None:
    """Leave out what the writer has no place for: the bias of a plain site first, else the site.

    Leaving out sites can settle what others were refused for, but settles nothing more than once, so that two or three
    turns are enough.
    """
    while refused := {str(error.key): error for error in plan.member.refusals(plan.adapter)}:
        sites: dict[str, Update] = dict(plan.adapter.sites)
        for site, error in refused.items():
            update = sites[site]
            if update.bias is not None and isinstance(update, LowRank):
                plan.lost.append(Loss(f"{site}: bias", error.what))
                sites[site] = replace(update, bias=None)
            else:
                plan.lost.append(Loss(site, error.what + (f" ({error.found})" if error.found else "")))
                del sites[site]
        plan.adapter = plan.adapter.with_sites(sites)


def _labelled(plan: Plan, *, base_name: str | None, is_metadata_kept: bool) -> Adapter:
    """The adapter with the name of its base and its metadata as asked for."""
    provenance, member = plan.adapter.provenance, plan.member
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


def _listed(losses: list[Loss]) -> str:
    shown = "; ".join(f"{loss.what}: {loss.why}" for loss in losses[:3])
    return shown + (f"; and {len(losses) - 3} more" if len(losses) > 3 else "")
