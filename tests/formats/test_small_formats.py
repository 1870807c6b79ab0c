"""loralib, cloneofsimo's lora and Sam_LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter
from lorascope.errors import AdapterError

RNG = np.random.default_rng(0)
B, A = RNG.standard_normal((5, 2)), RNG.standard_normal((2, 4))


def read(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Adapter:
    safetensors.numpy.save_file(tensors, path / "x.safetensors", metadata)
    return formats.read(path / "x.safetensors")


def merged_delta(A: Any, B: Any, groups: int) -> Any:
    """``MergedLinear.train`` of loralib: a grouped convolution, without its scale and its rows of zeros."""
    torch: Any = pytest.importorskip("torch")
    a, b = torch.tensor(A), torch.tensor(B)
    return torch.nn.functional.conv1d(a.unsqueeze(0), b.unsqueeze(-1), groups=groups).squeeze(0).numpy()


def test_loralib_without_its_alpha(tmp_path: Path) -> None:
    adapter = read(tmp_path, {"l.q.lora_A": A, "l.q.lora_B": B, "score.weight": B})
    update = adapter["l.q"]
    assert (adapter.provenance.format, update.scale, update.alpha) == ("loralib", 0.5, None)
    assert [note.code for note in adapter.notes] == ["scale-unknown", "saved-layers"]
    assert "scale unknown" in adapter.notes[0].text
    np.testing.assert_allclose(update.delta_weight(np.float64), 0.5 * B @ A)


def test_loralib_with_an_alpha_beside_it(tmp_path: Path) -> None:
    adapter = read(tmp_path, {"q.lora_A": A, "q.lora_B": B, "q.alpha": np.array(6.0)})
    assert (adapter["q"].scale, adapter["q"].alpha, adapter.notes) == (3.0, 6.0, ())


@pytest.mark.parametrize("groups", [2, 3])
def test_a_merged_layer_is_a_site_for_each_part(tmp_path: Path, groups: int) -> None:
    A, B = RNG.standard_normal((groups * 2, 7)), RNG.standard_normal((groups * 5, 2))
    adapter = read(tmp_path, {"h.c_attn.lora_A": A, "h.c_attn.lora_B": B})
    assert list(adapter) == [f"h.c_attn.#{group}" for group in range(groups)]
    assert {update.scale for update in adapter.values()} == {0.5}
    parts = np.concatenate([update.delta_weight(np.float64) for update in adapter.values()])
    np.testing.assert_allclose(parts, 0.5 * merged_delta(A, B, groups), rtol=1e-12)
    assert [note.code for note in adapter.notes] == ["scale-unknown", "fused-parts"]


def test_a_convolution_of_loralib(tmp_path: Path) -> None:
    """``Conv2d.train`` of loralib: (lora_B @ lora_A).view(weight.shape)."""
    out, channels, k, rank = 5, 4, 3, 2
    A, B = RNG.standard_normal((rank * k, channels * k)), RNG.standard_normal((out * k, rank * k))
    for name in ("c.weight", "c.conv.weight"):
        tensors = {"c.lora_A": A, "c.lora_B": B, name: np.zeros((out, channels, k, k))}
        update = read(tmp_path, tensors)["c"]
        assert (update.layer, update.base_shape, update.scale) == ("conv2d", (out, channels, k, k), 1 / rank)
        expected = (B @ A).reshape(out, channels, k, k) / rank
        np.testing.assert_allclose(update.delta_weight(np.float64), expected, rtol=1e-10, atol=1e-12)


def test_a_layout_is_told_by_a_weight_in_the_file_and_an_embedding_by_its_name(tmp_path: Path) -> None:
    pair = {"q.lora_A": A, "q.lora_B": B}
    assert not read(tmp_path, pair | {"q.weight": np.zeros((5, 4))})["q"].is_transposed
    assert read(tmp_path, pair | {"q.weight": np.zeros((4, 5))})["q"].is_transposed
    update = read(tmp_path, {"wte.lora_A": A, "wte.lora_B": B})["wte"]
    assert (update.layer, update.base_shape) == ("embedding", (4, 5))


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"q.lora_A": A}, "no partner"),
        ({"q.lora_A": A, "q.lora_B": B[:, :1][:3]}, "do not make a product"),
        ({"q.lora_A": A[:1], "q.lora_B": B}, "do not make a product"),
        ({"q.lora_A": A[:0], "q.lora_B": B}, "empty"),
        ({"q.lora_A": A[0], "q.lora_B": B}, "another shape"),
    ],
)
def test_a_damaged_loralib_file(tmp_path: Path, tensors: dict[str, Any], match: str) -> None:
    with pytest.raises(AdapterError, match=match):
        read(tmp_path, tensors)


def test_cloneofsimo_by_number(tmp_path: Path) -> None:
    down = RNG.standard_normal((2, 3, 2, 2))
    tensors = {
        "unet:0:up": B,
        "unet:0:down": A,
        "unet:1:up": B.reshape(5, 2, 1, 1),
        "unet:1:down": down,
        "<s1>": np.ones(8),
        "other": np.ones(8),
    }
    adapter = read(tmp_path, tensors, {"<s1>": "<embed>", "unet:0:rank": "2"})
    assert adapter.provenance.format == "cloneofsimo" and sorted(adapter) == ["unet:0", "unet:1"]
    np.testing.assert_allclose(adapter["unet:0"].delta_weight(np.float64), B @ A)
    assert adapter["unet:1"].base_shape == (5, 3, 2, 2)
    assert sorted(adapter.leftovers) == ["<s1>", "other"]
    assert [note.code for note in adapter.notes] == ["numbered-sites", "saved-tokens", "unknown-keys"]
    assert "1 learned token embedding <s1>, 8 values" in adapter.notes[1].text


def test_a_file_of_tokens_alone_says_so(tmp_path: Path) -> None:
    match = r"no LoRA tensors in this file \(1 learned token embedding <krk>, 768 values\)"
    with pytest.raises(AdapterError, match=match):
        read(tmp_path, {"<krk>": np.ones(768)})
    with pytest.raises(AdapterError, match=r"2 learned token embeddings <a>, <b>, 8 values each"):
        read(tmp_path, {"<a>": np.ones(8), "<b>": np.ones(8)})


def test_a_list_without_names(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    items = [torch.nn.Parameter(torch.tensor(item)) for item in (B, A, B[:3], A)]
    torch.save(items, tmp_path / "x.pt")
    adapter = formats.read(tmp_path / "x.pt")
    assert adapter.provenance.format == "cloneofsimo-list" and list(adapter) == ["0000", "0001"]
    np.testing.assert_allclose(adapter["0001"].delta_weight(np.float64), B[:3] @ A)
    torch.save(items[:3], tmp_path / "odd.pt")
    with pytest.raises(AdapterError, match="an up for each down"):
        formats.read(tmp_path / "odd.pt")
    torch.save(items[1:3], tmp_path / "turned.pt")
    with pytest.raises(AdapterError, match="do not make a product"):
        formats.read(tmp_path / "turned.pt")


def test_sam_lora(tmp_path: Path) -> None:
    tensors = {"w_a_002": A, "w_b_002": B, "w_a_003": A, "w_b_003": np.zeros_like(B), "prompt_encoder.x": B}
    adapter = read(tmp_path, tensors)
    q, v = "image_encoder.blocks.1.attn.qkv[0:5]", "image_encoder.blocks.1.attn.qkv[10:15]"
    assert adapter.provenance.format == "sam-lora" and sorted(adapter) == [q, v]
    assert adapter[q].scale == 1.0 and adapter[v].norm() == 0.0
    np.testing.assert_allclose(adapter[q].delta_weight(np.float64), B @ A)
    assert [note.code for note in adapter.notes] == ["numbered-sites", "unknown-keys"]
    assert adapter.notes[0].is_doubt  # no published encoder has one block, so the trainer may have left some out
    with pytest.raises(AdapterError, match="no partner"):
        read(tmp_path, {"w_a_000": A})
    with pytest.raises(AdapterError, match="two tensors are the factor"):
        read(tmp_path, {"w_a_000": A, "w_b_000": B, "w_a_0000": A})


def test_sam_lora_of_a_published_encoder_is_in_no_doubt(tmp_path: Path) -> None:
    pair = {"a": np.ones((1, 768), np.float16), "b": np.ones((768, 1), np.float16)}
    adapter = read(tmp_path, {f"w_{half}_{number:03d}": pair[half] for number in range(24) for half in "ab"})
    assert adapter.notes == () and len(adapter) == 24
    assert list(adapter)[-1] == "image_encoder.blocks.11.attn.qkv[1536:2304]"
