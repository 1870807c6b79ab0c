"""Where and how a zoo is forged: devices, precision, cohorts, speed, and processes that were launched together."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from forge.zoos import SETTINGS, state
from lorascope.cli import app
from lorascope.errors import ForgeError
from lorascope.forge import AdapterStack, forge
from lorascope.forge.determinism import deterministic
from lorascope.forge.launch import Team, device_of_process, kind_of_device, placed, team, usual_workers
from lorascope.formats import read
from lorascope.zoo import Zoo


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launched_processes_share_the_work_of_one_zoo(forged, tmp_path, launcher):
    out = tmp_path / "zoo"
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    forging = ["-m", "lorascope", "forge", "digits-vit", "--count", "40", "--out", str(out), *settings, "--json"]
    launch = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        "accelerate": [
            *("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        ],
    }[launcher]
    if launcher == "accelerate":
        pytest.importorskip("accelerate")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launch, *forging], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    # one of the two speaks, for both
    assert [(one["forged"], one["already_there"]) for one in printed] == [(40, 0)]
    assert state(out) == state(forged.path)


def test_the_options_of_the_command_are_settings_of_the_zoo(tmp_path):
    zoo = tmp_path / "zoo"
    flags = ["--kind", "lora-fa", "--precision", "bfloat16", "--fast", "--device", "cpu", "--set", "cohort=4"]
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    command = ["forge", "digits-vit", "--count", "6", "--out", str(zoo), "--workers", "1", *settings]
    assert CliRunner().invoke(app, [*command, *flags]).exit_code == 0
    made = Zoo.open(zoo).header["settings"]
    assert {name: made[name] for name in ("kind", "precision", "fast", "device", "cohort")} == {
        "kind": "lora-fa",
        "precision": "bfloat16",
        "fast": 1,
        "device": "cpu",
        "cohort": 4,
    }
    assert len(list((zoo / "cohorts").iterdir())) == 2
    # without the flags it is another zoo
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, ForgeError) and "precision=float32" in str(error)
    error = CliRunner().invoke(app, [*command, *flags, "--set", "kind=dora"]).exception
    assert isinstance(error, ForgeError) and "given twice" in str(error)


def test_a_fast_zoo_is_equal_to_rounding(tmp_path, monkeypatch):
    subset, left = AdapterStack.subset, []

    def watched(stack, numbers):
        left.append(len(numbers))
        return subset(stack, numbers)

    monkeypatch.setattr(AdapterStack, "subset", watched)
    # half of the adapters leave the batch early
    settings = {"base_steps": 60, "steps": "2|12"}
    forge("digits-vit", 32, tmp_path / "slow", settings=settings)
    assert not left
    forge("digits-vit", 32, tmp_path / "fast", settings={**settings, "fast": 1})
    slow, fast = Zoo.open(tmp_path / "slow"), Zoo.open(tmp_path / "fast")
    assert {row["steps"] for row in slow.rows()} == {2, 12}
    assert left == [sum(row["steps"] == 12 for row in fast.rows())]
    for one, other in zip(slow.rows(), fast.rows(), strict=True):
        moved = one["steps"] * one["learning_rate"]
        ours, theirs = read(slow.adapter_path(one)), read(fast.adapter_path(other))
        for site, update in ours.items():
            difference = abs(update.factors().B - theirs[site].factors().B)
            # products of other shapes round otherwise, and Adam's m/√v turns that into a share of a step
            assert difference.mean() < 1e-3 * moved


def test_bfloat16_trains_nearly_the_same_adapters(tmp_path):
    settings = {"base_steps": 60, "steps": 12}
    for precision in ("float32", "bfloat16"):
        forge("digits-vit", 4, tmp_path / precision, settings={**settings, "precision": precision, "cohort": 4})
    exact, rough = Zoo.open(tmp_path / "float32"), Zoo.open(tmp_path / "bfloat16")
    for one, other in zip(exact.rows(), rough.rows(), strict=True):
        first, second = read(exact.adapter_path(one)), read(rough.adapter_path(other))
        apart = sum(float(((_delta(first[site]) - _delta(second[site])) ** 2).sum()) for site in first)
        assert 0 < apart < 0.05 * sum(float((_delta(first[site]) ** 2).sum()) for site in first)
        assert second["blocks.0.q"].factors().A.dtype == "float32"  # the parameters are not rounded


def _delta(update):
    factors = update.factors()
    return factors.scale * factors.B @ factors.A


def test_a_zoo_of_before_there_were_such_settings_goes_on(forged, tmp_path):
    zoo = tmp_path / "zoo"
    shutil.copytree(forged.path, zoo)
    header = json.loads((zoo / "zoo.json").read_text())
    for name in ("precision", "fast", "device", "cohort"):
        del header["settings"][name]
    (zoo / "zoo.json").write_text(json.dumps(header))
    assert forge("digits-vit", 40, zoo, settings=SETTINGS).already_there == 40


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", "xpu:99"])
def test_a_device_that_is_not_there_is_named(device, tmp_path):
    with pytest.raises(ForgeError, match="device"):
        forge("digits-vit", 1, tmp_path / "zoo", settings={"device": device})
    assert not (tmp_path / "zoo").exists()
    error = CliRunner().invoke(app, ["forge", "digits-vit", "--device", device, "--plan"]).exception
    assert isinstance(error, ForgeError)


def test_processes_take_the_devices_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_of_process("cuda", number).index for number in range(4)] == [0, 1, 0, 1]
    assert device_of_process("cuda:1", 0) == torch.device("cuda", 1)
    assert (kind_of_device("cuda:1"), kind_of_device("cpu")) == ("cuda", "cpu")
    assert [usual_workers(device, Team()) for device in ("cuda", "cuda:1")] == [2, 1]
    assert usual_workers("cpu", Team(1, 4, 1)) == 1


def test_a_team_is_what_the_environment_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert team() == Team() and team().is_first
    values = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert team() == Team(3, 8, 1) and not team().is_first


def test_data_are_placed_on_the_device_of_the_base():
    meta = torch.device("meta")
    moved = placed({"x": [torch.ones(2), 3], "y": (torch.ones(1),)}, meta)
    assert moved["x"][0].device == moved["y"][0].device == meta and moved["x"][1] == 3


def test_other_devices_are_asked_for_the_same_bits():
    with deterministic(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_the_adapters_of_a_cohort_share_is_one_value(tmp_path):
    with pytest.raises(ForgeError, match="same for the whole zoo"):
        forge("digits-vit", 1, tmp_path / "zoo", settings={"kind": "lokr", "factor": "2|4"})
    assert not (tmp_path / "zoo").exists()
