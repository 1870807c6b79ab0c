"""What the verbs of zoos print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorascope.report.numbers import be, counted
from lorascope.report.tables import safe

if TYPE_CHECKING:
    from rich.console import Console

    from lorascope.zoo import Verification


def verification_as_text(found: Verification, screen: Console, limit: int = 20) -> None:
    """The defects of a zoo, one a line, and what to do."""

    def say(text: str) -> None:
        screen.print(safe(text, width=2000), markup=False, soft_wrap=True)

    left = found.asked - found.count
    unfinished = f", {left} more {be(left)} to be forged" if left > 0 else ""
    unhashed = found.count - found.hashed - len(found.ids())
    without = f", {unhashed} without a recorded hash" if unhashed > 0 else ""
    state = counted(len(found.defects), "defect") if found.defects else "all as recorded"
    say(f"{found.zoo}: {counted(found.count, 'adapter')}, {state}{without}{unfinished}")
    for defect in found.defects[:limit]:
        say(f"  {defect.problem}: {defect.path}: {defect.what}")
    if len(found.defects) > limit:
        say(f"  … {len(found.defects) - limit} more; --json lists all")
    if found.hint:
        say(f"  {found.hint}")
