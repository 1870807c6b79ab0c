"""What a conversion moved, measured without ΔW in full."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lorascope.adapter import LowRank, Update
from lorascope.conversion import convert
from lorascope.conversion.loss import error_of, is_same_update, ratio, rounding_bound
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built

SHAPES = {
    "lokr": {"w1": (4, 4), "w2": (256, 256)},
    "loha": {"w1_a": (1024, 40), "w1_b": (40, 1024), "w2_a": (1024, 40), "w2_b": (40, 1024)},
    "full": {"diff": (1024, 1024)},
}


def wide(kind: str, seed: int = 0) -> Update:
    rng = np.random.default_rng(seed)
    tensors = {role: rng.standard_normal(shape, np.float32) for role, shape in SHAPES[kind].items()}
    return built(kind, Parts("site", tensors, {}, lambda dim: Scale(0.5, 0.5 * dim)))


@pytest.mark.parametrize("one", SHAPES)
@pytest.mark.parametrize("two", SHAPES)
def test_the_error_by_rows_is_that_of_the_dense_matrices(one: str, two: str) -> None:
    before, after = wide(one), wide(two, seed=1)
    error, norm = error_of(before, after)
    dense = [update.delta_weight(np.float64) for update in (before, after)]
    np.testing.assert_allclose(norm, np.linalg.norm(dense[0]), rtol=1e-12)
    np.testing.assert_allclose(error, np.linalg.norm(dense[1] - dense[0]), rtol=1e-12)


@pytest.mark.parametrize("kind", SHAPES)
def test_an_update_of_equal_tensors_and_scale_has_no_error_and_one_of_others_has(kind: str) -> None:
    update = wide(kind)
    assert is_same_update(update, wide(kind)) and error_of(update, wide(kind))[0] == 0.0
    halved = update.rescaled(update.scale / 2)
    assert not is_same_update(update, halved)
    error, norm = error_of(update, halved)
    np.testing.assert_allclose(error, norm / 2, rtol=1e-12)
    role, tensor = next(iter(update.stored.items()))
    moved = tensor.copy()
    moved[0, 0] += 1
    other = replace(update, stored={**update.stored, role: moved})  # type: ignore[type-var]  # all are dataclasses
    assert not is_same_update(update, other) and error_of(update, other)[0] > 0


def test_two_whole_factors_are_converted_without_their_product(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    site = "diffusion_model.layers.0.attn.to_q"
    tensors = {
        f"{site}.lokr_w1": rng.standard_normal((16, 16), np.float32),
        f"{site}.lokr_w2": rng.standard_normal((128, 128), np.float32),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    product = 8 * (16 * 128) ** 2
    tracemalloc.start()
    try:
        report = convert(tmp_path / "a.safetensors", tmp_path / "b", to="peft")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.relative_error == 0.0 and report.lost == ()
    assert peak < product / 4


@pytest.mark.parametrize(("name", "moved"), [("bfloat16", 0.05), ("float16", 0.005), ("float32", 1e-6)])
def test_a_scale_that_is_a_little_wrong_is_no_rounding(name: str, moved: float) -> None:
    rng = np.random.default_rng(0)
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    B, A = (rng.standard_normal(shape) for shape in ((64, 16), (16, 48)))
    before = LowRank(B, A, 0.37)
    after = LowRank(B.astype(dtype), A.astype(dtype), 0.37)
    wrong = after.rescaled(0.37 * (1 + moved))
    assert ratio(*error_of(before, after)) <= rounding_bound(before, after)
    assert ratio(*error_of(before, wrong)) > rounding_bound(before, wrong)


def test_a_site_of_zeros_is_no_rounding_in_any_dtype() -> None:
    before = LowRank(np.ones((4, 2)), np.ones((2, 3)))
    zero = LowRank(np.zeros((4, 2), ml_dtypes.float8_e5m2), np.zeros((2, 3), ml_dtypes.float8_e5m2))
    assert ratio(*error_of(before, zero)) > rounding_bound(before, zero)
