"""Conversions over all formats that are written: ΔW to rounding, the same sites, every loss named."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.conversion import convert, relative_error
from lorascope.conversion.loss import rounding_bound
from lorascope.errors import AdapterError, OutputError
from written_formats import BASE, PAIRS, WRITTEN, adapter_of, lost_between, names_for, target_in


@st.composite
def adapters(draw: Any, names: list[str]) -> Adapter:
    """Plain adapters as trainers make them: module paths of real models, ranks and scales that differ by site."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stored = draw(st.sampled_from([np.float32, np.float16, np.float64]))
    sites: dict[str, LowRank] = {}
    for name in names[: draw(st.integers(1, 3))]:
        out, in_ = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        rank = draw(st.sampled_from([1, 2, 3, 5, 8, 64]))
        sites[name] = LowRank(
            rng.standard_normal((out, rank)).astype(stored),
            rng.standard_normal((rank, in_)).astype(stored),
            scale=draw(st.sampled_from([1.0, 2.0, 0.5, 0.3, 20.0])),
        )
    return adapter_of(sites)


@pytest.mark.parametrize(("first", "second"), PAIRS)
@settings(max_examples=4)
@given(data=st.data())
def test_there_and_back_keeps_sites_and_updates(first: str, second: str, data: st.DataObject) -> None:
    members = WRITTEN[first], WRITTEN[second]
    adapter = data.draw(adapters(names_for(*members)))
    with tempfile.TemporaryDirectory() as folder:
        one, two, back = (
            target_in(folder, WRITTEN[fmt], fmt + end) for fmt, end in ((first, "a"), (second, "b"), (first, "c"))
        )
        formats.write(adapter, one, format=first)
        source = formats.read(one)
        lost = lost_between(*members)
        there = convert(one, two, to=second, base_config=BASE, is_loss_allowed=bool(lost))
        between = formats.read(two)
        bounds = {site: rounding_bound(update, between[site]) for site, update in source.items()}
        assert there.relative_error <= max(bounds.values())
        assert {loss.what for loss in there.lost} == lost
        convert(two, back, to=first, base_config=BASE, is_loss_allowed=bool(lost_between(*reversed(members))))
        again = formats.read(back)
        assert set(again) == set(source)
        for site, update in source.items():
            assert relative_error(update, again[site]) <= 2 * bounds[site]


def test_numbers_of_layers_are_no_names(tmp_path: Path) -> None:
    """A PEFT folder with sites such as unet:0 fits no model."""
    source, target = tmp_path / "a.safetensors", tmp_path / "b"
    factors = LowRank(np.ones((4, 2), np.float32), np.ones((2, 3), np.float32))
    formats.write(Adapter({"unet:0": factors, "unet:1": factors}), source, format="cloneofsimo")
    with pytest.raises(AdapterError, match="2 sites such as unet:0 are numbered") as caught:
        convert(source, target, to="peft")
    assert "--allow-loss" in str(caught.value.hint) and not target.exists()
    report = convert(source, target, to="peft", is_loss_allowed=True)
    assert [loss.what for loss in report.lost] == ["names of layers"]
    assert convert(source, tmp_path / "c.safetensors", to="cloneofsimo", dtype="float16").lost == ()


@pytest.mark.parametrize(("name", "what"), [("adalora", "AdaLoRA is not written"), ("foo", "no such format")])
def test_formats_that_are_not_written_are_not_offered(name: str, what: str, tmp_path: Path) -> None:
    adapter = Adapter({"q": LowRank(np.ones((4, 2), np.float32), np.ones((2, 3), np.float32))})
    for write in (lambda: convert(adapter, tmp_path / "a", to=name), lambda: formats.write(adapter, "a", format=name)):
        with pytest.raises(AdapterError, match=what) as caught:
            write()
        offered = str(caught.value.expected).split(", ")
        assert "peft" in offered and not {"adalora", "ia3", "foo"} & set(offered)


@pytest.mark.parametrize("format", WRITTEN)
def test_its_own_format_is_written_bit_for_bit(format: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    site = names_for(WRITTEN[format])[0]
    adapter = adapter_of({site: LowRank(rng.standard_normal((4, 2)), rng.standard_normal((2, 3)), scale=0.5)})
    one, two = (target_in(tmp_path, WRITTEN[format], name) for name in "ab")
    formats.write(adapter, one, format=format)
    report = convert(one, two, to=format, source_format=format)
    assert report.is_identical and report.relative_error == 0 and report.lost == report.dropped == ()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    update = LowRank(
        rng.standard_normal((6, 2)).astype(np.float32), rng.standard_normal((2, 4)).astype(np.float32), scale=1.5
    )
    formats.write(Adapter({"q": update, "v": update}), tmp_path / "a")
    return tmp_path


def test_a_folded_scale_leaves_alpha_equal_to_the_rank(folder: Path) -> None:
    report = convert(folder / "a", folder / "b", to="peft", is_scale_folded=True)
    after = formats.read(folder / "b")["q"]
    assert (after.scale, after.alpha) == (1.0, 2.0)
    assert 0 <= report.relative_error <= float(np.finfo(np.float32).eps)


def test_a_narrower_dtype_is_measured(folder: Path) -> None:
    report = convert(folder / "a", folder / "b.safetensors", to="kohya", dtype="bfloat16")
    assert formats.read(folder / "b.safetensors").original is not None
    assert 1e-4 < report.relative_error < 2 * 2.0**-8
    assert report.worst_site in ("q", "v") and report.worst_error >= report.relative_error


def test_the_name_of_the_base_is_written(folder: Path) -> None:
    convert(folder / "a", folder / "b", to="peft", base_name="owner/base")
    assert formats.read(folder / "b").provenance.base_model == "owner/base"
    report = convert(folder / "b", folder / "c", to="peft", base_name="owner/other")
    assert report.is_identical and formats.read(folder / "c").provenance.base_model == "owner/other"


def test_nothing_of_a_folder_that_is_replaced_stays(folder: Path) -> None:
    """An unedited adapter without a configuration would take the scale of the one that was there."""
    formats.write(formats.read(folder / "a"), folder / "b")
    (folder / "a" / "adapter_config.json").unlink()
    with pytest.raises(OutputError, match="already there"):
        convert(folder / "a", folder / "b", to="peft", is_loss_allowed=True)
    convert(folder / "a", folder / "b", to="peft", is_loss_allowed=True, is_overwritten=True)
    assert [path.name for path in (folder / "b").iterdir()] == ["adapter_model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


def test_metadata_are_kept_or_stripped(folder: Path, tmp_path: Path) -> None:
    weights = folder / "a" / "adapter_model.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(weights), weights, {"made": "there"})
    convert(folder / "a", folder / "kept", to="peft")
    assert dict(formats.read(folder / "kept").provenance.metadata) == {"made": "there"}
    report = convert(folder / "a", folder / "stripped", to="peft", is_metadata_kept=False)
    assert dict(formats.read(folder / "stripped").provenance.metadata) == {}
    assert report.is_identical and [loss.what for loss in report.dropped] == ["metadata made"]


def test_what_cannot_be_expressed_is_refused_or_reported(folder: Path) -> None:
    weights = folder / "a" / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(weights) | {"base_model.model.score.weight": np.ones((2, 2), np.float32)}
    safetensors.numpy.save_file(tensors, weights)
    target = folder / "b.safetensors"
    with pytest.raises(AdapterError, match="kohya cannot express all of this adapter") as caught:
        convert(folder / "a", target, to="kohya")
    assert "score.weight" in str(caught.value) and "--allow-loss" in str(caught.value)
    assert not target.exists()
    report = convert(folder / "a", target, to="kohya", is_loss_allowed=True)
    assert [loss.what for loss in report.lost] == ["base_model.model.score.weight"] and report.sites == 2


def test_an_update_against_a_changed_base_is_not_passed_on_in_silence(folder: Path) -> None:
    path = folder / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises(AdapterError, match="not relative to the published base"):
        convert(folder / "a", folder / "b.safetensors", to="kohya")
    assert convert(folder / "a", folder / "c", to="peft").is_identical


def test_an_unknown_format_names_those_there_are(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"no such format .*kohya.*peft"):
        convert(folder / "a", folder / "b", to="peftt")


def test_a_site_of_a_layout_that_the_target_lacks_is_lost_alone(folder: Path) -> None:
    rng = np.random.default_rng(2)
    plain = LowRank(rng.standard_normal((4, 2)), rng.standard_normal((2, 3)))
    embedding = LowRank(plain.B, plain.A, layer="embedding", is_transposed=True)
    formats.write(Adapter({"q": plain, "wte": embedding}), folder / "e")
    with pytest.raises(AdapterError, match="embedding"):
        convert(folder / "e", folder / "b.safetensors", to="kohya")
    report = convert(folder / "e", folder / "b.safetensors", to="kohya", is_loss_allowed=True)
    assert [loss.what for loss in report.lost] == ["wte"] and report.sites == 1
