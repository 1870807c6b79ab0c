"""Tokens of large layers by Gram matrices are those by QR; what they cannot give goes by QR; ranks may be mixed."""

import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank, Provenance
from lorascope.errors import AdapterError, PredictorError
from lorascope.predict import MODELS, Dataset, Predictor, fit_predictor, large_layers, store, tokens
from lorascope.predict.familiarity import Familiarity
from lorascope.predict.model import Sample, Structure
from lorascope.predict.site_statistics import SEED, SIZE
from lorascope.symmetry import thin_svd

SHAPE = (1100, 1030)
STRUCTURE = Structure({"q": SHAPE, "v": SHAPE, "small": (20, 30)}, 4)


def adapter(seed=0, dtype=np.float16, rank=3, scale=-0.5):
    rng = np.random.default_rng(seed)
    sites = {}
    for name, (out, in_) in STRUCTURE.sites.items():
        B = rng.standard_normal((out, rank)) * np.geomspace(1, 0.2, rank)
        sites[name] = LowRank(B.astype(dtype), rng.standard_normal((rank, in_)).astype(dtype), scale)
    return Adapter(sites)


def of(*adapters):
    return tokens.tokens_of([Sample(lambda a=a: a, {}) for a in adapters], STRUCTURE, size=32, seed=0)


def invariants(inputs, stack):
    """ΔW, the projector and the energies under the projections, which no sign or rotation changes."""
    left, S, right = (inputs[f"{part}{stack}"] for part in ("left", "S", "right"))
    left = left * (S > 0)[..., None, :]  # vectors of σ = 0 are anything
    return (left * S[..., None, :]) @ np.swapaxes(right, -1, -2), left @ np.swapaxes(left, -1, -2), S


@pytest.fixture
def taken(monkeypatch):
    """The names of the sites that go by QR."""
    names = []
    by_qr = tokens._by_qr
    monkeypatch.setattr(tokens, "_by_qr", lambda block, own, *rest: (names.extend(own), by_qr(block, own, *rest))[1])
    return names


def test_large_layers_go_by_gram_matrices_and_are_those_by_qr(taken, monkeypatch):
    adapters = [adapter(0), adapter(1, rank=2)]
    fast = of(*adapters)
    assert set(taken) == {"small"}
    assert fast["left0"].shape == (2, 2, 16, 3)  # half of the size on sides so long
    assert fast["left1"].shape == (2, 1, 20, 3)
    monkeypatch.setattr(large_layers, "LIMIT", 0.0)
    wide = of(*adapters)
    assert set(taken) == {"small"}
    monkeypatch.setattr(large_layers, "WIDE_LIMIT", 0.0)
    slow = of(*adapters)
    assert {"q", "v"} <= set(taken)
    for way in (fast, wide):
        for one, other in zip(invariants(way, 0), invariants(slow, 0), strict=True):
            assert np.abs(one - other).max() < 64 * np.finfo(np.float32).eps * 10**2 * np.abs(other).max()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_factors_may_lie_in_memory_in_any_way_and_have_any_narrow_dtype(taken, dtype, order):
    def laid(X):
        if order != "strided":
            return np.asarray(X, order=order)
        room = np.full((2 * X.shape[0], 3 * X.shape[1]), np.nan, X.dtype)
        room[::2, ::3] = X
        return room[::2, ::3]

    plain = adapter(dtype=dtype)
    other = Adapter({name: LowRank(laid(one.B), laid(one.A), one.scale) for name, one in plain.items()})
    found = of(other)
    assert set(taken) == {"small"}
    exact = of(Adapter({name: LowRank(*update.factors(np.float64)) for name, update in plain.items()}))
    for stack in (0, 1):
        for one, two in zip(invariants(found, stack), invariants(exact, stack), strict=True):
            # products of 1100 numbers in float32, κ of 10
            assert np.abs(one - two).max() < 64 * np.finfo(np.float32).eps * 10**2 * np.abs(two).max()


def test_a_size_beyond_the_shape_is_exact_for_large_layers_too():
    plain = adapter()
    found = tokens.tokens_of([Sample(lambda: plain, {})], STRUCTURE, size=4 * max(SHAPE), seed=0)
    left, S, right = (found[f"{part}0"][0, 0] for part in ("left", "S", "right"))
    assert left.shape == (1100, 3) and right.shape == (1030, 3)
    delta = plain["q"].delta_weight(np.float64)
    assert np.abs((left * S) @ right.T - delta).max() < 64 * np.finfo(np.float32).eps * 10**2 * np.abs(delta).max()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("side", ["B", "A"])
def test_a_number_that_is_not_finite_is_refused_by_name(side, dtype, value):
    plain = adapter(dtype=dtype)
    factors = {"B": plain["v"].B.copy(), "A": plain["v"].A.copy()}
    factors[side][1, 1] = value
    bad = LowRank(factors["B"], factors["A"], keys=("v.lora_B", "v.lora_A"))
    with pytest.raises(AdapterError, match=rf"file\.safetensors: non-finite value in v\.lora_{side}"):
        of(adapter(3), Adapter({**plain.sites, "v": bad}, Provenance(path=Path("file.safetensors"))))


@pytest.mark.parametrize("size", [1e15, 1e37])
def test_numbers_whose_squares_float32_cannot_hold_are_computed_with_all_the_same(size):
    plain = adapter(dtype=np.float32)
    site = plain["q"]
    large = of(Adapter({**plain.sites, "q": LowRank(site.B * np.float32(size), site.A, site.scale / size)}))
    for one, other in zip(invariants(large, 0), invariants(of(plain), 0), strict=True):
        assert np.abs(one - other).max() < 64 * np.finfo(np.float32).eps * 10**2 * np.abs(other).max()


def test_what_float32_would_round_goes_by_qr(taken):
    of(adapter(dtype=np.float64))
    assert set(taken) == {"small", "q", "v"}


def test_a_site_that_is_ill_conditioned_goes_by_qr_alone(taken):
    whole = adapter(dtype=np.float32)
    B = whole["q"].B.copy()
    B[:, 1] = B[:, 0]
    found = of(Adapter({**whole.sites, "q": LowRank(B, whole["q"].A, 1.0)}), adapter(3))
    assert set(taken) == {"small", "q"}
    assert np.isfinite(found["left0"]).all()


def test_the_tokens_of_large_layers_do_not_depend_on_the_adapters_that_are_read_along():
    plain = adapter(dtype=np.float32)
    B = plain["q"].B.copy()
    B[:, 1] = B[:, 0]
    dependent = Adapter({**plain.sites, "q": LowRank(B, plain["q"].A, 1.0)})  # by QR, at one site
    others = [dependent, adapter(3, dtype=np.float64), adapter(4, rank=7), adapter(5, rank=1)]
    for one in (adapter(1), dependent, adapter(2, rank=2)):
        alone, among = of(one), of(one, *others)
        for name in ("left0", "S0", "right0"):
            k = alone[name].shape[-1]
            assert np.array_equal(among[name][:1, ..., :k], alone[name]), name
            assert not among[name][:1, ..., k:].any()


def test_gram_matrices_in_float64_go_on_where_those_in_float32_stop(taken):
    whole = adapter(dtype=np.float32)
    B = whole["q"].B.copy()
    B[:, 1] = B[:, 0] + 2e-3 * np.abs(B[:, 0]).max() * np.random.default_rng(5).standard_normal(len(B))
    inputs = of(Adapter({**whole.sites, "q": LowRank(B, whole["q"].A, 1.0)}))
    assert set(taken) == {"small"}
    S = thin_svd(B.astype(np.float64), whole["q"].A.astype(np.float64)).S
    assert S[0] > 100 * S[2]
    assert np.allclose(inputs["S0"][0, 0], S, rtol=1e-4)


def test_a_zero_update_of_a_large_layer_has_finite_tokens():
    whole = adapter()
    found = of(Adapter({**whole.sites, "q": LowRank(np.zeros((1100, 2), np.float16), whole["q"].A[:2], 1.0)}))
    assert np.isfinite(found["left0"]).all()
    assert not found["S0"][0, 0].any()


def test_updates_of_rank_0_are_zero_updates():
    plain = adapter()
    nothing = LowRank(np.zeros((1100, 0), np.float16), np.zeros((0, 1030), np.float16))
    one = Adapter({**plain.sites, "q": nothing})
    assert not of(one, plain)["S0"][0, 0].any()
    both = of(Adapter({"q": nothing, "v": nothing, "small": LowRank(np.zeros((20, 0)), np.zeros((0, 30)))}))
    assert both["S0"].shape == (1, 2, 1) and both["S1"].shape == (1, 1, 1)
    assert not both["S0"].any() and not both["S1"].any()


def test_familiarity_with_large_layers_is_saved_and_judges_the_same():
    adapters = [adapter(seed) for seed in range(6)]
    samples = [Sample(lambda a=a: a, {}) for a in adapters]
    familiarity = Familiarity.fit(samples, [str(seed) for seed in range(6)], STRUCTURE)
    again = Familiarity.restore(familiarity.state(), STRUCTURE)
    inputs = tokens.tokens_of(samples[:2], STRUCTURE, size=SIZE, seed=SEED)
    judged = familiarity.judge(samples[:2])
    assert judged == again.judge(samples[:2]) == familiarity.judge_tokens(inputs)


def test_a_predictor_of_large_layers_is_saved_and_says_the_same(tmp_path):
    adapters = [adapter(seed) for seed in range(16)]
    dataset = Dataset(
        tuple(Sample(lambda a=a: a, {}) for a in adapters),
        {"size": [float(seed % 5) for seed in range(16)]},
        tuple(f"group {seed}" for seed in range(16)),
        ("train",) * 16,
        tuple(f"adapter {seed}" for seed in range(16)),
        (),
        "made up",
    )
    predictor = fit_predictor(dataset, "size", MODELS["kernels"]())
    predictor.save(tmp_path / "p")
    assert Predictor.load(tmp_path / "p").predict(adapters[:2]) == predictor.predict(adapters[:2])
    config = json.loads((tmp_path / "p" / "predictor.json").read_text())
    (tmp_path / "p" / "predictor.json").write_text(json.dumps({**config, "projections": 1}))
    with pytest.raises(PredictorError, match=r"projections.*another version.*expected 2, found 1"):
        Predictor.load(tmp_path / "p")


def test_only_predictors_of_large_layers_depend_on_the_version_of_the_projections():
    for largest, version in ((1023, None), (1023, 1), (1023, 3), (1024, 2)):
        config = {"structure": {"sites": {"q": [20, largest]}}}
        store._check_projections(config if version is None else {**config, "projections": version})
    for version in (None, 1, 3):
        config = {"structure": {"sites": {"q": [20, 1024]}}}
        with pytest.raises(PredictorError, match="fit it again"):
            store._check_projections(config if version is None else {**config, "projections": version})


def test_the_blocks_change_nothing(monkeypatch):
    adapters = [adapter(seed) for seed in range(3)]
    whole = of(*adapters)
    monkeypatch.setattr(tokens, "NUMBERS", 1)
    for name, array in of(*adapters).items():
        assert np.allclose(array, whole[name], rtol=1e-5, atol=1e-5), name


def test_blocks_are_small_enough_for_the_largest_rank_in_them(monkeypatch):
    adapters = [adapter(seed, rank=rank) for seed, rank in enumerate((1, 8, 8, 1, 1, 1, 1))]
    whole = of(*adapters)
    sides = sum(map(sum, STRUCTURE.sites.values()))
    monkeypatch.setattr(tokens, "NUMBERS", 4 * sides)
    blocks = list(tokens._blocks([Sample(lambda a=a: a, {}) for a in adapters], STRUCTURE))
    assert [len(block) for block in blocks] == [1, 1, 1, 4]
    assert [one for block in blocks for one in block] == adapters
    for name, array in of(*adapters).items():
        assert array.shape == whole[name].shape


def test_gram_matrices_are_made_of_as_many_sites_as_there_is_room_for(taken, monkeypatch):
    whole, runs = of(adapter()), []
    by_gram = tokens.tokens_by_gram
    monkeypatch.setattr(
        tokens, "tokens_by_gram", lambda block, own, *rest: (runs.append(own), by_gram(block, own, *rest))[1]
    )
    monkeypatch.setattr(tokens, "NUMBERS", 2 * 3**2)
    found = of(adapter())
    assert [list(run) for run in runs] == [["q"], ["v"]]
    assert all(np.array_equal(found[name], array) for name, array in whole.items())


def test_tokens_are_written_where_they_stay(monkeypatch):
    monkeypatch.setattr(tokens, "NUMBERS", 1)  # one adapter after another
    structure = Structure({"q": (256, 256)}, 8)
    rng = np.random.default_rng(0)
    one = Adapter({"q": LowRank(rng.standard_normal((256, 8)), rng.standard_normal((8, 256)))})
    tracemalloc.start()
    found = tokens.tokens_of([Sample(lambda: one, {})] * 96, structure, size=64, seed=0, exact=512)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * sum(array.nbytes for array in found.values())  # and the work on one adapter
