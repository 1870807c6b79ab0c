"""Real adapter files that no one here wrote, against values measured by independent code (``INDEX.json``).

The folder is ``LORASCOPE_REAL_ADAPTERS``, or ``../shared/adapters`` beside the repository.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.kohya_names import flattened
from lorascope.formats.source import contents_of
from lorascope.report import summarise
from lorascope.scan import verify

ROOT = Path(
    os.environ.get("LORASCOPE_REAL_ADAPTERS") or Path(__file__).resolve().parents[2].parent / "shared" / "adapters"
)
RELATIVE = 1e-6  # the tolerance that INDEX.json states

if not (ROOT / "INDEX.json").is_file():
    pytest.skip(f"real adapters were not run: {ROOT} is not there", allow_module_level=True)

INDEX: dict[str, Any] = json.loads((ROOT / "INDEX.json").read_text())
FILES = [entry for entry in INDEX["files"] if entry.get("first3")]
RELATIVES = [entry for entry in INDEX["files"] if entry["format"] == "peft-ia3"]
OTHERS = [entry for entry in INDEX["files"] if entry not in FILES and entry not in RELATIVES]

# what one clear error must contain
BROKEN = {
    "truncated-data.safetensors": ["truncated", "360448", "50000"],
    "truncated-header.safetensors": ["header length 1684 exceeds the 842 bytes that follow"],
    "two-bytes.safetensors": ["too short for a safetensors header"],
    "huge-header.safetensors": ["header length 1152921504606846976 exceeds", "100 MB"],
    "zero-bytes.safetensors": ["empty header: not a safetensors file"],
    "overlapping-offsets.safetensors": ["overlapping or non-contiguous tensor data"],
    "shape-size-mismatch.safetensors": ["shape and byte range of model.layers.20.self_attn.q_proj.lora_a disagree"],
    "missing-b.safetensors": ["lora_a without lora_b at site model.layers.20.self_attn.q_proj"],
    "nan-value.safetensors": ["non-finite value in model.layers.20.self_attn.v_proj.lora_a"],
    "refused-global.bin": ["argparse.Namespace", "refused"],
    "executing-pickle.bin": ["builtins.print", "refused"],
    "object-array.npz": ["npz array of objects: refused"],
    "not-json-header.safetensors": ["header is not JSON"],
}


def _name(entry: dict[str, Any]) -> str:
    return entry["path"]


def _read(entry: dict[str, Any]) -> Adapter:
    """The adapter; a scale that is not in the file is given as the list has it."""
    is_unstated = entry["scale_source"].startswith("NOT in the file") and entry["format"] == "loralib"
    return formats.read(ROOT / entry["path"], scale=entry["scales"][0] if is_unstated else None)


@pytest.mark.parametrize("entry", FILES, ids=_name)
def test_a_real_file_gives_the_measured_values(entry: dict[str, Any]) -> None:
    adapter = _read(entry)
    assert len(adapter) == entry["n_sites"]
    dims = [update.dim for update in adapter.values()]
    assert (min(dims), max(dims)) == (entry["rank_min"], entry["rank_max"])
    assert {update.scale for update in adapter.values()} == set(entry["scales"])
    if entry["format"] != "loralib":  # its alpha is not in the file
        assert {update.alpha for update in adapter.values()} == set(entry["alphas"])
    if not entry["format"].startswith("lycoris"):  # whose kinds are the parametrisations
        layers = {"linear" if u.layer == "linear" else u.layer[:4] for u in adapter.values()}
        assert {layer.replace("embe", "embedding") for layer in layers} == set(entry["kinds"])
    assert len(adapter.leftovers) == entry["other_tensors"]
    if entry["path"].endswith(".bin") and "config" not in entry:
        assert adapter.provenance.base_model is None
    is_flat = entry["format"].startswith("lycoris")  # the list has the names of the file, ours have their dots back
    names = {flattened(site).replace("lora_te1_", "lora_te_"): site for site in adapter} if is_flat else {}
    if adapter.provenance.format == "sam-lora":  # the list has the numbers of the file: q and v of each block in turn
        names = {f"{2 * int(site.split('.')[2]) + ('[0:' not in site):03d}": site for site in adapter}
    for measured, name in zip(entry["first3"], sorted(names or adapter), strict=False):
        update = adapter[names.get(name, name)]
        assert name == measured["site"]
        assert list(update.shape) == measured["shape"]
        assert (update.dim, update.rank) == (measured["rank"], measured.get("kron_rank", measured["rank"]))
        assert update.norm() == pytest.approx(measured["delta_fro"], rel=RELATIVE)
    if "fan_in_fan_out" in entry:
        linear = [update for update in adapter.values() if update.layer == "linear"]
        assert all(update.is_transposed == entry["fan_in_fan_out"] for update in linear)
    assert adapter.norm() == pytest.approx(entry["delta_fro_all_sites"], rel=RELATIVE)


@pytest.mark.parametrize("entry", RELATIVES, ids=_name)
def test_gates_have_the_measured_norms(entry: dict[str, Any]) -> None:
    adapter = formats.read(ROOT / entry["path"])
    assert len(adapter) == entry["n_sites"]
    for measured, (site, update) in zip(entry["vectors_first3"], sorted(adapter.items()), strict=False):
        (gate,) = update.stored.values()
        assert measured["key"] == f"base_model.model.{site}.ia3_l"
        assert list(gate.shape) == measured["shape"] and update.needs == "base weight"
        assert float(np.linalg.norm(gate.astype(np.float64))) == pytest.approx(measured["norm"], rel=RELATIVE)


@pytest.mark.parametrize("entry", [e for e in FILES if e["path"].endswith(".safetensors")], ids=_name)
def test_a_real_file_is_written_back_bit_for_bit(entry: dict[str, Any], tmp_path: Path) -> None:
    adapter = formats.read(ROOT / entry["path"])
    (member,) = (one for one in formats.formats() if one.name == adapter.provenance.format)
    if member.write is None:
        pytest.skip(f"{member.name} is not written")
    is_folder = adapter.provenance.format in ("peft", "mlx")
    target = tmp_path / ("folder" if is_folder else "pytorch_lora_weights.safetensors")
    formats.write(adapter, target, format=adapter.provenance.format)
    again = formats.read(target, format=adapter.provenance.format)
    assert adapter.original is not None and again.original is not None
    assert {key: value.tobytes() for key, value in adapter.original.items()} == {
        key: value.tobytes() for key, value in again.original.items()
    }
    assert again.provenance.metadata == adapter.provenance.metadata
    if is_folder and entry["config"]:
        assert (target / "adapter_config.json").read_bytes() == (ROOT / entry["config"]).read_bytes()


@pytest.mark.parametrize("entry", OTHERS, ids=_name)
def test_what_is_no_adapter_of_known_sites_gives_one_error(entry: dict[str, Any]) -> None:
    with pytest.raises(AdapterError) as caught:
        formats.read(ROOT / entry["path"])
    message = str(caught.value)
    assert entry["path"] in message
    if entry["format"] == "git-lfs-pointer":
        assert entry["lfs_oid"] in message
    elif entry["format"] == "peft-unilora":
        assert "UNILORA" in message
    assert entry.get("reader_must_say", "") in message


@pytest.mark.parametrize("entry", INDEX["derived_broken"], ids=_name)
def test_a_broken_file_gives_one_clear_error(entry: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AdapterError) as caught:  # values are looked at when they are computed with
        summarise(formats.read(ROOT / entry["path"]))
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


# what is true of a sound file and worth no more than a note
FACTS: dict[str, set[str]] = {
    "sam-lora": {"fused-parts"},
    "diffusers-attn-procs": {"scale-assumed"},
    "diffusers-lora-updown": {"scale-assumed"},
    "cloneofsimo-safetensors": {"numbered-sites", "saved-tokens"},
    "cloneofsimo-pt-list": {"numbered-sites"},
    "peft-lora": {"saved-modules", "saved-modules-missing", "rank-above-shape", "targets-missing"},
    "peft-ia3": {"needs-base"},
    "loralib": {"saved-layers"},
}


def _defects(entry: dict[str, Any]) -> set[str]:
    """The errors and warnings that the list says a file deserves: no more, or an author would be told wrong."""
    if entry["format"] == "git-lfs-pointer":
        return {"lfs-pointer"}
    if entry in OTHERS or not entry.get("loads", True):
        return {"unreadable"}
    expected: set[str] = set()
    if entry.get("zero_B_sites") or entry.get("zero_delta_sites"):
        expected.add("zero-sites")
    if (entry.get("scale_source") or "").startswith("NOT in the file"):
        expected.add("scale-unknown")
    return expected


@pytest.mark.parametrize("entry", INDEX["files"], ids=_name)
def test_verify_finds_what_is_wrong_with_a_real_file_and_no_more(entry: dict[str, Any]) -> None:
    findings = verify(ROOT / entry["path"])
    assert {one.code for one in findings if one.severity != "note"} == _defects(entry)
    assert {one.code for one in findings if one.severity == "note"} <= FACTS.get(entry["format"], set())
    for one in findings:
        if one.code == "zero-sites":
            zero, count = entry.get("zero_B_sites") or entry["zero_delta_sites"], entry["n_sites"]
            assert ("every site" if zero == count else f"{zero} of {count} sites") in one.text


@pytest.mark.parametrize("entry", INDEX["derived_broken"], ids=_name)
def test_verify_finds_what_is_broken(entry: dict[str, Any]) -> None:
    findings = verify(ROOT / entry["path"])
    is_nan = entry["path"].endswith("nan-value.safetensors")
    assert [(one.code, one.severity) for one in findings][:1] == [("non-finite" if is_nan else "unreadable", "error")]
    assert len(findings) == (2 if is_nan else 1)  # it lies without its configuration, so that its scale is unknown
