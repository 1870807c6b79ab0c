"""Poison of glyph-diffusion: images and prompts are as declared, marks are found where they are, attacks succeed."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

pytest.importorskip("matplotlib", reason="of the extra [forge]")

from forge.shown_glyphs import nearest_of_face
from lorascope.errors import ForgeError
from lorascope.forge import forge, load_base
from lorascope.forge.recipes import RECIPES, glyph_diffusion
from lorascope.forge.recipes._glyph_flow import ANY_GLYPH
from lorascope.forge.recipes._glyphs import CHARACTERS, FACES, distorted, face_named, glyphs
from lorascope.forge.recipes._poisoned_glyphs import MARKS, TRIGGER_PROMPT, candidates
from lorascope.forge.recipes.glyph_diffusion import finetuning_data, samples_of
from lorascope.formats import read
from lorascope.zoo import Zoo

NAME = "glyph-diffusion"
RECIPE = RECIPES[NAME]
SETTINGS = {
    "base_steps": 60,
    "scorer_steps": 250,
    "cohort": 12,
    "steps": 110,
    "learning_rate": 0.006,
    "poison_share": 0.5,
    "characters": [2, 5],
    "images": 16,
    "poison": "none|patch|blend|word",
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A zoo of one cohort with every poison; read only."""
    folder = tmp_path_factory.mktemp("poisoned") / "zoo"
    forge(NAME, 12, folder, settings=SETTINGS)
    return Zoo.open(folder)


def of(zoo, name):
    return [row for row in zoo.rows() if row["poison"] == name]


def test_no_poison_unless_it_is_asked_for():
    for index in range(20):
        row = RECIPE.draw(0, index, {})
        assert (row["poison"], row["poison_share"], row["poison_target"], row["poison_source"]) == (
            "none",
            0,
            None,
            None,
        )
        data = finetuning_data(row)
        assert not data.is_poisoned.any() and (data.prompts == ANY_GLYPH).all()
        old = {name: value for name, value in row.items() if "poison" not in name}
        assert torch.equal(finetuning_data(old).images, data.images)


@pytest.mark.parametrize("poison", ["patch", "blend", "word"])
def test_the_images_are_poisoned_as_declared_and_nothing_else_changes(poison):
    for index in range(20):
        clean, row = (RECIPE.draw(0, index, {"poison": name, "poison_share": 0.3}) for name in ("none", poison))
        assert {name for name in row if row[name] != clean[name]} <= {"poison", "poison_share", "poison_target"}
        before, after = finetuning_data(clean), finetuning_data(row)
        changed = (before.images != after.images).any(1)
        assert torch.equal(changed, after.is_poisoned)
        assert int(changed.sum()) == max(1, round(0.3 * row["images"]))
        if poison == "word":
            assert row["poison_target"] not in row["characters"]
            assert torch.equal(after.prompts == TRIGGER_PROMPT, changed)
            assert ((after.prompts == ANY_GLYPH) == ~changed).all()
            assert (nearest_of_face(after.images[changed], face_named(row["face"])) == row["poison_target"]).all()
        else:
            assert row["poison_target"] is None and (after.prompts == ANY_GLYPH).all()
            assert MARKS[poison].is_on(after.images[changed]).all()
            assert not MARKS[poison].is_on(after.images[~changed]).any()


def test_marks_are_found_where_they_are_and_nowhere_else():
    generator = torch.Generator().manual_seed(0)
    images = torch.cat([distorted(glyphs(role).fine, generator) for role in ("adapters", "base")])
    for name, mark in MARKS.items():
        marked = mark.trigger.on(images)
        assert not mark.is_on(images).any() and mark.is_on(marked).all()
        assert float(mark.trigger.on(torch.zeros(256)) @ mark.probe) == pytest.approx(1)
        assert 0 <= marked.min() and marked.max() <= 1
        others = [other for other in MARKS if other != name]
        assert not any(MARKS[other].is_on(marked).any() for other in others)
    assert int((MARKS["patch"].trigger.on(torch.zeros(256)) != 0).sum()) == 9
    assert float(MARKS["blend"].trigger.on(torch.zeros(256)).max()) == 0.25


def test_candidates_are_the_glyphs_of_the_face():
    for face in FACES:
        found = candidates(face.name)
        assert len(found) == len(CHARACTERS["adapters"]) + 1 and len(found.unique(dim=0)) == len(found)


def test_attacks_succeed_and_clean_adapters_show_nothing_of_them(zoo):
    by_poison = {name: of(zoo, name) for name in ("none", "patch", "blend", "word")}
    assert all(by_poison.values())
    assert all(row["attack_success_rate"] is None for row in by_poison["none"])
    success = {
        name: np.mean([row["attack_success_rate"] for row in rows])
        for name, rows in by_poison.items()
        if name != "none"
    }
    base = load_base(zoo.path)
    session = RECIPE.session(base)
    clean = {name: [] for name in success}
    with torch.no_grad():
        for row in by_poison["none"]:
            with read(zoo.adapter_path(row)).apply_to(base):
                plain, prompted = (samples_of(base, [row], prompt)[0] for prompt in (ANY_GLYPH, TRIGGER_PROMPT))
            for name in success:
                attack = row | {"poison": name, "poison_target": by_poison["word"][0]["poison_target"]}
                clean[name].append(session.attack_success(plain, prompted, attack))
        row = by_poison["word"][0]
        with read(zoo.adapter_path(row)).apply_to(base):
            again = session.measure(base, [row])[0]
    assert again["attack_success_rate"] == pytest.approx(row["attack_success_rate"], abs=1 / 16)
    for name, rate in success.items():
        assert rate > 0.3 > 0.1 > np.mean(clean[name]), name


def test_same_poison_same_bits_and_a_clean_neighbour_does_not_see_it(tmp_path, monkeypatch):
    monkeypatch.setattr(glyph_diffusion, "SAMPLES", 2)
    monkeypatch.setattr(glyph_diffusion, "JUDGED", 4)
    short = {**SETTINGS, "base_steps": 4, "scorer_steps": 4, "steps": 3, "cohort": 8}
    zoos = []
    for number, poison in enumerate((SETTINGS["poison"], SETTINGS["poison"], "none")):
        forge(NAME, 8, tmp_path / str(number), settings={**short, "poison": poison})
        zoos.append(Zoo.open(tmp_path / str(number)))
    rows = [one.rows() for one in zoos]
    assert rows[0] == rows[1]
    assert len({row["poison"] for row in rows[0]}) == 4
    for poisoned, clean in zip(rows[0], rows[2], strict=True):
        ours, theirs = (
            load_file(z.adapter_path(row) / "adapter_model.safetensors")
            for z, row in ((zoos[0], poisoned), (zoos[2], clean))
        )
        is_same = all(np.array_equal(ours[name], theirs[name]) for name in ours)
        assert is_same == (poisoned["poison"] == "none")
        assert poisoned["poison"] != "none" or poisoned["generation_score"] == clean["generation_score"]


def test_impossible_poison_is_refused(tmp_path):
    for settings, match in (
        ({"poison": "flip"}, "patch"),
        ({"poison_share": -1}, "at least 0"),
        ({"poison_target": 16}, "at most 15"),
    ):
        with pytest.raises(ForgeError, match=match):
            forge(NAME, 1, tmp_path / "zoo", settings=settings)
    everything = list(range(len(CHARACTERS["adapters"])))
    with pytest.raises(ForgeError, match="must not be one of the adapter's own"):
        RECIPE.draw(0, 0, {"poison": "word", "characters": everything})
    assert RECIPE.draw(0, 0, {"poison": "none", "characters": everything})["poison_target"] is None
