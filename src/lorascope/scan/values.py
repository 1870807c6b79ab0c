"""What the values of an adapter say by themselves: zero sites, deficient ranks, mixed dtypes, one dominant site."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from lorascope.adapter import Adapter, LowRank, Note, Update
from lorascope.adapter.spectra import Spectrum, at_site
from lorascope.errors import AdapterError
from lorascope.formats.parametrisations.dora import DoRA

DOMINANT_SHARE = 0.5
"""A site with more than this share of ‖ΔW‖² is worth a note, where there are four sites or more."""

Spectra = Mapping[str, Spectrum]
"""Site → singular values of ΔW, for the sites where they are known."""


def norms_of(adapter: Adapter, spectra: Spectra) -> dict[str, float | None]:
    """Site → ‖ΔW‖_F, None where only the base knows it.

    Raises:
        AdapterError: where a tensor holds NaN or infinity.
    """
    return {name: _norm(adapter, name, spectra.get(name)) for name in adapter}


def _norm(adapter: Adapter, name: str, spectrum: Spectrum | None) -> float | None:
    if spectrum is not None:
        return spectrum.norm
    update = adapter[name]
    if update.needs in ("base shape", "base weight"):
        return None
    try:
        return at_site(adapter, name, update.norm)
    except AdapterError as error:
        if error.code != "too-large":
            raise
        return None


def value_notes(adapter: Adapter, spectra: Spectra, norms: Mapping[str, float | None]) -> Iterator[Note]:
    """What the values say, beyond what the reader noted about the file."""
    yield from _notes(adapter, spectra, norms)
    yield from _unknown(adapter, spectra, norms)


def _unknown(adapter: Adapter, spectra: Spectra, norms: Mapping[str, float | None]) -> Iterator[Note]:
    unknown = [name for name, norm in norms.items() if norm is None]
    relative = [name for name in unknown if adapter[name].needs in ("base shape", "base weight")]
    vast = [name for name in unknown if name not in relative]
    if vast:
        yield Note(
            "not-measured", f"ΔW is very large and not of low rank, so it was not measured at {_sites(vast, adapter)}"
        )
    if relative:
        needs = " and ".join(sorted({f"the {adapter[name].needs}" for name in relative}))
        yield Note("needs-base", f"ΔW is not known without {needs} at {_sites(relative, adapter)}")
    large = [name for name, norm in norms.items() if norm is not None and name not in spectra]
    if large:
        yield Note("no-spectrum", f"ΔW is large and not of low rank, so no spectrum at {_sites(large, adapter)}")


def _notes(adapter: Adapter, spectra: Spectra, norms: Mapping[str, float | None]) -> Iterator[Note]:
    zero = [name for name, norm in norms.items() if norm == 0]
    if zero:
        is_all = len(zero) == len(adapter)
        text = "ΔW is zero at every site: untrained" if is_all else f"ΔW is zero at {_sites(zero, adapter)}"
        yield Note("zero-sites", text, zero[0] if len(zero) == 1 else None)
    untrained = [name for name, update in adapter.items() if _is_untrained_inside(update)]
    if untrained:
        yield Note(
            "untrained",
            f"the low-rank part is zero, as before training, at {_sites(untrained, adapter)}",
            untrained[0] if len(untrained) == 1 else None,
        )
    plain = [name for name in spectra if name not in zero and isinstance(adapter[name], LowRank)]
    possible = {name: min(adapter[name].rank, *adapter[name].shape) for name in plain}
    deficient = {name: rank for name in plain if (rank := spectra[name].effective_rank) < possible[name]}
    if deficient:
        ranks = _range(deficient.values())
        yield Note(
            "rank-deficient",
            f"ΔW has a lower rank than its factors could hold at {_sites(list(deficient), adapter)}: "
            f"effective rank {ranks} of {_range(possible[name] for name in deficient)}",
            next(iter(deficient)) if len(deficient) == 1 else None,
            tuple(deficient),
        )
    wide = [name for name, update in adapter.items() if isinstance(update, LowRank) and update.rank > min(update.shape)]
    if wide:
        yield Note(
            "rank-above-shape",
            f"the rank exceeds min(out, in), so the factors are larger than ΔW, at {_sites(wide, adapter)}",
            wide[0] if len(wide) == 1 else None,
        )
    dtypes = Counter(update.dtype for update in adapter.values())
    if len(dtypes) > 1 or any(_has_unlike_factors(update) for update in adapter.values()):
        what = "the sites are" if len(dtypes) > 1 else "the factors of a site are"
        text = ", ".join(f"{dtype} at {count}" for dtype, count in dtypes.most_common())
        yield Note("mixed-dtypes", f"{what} stored in several dtypes: {text}")
    yield from _dominant({name: norm for name, norm in norms.items() if norm is not None})


def _has_unlike_factors(update: Update) -> bool:
    """Whether B and A differ; tables of integers and magnitudes have a dtype of their own by right."""
    pair = getattr(update, "inner", update)
    return isinstance(pair, LowRank) and pair.B.dtype != pair.A.dtype


def _is_untrained_inside(update: Update) -> bool:
    inner = update.inner if isinstance(update, DoRA) else None
    return isinstance(inner, LowRank) and not (inner.B.any() and inner.A.any())


def _dominant(norms: dict[str, float]) -> Iterator[Note]:
    if len(norms) < 4:
        return
    total = math.hypot(*norms.values())
    name = max(norms, key=lambda site: norms[site])
    if total and (share := (norms[name] / total) ** 2) > DOMINANT_SHARE:
        yield Note("dominant-site", f"one site of {len(norms)} has {share:.0%} of ‖ΔW‖²", name)


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _sites(names: list[str], adapter: Adapter) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} of {len(adapter)} sites"
