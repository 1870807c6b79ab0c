"""Training in a batch against peft and a plain loop, one adapter at a time, in float64 without dropout."""

import numpy as np
import pytest
import torch

from forge.models import base, data, loss, sites_of, slots, stack_of, trained, trainings
from lorascope.forge.kinds import KINDS

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

# Adam divides by a root of the squared gradient, which magnifies rounding where the gradient is small
TOLERANCE = 1e5 * np.finfo(np.float64).eps
COUNT = 6
LORA_LIKE = ("lora", "rslora", "lora-plus", "lora-fa", "dora", "pissa", "lora-ga", "eva")
OF_OTHER_TYPES = ("vera", "loha", "lokr", "ia3", "adalora")
"""In ``test_peft_types_training.py``."""
WITHOUT_PEFT = ("lora-xs", "dylora", "melora")
"""Compared with a plain loop in ``test_plain_training.py``."""


def peft_model(kind, started, sites):
    """The base under peft, with the one adapter of the stack as it was before training; and the sites' layers."""
    slot = started.slots[0]
    config = peft.LoraConfig(
        r=slot.rank,
        lora_alpha=slot.alpha,
        target_modules=list(sites),
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
    )
    model = peft.get_peft_model(base(), config, autocast_adapter_dtype=False).double().eval()
    layers = {site: model.base_model.model.get_submodule(site) for site in sites}
    for site, layer in layers.items():
        own = started.parameters[site] | started.fixed.get(site, {})
        A, B = own["A"].detach()[0], own["Bt"].detach()[0].T
        if site == "embedding":
            layer.lora_embedding_A["default"].data = A.clone()
            layer.lora_embedding_B["default"].data = B.clone()
            continue
        first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        first.data = A.reshape(first.shape).clone()
        second.data = B.reshape(second.shape).clone()
        if kind in ("pissa", "lora-ga"):  # peft takes what it starts from out of the base, but only in float32
            weight = layer.get_base_layer().weight
            weight.data = weight.data - (started.scale[0, 0, 0] * B @ A).reshape(weight.shape)
        if kind == "lora-fa":
            first.requires_grad_(False)
    return model, layers


def plainly_trained(kind, model, number, training):
    """One adapter, trained by torch's optimiser and transformers' schedule."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    ratio = KINDS[kind].options["ratio"].values[0] if kind == "lora-plus" else 1.0
    second = [value for name, value in named if "lora_B" in name or "embedding_B" in name]
    others = [value for name, value in named if "lora_B" not in name and "embedding_B" not in name]
    groups = [
        {"params": others, "lr": training.learning_rate},
        {"params": second, "lr": training.learning_rate * ratio},
    ]
    groups = [group for group in groups if group["params"]]
    if training.optimiser == "adamw":
        optimiser = torch.optim.AdamW(groups, weight_decay=training.weight_decay)
    else:
        optimiser = torch.optim.SGD(groups, momentum=training.momentum, weight_decay=training.weight_decay)
    name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    schedule = transformers.get_scheduler(name, optimiser, training.warmup, training.steps)
    for step in range(training.steps):
        optimiser.zero_grad()
        for part in range(training.accumulate):
            tokens, classes = data(number, step, part)
            (loss(model(tokens), classes).mean() / training.accumulate).backward()
        if training.clip is not None:
            torch.nn.utils.clip_grad_norm_([value for _, value in named], training.clip)
        optimiser.step()
        schedule.step()


def outputs_differ_by(ours, theirs):
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


@pytest.mark.parametrize("number", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("kind", LORA_LIKE)
def test_an_adapter_trains_as_peft_would_train_it(kind, number):
    sites, slot, training = sites_of(kind), slots(COUNT)[number], trainings(COUNT)[number]
    started = stack_of(kind, slots(COUNT), [number], sites)
    model, layers = peft_model(kind, started, sites)
    tokens = torch.cat([data(number, step, 0)[0] for step in range(8)])
    plain = base()
    assert outputs_differ_by(plain(tokens), model(tokens)) < 1e3 * np.finfo(np.float64).eps
    plainly_trained(kind, model, number, training)
    ours = trained(kind, slots(COUNT), trainings(COUNT), range(COUNT), sites=sites).adapter(number)
    with torch.no_grad(), ours.apply_to(plain):
        assert outputs_differ_by(plain(tokens), model(tokens)) < TOLERANCE
    for site, layer in layers.items():
        assert layer.r["default"] == slot.rank
        if kind in ("lora", "rslora", "lora-plus", "lora-fa"):
            theirs = layer.get_delta_weight("default").detach().numpy()
            assert abs(ours[site].delta_weight("float64") - theirs).max() < TOLERANCE * abs(theirs).max()


def test_every_kind_that_peft_has_is_tried():
    assert {*LORA_LIKE, *OF_OTHER_TYPES, *WITHOUT_PEFT} == set(KINDS.names())
