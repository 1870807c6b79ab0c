"""The summary of an adapter: one JSON object, versioned, described by ``docs/inspect.schema.json``.

Per site, with σ₁ ≥ σ₂ ≥ … the singular values of ΔW:

    norm = ‖ΔW‖_F = √(Σ σᵢ²)        stable_rank = ‖ΔW‖_F² / σ₁²   (null for a zero update)

Sites are read one group of equal shape and rank at a time and computed in float64; nothing of size out × in is formed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, Factors, Note, Update
from lorascope.errors import AdapterError

SCHEMA_VERSION = 1
TOP = 8
"""How many singular values are listed for each site."""

DOMINANT_SHARE = 0.5
"""A site with more than this share of ‖ΔW‖² is worth a note, where there are four sites or more."""

_STACK = 1 << 22  # numbers of one factor that are stacked at a time: 32 MiB in float64


def summarise(adapter: Adapter) -> dict[str, Any]:
    """Everything that ``lorascope inspect`` tells about an adapter, as one JSON object.

    Raises:
        AdapterError: where a tensor holds NaN or infinity; it names the tensor.

    >>> from lorascope.adapter import LowRank
    >>> summary = summarise(Adapter({"q": LowRank(np.array([[3.0], [4.0]]), np.array([[1.0, 0.0]]), scale=2.0)}))
    >>> summary["norm"], summary["sites"][0]["stable_rank"], summary["sites"][0]["singular_values"]
    (10.0, 1.0, [10.0])
    """
    spectra = singular_values(adapter)
    provenance = adapter.provenance
    sites = [_site(name, update, spectra[name]) for name, update in adapter.items()]
    notes = [*adapter.notes, *_notes(adapter, spectra)]
    return {
        "schema_version": SCHEMA_VERSION,
        "path": None if provenance.path is None else str(provenance.path),
        "format": provenance.format,
        "kind": provenance.kind,
        "base_model": provenance.base_model,
        "norm": math.hypot(*(site["norm"] for site in sites)),
        "sites": sites,
        "notes": [{"code": note.code, "text": note.text, "site": note.site} for note in notes],
    }


def singular_values(adapter: Adapter) -> dict[str, NDArray[np.float64]]:
    """Site → the min(out, in, rank) singular values of ΔW, descending, in float64.

    B = Q_B R_B and Aᵀ = Q_A R_A, so those of ΔW are those of the small core scale · R_B R_Aᵀ; sites of equal shape
    and rank are computed together.
    """
    groups: dict[tuple[tuple[int, int], int], list[str]] = {}
    for name, update in adapter.items():
        groups.setdefault((update.shape, update.rank), []).append(name)
    result: dict[str, NDArray[np.float64]] = {}
    for ((out, in_), rank), names in groups.items():
        step = max(_STACK // max(max(out, in_) * rank, 1), 1)
        for begin in range(0, len(names), step):
            chunk = names[begin : begin + step]
            factors = [_factors(adapter, name) for name in chunk]
            B = np.stack([factor.B for factor in factors])
            A = np.stack([factor.A for factor in factors])
            scales = np.array([factor.scale for factor in factors])
            result |= dict(zip(chunk, _spectra(B, A, scales), strict=True))
    return {name: result[name] for name in adapter}


def _spectra(B: NDArray[Any], A: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float64]:
    if B.shape[-1] == 0:
        return np.zeros((len(B), 0))
    left: Any = np.linalg.qr(B, mode="r")
    right: Any = np.linalg.qr(A.swapaxes(-1, -2), mode="r")
    with np.errstate(over="ignore", invalid="ignore"):
        core = scale[:, None, None] * (left @ right.swapaxes(-1, -2))
    if not np.isfinite(core).all():
        raise AdapterError("ΔW is beyond the range of float64", hint="the adapter diverged, or was made to deceive")
    return np.asarray(np.linalg.svd(core, compute_uv=False), np.float64)


def _factors(adapter: Adapter, name: str) -> Factors:
    try:
        return adapter[name].factors(np.float64)
    except AdapterError as error:
        error.file = error.file or (adapter.provenance.path and str(adapter.provenance.path))
        error.key = error.key or name
        raise


def _site(name: str, update: Update, spectrum: NDArray[np.float64]) -> dict[str, Any]:
    norm = float(np.linalg.norm(spectrum))
    top = float(spectrum[0]) if spectrum.size else 0.0
    return {
        "name": name,
        "layer": update.layer,
        "shape": list(update.shape),
        "rank": update.rank,
        "alpha": update.alpha,
        "scale": update.scale,
        "norm": norm,
        "stable_rank": (norm / top) ** 2 if top else None,
        "singular_values": [float(value) for value in spectrum[:TOP]],
        "dtype": update.dtype,
    }


def _notes(adapter: Adapter, spectra: dict[str, NDArray[np.float64]]) -> Iterator[Note]:
    """What the values themselves say, beyond what the reader noted about the file."""
    zero = [name for name, spectrum in spectra.items() if not spectrum.any()]
    if zero:
        is_all = len(zero) == len(adapter)
        text = "ΔW is zero at every site: untrained" if is_all else f"ΔW is zero at {_sites(zero, adapter)}"
        yield Note("zero-sites", text, zero[0] if len(zero) == 1 else None)
    deficient = [name for name, update in adapter.items() if name not in zero and _is_deficient(update, spectra[name])]
    if deficient:
        yield Note(
            "rank-deficient",
            f"ΔW has a lower rank than its factors could hold at {_sites(deficient, adapter)}",
            deficient[0] if len(deficient) == 1 else None,
        )
    wide = [name for name, update in adapter.items() if update.rank > min(update.shape)]
    if wide:
        yield Note(
            "rank-above-shape",
            f"the rank exceeds min(out, in), so the factors are larger than ΔW, at {_sites(wide, adapter)}",
            wide[0] if len(wide) == 1 else None,
        )
    dtypes = Counter(update.dtype for update in adapter.values())
    if len(dtypes) > 1:
        text = ", ".join(f"{dtype} at {count}" for dtype, count in dtypes.most_common())
        yield Note("mixed-dtypes", f"the sites are stored in several dtypes: {text}")
    yield from _dominant(spectra)


def _dominant(spectra: dict[str, NDArray[np.float64]]) -> Iterator[Note]:
    if len(spectra) < 4:
        return
    norms = {name: float(np.linalg.norm(spectrum)) for name, spectrum in spectra.items()}
    total = math.hypot(*norms.values())
    name = max(norms, key=lambda site: norms[site])
    if total and (share := (norms[name] / total) ** 2) > DOMINANT_SHARE:
        yield Note("dominant-site", f"one site of {len(spectra)} has {share:.0%} of ‖ΔW‖²", name)


def _is_deficient(update: Update, spectrum: NDArray[np.float64]) -> bool:
    # values are exact in float64, so only the rounding of QR and SVD separates a zero direction from zero
    threshold = float(spectrum[0]) * max(update.shape) * np.finfo(np.float64).eps
    return int((spectrum > threshold).sum()) < min(update.rank, *update.shape)


def _sites(names: list[str], adapter: Adapter) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} of {len(adapter)} sites"
