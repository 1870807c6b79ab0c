"""The kernels of the default model: laws over the family, leave-one-out and its gradient, the sum as a function."""

from dataclasses import replace

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import PredictorError
from lorascope.predict import MODELS, Predictor, fit_predictor
from lorascope.predict.fitted_kernels import ranks_of
from lorascope.predict.kernel import KERNELS, Tokens
from lorascope.predict.kernel_explanation import contributions_of
from lorascope.predict.kernel_learning import CONSTANT, learn_weights, left_out_error
from lorascope.predict.kernel_levels import levels_of, subset_of_groups
from lorascope.predict.kernel_machine import Comparison, Machine
from lorascope.predict.kernel_solution import doubt_of, solved
from lorascope.predict.kernels._spectrum import LEADING, norm_and_spectra, norm_and_spectrum
from lorascope.predict.leave_one_out import blocks_of_groups
from lorascope.predict.model import Sample, Structure
from lorascope.predict.tokens import sites_of
from lorascope.symmetry import act, pad_rank, random_gauge, refactored
from planted import planted_dataset

NAMES = KERNELS.names()
EPS = np.finfo(np.float64).eps


def tokens(n=5, out=7, in_=6, k=3, seed=0):
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((n, out, k)))[0]
    V = np.linalg.qr(rng.standard_normal((n, in_, k)))[0]
    return Tokens(U, np.sort(rng.uniform(0.5, 2.0, (n, k)))[:, ::-1], V)


CHANGES = {
    "scale": lambda t: t._replace(S=2.0 * t.S),
    "sign": lambda t: t._replace(left=-t.left),
    "rotate out": lambda t: t._replace(
        left=np.linalg.qr(np.random.default_rng(1).standard_normal((t.left.shape[1],) * 2))[0] @ t.left
    ),
    "rotate in": lambda t: t._replace(
        right=np.linalg.qr(np.random.default_rng(2).standard_normal((t.right.shape[1],) * 2))[0] @ t.right
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_sees_what_it_declares_and_nothing_else(name):
    kernel, before = KERNELS[name](), tokens()
    assert kernel.name == name
    assert kernel.sees | kernel.blind_to == set(CHANGES)
    for change, made in CHANGES.items():
        difference = np.abs(kernel(made(before)) - kernel(before)).max()
        assert (difference > 1e-3) if change in kernel.sees else (difference < 1e3 * EPS), change


@pytest.mark.parametrize("name", NAMES)
def test_the_stabiliser_of_a_singular_value_decomposition_changes_no_kernel(name):
    kernel, before = KERNELS[name](), tokens(k=4, in_=8, out=8)
    S = before.S.copy()
    S[:, 1] = S[:, 2]
    S[:, 3] = 0.0
    turn = np.eye(4)
    turn[1:3, 1:3] = [[0.6, -0.8], [0.8, 0.6]]
    turn[0, 0] = -1.0
    anything = np.random.default_rng(3).standard_normal(before.left[..., :1].shape)
    left, right = before.left @ turn, before.right @ turn
    left[..., 3:] = anything
    first, second = kernel(before._replace(S=S)), kernel(Tokens(left, S, right))
    assert np.allclose(first, second, rtol=0, atol=1e3 * EPS)
    padded = Tokens(*(np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, 2)]) for part in (before.left, S, before.right)))
    assert np.allclose(first, kernel(padded), rtol=0, atol=1e3 * EPS)


@pytest.mark.parametrize("name", NAMES)
def test_no_update_at_all_has_finite_features(name):
    nothing = tokens()._replace(S=np.zeros((5, 3)))
    assert np.isfinite(KERNELS[name]()(nothing)).all()


def problem(n=24, width=2, seed=0):
    rng = np.random.default_rng(seed)
    features = [rng.standard_normal((n, d)) for d in (3, 5, 40)]
    grams = np.stack([X @ X.T / X.shape[1] for X in features])
    Y = features[0] @ rng.standard_normal((3, width)) + 0.3 * rng.standard_normal((n, width))
    return grams, (Y - Y.mean(0)) / Y.std(0)


GROUPS = ["a", "a", "a", "b", "b", *map(str, range(19))]


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_the_gradient_of_the_left_out_error_is_that_of_finite_differences(groups):
    grams, Y = problem()
    blocks = blocks_of_groups(groups)
    theta, start = np.array([-0.3, 0.2, -1.0, -1.5]), np.zeros(4)
    _, gradient = left_out_error(theta, grams, Y, blocks, 0.1, start)
    step = 1e-5
    for place in range(4):
        shift = step * np.eye(4)[place]
        above, below = (left_out_error(theta + s, grams, Y, blocks, 0.1, start)[0] for s in (shift, -shift))
        assert gradient[place] == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_left_out_is_what_the_others_say(groups):
    grams, Y = problem()
    K = grams.sum(axis=0)
    weights = {}
    found = solved(K, Y, weights, 0.5, blocks_of_groups(groups))
    # the noise that was chosen, from a = (K + c + λ)⁻¹ y
    noise = float(np.median((Y - (K + CONSTANT) @ found.a) / found.a))
    names = np.asarray(groups or [str(i) for i in range(len(Y))])
    for group in set(names):
        rest, own = names != group, names == group
        a = np.linalg.solve(K[np.ix_(rest, rest)] + CONSTANT + noise * np.eye(rest.sum()), Y[rest])
        assert np.allclose(found.left_out[own], (K[np.ix_(own, rest)] + CONSTANT) @ a, atol=1e-8)
    assert found.error == pytest.approx(float(((Y - found.left_out) ** 2).mean()))


def test_weights_go_to_the_kernel_that_knows():
    grams, Y = problem(n=60)
    learned = learn_weights(grams, Y, [])
    assert learned.weights[0] > 5 * learned.weights[1:].max()


def test_weights_that_are_held_stay_where_they_were():
    grams, Y = problem(n=60)
    start = np.log([1.0, 1.0, 1.0, 0.1])
    free, held = (learn_weights(grams, Y, [], start=start, pull=pull) for pull in (0.0, 100.0))
    assert np.abs(np.log(held.weights)).max() < 0.05 < np.abs(np.log(free.weights)).max()


@pytest.fixture(scope="module")
def planted():
    dataset = planted_dataset(60)
    model = MODELS["kernels"]()
    structure = dataset.structure(range(60))
    return model, structure, model.inputs(dataset.samples, structure)


def test_a_machine_is_the_sum_of_its_kernels(planted):
    model, structure, inputs = planted
    train = {name: array[:40] for name, array in inputs.items()}
    comparison = Comparison.of(model.compared(), sites_of(structure), train)
    rng = np.random.default_rng(0)
    a, shift = rng.standard_normal((40, 2)), np.array([1.0, -2.0])
    weights = {part: float(rng.uniform(0.5, 1.0)) for part, _ in comparison.grams(inputs)}
    machine = Machine.of(comparison, weights, train, a, shift)
    K = np.add.reduce([weights[part] * gram.astype(np.float64) for part, gram in comparison.grams(train)])
    assert len(weights) == 6 * 3 + 3 * 4  # six linear kernels at three sites, three radial ones at four lengths
    # Gram matrices are kept in float32
    tolerance = 40 * np.abs(a).max() * np.abs(K).max() * np.finfo(np.float32).eps * 10
    assert np.allclose(machine(train), K @ a + shift, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(KERNELS[name], "directions")])
def test_directions_add_up_to_the_features(name):
    kernel, own = KERNELS[name](), tokens()
    assert np.allclose(kernel.directions(own).sum(axis=1), kernel(own), rtol=0, atol=1e3 * EPS)


def test_contributions_add_up_to_the_value(planted):
    model, structure, inputs = planted
    comparison = Comparison.of(model.compared(), sites_of(structure), inputs)
    rng = np.random.default_rng(0)
    weights = {part: float(rng.uniform(0.5, 1.0)) for part, _ in comparison.grams(inputs)}
    machine = Machine.of(comparison, weights, inputs, rng.standard_normal((60, 2)), np.zeros(2))
    for row in range(5):
        one = {name: array[row : row + 1] for name, array in inputs.items()}
        found = contributions_of(machine, one, 2)
        total = found.baseline + np.add.reduce(list(found.sites.values()))
        assert np.allclose(total, machine(one)[0], rtol=0, atol=1e-6 * np.abs(machine(inputs)).max())
        assert set(found.features) == set(NAMES)
        for site in structure.sites:
            by_kernel = np.add.reduce([own[site] for own in found.features.values()])
            assert np.allclose(by_kernel, found.sites[site])


def test_scores_and_spreads_come_from_one_pass_of_each_machine(monkeypatch):
    dataset = planted_dataset(40)
    fitted = fit_predictor(dataset, "size", MODELS["kernels"](size=4)).members[0].fitted
    structure = dataset.structure(range(40))
    rows = []
    call = Machine.__call__

    def counted(self, inputs):
        rows.append(len(inputs["S0"]))
        return call(self, inputs)

    monkeypatch.setattr(Machine, "__call__", counted)
    narrow = [at_rank_one(sample.read()) for sample in dataset.samples[:3]]
    samples = [*dataset.samples[:5], *(Sample(lambda a=a: a, {}) for a in narrow)]
    inputs = MODELS["kernels"](size=4).inputs(samples, structure)
    scores, spreads = fitted.scores_and_spreads(inputs)
    assert sorted(rows) == [3, 5]  # three of a rank that training never had go to the other function
    assert scores.shape == (8, 1) and spreads.shape == (8,)
    alone = [fitted.scores_and_spreads({name: x[i : i + 1] for name, x in inputs.items()}) for i in range(8)]
    assert np.allclose(scores[:, 0], [one[0, 0] for one, _ in alone], rtol=1e-12)
    assert np.allclose(spreads, [one[0] for _, one in alone], rtol=1e-12)
    assert len(set(spreads.tolist())) > 1


def at_rank_one(adapter):
    return refactored(adapter, lambda B, A: (B[:, :1], A[:1]))


def test_every_part_has_mean_zero_and_mean_diagonal_one(planted):
    model, structure, inputs = planted
    comparison = Comparison.of(model.compared(), sites_of(structure), inputs)
    for part, gram in comparison.grams(inputs):
        assert np.trace(gram) / len(gram) == pytest.approx(1.0, abs=1e-4), part
        assert np.abs(gram.mean(axis=0)).max() < 1e-4, part


def test_levels_go_from_all_sites_to_kinds_to_thirds_of_the_depth():
    names = [f"blocks.{block}.{kind}" for block in range(6) for kind in ("q", "v")]
    sites = sites_of(type("S", (), {"sites": dict.fromkeys(names, (4, 4))})())
    coarse, kinds, thirds = levels_of(sites)
    assert set(coarse) == {""}
    assert set(kinds) == {"blocks.#.q", "blocks.#.v"}
    assert [name for name in thirds if name.startswith("blocks.#.q")] == [
        f"blocks.#.q {third}" for third in (0, 0, 1, 1, 2, 2)
    ]


def test_thirds_that_part_no_further_than_kinds_are_left_out():
    for names, count in ((["q"], 2), (["q", "v"], 2), (["0.q", "1.q"], 3), (["0.q", "0.v", "1.q", "1.v"], 3)):
        sites = sites_of(type("S", (), {"sites": dict.fromkeys(names, (4, 4))})())
        assert len(levels_of(sites)) == count, names


def test_a_subset_keeps_groups_together():
    groups = [f"group {i // 4}" for i in range(400)]
    chosen = subset_of_groups(groups, 100, 0)
    assert len(chosen) == 100
    assert len({groups[i] for i in chosen}) == 25
    assert not np.array_equal(chosen, subset_of_groups(groups, 100, 1))


def test_doubt_grows_where_residuals_do():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (300, 1))
    K = np.exp(-((x - x.T) ** 2) / 0.5)
    loud = x[:, 0] > 0
    Y = np.where(loud, 1.0, 0.05)[:, None] * rng.standard_normal((300, 1))
    solution = solved(K, Y, {}, 0.1, [])
    groups = [str(i) for i in range(300)]
    doubt = doubt_of(solution, solution.left_out, Y, groups)
    assert np.exp(doubt.left_out[loud]).mean() > 2 * np.exp(doubt.left_out[~loud]).mean()
    equal = doubt_of(solution, Y - 2.0, Y, groups)  # equal residuals leave nothing to learn
    assert not equal.a.any()
    assert np.allclose(equal.left_out, np.log(2.0 + 0.1 * 2.0))  # but in the same unit as where there is something


def test_what_never_varied_in_training_says_nothing_and_the_predictor_can_be_loaded(tmp_path):
    """A site that no adapter changes, as of a layer that was never trained."""

    def untouched(adapter):
        site = adapter["layers.0.v"]
        return adapter.with_sites({**adapter, "layers.0.v": LowRank(0 * site.B, site.A, site.scale)})

    dataset = planted_dataset(40)
    samples = tuple(sample._replace(read=lambda read=sample.read: untouched(read())) for sample in dataset.samples)
    dataset = replace(dataset, samples=samples)
    predictor = fit_predictor(dataset, "size", MODELS["kernels"](size=4))
    predictor.save(tmp_path / "p")
    loaded = Predictor.load(tmp_path / "p")
    some = [sample.read() for sample in samples[:3]]
    said = [prediction.value for prediction in predictor.predict(some)]
    assert [prediction.value for prediction in loaded.predict(some)] == said
    [other] = loaded.predict([planted_dataset(1).samples[0].read()])  # it does change the site: no infinite distance
    assert np.isfinite(other.value)


def test_adapters_that_are_all_the_same_give_the_mean():
    dataset = planted_dataset(30)
    one = dataset.samples[0]
    dataset = replace(dataset, samples=tuple(sample._replace(read=one.read) for sample in dataset.samples))
    predictor = fit_predictor(dataset, "size", MODELS["kernels"](size=4))
    [said] = predictor.predict([one.read()])
    assert abs(said.value - predictor.target.mean) < predictor.target.spread


@pytest.mark.parametrize("name", ["column-space", "log-spectrum"])
def test_kernels_that_tell_no_two_adapters_apart_are_a_clear_error(name):
    dataset = planted_dataset(30)
    one = dataset.samples[0]
    dataset = replace(dataset, samples=tuple(sample._replace(read=one.read) for sample in dataset.samples))
    with pytest.raises(PredictorError, match="alike"):
        fit_predictor(dataset, "size", MODELS["kernels"](size=4, kernels=(name,)))


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_size_of_all_updates_is_a_constant_in_the_logarithms(factor):
    """In float32, which holds σ but not σ²."""
    S = np.array([[3.0, 1.0, 0.5], [2.0, 2.0, 0.0]])
    large = norm_and_spectrum((factor * S).astype(np.float32), 4)
    assert np.isfinite(large).all()
    if factor > 1:  # far above the floor
        expected = norm_and_spectrum(S * 1e6, 4) + np.log(factor / 1e6)
        np.testing.assert_allclose(large, expected, rtol=4 * np.finfo(np.float32).eps)


def test_training_adapters_of_one_class_have_no_error_and_no_gradient():
    kernels = np.eye(6)[None].astype(np.float32)
    error, gradient = left_out_error(np.zeros(2), kernels, np.zeros((6, 1)), [])
    assert np.isfinite(error)
    assert (gradient == 0).all()


def test_one_sample_of_a_class_that_a_member_does_not_see():
    dataset = planted_dataset(40)
    rare = [index == 1 for index in range(40)]
    predictor = fit_predictor(replace(dataset, labels={"rare": rare}), "rare", MODELS["kernels"](size=4), seeds=(0, 1))
    [said] = predictor.predict([dataset.samples[2].read()])
    assert said.value is False
    assert said.probabilities["True"] < 0.5


@pytest.mark.parametrize("name", ["kernels", "delta-kernel"])
def test_one_adapter_beyond_float32_leaves_the_others_what_they_were_worth(name):
    dataset = planted_dataset(40)
    adapter = dataset.samples[1].read()
    large = adapter.with_sites({site: LowRank(one.B, one.A, 1e60) for site, one in adapter.items()})
    samples = tuple(
        sample if i != 1 else sample._replace(read=lambda: large) for i, sample in enumerate(dataset.samples)
    )
    predictor = fit_predictor(replace(dataset, samples=samples), "size", MODELS[name]())
    assert all(np.isfinite(one.value) for one in predictor.predict([sample.read() for sample in samples[:4]]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_padded_rank_in_another_gauge_is_no_rank(dtype):
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((40, 4)), rng.standard_normal((4, 30))
    M = random_gauge(8, condition=100.0, rng=rng)
    B, A = act(M, *pad_rank(B, A, 8))
    structure = Structure({"q": (40, 30)}, 8)
    adapter = Adapter({"q": LowRank(B.astype(dtype), A.astype(dtype))})
    inputs = MODELS["kernels"]().inputs([Sample(lambda: adapter, {})], structure)
    assert ranks_of(inputs).tolist() == [4]


def test_later_singular_values_are_seen_and_change_nothing_below_their_place() -> None:
    """At rank 4 the columns of σ₈ … are the same for all, so that a radial kernel is that of the other columns."""
    rng = np.random.default_rng(0)
    low = np.sort(rng.uniform(0.5, 2.0, (6, 4)))[:, ::-1]
    spectra = norm_and_spectra(low)
    assert np.ptp(spectra[:, 1 + LEADING :], axis=0).max() == 0
    assert np.array_equal(spectra[:, : 1 + LEADING], norm_and_spectrum(low, LEADING))
    high = np.concatenate([low, np.full((6, 60), 0.1) * rng.uniform(0.5, 1.0, (6, 1))], axis=1)
    assert np.ptp(norm_and_spectra(high)[:, 1 + LEADING :], axis=0).min() > 0.01
    padded = np.concatenate([low, np.zeros((6, 60))], axis=1)
    assert np.allclose(norm_and_spectra(padded), spectra, rtol=0, atol=1e-15)
