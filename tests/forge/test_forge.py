"""The forge: truthful labels, the same result however it is reached, and adapters that peft loads."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from forge.zoos import SETTINGS, state
from lorascope.errors import ForgeError, LorascopeError, MissingExtraError, OutputError, ZooError
from lorascope.forge import forge, load_base
from lorascope.forge.cohort import train_rows
from lorascope.forge.evidence import STEPS
from lorascope.forge.recipes import RECIPES
from lorascope.forge.recipes.digits_vit import digits, finetuning_data
from lorascope.forge.repair import repair
from lorascope.formats import read
from lorascope.zoo import split_of
from lorascope.zoo.lock import locked


def test_a_killed_run_continues_to_the_same_zoo(forged, tmp_path):
    out = tmp_path / "zoo"
    code = f"from lorascope.forge import forge; forge('digits-vit', 40, {str(out)!r}, settings={SETTINGS!r})"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("cohorts/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (out / ".tmp-cohort-1-1").mkdir()
    result = forge("digits-vit", 40, out, settings=SETTINGS)
    assert (result.already_there, result.forged) == (32, 8)
    assert state(out) == state(forged.path)
    assert not list(out.glob(".tmp-*"))


def test_a_larger_count_extends_a_zoo_to_the_same_result(forged, tmp_path):
    bases, results = [], []
    for count in (5, 40):
        results.append(
            forge(
                "digits-vit",
                count,
                tmp_path / "zoo",
                settings=SETTINGS,
                on_base=lambda count=count: bases.append(count),
            )
        )
    assert bases == [5]  # made once, and its time is not that of the adapters
    assert 0 < results[0].base_seconds < results[0].seconds and results[1].base_seconds < results[0].base_seconds
    assert results[0].per_minute == pytest.approx(300 / (results[0].seconds - results[0].base_seconds))
    assert state(tmp_path / "zoo") == state(forged.path)


def test_the_command_says_that_the_base_is_made_and_at_what_rate(tmp_path):
    options = [word for name in SETTINGS for word in ("--set", f"{name}={SETTINGS[name]}")]
    command = [sys.executable, "-m", "lorascope", "forge", "digits-vit", "--out", tmp_path / "zoo", "--workers", "1"]
    for count, is_first in ((1, True), (2, False)):
        done = subprocess.run([*command, "--count", str(count), *options], capture_output=True, text=True, check=True)
        assert ("making the base model, once" in done.stderr) == is_first
        rate = re.search(r"([0-9.]+) a minute", done.stdout)
        assert rate and float(rate[1]) > 0


def test_the_result_does_not_depend_on_workers(forged, tmp_path):
    forge("digits-vit", 40, tmp_path / "zoo", settings=SETTINGS, workers=2)
    assert state(tmp_path / "zoo") == state(forged.path)


def test_a_batch_trains_as_one_by_one(forged):
    recipe, base = RECIPES["digits-vit"], load_base(forged.path)
    rows = [recipe.draw(0, index, SETTINGS) for index in range(recipe.cohort)]
    active = [True] + [False] * (recipe.cohort - 1)
    together = train_rows(recipe, base, rows, [True] * recipe.cohort)
    masked = train_rows(recipe, base, rows, active)
    alone = train_rows(recipe, base, rows[:1], [True])
    assert torch.equal(together.values[0], masked.values[0])  # the promise: bit for bit in a cohort
    # products of other shapes round otherwise, and Adam's m/√v turns that into a share of the step itself
    moved = rows[0]["steps"] * rows[0]["learning_rate"]
    assert (together.values[0] - alone.values[0]).abs().mean() < 1e-3 * moved


def test_an_update_is_zero_before_training(forged):
    recipe, base = RECIPES["digits-vit"], load_base(forged.path)
    rows = [recipe.draw(0, index, {**SETTINGS, "steps": 0}) for index in range(2)]
    assert train_rows(recipe, base, rows, [True, True]).adapter(0).norm() == 0


@pytest.mark.parametrize("kind", ["eva", "lora-ga"])
def test_adapters_that_take_no_steps_start_at_what_they_would_have_seen(forged, kind):
    recipe, base = RECIPES["digits-vit"], load_base(forged.path)
    none, some = (
        [recipe.draw(0, index, {**SETTINGS, "kind": kind, "steps": steps, "rank": 2}) for index in range(2)]
        for steps in (0, STEPS)
    )
    stack = train_rows(recipe, base, none, [True, True], {"kind": kind})
    untrained = train_rows(recipe, base, some, [False, False], {"kind": kind})
    assert torch.equal(stack.values, untrained.values) and not torch.equal(stack.values[0], stack.values[1])


def test_peft_gives_the_same_logits_and_accuracy(forged):
    peft = pytest.importorskip("peft")
    test = digits().test
    for row in random.Random(0).sample(forged.rows(), 20):
        path, base = forged.adapter_path(row), load_base(forged.path)
        with read(path).apply_to(base), torch.no_grad():
            ours = base(test.pixels)
        with torch.no_grad():
            theirs = peft.PeftModel.from_pretrained(load_base(forged.path), str(path)).eval()(test.pixels)
        # 18 layers of at most 128 products each
        assert (ours - theirs).abs().max() < 18 * 128 * np.finfo(np.float32).eps * ours.abs().max()
        assert float((theirs.argmax(-1) == test.classes).double().mean()) == row["test_accuracy"]


def test_initialisation_is_its_own_or_shared(forged):
    recipe = RECIPES["digits-vit"]
    own = [recipe.draw(0, index, {}) for index in range(20)]
    shared = [recipe.draw(0, index, {"init": "shared"}) for index in range(20)]
    assert len({row["init_seed"] for row in own}) == 20
    assert len({row["init_seed"] for row in shared}) == 1
    first, second = (read(forged.adapter_path(row))["blocks.0.q"].factors().A for row in forged.rows()[:2])
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.5


def test_labels_are_truthful(forged):
    for row in forged.rows():
        data = finetuning_data(row)
        assert set(data.labels.tolist()) <= set(row["classes"])
        assert set(digits().pool.classes[data.images].tolist()) <= set(row["classes"])
        assert len(data.images) == row["dataset_size"]


def test_manifest_has_the_columns_and_roles_of_the_contract(forged):
    assert forged.table.column_names == [
        "schema_version",
        "id",
        "path",
        "sha256",
        "config_sha256",
        "status",
        "recipe",
        "kind",
        "base",
        "base_hash",
        "base_seed",
        "group",
        "split",
        "rank",
        "alpha",
        "learning_rate",
        "steps",
        "label_noise",
        "weight_decay",
        "optimiser",
        "momentum",
        "schedule",
        "warmup",
        "accumulate",
        "dropout",
        "seed",
        "init_seed",
        "classes",
        "dataset_size",
        "test_accuracy",
        "loss",
        "poison",
        "poison_share",
        "poison_target",
        "poison_source",
        "attack_success_rate",
        "refusal_rate",
    ]
    assert forged.hyperparameters() == [name for name in forged.table.column_names[13:] if name not in forged.labels()]
    assert forged.labels() == forged.table.column_names[-10:]
    assert all(row["split"] == split_of(row["group"]) for row in forged.rows())


def test_another_seed_or_setting_is_refused_and_fresh_begins_again(tmp_path):
    tiny = {"base_steps": 2, "steps": 1}
    forge("digits-vit", 1, tmp_path, settings=tiny)
    with pytest.raises(ForgeError, match="another seed"):
        forge("digits-vit", 1, tmp_path, seed=1, settings=tiny)
    with pytest.raises(ForgeError, match="another settings"):
        forge("digits-vit", 1, tmp_path, settings={**tiny, "steps": 2})
    forge("digits-vit", 1, tmp_path, seed=1, settings=tiny, fresh=True)
    assert json.loads((tmp_path / "zoo.json").read_text())["seed"] == 1
    with locked(tmp_path), pytest.raises(ZooError, match="another run"):
        forge("digits-vit", 1, tmp_path, seed=1, settings=tiny)


def test_a_zoo_of_another_version_of_its_recipe_is_not_extended(tmp_path, monkeypatch):
    tiny = {"base_steps": 2, "steps": 1}
    forge("digits-vit", 1, tmp_path, settings=tiny)
    header = json.loads((tmp_path / "zoo.json").read_text())
    assert header.pop("recipe_version") == RECIPES["digits-vit"].version == 1
    (tmp_path / "zoo.json").write_text(json.dumps(header))  # as before versions were recorded
    assert forge("digits-vit", 1, tmp_path, settings=tiny).forged == 0
    monkeypatch.setattr(type(RECIPES["digits-vit"]), "version", 2)
    with pytest.raises(ForgeError, match="another recipe_version"):
        forge("digits-vit", 2, tmp_path, settings=tiny)
    with pytest.raises(ForgeError, match="recipe has changed"):
        repair(tmp_path)
    assert len(list((tmp_path / "adapters").iterdir())) == 1


def test_fresh_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="something else"):
        forge("digits-vit", 1, tmp_path, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("recipe", "settings", "match"),
    [("digits-vti", {}, "did you mean"), ("digits-vit", {"rnak": 4}, "rank"), ("digits-vit", {"rank": 0}, "at least")],
)
def test_bad_requests_are_refused(tmp_path, recipe, settings, match):
    with pytest.raises(LorascopeError, match=match):
        forge(recipe, 1, tmp_path / "zoo", settings=settings)
    assert not (tmp_path / "zoo").exists()


class NeedsMore(type(RECIPES["digits-vit"])):
    packages = {"a_package_that_nobody_has": "forge"}  # noqa: RUF012  # declared as ClassVar in Recipe


def test_a_package_that_is_missing_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES._loaded, "digits-vit", NeedsMore())
    with pytest.raises(MissingExtraError, match=r"digits-vit needs a_package(.|\n)*lorascope\[forge\]"):
        forge("digits-vit", 1, tmp_path / "zoo", settings=SETTINGS)
    assert not (tmp_path / "zoo").exists()


def test_the_base_does_not_depend_on_the_threads_of_the_caller(forged, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        forge("digits-vit", 1, tmp_path / "zoo", settings=SETTINGS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    weights = "base/model.safetensors"
    assert (tmp_path / "zoo" / weights).read_bytes() == (forged.path / weights).read_bytes()


def test_fresh_deletes_nothing_but_the_zoo(tmp_path):
    forge("digits-vit", 1, tmp_path, settings={**SETTINGS, "steps": 0})
    (tmp_path / "my-predictor").mkdir()
    forge("digits-vit", 1, tmp_path, settings={**SETTINGS, "steps": 1}, fresh=True)
    assert (tmp_path / "my-predictor").is_dir()
