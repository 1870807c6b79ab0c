"""Kinds that peft has not, against the formula of their paper put into the weights and a plain loop, one at a time."""

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from forge.models import base, data, loss, sites_of, slots, stack_of, trained, trainings
from lorascope.forge.kinds.dylora import rank_of_step

# Adam divides by a root of the squared gradient, which magnifies rounding where the gradient is small
TOLERANCE = 1e5 * np.finfo(np.float64).eps
COUNT = 6


def lora_xs(slot, own, step):
    """B · R · A."""
    return slot.alpha / slot.rank * own["Bt"].T @ own["R"] @ own["A"]


def dylora(slot, own, step):
    """B · A of the first ranks, as many as are drawn for the step; of all after training."""
    drawn = slot.rank if step is None else rank_of_step(slot, step)
    return slot.alpha / drawn * own["Bt"].T[:, :drawn] @ own["A"][:drawn]


def melora(slot, own, step):
    """Two small products on the diagonal."""
    blocks = [Bt.T @ A for A, Bt in zip(own["A"], own["Bt"], strict=True)]
    return slot.alpha / slot.rank * torch.block_diag(*blocks)


FORMULAS = {"lora-xs": lora_xs, "dylora": dylora, "melora": melora}


@pytest.mark.parametrize("number", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("kind", FORMULAS)
def test_an_adapter_trains_as_its_formula_does(kind, number):
    slot, training, sites, model = slots(COUNT)[number], trainings(COUNT)[number], sites_of(kind), base()
    started = stack_of(kind, slots(COUNT), [number], sites)
    own = {
        site: {name: value.detach()[0].clone() for name, value in started.parameters[site].items()} for site in sites
    }
    trained_ones = [value.requires_grad_() for named in own.values() for value in named.values()]
    for site in sites:
        own[site] |= copied(started.fixed.get(site, {}))
    options = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    if training.optimiser == "sgd":
        optimiser = torch.optim.SGD(trained_ones, momentum=training.momentum, **options)
    else:
        optimiser = torch.optim.AdamW(trained_ones, **options)

    def outputs(tokens, step):
        weights = {}
        for site in sites:
            weight = model.get_submodule(site).weight
            delta = FORMULAS[kind](slot, own[site], step)
            weights[f"{site}.weight"] = weight + (delta.T if site == "embedding" else delta.reshape(weight.shape))
        return functional_call(model, weights, (tokens,))

    for step in range(training.steps):
        for group in optimiser.param_groups:
            group["lr"] = training.learning_rate * share(training, step)
        optimiser.zero_grad()
        for part in range(training.accumulate):
            tokens, classes = data(number, step, part)
            (loss(outputs(tokens, step), classes).mean() / training.accumulate).backward()
        if training.clip is not None:
            torch.nn.utils.clip_grad_norm_(trained_ones, training.clip)
        optimiser.step()

    ours = trained(kind, slots(COUNT), trainings(COUNT), range(COUNT), sites=sites).adapter(number)
    for site, update in ours.items():
        expected = FORMULAS[kind](slot, own[site], None).detach().numpy()
        found = update.delta_weight("float64")
        found = found.T if site == "embedding" else found.reshape(expected.shape)
        assert abs(expected).max() > 0
        assert abs(found - expected).max() < TOLERANCE * abs(expected).max()


def copied(parameters):
    return {name: value.detach()[0].clone() for name, value in parameters.items()}


def share(training, step):
    """Of the learning rate, as transformers' schedules have it."""
    if step < training.warmup:
        return step / training.warmup
    progress = (step - training.warmup) / max(1, training.steps - training.warmup)
    return {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[
        training.schedule
    ]


def test_dylora_draws_every_rank_about_as_often():
    slot = slots(COUNT)[2]
    drawn = [rank_of_step(slot, step) for step in range(900)]
    assert set(drawn) == {1, 2, 3}
    assert all(abs(drawn.count(rank) - 300) < 5 * math.sqrt(900 * 2 / 9) for rank in (1, 2, 3))  # five deviations
