"""Real adapter files that no one here wrote, against values measured by independent code (``INDEX.json``).

The folder is ``LORASCOPE_REAL_ADAPTERS``, or ``../shared/adapters`` beside the repository.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lorascope import formats
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.source import contents_of

ROOT = Path(
    os.environ.get("LORASCOPE_REAL_ADAPTERS") or Path(__file__).resolve().parents[2].parent / "shared" / "adapters"
)
RELATIVE = 1e-6  # the tolerance that INDEX.json states
READ = ("peft-lora", "diffusers-attn-procs", "diffusers-lora-updown")

if not (ROOT / "INDEX.json").is_file():
    pytest.skip(f"real adapters were not run: {ROOT} is not there", allow_module_level=True)

INDEX: dict[str, Any] = json.loads((ROOT / "INDEX.json").read_text())
FILES = [entry for entry in INDEX["files"] if entry["format"] in READ]
OTHERS = [entry for entry in INDEX["files"] if entry["format"] not in READ]

# what one clear error must contain; the keys of the MLX files of this list are told, and read by a later version
BROKEN = {
    "truncated-data.safetensors": ["truncated", "360448", "50000"],
    "truncated-header.safetensors": ["header length 1684 exceeds the 842 bytes that follow"],
    "two-bytes.safetensors": ["too short for a safetensors header"],
    "huge-header.safetensors": ["header length 1152921504606846976 exceeds", "100 MB"],
    "zero-bytes.safetensors": ["empty header: not a safetensors file"],
    "overlapping-offsets.safetensors": ["overlapping or non-contiguous tensor data"],
    "shape-size-mismatch.safetensors": ["shape and byte range of model.layers.20.self_attn.q_proj.lora_a disagree"],
    "missing-b.safetensors": ["MLX", "not read by this version"],
    "nan-value.safetensors": ["MLX", "not read by this version"],
    "refused-global.bin": ["argparse.Namespace", "refused"],
    "executing-pickle.bin": ["builtins.print", "refused"],
    "object-array.npz": ["npz array of objects: refused"],
    "not-json-header.safetensors": ["header is not JSON"],
}


def _name(entry: dict[str, Any]) -> str:
    return entry["path"]


@pytest.mark.parametrize("entry", FILES, ids=_name)
def test_a_real_file_gives_the_measured_values(entry: dict[str, Any]) -> None:
    adapter = formats.read(ROOT / entry["path"])
    assert len(adapter) == entry["n_sites"]
    ranks = [update.rank for update in adapter.values()]
    assert (min(ranks), max(ranks)) == (entry["rank_min"], entry["rank_max"])
    assert {update.scale for update in adapter.values()} == set(entry["scales"])
    assert {update.alpha for update in adapter.values()} == set(entry["alphas"])
    layers = {"linear" if u.layer == "linear" else u.layer[:4] for u in adapter.values()}
    assert {layer.replace("embe", "embedding") for layer in layers} == set(entry["kinds"])
    assert len(adapter.leftovers) == entry["other_tensors"]
    if entry["path"].endswith(".bin") and "config" not in entry:
        assert adapter.provenance.base_model is None
    for measured, site in zip(entry["first3"], sorted(adapter), strict=False):
        update = adapter[site]
        assert site == measured["site"]
        assert list(update.shape) == measured["shape"]
        assert update.rank == measured["rank"]
        assert update.norm() == pytest.approx(measured["delta_fro"], rel=RELATIVE)
    if "fan_in_fan_out" in entry:
        linear = [update for update in adapter.values() if update.layer == "linear"]
        assert all(update.is_transposed == entry["fan_in_fan_out"] for update in linear)
    assert adapter.norm() == pytest.approx(entry["delta_fro_all_sites"], rel=RELATIVE)


@pytest.mark.parametrize("entry", [e for e in FILES if e["path"].endswith(".safetensors")], ids=_name)
def test_a_real_file_is_written_back_bit_for_bit(entry: dict[str, Any], tmp_path: Path) -> None:
    adapter = formats.read(ROOT / entry["path"])
    is_peft = adapter.provenance.format == "peft"
    target = tmp_path / ("folder" if is_peft else "pytorch_lora_weights.safetensors")
    formats.write(adapter, target, format=adapter.provenance.format)
    again = formats.read(target)
    assert adapter.original is not None and again.original is not None
    assert {key: value.tobytes() for key, value in adapter.original.items()} == {
        key: value.tobytes() for key, value in again.original.items()
    }
    assert again.provenance.metadata == adapter.provenance.metadata
    if is_peft:
        assert (target / "adapter_config.json").read_bytes() == (ROOT / entry["config"]).read_bytes()


@pytest.mark.parametrize("entry", OTHERS, ids=_name)
def test_a_format_of_a_later_version_gives_one_error(entry: dict[str, Any]) -> None:
    with pytest.raises(AdapterError) as caught:
        formats.read(ROOT / entry["path"])
    message = str(caught.value)
    assert entry["path"] in message
    if entry["format"] == "git-lfs-pointer":
        assert entry["lfs_oid"] in message and str(entry["lfs_size"]) in message
    elif entry["format"] == "peft-finegates":
        assert "unsupported peft_type FINEGATES" in message
    elif entry["format"] == "cloneofsimo-ti":
        assert "no LoRA tensors in this file" in message and "<krk>" in message
    else:
        assert "recognised, but not read by this version" in message


@pytest.mark.parametrize("entry", INDEX["derived_broken"], ids=_name)
def test_a_broken_file_gives_one_clear_error(entry: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AdapterError) as caught:
        formats.read(ROOT / entry["path"])
    message = str(caught.value)
    for part in [entry["path"], *BROKEN[Path(entry["path"]).name]]:
        assert part in message
    output = capfd.readouterr()
    assert "UNSAFE PICKLE WAS EXECUTED" not in output.out + output.err


@pytest.mark.parametrize("entry", INDEX["files"], ids=_name)
def test_no_file_fits_two_formats_equally_well(entry: dict[str, Any]) -> None:
    try:
        contents = contents_of(ROOT / entry["path"])
    except LorascopeError:  # told before its keys are known: a pointer, a refused pickle
        return
    found = [evidence for member in formats.formats() if (evidence := member.recognise(contents))]
    strongest = max((evidence.strength for evidence in found), default=0)
    assert sum(evidence.strength == strongest for evidence in found) <= 1
