"""The engine alone, in float64 on a plain model: adapters train as if each were alone, and as peft trains them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorascope.errors import ForgeError
from lorascope.forge import AdamW, AdapterStack, Slot, train
from lorascope.forge.kinds import KINDS

SITES = ("0", "2")
SLOTS = [Slot(4, 8.0, 1), Slot(2, 8.0, 2), Slot(1, 1.0, 3), Slot(4, 8.0, 4), Slot(3, 6.0, 5)]
RATES = [1e-2, 3e-3, 1e-2, 1e-3, 2e-2]
STEPS = [50, 30, 50, 7, 50]
BATCH, TOKENS = 3, 2
# Adam divides by a root of the squared gradient, which magnifies rounding where the gradient is small
TOLERANCE = 1e5 * torch.finfo(torch.float64).eps


@pytest.fixture
def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double().eval().requires_grad_(False)


def data(number, step):
    """The examples of one adapter for one step."""
    generator = torch.Generator().manual_seed(1000 * number + step)
    inputs = torch.randn(BATCH, TOKENS, 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (BATCH,), generator=generator)


def loss(outputs, targets):
    return F.cross_entropy(outputs.mean(1), targets, reduction="none")


def trained(base, numbers, poisoned=()):
    """The chosen adapters, trained together."""

    def batches(step):
        inputs, targets = zip(*(data(number, step) for number in numbers), strict=True)
        inputs = [x * torch.inf if number in poisoned else x for number, x in zip(numbers, inputs, strict=True)]
        return torch.cat(inputs), torch.cat(targets)

    stack = AdapterStack(base, SITES, [SLOTS[number] for number in numbers], KINDS["lora"])
    train(
        stack,
        batches,
        loss,
        learning_rates=[RATES[number] for number in numbers],
        steps=[STEPS[number] for number in numbers],
    )
    return stack


def largest_difference(first, second):
    """Of any entry of any ΔW, against the largest entry of the second."""
    return max(
        abs(update.delta_weight("float64") - second[site].delta_weight("float64")).max()
        / abs(second[site].delta_weight("float64")).max()
        for site, update in first.items()
    )


def test_adapters_of_mixed_ranks_rates_and_steps_train_as_if_alone(base):
    together = trained(base, range(len(SLOTS)))
    for number, slot in enumerate(SLOTS):
        adapter, alone = together.adapter(number), trained(base, [number]).adapter(0)
        assert adapter["0"].rank == slot.rank
        assert alone.norm() > 0 and largest_difference(adapter, alone) < TOLERANCE


def test_the_padding_of_smaller_ranks_stays_zero(base):
    stack = trained(base, range(len(SLOTS)))
    for parameters in stack.parameters.values():
        for value in parameters.values():
            assert all(not value[number, slot.rank :].any() for number, slot in enumerate(SLOTS))


def test_an_adapter_trains_as_peft_would_train_it(base):
    peft = pytest.importorskip("peft")
    initial = AdapterStack(base, SITES, SLOTS[:1], KINDS["lora"]).adapter(0)
    ours = trained(base, [0, 1]).adapter(0)
    config = peft.LoraConfig(r=SLOTS[0].rank, lora_alpha=SLOTS[0].alpha, target_modules=list(SITES))
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False).double().eval()
    layers = {site: model.base_model.model.get_submodule(site) for site in SITES}
    for site, layer in layers.items():
        layer.lora_A["default"].weight.data = torch.tensor(initial[site].factors("float64").A)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATES[0], weight_decay=0)
    for step in range(STEPS[0]):
        inputs, targets = data(0, step)
        optimiser.zero_grad()
        loss(model(inputs), targets).mean().backward()
        optimiser.step()
    for site, layer in layers.items():
        theirs, delta = layer.get_delta_weight("default").detach().numpy(), ours[site].delta_weight("float64")
        assert abs(delta - theirs).max() < TOLERANCE * abs(theirs).max()


def test_one_that_diverges_harms_no_other(base):
    good, bad = trained(base, [0, 1, 2]), trained(base, [0, 1, 2], poisoned=[1])
    assert [bad.is_finite(number) for number in range(3)] == [True, False, True]
    assert torch.equal(good.values[0], bad.values[0]) and torch.equal(good.values[2], bad.values[2])


def test_the_base_is_as_before(base):
    before = {name: value.clone() for name, value in base.state_dict().items()}
    x = torch.ones(2, TOKENS, 5, dtype=torch.float64)
    expected = base(x)
    trained(base, [0, 1])
    assert torch.equal(base(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any("forward" in vars(module) for module in base.modules())


def test_the_optimiser_is_that_of_pytorch():
    torch.manual_seed(0)
    ours, rates = torch.randn(3, 4, dtype=torch.float64), torch.tensor([[1e-2], [1e-3], [0.0]])
    theirs = [row.clone().requires_grad_() for row in ours]
    unmoved = ours[2].clone()
    references = [
        torch.optim.AdamW([row], lr=float(rate), weight_decay=0.1) for row, rate in zip(theirs, rates, strict=True)
    ]
    optimiser = AdamW(ours, weight_decay=0.1)
    for _ in range(20):
        gradients = torch.randn(3, 4, dtype=torch.float64)
        optimiser.step(gradients, rates.double())
        for row, gradient, reference in zip(theirs, gradients, references, strict=True):
            row.grad = gradient.clone()
            reference.step()

    assert torch.allclose(ours, torch.stack(theirs), rtol=0, atol=1e3 * torch.finfo(torch.float64).eps)
    assert torch.equal(ours[2], unmoved)


def test_what_would_couple_adapters_is_refused(base):
    stack = AdapterStack(base, SITES, SLOTS[:2], KINDS["lora"])
    with stack.attached() as model, pytest.raises(ForgeError, match="whole number of examples"):
        model(torch.ones(3, TOKENS, 5, dtype=torch.float64))
    with pytest.raises(ForgeError, match="one number per example"):
        train(
            stack,
            lambda step: (torch.ones(4, TOKENS, 5, dtype=torch.float64), None),
            lambda outputs, _: outputs.mean(),
            learning_rates=[1e-3, 1e-3],
            steps=[1, 1],
        )
    with_dropout = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
    stack = AdapterStack(with_dropout, ["0"], SLOTS[:2], KINDS["lora"])
    with pytest.raises(ForgeError, match="one stream of random numbers"), stack.attached():
        pass


def test_a_site_that_is_not_there_or_of_another_class_is_refused(base):
    with pytest.raises(ForgeError, match="no such layer"):
        AdapterStack(base, ["9"], SLOTS[:1], KINDS["lora"])
    with pytest.raises(ForgeError, match="cannot be put on this layer"):
        AdapterStack(base, ["1"], SLOTS[:1], KINDS["lora"])
