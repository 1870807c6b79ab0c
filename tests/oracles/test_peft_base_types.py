"""PEFT's types that act on the base weight or look at it: read as it merges them and as it runs them."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.errors import AdapterError
from peft_layers import (
    DOUBLE,
    ODD,
    SINGLE,
    SIZES,
    Layers,
    adapted,
    checked,
    error,
    gpt2_layers,
    linear_layers,
    peft,
    saved,
    torch,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_double")]


OFT_FIELDS: list[dict[str, Any]] = [
    {"oft_block_size": 4, "use_cayley_neumann": False},
    {"r": 2, "oft_block_size": 0, "use_cayley_neumann": False, "block_share": True},
    {"oft_block_size": 2, "use_cayley_neumann": False, "coft": True, "eps": 0.1},
    {"oft_block_size": 4, "use_cayley_neumann": False, "block_share": True, "coft": True, "eps": 0.3},
    *({"oft_block_size": 4, "use_cayley_neumann": True, "num_cayley_neumann_terms": t} for t in (1, 2, 3, 4, 5, 6, 9)),
    {"r": 1, "oft_block_size": 0, "use_cayley_neumann": True, "coft": True, "eps": 0.5},
]


@pytest.mark.parametrize("fields", OFT_FIELDS, ids=str)
def test_oft(fields: dict[str, Any], tmp_path: Path) -> None:
    model = linear_layers(SIZES)
    wrapped = adapted(model, peft.OFTConfig(**fields), spread=0.2)
    if fields.get("num_cayley_neumann_terms") == 1:
        for site, update in saved(wrapped, tmp_path).items():
            base = getattr(model, site).base_layer.weight.detach().numpy()
            assert not update.delta_weight(np.float64, base=base).any()  # one term of the series: the identity
        return
    checked(wrapped, model, tmp_path, SINGLE if fields.get("coft") else DOUBLE)


@pytest.mark.parametrize("size", [1, 3])
def test_oft_of_a_convolution_as_it_is_merged(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Layers(conv=torch.nn.Conv2d(4, 6, size), other=torch.nn.Conv2d(8, 3, size))
    wrapped = adapted(model, peft.OFTConfig(oft_block_size=4, use_cayley_neumann=False), spread=0.2)
    checked(wrapped, model, tmp_path, DOUBLE, has_forward=False)
    image = torch.randn(1, 4, 5, 5)
    layer = wrapped.base_model.model.conv
    with torch.no_grad():
        run = layer(image)
        expected = (
            torch.nn.functional.conv2d(image, copy.deepcopy(wrapped).merge_and_unload().conv.weight)
            + (layer.base_layer.bias[:, None, None])
        )
    assert torch.allclose(run, expected) == (size == 1)  # PEFT's own two answers differ for larger kernels


def test_oft_of_an_embedding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Layers(tokens=torch.nn.Embedding(7, 12), types=torch.nn.Embedding(2, 8))
    wrapped = adapted(model, peft.OFTConfig(oft_block_size=4, use_cayley_neumann=False), spread=0.3)
    updates = checked(wrapped, model, tmp_path, DOUBLE, has_forward=False)
    assert updates["tokens"].layer == "embedding" and updates["tokens"].shape == (12, -1)
    with torch.no_grad():
        run = wrapped.base_model.model.tokens(torch.arange(7)).numpy()
    base = model.tokens.base_layer.weight.detach().numpy()
    assert error(run, base + updates["tokens"].delta_weight(np.float64, base=base)) < DOUBLE


def test_an_oft_series_of_peft_before_018_counts_its_last_term_twice(tmp_path: Path) -> None:
    model = linear_layers({"square": (4, 4)})
    wrapped = adapted(model, peft.OFTConfig(oft_block_size=4, use_cayley_neumann=True), spread=0.2)
    new = saved(wrapped, tmp_path)
    base = np.eye(4)
    stored = new["square"].stored["R"][0]
    skew = np.zeros((4, 4))
    skew[np.triu_indices(4, 1)] = stored
    skew -= skew.T
    fourth = np.linalg.matrix_power(skew, 4)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "peft_version"}))
    old = formats.read(tmp_path)["square"].delta_weight(np.float64, base=base)
    np.testing.assert_allclose(old, new["square"].delta_weight(np.float64, base=base) + fourth.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "fields", [{"boft_block_size": 4}, {"boft_block_size": 0, "boft_block_num": 1}, {"bias": "boft_only"}]
)
def test_boft(fields: dict[str, Any], tmp_path: Path) -> None:
    model = linear_layers(SIZES)
    wrapped = adapted(model, peft.BOFTConfig(**fields))
    checked(wrapped, model, tmp_path, DOUBLE)
    adapter = formats.read(tmp_path)  # a bias that is trained beside the rotation is no part of the update
    assert len(adapter.leftovers) == (len(SIZES) if "bias" in fields else 0)
    assert [note.code for note in adapter.notes] == ["saved-biases"] * ("bias" in fields)


@pytest.mark.parametrize("size", [1, 3])
def test_boft_of_a_convolution(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Layers(conv=torch.nn.Conv2d(4, 6, size), other=torch.nn.Conv2d(8, 3, size))
    checked(adapted(model, peft.BOFTConfig(boft_block_size=4)), model, tmp_path, DOUBLE, has_forward=False)


class BlockDiagonal:
    """What PEFT's CUDA extension computes, on the CPU: [n, blocks, b, b] → [n, blocks · b, blocks · b]."""

    @staticmethod
    def apply(blocks: Any) -> Any:
        return torch.stack([torch.block_diag(*factor) for factor in blocks])


@pytest.mark.parametrize(("factors", "size"), [(2, 2), (2, 4), (3, 2)])
def test_boft_with_several_factors(factors: int, size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layer = pytest.importorskip("peft.tuners.boft.layer")
    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(layer, "FastBlockDiag", BlockDiagonal)
    model = linear_layers({"wide": (16, 6), "tall": (24, 30)})
    wrapped = adapted(model, peft.BOFTConfig(boft_block_size=size, boft_n_butterfly_factor=factors))
    updates = checked(wrapped, model, tmp_path, DOUBLE)
    assert updates["wide"].stored["R"].shape[0] == factors


@pytest.mark.parametrize("fields", [{"r": 4}, {"r": 3, "apply_GS": True}, {"r": 7}])
def test_hra(fields: dict[str, Any], tmp_path: Path) -> None:
    model = linear_layers(ODD)
    updates = checked(adapted(model, peft.HRAConfig(**fields)), model, tmp_path, DOUBLE)
    assert updates["wide"].rank == min(fields["r"], 11)


@pytest.mark.parametrize("size", [1, 3])
def test_hra_of_a_convolution(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Layers(conv=torch.nn.Conv2d(4, 6, size), other=torch.nn.Conv2d(5, 3, size))
    checked(adapted(model, peft.HRAConfig(r=3)), model, tmp_path, DOUBLE, has_forward=False)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_hira(make: Any, rank: int, tmp_path: Path) -> None:
    model = make(ODD)
    checked(adapted(model, peft.HiraConfig(r=rank, fan_in_fan_out=make is gpt2_layers)), model, tmp_path, DOUBLE)


def test_hira_of_convolutions_and_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Layers(
        line=torch.nn.Conv1d(4, 6, 3),
        point=torch.nn.Conv2d(4, 6, 1),
        plane=torch.nn.Conv2d(4, 6, (3, 2)),
        tokens=torch.nn.Embedding(7, 5),
    )
    checked(adapted(model, peft.HiraConfig(r=3)), model, tmp_path, DOUBLE, has_forward=False)


@pytest.mark.parametrize(("variant", "group"), list(itertools.product(["road_1", "road_2", "road_4"], [2, 4])))
def test_road(variant: str, group: int, tmp_path: Path) -> None:
    model = linear_layers({"wide": (11, 8), "tall": (7, 20)})
    wrapped = adapted(model, peft.RoadConfig(variant=variant, group_size=group))
    updates = checked(wrapped, model, tmp_path, DOUBLE)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    for site, update in updates.items():
        bias = getattr(model, site).base_layer.bias.detach().numpy()
        expected = getattr(merged, site).bias.detach().numpy() - bias
        assert error(update.delta_bias(np.float64, base=bias), expected) < DOUBLE
        assert update.delta_bias(np.float64) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 2},
        {"r": 3, "alpha": 5},
        {"r": 2, "decomposition_method": "qr", "alpha": 3},
        {"r": 2, "para": True},
        {"r": 3, "para": True, "decomposition_method": "qr"},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_deft(make: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    model = make(ODD)
    checked(adapted(model, peft.DeftConfig(**fields)), model, tmp_path, SINGLE)


def test_beft(tmp_path: Path) -> None:
    model = linear_layers(ODD)
    wrapped = adapted(model, peft.BeftConfig())
    adapter = saved(wrapped, tmp_path)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    for site, update in adapter.items():
        base = getattr(model, site).base_layer
        assert not update.delta_weight(np.float64, base=base.weight.detach().numpy()).any()
        expected = (getattr(merged, site).bias - base.bias).detach().numpy()
        found = update.delta_bias(np.float64, base=base.bias.detach().numpy())
        assert error(found, expected) < DOUBLE


@pytest.mark.parametrize("rank", [None, 2, 6])
def test_osf(rank: int | None, tmp_path: Path) -> None:
    model = linear_layers(ODD)
    config = peft.OSFConfig(effective_rank=rank)
    checked(adapted(model, config), model, tmp_path, SINGLE)


@pytest.mark.parametrize("function", ["relu", "tanh", "sigmoid", "silu", "linear"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_peanut(function: str, depth: int, tmp_path: Path) -> None:
    model = linear_layers(ODD)
    config = peft.PeanutConfig(r=3, depth=depth, act_fn=function, scaling=0.7)
    checked(adapted(model, config), model, tmp_path, DOUBLE)


def test_peanut_with_another_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not read by this version"):
        saved(adapted(linear_layers(ODD), peft.PeanutConfig(r=3, act_fn="gelu")), tmp_path)
