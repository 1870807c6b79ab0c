"""Conversions of structured updates: kept where the target has the kind, worked out where it has only plain factors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter
from lorascope.conversion import convert, relative_error
from lorascope.errors import AdapterError

EPS = float(np.finfo(np.float32).eps)
SITE = "text_model.encoder.layers.0.self_attn.q_proj"
FLAT = "lora_te_" + SITE.replace(".", "_")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def loha(out: int = 40, in_: int = 30, dim: int = 3) -> dict[str, np.ndarray]:
    return {
        "hada_w1_a": random(out, dim, seed=1), "hada_w1_b": random(dim, in_, seed=2),
        "hada_w2_a": random(out, dim, seed=3), "hada_w2_b": random(dim, in_, seed=4),
        "alpha": np.array(1.5, np.float32),
    }  # fmt: skip


def lokr() -> dict[str, np.ndarray]:
    return {
        "lokr_w1": random(4, 3, seed=1), "lokr_w2_a": random(10, 2, seed=2), "lokr_w2_b": random(2, 10, seed=3),
        "alpha": np.array(5.0, np.float32),
    }  # fmt: skip


def written(folder: Path, tensors: dict[str, np.ndarray], name: str = FLAT) -> Path:
    path = folder / "source.safetensors"
    safetensors.numpy.save_file({f"{name}.{key}": tensor for key, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize(("tensors", "kind"), [(loha(), "loha"), (lokr(), "lokr")])
def test_peft_and_lycoris_share_the_kind(tmp_path: Path, tensors: dict[str, np.ndarray], kind: str) -> None:
    source = written(tmp_path, tensors)
    before = formats.read(source)
    (site,) = before
    report = convert(source, tmp_path / "peft", to="peft")
    (after,) = formats.read(tmp_path / "peft").values()
    assert (before[site].kind, after.kind) == (kind, kind)
    assert report.relative_error <= 4 * EPS and report.expanded == () and report.lost == ()
    back = convert(tmp_path / "peft", tmp_path / "back.safetensors", to="lycoris")
    again = formats.read(tmp_path / "back.safetensors")
    assert list(again) == [site] and back.relative_error <= 4 * EPS
    assert relative_error(before[site], again[site]) <= 8 * EPS


@pytest.mark.parametrize("target", ["diffusers", "mlx"])
def test_low_rank_structure_is_worked_out_where_the_target_has_only_factors(tmp_path: Path, target: str) -> None:
    source = written(tmp_path, loha())
    path = tmp_path / ("out" if target == "mlx" else "out.safetensors")
    report = convert(source, path, to=target)
    (after,) = formats.read(path).values()
    assert after.kind == "lora" and after.rank == 9 and len(report.expanded) == 1
    assert report.relative_error <= 16 * EPS


def test_what_is_not_of_low_rank_is_refused_with_its_rank(tmp_path: Path) -> None:
    source = written(tmp_path, loha(out=12, in_=8, dim=4))
    with pytest.raises(AdapterError, match=r"cannot express all of this adapter.*loha, 16") as caught:
        convert(source, tmp_path / "out", to="mlx")
    assert "allow-loss" in str(caught.value)
    with pytest.raises(AdapterError, match="nothing is left"):
        convert(source, tmp_path / "out", to="mlx", is_loss_allowed=True)


def test_dora_goes_where_it_can(tmp_path: Path) -> None:
    tensors = {
        "lora_up.weight": random(8, 2, seed=1), "lora_down.weight": random(2, 6, seed=2),
        "alpha": np.array(2.0, np.float32), "dora_scale": 1 + 0.1 * random(8, 1, seed=3),
    }  # fmt: skip
    source = written(tmp_path, tensors)
    (site, before), *_ = formats.read(source).items()
    base = random(8, 6, seed=5).astype(np.float64)
    for target, path in (("peft", "a"), ("mlx", "b"), ("diffusers", "c.safetensors"), ("kohya", "d.safetensors")):
        report = convert(source, tmp_path / path, to=target)
        after = formats.read(tmp_path / path)
        assert report.lost == () and list(after) == [site] and after[site].kind == "dora"
        np.testing.assert_allclose(
            after[site].delta_weight(np.float64, base=base), before.delta_weight(np.float64, base=base),
            rtol=0, atol=8 * EPS * float(np.abs(base).max() + 1),
        )  # fmt: skip


def test_kinds_that_a_target_cannot_mix_are_lost_by_name(tmp_path: Path) -> None:
    source = tmp_path / "mixed.safetensors"
    tensors = {f"{FLAT}.{key}": tensor for key, tensor in lokr().items()}
    name = FLAT.replace("q_proj", "v_proj")
    tensors |= {f"{name}.lora_up.weight": random(40, 2), f"{name}.lora_down.weight": random(2, 30)}
    safetensors.numpy.save_file(tensors, source)
    adapter = formats.read(source)
    assert isinstance(adapter, Adapter) and {update.kind for update in adapter.values()} == {"lokr", "lora"}
    report = convert(source, tmp_path / "out", to="peft", is_loss_allowed=True)
    after = formats.read(tmp_path / "out")
    assert len(after) + len(report.lost) == 2
    assert report.relative_error <= 16 * EPS
