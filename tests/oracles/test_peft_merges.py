"""PEFT's ``add_weighted_adapter``: where its combination types and our methods mean the same, and where they do not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter
from lorascope.merge import METHODS, Parts, merge
from lorascope.merge.dropping import kept_at_random
from lorascope.symmetry.truncation import Cut
from peft_layers import Layers

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_double")]

NAMES, FULL = ("one", "two", "three"), 7
TOLERANCE = 1e-10  # of entries of order 1, in float64, through one SVD


@pytest.fixture
def model(in_double: None) -> Any:
    """A layer with three adapters of other ranks and scales, of which one is an rsLoRA."""
    torch.manual_seed(0)
    configs = [
        peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["wide"], use_rslora=rank == 3)
        for rank, alpha in ((2, 3), (3, 4), (1, 5))
    ]
    wrapped = peft.get_peft_model(Layers(wide=torch.nn.Linear(11, 7)), configs[0], adapter_name=NAMES[0])
    for name, config in zip(NAMES[1:], configs[1:], strict=True):
        wrapped.add_adapter(name, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return wrapped.double()


@pytest.fixture
def adapters(model: Any, tmp_path: Path) -> list[Adapter]:
    """The same three, from the files that PEFT saves."""
    model.save_pretrained(tmp_path)
    return [formats.read(tmp_path / name) for name in NAMES]


def theirs(model: Any, combination: str, weights: list[float], rank: int = FULL, **options: Any) -> Any:
    model.add_weighted_adapter(
        list(NAMES), weights, "merged", combination_type=combination, svd_rank=rank, svd_full_matrices=False, **options
    )
    layer = model.base_model.model.wide
    return (layer.lora_B["merged"].weight @ layer.lora_A["merged"].weight).detach().numpy()


def ours(adapters: list[Adapter], method: str, weights: list[float], rank: int = FULL, **options: Any) -> Any:
    done = merge(adapters, METHODS[method](**options), weights=weights, cut=Cut(rank=rank), dtype=np.float64)
    return done.adapter["wide"].delta_weight(np.float64)


def test_cat_is_linear(model: Any, adapters: list[Adapter]) -> None:
    weights = [0.7, -0.4, 1.5]
    np.testing.assert_allclose(theirs(model, "cat", weights), ours(adapters, "linear", weights), atol=TOLERANCE)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_svd_is_linear_cut_to_the_rank(model: Any, adapters: list[Adapter], rank: int) -> None:
    weights = [0.7, -0.4, 1.5]
    expected = theirs(model, "svd", weights, rank)
    np.testing.assert_allclose(ours(adapters, "linear", weights, rank), expected, atol=TOLERANCE)


def test_their_linear_has_cross_terms_and_ours_has_not(model: Any, adapters: list[Adapter]) -> None:
    """Of adapters of one rank, for the sums of factors that it takes are of no others."""
    pair = [adapters[0], adapters[0]]
    model.add_adapter("again", model.peft_config["one"])
    state = model.base_model.model.wide
    state.lora_A["again"].weight.data = -state.lora_A["one"].weight.data
    state.lora_B["again"].weight.data = -state.lora_B["one"].weight.data
    model.add_weighted_adapter(["one", "again"], [1.0, 1.0], "merged", combination_type="linear")
    cancelled = (state.lora_B["merged"].weight @ state.lora_A["merged"].weight).detach().numpy()
    assert np.abs(cancelled).max() < 1e-12  # (B − B)(A − A) of twice the same update
    expected = 2 * pair[0]["wide"].delta_weight(np.float64)
    np.testing.assert_allclose(ours(pair, "linear", [1.0, 1.0]), expected, atol=TOLERANCE)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_magnitude_prune_svd_is_magnitude_prune(model: Any, adapters: list[Adapter], density: float) -> None:
    weights = [0.7, -0.4, 1.5]
    expected = theirs(model, "magnitude_prune_svd", weights, density=density)
    np.testing.assert_allclose(
        ours(adapters, "magnitude-prune", weights, density=density), expected, atol=10 * TOLERANCE
    )


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties_svd_is_ties_where_weights_are_1(model: Any, adapters: list[Adapter], density: float) -> None:
    weights = [1.0, 1.0, 1.0]
    expected = theirs(model, "ties_svd", weights, density=density)
    np.testing.assert_allclose(ours(adapters, "ties", weights, density=density), expected, atol=10 * TOLERANCE)


def test_other_weights_of_ties_differ_as_documented(model: Any, adapters: list[Adapter]) -> None:
    """Theirs scale the result and do not vote; ours vote, and a factor on all of them changes nothing."""
    doubled = theirs(model, "ties_svd", [2.0, 2.0, 2.0], density=0.5)
    found = ours(adapters, "ties", [2.0, 2.0, 2.0], density=0.5)
    np.testing.assert_allclose(2 * found, doubled, atol=10 * TOLERANCE)
    np.testing.assert_allclose(ours(adapters, "ties", [1, 1, 1], density=0.5, factor=2.0), doubled, atol=1e-9)
    first = ours(adapters, "ties", [100.0, 1.0, 1.0], density=1.0)
    kept = adapters[0]["wide"].delta_weight(np.float64)
    agree = np.sign(first) == np.sign(kept)
    assert agree.mean() > 0.9  # 100 votes of 102: lost only where the update has next to nothing


@pytest.mark.parametrize(("theirs_is", "ours_is"), [("dare_linear_svd", "dare"), ("dare_ties_svd", "dare-ties")])
def test_dare_is_theirs_given_the_masks(
    theirs_is: str, ours_is: str, model: Any, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Parts("wide", [], np.zeros(0)).generator
    masks = iter([torch.from_numpy(kept_at_random(11, 0.6, random(k))(slice(0, 7))) for k in range(3)])
    monkeypatch.setattr(
        "peft.utils.merge_utils.random_pruning",
        lambda tensor, density, rescale: tensor * next(masks) / density,
    )
    weights = [1.0, 1.0, 1.0] if ours_is == "dare-ties" else [0.7, -0.4, 1.5]
    expected = theirs(model, theirs_is, weights, density=0.6)
    np.testing.assert_allclose(ours(adapters, ours_is, weights, density=0.6), expected, atol=10 * TOLERANCE)


def test_a_merged_file_of_other_ranks_is_loaded_and_gives_the_merged_outputs(
    model: Any, adapters: list[Adapter], tmp_path: Path
) -> None:
    weights = [0.7, -0.4, 1.5]
    done = merge(adapters, weights=weights, dtype=np.float64)
    formats.write(done.adapter, tmp_path / "merged", format="peft", dtype="float64")
    torch.manual_seed(0)
    base = Layers(wide=torch.nn.Linear(11, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "merged").double()
    x = torch.randn(5, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    deltas = [one["wide"].delta_weight(np.float64) for one in adapters]
    expected = sum(w * delta for w, delta in zip(weights, deltas, strict=True))
    layer = loaded.base_model.model.wide
    with torch.no_grad():
        moved = (layer(x) - layer.base_layer(x)).numpy()
    np.testing.assert_allclose(moved, x.numpy() @ expected.T, atol=TOLERANCE)
