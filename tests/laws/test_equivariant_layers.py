"""Every equivariant layer commutes with GL(r) at each site, and breaks under the groups it should break under."""

import numpy as np
import pytest
import torch
from hypothesis import given

from lorascope.nn import (
    EquivariantDropout,
    EquivariantLinear,
    EquivariantNorm,
    GLFeatures,
    GLNet,
    GLReLU,
    InvariantHead,
    StackShape,
)
from lorascope.symmetry import FeatureType
from lorascope.testing import assert_equivariant, assert_invariant, factor_pairs

OUT, IN, SITES = 6, 5, 2
TYPE = FeatureType(out=OUT, in_=IN)


def generator():
    return torch.Generator().manual_seed(0)


def linear(share=False):
    return EquivariantLinear(TYPE, TYPE, sites=SITES, share=share, generator=generator()).double()


LAYERS = {
    "linear": linear,
    "shared linear": lambda: linear(share=True),
    "hard GL-ReLU": lambda: GLReLU(TYPE),
    "smooth GL-ReLU": lambda: GLReLU(TYPE, gate="smooth"),
    "norm": lambda: EquivariantNorm(TYPE),
    "dropout in evaluation": lambda: EquivariantDropout(TYPE, 0.5, generator=generator()).eval(),
    "head": lambda: InvariantHead(TYPE),
}
"""Every layer at one type, in float64."""

TIES_SIDES = {"hard GL-ReLU", "smooth GL-ReLU", "norm", "head"}
"""Those that form out · in_, and so break under independent (M, N)."""

HAS_WEIGHTS_OF_OUT = {"linear", "shared linear", "hard GL-ReLU", "smooth GL-ReLU", "norm"}
"""Those that single out a basis of the out channels, and so break under GL(out)."""


def generic(rank=3, adapters=2):
    random = generator()
    return GLFeatures.from_factors(
        torch.randn(adapters, SITES, OUT, rank, generator=random, dtype=torch.float64),
        torch.randn(adapters, SITES, rank, IN, generator=random, dtype=torch.float64),
    )


def of_pair(pair):
    """The pair at the first site, one of full rank at the second."""
    B, A = map(torch.as_tensor, pair)
    other = generic(rank=B.shape[1], adapters=1)
    return GLFeatures.from_factors(
        torch.stack([B[None], other.out[:, 1]], 1), torch.stack([A[None], other.in_[:, 1]], 1)
    )


def test_every_layer_of_the_package_is_here():
    import lorascope.nn

    layers = {
        value
        for name in lorascope.nn.__all__
        if isinstance(value := getattr(lorascope.nn, name), type) and issubclass(value, lorascope.nn.EquivariantLayer)
    }
    assert layers - {lorascope.nn.EquivariantLayer} == {type(make()) for make in LAYERS.values()}


@pytest.mark.parametrize("name", LAYERS)
@given(pair=factor_pairs(shape=(OUT, IN)))
def test_commutes_with_the_gauge(name, pair):
    if name == "hard GL-ReLU" and not (pair[0] @ pair[1]).any():
        pair = 0 * pair[0], pair[1]
    assert_equivariant(LAYERS[name](), of_pair(pair), trials=1, sensitivity=10.0)


@pytest.mark.parametrize("name", sorted(TIES_SIDES))
def test_breaks_under_independent_gauges_on_the_two_sides(name):
    with pytest.raises(AssertionError, match=r"not equivariant under GL\(r\)×GL\(r\)"):
        assert_equivariant(LAYERS[name](), generic(), group="GL(r)×GL(r)", trials=10)


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - TIES_SIDES))
def test_commutes_with_independent_gauges_on_the_two_sides(name):
    assert_equivariant(LAYERS[name](), generic(), group="GL(r)×GL(r)")


@pytest.mark.parametrize("name", sorted(HAS_WEIGHTS_OF_OUT))
def test_breaks_under_the_group_on_the_out_channels(name):
    with pytest.raises(AssertionError, match=r"not equivariant under GL\(out\)"):
        assert_equivariant(LAYERS[name](), generic(), group="GL(out)", trials=10)


@pytest.mark.parametrize("name", LAYERS)
def test_keeps_to_its_output_type(name):
    layer = LAYERS[name]()
    assert layer(generic()).type == layer.output_type


@pytest.mark.parametrize("name", LAYERS)
def test_refuses_another_type(name):
    other = GLFeatures.from_factors(torch.ones(1, SITES, 2, 3), torch.ones(1, SITES, 3, 2))
    with pytest.raises(ValueError, match=r"wrong type \(expected 6×out ⊕ 5×in, found 2×out ⊕ 2×in\)"):
        LAYERS[name]()(other)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("zero", ["out", "in", "both"])
def test_zero_updates_give_finite_values_and_gradients(name, zero):
    x = generic()
    out = (x.out * (zero == "in")).requires_grad_()
    in_ = (x.in_ * (zero == "out")).requires_grad_()
    layer = LAYERS[name]()
    found = layer(GLFeatures(out, in_, x.inv))
    total = found.out.sum() + found.in_.sum() + found.inv.sum()
    gradients = torch.autograd.grad(total, [out, in_, *layer.parameters()], allow_unused=True)
    assert torch.isfinite(total)
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


SHAPES = [StackShape(SITES, OUT, IN), StackShape(1, 4, 7)]
NETS = {
    "one layer": {},
    "hard gate": {"layers": 3},
    "smooth gate": {"layers": 2, "gate": "smooth", "share": True},
    "norm": {"layers": 3, "gate": "smooth", "norm": True, "dropout": 0.5},
}


def net(name):
    return GLNet(SHAPES, hidden=4, head_hidden=8, outputs=3, generator=generator(), **NETS[name]).double().eval()


def stacks(pair=None, rank=3):
    other = GLFeatures.from_factors(
        torch.randn(1, 1, 4, rank, generator=generator(), dtype=torch.float64),
        torch.randn(1, 1, rank, 7, generator=generator(), dtype=torch.float64),
    )
    return [generic(rank, adapters=1) if pair is None else of_pair(pair), other]


LAYER_NORM = 1e3
"""How much faster than ΔW the head may move: LayerNorm divides by the spread of what it sees."""


@pytest.mark.parametrize("name", NETS)
@given(pair=factor_pairs(shape=(OUT, IN)))
def test_networks_are_invariant(name, pair):
    assert_invariant(net(name), stacks(pair), trials=1, sensitivity=LAYER_NORM)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("group", ["GL(r)×GL(r)", "GL(out)"])
def test_networks_see_everything_else(name, group):
    with pytest.raises(AssertionError, match="not invariant under GL"):
        assert_invariant(net(name), stacks(), group=group, sensitivity=LAYER_NORM)


def test_single_entry_dropout_would_break_the_law():
    def entries(x):
        return GLFeatures(torch.nn.functional.dropout(x.out, 0.5), x.in_, x.inv)

    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(entries, generic())


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("layer", [GLReLU(TYPE, gate="smooth", eps=1e-2), EquivariantNorm(TYPE, eps=1e-2)])
def test_smooth_layers_have_exact_gradients(layer, zero):
    x = generic(adapters=1)
    out = (x.out * (0 if zero else 1)).requires_grad_()
    in_ = x.in_.clone().requires_grad_()

    def function(out, in_):
        found = layer(GLFeatures(out, in_, x.inv))
        return found.out, found.in_

    assert torch.autograd.gradcheck(function, (out, in_))


def test_float32_networks_agree_with_float64_in_any_gauge():
    network, x = net("smooth gate"), stacks()
    rng = np.random.default_rng(0)
    from lorascope.symmetry import random_gauge

    moved = [part.act(torch.as_tensor(random_gauge(3, condition=100.0, rng=rng))).to(torch.float32) for part in x]
    difference = (network.float()(moved) - net("smooth gate")(x)).abs().max()
    assert difference.item() < 1e-3
