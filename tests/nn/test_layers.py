"""What each layer does, beyond the laws."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from lorascope.nn import (
    EquivariantDropout,
    EquivariantLinear,
    EquivariantNorm,
    GLFeatures,
    GLReLU,
    InvariantHead,
)
from lorascope.symmetry import FeatureType, SiteStack, random_gauge


def features(N=3, S=2, out=5, in_=4, rank=2, inv=0, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = (N, S, out, rank), (N, S, rank, in_), (N, S, inv)
    return GLFeatures(*(torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes))


def test_features_refuse_parts_that_do_not_go_together():
    # in a process without the shape checks of these tests, as in production
    code = (
        "import torch; from lorascope.nn import GLFeatures\n"
        "try: GLFeatures(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 5, 3), torch.ones(1, 2, 0))\n"
        "except ValueError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "found [1, 2, 3, 4], [1, 2, 5, 3] and [1, 2, 0]" in result.stdout


def test_features_are_indexed_by_adapter_and_converted():
    x = features(inv=1)
    assert len(x[[0, 2]]) == 2 and x[:1].type == x.type
    assert x.to(torch.float32).out.dtype == torch.float32


def test_balanced_factors_hold_the_same_product():
    rng = np.random.default_rng(0)
    stack = SiteStack(("q",), rng.standard_normal((2, 1, 5, 3)), rng.standard_normal((2, 1, 3, 4)))
    plain = GLFeatures.from_stack(stack, dtype=torch.float64)
    balanced = GLFeatures.from_stack(stack, dtype=torch.float64, balanced=True)
    torch.testing.assert_close(plain.product(), balanced.product())
    torch.testing.assert_close(balanced.out.square().sum(), balanced.in_.square().sum())


def test_one_gauge_or_one_per_site():
    x = features()
    M = torch.as_tensor(random_gauge(2, batch=(3, 2), rng=np.random.default_rng(0)))
    torch.testing.assert_close(x.act(M).product(), x.product())
    torch.testing.assert_close(x.act(M[0, 0]).in_[1, 1], M[0, 0] @ x.in_[1, 1])


@pytest.mark.parametrize("share", [False, True])
def test_linear_is_the_stated_map(share):
    x = features(inv=3)
    layer = EquivariantLinear(x.type, FeatureType(2, 3, 4), sites=2, share=share, generator=torch.Generator())
    layer = layer.double()
    y = layer(x)
    for n in range(3):
        for s in range(2):
            W1, W2, W3, b = (
                w if share else w[s] for w in (layer.out_weight, layer.in_weight, layer.inv_weight, layer.inv_bias)
            )
            torch.testing.assert_close(y.out[n, s], W1 @ x.out[n, s])
            torch.testing.assert_close(y.in_[n, s], x.in_[n, s] @ W2.T)
            torch.testing.assert_close(y.inv[n, s], W3 @ x.inv[n, s] + b)


def test_linear_says_its_types_and_keeps_the_variance():
    random = torch.Generator().manual_seed(0)
    layer = EquivariantLinear(FeatureType(400, 400), FeatureType(300, 300), sites=1, generator=random)
    assert repr(layer) == "EquivariantLinear(400×out ⊕ 400×in → 300×out ⊕ 300×in, sites=1)"
    x = GLFeatures.from_factors(torch.randn(1, 1, 400, 8, generator=random), torch.ones(1, 1, 8, 400))
    assert layer(x).out.square().mean().item() == pytest.approx(1.0, rel=0.15)


def test_linear_comes_from_its_generator_alone():
    def weights():
        layer = EquivariantLinear(
            FeatureType(2, 2), FeatureType(2, 2), sites=1, generator=torch.Generator().manual_seed(5)
        )
        return layer.out_weight

    first = weights()
    torch.rand(3)
    assert torch.equal(first, weights())


def test_linear_refuses_types_between_which_only_zero_leads():
    with pytest.raises(ValueError, match="only the zero map leads from 2×out to 1×in"):
        EquivariantLinear(FeatureType(out=2), FeatureType(in_=1), sites=1, generator=torch.Generator())


def test_linear_refuses_another_number_of_sites():
    layer = EquivariantLinear(FeatureType(5, 4), FeatureType(1, 1), sites=3, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"number of sites \(expected 3, found 2\)"):
        layer(features())


def test_hard_gate_is_that_of_the_paper():
    x = features()
    y = GLReLU(x.type)(x)
    S = x.out @ x.in_
    torch.testing.assert_close(y.out, x.out * torch.relu(torch.sign(S.sum(-1)))[..., None])
    torch.testing.assert_close(y.in_, x.in_ * torch.relu(torch.sign(S.sum(-2)))[..., None, :])


def test_hard_gate_shuts_zero_sites_and_the_smooth_one_halves_them():
    x = features()
    x = GLFeatures(0 * x.out, x.in_, x.inv)
    assert not GLReLU(x.type)(x).in_.any()
    torch.testing.assert_close(GLReLU(x.type, gate="smooth")(x).in_, 0.5 * x.in_)


def test_the_gates_have_and_have_not_a_gradient():
    x = features()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    for gate, has_gradient in (("hard", False), ("smooth", True)):
        tilted = GLFeatures(x.out + scale, x.in_, x.inv)
        gates = GLReLU(x.type, gate=gate)(tilted).in_ / x.in_
        found = torch.autograd.grad(gates.sum() + 0 * scale, scale)[0]
        assert bool(found != 0) is has_gradient


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_smooth_gate_does_not_see_the_scale(scale):
    x = features()
    layer = GLReLU(x.type, gate="smooth")
    scaled = layer(GLFeatures(scale * x.out, x.in_, x.inv))
    torch.testing.assert_close(scaled.out, scale * layer(x).out, rtol=1e-3, atol=0)


def test_activation_and_norm_need_both_kinds():
    for layer in (GLReLU, EquivariantNorm):
        with pytest.raises(ValueError, match="needs both out and in"):
            layer(FeatureType(out=2))


def test_norm_gives_mean_square_one():
    x = features(inv=3)
    y = EquivariantNorm(x.type)(x)
    torch.testing.assert_close(y.product().square().mean((-2, -1)), torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close(y.inv.square().mean(-1), torch.ones(3, 2, dtype=torch.float64))


def test_dropout_drops_whole_channels_in_training_only():
    x = features(N=50, out=20, inv=2)
    layer = EquivariantDropout(x.type, 0.25, generator=torch.Generator().manual_seed(0))
    ratio = layer(x).out / x.out
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    assert {round(value, 6) for value in ratio.unique().tolist()} == {0.0, round(4 / 3, 6)}
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.05)
    assert layer.eval()(x) is x


def test_dropout_refuses_a_certain_loss():
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        EquivariantDropout(FeatureType(1, 1), 1.0, generator=torch.Generator())


def test_head_gives_the_products_and_what_came_in():
    x = features(inv=2)
    y = InvariantHead(x.type)(x)
    assert y.type == FeatureType(inv=22)
    torch.testing.assert_close(y.inv[..., :20].reshape(3, 2, 5, 4), x.out @ x.in_)
    torch.testing.assert_close(y.inv[..., 20:], x.inv)
