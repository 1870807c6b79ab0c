"""Both registries: every member says what it is, every kind is reachable, and third parties can add members."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorascope.formats import formats
from lorascope.formats.parametrisation import PARAMETRISATIONS

ROOT = Path(__file__).resolve().parents[2]
KINDS = {kind.name: kind for kind in PARAMETRISATIONS}


@pytest.mark.parametrize("name", PARAMETRISATIONS.names())
def test_a_kind_says_what_it_is(name: str) -> None:
    kind = PARAMETRISATIONS[name]
    assert kind.name == name and kind.title and kind.formula and kind.reference.startswith("https://")
    assert any(name in member.kinds for member in formats() if member.read), "no format reads it"


@pytest.mark.parametrize("member", formats(), ids=lambda member: member.name)
def test_a_format_says_what_it_holds(member: object) -> None:
    from lorascope.formats import Format

    assert isinstance(member, Format)
    assert member.title and member.reference.startswith("https://")
    assert set(member.writes) <= set(member.kinds) <= set(KINDS)
    assert member.write is not None or not member.writes
    if member.read is not None:
        assert member.files


def test_the_table_in_the_docs_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_kinds.py", "--check"], check=False)
    assert done.returncode == 0, "run `python docs/make_kinds.py`"


PLUGIN = """
import numpy as np
from lorascope.adapter import Adapter, LowRank
from lorascope.formats.parametrisation import Parametrisation
from lorascope.formats.registry import SPECIFIC, Evidence, Format

def recognise(contents):
    return Evidence(SPECIFIC, "has a key of the house") if "house.up" in contents.tensors else None

def read(contents):
    return Adapter({"q": LowRank(contents.tensors["house.up"], contents.tensors["house.down"], scale=3.0)})

FORMATS = (Format("house", "House format", "https://example.org", recognise, read, files="x"),)
PARAMETRISATION = Parametrisation("houses", "Houses", "ΔW = B A", "https://example.org", "low rank", lambda parts: None)
"""


def test_third_parties_register_by_entry_point(tmp_path: Path) -> None:
    (tmp_path / "house.py").write_text(PLUGIN)
    info = tmp_path / "house-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: house\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lorascope.formats]\nhouse = house:FORMATS\n[lorascope.parametrisations]\nhouses = house:PARAMETRISATION\n"
    )
    code = (
        "import numpy as np, safetensors.numpy as st, lorascope\n"
        f"path = r'{tmp_path}/a.safetensors'\n"
        "st.save_file({'house.up': np.ones((2, 1)), 'house.down': np.ones((1, 2))}, path)\n"
        "adapter = lorascope.read(path)\n"
        "from lorascope.formats.parametrisation import PARAMETRISATIONS\n"
        "print(adapter['q'].scale, adapter.provenance.evidence, PARAMETRISATIONS['houses'].title)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "3.0 has a key of the house Houses", done.stderr


def test_every_note_is_in_the_docs() -> None:
    docs = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    codes = set(re.findall(r'\bNote\(\s*"([a-z][a-z-]+)"', source)) | set(re.findall(r'code="([a-z-]+)"', source))
    assert len(codes) > 20
    missing = {code for code in codes if f"`{code}`" not in docs}
    assert not missing
