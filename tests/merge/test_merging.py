"""``merge`` around its methods: what it refuses, weights by pattern, biases, saved tensors, the range finder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank, Note, Provenance
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.parametrisations.dora import decorated
from lorascope.formats.parametrisations.ia3 import IA3
from lorascope.merge import METHODS, Rows, Weights, merge
from lorascope.merge.range_finder import _with_rest, low_rank  # type: ignore[reportPrivateUsage]  # a step of it
from lorascope.symmetry.truncation import Cut
from merge import dense_references as references


def update(seed: int = 0, shape: tuple[int, int] = (6, 5), rank: int = 2, **fields: Any) -> LowRank:
    random = np.random.default_rng(seed)
    return LowRank(random.standard_normal((shape[0], rank)), random.standard_normal((rank, shape[1])), **fields)


def adapter(seed: int = 0, **fields: Any) -> Adapter:
    return Adapter({"layers.0.q": update(seed), "layers.0.k": update(seed + 50)}, **fields)


def delta(one: Adapter, site: str) -> Any:
    return one[site].delta_weight(np.float64)


ONE, TWO = adapter(1), adapter(2)
NAN = np.full((6, 2), 1.0)
NAN[3, 1] = np.nan

REFUSED: dict[str, tuple[list[Adapter], dict[str, Any], str]] = {
    "none": ([], {}, "there is nothing to merge"),
    "no sites": ([Adapter({}), Adapter({})], {}, "the adapters have no sites"),
    "no common sites": ([ONE, Adapter({"other": update()})], {}, "no two of the adapters have a site in common"),
    "shapes": (
        [ONE, Adapter({"layers.0.q": update(shape=(6, 4))})],
        {},
        r"adapter 2: layers.0.q: a site has another shape .* .expected \[6, 5\], as in adapter 1, found \[6, 4\]",
    ),
    "bases": (
        [replace(ONE, provenance=Provenance(base_model=f"org/{base}")) for base in ("llama-7b", "llama-13b")],
        {},
        "adapter 2: the adapters were made for different base models .expected org/llama-7b",
    ),
    "too few weights": ([ONE, TWO], {"weights": [1.0]}, "weights: there is not one weight for each adapter"),
    "a weight that is none": ([ONE, TWO], {"weights": [1.0, float("inf")]}, "weights: a weight is not a finite number"),
    "a pattern's weights": ([ONE, TWO], {"weights_for": [("*.q", [1.0])]}, r"\*.q: there is not one weight for each"),
    "a pattern for nothing": ([ONE, TWO], {"weights_for": [("*.v", [1.0, 1.0])]}, r"\*.v: no site fits the pattern"),
    "an unknown method": ([ONE, TWO], {"method": "tise"}, "there is no merge method 'tise'.*\n.*did you mean 'ties'"),
    "NaN": (
        [ONE, Adapter({"layers.0.q": LowRank(NAN, np.ones((2, 5)))})],
        {},
        "adapter 2: layers.0.q.*not (a )?finite|adapter 2: .*(NaN|finite)",
    ),
    "a doubtful scale": (
        [ONE, replace(TWO, notes=(Note("scale-unknown", "the scale is not in the file", is_doubt=True),))],
        {},
        "adapter 2: it is not certain what was trained.*the scale is not in the file",
    ),
    "another base weight": (
        [ONE, replace(TWO, provenance=Provenance(is_relative_to_base=False))],
        {},
        "adapter 2: its ΔW is relative to a base whose weights its initialisation changed",
    ),
    "DoRA": (
        [ONE, Adapter({"layers.0.q": decorated(update(), np.ones(6), "magnitude", "layers.0.q")})],
        {},
        "adapter 2: .*base weight",
    ),
    "IA3": (
        [
            ONE,
            Adapter({"layers.0.q": IA3(stored={"gate": np.ones((6, 1))}, keys={"gate": "ia3_l"}, shape=(6, 5), dim=1)}),
        ],
        {},
        "adapter 2: .*base weight",
    ),
    "heads that differ": (
        [replace(one, leftovers={"score.weight": np.full((2, 2), value)}) for one, value in ((ONE, 1.0), (TWO, 2.0))],
        {},
        "adapter 1: score.weight: a tensor that is saved whole is not the same in all adapters",
    ),
    "a head that one has": (
        [replace(ONE, leftovers={"score.weight": np.ones((2, 2))}), TWO],
        {},
        "adapter 1: score.weight: .*\n.*--allow-loss",
    ),
    "biases without a rule": (
        [Adapter({"layers.0.q": update(bias=np.ones(6))})] * 2,
        {"method": "ties"},
        "layers.0.q: ties does not say what becomes of a change of the bias",
    ),
    "a dtype": ([ONE, TWO], {"dtype": "int8"}, "int8"),
    "weights whose sum overflows": (
        [ONE, TWO],
        {"method": "average", "weights": [1e308, 1e308]},
        "weights: a weight is too large to compute with",
    ),
    "an update whose squares overflow": (
        [ONE, Adapter({"layers.0.q": update(3, scale=1e160)})],
        {},
        "adapter 2: layers.0.q: the update is too large to compute with",
    ),
    "a weight that makes it so": (
        [ONE, Adapter({"layers.0.q": update(3, scale=1e100)})],
        {"weights": [1.0, 1e100]},
        "adapter 2: layers.0.q: the update is too large to compute with",
    ),
    "an option that makes it so": (
        [ONE, TWO],
        {"method": METHODS["ties"](factor=1e308)},  # type: ignore[call-arg]  # an option of this one
        "layers.0.q: the matrix is too large to compute with",
    ),
    "a result beyond its dtype": (
        [ONE, TWO],
        {"weights": [1e12, 1e12], "dtype": "float16"},
        "layers.0.q: a value is too large for the dtype asked for .found float16.\n.*wider one",
    ),
    "a result beyond a dtype without infinity": (
        [ONE, TWO],
        {"weights": [1e8, 1e8], "dtype": "float8_e4m3fn"},
        "layers.0.q: a value is too large for the dtype asked for",
    ),
    "a bias beyond float32": (
        [Adapter({"layers.0.q": update(bias=np.ones(6))})] * 2,
        {"weights": [1e39, 1.0]},
        "adapter 1: layers.0.q: the merged change of the bias is too large",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused_with_its_place(case: str) -> None:
    adapters, options, words = REFUSED[case]
    with pytest.raises(LorascopeError, match=words):
        merge(adapters, **options)


def test_ranks_and_energies_out_of_range_are_refused() -> None:
    for bad in ({"rank": 0}, {"energy": 2.0}, {"energy": 0.0}, {"error": 1.0}, {"ratio": -1.0}):
        with pytest.raises(LorascopeError, match=next(iter(bad))):
            Cut(**bad)


def test_bases_of_other_names_merge_where_it_is_said_so() -> None:
    both = [replace(ONE, provenance=Provenance(base_model=base)) for base in ("a/llama-7b", "/models/Llama_7B")]
    assert merge(both).adapter.provenance.base_model == "a/llama-7b"  # the same name written in two ways
    other = [both[0], replace(TWO, provenance=Provenance(base_model="other"))]
    assert merge(other, is_any_base=True).adapter.provenance.base_model == "a/llama-7b"


def test_the_first_pattern_that_fits_decides_on_the_weights() -> None:
    done = merge(
        [ONE, TWO],
        weights=[1.0, 1.0],
        weights_for=[("*.k", [0.0, 3.0]), ("layers.*", [-1.0, 0.5])],
        dtype=np.float64,
    ).adapter
    np.testing.assert_allclose(delta(done, "layers.0.k"), 3 * delta(TWO, "layers.0.k"), atol=1e-12)
    expected = 0.5 * delta(TWO, "layers.0.q") - delta(ONE, "layers.0.q")
    np.testing.assert_allclose(delta(done, "layers.0.q"), expected, atol=1e-12)
    weights = Weights.of(2, [1, 1], [("layers.1?.q", [0, 1]), ("*[kv]", [2, 2])])
    assert weights.at("layers.10.q").tolist() == [0, 1]
    assert weights.at("layers.1.q").tolist() == [1, 1] and weights.at("layers.1.v").tolist() == [2, 2]
    assert weights.unused(["layers.10.q"]) == ["*[kv]"]


def test_changes_of_biases_are_summed_as_the_updates_are() -> None:
    """A bias that is scaled, one that is whole, and a layer without any."""
    random = np.random.default_rng(0)
    biases = random.standard_normal((2, 6))
    adapters = [
        Adapter({"q": update(1, bias=biases[0], scale=0.5)}),
        Adapter({"q": update(2, bias=biases[1], scale=0.5, is_bias_whole=True)}),
        Adapter({"q": update(3)}),
    ]
    weights = [2.0, -1.0, 5.0]
    expected = 2.0 * 0.5 * biases[0] - biases[1]
    for name in ("linear", "dare", "magnitude-prune"):
        done = merge(adapters, name, weights=weights).adapter["q"]
        np.testing.assert_allclose(done.delta_bias(np.float64), expected, rtol=1e-6, atol=1e-6)
    for name in ("average", "fedex"):
        found = merge(adapters, name, weights=weights).adapter["q"].delta_bias(np.float64)
        np.testing.assert_allclose(found, expected / 6.0, rtol=1e-6, atol=1e-6)
    done = merge(adapters, "iso-c", is_loss_allowed=True)
    assert done.adapter["q"].delta_bias() is None and done.left_out == ("the bias of q",)
    assert [note.code for note in done.adapter.notes] == ["merge-left-out"]


def test_saved_tensors_stay_where_all_are_alike_and_are_listed_where_not() -> None:
    head = {"score.weight": np.arange(4.0).reshape(2, 2)}
    done = merge([replace(one, leftovers=dict(head)) for one in (ONE, TWO)])
    assert np.array_equal(done.adapter.leftovers["score.weight"], head["score.weight"]) and not done.left_out
    done = merge([replace(ONE, leftovers=head), TWO], is_loss_allowed=True)
    assert not done.adapter.leftovers and len(done.left_out) == 1 and "score.weight" in done.left_out[0]


def test_missing_sites_count_as_zero_and_are_listed() -> None:
    done = merge([ONE, Adapter({"layers.0.q": update(9)})], dtype=np.float64)
    assert done.missing == {"adapter 2": ("layers.0.k",)}
    np.testing.assert_allclose(delta(done.adapter, "layers.0.k"), delta(ONE, "layers.0.k"), atol=1e-12)


def test_a_sum_that_cancels_is_zero_and_not_rounding() -> None:
    done = merge([ONE, ONE], "subtract")
    assert done.adapter.norm() == 0.0 and done.relative_error == 0.0
    assert {site.rank for site in done.sites.values()} == {1}


def test_directions_that_cancel_are_not_kept_as_rounding() -> None:
    """(b + b') a − b a: of three columns, one direction is left."""
    random = np.random.default_rng(0)
    B, A = random.standard_normal((6, 2)), random.standard_normal((2, 5))
    both, first = Adapter({"q": LowRank(B, A)}), Adapter({"q": LowRank(B[:, :1], A[:1])})
    done = merge([both, first], "subtract", dtype=np.float64)
    assert done.sites["q"].rank == 1
    np.testing.assert_allclose(delta(done.adapter, "q"), B[:, 1:] @ A[1:], atol=1e-14)


def test_convolutions_and_transposed_layers_keep_their_layout() -> None:
    one, two = (Adapter({"c": update(s, (4, 12), kernel=(3, 2, 2), layer="conv2d")}) for s in (1, 2))
    merged = merge([one, two]).adapter["c"]
    assert merged.base_shape == (4, 3, 2, 2) and merged.layer == "conv2d"
    one, two = (Adapter({"t": update(s, is_transposed=True)}) for s in (1, 2))
    done = merge([one, two], dtype=np.float64).adapter
    assert done["t"].base_shape == (5, 6)
    np.testing.assert_allclose(delta(done, "t"), delta(one, "t") + delta(two, "t"), atol=1e-12)


@pytest.mark.parametrize("cut", [Cut(rank=3), Cut(energy=0.9), Cut(error=0.2), Cut(ratio=0.3), Cut(rank=4, error=0.9)])
def test_the_cut_of_a_product_is_that_of_the_dense_svd(cut: Cut) -> None:
    adapters = references.adapters_of((20, 15), (3, 4))
    whole = sum(references.deltas_of(adapters))
    U, S, Vh = np.linalg.svd(whole)
    done = merge(adapters, cut=cut, dtype=np.float64)
    kept = done.sites["q"].rank
    share = np.sqrt(np.cumsum((S**2)[::-1])[::-1] / np.sum(S**2))  # what k values leave out, at place k
    asked = [7]
    asked += [cut.rank] if cut.rank else []
    asked += [int(np.argmax(np.cumsum(S**2) >= cut.energy * np.sum(S**2))) + 1] if cut.energy else []
    asked += [int(np.argmax(share <= cut.error))] if cut.error else []
    asked += [int(np.count_nonzero(cut.ratio * S[0] <= S))] if cut.ratio else []
    assert kept == max(1, min(asked))
    best = (U[:, :kept] * S[:kept]) @ Vh[:kept]
    np.testing.assert_allclose(delta(done.adapter, "q"), best, atol=1e-10)
    assert done.relative_error == pytest.approx(share[kept], rel=1e-9)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_the_range_finder_is_near_the_best_and_its_error_is_measured(shape: tuple[int, int]) -> None:
    """A slowly falling spectrum, as that of a trimmed sum: within 2 % of the dense SVD, which is a bound from below."""
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((side, 40))).Q for side in shape)
    matrix = (left * np.linspace(1.0, 0.2, 40)) @ right.T
    S = np.linalg.svd(matrix, compute_uv=False)
    for rank in (1, 5, 12):
        found = low_rank(Rows(shape, lambda rows: matrix[rows]), Cut(rank=rank), 40, np.random.default_rng(1))
        measured = np.linalg.norm(matrix - found.B @ found.A)
        assert found.error == pytest.approx(measured, rel=1e-12)
        assert found.norm == pytest.approx(np.linalg.norm(matrix), rel=1e-12)
        best = np.linalg.norm(S[rank:])
        assert best * (1 - 1e-12) <= found.error <= 1.02 * best
        np.testing.assert_allclose(found.B.T @ found.B, found.A @ found.A.T, atol=1e-10)  # balanced
    exact = low_rank(Rows(shape, lambda rows: matrix[rows]), Cut(), 40, np.random.default_rng(1))
    assert exact.error < 1e-12 * exact.norm
    half = low_rank(Rows(shape, lambda rows: matrix[rows]), Cut(energy=0.5), 40, np.random.default_rng(1))
    assert half.B.shape[1] == int(np.argmax(np.cumsum(S**2) >= 0.5 * np.sum(S**2))) + 1
    assert half.relative_error**2 <= 0.5 + 1e-9


@pytest.mark.parametrize("cut", [Cut(error=0.3), Cut(energy=0.9), Cut(ratio=0.5), Cut(rank=30, energy=0.9)])
def test_the_range_finder_looks_further_until_it_has_what_is_asked(cut: Cut) -> None:
    """It starts at 2 of 90 singular values, with a width of 18; what is asked is of the whole matrix."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((100, 90))
    S = np.linalg.svd(matrix, compute_uv=False)
    found = low_rank(Rows((100, 90), lambda rows: matrix[rows]), cut, 2, np.random.default_rng(1))
    kept = found.B.shape[1]
    best = cut.of(S)
    if cut.rank is not None:
        assert kept == best == 30
    elif cut.ratio is not None:
        assert abs(kept - best) <= 2  # values at the very threshold, which are known to a few per cent
    else:
        asked = cut.error if cut.error is not None else np.sqrt(1 - cut.energy)
        assert found.relative_error <= asked and best <= kept <= best + 6


def test_a_relative_error_that_is_asked_of_a_full_rank_method_is_kept() -> None:
    adapters = references.adapters_of((40, 30), (1, 1))
    for asked in (0.2, 0.05):
        done = merge(adapters, METHODS["ties"](density=0.3), cut=Cut(error=asked))
        assert done.relative_error <= asked + 1e-6 and done.sites["q"].rank > 2


def test_a_method_of_full_rank_is_cut_to_the_ranks_of_the_adapters_where_nothing_is_asked() -> None:
    adapters = references.adapters_of((20, 15), (3, 4))
    done = merge(adapters, "ties")
    assert done.sites["q"].rank == 7 and 0 < done.relative_error < 1
    assert merge(adapters, "ties", cut=Cut(rank=15)).relative_error < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_the_error_counts_the_rounding_to_the_dtype(dtype: str, tmp_path: Any) -> None:
    done = merge([ONE, TWO], dtype=dtype)
    formats.write(done.adapter, tmp_path / "merged", format="peft", dtype=dtype)
    again = formats.read(tmp_path / "merged")
    worst = {"float16": 1e-3, "float32": 1e-7, "bfloat16": 1e-2}[dtype]
    assert worst / 1e3 < done.relative_error < worst
    for site in ONE:
        expected = delta(ONE, site) + delta(TWO, site)
        measured = np.linalg.norm(delta(again, site) - expected)
        assert measured == pytest.approx(done.sites[site].error, rel=1e-6)


def test_layers_that_differ_in_what_a_framework_puts_in_front_are_one() -> None:
    other = Adapter({f"model.{site}": TWO[site] for site in TWO})
    merged = merge([ONE, other], "linear", dtype=np.float64)
    assert list(merged.adapter) == list(ONE) and not merged.missing
    for site in ONE:
        expected = delta(ONE, site) + delta(TWO, site)
        assert np.linalg.norm(delta(merged.adapter, site) - expected) <= 1e-13 * np.linalg.norm(expected)


@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_updates_beyond_the_range_of_float64_are_refused_by_name(method: str) -> None:
    huge = LowRank(np.full((6, 1), 1e200), np.full((1, 5), 1e200))
    with pytest.raises(AdapterError, match=r"huge: layers\.0\.k: the update is too large to compute with"):
        merge([ONE, TWO.with_sites({"layers.0.k": huge})], method, names=["one", "huge"])


def test_what_the_range_finder_has_not_seen_is_bounded_by_what_the_matrix_has() -> None:
    """A last value of rounding size would stand for 10^28 others."""
    S, norm = np.array([1.0, 1e-17]), float(np.hypot(1.0, 1e-3))
    whole = _with_rest(S, norm, 30)
    assert len(whole) == 32 and np.linalg.norm(whole) == pytest.approx(norm, rel=1e-12)
