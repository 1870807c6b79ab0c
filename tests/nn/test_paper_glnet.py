"""GL-net against the definition of Learning on LoRAs (arXiv 2410.04207), written out one adapter and site at a time.

U = B [out, r], V = Aᵀ [in, r]
linear     (U, V) ↦ (W₁ U, W₂ V), no bias
GL-ReLU    S = U Vᵀ;  row i of U times relu(sign(Σ_j S_ij)),  row j of V times relu(sign(Σ_i S_ij))
head       flatten(U Vᵀ) of all sites → Linear → LayerNorm → ReLU → Linear
"""

import numpy as np
import pytest
import torch

from lorascope.nn import GLFeatures, GLNet, StackShape

SHAPES = [StackShape(2, 6, 5), StackShape(1, 4, 7), StackShape(3, 8, 8)]
RANKS = (1, 4, 2, 9, 3)
"""Of the adapters of a batch; 9 is more than any side has."""

LAYERNORM_EPS = 1e-5
"""PyTorch's default, which the paper's code leaves alone."""


def adapters(rng):
    """One list per stack of (U, V) [site][adapter], each adapter with a rank of its own."""
    return [
        [
            [(rng.standard_normal((shape.out, r)), rng.standard_normal((shape.in_, r))) for r in RANKS]
            for _ in range(shape.sites)
        ]
        for shape in SHAPES
    ]


def as_features(stacks):
    """The same, ranks padded with zeros to the largest."""
    features = []
    for stack, shape in zip(stacks, SHAPES, strict=True):
        B = np.zeros((len(RANKS), shape.sites, shape.out, max(RANKS)))
        A = np.zeros((len(RANKS), shape.sites, max(RANKS), shape.in_))
        for s, site in enumerate(stack):
            for n, (U, V) in enumerate(site):
                B[n, s, :, : U.shape[1]], A[n, s, : V.shape[1]] = U, V.T
        features.append(GLFeatures.from_factors(torch.from_numpy(B), torch.from_numpy(A)))
    return features


def paper_net(net, stacks, layers):
    """[N, outputs] with the weights of ``net``."""
    weights = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    invariants = [[] for _ in RANKS]
    for i, stack in enumerate(stacks):
        own = [name for name in weights if name.startswith(f"stacks.{i}.")]
        W1s = [weights[name] for name in own if name.endswith("out_weight")]
        W2s = [weights[name] for name in own if name.endswith("in_weight")]
        assert len(W1s) == len(W2s) == layers
        for s, site in enumerate(stack):
            for n, (U, V) in enumerate(site):
                for layer in range(layers):
                    if layer > 0:
                        S = U @ V.T
                        U = np.maximum(np.sign(S.sum(axis=1)), 0)[:, None] * U
                        V = np.maximum(np.sign(S.sum(axis=0)), 0)[:, None] * V
                    U, V = W1s[layer][s] @ U, W2s[layer][s] @ V
                invariants[n].append((U @ V.T).ravel())
    outputs = []
    for parts in invariants:
        x = weights["head.0.weight"] @ np.concatenate(parts) + weights["head.0.bias"]
        x = (x - x.mean()) / np.sqrt(x.var() + LAYERNORM_EPS)
        x = np.maximum(weights["head.1.weight"] * x + weights["head.1.bias"], 0)
        outputs.append(weights["head.3.weight"] @ x + weights["head.3.bias"])
    return np.array(outputs)


def shaken(net, seed):
    """Every parameter random, so that none is at a value which hides its part."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype))
    return net


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_same_weights_give_the_outputs_of_the_definition(layers, seed):
    generator = torch.Generator().manual_seed(seed)
    net = GLNet(SHAPES, hidden=4, layers=layers, head_hidden=8, outputs=3, generator=generator).double().eval()
    stacks = adapters(np.random.default_rng(seed))
    expected = paper_net(shaken(net, seed), stacks, layers)
    found = net(as_features(stacks)).detach().numpy()
    assert found.shape == (len(RANKS), 3)
    assert np.ptp(expected, axis=0).min() > 1e-2
    # sums of at most some thousand products of moderate numbers in float64
    assert np.abs(found - expected).max() < 1e4 * np.finfo(float).eps * np.abs(expected).max()


@pytest.mark.parametrize("options", [{"gate": "smooth"}, {"norm": True}])
def test_the_smooth_gate_and_the_norm_are_other_networks(options):
    nets = [
        GLNet(SHAPES, hidden=4, layers=2, head_hidden=8, generator=torch.Generator().manual_seed(0), **chosen)
        for chosen in ({}, options)
    ]
    features = as_features(adapters(np.random.default_rng(0)))
    plain, other = (net.double().eval()(features) for net in nets)
    assert (plain - other).abs().max() > 1e-2
