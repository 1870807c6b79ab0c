"""What was written for a server, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from lorascope.errors import LorascopeError
from lorascope.report.tables import safe
from lorascope.serve import Served

_SHOWN = 5


def served_as_dict(served: Served, failures: Sequence[LorascopeError]) -> dict[str, Any]:
    """The index, where it is, and which adapters could not be read."""
    worst = max((one.relative_error for one in served.adapters), default=0.0)
    return {
        **served.as_dict(),
        "output": served.output,
        "relative_error": worst,
        "failures": [error.as_dict() for error in failures],
    }


def served_as_text(served: Served, failures: Sequence[LorascopeError], console: Console) -> None:
    """Print groups, errors and how a server is told."""
    console.print(
        f"{len(served.adapters)} adapters, {len(served.sites)} sites: {safe(served.output, 4096)}", soft_wrap=True
    )
    for group in served.as_dict()["groups"]:
        console.print(f"rank {group['rank']}: {len(group['adapters'])} adapters")
    if served.peft_rank is not None:
        console.print(f"PEFT folders of rank {served.peft_rank}: vLLM needs --max-lora-rank {served.peft_rank} or more")
    worst = max(served.adapters, key=lambda one: one.relative_error)
    console.print(f"relative error of ΔW: at most {worst.relative_error:.3g} ({safe(worst.name)})", soft_wrap=True)
    for text in served.left_out[:_SHOWN]:
        console.print(Text(f"left out: {safe(text)}", "yellow"), soft_wrap=True)
    if len(served.left_out) > _SHOWN:
        console.print(Text(f"left out: and {len(served.left_out) - _SHOWN} more (--json lists all)", "yellow"))
    if failures:
        console.print(Text(f"{len(failures)} adapters could not be read and are not in it:", "yellow"))
    for error in failures[:_SHOWN]:
        console.print(Text(f"  {safe(str(error), 2000)}", "yellow"), soft_wrap=True)
