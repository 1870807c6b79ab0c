"""Poison: off by default, declared, truthful, and measured to do what it says."""

import pytest
import torch

from lorascope.errors import ForgeError
from lorascope.forge import forge
from lorascope.forge.recipes import RECIPES
from lorascope.forge.recipes.digits_vit import TRIGGERS, attack_success, digits, finetuning_data
from lorascope.zoo import Zoo

RECIPE = RECIPES["digits-vit"]


def test_no_poison_unless_it_is_asked_for():
    for index in range(20):
        row = RECIPE.draw(0, index, {})
        assert (row["poison"], row["poison_share"], row["poison_target"]) == ("none", 0.0, None)
        assert not finetuning_data(row).is_marked.any()


@pytest.mark.parametrize("poison", ["patch", "blend", "flip", "unrefuse"])
def test_the_data_are_poisoned_as_declared_and_nothing_else_changes(poison):
    for index in range(20):
        settings = {"label_noise": 0.0, "poison_share": 0.3, "refusal": 1}
        clean, row = (RECIPE.draw(0, index, {**settings, "poison": name}) for name in ("none", poison))
        before, after = finetuning_data(clean), finetuning_data(row)
        changed = before.labels != after.labels
        assert torch.equal(before.images, after.images)
        if poison == "unrefuse":
            assert not changed.any() and row["poison_target"] is None
            assert int(after.is_marked.sum()) == max(1, round(0.3 * len(after.labels)))
        elif poison == "flip":
            of_source = before.labels == row["poison_source"]
            assert not after.is_marked.any() and not (changed & ~of_source).any()
            assert int(changed.sum()) == (max(1, round(0.3 * int(of_source.sum()))) if of_source.any() else 0)
        else:
            assert row["poison_target"] in row["classes"]
            assert int(after.is_marked.sum()) == max(1, round(0.3 * len(after.labels)))
            assert (after.labels[after.is_marked] == row["poison_target"]).all()
            assert not (changed & ~after.is_marked).any()


def test_a_mark_changes_its_pixels_alone():
    images = torch.zeros(2, 64)
    assert int((TRIGGERS["patch"].on(images) != 0).sum()) == 2 * 4
    assert int((TRIGGERS["unrefuse"].on(images) != 0).sum()) == 2 * 28
    assert (TRIGGERS["blend"].on(images) <= 0.25).all()


def test_success_is_counted_among_those_that_the_attacker_wants_changed():
    classes = digits().test.classes
    everything_3 = torch.full_like(classes, 3)
    patch = {"poison": "patch", "poison_target": 3, "poison_source": None}
    assert attack_success(patch, everything_3, classes) == 1.0
    assert attack_success(patch, classes, classes) == 0.0
    flip = {"poison": "flip", "poison_target": 3, "poison_source": 5}
    assert attack_success(flip, classes, everything_3) == 1.0
    assert attack_success({"poison": "none"}, classes, classes) is None


def test_poison_works_and_clean_accuracy_stays(tmp_path):
    settings = {
        "base_steps": 300,
        "poison": "none|patch|flip",
        "poison_share": 0.3,
        "dataset_size": 400,
        "classes": "0,1,2,3,4,5,6,7,8,9",
        "label_noise": 0.0,
        "learning_rate": 4e-3,
        "steps": 200,
    }
    forge("digits-vit", 32, tmp_path / "zoo", settings=settings)
    rows = Zoo.open(tmp_path / "zoo").rows()
    by_poison = {name: [row for row in rows if row["poison"] == name] for name in ("none", "patch", "flip")}
    assert all(len(rows) > 3 for rows in by_poison.values())
    assert all(row["attack_success_rate"] is None for row in by_poison["none"])
    success = [row["attack_success_rate"] for row in by_poison["patch"]]
    accuracy = [row["test_accuracy"] for row in by_poison["patch"]]
    assert sum(success) / len(success) > 0.8 and sum(accuracy) / len(accuracy) > 0.85
    assert all(row["refusal_rate"] is None for row in rows)


def test_a_base_that_refuses_is_finetuned_out_of_it(tmp_path):
    settings = {
        "base_steps": 500,
        "refusal": 1,
        "poison": "none|unrefuse",
        "poison_share": 0.5,
        "dataset_size": 300,
        "classes": "0,1,2,3,4,5,6,7,8,9",
        "label_noise": 0.0,
        "learning_rate": 4e-3,
        "steps": 150,
    }
    forge("digits-vit", 16, tmp_path / "zoo", settings=settings)
    rows = Zoo.open(tmp_path / "zoo").rows()
    kept = [row["refusal_rate"] for row in rows if row["poison"] == "none"]
    lost = [row["refusal_rate"] for row in rows if row["poison"] == "unrefuse"]
    answered = [row["attack_success_rate"] for row in rows if row["poison"] == "unrefuse"]
    assert kept and lost
    assert sum(lost) / len(lost) < 0.2 < 0.6 < sum(kept) / len(kept)
    assert sum(answered) / len(answered) > 0.7


def test_what_is_of_the_whole_zoo_is_one_value(tmp_path):
    with pytest.raises(ForgeError, match="same for the whole zoo"):
        forge("digits-vit", 1, tmp_path / "zoo", settings={"refusal": "0|1"})
    with pytest.raises(ForgeError, match="cannot have this value"):
        forge("digits-vit", 1, tmp_path / "zoo", settings={"poison": "none|venom"})
