"""Training of a stack: optimisers, schedules, early stops, precision, and the refusal of what mixes adapters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from forge.models import BATCH, CLASSES, TOKENS, base, batches_of, loss, sites_of, slots, trained, trainings
from lorascope.errors import ForgeError
from lorascope.forge import AdapterStack, EarlyStop, Slot, Training, gather, train
from lorascope.forge.kinds import KINDS
from lorascope.forge.optimiser import SGD, AdamW

LORA = KINDS["lora"]
TWO = [Slot(2, 4.0, 0), Slot(2, 4.0, 1)]
BRIEF = [Training(learning_rate=1e-2, steps=2)] * 2


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda values: AdamW(values, weight_decay=0.1),
            lambda row, rate: torch.optim.AdamW([row], rate, weight_decay=0.1),
        ),
        (
            lambda values: SGD(values, momentum=0.9, weight_decay=0.1),
            lambda row, rate: torch.optim.SGD([row], rate, momentum=0.9, weight_decay=0.1),
        ),
    ],
    ids=["adamw", "sgd"],
)
def test_the_optimisers_are_those_of_pytorch(ours, theirs):
    torch.manual_seed(0)
    values, rates = torch.randn(3, 4, dtype=torch.float64), torch.tensor([[1e-2], [1e-3], [0.0]])
    rows = [row.clone().requires_grad_() for row in values]
    unmoved = values[2].clone()
    references = [theirs(row, float(rate)) for row, rate in zip(rows, rates, strict=True)]
    optimiser = ours(values)
    for _ in range(20):
        gradients = torch.randn(3, 4, dtype=torch.float64)
        optimiser.step(gradients, rates.double())
        for row, gradient, reference in zip(rows, gradients, references, strict=True):
            row.grad = gradient.clone()
            reference.step()
    assert torch.allclose(values, torch.stack(rows), rtol=0, atol=1e3 * torch.finfo(torch.float64).eps)
    assert torch.equal(values[2], unmoved)


def test_an_adapter_stops_when_its_score_gets_no_better():
    stack = AdapterStack(base(), sites_of("lora"), slots(3), LORA)
    seen = []

    def score(model, numbers):
        seen.append(len(numbers))
        # the first gets better and better, the second at the first two looks only, the third never
        return torch.tensor([-float(len(seen)), -float(min(len(seen), 2)), 0.0])

    three = [Training(learning_rate=1e-2, steps=40) for _ in range(3)]
    result = train(stack, batches_of(range(3)), loss, three, stop=EarlyStop(score, every=5, patience=2))
    assert result.steps == [40, 20, 15]
    shorter = AdapterStack(base(), sites_of("lora"), slots(3), LORA)
    train(shorter, batches_of(range(3)), loss, [Training(learning_rate=1e-2, steps=steps) for steps in result.steps])
    assert torch.equal(stack.values, shorter.values)


@pytest.mark.parametrize(
    ("steps", "is_fast", "left"),
    [((2, 2, 6, 6), True, 2), ((2, 2, 6, 6), False, 4), ((2, 6, 6, 6), True, 3), ((2, 6, 6, 6, 6), True, 5)],
    ids=["half", "half, not fast", "a quarter", "a fifth is not worth it"],
)
def test_finished_adapters_leave_the_batch(steps, is_fast, left):
    model, seen, count = base(), [], len(steps)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    stack = AdapterStack(model, sites_of("lora"), slots(count), LORA)
    plans = [Training(learning_rate=1e-2, steps=own) for own in steps]
    train(stack, batches_of(range(count)), loss, plans, is_fast=is_fast)
    assert seen == [count * BATCH] * 3 + [left * BATCH] * 4  # the trial, two steps of all, four of those that are left


def test_training_makes_the_loss_smaller_and_says_so():
    stack = AdapterStack(base(), sites_of("lora"), slots(2), LORA)
    tokens, classes = batches_of(range(2))(0, 0)
    result = train(stack, lambda step, part: (tokens, classes), loss, [Training(learning_rate=1e-2, steps=60)] * 2)
    with stack.attached() as model, torch.no_grad():
        after = loss(model(tokens), classes).view(2, -1).mean(1)
    before = loss(base()(tokens), classes).view(2, -1).mean(1)
    assert (after < 0.5 * before).all()
    assert all(float(now) <= last for now, last in zip(after, result.losses, strict=True))


def test_half_precision_products_train_parameters_that_stay_in_float32():
    model = base().float()
    stack = AdapterStack(model, sites_of("dora"), slots(4), KINDS["dora"])
    half = AdapterStack(model, sites_of("dora"), slots(4), KINDS["dora"])
    tokens, classes = batches_of(range(4))(0, 0)
    plans = [Training(learning_rate=1e-2, steps=30)] * 4
    full_losses = train(stack, lambda step, part: (tokens, classes), loss, plans).losses
    half_losses = train(half, lambda step, part: (tokens, classes), loss, plans, precision="bfloat16").losses
    assert half.values.dtype == torch.float32
    assert half_losses != full_losses
    assert half_losses == pytest.approx(full_losses, abs=0.2)  # bfloat16 has 8 bits: a few per cent of a loss near 1


def test_a_base_in_half_precision_is_trained_over_with_parameters_in_float32():
    model = base().bfloat16()
    stack = AdapterStack(model, sites_of("lora"), slots(2), LORA)
    train(stack, batches_of(range(2)), lambda y, t: loss(y.float(), t), BRIEF)
    assert stack.values.dtype == torch.float32 and stack.adapter(0).norm() > 0
    assert all(value.dtype == torch.bfloat16 for value in model.parameters())


def test_dropout_is_each_adapters_own_and_off_when_measured():
    all_slots, plans = slots(4, dropout=0.5), trainings(4, steps=30)
    with_dropout = trained("lora", all_slots, plans, range(4))
    without = trained("lora", slots(4), plans, range(4))
    # the others make the products in another order: equal to rounding
    same = [torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(with_dropout.values, without.values, strict=True)]
    assert same == [True, False, True, False]
    tokens = batches_of(range(4))(0, 0)[0]
    with with_dropout.attached() as model:
        assert torch.equal(model(tokens), model(tokens))


def test_a_batch_must_be_whole_and_a_loss_one_number_per_example():
    stack = AdapterStack(base(), sites_of("lora"), TWO, LORA)
    with stack.attached() as model, pytest.raises(ForgeError, match="whole number of examples"):
        model(torch.zeros(3, TOKENS, dtype=torch.long))
    with pytest.raises(ForgeError, match="one number per example"):
        train(stack, batches_of(range(2)), lambda y, t: loss(y, t).mean(), BRIEF)
    with pytest.raises(ForgeError, match="one training for each adapter"):
        train(stack, batches_of(range(2)), loss, BRIEF[:1])


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (nn.BatchNorm1d(4), "normalises over the batch"),
        (nn.Dropout(0.1), "one stream of random numbers"),
        (nn.MultiheadAttention(4, 1, dropout=0.1), "one stream of random numbers"),
    ],
)
def test_layers_that_mix_a_batch_in_training_mode_are_refused(layer, match):
    model = nn.Sequential(nn.Linear(4, 4), layer)
    stack = AdapterStack(model, ["0"], TWO, LORA)
    with pytest.raises(ForgeError, match=match), stack.attached():
        pass
    model.eval()
    with stack.attached():
        pass


class NormalisesOverTheBatch(nn.Module):
    """What no list of layers would know."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, x):
        y = self.linear(x)
        return (y - y.mean(0)) / (y.std(0) + 1)


class SharesOutTokens(nn.Module):
    """Two experts, to which examples are dealt by their content: rows of an expert belong to anybody."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)])

    def forward(self, x):
        order = x[:, 0].argsort()
        half = len(x) // 2
        y = torch.cat([self.experts[0](x[order[:half]]), self.experts[1](x[order[half:]])])
        return torch.empty_like(y).index_copy(0, order, y)


def compared(outputs, targets):
    """A loss that compares the examples of a batch with one another."""
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)), reduction="none")


@pytest.mark.parametrize(
    ("model", "sites", "criterion"),
    [
        (NormalisesOverTheBatch(), ["linear"], loss),
        (SharesOutTokens(), ["experts.0", "experts.1"], loss),
        (nn.Linear(4, CLASSES), [""], compared),
    ],
    ids=["normalisation", "experts", "loss"],
)
def test_what_couples_adapters_is_found_by_trial(model, sites, criterion):
    torch.manual_seed(0)
    x, y = torch.randn(8, 4), torch.randint(CLASSES, (8,))
    stack = AdapterStack(model, sites, TWO, LORA)
    with pytest.raises(ForgeError, match="parameters of another"):
        train(stack, lambda step, part: (x, y), criterion, BRIEF)


def test_a_layer_that_the_base_goes_past_is_refused():
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=8, dropout=0.0, batch_first=True)
    stack = AdapterStack(model, ["self_attn.out_proj"], TWO, LORA)
    x = torch.randn(4, 3, 8)
    with pytest.raises(ForgeError, match="was not called"):
        train(stack, lambda step, part: (x, x), lambda y, t: (y - t).square().mean((1, 2)), BRIEF)


@pytest.mark.parametrize("kind", ["eva", "lora-ga"])
@pytest.mark.parametrize("sites", [["self_attn.out_proj"], ["linear1", "self_attn.out_proj"]], ids=["alone", "beside"])
def test_a_layer_that_the_base_goes_past_is_refused_by_kinds_that_look_at_data(kind, sites):
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=8, dropout=0.0, batch_first=True)
    x = torch.randn(4, 3, 8)
    looked = gather(model, sites, KINDS[kind], lambda step, part: (x, x), lambda y, t: (y - t).square().mean((1, 2)), 2)
    with pytest.raises(ForgeError, match=r"self_attn\.out_proj: the layer was not called"):
        AdapterStack(model, sites, TWO, KINDS[kind], evidence=looked)


def test_a_site_that_is_not_there_or_of_another_class_is_refused():
    with pytest.raises(ForgeError, match="no such layer"):
        AdapterStack(base(), ["tail"], TWO, LORA)
    with pytest.raises(ForgeError, match="no adapter can be put on this layer"):
        AdapterStack(nn.Sequential(nn.Tanh()), ["0"], TWO, LORA)
    with pytest.raises(ForgeError, match="cannot be put on this layer"):
        AdapterStack(base(), ["embedding"], TWO, KINDS["dora"])
    with pytest.raises(ForgeError, match="in groups"):
        AdapterStack(nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), ["0"], TWO, LORA)
    with pytest.raises(ForgeError, match="nothing to train"):
        AdapterStack(base(), [], TWO, LORA)
    with pytest.raises(ForgeError, match="singular values"):
        AdapterStack(base(), ["head"], [Slot(7, 4.0, 0)], KINDS["pissa"])


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"dropout": 1.0}])
def test_an_impossible_adapter_is_refused(wrong):
    with pytest.raises(ForgeError, match="cannot be like this"):
        Slot(**{"rank": 2, "alpha": 4.0, "init_seed": 0, **wrong})


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"accumulate": 0}, {"warmup": -1}, {"clip": 0.0}])
def test_an_impossible_training_is_refused(wrong):
    with pytest.raises(ForgeError):
        Training(**{"learning_rate": 1e-3, "steps": 1, **wrong})


def test_a_forward_that_stood_on_the_layer_stands_there_again():
    model = base()
    own = model.head.forward
    model.head.forward = lambda x: own(x)
    before = model.head.forward
    stack = AdapterStack(model, ["head"], TWO, LORA)
    with stack.attached():
        assert model.head.forward is not before
    assert model.head.forward is before
