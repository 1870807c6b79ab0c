"""docs/merge.md and the registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lorascope.merge import METHODS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current_and_has_every_method() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_merge.py", "--check"], check=False)
    assert done.returncode == 0, "run `python docs/make_merge.py`"
    page = (ROOT / "docs" / "merge.md").read_text(encoding="utf-8")
    for member in METHODS:
        line = next(line for line in page.splitlines() if line.startswith(f"| `{member.name}`"))
        assert (" * |" in line) == member.is_experimental and member.formula.replace("|", "\\|") in line
        assert member.reference in line
