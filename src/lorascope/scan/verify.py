"""``verify``: is this adapter file what it should be, by itself and against its base model?

Everything that can be said is said at once: a NaN at one site does not hide another. The base model is only asked for
names and shapes (its headers); no weight of it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope import formats
from lorascope.adapter import Adapter, Note, Update
from lorascope.adapter.spectra import Spectrum, spectra_of
from lorascope.adapter.widening import is_floating
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.checkpoint import Checkpoint
from lorascope.formats.container import container_of
from lorascope.formats.gguf_file import dense
from lorascope.formats.remote_checkpoint import open_headers
from lorascope.formats.source import exists
from lorascope.scan.against_base import base_findings
from lorascope.scan.finding import Finding, Severity, explained
from lorascope.scan.promises import broken_promises
from lorascope.scan.unread import beside_findings
from lorascope.scan.values import norms_of, value_notes

SEVERITIES: Mapping[str, Severity] = {
    "scale-assumed": "warning",
    "fused-parts": "warning",
    "expert-names": "warning",
    "expert-layout": "warning",
    "untrained": "warning",
    "fused-blocks": "warning",
    "repeated-fields": "warning",
    "unknown-keys": "warning",
    "zero-sites": "warning",
    "rank-deficient": "warning",
    "mixed-dtypes": "warning",
}
"""Notes that are more than facts where the format leaves them open; of all others only the doubts are."""

_HINTS: Mapping[str, str] = {
    "config-missing": "put the adapter_config.json of the adapter beside its weights",
    "scale-unknown": "give it: --scale, or read(path, scale=…)",
    "scale-assumed": "compare with the training script; convert --fold-scale writes the scale into the factors",
    "mutated-base": "convert it with PEFT's path_initial_model_for_weight_conversion, or keep the changed base with it",
    "repeated-fields": "leave one of each in the file; programs differ in which they take",
    "zero-sites": "these sites were never trained, or were saved before training",
    "rank-deficient": "a smaller rank would hold the same update",
}


@dataclass(frozen=True)
class Examination:
    """What ``examine`` found, and what it looked at.

    Args:
        findings: the worst first; empty where all is well.
        format: the key grammar, None where the file could not be read.
        container: ``safetensors``, ``pickle``, ``npz`` or ``gguf``; None where that is not known.
        weights: the weights file that was read or tried; None where there is none.
        size: its bytes; None where it is no file of its own.
    """

    findings: list[Finding]
    format: str | None = None
    container: str | None = None
    weights: str | None = None
    size: int | None = None


def verify(
    location: str | os.PathLike[str] | Adapter,
    *,
    base: Checkpoint | str | os.PathLike[str] | None = None,
    format: str | None = None,
    scale: float | None = None,
) -> list[Finding]:
    """The findings about one adapter file, the worst first; empty where all is well.

    Of a folder also: weights beside the file that is read, and which of them are pickles that can run code.

    Args:
        location: a path, a hub id, or an adapter.
        base: the base model's weights (a folder, a file, a hub id, of which headers alone are fetched, or an open
            ``Checkpoint``), to check sites and shapes against.
        format: the format of the file, where it leaves that open.
        scale: the scale of the sites whose scale the file does not state; as for ``lorascope.read``.

    >>> import tempfile
    >>> from lorascope.adapter import LowRank
    >>> folder = tempfile.mkdtemp()
    >>> formats.write(Adapter({"q": LowRank(np.zeros((4, 2)), np.ones((2, 3)))}), folder)
    >>> [(finding.code, finding.severity) for finding in verify(folder)]
    [('zero-sites', 'warning')]
    """
    return examine(location, base=base, format=format, scale=scale).findings


def examine(
    location: str | os.PathLike[str] | Adapter,
    *,
    base: Checkpoint | str | os.PathLike[str] | None = None,
    format: str | None = None,
    scale: float | None = None,
) -> Examination:
    """As ``verify``, with what was looked at."""
    name: str | None = None
    try:
        adapter = location if isinstance(location, Adapter) else formats.read(location, format=format, scale=scale)
    except LorascopeError as error:
        findings = [Finding(error.code or "unreadable", "error", explained(error), error.key, error.hint)]
        path = None if error.file is None or not exists(error.file) else Path(error.file)
    else:
        findings = _of_adapter(adapter, base)
        name, path = adapter.provenance.format, adapter.provenance.path
    if not isinstance(location, Adapter) and exists(location) and Path(location).is_dir():
        findings += beside_findings(Path(location))
    if path is None or path.is_dir():
        return Examination(worst_first(findings), name)
    size = path.stat().st_size if path.is_file() else None
    return Examination(worst_first(findings), name, _container(path), str(path), size)


def _container(path: Path) -> str | None:
    try:
        return container_of(path)
    except AdapterError:
        return None


def worst_first(findings: list[Finding]) -> list[Finding]:
    """The findings, errors before warnings before notes, else in their order."""
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _of_adapter(adapter: Adapter, base: Checkpoint | str | os.PathLike[str] | None) -> list[Finding]:
    checkpoint = base if base is None or isinstance(base, Checkpoint) else open_headers(base)
    findings = [*_of_notes(adapter.notes), *_of_values(adapter), *broken_promises(adapter, checkpoint)]
    return findings if checkpoint is None else [*findings, *base_findings(adapter, checkpoint)]


def _of_notes(notes: tuple[Note, ...] | list[Note]) -> Iterator[Finding]:
    for note in notes:
        severity = "note" if note.is_decided else SEVERITIES.get(note.code, "warning" if note.is_doubt else "note")
        hint = None if note.is_decided else _HINTS.get(note.code)
        yield Finding(note.code, severity, note.text, note.site, hint)


def _of_values(adapter: Adapter) -> list[Finding]:
    damaged = {site: found for site, update in adapter.items() if (found := _non_finite(update)) is not None}
    findings = [
        Finding(
            "non-finite",
            "error",
            f"{count} of {size} values are NaN or infinite in {role}",
            site,
            "the adapter diverged in training or the file was damaged; get it again or drop it",
        )
        for site, (role, count, size) in damaged.items()
    ]
    sound = {site: update for site, update in adapter.items() if site not in damaged}
    spectra, norms, failed = _measured(adapter.with_sites(sound))
    for site, error in failed.items():
        del sound[site]
        findings.append(Finding("out-of-range", "error", explained(error), site, error.hint))
    findings += _of_notes(list(value_notes(adapter.with_sites(sound), spectra, norms)))
    for key, tensor in adapter.leftovers.items():
        if bad := _count_non_finite(tensor):
            text = f"{bad} of {tensor.size} values are NaN or infinite in the saved tensor {key}"
            findings.append(Finding("non-finite", "error", text))
    return findings


def _measured(
    adapter: Adapter,
) -> tuple[dict[str, Spectrum], dict[str, float | None], dict[str, AdapterError]]:
    """Spectra and norms, and the errors of the sites that have none: one bad site does not hide another."""
    try:
        spectra = spectra_of(adapter)
        return spectra, norms_of(adapter, spectra), {}
    except AdapterError:  # one by one, since that of all ends at the first
        spectra, norms, failed = {}, {}, dict[str, AdapterError]()
    for site, update in adapter.items():
        one = Adapter({site: update}, adapter.provenance)
        try:
            spectra |= spectra_of(one)
            norms |= norms_of(one, spectra)
        except AdapterError as error:
            failed[site] = error
    return spectra, norms, failed


def _non_finite(update: Update) -> tuple[str, int, int] | None:
    tensors = dict(update.stored) if update.bias is None else {**update.stored, "bias": update.bias}
    for role, tensor in tensors.items():
        if bad := _count_non_finite(tensor):
            return role, bad, tensor.size
    return None


def _count_non_finite(tensor: NDArray[Any]) -> int:
    tensor = dense(tensor)
    if not is_floating(tensor):
        return 0
    wide = tensor if tensor.dtype.itemsize >= 4 else tensor.astype(np.float32)
    return int(tensor.size - np.isfinite(wide).sum())
