"""Findings about an adapter file, as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from lorascope.report.tables import safe
from lorascope.scan import Finding

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def findings_as_text(location: str, findings: Sequence[Finding], console: Console) -> None:
    """Print the findings about one file, the worst first."""
    bad = [finding for finding in findings if finding.severity != "note"]
    verdict = f"{len(bad)} finding{'s' * (len(bad) != 1)}" if bad else "ok"
    console.print(f"{safe(location, 4096)}: {verdict}", soft_wrap=True)
    for finding in findings:
        where = f" [{safe(finding.site)}]" if finding.site and finding.site not in finding.text else ""
        head = f"  {finding.severity} {finding.code}: "
        console.print(Text.assemble((head, _STYLES[finding.severity]), safe(finding.text) + where), soft_wrap=True)
        if finding.hint:
            console.print(Text(f"    hint: {safe(finding.hint)}", "dim"), soft_wrap=True)
