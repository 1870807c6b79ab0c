"""What was written for a server, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lorascope.errors import LorascopeError
from lorascope.report.listed import print_listed, print_unread
from lorascope.report.numbers import counted
from lorascope.report.tables import safe
from lorascope.serve import Served
from lorascope.serve.packing import RANKS


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
        f"{counted(len(served.adapters), 'adapter')}, {counted(len(served.sites), 'site')} in {served.dtype}: "
        f"{safe(served.output, 4096)}",
        soft_wrap=True,
    )
    for group in served.as_dict()["groups"]:
        console.print(f"rank {group['rank']}: {counted(len(group['adapters']), 'adapter')}")
    if served.peft_rank is not None:
        least = next((rank for rank in RANKS if rank >= served.peft_rank), None)
        needed = "has no rank as large" if least is None else f"needs --max-lora-rank {least} or more"
        console.print(f"PEFT folders of rank {served.peft_rank}: vLLM {needed}")
    worst = max(served.adapters, key=lambda one: one.relative_error)
    console.print(f"relative error of ΔW: at most {worst.relative_error:.3g} ({safe(worst.name)})", soft_wrap=True)
    print_listed("left out", served.left_out, console)
    print_unread(failures, console)
