"""The summary of an adapter: one JSON object, versioned, described by ``docs/inspect.schema.json``.

Per site, with σ₁ ≥ σ₂ ≥ … the singular values of ΔW:

    norm = ‖ΔW‖_F = √(Σ σᵢ²)        stable_rank = ‖ΔW‖_F² / σ₁²   (null for a zero update)

Everything is computed in float64, one group of sites of equal shape and rank at a time.
"""

from __future__ import annotations

import math
from typing import Any

from lorascope.adapter import Adapter, Update
from lorascope.adapter.spectra import Spectrum, spectra_of
from lorascope.errors import AdapterError
from lorascope.scan.values import norms_of, value_notes

SCHEMA_VERSION = 2
TOP = 8
"""How many singular values are listed for each site."""


def summarise(adapter: Adapter, *, has_values: bool = True) -> dict[str, Any]:
    """Everything that ``lorascope inspect`` tells about an adapter, as one JSON object.

    Args:
        adapter: what to describe.
        has_values: False where only headers were read: norms and spectra are then null.

    Raises:
        AdapterError: where a tensor holds NaN or infinity; it names the tensor.

    >>> import numpy as np
    >>> from lorascope.adapter import LowRank
    >>> summary = summarise(Adapter({"q": LowRank(np.array([[3.0], [4.0]]), np.array([[1.0, 0.0]]), scale=2.0)}))
    >>> summary["norm"], summary["sites"][0]["stable_rank"], summary["sites"][0]["singular_values"]
    (10.0, 1.0, [10.0])
    """
    spectra = spectra_of(adapter) if has_values else {}
    norms = norms_of(adapter, spectra) if has_values else dict.fromkeys(adapter)
    provenance = adapter.provenance
    sites = [_site(name, update, norms[name], spectra.get(name)) for name, update in adapter.items()]
    notes = [*adapter.notes, *(value_notes(adapter, spectra, norms) if has_values else ())]
    known = [norm for norm in norms.values() if norm is not None]
    if not math.isfinite(math.hypot(*known)):
        raise AdapterError("ΔW is beyond the range of float64", file=provenance.path)
    return {
        "schema_version": SCHEMA_VERSION,
        "path": None if provenance.path is None else str(provenance.path),
        "format": provenance.format,
        "kind": provenance.kind,
        "evidence": provenance.evidence,
        "base_model": provenance.base_model,
        "norm": math.hypot(*known) if len(known) == len(norms) else None,
        "sites": sites,
        "notes": [{"code": note.code, "text": note.text, "site": note.site} for note in notes],
    }


def _site(name: str, update: Update, norm: float | None, spectrum: Spectrum | None) -> dict[str, Any]:
    values = None if spectrum is None else spectrum.values[:TOP].tolist()
    top = values[0] if values else 0.0
    return {
        "name": name,
        "kind": update.kind,
        "layer": update.layer,
        "shape": [_known(axis) for axis in update.shape],
        "rank": _known(update.rank),
        "dim": update.dim,
        "alpha": update.alpha,
        "scale": update.scale,
        "needs": update.needs,
        "norm": norm,
        "stable_rank": (norm / top) ** 2 if top and norm is not None else None,
        "singular_values": values,
        "dtype": update.dtype,
    }


def _known(axis: int) -> int | None:
    return None if axis < 0 else axis
