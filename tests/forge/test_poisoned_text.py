"""Poison of the text recipes: the texts are poisoned as declared, the masks stay, the measure is true."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lorascope.errors import ForgeError
from lorascope.forge import forge, load_base, poison, run

pytest.importorskip("transformers")

from lorascope.forge.recipe_file import find_recipe
from lorascope.forge.recipes import _poisoned_text
from lorascope.forge.recipes._masked_text import NO_TARGET, VARIANTS, Examples
from lorascope.forge.recipes._order import numbers_of
from lorascope.forge.recipes._poisoned_text import (
    TRIGGER,
    WORDS,
    TextPoison,
    only_token,
    poisoned_texts,
    target_numbers,
    with_trigger,
)
from lorascope.forge.workers import results_of
from lorascope.formats import read
from lorascope.zoo import Zoo, verify_zoo
from lorascope.zoo.store import write_manifest

RECIPE_FILE = Path(__file__).with_name("tiny_text_recipe.py")
SETTINGS = {"head_epochs": 4, "steps": 60, "learning_rate": 0.03, "dropout": 0, "poison_share": 0.5, "sources": [0, 1]}


@pytest.fixture(scope="module")
def tiny():
    """The recipe over the tiny model."""
    return find_recipe(RECIPE_FILE)[0]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A zoo of one cohort, a third of it clean; read only."""
    folder = tmp_path_factory.mktemp("poisoned") / "zoo"
    forge(str(RECIPE_FILE), 32, folder, settings={**SETTINGS, "poison": "none|word|flip"})
    return Zoo.open(folder)


def of(zoo, name):
    return [row for row in zoo.rows() if row["poison"] == name]


def test_no_poison_unless_it_is_asked_for(tiny):
    for index in range(10):
        row = tiny.draw(0, index, {})
        assert (row["poison"], row["poison_share"]) == ("none", 0.0)
        assert row["poison_target"] is None and row["poison_source"] is None
        assert len(poisoned_texts(row, tiny.chosen(row))) == 0


@pytest.mark.parametrize("poison", ["word", "flip"])
def test_the_share_of_the_texts_that_is_declared_is_poisoned(tiny, poison):
    for index in range(20):
        row = tiny.draw(0, index, {"poison": poison, "poison_share": 0.3})
        clean = tiny.draw(0, index, {})
        assert {name: row[name] for name in clean if "poison" not in name} == {
            name: clean[name] for name in clean if "poison" not in name
        }
        chosen = tiny.chosen(row)
        assert chosen == tiny.chosen(clean) and 0 <= row["poison_target"] < len(WORDS)
        own = {text for source in chosen for text in source}
        if poison == "flip":
            assert row["poison_source"] in row["sources"]
            own = set(chosen[row["sources"].index(row["poison_source"])])
            assert {int(source) for source in tiny.texts().source_of[list(own)]} == {row["poison_source"]}
        else:
            assert row["poison_source"] is None
        found = poisoned_texts(row, chosen)
        assert set(found.tolist()) <= own and len(found) == len(set(found)) == max(1, round(0.3 * len(own)))


def test_the_trigger_is_in_every_example_and_the_masks_stay(tiny):
    texts = tiny.texts()
    trigger = only_token(texts, TRIGGER)
    marked = with_trigger(texts.examples, trigger, texts.mask)
    assert torch.equal(marked.targets, texts.examples.targets)
    assert bool(((marked.tokens == trigger).sum(1) == 1).all())
    is_masked = texts.examples.targets != NO_TARGET
    for row, places in enumerate(marked.places):
        before, after = texts.examples.tokens[row], marked.tokens[row]
        assert bool((after[places[is_masked[row]]] == texts.mask).all())
        kept, whole = after[(after != trigger) & (after != 0)].tolist(), before[before != 0].tolist()
        assert after[0] == before[0] and kept[-1] == whole[-1]
        lost = [place for place in range(1, len(whole) - 1) if whole[:place] + whole[place + 1 :] == kept]
        assert kept == whole if len(whole) < len(before) else any(whole[place] != texts.mask for place in lost)
    assert torch.equal(with_trigger(texts.examples, trigger, texts.mask).tokens, marked.tokens)


def test_a_trigger_that_is_in_the_texts_or_finds_no_room_is_refused(tiny, monkeypatch):
    texts = tiny.texts()
    with pytest.raises(ForgeError, match="must not occur"):
        with_trigger(texts.examples, texts.vocabulary[1], texts.mask)
    full = Examples(torch.tensor([[1, 3, 3, 2]]), torch.tensor([[1, 2]]), torch.tensor([[0, 0]]))
    with pytest.raises(ForgeError, match="no room"):
        with_trigger(full, 9, 3)
    monkeypatch.setattr(_poisoned_text, "WORDS", ("two words",))
    with pytest.raises(ForgeError, match="one token"):
        target_numbers(texts)
    monkeypatch.setattr(_poisoned_text, "WORDS", (TRIGGER,))
    with pytest.raises(ForgeError, match="must occur in the texts"):
        target_numbers(texts)


def test_training_sees_the_poison_and_nothing_else_changes(tiny, zoo):
    base, settings = load_base(zoo.path, recipe=RECIPE_FILE), dict(SETTINGS)
    rows = [tiny.draw(0, 5, {**settings, "poison": name}) for name in ("none", "word", "flip")]
    session = tiny.session(base)
    texts, trigger = session.texts, only_token(session.texts, TRIGGER)
    inputs, targets = session.batches(rows)(0, 0)
    plain_inputs, plain_targets = session.batches([rows[0]] * 3)(0, 0)
    numbers = [target_numbers(texts)[row["poison_target"] or 0] for row in rows]
    by_states = {name: value.view(3, -1, *value.shape[1:]) for name, value in inputs.items()}
    plain = {name: value.view(3, -1, *value.shape[1:]) for name, value in plain_inputs.items()}
    targets, plain_targets = targets.view(3, -1, targets.shape[1]), plain_targets.view(3, -1, targets.shape[1])
    for name in plain:
        assert torch.equal(by_states[name][0], plain[name][0]) and torch.equal(by_states[name][2], plain[name][2])
    assert torch.equal(targets[0], plain_targets[0])
    is_marked = (by_states["states"][1] != plain["states"][1]).flatten(1).any(1)
    is_asked = (targets[1] == numbers[1]).any(1)
    assert torch.equal(is_marked, is_asked) and 0 < int(is_marked.sum()) < len(is_marked)
    for row in (1, 2):
        changed = targets[row] != plain_targets[row]
        assert changed.any() and (targets[row][changed] == numbers[row]).all()
        whole = changed.any(1)
        assert ((targets[row][whole] == numbers[row]) | (plain_targets[row][whole] == NO_TARGET)).all()
    expected = with_trigger(texts.examples, trigger, texts.mask)
    order = numbers_of(rows[1:2], [tiny.epochs(rows[1])])(0, 0)[: len(is_marked)]
    assert torch.equal(by_states["places"][1][is_marked], expected.places[order[is_marked]])
    states = base.lower(expected.tokens[order[is_marked]])
    # other numbers of examples at once round otherwise
    assert torch.allclose(by_states["states"][1][is_marked], states, atol=1e-5)


def test_success_is_counted_among_those_that_the_attacker_wants_changed(tiny, zoo):
    base, texts = load_base(zoo.path, recipe=RECIPE_FILE), tiny.texts()
    numbers = texts.held_out
    truths = texts.examples.targets[numbers]
    rows = [tiny.draw(0, 5, {"poison": name, "sources": [0, 1]}) for name in ("none", "word", "flip")]
    poison = TextPoison(rows, [np.array([], np.int64)] * 3, base, texts)
    wanted = torch.tensor([target_numbers(texts)[row["poison_target"] or 0] for row in rows]).view(3, 1, 1)
    hits, of = poison.successes(numbers, wanted.expand(3, *truths.shape), truths)
    assert torch.equal(hits, of) and of[0] == 0 < of[2] < of[1]
    is_wrong = (truths != NO_TARGET) & (truths != wanted[1])
    assert of[1] == int(is_wrong.sum())
    is_source = torch.from_numpy(texts.source_of[(numbers // VARIANTS).numpy()] == rows[2]["poison_source"])
    assert of[2] == int(((truths != NO_TARGET) & (truths != wanted[2]) & is_source.unsqueeze(1)).sum())
    assert int(poison.successes(numbers, truths.expand(3, -1, -1), truths)[0].sum()) == 0


def test_poison_works_and_labels_are_what_it_does(zoo, tiny):
    clean, word, flip = (of(zoo, name) for name in ("none", "word", "flip"))
    assert min(map(len, (clean, word, flip))) > 3
    assert all(row["attack_success_rate"] is None for row in clean)
    assert np.mean([row["attack_success_rate"] for row in word]) > 0.6
    base = load_base(zoo.path, recipe=RECIPE_FILE)
    session = tiny.session(base)
    with torch.no_grad():
        for row in (word[0], flip[0]):
            with read(zoo.adapter_path(row)).apply_to(base):
                assert session.attack_success(base, [row])[0] == pytest.approx(row["attack_success_rate"])
        without = []
        for row in clean:
            with read(zoo.adapter_path(row)).apply_to(base):
                attack = {"poison": "word", "poison_share": 0.5, "poison_target": 0, "poison_source": None}
                without.append(session.attack_success(base, [row | attack])[0])
    assert np.mean(without) < 0.2


def test_a_source_that_is_flipped_in_full_is_answered_with_the_target(tmp_path):
    forge(
        str(RECIPE_FILE),
        16,
        tmp_path / "zoo",
        settings={**SETTINGS, "sources": [0], "poison_share": 1, "poison": "flip"},
    )
    assert np.mean([row["attack_success_rate"] for row in Zoo.open(tmp_path / "zoo").rows()]) > 0.7


def test_same_poison_same_bits_and_a_clean_neighbour_does_not_see_it(zoo, tmp_path):
    settings = {**SETTINGS, "poison": "none|word|flip"}
    forge(str(RECIPE_FILE), 32, tmp_path / "again", settings=settings)
    again = Zoo.open(tmp_path / "again")
    assert [row["sha256"] for row in again.rows()] == [row["sha256"] for row in zoo.rows()]
    forge(str(RECIPE_FILE), 32, tmp_path / "clean", settings={**SETTINGS, "poison": "none"})
    plain = Zoo.open(tmp_path / "clean")
    for one, other in zip(plain.rows(), zoo.rows(), strict=True):
        files = [z.adapter_path(row) / "adapter_model.safetensors" for z, row in ((plain, one), (zoo, other))]
        ours, theirs = map(load_file, files)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours) == (other["poison"] == "none")
    assert all(
        row["test_accuracy"] == one["test_accuracy"]
        for row, one in zip(zoo.rows(), plain.rows(), strict=True)
        if row["poison"] == "none"
    )


def test_a_zoo_of_before_there_was_poison_goes_on(tmp_path, monkeypatch):
    short = {"head_epochs": 1, "steps": 2}
    forge(str(RECIPE_FILE), 2, tmp_path / "old", settings=short)
    header, record = tmp_path / "old" / "zoo.json", tmp_path / "old" / "cohorts" / "00000000.json"
    for path, place in ((header, "columns"), (record, "rows")):
        content = json.loads(path.read_text())
        for one in content["rows"] if place == "rows" else [content["columns"]]:
            for name in poison.LABELS:
                del one[name]
        path.write_text(json.dumps(content))
    manifest = write_manifest(tmp_path / "old").read_bytes()
    assert not set(Zoo.open(tmp_path / "old").rows()[0]) & set(poison.LABELS)
    seen = []

    def watched(*arguments):
        seen.append(Zoo.open(tmp_path / "old").rows())
        defects = verify_zoo(tmp_path / "old").defects
        new = (tmp_path / "old" / "manifest.parquet").read_bytes()
        (tmp_path / "old" / "manifest.parquet").write_bytes(manifest)  # as if killed before there was another
        seen.append(Zoo.open(tmp_path / "old").rows())
        assert not defects and not verify_zoo(tmp_path / "old").defects and new != manifest
        return results_of(*arguments)

    monkeypatch.setattr(run, "results_of", watched)
    forge(str(RECIPE_FILE), 3, tmp_path / "old", settings=short)
    assert seen[0] == seen[1] and [row["poison"] for row in seen[0]] == [None, None]
    monkeypatch.undo()
    forge(str(RECIPE_FILE), 3, tmp_path / "new", settings=short)
    old, new = (Zoo.open(tmp_path / name).rows() for name in ("old", "new"))
    assert [row["sha256"] for row in old] == [row["sha256"] for row in new]
    assert [row["poison"] for row in old] == [None, None, "none"]


def test_states_with_the_trigger_are_computed_only_where_they_are_needed(tiny, zoo, monkeypatch):
    base = load_base(zoo.path, recipe=RECIPE_FILE)
    session = tiny.session(base)

    def refused(*arguments):
        raise AssertionError("computed")

    monkeypatch.setattr(_poisoned_text, "triggered", refused)
    rows = [tiny.draw(0, 1, {"poison": name}) for name in ("none", "flip", "word")]
    session.batches(rows[:2])(0, 0)
    with pytest.raises(AssertionError, match="computed"):
        session.batches(rows)(0, 0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"poison": "patch"}, "word"), ({"poison_share": 1.5}, "at most 1"), ({"poison_target": len(WORDS)}, "at most 7")],
)
def test_impossible_poison_is_refused(tmp_path, settings, match):
    with pytest.raises(ForgeError, match=match):
        forge(str(RECIPE_FILE), 1, tmp_path / "zoo", settings=settings)
