"""Adapters of one batch do not see one another: couplings are found, and what one has too much does not reach it."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forge.zoos import SETTINGS, state
from lorascope.errors import ForgeError
from lorascope.forge import AdapterStack, Slot, Training, forge, train
from lorascope.forge.coupling import halves
from lorascope.forge.dropout import Dropout
from lorascope.forge.kinds import KINDS
from lorascope.forge.poison import settled
from lorascope.forge.recipes import RECIPES
from lorascope.forge.repair import repair
from lorascope.forge.training import _Run
from lorascope.zoo import Zoo


class Guided(nn.Module):
    """Adds one half of its batch to the other, as guidance and twin networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.linear(x).chunk(2)
        return torch.cat([first + 0.5 * second, second + 0.5 * first])


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def stack_over(model: nn.Module, site: str, count: int) -> AdapterStack:
    return AdapterStack(
        model.eval().requires_grad_(False), [site], [Slot(2, 4.0, n) for n in range(count)], KINDS["lora"]
    )


@pytest.mark.parametrize("count", [2, 3, 4, 6, 8, 32])
def test_a_base_that_adds_halves_of_its_batch_is_refused(count):
    x, y = torch.randn(2 * count, 4), torch.arange(2 * count) % 3
    with pytest.raises(ForgeError, match="of another"):
        train(stack_over(Guided(), "linear", count), lambda step, part: (x, y), loss, [Training(0.01, 1)] * count)


@pytest.mark.parametrize("count", [2, 3, 7, 20, 35, 36, 64])
def test_of_any_two_adapters_each_is_tried_without_the_other(count):
    trials = [set(half) for half in halves(count)]
    for one in range(count):
        for other in set(range(count)) - {one}:
            assert any(one in trial and other not in trial for trial in trials)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_data_after_the_last_step_reach_no_adapter(optimiser):
    x, y = torch.randn(8, 4), torch.arange(8) % 3

    def batches(step, part):
        broken = x.clone()
        if step:
            broken[:4] = torch.nan  # of the first adapter, which has done its only step
        return broken, y

    stack = stack_over(nn.Sequential(nn.Linear(4, 3)), "0", 2)
    train(stack, batches, loss, [Training(0.01, steps, optimiser=optimiser) for steps in (1, 3)])
    alone = stack_over(stack.base, "0", 2)
    train(alone, batches, loss, [Training(0.01, 1, optimiser=optimiser)] * 2)
    assert torch.equal(stack.values[0], alone.values[0]) and stack.is_finite(1)


def test_masks_of_dropout_do_not_depend_on_padding():
    dropout = Dropout([Slot(2, 4.0, 0, 0.5), Slot(2, 4.0, 1, 0.2)])
    masks = []
    for length in (5, 9):
        dropout.begin(3, 0)
        masks.append([dropout(torch.ones(2 * 3, length, 7)) for _ in range(2)])
    for short, long in zip(*masks, strict=True):
        assert torch.equal(short, long[:, :5])
    assert not torch.equal(masks[0][0], masks[0][1])  # each site its own


def test_finished_adapters_leave_a_fast_batch(monkeypatch):
    sizes = []
    before = _Run.step
    monkeypatch.setattr(
        _Run, "step", lambda run, *rest, **more: sizes.append(len(run.numbers)) or before(run, *rest, **more)
    )
    x, y = torch.randn(16, 4), torch.arange(16) % 3
    trainings = [Training(0.01, steps) for steps in (1, 1, 1, 4)]
    train(stack_over(nn.Sequential(nn.Linear(4, 3)), "0", 4), lambda step, part: (x, y), loss, trainings, is_fast=True)
    assert sizes == [4, 1, 1, 1]


def test_a_fast_zoo_is_repaired_to_the_bit(tmp_path):
    settings = {"base_steps": 60, "steps": "2|12", "fast": 1, "cohort": 8}
    forge("digits-vit", 8, tmp_path / "zoo", settings=settings)
    before, zoo = state(tmp_path / "zoo"), Zoo.open(tmp_path / "zoo")
    (zoo.adapter_path(zoo.rows()[1]) / "adapter_model.safetensors").write_bytes(b"lost")
    assert len(repair(zoo.path).repaired) == 1 and state(zoo.path) == before


def test_poison_that_can_do_nothing_is_refused():
    with pytest.raises(ForgeError, match="refuses nothing"):
        RECIPES["digits-vit"].draw(0, 0, {"poison": "unrefuse"})
    with pytest.raises(ForgeError, match="none to take labels from"):
        settled({"poison": "flip", "poison_share": 0.5, "poison_target": 1}, [3])


def test_launched_processes_forge_several_zoos_one_after_the_other(tmp_path):
    script = tmp_path / "two.py"
    settings = SETTINGS | {"cohort": 2}
    calls = [f"forge('digits-vit', 4, {str(tmp_path / name)!r}, settings={settings!r})" for name in "ab"]
    script.write_text("\n".join(["from lorascope.forge import forge", *calls]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / "a") == state(tmp_path / "b") and len(Zoo.open(tmp_path / "a").rows()) == 4
