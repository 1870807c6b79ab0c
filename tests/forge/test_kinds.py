"""What single kinds refuse and do beside the laws, and every kind from the command line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from forge.models import base, batches_of, loss, sites_of, slots, stack_of
from lorascope.cli import main
from lorascope.errors import ForgeError
from lorascope.forge import AdapterStack, EarlyStop, Slot, Training, gather, train
from lorascope.forge.kinds import KINDS
from lorascope.formats import read, write

EPS = np.finfo(np.float64).eps


def with_options(all_slots, **options):
    return [dataclasses.replace(slot, options=options) for slot in all_slots]


@pytest.fixture
def gpt2_layer():
    """A model of one layer whose weight is stored as [in, out], as GPT-2 has it."""
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = pytorch_utils.Conv1D(8, 12).double()
        layer.weight.data = torch.randn_like(layer.weight)
        layer.bias.data = torch.randn_like(layer.bias)
        return nn.Sequential(layer).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["pissa", "lora-xs"])
def test_singular_vectors_are_worked_out_once_for_a_base(kind, monkeypatch):
    svd, decomposed = torch.linalg.svd, []

    def watched(weight, **options):
        decomposed.append(weight.shape)
        return svd(weight, **options)

    monkeypatch.setattr(torch.linalg, "svd", watched)
    model, other, sites = base(), base(), sites_of(kind)

    def start(of):
        decomposed.clear()
        fixed = AdapterStack(of, sites, slots(4), KINDS[kind]).fixed
        return len(decomposed), [value for own in fixed.values() for value in own.values()]

    (first, before), (second, after), (third, _) = start(model), start(model), start(other)
    assert (first, second, third) == (len(sites), 0, len(sites))
    assert all(map(torch.equal, before, after))
    # a weight that was changed after all, in a way that PyTorch does not count
    model.head.weight.data *= 2
    count, changed = start(model)
    fresh = base()
    fresh.head.weight.data *= 2
    assert count == 1 and all(map(torch.equal, changed, start(fresh)[1])) and not all(map(torch.equal, changed, after))


@pytest.mark.parametrize("kind", KINDS.names())
def test_a_layer_stored_transposed_is_adapted_or_refused(kind, gpt2_layer, tmp_path):
    member, pair = KINDS[kind], [Slot(2, 4.0, seed) for seed in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 12, generator=generator, dtype=torch.float64)
    y = torch.randn(8, 8, generator=generator, dtype=torch.float64)

    def square(outputs, targets):
        return (outputs - targets).square().mean(1)

    if not member.is_for_transposed:
        with pytest.raises(ForgeError, match=r"cannot be put on this layer.*transposed linear"):
            AdapterStack(gpt2_layer, ["0"], pair, member)
        return
    evidence = gather(gpt2_layer, ["0"], member, lambda step, part: (x, y), square, 2)
    stack = AdapterStack(gpt2_layer, ["0"], pair, member, evidence=evidence)
    train(stack, lambda step, part: (x, y), square, [Training(learning_rate=1e-2, steps=5)] * 2)
    with stack.attached() as adapted, torch.no_grad():
        together = adapted(x).view(2, 4, 8)
    assert not torch.equal(together.view(8, 8), gpt2_layer(x))
    for number in range(2):
        write(stack.adapter(number), tmp_path / str(number))
        for adapter in (stack.adapter(number), read(tmp_path / str(number))):
            with adapter.apply_to(gpt2_layer), torch.no_grad():
                alone = gpt2_layer(x[4 * number : 4 * number + 4])
            assert (together[number] - alone).abs().max() < 1e3 * EPS * alone.abs().max()


@pytest.mark.parametrize("is_base_half", [False, True], ids=["products", "base"])
@pytest.mark.parametrize("kind", KINDS.names())
def test_products_or_a_base_in_half_precision_train_parameters_in_float32(kind, is_base_half):
    model, member, sites = base().bfloat16() if is_base_half else base().float(), KINDS[kind], sites_of(kind)

    def wide(outputs, targets):
        return loss(outputs.float(), targets)

    evidence = gather(model, sites, member, batches_of(range(2)), wide, 2)
    stack = AdapterStack(model, sites, slots(2), member, evidence=evidence)
    before = stack.values.detach().clone()
    plans = [Training(learning_rate=1e-2, steps=3)] * 2
    train(stack, batches_of(range(2)), wide, plans, precision="float32" if is_base_half else "bfloat16")
    assert stack.values.dtype == torch.float32 and stack.is_finite(0) and stack.is_finite(1)
    assert not torch.equal(stack.values, before)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("lokr", {"factor": 2}), ("melora", {"groups": 3}), ("ia3", {"feedforward": "each"})],
)
def test_adapters_whose_shapes_differ_by_an_option_are_not_trained_together(kind, options):
    two = [slots(1)[0], *with_options(slots(1), **options)]
    with pytest.raises(ForgeError, match="cannot be trained together"):
        AdapterStack(base(), ["each"], two, KINDS[kind])


@pytest.mark.parametrize(
    ("kind", "site", "slot", "match"),
    [
        ("lora-xs", "head", Slot(7, 1.0, 0), "singular values"),
        ("lora-ga", "head", Slot(4, 1.0, 0), "singular vectors"),
        ("eva", "head", Slot(7, 1.0, 0), "dimensions"),
        ("melora", "head", Slot(2, 1.0, 0, options={"groups": 4}), "groups 4"),
        ("lokr", "line", Slot(2, 1.0, 0), "cannot be put on this layer"),
        ("vera", "plane", Slot(2, 1.0, 0), "cannot be put on this layer"),
        ("ia3", "line", Slot(2, 1.0, 0), "cannot be put on this layer"),
        ("adalora", "space", Slot(2, 1.0, 0), "cannot be put on this layer"),
        ("ia3", "head", Slot(2, 1.0, 0, options={"feedforward": "ea"}), "no site is of this name"),
        ("ia3", "head", Slot(2, 1.0, 0, options={"feedforward": "("}), "regular expression"),
        ("adalora", "head", Slot(2, 1.0, 0, options={"initial": 0.6, "final": 0.4}), "left for pruning"),
    ],
)
def test_what_a_kind_cannot_do_is_refused(kind, site, slot, match):
    model, member = base(), KINDS[kind]
    evidence = gather(model, [site], member, batches_of([0]), loss, 1)
    with pytest.raises(ForgeError, match=match):
        AdapterStack(model, [site], [slot], member, evidence=evidence)


def test_endings_name_the_sites_of_ia3_too():
    stack = stack_of("ia3", with_options(slots(1), feedforward=("ach", "space")), [0])
    assert {site for site, own in stack.parameters.items() if "l_in" in own} == {"each", "space"}


def test_projections_of_vera_are_shared_by_sites_and_adapters():
    stack = stack_of("vera", [Slot(2, 1.0, 0), Slot(2, 1.0, 1)], [0, 1])
    each, head = stack.fixed["each"], stack.fixed["head"]
    assert each["A"].stride(0) == each["B"].stride(0) == 0
    assert torch.equal(head["A"][0], each["A"][0][:, :6])


def test_the_start_of_lora_xs_may_be_drawn_as_in_the_paper():
    stack = stack_of("lora-xs", with_options([Slot(3, 1.0, 0)] * 2, deviation=1e-5), [0, 1])
    R = torch.cat([value.detach().flatten() for _, value, _ in stack.named("R")])
    assert 5e-6 < float(R.std()) < 2e-5


def test_an_adapter_that_stops_early_is_not_pruned_any_more():
    stack = stack_of("adalora", slots(3), range(3))
    plans = [Training(learning_rate=1e-2, steps=40) for _ in range(3)]
    seen = []

    def keep(step):
        seen.append((stack.values.detach().clone(), {name: value.clone() for name, value in stack.state.items()}))

    def score(model, numbers):
        return torch.tensor([-float(len(seen)), 0.0, -float(len(seen))])  # the second never gets better

    result = train(stack, batches_of(range(3)), loss, plans, stop=EarlyStop(score, every=5, patience=2), on_step=keep)
    assert result.steps == [40, 15, 40]
    values, state = seen[14]
    assert torch.equal(stack.values[1], values[1]) and not torch.equal(stack.values[0], values[0])
    for name, value in state.items():
        assert torch.equal(stack.state[name][1], value[1])


def test_the_first_ranks_of_dylora_are_better_than_those_of_lora():
    """What a truncated adapter costs: DyLoRA puts the most into the first ranks."""
    lost = {}
    for kind in ("lora", "dylora"):
        model = base()
        stack = AdapterStack(model, sites_of(kind), [Slot(6, 6.0, seed) for seed in range(8)], KINDS[kind])
        tokens, classes = batches_of(range(8))(0, 0)
        train(
            stack, lambda step, part, rows=(tokens, classes): rows, loss, [Training(learning_rate=3e-3, steps=120)] * 8
        )
        with torch.no_grad():
            for name in ("A", "Bt"):
                for _, value, _ in stack.named(name):
                    value[:, 1:] = 0
            stack.scale.fill_(6.0)  # alpha / 1
            with stack.attached() as adapted:
                lost[kind] = float(loss(adapted(tokens), classes).mean())
    assert lost["dylora"] < lost["lora"]


def test_the_page_of_kinds_is_current():
    script = Path(__file__).resolve().parents[2] / "docs" / "make_forge_kinds.py"
    done = subprocess.run([sys.executable, script, "--check"], check=False)
    assert done.returncode == 0, "run `python docs/make_forge_kinds.py`"


@pytest.mark.parametrize("kind", KINDS.names())
def test_every_kind_is_forged_and_inspected_from_the_command_line(kind, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lorascope", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    given = [f"kind={kind}", "steps=3", "base_steps=5"]
    if kind == "ia3":
        given.append(r"feedforward=.*\.(fc1|fc2)")
    settings = [part for name in given for part in ("--set", name)]
    run("forge", "digits-vit", "--count", 2, "--out", tmp_path / "zoo", "--workers", 1, *settings)
    lines = run("inspect", tmp_path / "zoo" / "adapters", "--json").splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 2
    for adapter in found:
        assert len(adapter["sites"]) == 18
