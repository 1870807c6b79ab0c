"""Findings about adapter files, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from lorascope.report.numbers import counted
from lorascope.report.tables import safe
from lorascope.scan import OBSTACLES, Examination, Finding, Survey

Verdict = Literal["ok", "warnings", "errors", "not checked"]

EXIT_CODES: Mapping[Verdict, int] = {"ok": 0, "warnings": 1, "errors": 1, "not checked": 2}

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_SHOWN = 8


def verdict_of(findings: Sequence[Finding]) -> Verdict:
    """The worst that the findings say of one adapter.

    >>> verdict_of([Finding("not-read", "note", "…")]), verdict_of([Finding("needs-torch", "error", "…")])
    ('ok', 'not checked')
    """
    if any(finding.code in OBSTACLES for finding in findings):
        return "not checked"
    severities = {finding.severity for finding in findings}
    return "errors" if "error" in severities else "warnings" if "warning" in severities else "ok"


def findings_as_text(location: str, findings: Sequence[Finding], console: Console) -> None:
    """Print the findings about one file, the worst first."""
    bad = [finding for finding in findings if finding.severity != "note"]
    verdict = f"{len(bad)} finding{'s' * (len(bad) != 1)}" if bad else "ok"
    if verdict_of(findings) == "not checked":
        verdict = "not checked"
    console.print(f"{safe(location, 4096)}: {verdict}", soft_wrap=True)
    for finding in findings:
        where = f" [{safe(finding.site)}]" if finding.site and finding.site not in finding.text else ""
        head = f"  {finding.severity} {finding.code}: "
        console.print(Text.assemble((head, _STYLES[finding.severity]), safe(finding.text) + where), soft_wrap=True)
        if finding.hint:
            console.print(Text(f"    hint: {safe(finding.hint)}", "dim"), soft_wrap=True)


def survey_as_text(surveys: Mapping[str, Survey], verdicts: Sequence[Verdict], console: Console) -> None:
    """Print what was not looked at, and of several adapters how many are sound."""
    for root, around in surveys.items():
        if around.count:
            shown = ", ".join(safe(name) for name in around.not_looked_at[:_SHOWN])
            more = f" and {around.count - _SHOWN} more (--json)" if around.count > _SHOWN else ""
            line = f"{counted(around.count, 'file')} not looked at in {safe(root, 4096)}: {shown}{more}"
            console.print(Text(line, "dim"), soft_wrap=True)
    if len(verdicts) > 1:
        counts = Counter(verdicts)
        parts = [f"{counts['ok']} ok", f"{counts['warnings']} with warnings", f"{counts['errors']} with errors"]
        parts += [f"{counts['not checked']} not checked"] if counts["not checked"] else []
        console.print(f"{counted(len(verdicts), 'adapter')}: {', '.join(parts)}", soft_wrap=True)


def as_object(location: str, examination: Examination) -> dict[str, Any]:
    """One adapter as a JSON object."""
    return {
        "schema_version": 2,
        "path": location,
        "ok": verdict_of(examination.findings) == "ok",
        "format": examination.format,
        "container": examination.container,
        "weights": examination.weights,
        "size": examination.size,
        "findings": [finding.as_dict() for finding in examination.findings],
    }


def not_looked_at(surveys: Mapping[str, Survey]) -> dict[str, Any]:
    """What was not looked at, for each folder, as a field of a JSON object."""
    value = {root: {"count": around.count, "files": around.not_looked_at} for root, around in surveys.items()}
    return {"not_looked_at": value}


def summary_object(surveys: Mapping[str, Survey], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The last line of JSON Lines: how many adapters are sound, and what was not looked at."""
    counts = Counter(verdicts)
    names: tuple[Verdict, ...] = ("ok", "warnings", "errors", "not checked")
    summary = {"adapters": len(verdicts), **{name.replace(" ", "_"): counts[name] for name in names}}
    return {"schema_version": 2, "summary": summary | not_looked_at(surveys)}
