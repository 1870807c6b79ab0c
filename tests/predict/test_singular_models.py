"""Models on singular vectors: what their inputs do not determine, they do not see; and what each can express."""

import dataclasses

import numpy as np
import pytest
import torch

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import PredictorError
from lorascope.nn import GLFeatures, GLNet, StackShape
from lorascope.predict import MODELS, Predictor, Sample, fit_predictor
from lorascope.predict.model import Structure
from lorascope.predict.models._layers import Columns, initialised
from lorascope.predict.models._singular import singular_inputs, site_groups
from lorascope.symmetry import random_gauge
from planted import SITES, planted_adapter, planted_dataset

NETWORKS = ("gram", "probes", "tokens")
SMALL = {"gram": {"size": 8}, "probes": {"probes": 5, "read_outs": 4}, "tokens": {"size": 6, "width": 16}}
STRUCTURE = Structure(SITES, 4)


def untrained(name, **options):
    """A network with random weights, statistics of random adapters, and no output that starts at zero; float64."""
    model = MODELS[name](**{**SMALL[name], **options})
    generator = torch.Generator().manual_seed(0)
    network = initialised(lambda: model._network(site_groups(STRUCTURE), 2), generator)
    rng = np.random.default_rng(1)
    network.calibrate(tensors([planted_adapter(rng, [0, 3], 1.0, rank=4) for _ in range(20)], torch.float32))
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(generator=generator)
    return network.double().eval()


def tensors(adapters, dtype=torch.float64):
    return {name: torch.as_tensor(array, dtype=dtype) for name, array in inputs_of(adapters, STRUCTURE).items()}


def inputs_of(adapters, structure):
    return singular_inputs([Sample(lambda a=a: a, {}) for a in adapters], structure)


def singular_arrays(rng, values):
    """Random orthonormal vectors at these singular values, at every site: the inputs of one adapter."""
    batch = {}
    for i, group in enumerate(site_groups(STRUCTURE)):
        for name, n in (("U", group.out), ("V", group.in_)):
            noise = rng.standard_normal((1, group.sites, n, len(values)))
            batch[f"{name}{i}"] = torch.as_tensor(np.linalg.qr(noise)[0])
        batch[f"S{i}"] = torch.as_tensor(np.tile(values, (1, group.sites, 1)))
    return batch


def changed(batch, change):
    """The batch with change(U, S, V) at every site group."""
    moved = dict(batch)
    for i in range(len(batch) // 3):
        moved.update(zip((f"U{i}", f"S{i}", f"V{i}"), change(*(batch[f"{n}{i}"] for n in "USV")), strict=True))
    return moved


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in NETWORKS), ("gram", {"head": "attention", "width": 16})]
)
def test_the_stabiliser_of_the_thin_svd_is_not_seen(name, options):
    rng = np.random.default_rng(3)
    network = untrained(name, **options)
    batch = singular_arrays(rng, [3.0, 2.0, 2.0, 2.0, 0.0])
    turn = np.eye(5)
    turn[1:4, 1:4] = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    turn[0, 0] = -1.0
    other = singular_arrays(rng, [1.0] * 5)  # what goes with σ = 0 is anything
    with torch.no_grad():
        before = network(batch)
        Q = torch.as_tensor(turn)
        rotated = network(changed(batch, lambda U, S, V: (U @ Q, S, V @ Q)))
        arbitrary = network(
            {key: x if key[0] == "S" else torch.cat([x[..., :4], other[key][..., 4:]], -1) for key, x in batch.items()}
        )
        apart = network(changed(batch, lambda U, S, V: (U @ Q, S, V)))
    scale = before.abs().max()
    assert (before - rotated).abs().max() < 1e-9 * scale
    assert (before - arbitrary).abs().max() < 1e-9 * scale
    assert (before - apart).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_smooth_where_singular_values_meet(name):
    # ΔW + t E, which splits a pair of equal singular values along new vectors: what is continuous moves by O(t)
    rng = np.random.default_rng(4)
    network = untrained(name)
    batch = singular_arrays(rng, [2.0, 2.0, 1.0])
    moves = []
    for step in (1e-4, 1e-6):
        moved = {}
        for i in range(len(batch) // 3):
            U, S, V = (batch[f"{n}{i}"] for n in "USV")
            W = (U * S[..., None, :]) @ V.mT
            noise = np.random.default_rng(5 + i).standard_normal(W.shape)
            left, values, right = torch.linalg.svd(W + step * torch.as_tensor(noise), full_matrices=False)
            moved.update({f"U{i}": left, f"S{i}": values, f"V{i}": right.mT})
        with torch.no_grad():
            moves.append(float((network(moved) - network(batch)).abs().max()))
    assert moves[0] > 1e-7
    assert moves[1] < 0.02 * moves[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_network_sees_no_gauge_with_repeated_singular_values(name):
    predictor = fit_predictor(planted_dataset(40), "size", MODELS[name](epochs=2, **SMALL[name]))
    rng = np.random.default_rng(0)
    before, after = {}, {}
    for site, (out, in_) in SITES.items():
        B, A = np.linalg.qr(rng.standard_normal((out, 4)))[0], np.linalg.qr(rng.standard_normal((in_, 4)))[0].T
        M = random_gauge(4, condition=100.0, rng=rng)
        before[site] = LowRank(B, A, scale=0.7)
        after[site] = LowRank(B @ np.linalg.inv(M), M @ A, scale=0.7)
    [one], [two] = predictor.predict([Adapter(before)]), predictor.predict([Adapter(after)])
    assert one.value == pytest.approx(two.value, abs=1e-8)


@pytest.mark.parametrize("layers", [1, 2])
def test_what_a_narrow_gl_net_cannot_see_and_gram_can(layers):
    """ΔW and ΔW + x yᵀ with W₁x = 0: the same to GL-net, other norms and projector tokens to gram."""
    out, in_, rank, h = 14, 10, 3, 8
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    net = GLNet([StackShape(1, out, in_)], hidden=h, layers=layers, outputs=3, generator=generator).double()
    B, A = rng.standard_normal((out, rank)), rng.standard_normal((rank, in_))
    [W1] = next(p for name, p in net.named_parameters() if name.endswith("out_weight")).detach().numpy()
    assert W1.shape == (h, out)
    x = np.linalg.svd(W1)[2][-1:].T
    adapters = [
        (np.hstack([B, 0 * x]), np.vstack([A, np.ones((1, in_))])),
        (np.hstack([B, 4.0 * x]), np.vstack([A, np.ones((1, in_))])),
    ]
    with torch.no_grad():
        features = [torch.as_tensor(np.stack(pair))[:, None] for pair in zip(*adapters, strict=True)]
        one, two = net([GLFeatures.from_factors(*features)])
    assert np.abs(x).max() > 0.1
    assert torch.allclose(one, two, rtol=0, atol=1e-12)

    structure = Structure({"q": (out, in_)}, rank)
    model = MODELS["gram"](size=h)
    network = initialised(lambda: model._network(site_groups(structure), 1), generator).double()
    arrays = inputs_of([Adapter({"q": LowRank(*pair)}) for pair in adapters], structure)
    U, S, V = (torch.as_tensor(array) for array in arrays.values())
    with torch.no_grad():
        tokens = network.tokens[0](U, S, V)[:, 0, : h * (h + 1) // 2]
        norms = network.spectra({"U0": U, "S0": S, "V0": V})[:, 0]
    assert (tokens[0] - tokens[1]).norm() > 0.1 * tokens[0].norm()
    assert (norms[0] - norms[1]).abs() > 0.1


@pytest.mark.parametrize("name", [*NETWORKS, "delta-kernel"])
def test_a_seed_gives_the_same_predictor_twice_whatever_the_global_state(name):
    dataset = planted_dataset(40)
    model = MODELS[name](epochs=2, **SMALL[name]) if name in SMALL else MODELS[name]()
    predictions = []
    for state in (1, 2):
        torch.manual_seed(state)
        predictions.append(fit_predictor(dataset, "classes", model, seeds=(5,)).predict(dataset.samples[:4]))
    assert predictions[0] == predictions[1]


def test_both_heads_of_gram_learn_and_are_saved(tmp_path):
    dataset = planted_dataset(60)
    predictor = fit_predictor(dataset, "first", MODELS["gram"](size=8, head="attention", width=16, epochs=3))
    predictor.save(tmp_path / "p")
    assert Predictor.load(tmp_path / "p").predict(dataset.samples[:3]) == predictor.predict(dataset.samples[:3])


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_other_options_are_refused_before_they_are_allocated(name):
    model = MODELS[name](epochs=1, **SMALL[name])
    predictor = fit_predictor(planted_dataset(30), "size", model)
    arrays, values = predictor.members[0].fitted.state()
    size = {"gram": "hidden", "probes": "hidden", "tokens": "width"}[name]
    huge = dataclasses.replace(model, **{size: 8192})
    with pytest.raises(RuntimeError, match="size mismatch"):
        huge.restore(arrays, values, predictor.target, predictor.structure)


@pytest.mark.parametrize(
    ("name", "options"),
    [("gram", {"head": "mean"}), ("gram", {"width": 10}), ("tokens", {"width": 6}), ("probes", {"probes": 0})],
)
def test_impossible_options_are_refused_by_name(name, options):
    with pytest.raises(PredictorError, match=f"{next(iter(options))}: the option has an impossible value"):
        MODELS[name](**options)


def test_statistics_in_blocks_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.standard_normal((150, 3, 4, 5)) * 2 + 7)
    weight = torch.as_tensor(rng.uniform(size=(150, 3, 4, 1)))
    columns = Columns(3, 1, 5).double()
    columns.calibrate(zip(x.split(64), weight.split(64), strict=True))
    share = weight / weight.sum((0, 2), keepdim=True)
    mean = (share * x).sum((0, 2), keepdim=True)
    spread = (share * (x - mean) ** 2).sum((0, 2), keepdim=True).sqrt()
    assert torch.allclose(columns(x), (x - mean) / spread, atol=1e-10)


def test_a_column_that_hardly_varies_is_not_blown_up_and_a_constant_one_is_zero():
    x = torch.stack([torch.linspace(-1, 1, 50), 1e-6 * torch.linspace(-1, 1, 50), torch.ones(50)], dim=-1)
    columns = Columns(3)
    columns.calibrate([(x, 1.0)])
    assert columns(x)[:, 0].std() == pytest.approx(1.0, abs=0.05)
    assert columns(x)[:, 1].abs().max() < 1e-3
    assert not columns(x)[:, 2].any()
