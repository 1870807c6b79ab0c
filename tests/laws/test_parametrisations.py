"""The laws of every parametrisation, over the registry: one formula, seen from all sides, agrees with itself."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.adapter import Update, rows
from lorascope.adapter.widening import as_matrix
from lorascope.errors import AdapterError
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import PARAMETRISATIONS, Parts, built

_spec = importlib.util.spec_from_file_location("samples", Path(__file__).with_name("parametrisation_samples.py"))
assert _spec is not None and _spec.loader is not None
samples = importlib.util.module_from_spec(_spec)
__import__("sys").modules["samples"] = samples
_spec.loader.exec_module(samples)

EPS = float(np.finfo(np.float64).eps)
CASES = [(name, index) for name, found in samples.SAMPLES.items() for index in range(len(found))]
NAMES = PARAMETRISATIONS.names()


def parts_of(name: str, index: int, seed: int = 0, scale: float = 0.7, **changed: Any) -> Parts:
    sample = samples.SAMPLES[name][index]
    tensors = sample.tensors(seed) | changed
    return Parts(
        "site",
        tensors,
        {role: f"site.{role}" for role in tensors},
        lambda dim: Scale(scale, scale * dim),
        layer=sample.layer,
        options=sample.options,
    )


def made(name: str, index: int, seed: int = 0) -> tuple[Update, np.ndarray]:
    """The update, its shape filled in from the base where it needs that, and a base weight."""
    update = built(name, parts_of(name, index, seed))
    base = np.random.default_rng(seed + 1).standard_normal(samples.SAMPLES[name][index].base)
    return (update.resolved(base.shape) if update.needs == "base shape" else update), base  # type: ignore[attr-defined]


def close(found: Any, expected: Any, terms: int = 64) -> None:
    """Equal to the rounding of sums of up to ``terms`` products of entries of this size."""
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=terms * EPS * max(scale, 1.0))


def test_every_kind_has_a_sample() -> None:
    assert set(samples.SAMPLES) == set(NAMES)


@pytest.mark.parametrize(("name", "index"), CASES)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31))
def test_norm_spectrum_product_and_action_are_those_of_the_dense_update(name: str, index: int, seed: int) -> None:
    update, base = made(name, index, seed)
    assert update.kind == name
    delta = update.delta_weight(np.float64, base=base)
    assert delta.shape == base.shape and np.isfinite(delta).all()
    if update.needs == "base weight":
        with pytest.raises(AdapterError, match="relative to the base weight"):
            update.norm()
        with pytest.raises(AdapterError):
            update.factors()
        return
    matrix = as_matrix(delta, is_transposed=update.is_transposed)
    assert matrix.shape == update.shape
    close(update.norm(), np.linalg.norm(matrix))
    spectrum = update.spectrum()
    assert spectrum is not None
    dense = np.linalg.svd(matrix, compute_uv=False)
    count = min(len(spectrum), len(dense))
    close(spectrum[:count], dense[:count])
    close(dense[count:], 0.0)
    x = np.random.default_rng(seed).standard_normal((3, update.shape[1]))
    close(update.apply(x), x @ matrix.T)
    if update.needs == "nothing":
        wide = {} if update.kind == "lora" else {"is_wide_allowed": True}
        B, A, scale = update.factors(np.float64, **wide)
        assert B.shape == (update.shape[0], update.rank) and A.shape == (update.rank, update.shape[1])
        close(scale * (B @ A), matrix)
        assert int((dense > 64 * EPS * max(dense[0], 1)).sum()) <= update.rank


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("name", "index"), CASES)
def test_it_is_added_in_place_block_by_block(
    name: str, index: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, base = made(name, index)
    weight = as_matrix(base, is_transposed=update.is_transposed)
    delta = as_matrix(update.delta_weight(np.float64, base=base), is_transposed=update.is_transposed)
    monkeypatch.setattr(rows, "_BLOCK", 3 * weight.shape[1])  # three rows at a time
    update = update.resolved(base.shape)
    assert len(list(rows.row_blocks(weight.shape))) == -(-len(weight) // 3)
    matrix = weight.copy(order=order)
    update.add_to(matrix)
    close(matrix, weight + delta)
    if update.needs == "base weight":
        for refused in (update.rows, lambda: update.add_to(matrix, 2.0)):
            with pytest.raises(AdapterError, match="relative to the base weight"):
                refused()
        return
    update.add_to(matrix, -1.0)
    close(matrix, weight)
    form = update.rows(np.float64)
    close(np.concatenate([form(block) for block in rows.row_blocks(weight.shape)]), delta)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_it_holds_the_tensors_of_the_file_and_computes_nothing_before_it_is_asked(name: str, index: int) -> None:
    parts = parts_of(name, index)
    update = built(name, parts)
    for tensor in update.stored.values():
        assert any(np.shares_memory(tensor, given) for given in parts.tensors.values())
        assert not tensor.flags.writeable
    assert update.dtype.startswith("float64") or "int" in update.dtype


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_value_that_is_not_finite_is_an_error_that_names_the_tensor(name: str, index: int) -> None:
    sample = samples.SAMPLES[name][index]
    for role, tensor in sample.tensors(0).items():
        if tensor.dtype.kind != "f" or role in ("bias", "diff_b", "on_input"):
            continue
        bad = tensor.copy()
        bad.flat[0] = math.nan
        update = built(name, parts_of(name, index, **{role: bad}))
        base = np.ones(sample.base)
        with pytest.raises(AdapterError, match=r"non-finite|beyond the range"):
            update.delta_weight(np.float64, base=base)


@pytest.mark.parametrize(("name", "index"), CASES)
@settings(max_examples=30)
@given(data=st.data())
def test_tensors_of_any_shape_give_an_update_or_an_error(name: str, index: int, data: st.DataObject) -> None:
    tensors = samples.SAMPLES[name][index].tensors(0)
    role = data.draw(st.sampled_from(sorted(tensors)))
    if data.draw(st.booleans()):
        shape = data.draw(st.lists(st.integers(0, 5), max_size=5))
        changed = {role: np.ones(shape, data.draw(st.sampled_from([np.float64, np.int64, np.bool_])))}
        parts = parts_of(name, index, **changed)
    else:
        whole = parts_of(name, index)
        kept = {one: tensor for one, tensor in whole.tensors.items() if one != role}
        parts = Parts("site", kept, {one: one for one in kept}, whole.scale_of, options=whole.options)
    try:
        update = built(name, parts)
        update.delta_weight(np.float64, base=np.ones(samples.SAMPLES[name][index].base))
    except AdapterError as error:
        assert "site" in str(error)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_stored_half_precision_is_widened_and_not_computed_in(name: str, index: int) -> None:
    sample = samples.SAMPLES[name][index]
    half = {
        role: tensor.astype(np.float16) if tensor.dtype.kind == "f" else tensor
        for role, tensor in sample.tensors(0).items()
    }
    wide = {role: tensor.astype(np.float64) if tensor.dtype.kind == "f" else tensor for role, tensor in half.items()}
    base = np.ones(sample.base)
    one = built(name, parts_of(name, index, **half)).delta_weight(np.float64, base=base)
    two = built(name, parts_of(name, index, **wide)).delta_weight(np.float64, base=base)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", [one for one in NAMES if one in samples.SAMPLES])
def test_a_shape_of_gigabytes_is_refused_before_it_is_allocated(name: str) -> None:
    """Tensors without room behind them: every axis as long as a file of kilobytes could declare by broadcasting."""
    sample = samples.SAMPLES[name][0]
    update = built(name, parts_of(name, 0))
    if -1 not in update.shape:
        return
    with pytest.raises(AdapterError):
        update.resolved((1 << 20, 1 << 20)).delta_weight(np.float64, base=None)  # type: ignore[attr-defined]
    assert sample


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_base_that_is_stored_the_other_way_round_changes_the_same_way(name: str, index: int) -> None:
    """``is_transposed`` says how the base lies, and nothing else: ΔW of the turned base is ΔWᵀ."""
    update, base = made(name, index)
    if update.layer != "linear" or update.kernel or base.ndim != 2 or name == "full":
        return  # nothing else is stored in two ways; a full difference lies as the base does
    turned = replace(update, is_transposed=not update.is_transposed)  # type: ignore[type-var]  # a dataclass
    close(turned.delta_weight(np.float64, base=base.T).T, update.delta_weight(np.float64, base=base))
