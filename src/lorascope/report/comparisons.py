"""A comparison of adapters as text and as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorascope.compare import Angles, Comparison, Signs, SitePair
from lorascope.report.listed import SHOWN
from lorascope.report.numbers import DASH, counted
from lorascope.report.tables import safe

SCHEMA_VERSION = 1


def comparison_as_dict(found: Comparison) -> dict[str, Any]:
    """Of two adapters numbers and sites, of more matrices; null where something is not defined."""
    common: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "adapters": list(found.names),
        "norms": found.norms.tolist(),
        "shares": found.shares,
        "interference": found.interference,
        "shared": list(found.shared),
        "not_shared": {name: dict(sites) for name, sites in found.not_shared.items()},
    }
    if len(found.names) > 2:
        return common | {
            "distance": found.pairwise.distance.tolist(),
            "cosine": found.pairwise.cosine.tolist(),
            "relative_distance": found.pairwise.relative_distance.tolist(),
            "sites": {},
        }
    return common | {
        "distance": found.distance,
        "cosine": found.cosine,
        "relative_distance": found.relative_distance,
        "spectrum_distance": found.spectrum_distance,
        "column_angles": _angles(found.columns),
        "row_angles": _angles(found.rows),
        "signs": _signs(found.signs),
        "sites": {name: _site(site) for name, site in found.sites.items()},
    }


def _site(site: SitePair) -> dict[str, Any]:
    return {
        "norms": list(site.norms),
        "distance": site.distance,
        "cosine": site.cosine,
        "relative_distance": site.relative_distance,
        "spectrum_distance": site.spectrum_distance,
        "column_angles": _angles(site.columns),
        "row_angles": _angles(site.rows),
        "signs": _signs(site.signs),
    }


def _angles(angles: Angles | None) -> dict[str, float] | None:
    return None if angles is None else angles._asdict()


def _signs(signs: Signs | None) -> dict[str, Any] | None:
    return None if signs is None else signs._asdict() | {"agreement": signs.agreement}


def comparison_as_text(found: Comparison, console: Console, limit: int | None = 24) -> None:
    """Print the whole, and of two adapters a table of at most ``limit`` sites, those furthest apart first."""
    for number, (name, norm, share) in enumerate(zip(found.names, found.norms, found.shares, strict=True), 1):
        of_all = DASH if share is None else f"{share:.1%}"
        console.print(Text(f"{number}  {safe(name, 4096)}: ‖ΔW‖ {norm:.6g}, {of_all} of Σ‖ΔW‖²"), soft_wrap=True)
    if len(found.names) == 2:
        _two_as_text(found, console, limit)
    else:
        _matrix("distance", found.pairwise.distance, console)
        _matrix("relative distance", found.pairwise.relative_distance, console)
        _matrix("cosine", found.pairwise.cosine, console)
    console.print(
        f"{counted(len(found.shared), 'shared site')}; "
        f"interference {_number(found.interference)} (0: all one way, 1: they cancel)"
    )
    for name, sites in found.not_shared.items():
        first = [f"{safe(site)} ({_number(norm)})" for site, norm in list(sites.items())[:SHOWN]]
        more = ", …" if len(sites) > SHOWN else ""
        text = f"not shared, so not counted: {counted(len(sites), 'site')} of {safe(name)}: {', '.join(first)}{more}"
        console.print(Text(text, "dim"), soft_wrap=True)


def _two_as_text(found: Comparison, console: Console, limit: int | None) -> None:
    console.print(
        f"distance {found.distance:.6g}, relative {found.relative_distance:.6g}, cosine {_number(found.cosine)}, "
        f"of spectra {found.spectrum_distance:.6g}",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("site", overflow="fold")
    names = ["‖ΔW₁‖", "‖ΔW₂‖", "relative distance", "cosine", "columns overlap", "rows overlap"]
    for name in names + ["signs alike"] * (found.signs is not None):
        table.add_column(name, justify="right", no_wrap=True)
    order = sorted(found.sites.items(), key=lambda item: -item[1].relative_distance)
    for name, site in order if limit is None else order[:limit]:
        overlaps = [None if angles is None else angles.overlap for angles in (site.columns, site.rows)]
        values = [*site.norms, site.relative_distance, site.cosine, *overlaps]
        if site.signs is not None:
            values.append(site.signs.agreement)
        table.add_row(Text(safe(name)), *map(_number, values))
    console.print(table)
    if limit is not None and len(order) > limit:
        console.print(Text(f"  … and {counted(len(order) - limit, 'more site')} (--sites all)", "dim"))
    if found.signs is not None:
        console.print(f"entries of one sign in both: {_number(found.signs.agreement)}")


def _matrix(title: str, values: np.ndarray, console: Console) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column(title)
    for column in range(values.shape[1]):
        table.add_column(str(column + 1), justify="right", no_wrap=True)
    for row, own in enumerate(values.tolist(), 1):
        table.add_row(str(row), *map(_number, own))
    console.print(table)


def _number(value: float | None) -> str:
    return DASH if value is None or value != value else f"{value:.4g}"
