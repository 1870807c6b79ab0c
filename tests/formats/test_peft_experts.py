"""PEFT LoRA on fused parameters: experts as sites of their own, and how they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError

P = "base_model.model."
Folder = Callable[..., Path]
Factors = Callable[..., dict[str, Any]]


def fused(count: int, rank: int = 2, out: int = 5, in_: int = 4, level: str = "") -> dict[str, Any]:
    rng = np.random.default_rng(7 + len(level))
    module = f"{P}l.mlp.experts{level}"
    return {
        f"{module}.lora_A.weight": rng.standard_normal((count * rank, in_)),
        f"{module}.lora_B.weight": rng.standard_normal((out, count * rank)),
    }


def test_experts_are_sites_of_their_own_and_views(peft_folder: Folder, tmp_path: Path) -> None:
    config = {"target_parameters": ["mlp.experts.down_proj"], "peft_version": "0.21.2"}
    adapter = formats.read(peft_folder(fused(3), config))
    assert list(adapter) == [f"l.mlp.experts.down_proj[{e}]" for e in range(3)]
    assert adapter.original is not None
    A, B = (adapter.original[f"{P}l.mlp.experts.lora_{half}.weight"] for half in "AB")
    for expert, update in enumerate(adapter.values()):
        assert (update.shape, update.rank, update.scale, update.is_transposed) == ((5, 4), 2, 2.0, False)
        np.testing.assert_array_equal(update.stored["A"], A[2 * expert : 2 * expert + 2])
        np.testing.assert_array_equal(update.stored["B"], B.reshape(5, 2, 3)[:, :, expert])
        assert all(np.shares_memory(update.stored[role], tensor) for role, tensor in (("A", A), ("B", B)))
    assert [note.code for note in adapter.notes] == ["expert-layout"]
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "out")
    again = formats.read(tmp_path / "out")
    assert again.original is not None and list(again) == list(adapter)
    np.testing.assert_array_equal(again.original[f"{P}l.mlp.experts.lora_B.weight"], B)
    assert not any(update.is_transposed for update in again.values())


@pytest.mark.parametrize(
    ("version", "base", "is_transposed"),
    [
        (None, None, True),
        ("0.18.1", "Qwen/Qwen3-30B-A3B", True),
        ("0.18.2.dev0@UNKNOWN", None, True),
        ("0.19.0", "Qwen/Qwen3-30B-A3B", False),
        ("0.21.2", "unsloth/gpt-oss-20b-bnb-4bit", True),
        ("0.21.2", "rhymes-ai/Aria", True),
        ("0.21.2", "malaria/model", False),
        (7, None, False),
    ],
)
def test_the_layout_of_experts_follows_the_version_and_the_base(
    peft_folder: Folder, version: Any, base: str | None, is_transposed: bool
) -> None:
    config = {
        "target_parameters": ["experts.down_proj"],
        "peft_version": version,
        "base_model_name_or_path": base,
    }
    adapter = formats.read(peft_folder(fused(3), config))
    assert {update.is_transposed for update in adapter.values()} == {is_transposed}


@pytest.mark.parametrize(
    ("version", "layout"),
    [(None, "fixed"), ("0.18.1", "fixed"), ("0.18.2.dev0", "unknown"), ("0.19.0", "open"), ("0.21.2", "open")],
)
def test_how_experts_lie_is_fixed_by_old_versions_and_open_since(
    peft_folder: Folder, version: Any, layout: str, tmp_path: Path
) -> None:
    adapter = formats.read(peft_folder(fused(3), {"target_parameters": ["experts.w"], "peft_version": version}))
    assert {update.layout for update in adapter.values() if isinstance(update, LowRank)} == {layout}
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "out")
    again = formats.read(tmp_path / "out")
    assert {update.layout for update in again.values() if isinstance(update, LowRank)} == {layout}


def test_experts_of_two_layouts_are_not_written(tmp_path: Path) -> None:
    update = LowRank(np.ones((3, 1)), np.ones((1, 3)))
    turned = LowRank(np.ones((3, 1)), np.ones((1, 3)), is_transposed=True)
    sites = {
        f"experts.{name}[{e}]": one for name, one in (("gate_up_proj", update), ("down_proj", turned)) for e in (0, 1)
    }
    with pytest.raises(AdapterError, match="once for all experts how the base stores them"):
        formats.write(Adapter(sites), tmp_path / "out")


def test_nested_parameters_are_told_apart_where_that_can_be_known(peft_folder: Folder, tmp_path: Path) -> None:
    tensors = fused(2) | fused(2, out=6, in_=5, level=".base_layer")
    config = {"target_parameters": ["experts.down_proj", "experts.gate_up_proj"], "peft_version": "0.20.0"}
    adapter = formats.read(peft_folder(tensors, config))
    assert adapter["l.mlp.experts.gate_up_proj[1]"].shape == (6, 5)
    assert adapter["l.mlp.experts.down_proj[1]"].shape == (5, 4)
    assert {note.code for note in adapter.notes} == {"expert-layout", "expert-names"}
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "out")
    again = formats.read(tmp_path / "out").original
    assert again is not None and {key: value.tobytes() for key, value in again.items()} == {
        key: value.tobytes() for key, value in tensors.items()
    }
    adapter = formats.read(peft_folder(tensors, config | {"target_parameters": ["experts.w1", "experts.w2"]}))
    assert adapter["l.mlp.experts.#0[0]"].shape == (6, 5) and adapter["l.mlp.experts.#1[0]"].shape == (5, 4)
    assert "does not tell which" in " ".join(note.text for note in adapter.notes)
    with pytest.raises(AdapterError, match="name of the fused parameter is not known"):
        formats.write(adapter.with_sites(dict(adapter)), tmp_path / "other")


def test_one_expert_and_the_weight_of_a_layer_are_plain_matrices(peft_folder: Folder, lora_factors: Factors) -> None:
    adapter = formats.read(peft_folder(lora_factors("a.q", "v"), {"target_parameters": ["a.q.weight"]}))
    assert list(adapter) == ["v", "a.q"] and adapter.notes == ()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "names only target_parameters tells"),
        ({"target_parameters": ["experts.w"], "r": 3}, "no multiple of the rank"),
        ({"target_parameters": ["experts.w"], "r": 1 << 40}, "no multiple of the rank"),
    ],
)
def test_fused_parameters_that_do_not_fit_are_errors(peft_folder: Folder, config: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        formats.read(peft_folder(fused(2, level=".base_layer"), config))


def test_experts_that_differ_are_not_written(peft_folder: Folder, tmp_path: Path) -> None:
    adapter = formats.read(peft_folder(fused(3), {"target_parameters": ["experts.w"]}))
    with pytest.raises(AdapterError, match="do not fit together"):
        formats.write(
            adapter.with_sites({site: adapter[site] for site in list(adapter)[1:]}), tmp_path / "out", format="peft"
        )
