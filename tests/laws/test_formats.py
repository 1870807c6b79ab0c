"""The laws of every format that is written, over all the kinds, layers, dtypes and ranks that it holds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope import formats
from lorascope.adapter import Adapter, LowRank, Update
from lorascope.conversion import convert
from lorascope.conversion.loss import error_of, ratio, rounding_bound
from lorascope.formats import Format
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built
from written_formats import BASE, PAIRS, WRITTEN, adapter_of, lost_between, names_for, target_in

CONVOLUTIONS = ("peft", "diffusers", "kohya", "lycoris", "comfyui", "cloneofsimo", "cloneofsimo-list")
DTYPES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2")


def factor(draw: Any, *shape: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.standard_normal(shape).astype(getattr(ml_dtypes, dtype, dtype))


@st.composite
def updates(draw: Any, kind: str, dtype: str, has_convolutions: bool) -> Update:
    out, in_, rank = draw(st.integers(1, 13)), draw(st.integers(1, 13)), draw(st.sampled_from([1, 2, 3, 8, 17, 64]))
    scale = draw(st.sampled_from([1.0, 2.0, 0.25, 0.3, -0.7, 20.0]))
    if kind in ("lora", "dora"):
        size = draw(st.sampled_from([(), (1, 1), (3, 3)])) if has_convolutions else ()
        kernel = (in_, *size) if size else ()
        B = factor(draw, out, rank, dtype=dtype)
        A = factor(draw, rank, int(np.prod((in_, *size))), dtype=dtype)
        plain = LowRank(B, A, scale, layer="conv2d" if size else "linear", kernel=kernel)
        if kind == "lora":
            return plain
        magnitude = (1 + 0.1 * factor(draw, out, dtype="float64")).astype(B.dtype)
        tensors = {"B": B.reshape(out, rank, *(1 for _ in size)), "A": A.reshape(rank, in_, *size)}
        tensors["magnitude"] = magnitude
        return built("dora", Parts("x", tensors, scale_of=lambda dim: Scale(scale, None)))
    rank = min(rank, 4)
    roles = {
        "loha": {"w1_a": (out, rank), "w1_b": (rank, in_), "w2_a": (out, rank), "w2_b": (rank, in_)},
        "lokr": {"w1": (2, 3), "w2_a": (out, rank), "w2_b": (rank, in_)},
        "adalora": {"B": (out, rank), "E": (rank, 1), "A": (rank, in_)},
        "locon": {"B": (out, rank, 1, 1), "mid": (rank, 2, 3, 3), "A": (2, in_, 1, 1)},
        "full": {"diff": (out, in_)},
        "replaced": {"weight": (out,)},
    }[kind]
    tensors = {role: factor(draw, *shape, dtype=dtype) for role, shape in roles.items()}
    return built(
        kind, Parts("x", tensors, scale_of=lambda dim: Scale(1.0 if kind in ("full", "replaced") else scale, None))
    )


@st.composite
def adapters(draw: Any, *members: Format, kind: str | None = None, has_convolutions: bool | None = None) -> Adapter:
    """An adapter that the formats hold: one kind (PEFT has one for all sites), layers and scales that differ."""
    member = members[0]
    # a LoKr in PEFT's own factorisation, gates, and projections that all sites share: tests/oracles/test_peft_*.py
    elsewhere = ("ia3", "lokr", "vera") if member.name == "peft" else ()
    chosen = kind or draw(st.sampled_from([one for one in member.writes if one not in elsewhere]))
    dtype = draw(st.sampled_from(DTYPES))
    can = member.name in CONVOLUTIONS if has_convolutions is None else has_convolutions
    known = [name for name in names_for(*members) if name.endswith("_norm") == (chosen == "replaced")]
    names = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
    return adapter_of({name: draw(updates(chosen, dtype, can)) for name in names})


def assert_same(found: Adapter, expected: Adapter) -> None:
    assert set(found) == set(expected)
    for site, update in expected.items():
        again = found[site]
        error = ratio(*error_of(update, again))
        assert error <= rounding_bound(update, again), (site, error)
        assert again.layer == update.layer
        assert again.dim == update.dim or update.kind in ("lokr", "full")


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=30)
@given(data=st.data())
def test_what_is_written_is_read_and_written_again_bit_for_bit(name: str, data: st.DataObject) -> None:
    member = WRITTEN[name]
    adapter = data.draw(adapters(member))
    with tempfile.TemporaryDirectory() as folder:
        one, two = target_in(folder, member, "a"), target_in(folder, member, "b")
        formats.write(adapter, one, format=name)
        again = formats.read(one, format=name)
        assert_same(again, adapter)
        assert {update.kind for update in again.values()} <= {update.kind for update in adapter.values()} | {"lora"}
        report = convert(one, two, to=name, source_format=name)
        assert report.is_identical and report.lost == report.dropped == () and report.relative_error == 0
        last = formats.read(two, format=name)
        assert dict(last.provenance.metadata) == dict(again.provenance.metadata)
        assert last.provenance.config_text == again.provenance.config_text


@pytest.mark.parametrize(("first", "second"), PAIRS)
@settings(max_examples=4)
@given(data=st.data())
def test_there_and_back_keeps_sites_and_updates(first: str, second: str, data: st.DataObject) -> None:
    one, two = WRITTEN[first], WRITTEN[second]
    can = first in CONVOLUTIONS and second in CONVOLUTIONS
    kind = data.draw(st.sampled_from(sorted({"lora", "dora", "loha"} & set(one.writes) & set(two.writes))))
    adapter = data.draw(adapters(one, two, kind=kind, has_convolutions=can))
    with tempfile.TemporaryDirectory() as folder:
        source, there, back = (target_in(folder, *pair) for pair in ((one, "a"), (two, "b"), (one, "c")))
        formats.write(adapter, source, format=first)
        for here, from_, target, to in ((source, one, there, two), (there, two, back, one)):
            expected = lost_between(from_, to)
            report = convert(
                here,
                target,
                to=to.name,
                source_format=from_.name,
                base_config=BASE,
                is_loss_allowed=bool(expected),
            )
            assert {loss.what for loss in report.lost} == expected
        assert_same(formats.read(back, format=first), formats.read(source, format=first))


@pytest.mark.parametrize("name", ["kohya", "lycoris", "diffusers"])
def test_a_missing_alpha_and_an_alpha_at_each_site(name: str, tmp_path: Path) -> None:
    """alpha/rank where it is stated, 1 where it is not: site by site, in one file."""
    rng = np.random.default_rng(0)
    suffixes = ("lora_down.weight", "lora_up.weight") if name != "diffusers" else ("lora.down.weight", "lora.up.weight")
    tensors: dict[str, Any] = {}
    for index, alpha in enumerate((None, 1.0, 8.0, 0.0)):
        site = f"lora_te_text_model_encoder_layers_{index}_mlp_fc1" if name != "diffusers" else f"unet.block.{index}.q"
        tensors[f"{site}.{suffixes[0]}"] = rng.standard_normal((4, 6)).astype(np.float32)
        tensors[f"{site}.{suffixes[1]}"] = rng.standard_normal((5, 4)).astype(np.float32)
        if alpha is not None:
            tensors[f"{site}.alpha"] = np.array(alpha, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    adapter = formats.read(tmp_path / "a.safetensors", format=name)
    assert [adapter[site].scale for site in sorted(adapter)] == [1.0, 0.25, 2.0, 1.0]
    target = tmp_path / "out"
    report = convert(tmp_path / "a.safetensors", target, to="peft", source_format=name)
    assert report.lost == () and any(loss.what == "scale-assumed" for loss in report.dropped)
    assert_same(formats.read(target), adapter)
