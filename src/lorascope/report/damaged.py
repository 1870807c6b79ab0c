"""What was left out of a fit or an evaluation, in words."""

from __future__ import annotations

from collections.abc import Sequence

from lorascope.report.numbers import counted
from lorascope.report.tables import safe
from lorascope.zoo.verification import Defect


def left_out(unlabelled: int, damaged: Sequence[Defect], target: str) -> list[str]:
    """One line for adapters without a value of the target, and one that names the damaged; none where all were used.

    >>> left_out(2, [Defect("missing", "adapters/a", "is missing", "a")], "size")
    ['left out: 2 adapters without a value of size', 'left out: 1 damaged: adapters/a (is missing)']
    """
    lines = [f"left out: {counted(unlabelled, 'adapter')} without a value of {safe(target)}"] if unlabelled else []
    if damaged:
        names = ", ".join(safe(f"{defect.path} ({defect.what})") for defect in damaged)
        lines.append(f"left out: {len(damaged)} damaged: {names}")
    return lines
