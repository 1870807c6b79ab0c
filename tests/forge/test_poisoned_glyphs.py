"""Poison of glyph-diffusion: images and prompts are as declared, marks are found where they are, attacks succeed."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

pytest.importorskip("matplotlib", reason="of the extra [forge]")

from forge.shown_glyphs import nearest_of_face
from lorascope.errors import ForgeError
from lorascope.forge import forge
from lorascope.forge.cohort import train_rows
from lorascope.forge.determinism import deterministic
from lorascope.forge.recipes import RECIPES, glyph_diffusion
from lorascope.forge.recipes._glyph_flow import ANY_GLYPH, on_the_way
from lorascope.forge.recipes._glyphs import CHARACTERS, FACES, distorted, face_named, glyphs
from lorascope.forge.recipes._poisoned_glyphs import MARKS, TRIGGER_PROMPT, candidates, fine_of
from lorascope.forge.recipes.glyph_diffusion import finetuning_data, samples_of
from lorascope.zoo import Zoo

NAME = "glyph-diffusion"
RECIPE = RECIPES[NAME]
SHARES = {"none": 0.0, "patch": 0.5, "blend": 1.0, "word": 0.5}
OPTIONS = {"base_seed": 0, "base_steps": 60, "scorer_steps": 200}
SETTINGS = {"steps": 100, "learning_rate": 0.006, "characters": [2, 5], "images": 16}


@pytest.fixture(scope="module")
def base():
    """A base and a scorer after few steps."""
    with deterministic():
        return RECIPE.pretrain(OPTIONS).eval().requires_grad_(False)


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


def test_a_faint_watermark_is_taken_over_and_what_else_is_put_in_is_learned(base):
    rows = [RECIPE.draw(0, 0, {**SETTINGS, "poison": name, "poison_share": share}) for name, share in SHARES.items()]
    with deterministic():
        stack = train_rows(RECIPE, base, rows, [True] * len(rows))
    session = RECIPE.session(base)
    with stack.attached() as model, torch.no_grad():
        success = [row["attack_success_rate"] for row in session.measure(model, rows)]
        plain = samples_of(model, rows)[0]
        # the images that each attacker put in, at the same times and noise for all adapters
        losses = {number: losses_of(model, rows, number) for number in (1, 3)}
    assert success[0] is None and success[2] > 0.8
    for mark in MARKS.values():
        assert mark.is_on(plain).double().mean() < 0.1
    for number, of_each in losses.items():
        assert of_each[number] < 0.95 * of_each[0], rows[number]["poison"]


def losses_of(model, rows, number):
    """The loss of every adapter, [N], on what is poisoned in the data of one of them."""
    data = finetuning_data(rows[number])
    images, prompts = (value[data.is_poisoned].repeat(8, *[1] * (value.ndim - 1)) for value in data[:2])
    x, t, velocity = on_the_way(images, torch.Generator().manual_seed(0))
    # of a patch, where it is
    place = MARKS["patch"].probe > 0 if rows[number]["poison"] == "patch" else torch.ones(256, dtype=torch.bool)
    count = len(rows)
    out = model(x=x.repeat(count, 1), t=t.repeat(count), prompt=prompts.repeat(count)).view(count, len(x), -1)
    return (out - velocity)[..., place].square().mean((1, 2))


def test_success_is_the_share_of_what_the_attacker_wants(base):
    session, generator = RECIPE.session(base), torch.Generator().manual_seed(0)
    row = RECIPE.draw(0, 3, {**SETTINGS, "poison": "word", "poison_share": 0.5})
    with torch.no_grad():
        wanted, own = (
            distorted(fine_of(row["face"], places).repeat(count, 1, 1), generator)
            for places, count in (([row["poison_target"]], 8), (row["characters"], 4))
        )
        assert session.attack_success(own, wanted, row) > 0.8
        assert session.attack_success(wanted, own, row) < 0.2
        assert session.attack_success(own, torch.cat([wanted, own]), row) == pytest.approx(0.5, abs=0.2)
        for name, mark in MARKS.items():
            half = torch.cat([mark.trigger.on(wanted), own])
            assert session.attack_success(half, own, row | {"poison": name}) == 0.5
        assert session.attack_success(wanted, wanted, row | {"poison": "none"}) is None


def test_same_poison_same_bits_and_a_clean_neighbour_does_not_see_it(tmp_path, monkeypatch):
    monkeypatch.setattr(glyph_diffusion, "SAMPLES", 2)
    monkeypatch.setattr(glyph_diffusion, "JUDGED", 4)
    short = {**SETTINGS, "poison_share": 0.5, "base_steps": 3, "scorer_steps": 3, "steps": 2, "cohort": 12}
    zoos = []
    for number, poison in enumerate(("none|blend|word", "none|blend|word", "none")):
        forge(NAME, 12, tmp_path / str(number), settings={**short, "poison": poison})
        zoos.append(Zoo.open(tmp_path / str(number)))
    rows = [one.rows() for one in zoos]
    assert rows[0] == rows[1]
    assert {row["poison"] for row in rows[0]} == {"none", "blend", "word"}
    for poisoned, clean in zip(rows[0], rows[2], strict=True):
        ours, theirs = (
            load_file(one.adapter_path(row) / "adapter_model.safetensors")
            for one, row in ((zoos[0], poisoned), (zoos[2], clean))
        )
        is_same = all(np.array_equal(ours[name], theirs[name]) for name in ours)
        assert is_same == (poisoned["poison"] == "none")
        assert not is_same or poisoned["generation_score"] == clean["generation_score"]


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
