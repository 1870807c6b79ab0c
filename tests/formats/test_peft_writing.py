"""PEFT LoRA written: letter by letter where nothing was edited, and what ``peft`` itself says of the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError

P = "base_model.model."
Folder = Callable[..., Path]
Factors = Callable[..., dict[str, Any]]


def test_an_unedited_adapter_is_written_back_letter_by_letter(
    peft_folder: Folder, lora_factors: Factors, tmp_path: Path
) -> None:
    tensors = lora_factors("q") | {"odd": np.ones((2, 2), ml_dtypes.float8_e4m3fn), "s": np.array(3, np.int64)}
    source = peft_folder(tensors, {"alpha": 1, "strange": ["ä"]}, metadata={"format": "pt", "who": "me"})
    adapter = formats.read(source)
    formats.write(adapter, tmp_path / "out")
    again = formats.read(tmp_path / "out")
    assert again.original is not None
    assert {key: (v.dtype, v.tobytes()) for key, v in again.original.items()} == {
        key: (v.dtype, v.tobytes()) for key, v in tensors.items()
    }
    assert again.provenance.metadata == {"format": "pt", "who": "me"}
    assert (tmp_path / "out/adapter_config.json").read_bytes() == (source / "adapter_config.json").read_bytes()


def mixed() -> Adapter:
    """Layers of all kinds with their own ranks and scales."""
    rng = np.random.default_rng(3)

    def low_rank(out: int, in_: int, rank: int, **options: Any) -> LowRank:
        B, A = rng.standard_normal((out, rank)), rng.standard_normal((rank, in_))
        return LowRank(B.astype(np.float32), A.astype(np.float32), **options)

    return Adapter(
        {
            "linear": low_rank(6, 4, 3, scale=0.7 / 3),
            "block.linear": low_rank(5, 6, 1, scale=-2.0),
            "conv": low_rank(4, 27, 2, scale=1 / 3, layer="conv2d", kernel=(3, 3, 3)),
            "embedding": low_rank(4, 10, 2, scale=1.7, layer="embedding", is_transposed=True),
        }
    )


def test_mixed_ranks_scales_and_layers_survive_writing(tmp_path: Path) -> None:
    adapter = mixed()
    formats.write(adapter, tmp_path / "out")
    again = formats.read(tmp_path / "out")
    assert set(again) == set(adapter)
    for site, update in adapter.items():
        assert (again[site].layer, again[site].base_shape) == (update.layer, update.base_shape)
        assert again[site].scale == update.scale
        np.testing.assert_array_equal(again[site].delta_weight(), update.delta_weight())


def test_peft_loads_what_is_written_and_computes_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    adapter = mixed()
    formats.write(adapter, tmp_path / "out")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 6)
            self.block = torch.nn.ModuleDict({"linear": torch.nn.Linear(6, 5)})
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.embedding = torch.nn.Embedding(10, 4)

    model = peft.PeftModel.from_pretrained(Net(), tmp_path / "out")
    modules = dict(model.base_model.model.named_modules())
    for site, update in adapter.items():
        theirs = modules[site].get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(theirs, update.delta_weight(), rtol=1e-5, atol=1e-6)


def test_what_peft_saves_is_read_as_it_computes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["0", "1", "2"],
        rank_pattern={"1": 2},
        alpha_pattern={"2": 7},
        init_lora_weights=False,
    )
    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Conv2d(3, 4, 3), torch.nn.Embedding(10, 4)), config
    )
    model.save_pretrained(tmp_path)
    adapter = formats.read(tmp_path)
    assert len(adapter) == 3
    for site, update in adapter.items():
        theirs = model.base_model.model[int(site)].get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(update.delta_weight(), theirs, rtol=1e-5, atol=1e-6)


def test_a_scale_that_no_alpha_reaches_moves_by_one_unit_at_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scales = rng.uniform(1e-3, 4, 300)
    sites = {f"s{i}": LowRank(np.ones((4, 3)), np.ones((3, 4)), scale=float(s)) for i, s in enumerate(scales)}
    formats.write(Adapter(sites), tmp_path / "out")
    again = formats.read(tmp_path / "out")
    read = np.array([again[site].scale for site in sites])
    assert np.all(np.abs(read - scales) <= np.spacing(scales))
    assert np.mean(read == scales) > 0.5


def test_rank_zero_is_written_as_a_zero_rank(tmp_path: Path) -> None:
    formats.write(Adapter({"q": LowRank(np.ones((3, 0)), np.ones((0, 2)))}), tmp_path / "out")
    again = formats.read(tmp_path / "out")
    assert again["q"].rank == 1 and again["q"].norm() == 0


def test_an_edit_drops_the_original_and_keeps_saved_modules(
    peft_folder: Folder, lora_factors: Factors, tmp_path: Path
) -> None:
    head = {f"{P}classifier.weight": np.full((2, 2), 7, np.float32)}
    source = peft_folder(
        lora_factors("q", "v") | head, {"modules_to_save": ["classifier"], "init_lora_weights": "pissa"}
    )
    adapter = formats.read(source)
    formats.write(adapter.with_sites({"q": adapter["q"]}), tmp_path / "out", dtype="bfloat16")
    again = formats.read(tmp_path / "out")
    assert list(again) == ["q"] and again["q"].dtype == "bfloat16"
    assert again.leftovers[f"{P}classifier.weight"].tolist() == [[7, 7], [7, 7]]
    assert not again.provenance.is_relative_to_base


def test_a_dtype_that_cannot_hold_the_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="too large"):
        formats.write(Adapter({"q": LowRank(np.full((2, 1), 1e6), np.ones((1, 2)))}), tmp_path / "o", dtype="float16")
    assert not (tmp_path / "o").exists()
