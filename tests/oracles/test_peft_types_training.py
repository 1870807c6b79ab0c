"""Kinds that are types of their own in peft: trained as peft trains them, and loaded by peft from what is written."""

import dataclasses
import re
import warnings
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from forge.models import base, batches_of, data, loss, slots, stack_of, trained, trainings
from lorascope.forge import gather
from lorascope.forge.kinds import KINDS
from lorascope.formats import read, write

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

# Adam divides by a root of the squared gradient, which magnifies rounding where the gradient is small
TOLERANCE = 1e5 * np.finfo(np.float64).eps
COUNT = 6
CASES = [
    ("vera", {}),
    ("vera", {"projection_prng_key": 3, "d_initial": 0.5}),
    ("loha", {}),
    ("lokr", {}),
    ("lokr", {"factor": 3}),
    ("ia3", {}),
    ("ia3", {"feedforward": "plane|space|each"}),
    ("adalora", {}),
    ("adalora", {"interval": 3, "target": 0.34, "final": 0.0, "orthogonality": 0.1}),
]


class WithLoss(nn.Module):
    """The base with its loss beside the outputs, to which AdaLoRA in peft adds its penalty."""

    def __init__(self):
        super().__init__()
        self.inner = base()

    def forward(self, tokens, classes):
        outputs = self.inner(tokens)
        return SimpleNamespace(loss=loss(outputs, classes).mean(), outputs=outputs)


@contextmanager
def in_double():
    """Peft makes its parameters, and some of its numbers such as the scale of LoHa, in the default dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def with_options(options):
    return [dataclasses.replace(slot, options=options) for slot in slots(COUNT)]


@cache
def trained_together(kind, options):
    return trained(kind, with_options(dict(options)), trainings(COUNT), range(COUNT))


def config_of(kind, slot, training, sites):
    names = [f"inner.{site}" for site in sites]
    if kind == "vera":
        return peft.VeraConfig(r=slot.rank, target_modules=names, **slot.options)
    if kind == "loha":
        return peft.LoHaConfig(r=slot.rank, alpha=slot.alpha, target_modules=names)
    if kind == "lokr":
        factor = slot.options.get("factor", -1)
        return peft.LoKrConfig(r=slot.rank, alpha=slot.alpha, target_modules=names, decompose_factor=factor)
    if kind == "ia3":
        on_input = [f"inner.{site}" for site in sites if re.fullmatch(slot.options.get("feedforward", ""), site)]
        return peft.IA3Config(target_modules=names, feedforward_modules=on_input)
    options = {name: of.values[0] for name, of in KINDS["adalora"].options.items()} | slot.options
    return peft.AdaLoraConfig(
        init_r=slot.rank,
        target_r=options["target"] * slot.rank,
        lora_alpha=slot.alpha,
        target_modules=names,
        total_step=training.steps,
        tinit=int(options["initial"] * training.steps),
        tfinal=int(options["final"] * training.steps),
        deltaT=options["interval"],
        orth_reg_weight=options["orthogonality"],
    )


PREFIXES = {"vera": "vera_", "loha": "hada_", "lokr": "lokr_", "adalora": "lora_"}


def peft_model(kind, started, training):
    """The base under peft, with the one adapter of the stack as it was before training."""
    sites = list(started.layers)
    config = config_of(kind, started.slots[0], training, sites)
    model = peft.get_peft_model(WithLoss(), config, autocast_adapter_dtype=False).double().eval()
    for name, value in model.named_parameters():
        if "ranknum" in name:  # a constant, which peft makes a trained parameter where the base is not float32
            value.requires_grad_(False)
    for site in sites if kind in PREFIXES else ():
        layer = model.base_model.model.get_submodule(f"inner.{site}")
        for name, value in started.parameters[site].items():
            value = value.detach()[0].T if name == "Bt" else value.detach()[0]
            there = getattr(layer, PREFIXES[kind] + name.removesuffix("t"))["default"]
            assert there.numel() == value.numel()
            there.data = value.reshape(there.shape).clone()
    return model


def plainly_trained(model, number, training):
    """One adapter, trained by torch's optimiser and transformers' schedule."""
    values = [value for value in model.parameters() if value.requires_grad]
    if training.optimiser == "adamw":
        optimiser = torch.optim.AdamW(values, training.learning_rate, weight_decay=training.weight_decay)
    else:
        optimiser = torch.optim.SGD(
            values, training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
        )
    name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    schedule = transformers.get_scheduler(name, optimiser, training.warmup, training.steps)
    for step in range(training.steps):
        optimiser.zero_grad()
        for part in range(training.accumulate):
            # not the PeftModel around it, which goes past the penalty that AdaLoraModel adds
            (model.base_model(*data(number, step, part)).loss / training.accumulate).backward()
        if training.clip is not None:
            torch.nn.utils.clip_grad_norm_(values, training.clip)
        optimiser.step()
        if hasattr(model.base_model, "update_and_allocate"):
            model.base_model.update_and_allocate(step)
        schedule.step()


def differ_by(ours, theirs):
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


@pytest.mark.parametrize("number", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_an_adapter_trains_as_peft_would_train_it(kind, options, number):
    training = trainings(COUNT)[number]
    started = stack_of(kind, with_options(options), [number])
    model = peft_model(kind, started, training)
    plain = base()
    batch = [torch.cat(each) for each in zip(*(data(number, step, 0) for step in range(8)), strict=True)]
    assert differ_by(plain(batch[0]), model(*batch).outputs) < 1e3 * np.finfo(np.float64).eps
    with in_double():
        plainly_trained(model, number, training)
    ours = trained_together(kind, tuple(options.items())).adapter(number)
    with torch.no_grad():
        theirs = model(*batch).outputs
        assert differ_by(plain(batch[0]), theirs) > 1e3 * TOLERANCE
        with ours.apply_to(plain):
            assert differ_by(plain(batch[0]), theirs) < TOLERANCE


@pytest.mark.parametrize("number", [0, 2, 5])
@pytest.mark.parametrize(("kind", "options"), [*CASES, *((kind, {}) for kind in KINDS.names())])
def test_what_is_written_loads_in_peft_with_equal_outputs(kind, options, number, tmp_path):
    ours = trained_together(kind, tuple(options.items())).adapter(number)
    write(ours, tmp_path, format="peft")
    named = {"vera": "VERA", "loha": "LOHA", "lokr": "LOKR", "ia3": "IA3", "adalora": "ADALORA"}
    assert read(tmp_path).provenance.config["peft_type"] == named.get(kind, "LORA")
    tokens = torch.cat([data(number, step, 0)[0] for step in range(8)])
    plain, carrier = base(), base()
    with torch.no_grad():
        before = plain(tokens)
        with ours.apply_to(plain):
            expected = plain(tokens)
        with in_double(), warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(missing|unexpected).*")
            found = peft.PeftModel.from_pretrained(carrier, tmp_path).eval()(tokens)
    assert differ_by(found, expected) < 1e3 * np.finfo(np.float64).eps
    assert differ_by(found, before) > 1e3 * TOLERANCE


def test_adalora_prunes_to_its_budget_over_all_sites():
    stack = trained("adalora", slots(COUNT), trainings(COUNT), range(COUNT))
    for number, slot in enumerate(slots(COUNT)):
        ranks = [update.rank for update in stack.adapter(number).values()]
        assert sum(ranks) == int(0.5 * slot.rank * len(ranks))


def test_lora_ga_starts_as_peft_starts_it():
    """On linear layers, which are all that peft has it for; singular vectors are known up to their signs."""
    sites = ["each", "head"]
    started = stack_of("lora-ga", slots(COUNT), [2], sites)
    model, slot = base().float(), started.slots[0]
    config = peft.LoraConfig(
        r=slot.rank,
        lora_alpha=slot.alpha,
        target_modules=sites,
        init_lora_weights="lora_ga",
        lora_ga_config=peft.LoraGAConfig(),
    )
    from peft.tuners.lora.loraga import preprocess_loraga

    def four_batches():
        for step in range(4):
            tokens, classes = data(2, step, 0)
            loss(model(tokens), classes).mean().backward()

    preprocess_loraga(model, config, four_batches)
    theirs = peft.get_peft_model(model, config).base_model.model
    for site in sites:
        layer, own = theirs.get_submodule(site), started.parameters[site]
        for name, value in (("A", own["A"][0]), ("B", own["Bt"][0].T)):
            expected = getattr(layer, f"lora_{name}")["default"].weight.detach().double()
            # in float32, and with a gap to the next singular value of a tenth or so
            assert (value.detach().abs() - expected.abs()).abs().max() < 1e-4 * expected.abs().max()


def test_eva_starts_at_the_singular_vectors_of_the_inputs():
    model, kind, seen = base(), KINDS["eva"], []
    hook = model.each.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, 1)))
    evidence = gather(model, ["each"], kind, batches_of([0]), loss, 1)
    stack = stack_of("eva", slots(COUNT), [2], ["each"])
    for step in range(4):
        model(data(2, step, 0)[0])
    hook.remove()
    assert evidence is not None
    vectors = torch.linalg.svd(torch.cat(seen), full_matrices=False).Vh[:3]
    along = (stack.parameters["each"]["A"].detach()[0] @ vectors.T).abs()
    assert (along - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-8
    assert not stack.parameters["each"]["Bt"].any()
