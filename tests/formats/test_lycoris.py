"""LyCORIS files, written by hand: kinds side by side, formulas, damage and writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from formats.lycoris_files import W, draw, saved, under
from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.parametrisations.dora import decorated


def half_of(scale: float) -> Any:
    return lambda dim: Scale(scale, scale * dim)


LOKR: dict[str, dict[str, Any]] = {
    "both whole": {"w1": draw(2, 3), "w2": draw(4, 5)},
    "whole convolution": {"w1": draw(2, 3), "w2": draw(4, 5, 3, 2)},
    "second factored": {"w1": draw(2, 3), "w2_a": draw(4, 2), "w2_b": draw(2, 5)},
    "first factored": {"w1_a": draw(6, 2), "w1_b": draw(2, 7), "w2": draw(3, 4)},
    "both factored": {"w1_a": draw(6, 2), "w1_b": draw(2, 7), "w2_a": draw(8, 3), "w2_b": draw(3, 9)},
    "dim above the sides": {"w1": draw(3, 2), "w2_a": draw(4, 7), "w2_b": draw(7, 5)},
    "Tucker": {"w1": draw(2, 3), "w2_a": draw(2, 4), "w2_b": draw(3, 5), "t2": draw(2, 3, 3, 2)},
}


@pytest.mark.parametrize("tensors", LOKR.values(), ids=LOKR)
def test_everything_that_a_lokr_says_is_that_of_the_kronecker_product(tensors: dict[str, Any]) -> None:
    update = built("lokr", Parts("s", tensors, scale_of=half_of(0.5)))
    w1 = tensors["w1"] if "w1" in tensors else tensors["w1_a"] @ tensors["w1_b"]
    if "t2" in tensors:
        w2 = np.einsum("mnxy,mo,ni->oixy", tensors["t2"], tensors["w2_a"], tensors["w2_b"])
    else:
        w2 = tensors["w2"] if "w2" in tensors else tensors["w2_a"] @ tensors["w2_b"]
    whole = 0.5 * np.kron(w1.reshape(*w1.shape, *(1,) * (w2.ndim - 2)), w2)
    np.testing.assert_allclose(update.delta_weight(np.float64), whole, rtol=1e-12, atol=1e-13)
    matrix = whole.reshape(len(whole), -1)
    B, A, scale = update.factors(np.float64, is_wide_allowed=True)  # pyright: ignore[reportCallIssue]
    np.testing.assert_allclose(scale * (B @ A), matrix, rtol=1e-10, atol=1e-12)
    assert B.shape[1] == update.rank == np.linalg.matrix_rank(matrix)
    values = np.linalg.svd(matrix, compute_uv=False)
    found = update.spectrum()
    assert found is not None and len(found) == update.rank
    np.testing.assert_allclose(found, values[: update.rank], rtol=1e-10)
    assert update.norm() == pytest.approx(np.linalg.norm(matrix), rel=1e-12)
    x = draw(2, 3, matrix.shape[1])
    np.testing.assert_allclose(update.apply(x), x @ matrix.T, rtol=1e-10, atol=1e-12)


def test_the_norm_of_a_lokr_that_has_no_room_is_known(tmp_path: Path) -> None:
    side = 1 << 13
    tensors = under("lora_unet_x", lokr_w1=draw(side, 1), lokr_w2_a=draw(side, 1), lokr_w2_b=draw(1, side), alpha=1.0)
    update = formats.read(saved(tmp_path / "x.safetensors", tensors))["lora_unet_x"]
    assert update.shape == (side**2, side)
    parts = [np.linalg.norm(tensors[f"lora_unet_x.lokr_{role}"]) for role in ("w1", "w2_a", "w2_b")]
    assert update.norm() == pytest.approx(np.prod(parts), rel=1e-12)
    with pytest.raises(AdapterError, match="too large"):
        update.delta_weight()


@pytest.mark.parametrize(("alpha", "expected"), [(6.0, 3.0), (0.0, 1.0), (None, 1.0)])
def test_the_scale_of_a_lokr_and_of_one_with_both_factors_whole(
    tmp_path: Path, alpha: float | None, expected: float
) -> None:
    stated = {} if alpha is None else {"alpha": alpha}
    tensors = under("a", lokr_w1=draw(2, 2), lokr_w2_a=draw(4, 2), lokr_w2_b=draw(2, 4), **stated)
    tensors |= under("b", lokr_w1=draw(2, 2), lokr_w2=draw(4, 4), **stated)
    adapter = formats.read(saved(tmp_path / "x.safetensors", tensors))
    assert (adapter["a"].scale, adapter["b"].scale) == (expected, 1.0)
    assumed = [note.site for note in adapter.notes if note.code == "scale-assumed"]
    assert assumed == ([] if alpha else ["a"])


def test_a_scalar_multiplies_the_update(tmp_path: Path) -> None:
    tensors = under("x", lokr_w1=draw(2, 2), lokr_w2=draw(4, 4), scalar=0.5)
    tensors |= under("y", lora_up__weight=draw(4, 2), lora_down__weight=draw(2, 3), alpha=1.0, scalar=-3.0)
    adapter = formats.read(saved(tmp_path / "x.safetensors", tensors))
    assert (adapter["x"].scale, adapter["y"].scale) == (0.5, -1.5)


def test_a_given_scale_replaces_that_of_the_pair_and_neither_the_scalar_nor_the_whole_bias(tmp_path: Path) -> None:
    up, down, bias = draw(4, 2), draw(2, 3), draw(4)
    pair = {"lora_up__weight": up, "lora_down__weight": down, "diff_b": bias}
    tensors = under("x", **pair) | under("y", scalar=-0.5, **pair) | under("z", scalar=0.0, **pair)
    tensors |= under("d", dora_scale=np.abs(draw(4, 1)), scalar=-0.5, **pair)
    adapter = formats.read(saved(tmp_path / "a.safetensors", tensors), scale=3.0)
    for site, scale in {"x": 3.0, "y": -1.5, "z": 0.0, "d": -1.5}.items():
        update = adapter[site]
        assert update.scale == scale
        np.testing.assert_array_equal(update.delta_bias(np.float64), bias)
        if site != "d":
            np.testing.assert_allclose(update.delta_weight(np.float64), scale * up @ down, rtol=1e-12)
    base = draw(4, 3)
    scaled = base - 1.5 * up @ down
    expected = scaled * (tensors["d.dora_scale"] / np.linalg.norm(scaled, axis=1, keepdims=True))
    np.testing.assert_allclose(base + adapter["d"].delta_weight(np.float64, base=base), expected, rtol=1e-12)
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "b.safetensors", format="kohya")
    again = formats.read(tmp_path / "b.safetensors")
    for site, update in adapter.items():
        np.testing.assert_array_equal(again[site].delta_bias(np.float64), bias)
        if site != "d":
            np.testing.assert_array_equal(again[site].delta_weight(np.float64), update.delta_weight(np.float64))


@pytest.mark.parametrize("to", ["peft", "diffusers"])
def test_a_whole_bias_becomes_one_that_the_scale_multiplies(tmp_path: Path, to: str) -> None:
    pair = {"lora_up__weight": draw(4, 2), "lora_down__weight": draw(2, 3), "diff_b": draw(4)}
    tensors = under("lora_unet_time_embedding_linear_1", alpha=1.0, **pair)
    adapter = formats.read(saved(tmp_path / "a.safetensors", tensors))
    formats.write(adapter, tmp_path / "b", format=to)
    (update,) = formats.read(tmp_path / "b").values()
    bias = update.delta_bias(np.float64)
    assert bias is not None
    np.testing.assert_allclose(bias, pair["diff_b"], rtol=1e-15)


def test_kinds_may_stand_side_by_side(tmp_path: Path) -> None:
    tensors = {
        **under("lora_unet_conv_in", lokr_w1=draw(2, 2), lokr_w2=draw(4, 4, 3, 3)),
        **under(
            "lora_unet_conv_out",
            hada_w1_a=draw(4, 2),
            hada_w1_b=draw(2, 6),
            hada_w2_a=draw(4, 2),
            hada_w2_b=draw(2, 6),
            alpha=1.0,
        ),
        **under(
            "lora_unet_time_embedding_linear_1", lora_up__weight=draw(4, 2), lora_down__weight=draw(2, 3), alpha=2.0
        ),
        **under("lora_unet_conv_norm_out", w_norm=draw(4), b_norm=draw(4)),
        **under("lora_unet_time_embedding_linear_2", diff=draw(4, 3), diff_b=draw(4)),
        **under("lora_unet_add_embedding_linear_1", diff_b=draw(4)),
        **under("lora_unet_add_embedding_linear_2", weight=draw(4), on_input=np.array(1)),
        **under("lora_te_text_projection", oft_blocks=draw(2, 3, 3), alpha=0.0),
        **under("lora_unet_plain", weight=draw(4)),
    }
    adapter = formats.read(saved(tmp_path / "x.safetensors", tensors))
    assert {site: update.kind for site, update in adapter.items()} == {
        "unet.conv_in": "lokr",
        "unet.conv_out": "loha",
        "unet.time_embedding.linear_1": "lora",
        "unet.conv_norm_out": "full",
        "unet.time_embedding.linear_2": "full",
        "unet.add_embedding.linear_1": "full",
        "unet.add_embedding.linear_2": "lycoris-ia3",
        "text_encoder.text_projection": "lycoris-oft",
    }
    assert adapter.provenance.format == "lycoris"
    assert adapter.provenance.kind == "full+loha+lokr+lora+lycoris-ia3+lycoris-oft"
    assert set(adapter.leftovers) == {"lora_unet_plain.weight"}
    bias_only = adapter["unet.add_embedding.linear_1"]
    assert bias_only.norm() == 0.0 and bias_only.delta_bias() is not None
    formats.write(adapter, tmp_path / "y.safetensors", format="lycoris")
    again = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    assert set(again) == set(tensors)


def test_rotations_keep_the_lengths_of_columns_within_blocks(tmp_path: Path) -> None:
    tensors = under("x", oft_blocks=draw(3, 4, 4), alpha=0.0)
    tensors |= under("oft_unet_x", oft_blocks=draw(3, 4, 4), alpha=np.float32(1e-3))
    tensors |= under("oft_unet_none", oft_blocks=draw(3, 4, 4), alpha=0.0)
    adapter = formats.read(saved(tmp_path / "x.safetensors", tensors))
    base = draw(12, 5)
    for update in adapter.values():
        moved = base + update.delta_weight(np.float64, base=base)
        for block in range(3):
            rows = slice(4 * block, 4 * block + 4)
            lengths = np.linalg.norm(base[rows], axis=0)
            np.testing.assert_allclose(np.linalg.norm(moved[rows], axis=0), lengths, rtol=1e-12)
    assert np.abs(adapter["x"].delta_weight(np.float64, base=base)).max() > 0.1
    bound = adapter["oft_unet_x"].delta_weight(np.float64, base=base)
    assert 1e-4 < np.abs(bound).max() < 0.1  # kohya's constraint: alpha times the rows
    # and its constraint of 0 lets nothing move, where LyCORIS takes 0 for no constraint
    assert np.abs(adapter["oft_unet_none"].delta_weight(np.float64, base=base)).max() < 1e-6


def test_files_of_the_first_glora_hold_the_factors_the_other_way_round(tmp_path: Path) -> None:
    a1, a2, b1, b2 = draw(2, 6), draw(6, 2), draw(2, 6), draw(5, 2)
    tensors = under("x", a1__weight=a1, a2__weight=a2, b1__weight=b1, b2__weight=b2, alpha=1.0)
    update = formats.read(saved(tmp_path / "x.safetensors", tensors))["x"]
    base = draw(5, 6)
    np.testing.assert_allclose(
        update.delta_weight(np.float64, base=base), 0.5 * (b2 @ b1 + base @ a2 @ a1), rtol=1e-12, atol=1e-13
    )


def test_a_magnitude_for_each_input_channel_of_a_square_convolution(tmp_path: Path) -> None:
    magnitude = np.arange(1.0, 9.0).reshape(1, 8, 1, 1)
    pairs = {
        "a": under("a", lora_up__weight=draw(8, 2, 1, 1), lora_down__weight=draw(2, 8, 3, 3)),
        "b": under("b", lokr_w1=draw(2, 2), lokr_w2=draw(4, 36)),  # as of 2023: the kernel is not told
    }
    base = draw(8, 8, 3, 3)
    for name, tensors in pairs.items():
        path = saved(tmp_path / f"{name}.safetensors", tensors | {f"{name}.dora_scale": magnitude})
        update = formats.read(path)[name]
        moved = base + update.delta_weight(np.float64, base=base)
        lengths = np.sqrt(np.square(moved).sum(axis=(0, 2, 3)))
        np.testing.assert_allclose(lengths, magnitude.reshape(-1), rtol=1e-12)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (under("x", lokr_w1=draw(2, 2)), "w2 is missing"),
        (under("x", **W, lokr_w2_a=draw(4, 2)), "there twice"),
        (under("x", **W, lokr_t2=draw(1, 1, 3, 3)), "Tucker core beside a whole"),
        (under("x", **W, lokr_t1=draw(1, 1, 3, 3)), "no known writer"),
        (under("x", lokr_w1=draw(2, 2), lokr_w2_a=draw(4, 2), lokr_w2_b=draw(3, 4)), "another shape"),
        (under("x", lokr_w1=np.ones((2, 2), np.int32), lokr_w2=draw(4, 4)), "floating-point"),
        (under("x", lokr_w1=np.ones((0, 2)), lokr_w2=draw(4, 4)), "empty"),
        (under("x", **W, alpha=np.array(float("inf"))), "non-finite"),
        (under("x", **W, dora_scale=draw(3, 1)), "fits neither axis"),
        (under("x", hada_w1_a=draw(4, 2), hada_w1_b=draw(2, 6), hada_w2_a=draw(4, 2)), "w2_b is missing"),
        (under("x", diff=np.array(1.0)), "without axes"),
        (under("x", diff=draw(1, 1, 1, 1, 1, 1)), "1, 2 or 3 axes"),
        (under("x", diff=draw(3, 3), diff_b=draw(4)), "another shape"),
        (under("x", diff=draw(3, 3), w_norm=draw(3)), "two tensors are the diff"),
        (under("x", diff=draw(3, 3), dora_scale=draw(3, 1)), "no DoRA"),
        (under("x", oft_blocks=draw(2, 3, 4)), "another shape"),
        (under("x", oft_blocks=draw(2, 3, 3), rescale=draw(5, 1)), "rescale does not fit"),
        (under("x", oft_blocks=draw(2, 3, 3, 3)), "no butterfly"),
        (under("x", oft_blocks=draw(65, 1, 2, 2)), "no butterfly"),
        (under("x", weight=draw(4), on_input=np.array(3)), "neither 0 nor 1"),
        (under("x", weight=draw(4, 2), on_input=np.array(1)), "no vector"),
        (
            under("x", a1__weight=draw(2, 6), a2__weight=draw(6, 3), b1__weight=draw(2, 6), b2__weight=draw(5, 2)),
            "GLoRA",
        ),
        (under("x", lambda_layer=draw(1, 4), q_layer__weight=draw(4, 6), p_layer__weight=draw(5, 4)), "T-LoRA"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path: Path, tensors: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapterError, match=said) as caught:
        formats.read(saved(tmp_path / "x.safetensors", tensors))
    assert caught.value.key is not None and "x" in caught.value.key


def kinds() -> dict[str, Any]:
    """One update of every kind that a kohya file can be given, as another format would hold it."""
    lokr = {name.removeprefix("lokr_"): tensor for name, tensor in W.items()}
    base = {
        "lora": {"B": draw(4, 2), "A": draw(2, 6)},
        "locon": {"B": draw(4, 2, 1, 1), "mid": draw(2, 3, 3, 3), "A": draw(3, 5, 1, 1)},
        "loha": {"w1_a": draw(4, 2), "w1_b": draw(2, 6), "w2_a": draw(4, 2), "w2_b": draw(2, 6)},
        "lokr": lokr,
        "dora": {"B": draw(4, 2), "A": draw(2, 6), "magnitude": np.abs(draw(4))},
    }
    updates = {kind: built(kind, Parts(kind, tensors, scale_of=half_of(0.3))) for kind, tensors in base.items()}
    factored = {"w1": draw(2, 2), "w2_a": draw(4, 2), "w2_b": draw(2, 4)}
    updates["factored"] = built("lokr", Parts("factored", factored, scale_of=half_of(0.3)))
    updates["zero"] = built("loha", Parts("zero", base["loha"], scale_of=half_of(0.0)))
    updates["norm"] = built("full", Parts("norm", {"diff": draw(4), "diff_b": draw(4)}))
    updates["difference"] = built("full", Parts("difference", {"diff": draw(4, 6)}))
    return updates


def test_every_kind_that_it_says_it_writes_comes_back(tmp_path: Path) -> None:
    sites = {f"unet.{name}": update for name, update in kinds().items()}
    assert {update.kind for update in sites.values()} == set(formats.format_named("lycoris").writes)
    formats.write(Adapter(sites), tmp_path / "x.safetensors", format="lycoris")
    again = formats.read(tmp_path / "x.safetensors")
    assert again.provenance.format == "lycoris" and set(again) == set(sites)
    for site, update in sites.items():
        base = draw(*update.base_shape) if update.needs == "base weight" else None
        found, expected = (one.delta_weight(np.float64, base=base) for one in (again[site], update))
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)
        assert again[site].kind == update.kind and again[site].base_shape == update.base_shape
    np.testing.assert_array_equal(again["unet.norm"].delta_bias(), sites["unet.norm"].delta_bias())


def test_a_scale_goes_into_a_whole_factor_in_its_own_dtype_where_that_is_exact(tmp_path: Path) -> None:
    tensors = {"w1": np.ones((2, 2), np.float16), "w2": np.ones((4, 4), np.float16)}
    for scale, dtype in ((0.5, np.float16), (0.3, np.float64)):
        update = built("lokr", Parts("x", tensors, scale_of=half_of(scale)))
        formats.write(Adapter({"x": update}), tmp_path / "x.safetensors", format="lycoris")
        again = formats.read(tmp_path / "x.safetensors")["x"]
        assert again.stored["w1"].dtype == dtype and again.norm() == update.norm()


def test_a_kohya_file_has_the_plain_factors_of_kinds_that_it_has_not(tmp_path: Path) -> None:
    factors = {"w1_a": draw(6, 2), "w1_b": draw(2, 7), "w2_a": draw(6, 2), "w2_b": draw(2, 7)}
    loha = built("loha", Parts("x", factors))
    updates = {"unet.loha": loha, "unet.dora": decorated(loha, np.abs(draw(6)), "m", "unet.dora")}
    formats.write(Adapter(updates), tmp_path / "x.safetensors", format="kohya")
    again = formats.read(tmp_path / "x.safetensors")
    assert {site: update.kind for site, update in again.items()} == {"unet.loha": "lora", "unet.dora": "dora"}
    base = draw(6, 7)
    for site, update in updates.items():
        found = again[site].delta_weight(np.float64, base=base)
        np.testing.assert_allclose(found, update.delta_weight(np.float64, base=base), rtol=1e-12, atol=1e-14)


def test_what_it_has_no_place_for_is_refused(tmp_path: Path) -> None:
    ia3 = built("lycoris-ia3", Parts("x", {"weight": draw(4), "on_input": np.array(1)}))
    biased = built("lokr", Parts("x", {"w1": draw(2, 2), "w2": draw(4, 4), "bias": draw(8)}))
    for update in (ia3, biased):
        with pytest.raises(AdapterError):
            formats.write(Adapter({"x": update}), tmp_path / "x.safetensors", format="lycoris")
    assert not list(tmp_path.iterdir())


def test_a_lora_from_another_format_keeps_its_kind_and_scale(tmp_path: Path) -> None:
    update = LowRank(draw(4, 2).astype(np.float32), draw(2, 3).astype(np.float32), scale=0.25)
    formats.write(Adapter({"unet.x": update}), tmp_path / "x.safetensors", format="lycoris")
    again = formats.read(tmp_path / "x.safetensors")
    assert again.provenance.format == "kohya" and again["unet.x"].scale == 0.25
