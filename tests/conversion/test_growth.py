"""Structured updates worked out to plain factors: no more than one site at a time, and no file of absurd size."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, LowRank, Update
from lorascope.conversion import convert
from lorascope.errors import AdapterError
from lorascope.formats import format_named
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built

SIDE, DIM = 32, 16
SITE = 2 * SIDE**2 * SIDE * DIM * 4
"""Bytes of the two plain factors of one site, in float32."""


def adapter(count: int, side: int = SIDE) -> Adapter:
    rng = np.random.default_rng(0)
    shapes = {"w1": (side, side), "w2_a": (side, DIM), "w2_b": (DIM, side)}
    tensors = {role: rng.standard_normal(shape).astype(np.float32) for role, shape in shapes.items()}
    update = built("lokr", Parts("q", tensors, scale_of=lambda dim: Scale(0.5, None)))
    return Adapter({f"model.layers.{index}.self_attn.q_proj": update for index in range(count)})


def peak_of(source: Adapter, path: Path, format: str) -> int:
    tracemalloc.start()
    try:
        formats.write(source, path, format=format)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format", ["kohya", "diffusers", "mlx"])
def test_one_site_is_in_memory_at_a_time(format: str, tmp_path: Path) -> None:
    source = adapter(24)
    path = tmp_path / ("x" if format == "mlx" else "x.safetensors")
    # the factors in float64 as they are worked out, in float32 as they are written, and one of them contiguous
    assert peak_of(source, path, format) < 4.5 * SITE
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert size > 24 * SITE
    again = formats.read(path)
    site = "model.layers.7.self_attn.q_proj"
    x = np.random.default_rng(1).standard_normal((2, SIDE**2))
    expected = source[site].apply(x)
    assert np.abs(again[site].apply(x) - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_folded_scale_and_another_dtype_take_one_site_at_a_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    B, A = (rng.standard_normal(shape).astype(np.float32) for shape in ((2048, 32), (32, 2048)))
    source = Adapter({f"model.layers.{index}.self_attn.q_proj": LowRank(B, A, scale=0.3) for index in range(64)})
    tracemalloc.start()
    report = convert(source, tmp_path / "b", to="peft", is_scale_folded=True, dtype="float16", is_loss_allowed=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    after = formats.read(tmp_path / "b")
    assert {update.scale for update in after.values()} == {1.0} and report.relative_error < 2e-3
    # comparing takes the factors of both files side by side in float64, and copies of them for QR
    assert peak < 24 * (B.nbytes + A.nbytes)


def test_factors_that_are_many_times_larger_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    formats.write(adapter(18, side=64), path, format="lycoris")
    assert path.stat().st_size < 1 << 20
    with pytest.raises(AdapterError, match=r"plain factors, which diffusers needs, would be \d+ times as") as caught:
        convert(path, tmp_path / "b.safetensors", to="diffusers", is_loss_allowed=True)
    text = str(caught.value)
    assert "0.4 MB at 18 sites, worked out 604.0 MB" in text and "--allow-growth" in text
    with pytest.raises(AdapterError, match=r"worked out 302\.0 MB"):
        convert(path, tmp_path / "b.safetensors", to="diffusers", dtype="bfloat16")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.safetensors"]


def test_growth_can_be_allowed_and_a_kind_that_is_kept_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorascope.conversion.plan.FREE_GROWTH", 0)
    source = adapter(1)
    with pytest.raises(AdapterError, match="times as large"):
        convert(source, tmp_path / "b.safetensors", to="kohya")
    report = convert(source, tmp_path / "b.safetensors", to="kohya", is_growth_allowed=True)
    assert len(report.expanded) == 1 and report.relative_error < 1e-5
    tensors = safetensors.numpy.load_file(tmp_path / "b.safetensors")
    shapes = sorted(tensor.shape for key, tensor in tensors.items() if "alpha" not in key)
    assert shapes == [(SIDE * DIM, SIDE**2), (SIDE**2, SIDE * DIM)]
    assert convert(source, tmp_path / "c.safetensors", to="lycoris").expanded == ()


def loha(side: int) -> Update:
    rng = np.random.default_rng(0)
    shapes = {"w1_a": (side, 2), "w1_b": (2, side), "w2_a": (side, 2), "w2_b": (2, side)}
    tensors = {role: rng.standard_normal(shape).astype(np.float32) for role, shape in shapes.items()}
    return built("loha", Parts("q", tensors, scale_of=lambda dim: Scale(0.3, None)))


def test_a_folded_scale_works_out_kinds_that_the_target_would_have_kept(tmp_path: Path) -> None:
    source = Adapter({"model.layers.0.self_attn.q_proj": loha(64)})
    report = convert(source, tmp_path / "a.safetensors", to="lycoris", is_scale_folded=True)
    assert report.expanded == tuple(source) and report.lost == ()
    report = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="lycoris", is_scale_folded=True)
    assert report.expanded == ()
    kept = convert(source, tmp_path / "c.safetensors", to="lycoris")
    assert kept.expanded == ()
    again = convert(tmp_path / "c.safetensors", tmp_path / "d.safetensors", to="lycoris", is_scale_folded=True)
    assert len(again.expanded) == 1


def test_a_folded_scale_asks_for_kernels_also_within_a_format(tmp_path: Path) -> None:
    convert(Adapter({"features.0": loha(64)}), tmp_path / "a.safetensors", to="lycoris")
    with pytest.raises(AdapterError, match="taken for linear layers"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="lycoris", is_scale_folded=True)


@pytest.mark.parametrize("count", [1, 2])
def test_sites_in_doubt_are_compared_when_they_are_written(count: int, tmp_path: Path) -> None:
    source = Adapter({f"features.{index}": loha(64) for index in range(count)})
    report = convert(source, tmp_path / "a.safetensors", to="kohya", is_loss_allowed=True)
    assert len(report.lost) == 1 and report.sites == count
    assert 0 < report.relative_error < 1e-6 and report.worst_site is not None


def test_the_kinds_that_a_format_keeps_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    member = replace(format_named("peft"), kept=lambda adapter: asked.append(len(adapter)) or ("lora",))
    monkeypatch.setattr(sys.modules[convert.__module__], "written_format", lambda name: member)
    B, A = np.ones((4, 1), np.float32), np.ones((1, 4), np.float32)
    convert(Adapter({f"layers.{index}.q": LowRank(B, A) for index in range(50)}), tmp_path / "a", to="peft")
    assert len(asked) < 5  # each looks at every site
