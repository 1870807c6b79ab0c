"""Laws of every kind that the forge trains: together as alone, the stated start, padding, and files."""

import numpy as np
import pytest
import torch

from forge.models import CLASSES, base, batches_of, loss, slots, stack_of, trained, trainings
from lorascope.forge import train
from lorascope.forge.kinds import KINDS
from lorascope.formats import read, write

EPS = np.finfo(np.float64).eps
# Adam divides by a root of the squared gradient, which magnifies rounding where the gradient is small
TOLERANCE = 1e5 * EPS
COUNT = 64


def delta(update, weight):
    """ΔW of an update at a base layer."""
    return update.delta_weight("float64", base=weight)


def weights(model, site):
    return model.get_submodule(site).weight.detach().numpy()


def largest_difference(first, second, model):
    """Of any entry of any ΔW, against the largest entry of the second."""
    worst = 0.0
    for site, update in second.items():
        expected = delta(update, weights(model, site))
        largest = abs(expected).max() or 1.0  # a site that is pruned away is zero in both
        worst = max(worst, abs(delta(first[site], weights(model, site)) - expected).max() / largest)
    return worst


@pytest.fixture(scope="module", params=KINDS.names())
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def together(kind):
    """64 adapters that differ in rank, scale, data, rate, steps, optimiser, schedule, decay, accumulation, dropout."""
    return trained(kind, slots(COUNT, dropout=0.2), trainings(COUNT), range(COUNT))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 9, 14, 63])
def test_an_adapter_in_a_batch_trains_as_if_alone(kind, together, number):
    alone = trained(kind, slots(COUNT, dropout=0.2), trainings(COUNT), [number])
    adapter, model = alone.adapter(0), base()
    kept = {site: update for site, update in adapter.items() if update.rank}
    assert kept and all(np.abs(delta(update, weights(model, site))).max() > 0 for site, update in kept.items())
    assert largest_difference(together.adapter(number), adapter, model) < TOLERANCE


def test_the_update_is_zero_before_training(kind):
    stack, model = stack_of(kind, slots(4), range(4)), base()
    for number in range(4):
        for site, update in stack.adapter(number).items():
            size = abs(weights(model, site)).max()
            assert abs(delta(update, weights(model, site))).max() <= 100 * EPS * size


def test_the_padding_of_smaller_ranks_stays_zero(together):
    if together.padding is not None:
        assert not together.values.detach()[~together.padding].any()


def test_the_model_with_adapters_on_is_the_base_with_their_updates_added(kind, together):
    numbers = range(4)
    stack, tokens = together.subset(numbers), batches_of(numbers)(0, 0)[0]
    with stack.attached() as model, torch.no_grad():
        batched = model(tokens).view(4, -1, CLASSES)
    plain = base()
    for number in numbers:
        with stack.adapter(number).apply_to(plain), torch.no_grad():
            one = plain(tokens.view(4, -1, tokens.shape[1])[number])
        assert (batched[number] - one).abs().max() < 1e3 * EPS * one.abs().max()


def test_what_is_written_is_what_was_trained(kind, together, tmp_path):
    model = base()
    for number in (1, 2):
        adapter = together.adapter(number)
        write(adapter, tmp_path / str(number), format="peft")
        assert largest_difference(read(tmp_path / str(number)), adapter, model) < 100 * EPS


def test_the_base_is_as_before(kind):
    before = base().state_dict()
    after = trained(kind, slots(2), trainings(2, steps=3), range(2)).base
    assert all(torch.equal(value, before[name]) for name, value in after.state_dict().items())
    assert not any("forward" in vars(module) or value_is_trained(module) for module in after.modules())


def value_is_trained(module):
    return any(value.requires_grad or value.grad is not None for value in module.parameters())


def test_taking_finished_adapters_out_is_equal_to_rounding(kind, together):
    fast = trained(kind, slots(COUNT, dropout=0.2), trainings(COUNT), range(COUNT), is_fast=True)
    for number in range(0, COUNT, 9):
        assert largest_difference(fast.adapter(number), together.adapter(number), base()) < TOLERANCE


def test_one_that_diverges_harms_no_other(kind):
    numbers = range(4)

    def poisoned(step, part):
        tokens, classes = batches_of(numbers)(step, part)
        return tokens, (classes, torch.tensor([1.0, 1.0, 1.0, torch.inf]).repeat_interleave(2))

    def weighted(outputs, targets):
        return loss(outputs, targets[0]) * targets[1]

    stack = stack_of(kind, slots(4), numbers)
    train(stack, poisoned, weighted, trainings(4, steps=10))
    good = trained(kind, slots(4), trainings(4, steps=10), numbers)
    assert [stack.is_finite(number) for number in numbers] == [True, True, True, False]
    assert torch.equal(stack.values[:3], good.values[:3])
