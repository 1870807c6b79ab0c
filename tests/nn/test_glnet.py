"""GL-net as a whole: shapes, ranks, zero updates, seeds, calibration."""

import pytest
import torch

from lorascope.nn import GLFeatures, GLNet, StackShape
from lorascope.symmetry import pad_rank

SHAPES = [StackShape(2, 6, 5), StackShape(1, 4, 7)]


def make(seed=0, **options):
    options = {"hidden": 4, "head_hidden": 8, "outputs": 3, **options}
    return GLNet(SHAPES, generator=torch.Generator().manual_seed(seed), **options).double()


def batch(N=5, rank=3, size=1.0):
    random = torch.Generator().manual_seed(1)
    return [
        GLFeatures.from_factors(
            size * torch.randn(N, shape.sites, shape.out, rank, generator=random, dtype=torch.float64),
            torch.randn(N, shape.sites, rank, shape.in_, generator=random, dtype=torch.float64),
        )
        for shape in SHAPES
    ]


def padded(stacks, rank):
    return [GLFeatures(*pad_rank(x.out, x.in_, rank), x.inv) for x in stacks]


def test_any_rank_and_zero_padding():
    net = make(layers=2).eval()
    for rank in (1, 3, 9):
        torch.testing.assert_close(net(padded(batch(rank=rank), rank + 2)), net(batch(rank=rank)))


def test_adapters_of_a_batch_do_not_meet():
    net = make(layers=2, norm=True, gate="smooth").eval()
    stacks = batch()
    alone = torch.cat([net([x[[index]] for x in stacks]) for index in range(5)])
    torch.testing.assert_close(net(stacks), alone)


def test_it_is_the_paper_s_net():
    net = make(layers=2).eval()
    invariants = []
    for stack, (first, _, second, _head) in zip(batch(), net.stacks, strict=True):
        for s in range(stack.sites):
            U, V = first.out_weight[s] @ stack.out[:, s], stack.in_[:, s] @ first.in_weight[s].T
            S = U @ V
            U = U * torch.relu(torch.sign(S.sum(-1)))[..., None]
            V = V * torch.relu(torch.sign(S.sum(-2)))[..., None, :]
            invariants.append(((second.out_weight[s] @ U) @ (V @ second.in_weight[s].T)).flatten(1))
    torch.testing.assert_close(net(batch()), net.head(torch.cat(invariants, 1)))


@pytest.mark.parametrize("options", [{}, {"layers": 2}, {"layers": 3, "gate": "smooth", "norm": True, "dropout": 0.3}])
def test_zero_updates_train(options):
    net = make(**options)
    stacks = [GLFeatures(0 * x.out, x.in_, x.inv) for x in batch()]
    net.calibrate(stacks)
    loss = net(stacks).square().sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_it_comes_from_its_seed_alone_and_leaves_the_global_one():
    state = torch.get_rng_state()
    one, again, other = make(0), make(0), make(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one(batch()), again(batch())) and not torch.equal(one(batch()), other(batch()))


def test_shared_weights_need_fewer_parameters():
    count = {share: sum(p.numel() for p in make(share=share).stacks.parameters()) for share in (True, False)}
    assert count == {True: 4 * (6 + 5 + 4 + 7), False: 4 * (2 * (6 + 5) + 4 + 7)}


def test_calibration_takes_the_scale_out_and_is_saved():
    small, large = batch(size=1e-5), batch()
    net = make().eval()
    on_large = net.calibrate(large).invariants(large)
    on_small = net.calibrate(small).invariants(small)
    torch.testing.assert_close(on_small, on_large)
    assert 0.1 < on_large.square().mean().item() < 10.0
    other = make(1).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(small), net(small))


def test_refuses_other_stacks():
    with pytest.raises(ValueError, match=r"got 1 stacks of sites \(expected 2\)"):
        make()(batch()[:1])
    with pytest.raises(ValueError, match="wrong type"):
        make()(batch()[::-1])
    with pytest.raises(ValueError, match="at least one layer"):
        make(layers=0)


def test_it_prints_its_types():
    assert "EquivariantLinear(6×out ⊕ 5×in → 4×out ⊕ 4×in, sites=2)" in repr(make())
    assert "InvariantHead(4×out ⊕ 4×in → 16×inv)" in repr(make())


def test_it_learns_an_invariant():
    torch.manual_seed(0)
    net = GLNet([StackShape(1, 4, 4)], hidden=8, head_hidden=32, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    B, A = torch.randn(256, 1, 4, 2, generator=random), torch.randn(256, 1, 2, 4, generator=random)
    target = (B @ A)[:, 0, 0, 0]
    x = [GLFeatures.from_factors(B, A)]
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (net(x)[:, 0] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
