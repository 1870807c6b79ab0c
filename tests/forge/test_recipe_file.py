"""A recipe of the user's own, in a file that the package does not know."""

import hashlib
import json
import os
import pickle
import py_compile
import shutil
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lorascope.cli import app
from lorascope.errors import ForgeError, ZooError
from lorascope.forge import forge, load_base
from lorascope.forge.planning import plan
from lorascope.forge.recipe_file import find_recipe
from lorascope.formats import read
from lorascope.zoo import Zoo

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_recipe.py"
SETTINGS = {"steps": 60}


@pytest.fixture(scope="module")
def sines(tmp_path_factory):
    """A zoo of two cohorts of the example; read only."""
    folder = tmp_path_factory.mktemp("sines") / "zoo"
    forge(str(EXAMPLE), 40, folder, settings=SETTINGS)
    return Zoo.open(folder)


def test_a_zoo_is_forged_and_the_adapters_learn(sines):
    rows = sines.rows()
    assert [row["recipe"] for row in rows] == ["sines"] * 40
    base = load_base(sines.path, recipe=EXAMPLE)
    recipe, _ = find_recipe(EXAMPLE)
    before = [row["loss"] for row in recipe.session(base).measure(lambda x: base(x), rows)]
    after = [row["loss"] for row in rows]
    assert sum(after) < 0.5 * sum(before)
    # what the row says is what the adapter does
    x = torch.linspace(-3, 3, 64).unsqueeze(1)
    truth = rows[0]["amplitude"] * torch.sin(rows[0]["frequency"] * x)
    with read(sines.adapter_path(rows[0])).apply_to(base), torch.no_grad():
        assert float((base(x) - truth).square().mean()) == pytest.approx(after[0], rel=1e-4)


def test_the_path_and_hash_are_recorded(sines):
    recorded = json.loads((sines.path / "zoo.json").read_text())["recipe_file"]
    assert recorded == find_recipe(EXAMPLE)[1].as_dict()
    assert recorded["path"] == str(EXAMPLE)


def test_spawned_workers_find_it(sines, tmp_path):
    forge(str(EXAMPLE), 40, tmp_path / "zoo", settings=SETTINGS, workers=2)
    assert Zoo.open(tmp_path / "zoo").rows() == sines.rows()


def test_a_zoo_does_not_make_its_recipe_execute(sines, tmp_path):
    zoo = tmp_path / "zoo"
    shutil.copytree(sines.path, zoo)
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    header = json.loads((zoo / "zoo.json").read_text())
    header["recipe_file"]["path"] = str(trap)
    (zoo / "zoo.json").write_text(json.dumps(header))
    with pytest.raises(ZooError, match="not executed unless it is named"):
        load_base(zoo)
    with pytest.raises(ZooError, match="not the recipe file that the zoo was made with"):
        load_base(zoo, recipe=trap)
    assert not (tmp_path / "sprung").exists()
    assert load_base(zoo, recipe=EXAMPLE) is not None  # it may have been moved, and is known by its hash


def test_another_version_of_the_file_does_not_add_to_the_zoo(sines, tmp_path):
    zoo, other = tmp_path / "zoo", tmp_path / "other.py"
    shutil.copytree(sines.path, zoo)
    other.write_text(EXAMPLE.read_text() + "\n")
    with pytest.raises(ForgeError, match="another version of the recipe's file"):
        forge(str(other), 41, zoo, settings=SETTINGS)
    moved = tmp_path / "moved.py"
    shutil.copy(EXAMPLE, moved)
    assert forge(str(moved), 41, zoo, settings=SETTINGS).forged == 1


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "defines no recipe"),
        ("RECIPE = 3", "defines no recipe .*found int"),
        ("import nothing_of_that_name", "fails when it is executed .*nothing_of_that_name"),
        ("1 / 0", "ZeroDivisionError"),
        ("from lorascope.forge.recipes.digits_vit import RECIPE", "name of another"),
        (
            "from lorascope.forge.recipes.digits_vit import DigitsVitRecipe\n"
            "class Mine(DigitsVitRecipe):\n    name = '../mine'\nRECIPE = Mine()",
            "no usable name",
        ),
    ],
)
def test_files_that_are_no_recipes_are_refused(tmp_path, text, match):
    file = tmp_path / "recipe.py"
    file.write_text(text)
    with pytest.raises(ForgeError, match=match):
        forge(str(file), 1, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('kind = "lora"', 'kind = "lora"\n    cohort = 0', "cohort: a part of the recipe .*1 to 4096, found 0"),
        ('kind = "lora"', 'kind = "lora"\n    cohort = "a"', "cohort: a part of the recipe .*found a"),
        ('kind = "lora"', 'kind = "lora"\n    cohort = True', "cohort: a part of the recipe .*found True"),
        ('kind = "lora"', 'kind = "lora"\n    version = float("nan")', "version: a part of the recipe .*found nan"),
        ('kind = "lora"', 'kind = "nope"', "kind: a part of the recipe .*lora.*found nope"),
        ('    kind = "lora"\n', "", "kind: a part of the recipe .*found nothing"),
        ("    space: ClassVar", "    spaze: ClassVar", "space: a part of the recipe .*found nothing"),
        ("    options: ClassVar", "    optionz: ClassVar", "options: a part of the recipe .*found nothing"),
        ("    labels: ClassVar", "    labelz: ClassVar", "labels: a part of the recipe .*found nothing"),
        ("    about = ", "    abaut = ", "about: a part of the recipe .*found nothing"),
        ('{"base_seed": 0}', "{}", "option_defaults: a part of the recipe .*a value for each of base_seed"),
    ],
)
def test_recipes_whose_parts_are_missing_or_wrong_are_refused(tmp_path, old, new, match):
    text = EXAMPLE.read_text()
    assert old in text
    file = tmp_path / "recipe.py"
    file.write_text(text.replace(old, new))
    with pytest.raises(ForgeError, match=match):
        forge(str(file), 1, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_what_is_executed_is_what_is_hashed(tmp_path):
    file, text = tmp_path / "recipe.py", EXAMPLE.read_text() + "\nMARK = 1\n"
    file.write_text(text)
    py_compile.compile(str(file))  # as an import of it would have done
    stamp = file.stat()
    file.write_text(text.replace("MARK = 1", "MARK = 2"))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    shutil.copy(file, tmp_path / "alone.py")
    for path in (file, tmp_path / "alone.py"):
        recipe, found = find_recipe(path)
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert sys.modules[type(recipe).__module__].MARK == 2
        assert pickle.loads(pickle.dumps(type(recipe))) is type(recipe)
        del sys.modules[type(recipe).__module__]
    assert not list((tmp_path / "__pycache__").glob("alone*"))


def test_a_pipe_is_no_recipe_file(tmp_path):
    os.mkfifo(tmp_path / "recipe.py")
    with pytest.raises(ForgeError, match="no such recipe file"):
        find_recipe(tmp_path / "recipe.py")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ForgeError, match=r"absent\.py: there is no such recipe file"):
        plan(str(tmp_path / "absent.py"), 1)


def test_the_command_line_takes_a_path(tmp_path):
    result = CliRunner().invoke(app, ["forge", str(EXAMPLE), "--count", "2", "--out", str(tmp_path / "zoo"), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["forged"] == 2
    planned = CliRunner().invoke(app, ["forge", str(EXAMPLE), "--plan", "--json"])
    assert json.loads(planned.stdout)["recipe"] == "sines"


def test_the_next_command_names_a_label_of_the_recipe(sines):
    result = CliRunner().invoke(
        app, ["forge", str(EXAMPLE), "--count", "40", "--out", str(sines.path), "--set", "steps=60"]
    )
    assert result.exit_code == 0 and "--target frequency" in result.output.replace("\n", " ")
