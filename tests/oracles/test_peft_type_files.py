"""Files of PEFT's structured types: put into a base, written back as they were, and damaged in every way."""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.errors import AdapterError
from peft_layers import SINGLE, adapted, linear_layers, peft, saved, torch

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_double")]


CONFIGS: dict[str, Any] = {
    "RANDLORA": lambda: peft.RandLoraConfig(r=3),
    "VBLORA": lambda: peft.VBLoRAConfig(r=2, num_vectors=9, vector_length=4),
    "VBLORA-topk": lambda: peft.VBLoRAConfig(r=2, num_vectors=9, vector_length=4, save_only_topk_weights=True),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=20),
    "WAVEFT": lambda: peft.WaveFTConfig(n_frequency=20),
    "MISS": lambda: peft.MissConfig(r=2),
    "MISS-mini": lambda: peft.MissConfig(r=2, mini_r=4, init_weights="mini"),
    "MISS-bat": lambda: peft.MissConfig(r=2, init_weights="bat"),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, coft=True),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4),
    "HRA": lambda: peft.HRAConfig(r=3, apply_GS=True),
    "C3A": lambda: peft.C3AConfig(block_size=4),
    "SHIRA": lambda: peft.ShiraConfig(r=1),
    "HIRA": lambda: peft.HiraConfig(r=2),
    "ROAD": lambda: peft.RoadConfig(group_size=2),
    "UNILORA": lambda: peft.UniLoraConfig(r=2, theta_d_length=11, save_indices=True),
    "PVERA": lambda: peft.PveraConfig(r=2),
    "DEFT": lambda: peft.DeftConfig(r=2, alpha=3),
    "DEFT-qr": lambda: peft.DeftConfig(r=2, decomposition_method="qr"),
    "BEFT": lambda: peft.BeftConfig(),
    "OSF": lambda: peft.OSFConfig(),
    "PEANUT": lambda: peft.PeanutConfig(r=2, depth=1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_put_into_the_base_model_it_makes_what_peft_merges(name: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    model = linear_layers({"layer": (12, 8), "other": (8, 20)}).double()
    base = copy.deepcopy(model)
    wrapped = adapted(model, CONFIGS[name]())
    adapter = saved(wrapped, tmp_path)
    merged = wrapped.merge_and_unload()
    with adapter.apply_to(base):
        for site in adapter:
            one, two = getattr(base, site), getattr(merged, site)
            assert torch.allclose(one.weight, two.weight, rtol=SINGLE, atol=SINGLE)
            assert torch.allclose(one.bias, two.bias, rtol=SINGLE, atol=SINGLE)
    assert list(adapter) == ["layer", "other"]


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_that_was_not_edited_is_written_as_it_was(name: str, tmp_path: Path) -> None:
    adapter = saved(adapted(linear_layers({"layer": (12, 8)}), CONFIGS[name]()), tmp_path / "source")
    formats.write(adapter, tmp_path / "target")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        first, second = ((tmp_path / folder / file) for folder in ("source", "target"))
        if file.endswith("json"):
            assert first.read_text() == second.read_text()
        else:
            one, two = safetensors.numpy.load_file(first), safetensors.numpy.load_file(second)
            assert set(one) == set(two) and all(np.array_equal(one[key], two[key]) for key in one)


HOSTILE: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    10**30,
    2.5,
    1e300,
    -1e9,
    "",
    "x" * 200,
    "bat",
    [],
    [1],
    {},
    {"a": 1},
]


def damaged(tensor: Any) -> Iterator[Any]:
    """The tensor in ways that no trainer saves it."""
    yield tensor.astype(np.int64)
    yield tensor.astype(np.float16)
    yield np.full_like(tensor, 2**31 - 1 if tensor.dtype.kind in "iu" and tensor.itemsize > 2 else 120)
    yield np.zeros_like(tensor)
    yield np.zeros((0, *tensor.shape[1:]), tensor.dtype)
    yield tensor.reshape(-1)
    yield np.ascontiguousarray(tensor.T)
    yield tensor[None]
    yield np.concatenate((tensor, tensor))
    yield np.ascontiguousarray(tensor[..., :1])
    yield np.zeros((), tensor.dtype)
    if tensor.dtype.kind == "f":
        yield np.full_like(tensor, np.nan)
        yield np.full_like(tensor, 1e300)


def use(folder: Path, shape: tuple[int, int]) -> bool:
    """Whether the file could be read and used; every failure must be one of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            updates: dict[str, Any] = dict(formats.read(folder))
            for update in updates.values():
                update.delta_weight(np.float64, base=np.ones(shape))
                update.delta_bias(np.float64, base=np.ones(shape[0]))
                if update.needs != "base weight":
                    resolved = update.resolved(shape)
                    resolved.norm()
                    resolved.spectrum()
    except AdapterError:
        return False
    return True


@pytest.mark.parametrize("name", CONFIGS)
def test_damaged_files_give_one_kind_of_error(name: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    wrapped = adapted(linear_layers({"layer": (12, 8)}), CONFIGS[name]())
    wrapped.save_pretrained(tmp_path)
    weights, config_file = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors, config = safetensors.numpy.load_file(weights), json.loads(config_file.read_text())
    assert use(tmp_path, (8, 12))
    refused = 0
    for key, tensor in tensors.items():
        for value in (None, *damaged(tensor)):
            changed = {other: one for other, one in tensors.items() if other != key} | (
                {} if value is None else {key: value}
            )
            safetensors.numpy.save_file(changed, weights)
            refused += not use(tmp_path, (8, 12))
    assert refused >= 6 * len(tensors)
    safetensors.numpy.save_file(tensors, weights)
    for field, value in itertools.product(config, HOSTILE):
        if field not in ("peft_type", "target_modules"):
            config_file.write_text(json.dumps(config | {field: value}))
            use(tmp_path, (8, 12))
    config_file.write_text(json.dumps(config))
    for shape in ((1, 1), (7, 12), (8, 11), (12, 8), (16, 24)):
        use(tmp_path, shape)
