"""docs/merge.md and the registry."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lorascope
from lorascope.adapter import Adapter, LowRank
from lorascope.merge import METHODS

ROOT = Path(__file__).resolve().parents[2]


def snippets(*pages: Path) -> list[str]:
    """All Python of some pages, indented or not."""
    return [text for page in pages for text in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]


def test_python_of_the_pages_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        random = np.random.default_rng(seed)
        update = LowRank(random.standard_normal((8, 2)), random.standard_normal((2, 6)))
        lorascope.write(Adapter({"q": update}), name, dtype="float32")
    found = snippets(*sorted((ROOT / "docs").glob("*.md")))
    assert found
    for text in found:
        exec(compile(text, "a page of docs", "exec"), {})  # what a reader would type
    assert "q" in lorascope.read("merged")


def test_what_the_readme_imports_is_there() -> None:
    """Its Python is over a model and adapters of the reader's own, so that it cannot run here."""
    found = snippets(ROOT / "README.md")
    assert found
    for text in found:
        imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), "README", "exec"), {})


def test_the_page_is_current_and_has_every_method() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_merge.py", "--check"], check=False)
    assert done.returncode == 0, "run `python docs/make_merge.py`"
    page = (ROOT / "docs" / "merge.md").read_text(encoding="utf-8")
    for member in METHODS:
        line = next(line for line in page.splitlines() if line.startswith(f"| `{member.name}`"))
        assert (" * |" in line) == member.is_experimental and member.formula.replace("|", "\\|") in line
        assert member.reference in line
