"""A loss report as text."""

from __future__ import annotations

from rich.console import Console

from lorascope.conversion import LossReport
from lorascope.report.listed import print_listed
from lorascope.report.numbers import counted
from lorascope.report.tables import safe


def losses_as_text(report: LossReport, console: Console) -> None:
    """Print what a conversion kept, dropped and lost."""
    console.print(
        f"{report.source_format} → {report.target_format}: {counted(report.sites, 'site')} → "
        f"{safe(report.target, 4096)}",
        soft_wrap=True,
    )
    if report.is_identical:
        console.print("every tensor is the same, bit for bit")
    elif report.relative_error == 0:
        console.print("relative error of ΔW: 0")
    else:
        where = f", most at {safe(report.worst_site)}: {report.worst_error:.3g}" if report.worst_site else ""
        console.print(f"relative error of ΔW: {report.relative_error:.3g}{where}", soft_wrap=True)
    if report.expanded:
        console.print(f"{counted(len(report.expanded), 'site')} worked out to plain factors")
    if report.folded:
        shown = ", ".join(safe(site) for site in report.folded[:3]) + ", …" * (len(report.folded) > 3)
        console.print(
            f"the scale of {counted(len(report.folded), 'site')} was multiplied into a factor: {shown}", soft_wrap=True
        )
    dropped = [loss for loss in report.dropped if not loss.is_replaced]
    for title, losses, style in (("dropped", dropped, "dim"), ("lost", report.lost, "yellow")):
        print_listed(title, (f"{loss.what}: {loss.why}" for loss in losses), console, style)
