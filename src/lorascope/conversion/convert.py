"""``convert``: an adapter file in another format, its ΔW the same to rounding, and a report of what was lost.

To its own format an unedited adapter is written bit for bit. To another format a site of a kind that the target holds
is written as it is, a structured one of low rank is worked out to plain factors, and what the target cannot hold is
refused, or left out where losses are allowed. What was written is read again and compared, site by site, before it
takes its place: a conversion that moved ΔW by more than the rounding of its dtypes is refused too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lorascope import formats
from lorascope.adapter import Adapter
from lorascope.conversion.apart import check_apart
from lorascope.conversion.loss import Loss, LossReport, error_of, ratio, rounding_bound
from lorascope.conversion.plan import Plan, check_growth, planned
from lorascope.formats import Format, written_format
from lorascope.formats.checkpoint import Checkpoint
from lorascope.formats.dtypes import floating_dtype
from lorascope.formats.output_file import staged
from lorascope.formats.output_name import check_output


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
    base: str | os.PathLike[str] | None = None,
    is_loss_allowed: bool = False,
    is_growth_allowed: bool = False,
    is_overwritten: bool = False,
) -> LossReport:
    """Write the adapter at ``source`` to ``target`` in the format ``to``.

    Args:
        source: a path, a hub id, or an adapter.
        target: a new folder for formats that are folders (PEFT, MLX), else a new file with the suffix of the format.
        to: the name of a format that this version writes.
        source_format, scale, mapping: as for ``lorascope.read``.
        dtype: of the factors written, such as ``"float16"``; as stored if None.
        is_scale_folded: multiply the scale into B, so that alpha equals the rank everywhere.
        base_name: the base model's name to write, where the format has a place for it.
        base_config: what is known of the base model's ``config.json``. GGUF files are written from its ``model_type``
            and, where q and k of llama-type models are adapted, its numbers of heads.
        is_metadata_kept: whether metadata go with the tensors where the format is the same; metadata that the tensors
            cannot be understood without always do.
        base: the base model on disk, of whose weights the shapes are taken: they tell the kernels of convolutions that
            a file stores as matrices, and the rows of fused weights of which it changes some.
        is_loss_allowed: write what can be written, and report the rest, instead of refusing.
        is_growth_allowed: write the factors of structured updates however much larger they are.
        is_overwritten: replace a file that is there, or a folder with nothing else in it, but never the source.

    Raises:
        AdapterError: where something cannot be expressed, is in doubt, or moved by more than rounding, and losses are
            not allowed; or where plain factors would be many times larger; it says what. Nothing is written then.
        OutputError: where the target cannot be written, is there already, has not the name of such a file or folder, or
            is the source, in its folder, or a folder around it.

    >>> import tempfile
    >>> from lorascope.adapter import LowRank
    >>> folder = tempfile.mkdtemp()
    >>> adapter = Adapter({"q": LowRank(np.ones((4, 2), np.float32), np.ones((2, 3), np.float32), scale=0.5)})
    >>> report = convert(adapter, f"{folder}/b.safetensors", to="kohya")
    >>> report.relative_error, report.lost
    (0.0, ())
    """
    member = written_format(to)
    kind = None if dtype is None else floating_dtype(dtype)
    if isinstance(source, Adapter):
        adapter, name = source, str(source.provenance.path or "memory")
    else:
        adapter = formats.read(source, format=source_format, scale=scale, mapping=mapping, base_config=base_config)
        name = os.fspath(source)
    path = Path(target)
    check_apart(source, adapter, path)
    check_output(path, member, is_overwritten=is_overwritten)
    if base_config:
        adapter = replace(adapter, provenance=replace(adapter.provenance, base_config=base_config))
    adapter, plan = planned(
        adapter,
        member,
        checkpoint=None if base is None else Checkpoint.open(base),
        dtype=kind,
        is_scale_folded=is_scale_folded,
        base_name=base_name,
        is_metadata_kept=is_metadata_kept,
        is_loss_allowed=is_loss_allowed,
    )
    if not is_growth_allowed:
        check_growth(plan, kind)
    with staged(path, is_replaced=is_overwritten) as temporary:
        formats.write(plan.adapter, temporary, format=member.name, dtype=kind)
        written = formats.read(temporary, format=to)
        if base_name is not None and member.base_field is not None and written.provenance.base_model != base_name:
            why = "an unedited file without a configuration has no place for it"
            plan.dropped.append(Loss(f"base model {base_name}", why))
        report = _report(adapter, plan, written, member, kind, name, os.fspath(target))
        plan.check()
    return report


def _report(
    adapter: Adapter, plan: Plan, written: Adapter, member: Format, dtype: np.dtype[Any] | None, name: str, target: str
) -> LossReport:
    """Compare what was written with the source; sites that moved by more than rounding are added to the losses."""
    kept = [site for site in adapter if site in plan.adapter]  # a loss may be about a site that is written all the same
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


def _root(values: Iterable[float]) -> float:
    return math.hypot(*values)  # scaled: squares of large norms overflow
