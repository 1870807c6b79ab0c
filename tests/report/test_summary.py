"""The summary of an adapter against dense linear algebra, and its notes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lorascope.adapter import Adapter, LowRank, Note, Provenance
from lorascope.errors import AdapterError
from lorascope.report import summarise
from lorascope.report.tables import as_text

RTOL = 1e-12  # float64, condition numbers of Gaussian factors


def low_rank(out: int, in_: int, rank: int, seed: int = 0, **options: Any) -> LowRank:
    rng = np.random.default_rng(seed)
    return LowRank(rng.standard_normal((out, rank)), rng.standard_normal((rank, in_)), **options)


def codes(adapter: Adapter) -> list[str]:
    return [note["code"] for note in summarise(adapter)["notes"]]


@pytest.mark.parametrize(("out", "in_", "rank"), [(6, 5, 2), (5, 5, 5), (3, 4, 7), (1, 9, 1), (40, 30, 12)])
def test_norms_and_spectra_are_those_of_the_dense_update(out: int, in_: int, rank: int) -> None:
    adapter = Adapter({f"s{seed}": low_rank(out, in_, rank, seed, scale=-0.5 * seed) for seed in range(1, 4)})
    summary = summarise(adapter)
    for site in summary["sites"]:
        dense = np.linalg.svd(adapter[site["name"]].delta_weight(np.float64), compute_uv=False)
        count = min(out, in_, rank)
        np.testing.assert_allclose(site["singular_values"], dense[: min(count, 8)], rtol=RTOL, atol=RTOL * dense[0])
        assert site["norm"] == pytest.approx(np.linalg.norm(dense), rel=RTOL)
        assert site["stable_rank"] == pytest.approx(np.linalg.norm(dense) ** 2 / dense[0] ** 2, rel=RTOL)
    assert summary["norm"] == pytest.approx(adapter.norm(), rel=RTOL)


def test_sites_keep_their_order_whatever_their_shapes() -> None:
    sites = {f"s{i}": low_rank(4 + i % 2, 3, 1 + i % 3, i) for i in range(12)}
    assert [site["name"] for site in summarise(Adapter(sites))["sites"]] == list(sites)


def test_zero_sites_have_no_stable_rank() -> None:
    zero = LowRank(np.zeros((4, 2)), np.ones((2, 3)))
    (site,) = summarise(Adapter({"q": zero}))["sites"]
    assert (site["norm"], site["stable_rank"], site["singular_values"]) == (0.0, None, [0.0, 0.0])
    assert summarise(Adapter({"q": zero}))["notes"][0]["text"] == "ΔW is zero at every site: untrained"
    assert codes(Adapter({"q": zero, "v": low_rank(4, 3, 2)})) == ["zero-sites"]
    empty = LowRank(np.zeros((4, 0)), np.ones((0, 3)))
    assert summarise(Adapter({"q": empty}))["sites"][0]["singular_values"] == []


def test_notes_say_what_is_unusual() -> None:
    B = np.ones((4, 2))
    assert codes(Adapter({"q": LowRank(B, np.ones((2, 3)))})) == ["rank-deficient"]
    assert codes(Adapter({"q": low_rank(3, 3, 5)})) == ["rank-above-shape"]
    half = LowRank(np.ones((2, 1), np.float16), np.ones((1, 2), np.float16))
    assert codes(Adapter({"q": half, "v": low_rank(2, 2, 1)})) == ["mixed-dtypes"]
    sites = {f"s{i}": low_rank(4, 4, 2, i, scale=100.0 if i == 2 else 1.0) for i in range(5)}
    (note,) = summarise(Adapter(sites))["notes"]
    assert (note["code"], note["site"]) == ("dominant-site", "s2")
    assert codes(Adapter({"q": low_rank(4, 3, 2)})) == []


def test_a_non_finite_value_names_tensor_and_site() -> None:
    with pytest.raises(AdapterError, match="non-finite value in t") as caught:
        summarise(Adapter({"q": LowRank(np.full((2, 1), np.nan), np.ones((1, 2)), keys=("t", "u"))}))
    assert caught.value.key == "q"


def test_text_shows_no_control_characters_and_no_markup() -> None:
    name = "evil\x1b[31m[red]\u202e\n"
    adapter = Adapter(
        {name: low_rank(2, 2, 1)}, Provenance(base_model=name), notes=(Note("unknown-keys", f"see {name}", name),)
    )
    output = io.StringIO()
    as_text(summarise(adapter), Console(file=output, width=100), None)
    text = output.getvalue()
    assert "\x1b" not in text and "\u202e" not in text
    assert text.count("[red]") == 3  # base model, site, note


@pytest.mark.parametrize("width", [80, 120])
def test_long_tables_are_cut_and_fit_the_width(width: int) -> None:
    sites = {f"model.layers.{i}.self_attn.q_proj.some.very.long.name": low_rank(2, 2, 1, i) for i in range(30)}
    output = io.StringIO()
    as_text(summarise(Adapter(sites)), Console(file=output, width=width), 5)
    assert "25 more sites (--sites all)" in output.getvalue()
    assert max(len(line) for line in output.getvalue().splitlines()) <= width
