"""What recipes, zoos and callers may get wrong is refused before a zoo is touched, and being stopped stops."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from forge.zoos import SETTINGS, state
from lorascope.errors import ForgeError, LorascopeError, ZooError
from lorascope.forge import AdapterStack, Slot, Training, forge, train
from lorascope.forge.launch import team
from lorascope.forge.repair import repair
from lorascope.zoo import Zoo, verify_zoo

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_recipe.py"
MEASURED = '[{"loss": float(loss)} for loss in'


def recipe_that(tmp_path, measures):
    """The example's file, with something else measured."""
    text = EXAMPLE.read_text()
    assert MEASURED in text
    path = tmp_path / "recipe.py"
    path.write_text(text.replace(MEASURED, f"[{measures} for loss in"))
    return str(path)


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ('{"los": float(loss)}', "not what it declares"),
        ("{}", "no loss"),
        ('{"loss": float(loss), "path": "../../elsewhere"}', "not what it declares"),
        ('{"loss": "high"}', "not of the column's type"),
        ('{"loss": loss}', "not a plain number"),
    ],
)
def test_what_is_measured_is_what_is_declared(tmp_path, measures, message):
    out = tmp_path / "zoo"
    with pytest.raises(LorascopeError, match=message):
        forge(recipe_that(tmp_path, measures), 2, out, settings={"steps": 1, "cohort": 2})
    assert not Zoo.open(out).rows() and not list((out / "adapters").iterdir()) and not list(out.glob(".tmp-*"))


@pytest.mark.parametrize("verb", [("forge", "digits-vit", "--plan"), ("forge", EXAMPLE, "--plan"), ("zoo", "repair")])
def test_without_pytorch_the_extra_is_named(tmp_path, verb):
    code = "import sys; sys.modules['torch'] = None; from lorascope.cli import main; main()"
    command = [sys.executable, "-c", code, *verb, *([tmp_path] if verb[0] == "zoo" else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "lorascope[forge]" in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(("recipe", "name"), [("celeba-sd14", "prompts"), ("imagenette-sd14", "prompt")])
def test_a_prompt_that_no_tokenizer_takes_is_refused(tmp_path, recipe, name):
    """Half of a surrogate pair: what Python makes of bytes on the command line that are no UTF-8."""
    with pytest.raises(ForgeError, match="text in UTF-8") as caught:
        forge(recipe, 2, tmp_path / "zoo", settings={name: "a caf\udce9"})
    assert caught.value.key == name and not (tmp_path / "zoo").exists()


def test_every_adapter_is_measured(tmp_path):
    text = EXAMPLE.read_text()
    path = tmp_path / "recipe.py"
    path.write_text(text.replace("(outputs - truths).square().mean(1)]", "(outputs - truths)[1:].square().mean(1)]"))
    with pytest.raises(ForgeError, match="does not measure every adapter"):
        forge(str(path), 2, tmp_path / "zoo", settings={"steps": 1, "cohort": 2})


@pytest.mark.parametrize("where", ["        x = TEST_POINTS.squeeze(1)", "        for _ in range(300):"])
@pytest.mark.parametrize("raised", ["ValueError('wrong')", "SystemExit(0)"])
def test_a_recipe_that_fails_is_named_with_its_line(tmp_path, raised, where):
    path = tmp_path / "recipe.py"
    path.write_text(EXAMPLE.read_text().replace(where, f"        raise {raised}\n{where}"))
    line = path.read_text().splitlines().index(f"        raise {raised}") + 1
    with pytest.raises(ForgeError, match=rf"line {line}: the recipe fails"):
        forge(str(path), 2, tmp_path / "zoo", settings={"steps": 1, "cohort": 2})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "/../../../elsewhere"),
        ("seed", -1),
        ("count", 10**12),
        ("count", "40"),
        ("settings", []),
        ("settings", {"steps": -1}),
        ("settings", {"cohort": 0}),
        ("settings", {"device": "nowhere"}),
        ("recipe", ["digits-vit"]),
    ],
)
def test_the_header_of_a_zoo_is_not_believed(forged, tmp_path, name, value):
    zoo = tmp_path / "zoo"
    shutil.copytree(forged.path, zoo)
    shutil.rmtree(zoo / "adapters" / forged.rows()[0]["id"])
    (zoo / "cohorts" / "00000001.json").write_text("{")
    header = json.loads((zoo / "zoo.json").read_text())
    header[name] = header[name] | value if isinstance(value, dict) else value
    (zoo / "zoo.json").write_text(json.dumps(header))
    before = state(zoo)
    with pytest.raises(LorascopeError):
        repair(zoo)
    assert state(zoo) == before


def test_a_run_that_fails_leaves_the_header_as_it_was(forged, tmp_path):
    zoo = tmp_path / "zoo"
    shutil.copytree(forged.path, zoo)
    (zoo / "base" / "model.safetensors").write_bytes(b"damaged")
    before = (zoo / "zoo.json").read_bytes()
    with pytest.raises(ForgeError, match="not the one that this zoo was begun with"):
        forge("digits-vit", 400, zoo, settings=SETTINGS)
    assert (zoo / "zoo.json").read_bytes() == before
    with pytest.raises(ForgeError, match="1 to 100000000"):
        forge("digits-vit", 10**12, zoo, settings=SETTINGS)


def is_gone(group, seconds):
    """Whether no process of the group is left after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("times", [1, 2])
def test_asked_to_stop_it_stops_at_once_and_the_zoo_is_whole(tmp_path, times):
    out = tmp_path / "zoo"
    # cohorts that would take minutes
    given = {**SETTINGS, "steps": 20_000}
    settings = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    forging = ["-m", "lorascope", "forge", "digits-vit", "--count", "96", "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, *forging, *settings],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "base" / "model.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(4)  # the workers start
    assert process.poll() is None
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        time.sleep(0.3)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in ((130,) if times == 1 else (130, -signal.SIGINT)), errors
    assert is_gone(process.pid, seconds=20)
    assert not verify_zoo(out).defects and not Zoo.open(out).rows()


@pytest.mark.parametrize("given", [{"optimiser": "SGD"}, {"schedule": "cosin"}])
def test_a_misspelt_training_is_refused(given):
    with pytest.raises(ForgeError, match="no such one"):
        Training(learning_rate=0.1, steps=1, **given)


def test_a_misspelt_precision_is_refused_and_a_kind_has_a_name():
    stack = AdapterStack(nn.Sequential(nn.Linear(2, 2)).eval(), ["0"], [Slot(1, 1.0, 0)], "lora")
    with pytest.raises(ForgeError, match="float32, bfloat16"):
        train(stack, None, None, [Training(0.1, 1)], precision="bf16")
    with pytest.raises(LorascopeError, match="lorra"):
        AdapterStack(stack.base, ["0"], [Slot(1, 1.0, 0)], "lorra")


@pytest.mark.parametrize(("rank", "size"), [("a", "2"), ("2", "2"), ("0", "0"), ("-1", "2")])
def test_an_environment_of_launched_processes_that_cannot_be_is_refused(monkeypatch, rank, size):
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ForgeError, match="makes no sense"):
        team()


def test_the_failure_of_one_process_ends_the_others(tmp_path):
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "else.txt").write_text("not a zoo")  # which only the first looks at
    forging = ["lorascope", "forge", "digits-vit", "--count", "4", "--out", str(tmp_path / "zoo")]
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *forging]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=100)
    assert done.returncode != 0 and "is a folder of something else" in done.stderr
    assert done.stderr.count("Traceback (most recent call last)") <= 1  # torchrun's own


def test_settings_are_text_or_themselves(tmp_path):
    settings = {**SETTINGS, "rank": [2, 4], "fast": False, "cohort": 4.0, "classes": [1, 2]}
    forge("digits-vit", 4, tmp_path / "zoo", settings=settings)
    zoo = Zoo.open(tmp_path / "zoo")
    assert {row["rank"] for row in zoo.rows()} <= {2, 4} and all(row["classes"] == [1, 2] for row in zoo.rows())
    assert zoo.header["settings"]["rank"] == {"one of": [2, 4]}
    with pytest.raises(ZooError):
        Zoo.open(tmp_path)
